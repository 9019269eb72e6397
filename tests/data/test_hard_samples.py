# SPDX-License-Identifier: Apache-2.0
"""Samples that need care: bad files and what stands in for them, mixed clips, several labels, other ways of
sampling."""

import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from clips import frame_numbers, indexed_frames, write_clip
from modeling_cover import CoTrainingDataset, CoverVideoProcessor, EvaluationDataset, VideoDecodingError, collate_clips
from modeling_cover.data.mixture import MixtureSampler, MixtureSchedule, SampleReference
from modeling_cover.data.quarantine import Quarantine, TooManyBadFilesError
from modeling_cover.data.samples import UNREADABLE
from modeling_cover.data.sources import Source, StreamedSource, read_sources
from modeling_cover.data.sources.media import PathMedia, Segments
from modeling_cover.recipe.augmentation_recipe import Augmentation, RandomErasing
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from torch.utils.data import DataLoader


CROP = 16
WHOLE_FRAMES = {"size": {"shortest_edge": CROP}, "crop_size": {"height": CROP, "width": CROP}, "num_frames": 4}


@pytest.fixture
def processor() -> CoverVideoProcessor:
    return CoverVideoProcessor(**WHOLE_FRAMES)


def reference(row: int, position: int | None = None, name: str = "greys") -> SampleReference:
    position = row if position is None else position
    return SampleReference(name, row, position, draw=position)


@pytest.fixture
def greys(tmp_path) -> Source:
    """Ten images, each of a grey of its own: 0, 20, ... 180. The grey is the class."""
    folder = tmp_path / "greys"
    folder.mkdir()
    for index in range(10):
        PIL.Image.new("L", (CROP, CROP), 20 * index).save(folder / f"{index}.png")
    return image_source(folder, [f"{index}.png" for index in range(10)])


def image_source(folder: Path, names: Sequence[str], **fields) -> Source:
    defaults = {"problem_type": "single_label_classification", "classes": np.arange(len(names))}
    return Source(
        name="greys",
        modality="image",
        labels=[str(index) for index in range(10)],
        media=PathMedia(str(folder), names),
        roots=(str(folder),),
        **(defaults | fields),
    )


def break_files(source: Source, *rows: int) -> None:
    for row in rows:
        Path(source.media[row].content).write_bytes(b"no image")


def make_dataset(source, processor, seed: int = 0, **options) -> CoTrainingDataset:
    return CoTrainingDataset([source], [source.name], processor, seed, **options)


def greys_of(sample: Mapping) -> list[int]:
    """What grey each frame of a sample has, in twentieths."""
    levels = sample["pixel_values"].float().mean(dim=(1, 2, 3))
    return (levels / 20).round().int().tolist()


class TestBadFiles:
    def test_another_row_of_the_dataset_stands_in_for_one_with_its_own_label(self, greys, processor, tmp_path):
        break_files(greys, 3)
        dataset = make_dataset(greys, processor, quarantine=Quarantine(tmp_path / "quarantine.jsonl", 1))
        for position in range(20):
            sample = dataset[reference(3, position)]
            assert sample["labels"] != 3
            assert greys_of(sample) == [sample["labels"]]

    def test_what_stands_in_depends_on_seed_and_position_alone(self, greys, processor, tmp_path):
        break_files(greys, 3, 4, 5)

        def drawn(name: str, rows: list[int], seed: int = 0) -> dict[int, int]:
            quarantine = Quarantine(tmp_path / name, 1)
            dataset = make_dataset(greys, processor, seed, quarantine=quarantine)
            return {row: dataset[reference(row)]["labels"] for row in rows}

        first = drawn("first", list(range(10)))
        assert drawn("backwards", list(range(10))[::-1]) == first
        assert drawn("first", list(range(10))) == first  # all bad files known from the start
        assert any(drawn(f"seed {seed}", list(range(10)), seed) != first for seed in range(1, 5))

    def test_it_is_written_down_once_with_its_reason_and_never_opened_again(self, greys, processor, tmp_path):
        break_files(greys, 3)
        dataset = make_dataset(greys, processor, quarantine=Quarantine(tmp_path / "quarantine.jsonl", 1))
        for position in range(5):
            dataset[reference(3, position)]
        path = greys.media[3].content
        (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
        assert json.loads(line)["dataset"] == "greys" and json.loads(line)["path"] == path
        assert "cannot be read as an image" in json.loads(line)["reason"]
        PIL.Image.new("L", (CROP, CROP), 60).save(path)  # it would be readable now
        assert dataset[reference(3)]["labels"] != 3

    @pytest.mark.parametrize("num_workers", [0, 1, 3])
    def test_the_number_of_workers_changes_nothing(self, greys, processor, tmp_path, num_workers):
        break_files(greys, 1, 7)
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1)
        dataset = make_dataset(greys, processor, quarantine=quarantine)
        sampler = MixtureSampler(MixtureSchedule(dataset.sizes, seed=0), step_size=30)
        loader = DataLoader(dataset, 5, sampler=sampler, num_workers=num_workers, collate_fn=collate_clips)
        labels = torch.cat([batch["labels"] for batch in loader]).tolist()
        alone = make_dataset(greys, processor, quarantine=Quarantine(tmp_path / "other.jsonl", 1))
        assert labels == [alone[one]["labels"] for one in sampler]
        assert {entry.path for entry in quarantine.entries()} == {greys.media[row].content for row in (1, 7)}
        assert len(quarantine.path.read_text().splitlines()) == 2

    def test_past_the_share_that_is_allowed_it_is_an_error_with_examples(self, greys, processor, tmp_path):
        break_files(greys, 2, 3)
        dataset = make_dataset(greys, processor, quarantine=Quarantine(tmp_path / "quarantine.jsonl", 0.005))
        dataset[reference(2)]
        with pytest.raises(
            TooManyBadFilesError, match=r"dataset 'greys', train split: 2 of the 10 rows .* more than the 1 that"
        ):
            for position in range(100):
                dataset[reference(3, position)]

    def test_a_dataset_without_one_good_file_is_an_error_whatever_is_allowed(self, greys, processor, tmp_path):
        break_files(greys, *range(10))
        dataset = make_dataset(greys, processor, quarantine=Quarantine(tmp_path / "quarantine.jsonl", 1))
        with pytest.raises(TooManyBadFilesError, match="dataset 'greys': 100 rows drawn to stand in"):
            dataset[reference(0)]

    def test_without_a_quarantine_it_is_an_error(self, greys, processor):
        break_files(greys, 3)
        with pytest.raises(VideoDecodingError, match=r"3\.png cannot be read as an image"):
            make_dataset(greys, processor)[reference(3)]

    @pytest.mark.parametrize("training", [True, False])
    def test_a_dataset_that_vanishes_is_no_bad_file_but_an_error(self, greys, processor, tmp_path, training):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1)
        train, evaluation = (
            make_dataset(greys, processor, quarantine=quarantine),
            EvaluationDataset(greys, processor, quarantine),
        )
        shutil.rmtree(greys.roots[0])
        with pytest.raises(
            FileNotFoundError, match=r"dataset 'greys': .*greys was there at the start and is not any more"
        ):
            train[reference(3)] if training else evaluation[3]
        assert quarantine.entries() == []

    def test_in_an_evaluation_it_counts_for_nothing(self, greys, processor, tmp_path):
        break_files(greys, 3)
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1)
        samples = [EvaluationDataset(greys, processor, quarantine)[row] for row in range(10)]
        assert [sample["labels"] for sample in samples] == [0, 1, 2, UNREADABLE, 4, 5, 6, 7, 8, 9]
        assert collate_clips(samples)["pixel_values"].shape == (10, 1, 3, CROP, CROP)
        assert [entry.path for entry in quarantine.entries()] == [greys.media[3].content]

    def test_an_evaluation_does_not_open_it_again(self, greys, processor, tmp_path):
        break_files(greys, 3)
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1)
        assert EvaluationDataset(greys, processor, quarantine)[3]["labels"] == UNREADABLE
        PIL.Image.new("L", (CROP, CROP), 60).save(greys.media[3].content)  # it would be readable now
        assert EvaluationDataset(greys, processor, quarantine)[3]["labels"] == UNREADABLE

    def test_those_of_a_validation_split_do_not_count_among_those_of_training(self, greys, processor, tmp_path):
        break_files(greys, 3, 4)
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", 0.2)
        dataset, evaluation = (
            make_dataset(greys, processor, quarantine=quarantine),
            image_source(Path(greys.roots[0]), ["5.png", "3.png", "6.png", "7.png", "8.png"]),
        )
        dataset[reference(3)], dataset[reference(4)]
        assert EvaluationDataset(evaluation, processor, quarantine)[1]["labels"] == UNREADABLE
        assert quarantine.counts() == {"greys": 2}

    @pytest.mark.parametrize("first", [0, 1, 2])
    def test_one_bad_segment_says_nothing_of_the_others_of_its_file(self, processor, tmp_path, first):
        write_clip(tmp_path / "clip.mp4", indexed_frames(24, CROP, CROP))  # of a second
        source = Source(
            name="parts",
            modality="video",
            labels=["a", "b", "c"],
            problem_type="single_label_classification",
            media=PathMedia(str(tmp_path), ["clip.mp4"] * 3, Segments([0, 5, 0.5], [0.5, 6, 1])),
            classes=np.arange(3),
        )
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1)
        dataset, evaluation = (
            make_dataset(source, processor, quarantine=quarantine),
            EvaluationDataset(source, processor, quarantine),
        )
        for row in ((first + index) % 3 for index in range(3)):
            assert (dataset[reference(row, name="parts")]["labels"] == row) is (row != 1)
            assert evaluation[row]["labels"] == (UNREADABLE if row == 1 else row)
        assert [evaluation[row]["labels"] for row in range(3)] == [0, UNREADABLE, 2]
        assert [entry.path for entry in quarantine.entries()] == [f"{tmp_path}/clip.mp4, from 5.0 to 6.0 s"] * 2

    def test_the_rows_of_a_shard_that_is_cut_while_it_is_read_are_replaced(self, processor, tmp_path):
        source = self.shard(tmp_path, "greys.tar")
        dataset = make_dataset(source, processor, quarantine=Quarantine(tmp_path / "quarantine.jsonl", 1))
        content = (tmp_path / "greys.tar").read_bytes()
        (tmp_path / "greys.tar").write_bytes(content[: len(content) // 2])
        samples = [dataset[reference(row)] for row in range(10)]
        assert all(greys_of(sample) == [sample["labels"]] for sample in samples)
        assert 9 not in {sample["labels"] for sample in samples}
        assert "row 9" in {entry.path for entry in dataset.quarantine.entries()}

    def test_a_row_that_cannot_be_read_is_read_once(self, processor, tmp_path, monkeypatch):
        source = self.shard(tmp_path, "greys.tar")
        content = (tmp_path / "greys.tar").read_bytes()
        dataset = make_dataset(source, processor, quarantine=Quarantine(tmp_path / "quarantine.jsonl", 1))
        (tmp_path / "greys.tar").write_bytes(content[: len(content) // 2])
        read, tries = type(source.media).__getitem__, []
        monkeypatch.setattr(type(source.media), "__getitem__", lambda self, row: tries.append(row) or read(self, row))
        for position in range(5):
            dataset[reference(9, position)]
        assert tries.count(9) == 1

    def shard(self, folder: Path, name: str) -> Source:
        with tarfile.open(folder / name, "w") as tar:
            for index in range(10):
                for suffix, member in (("png", _png(20 * index)), ("cls", str(index).encode())):
                    info = tarfile.TarInfo(f"{index}.{suffix}")
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))
        place = {"train": str(folder / name)}
        labels = [str(index) for index in range(10)]
        recipe = DatasetRecipe(name="greys", format="webdataset", modality="image", splits=place, labels=labels)
        return read_sources(recipe)["train"]

    def test_in_an_evaluation_of_videos_too(self, processor, tmp_path):
        (tmp_path / "broken.mp4").write_bytes(b"no video")
        write_clip(tmp_path / "whole.mp4", indexed_frames(4, CROP, CROP))
        source = Source(
            name="videos",
            modality="video",
            labels=["a", "b", "c"],
            problem_type="multi_label_classification",
            media=PathMedia(str(tmp_path), ["broken.mp4", "whole.mp4"]),
            classes=np.array([0, 1, 2]),
            class_starts=np.array([0, 2, 3]),
        )
        evaluation = EvaluationDataset(source, processor, Quarantine(tmp_path / "quarantine.jsonl", 1))
        batch = collate_clips([evaluation[0], evaluation[1]])
        assert batch["labels"].tolist() == [[UNREADABLE] * 3, [0, 0, 1]]
        assert batch["pixel_values"].shape == (2, 4, 3, CROP, CROP)

    @pytest.mark.parametrize("bad", [b"no image", b"", None])
    def test_in_a_stream_one_of_the_first_rows_stands_in(self, processor, tmp_path, bad):
        source = _streamed(tmp_path, [bad if index == 4 else _png(20 * index) for index in range(10)])

        def drawn(name: str) -> list[int]:
            dataset = make_dataset(source, processor, quarantine=Quarantine(tmp_path / name, 1))
            streams = dataset.open_streams()
            samples = [dataset[one] for one in MixtureSampler(MixtureSchedule(dataset.sizes, 0), streams=streams)]
            assert all(greys_of(sample) == [sample["labels"]] for sample in samples)
            return [sample["labels"] for sample in samples]

        labels = drawn("first.jsonl")
        assert 4 not in labels and len(labels) == 10 and len(set(labels)) == 9
        assert drawn("second.jsonl") == labels


def _streamed(folder: Path, images: Sequence[bytes | None]) -> StreamedSource:
    """A Parquet file of images, streamed; each is a class of its own."""
    features = datasets.Features({"image": datasets.Value("binary"), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": images, "label": list(range(len(images)))}, features=features)
    table.to_parquet(folder / "greys.parquet")
    recipe = DatasetRecipe(
        name="greys",
        format="parquet",
        modality="image",
        splits={"train": str(folder / "greys.parquet")},
        labels=[str(index) for index in range(len(images))],
        streaming=True,
        sizes={"train": len(images)},
    )
    return read_sources(recipe)["train"]


def _png(level: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("L", (CROP, CROP), level).save(file, "png")
    return file.getvalue()


class TestErasing:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"image_mean": [0.2, 0.4, 0.6], "image_std": [0.1, 0.2, 0.3]},
            {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 60, 60]},
            {"do_normalize": False},
        ],
    )
    def test_what_is_erased_is_zero_to_the_model(self, greys, options):
        processor = CoverVideoProcessor(**WHOLE_FRAMES, **options)
        augmentation = Augmentation(random_erasing=RandomErasing(probability=1, scale=(0.2, 0.3)))
        dataset = make_dataset(greys, processor, augmentations={"greys": augmentation})
        clip = processor.normalize_pixels(dataset[reference(9)]["pixel_values"])
        erased = clip[clip.abs() < 0.02]  # half a step of the bytes, at most
        assert 0.15 < len(erased) / clip.numel() < 0.35


class TestMixing:
    def test_a_clip_and_its_label_are_mixed_in_one_share_with_another_row(self, greys, processor):
        dataset = make_dataset(greys, processor, augmentations={"greys": Augmentation(mixup_alpha=1.0)})
        for position in range(20):
            sample = dataset[reference(3, position)]
            assert sample["labels"].sum() == pytest.approx(1)
            expected = sum(20 * label * share for label, share in enumerate(sample["labels"].tolist()))
            assert sample["pixel_values"].float().mean().item() == pytest.approx(expected, abs=0.51)

    def test_samples_that_are_not_mixed_have_a_vector_of_one_label(self, greys, processor):
        augmentation = Augmentation(mixup_alpha=1.0, mix_probability=0.5)
        dataset = make_dataset(greys, processor, augmentations={"greys": augmentation})
        samples = [dataset[reference(3, position)] for position in range(40)]
        unmixed = [sample for sample in samples if sample["labels"].max() == 1]
        assert 8 <= len(unmixed) <= 36
        assert all(sample["labels"].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0] for sample in unmixed[:3])

    def test_a_batch_has_labels_by_head(self, greys, processor):
        dataset = make_dataset(greys, processor, augmentations={"greys": Augmentation(cutmix_alpha=1.0)})
        batch = collate_clips([dataset[reference(row)] for row in range(4)])
        assert list(batch["labels"]) == ["greys"]
        assert batch["labels"]["greys"].shape == (4, 10)

    def test_in_a_stream_any_row_may_be_the_partner(self, processor, tmp_path):
        """Not just those that it begins with."""
        source = _streamed(tmp_path, [_png(2 * index) for index in range(100)])
        dataset = make_dataset(source, processor, augmentations={"greys": Augmentation(mixup_alpha=1.0)})
        sampler = MixtureSampler(MixtureSchedule(dataset.sizes, 0), 1, dataset.open_streams(), dataset.mixed)
        partners = set()
        for one in sampler:
            sample, own = dataset[one], source.example(one.stored).target
            assert sample["labels"].sum() == pytest.approx(1)
            expected = sum(2 * label * share for label, share in enumerate(sample["labels"].tolist()))
            assert sample["pixel_values"].float().mean().item() == pytest.approx(expected, abs=0.51)
            partners |= set(sample["labels"].nonzero().flatten().tolist()) - {own}
        assert len(partners) > 90

    def test_a_bad_partner_is_replaced(self, greys, processor, tmp_path):
        break_files(greys, *range(4, 10))
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1)
        augmentations = {"greys": Augmentation(mixup_alpha=1.0)}
        dataset = make_dataset(greys, processor, augmentations=augmentations, quarantine=quarantine)
        for position in range(20):
            assert dataset[reference(3, position)]["labels"][4:].sum() == 0
        assert quarantine.entries()


class TestSeveralLabels:
    def test_a_row_has_a_vector_of_them(self, greys, processor):
        source = image_source(
            Path(greys.roots[0]),
            ["0.png", "1.png"],
            problem_type="multi_label_classification",
            classes=np.array([1, 4, 9]),
            class_starts=np.array([0, 2, 3]),
        )
        batch = collate_clips([make_dataset(source, processor)[reference(row)] for row in (0, 1)])
        assert [labels.nonzero().flatten().tolist() for labels in batch["labels"]["greys"]] == [[1, 4], [9]]


class TestFrames:
    @pytest.fixture
    def counting(self, tmp_path) -> Source:
        write_clip(tmp_path / "counting.mp4", indexed_frames(20, CROP, CROP))
        return Source(
            name="counting",
            modality="video",
            labels=["a"],
            problem_type="single_label_classification",
            media=PathMedia(str(tmp_path), ["counting.mp4"]),
            classes=np.zeros(1, dtype=np.int64),
        )

    def numbers(self, dataset: CoTrainingDataset, position: int) -> list[int]:
        clip = dataset[reference(0, position, "counting")]["pixel_values"]
        return frame_numbers(clip.permute(0, 2, 3, 1).numpy())

    def test_uniform_ones_are_the_same_each_time(self, counting, processor):
        dataset = make_dataset(counting, processor)
        assert all(self.numbers(dataset, position) == [2, 7, 12, 17] for position in range(3))

    def test_dense_ones_are_a_stride_apart_from_a_random_start(self, counting):
        processor = CoverVideoProcessor(**WHOLE_FRAMES, frame_sampling="dense", frame_stride=3)
        dataset = make_dataset(counting, processor, clip_sampling="dense")
        drawn = [self.numbers(dataset, position) for position in range(30)]
        assert all(np.diff(numbers).tolist() == [3, 3, 3] for numbers in drawn)
        assert len({numbers[0] for numbers in drawn}) > 5
        assert self.numbers(dataset, 7) == drawn[7]

    def test_segments_have_a_random_frame_each(self, counting, processor):
        dataset = make_dataset(counting, processor, clip_sampling="segments")
        drawn = [self.numbers(dataset, position) for position in range(30)]
        assert all(5 * segment <= numbers[segment] < 5 * segment + 5 for numbers in drawn for segment in range(4))
        assert len({tuple(numbers) for numbers in drawn}) > 20

    def test_in_an_evaluation_dense_ones_are_those_of_the_processor(self, counting):
        processor = CoverVideoProcessor(**WHOLE_FRAMES, frame_sampling="dense", frame_stride=3)
        clip = EvaluationDataset(counting, processor)[0]["pixel_values"]
        expected = processor(counting.media[0].content, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(processor.normalize_pixels(clip), expected)

    def test_a_segment_of_a_file_is_sampled_as_a_clip_of_its_own(self, counting, processor, tmp_path):
        segments = Segments([0.25], [0.75])  # at 24 frames a second: 6 to 17
        media = PathMedia(str(tmp_path), ["counting.mp4"], segments)
        source = Source(**{**vars(counting), "media": media})
        assert self.numbers(make_dataset(source, processor), 0) == [7, 10, 13, 16]
