# SPDX-License-Identifier: Apache-2.0
"""Samples and batches: what is random about a sample, which pixels it has, and how samples become clip groups."""

import random
import struct

import numpy as np
import PIL.Image
import pytest
import torch
from clips import write_clip
from modeling_cover import CoTrainingDataset, CoverVideoProcessor, EvaluationDataset, VideoDecodingError, collate_clips
from modeling_cover.data.mixture import MixtureSampler, MixtureSchedule, SampleReference
from modeling_cover.data.quarantine import Quarantine
from modeling_cover.data.sources import Source
from modeling_cover.data.sources.media import IMAGE_SUFFIXES, PathMedia
from modeling_cover.model.image_reading_cover import read_image
from modeling_cover.recipe.augmentation_recipe import Augmentation
from open_files import files_left
from torch.utils.data import DataLoader


HEAD_NAMES = ["gradients", "noise", "pictures"]
UNMIRRORED = {"gradients": Augmentation(horizontal_flip=False)}
CROP = 16


def to_the_right(num_frames: int = 4, height: int = 24, width: int = 32) -> np.ndarray:
    """Frames (T, H, W, 3) that grow brighter from left to right: their mirror image is no part of them."""
    levels = np.linspace(0, 255, width).astype(np.uint8)
    return np.broadcast_to(levels[None, None, :, None], (num_frames, height, width, 3)).copy()


def is_mirrored(clip: torch.Tensor) -> bool:
    """Whether a clip (T, C, H, W) out of `to_the_right` grows brighter to the left; all of its frames must agree."""
    brighter = clip[..., -1].float().mean(dim=(1, 2)) > clip[..., 0].float().mean(dim=(1, 2))
    assert brighter.all() or not brighter.any()
    return not brighter.any()


def source(name: str, paths: list, modality: str = "video") -> Source:
    return Source(
        name=name,
        modality=modality,
        labels=["x", "y", "z"],
        problem_type="single_label_classification",
        media=PathMedia("/", [str(path) for path in paths]),
        classes=np.arange(len(paths)) % 3,
    )


def reference(name: str, row: int, position: int) -> SampleReference:
    return SampleReference(name, row, position, draw=position)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Source]:
    """A gradient that must not be mirrored, videos of noise, and pictures of noise."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    gradient = write_clip(folder / "gradient.mp4", to_the_right())
    noise = []
    for index in range(4):
        frame = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        noise.append(write_clip(folder / f"{index}.mp4", np.stack([frame] * 4)))
    pictures = [folder / f"{index}.png" for index in range(5)]
    for path in pictures:
        PIL.Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    return [
        source("gradients", [gradient]),
        source("noise", noise),
        source("pictures", pictures, modality="image"),
    ]


@pytest.fixture(scope="module")
def processor() -> CoverVideoProcessor:
    return CoverVideoProcessor(size={"shortest_edge": 20}, crop_size={"height": CROP, "width": CROP}, num_frames=2)


@pytest.fixture(scope="module")
def dataset(sources, processor) -> CoTrainingDataset:
    return CoTrainingDataset(sources, HEAD_NAMES, processor, seed=0, augmentations=UNMIRRORED)


def pixels_at(dataset: CoTrainingDataset, name: str, positions: range, row: int = 0) -> list[torch.Tensor]:
    """One row, as it is at each of these positions."""
    return [dataset[reference(name, row, position)]["pixel_values"] for position in positions]


class TestTrainingSamples:
    def test_a_video_has_all_its_frames_and_an_image_has_one(self, dataset):
        assert dataset[reference("noise", 0, 0)]["pixel_values"].shape == (2, 3, CROP, CROP)
        assert dataset[reference("pictures", 0, 0)]["pixel_values"].shape == (1, 3, CROP, CROP)

    def test_their_labels_and_heads_are_those_of_their_rows(self, dataset):
        for name, row in (("noise", 0), ("noise", 2), ("pictures", 4), ("gradients", 0)):
            sample = dataset[reference(name, row, 0)]
            assert (sample["labels"], sample["head_ids"]) == (row % 3, HEAD_NAMES.index(name))

    def test_head_ids_count_all_heads_of_the_model(self, sources, processor):
        dataset = CoTrainingDataset(sources, ["a", "b", *HEAD_NAMES], processor, seed=0)
        assert dataset[reference("noise", 0, 0)]["head_ids"] == 3

    def test_a_dataset_without_a_head_is_named(self, sources, processor):
        with pytest.raises(ValueError, match=r"no head for the datasets \['noise'\]: .*\['gradients', 'pictures'\]"):
            CoTrainingDataset(sources, ["gradients", "pictures"], processor, seed=0)

    def test_sizes_are_those_of_the_datasets(self, dataset):
        assert dataset.sizes == {"gradients": 1, "noise": 4, "pictures": 5}
        assert len(dataset) == 10

    @pytest.mark.parametrize("name", ["noise", "pictures"])
    def test_their_pixels_are_a_window_of_the_processors(self, dataset, processor, sources, name):
        path = next(source.media[0].content for source in sources if source.name == name)
        whole = processor(path, do_center_crop=False, return_tensors="pt")["pixel_values"][0]
        windows = whole.unfold(-2, CROP, 1).unfold(-2, CROP, 1).permute(2, 3, 0, 1, 4, 5).flatten(0, 1)
        for pixel_values in pixels_at(dataset, name, range(8)):
            assert pixel_values.dtype == torch.uint8
            crop = processor.normalize_pixels(pixel_values)
            assert any(torch.equal(window, crop) or torch.equal(window.flip(-1), crop) for window in windows)

    def test_the_crop_is_the_same_in_all_frames(self, dataset):
        for pixel_values in pixels_at(dataset, "noise", range(8)):
            first, second = pixel_values.float()
            # All frames of the file are alike, but for what encoding does to them.
            assert (first - second).abs().mean() < 6
            assert (first - second.roll(1, dims=-1)).abs().mean() > 25


class TestRandomness:
    def test_a_sample_is_a_function_of_seed_and_position_alone(self, dataset, sources, processor):
        again = CoTrainingDataset(sources[::-1], HEAD_NAMES, processor, seed=0)
        for one in (reference("noise", 1, 5), reference("pictures", 2, 2**40)):
            random.seed(1)
            np.random.seed(1)
            torch.manual_seed(1)
            first = dataset[one]["pixel_values"]
            random.seed(2)
            np.random.seed(2)
            torch.manual_seed(2)
            assert torch.equal(again[one]["pixel_values"], first)

    def test_drawing_one_does_not_change_the_global_random_states(self, dataset):
        torch.manual_seed(0)
        np.random.seed(0)
        dataset[reference("noise", 1, 5)]
        drawn = torch.rand(()).item(), np.random.rand()
        torch.manual_seed(0)
        np.random.seed(0)
        assert drawn == (torch.rand(()).item(), np.random.rand())

    def test_another_position_or_seed_is_another_view(self, dataset, sources, processor):
        views = pixels_at(dataset, "pictures", range(16))
        assert len({view.numpy().tobytes() for view in views}) > 8
        other = pixels_at(CoTrainingDataset(sources, HEAD_NAMES, processor, seed=1), "pictures", range(16))
        assert sum(torch.equal(first, second) for first, second in zip(views, other, strict=True)) < 4

    def test_the_number_of_workers_changes_nothing(self, dataset):
        """Nor does a worker's own random state, which differs from worker to worker."""

        def batches(num_workers: int) -> list[dict]:
            torch.manual_seed(num_workers)
            sampler = MixtureSampler(MixtureSchedule(dataset.sizes, seed=0))
            sampler.set_epoch(1)
            return list(
                DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=num_workers, collate_fn=collate_clips)
            )

        alone, with_workers = batches(0), batches(2)
        assert len(alone) == len(with_workers) == 3
        for first, second in zip(alone, with_workers, strict=True):
            assert torch.equal(first["labels"], second["labels"])
            assert torch.equal(first["head_ids"], second["head_ids"])
            assert len(first["pixel_values"]) == len(second["pixel_values"])
            for group, other_group in zip(first["pixel_values"], second["pixel_values"], strict=True):
                assert torch.equal(group, other_group)


class TestHorizontalFlip:
    def test_where_it_is_off_nothing_is_ever_mirrored(self, dataset):
        assert not any(is_mirrored(clip) for clip in pixels_at(dataset, "gradients", range(64)))

    def test_where_it_is_on_half_of_the_clips_are_mirrored(self, sources, processor):
        dataset = CoTrainingDataset(sources, HEAD_NAMES, processor, seed=0)
        clips = pixels_at(dataset, "gradients", range(64))
        assert 20 <= sum(is_mirrored(clip) for clip in clips) <= 44


class TestImages:
    @pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
    def test_every_kind_that_class_folders_take_can_be_read(self, tmp_path, processor, suffix):
        path = tmp_path / f"image{suffix}"
        PIL.Image.fromarray(to_the_right(1)[0]).save(path)
        dataset = EvaluationDataset(source("pictures", [path], modality="image"), processor)
        assert not is_mirrored(dataset[0]["pixel_values"])

    def test_they_are_turned_upright_as_the_processor_turns_them(self, tmp_path, processor):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # orientation: to be turned clockwise
        path = tmp_path / "image.jpg"
        PIL.Image.fromarray(to_the_right(1)[0]).save(path, exif=exif)
        dataset = EvaluationDataset(source("pictures", [path], modality="image"), processor)
        crop = processor.normalize_pixels(dataset[0]["pixel_values"])
        assert torch.equal(crop, processor(path, return_tensors="pt")["pixel_values"][0])

    @pytest.mark.parametrize(("mode", "side"), [("1", 7100), ("LA", 5800)])
    def test_one_of_too_many_pixels_is_refused_before_it_fills_the_memory(self, tmp_path, mode, side):
        PIL.Image.new(mode, (side, side)).save(tmp_path / "image.png")
        with pytest.raises(VideoDecodingError, match=rf"image\.png .*too many pixels: {side} x {side}"):
            read_image(tmp_path / "image.png")

    def test_damaged_exif_data_is_no_reason_not_to_read_the_pixels(self, tmp_path):
        # Orientation 6, and a resolution that is a text.
        fields = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + fields + bytes(4)
        PIL.Image.fromarray(to_the_right(1)[0]).save(tmp_path / "image.jpg", exif=exif)
        assert read_image(tmp_path / "image.jpg").size == to_the_right(1).shape[1:3]

    @pytest.mark.parametrize("kept", [0, 100, -200])
    def test_a_broken_one_is_named(self, tmp_path, processor, kept):
        path = tmp_path / "image.png"
        noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:kept])
        for index, dataset in (
            (0, EvaluationDataset(source("pictures", [path], modality="image"), processor)),
            (
                reference("pictures", 0, 0),
                CoTrainingDataset([source("pictures", [path], modality="image")], HEAD_NAMES, processor, seed=0),
            ),
        ):
            with pytest.raises(VideoDecodingError, match=r"image\.png"):
                dataset[index]


class TestVideos:
    def test_a_broken_one_is_named(self, tmp_path, processor):
        (tmp_path / "clip.mp4").write_bytes(b"This is no video.")
        dataset = CoTrainingDataset([source("noise", [tmp_path / "clip.mp4"])], HEAD_NAMES, processor, seed=0)
        with pytest.raises(VideoDecodingError, match=r"clip\.mp4"):
            dataset[reference("noise", 0, 0)]


class TestEvaluationSamples:
    @pytest.mark.parametrize("name", ["noise", "pictures"])
    def test_they_come_in_order_with_the_processors_centre_crop(self, sources, processor, name):
        (split,) = [source for source in sources if source.name == name]
        dataset = EvaluationDataset(split, processor)
        assert len(dataset) == len(split)
        for row, (path, *_) in enumerate(split.media):
            sample = dataset[row]
            assert sample["pixel_values"].dtype == torch.uint8
            crop = processor.normalize_pixels(sample["pixel_values"])
            assert torch.equal(crop, processor(path, return_tensors="pt")["pixel_values"][0])
            assert (sample["labels"], sample["head"]) == (row % 3, name)

    def test_a_loader_goes_through_all_of_them_once(self, sources, processor):
        loader = DataLoader(EvaluationDataset(sources[2], processor), batch_size=2, collate_fn=collate_clips)
        batches = list(loader)
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 1, 2, 0, 1]
        assert [batch["head"] for batch in batches] == ["pictures"] * 3
        assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(2, 1, 3, CROP, CROP)] * 2 + [
            (1, 1, 3, CROP, CROP)
        ]


class TestCollating:
    def test_training_samples_become_groups_of_one_shape_with_labels_in_their_order(self):
        shapes = [(2, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 16), (1, 3, 8, 8), (2, 3, 8, 8)]
        samples = [
            # Pixels, label and head tell the same number, so that rows that part company are noticed.
            {"pixel_values": torch.full(shape, float(number)), "labels": number, "head_ids": 10 + number}
            for number, shape in enumerate(shapes)
        ]
        batch = collate_clips(samples)
        assert [tuple(group.shape) for group in batch["pixel_values"]] == [
            (3, 2, 3, 8, 8),
            (2, 1, 3, 8, 8),
            (1, 1, 3, 8, 16),
        ]
        numbers = [int(clip.mean()) for group in batch["pixel_values"] for clip in group]
        assert numbers == [0, 2, 5, 1, 4, 3]
        assert all((clip == number).all() for clip, number in zip(clips_of(batch), numbers, strict=True))
        assert batch["labels"].tolist() == numbers
        assert batch["head_ids"].tolist() == [10 + number for number in numbers]
        assert batch["labels"].dtype == batch["head_ids"].dtype == torch.int64

    def test_one_shape_is_one_group(self):
        samples = [{"pixel_values": torch.rand(2, 3, 8, 8), "labels": 0, "head_ids": 0} for _ in range(3)]
        (group,) = collate_clips(samples)["pixel_values"]
        assert torch.equal(group, torch.stack([sample["pixel_values"] for sample in samples]))

    def test_samples_of_an_evaluation_become_one_tensor_of_their_head(self):
        samples = [{"pixel_values": torch.full((2, 3, 8, 8), float(n)), "labels": n, "head": "ssv2"} for n in range(3)]
        batch = collate_clips(samples)
        assert batch["pixel_values"].shape == (3, 2, 3, 8, 8)
        assert batch["pixel_values"][:, 0, 0, 0, 0].tolist() == batch["labels"].tolist() == [0, 1, 2]
        assert batch["head"] == "ssv2"
        assert set(batch) == {"pixel_values", "labels", "head"}

    def test_an_evaluation_of_two_heads_in_one_batch_is_refused(self):
        samples = [{"pixel_values": torch.zeros(2, 3, 8, 8), "labels": 0, "head": head} for head in ("ssv2", "k400")]
        with pytest.raises(ValueError, match=r"one head, got \['k400', 'ssv2'\]"):
            collate_clips(samples)


def clips_of(batch: dict) -> list[torch.Tensor]:
    return [clip for group in batch["pixel_values"] for clip in group]


class TestFaultsOfTheMachine:
    """No file is to blame where this process may open no more of them."""

    @pytest.mark.parametrize("name", ["noise", "pictures"])
    def test_they_are_no_bad_files(self, sources, processor, tmp_path, name):
        (own,) = [source for source in sources if source.name == name]
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        training = CoTrainingDataset([own], [name], processor, seed=0, quarantine=quarantine)
        evaluation = EvaluationDataset(own, processor, quarantine)
        for read in (lambda: training[reference(name, 0, 0)], lambda: evaluation[0]):
            read()  # what is imported when it is needed is there
            with files_left(0), pytest.raises(OSError, match=r"Too many open files.*ulimit -n") as caught:
                read()
            assert not isinstance(caught.value, VideoDecodingError)
        assert quarantine.entries() == []
