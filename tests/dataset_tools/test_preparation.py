# SPDX-License-Identifier: Apache-2.0
"""Compact datasets: what is read back is what training would have sampled."""

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clips import frame_numbers, indexed_frames, write_clip
from compact_clips import LENGTHS, compact, entry, patterned_frames, rows_of, sample, settings, write_clips
from modeling_cover import CoverVideoProcessor, read_video
from modeling_cover.commands import prepare as example
from modeling_cover.data.quarantine import TooManyBadFilesError
from modeling_cover.data.samples import load_frames
from modeling_cover.data.sources import read_sources
from modeling_cover.data.sources.file_cache import CacheError
from modeling_cover.dataset_tools.preparation import check_bad_share, prepare_dataset
from modeling_cover.dataset_tools.prepared_rows import PreparationSettings, encode_video, prepare_row
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from PIL import Image


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("raw"))


class TestFrames:
    @pytest.mark.parametrize("codec", ["mjpeg", "h264"])
    def test_what_is_read_back_is_what_training_samples_from_the_raw_file(self, folders, tmp_path, codec):
        prepare_dataset(entry(folders), tmp_path, settings(codec=codec), num_workers=1)
        raw = read_sources(entry(folders))["train"]
        rows = rows_of(compact(tmp_path))
        assert sorted(rows) == list(range(len(LENGTHS)))
        for row, (content, label) in rows.items():
            expected, metadata = read_video(raw.media[row].content, sample(4), short_side=32)
            got, _ = read_video(content, sample(4), short_side=32)
            assert got.shape == expected.shape == (4, 32, 42, 3)
            assert np.abs(got.astype(int) - expected).mean() < 2
            # A neighbouring frame would be 6 levels off: these are the very frames.
            assert np.abs(got.mean(axis=(1, 2)) - expected.mean(axis=(1, 2))).max() < 2.5, metadata.frames_indices
            assert label == raw.labels[raw.target(row)]

    def test_the_json_member_tells_which_frames_they_are(self, folders):
        raw = read_sources(entry(folders))["train"]
        for row, media in enumerate(raw.media):
            _, metadata = read_video(media.content, sample(4))
            annotation = prepare_row(raw, row, settings()).annotation
            assert annotation["frames"] == sorted(set(metadata.frames_indices))
            assert annotation["total_num_frames"] == metadata.total_num_frames
            assert annotation["duration"] == metadata.duration
            assert annotation["path"] == media.name

    def test_the_compact_video_lasts_as_long_as_the_clip(self, folders):
        raw = read_sources(entry(folders))["train"]
        prepared = prepare_row(raw, 0, settings())
        _, metadata = read_video(prepared.content, sample(4))
        assert metadata.total_num_frames == len(prepared.annotation["frames"])
        assert metadata.duration == pytest.approx(prepared.annotation["duration"], rel=0.01)

    def test_a_small_video_is_not_enlarged(self, folders):
        raw = read_sources(entry(folders))["train"]
        _, metadata = read_video(prepare_row(raw, 0, settings(short_side=500)).content, sample(4))
        assert (metadata.height, metadata.width) == (48, 64)

    @pytest.mark.parametrize(("codec", "size"), [("mjpeg", (33, 45)), ("h264", (32, 44))])
    def test_an_odd_side_is_kept_where_the_codec_can(self, codec, size):
        frames = patterned_frames(2, 33, 45)
        got, _ = read_video(encode_video(frames, codec, 3), sample(2))
        assert got.shape[1:3] == size
        assert np.abs(got.astype(int) - frames[:, : size[0], : size[1]]).mean() < 2

    def test_quality_is_the_codecs_own(self, folders):
        raw = read_sources(entry(folders))["train"]

        def size(codec: str, quality: int) -> int:
            return len(prepare_row(raw, 0, settings(codec=codec, quality=quality)).content)

        assert size("mjpeg", 2) > size("mjpeg", 20)
        assert size("h264", 5) > size("h264", 40)

    def test_a_segment_is_all_that_is_kept_of_a_long_file(self, folders, tmp_path):
        write_clip(tmp_path / "long.mp4", indexed_frames(32), fps=8)
        (tmp_path / "list.csv").write_text("path,label,start,end\nlong.mp4,wave,1,2\nlong.mp4,point,2.5,\n")
        splits, columns = {"train": str(tmp_path / "list.csv")}, {"start": "start", "end": "end"}
        dataset = entry(tmp_path, "manifest", splits=splits, columns=columns)
        prepare_dataset(dataset, tmp_path / "out", settings(), num_workers=1)
        rows = rows_of(compact(tmp_path / "out"))
        for row, (content, _) in rows.items():
            frames, _ = read_video(content, sample(4))
            assert frame_numbers(frames) == [[9, 11, 13, 15], [21, 24, 27, 30]][row]
        annotation = prepare_row(read_sources(dataset)["train"], 0, settings()).annotation
        assert (annotation["start"], annotation["end"], annotation["duration"]) == (1.0, 2.0, 1.0)


class TestLabels:
    def test_several_labels_of_a_row_come_back(self, folders, tmp_path):
        paths = [str(path) for path in sorted((folders / "train").rglob("*.mp4"))][:3]
        with open(tmp_path / "list.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *zip(paths, ["a|b", "b", ""], strict=True)])
        options = {"splits": {"train": str(tmp_path / "list.csv")}, "problem_type": "multi_label_classification"}
        dataset = entry(tmp_path, "manifest", **options)
        summaries = prepare_dataset(dataset, tmp_path / "out", settings(), num_workers=1)
        source = compact(tmp_path / "out", problem_type="multi_label_classification")
        names = [media.name for media in source.media]
        targets = {int(name[-13:-4]): source.target(row).tolist() for row, name in enumerate(names)}
        assert source.labels == ["a", "b"]
        assert targets == {0: [1, 1], 1: [0, 1], 2: [0, 0]}
        assert summaries["train"]["class_counts"] == {"a": 1, "b": 2}

    def test_a_class_that_lost_all_its_rows_keeps_its_place(self, tmp_path):
        for label in ("apple", "bread", "cider"):
            (tmp_path / "train" / label).mkdir(parents=True)
            write_clip(tmp_path / "train" / label / "a.mp4", indexed_frames(2))
        (tmp_path / "train" / "apple" / "a.mp4").write_bytes(b"nothing")
        dataset = entry(tmp_path, splits={"train": str(tmp_path / "train")})
        summaries = prepare_dataset(dataset, tmp_path / "out", settings(), num_workers=1)
        source = compact(tmp_path / "out")
        assert source.labels == ["apple", "bread", "cider"]
        assert source.class_counts().tolist() == [0, 1, 1]
        assert summaries["train"]["class_counts"] == {"apple": 0, "bread": 1, "cider": 1}

    def test_the_entry_that_the_example_prints_trains_as_the_original_did(self, folders, tmp_path):
        dataset = entry(folders, weight=0.5, horizontal_flip=False, license="cc-by-4.0")
        printed = yaml.safe_load(yaml.safe_dump(example.entry_to_read(dataset, {"train": "compact/train"})))
        again = DatasetRecipe(**printed)
        assert (again.weight, again.horizontal_flip, again.format) == (0.5, False, "webdataset")
        assert again.license == "cc-by-4.0"


class TestImages:
    @pytest.mark.parametrize("codec", ["jpeg", "webp"])
    def test_an_image_is_scaled_down_and_encoded(self, tmp_path, codec):
        pattern = patterned_frames(2, 96, 120)
        for number, label in enumerate(("dots", "plain")):
            (tmp_path / "train" / label).mkdir(parents=True)
            Image.fromarray(pattern[number]).save(tmp_path / "train" / label / "a.png")
        dataset = entry(tmp_path, modality="image", splits={"train": str(tmp_path / "train")})
        prepare_dataset(dataset, tmp_path / "out", settings("image", codec=codec), num_workers=1)
        rows = rows_of(compact(tmp_path / "out", modality="image"))
        for row, (content, label) in rows.items():
            image = Image.open(io.BytesIO(content))
            expected = Image.fromarray(pattern[row]).resize((40, 32), Image.Resampling.BILINEAR)
            assert (image.format, image.size) == (codec.upper(), (40, 32))
            assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 3
            assert label == ("dots", "plain")[row]

    def test_images_in_shards_are_read_back_as_training_reads_them(self, tmp_path):
        for number, label in enumerate(("dots", "plain")):
            (tmp_path / "train" / label).mkdir(parents=True)
            Image.new("RGB", (50, 40), (100 * number, 50, 0)).save(tmp_path / "train" / label / "a.png")
        dataset = entry(tmp_path, modality="image", splits={"train": str(tmp_path / "train")})
        prepare_dataset(dataset, tmp_path / "first", settings("image", short_side=40), num_workers=1)
        again = entry(tmp_path, "webdataset", "image", splits={"train": str(tmp_path / "first" / "train")})
        prepare_dataset(again, tmp_path / "second", settings("image"), num_workers=1)
        source = compact(tmp_path / "second", modality="image")
        for row, media in enumerate(source.media):
            frames = load_frames(media, "image", CoverVideoProcessor(), None)
            assert tuple(frames.shape) == (1, 3, 32, 40)
            expected = torch.tensor([100.0 * source.target(row), 50, 0])
            assert torch.allclose(frames.float().mean((0, 2, 3)), expected, atol=2)

    def test_a_small_image_is_not_enlarged(self, tmp_path):
        (tmp_path / "train" / "dots").mkdir(parents=True)
        Image.new("RGB", (20, 10)).save(tmp_path / "train" / "dots" / "a.png")
        source = read_sources(entry(tmp_path, modality="image", splits={"train": str(tmp_path / "train")}))["train"]
        assert Image.open(io.BytesIO(prepare_row(source, 0, settings("image")).content)).size == (20, 10)


class TestBadFiles:
    @pytest.fixture
    def damaged(self, folders, tmp_path) -> DatasetRecipe:
        """Of seven clips, one cut off and one that is no video."""
        shutil.copytree(folders, tmp_path / "raw")
        cut, other = sorted((tmp_path / "raw/train/wave").iterdir())[:2]
        cut.write_bytes(cut.read_bytes()[:100])
        other.write_text("#EXTM3U\n/etc/passwd\n")
        return entry(tmp_path / "raw")

    def test_they_are_left_out_and_listed(self, damaged, tmp_path):
        summaries = prepare_dataset(damaged, tmp_path / "out", settings(), num_workers=2)
        lines = (tmp_path / "out/train/failures.jsonl").read_text().splitlines()
        failures = [json.loads(line) for line in lines]
        assert sorted(failure["path"] for failure in failures) == [
            str(tmp_path / f"raw/train/wave/{number}.mp4") for number in (0, 2)
        ]
        assert all("cannot be read as a video" in failure["reason"] for failure in failures)
        report = json.loads((tmp_path / "out/train/report.json").read_text())
        assert (report["rows"], report["failures"]) == (5, 2)
        assert sorted(rows_of(compact(tmp_path / "out"))) == sorted(
            set(range(7)) - {failure["row"] for failure in failures}
        )
        check_bad_share(summaries, 0.05)  # a share of few rows says little
        with pytest.raises(TooManyBadFilesError, match=r"train split: 2 of 7 files .* the 1 that .*\n.*wave/\d.mp4"):
            check_bad_share(summaries, 0.008)

    @pytest.mark.parametrize("codec", ["h264", "mjpeg"])
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1)])
    def test_one_too_small_for_the_codec_ends_no_run(self, folders, tmp_path, codec, height, width):
        shutil.copytree(folders, tmp_path / "raw")
        frames = np.full((3, height, width, 3), 128, dtype=np.uint8)
        path = tmp_path / "raw/train/wave/tiny.mov"
        write_clip(path, frames, codec="mjpeg", pixel_format="yuvj444p")
        prepare_dataset(entry(tmp_path / "raw"), tmp_path / "out", settings(codec=codec), num_workers=1)
        failures = [json.loads(line) for line in (tmp_path / "out/train/failures.jsonl").read_text().splitlines()]
        if codec == "h264":
            assert [(failure["path"], failure["reason"]) for failure in failures] == [
                (str(path), f"{path}: frames of one pixel's height or width cannot be encoded as h264")
            ]
        else:
            assert failures == []

    def test_one_that_comes_as_bytes_is_named_by_its_shard(self, folders, tmp_path):
        prepare_dataset(entry(folders), tmp_path / "shards", settings(), num_workers=1)
        shard = tmp_path / "shards/train/train-00000.tar"
        content = bytearray(shard.read_bytes())
        content[512:1536] = bytes(1024)  # of the first clip
        shard.write_bytes(content)
        dataset = entry(tmp_path, "webdataset", splits={"train": str(tmp_path / "shards/train")})
        summary = prepare_dataset(dataset, tmp_path / "out", settings(num_frames=2), num_workers=1)["train"]
        assert [failure["path"] for failure in summary["failures"]] == [read_sources(dataset)["train"].media[0].name]
        assert summary["failures"][0]["reason"].startswith(f"{summary['failures'][0]['path']} cannot be read")
        assert summary["rows"] == 6

    def test_a_dataset_that_vanishes_is_an_error_and_not_so_many_bad_files(self, folders, tmp_path):
        shutil.copytree(folders, tmp_path / "raw")
        source = read_sources(entry(tmp_path / "raw"))["train"]
        shutil.rmtree(tmp_path / "raw")
        with pytest.raises(FileNotFoundError, match="was there at the start"):
            prepare_row(source, 0, settings())


class TestBadArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"modality": "video", "num_frames": 0}, "num_frames must be a positive whole number, got 0"),
            ({"modality": "video", "short_side": -1}, "short_side must be a positive whole number, got -1"),
            ({"modality": "video", "shard_size": 1.5}, "shard_size must be a positive whole number, got 1.5"),
            ({"modality": "video", "codec": "jpeg"}, "codec: expected one of mjpeg, h264 for videos, got 'jpeg'"),
            ({"modality": "video", "codec": "mjpeg", "quality": 1}, "quality: expected 2 to 31 for mjpeg, got 1"),
            ({"modality": "image", "quality": 101}, "quality: expected 1 to 100 for jpeg, got 101"),
            ({"modality": "image", "num_frames": 8}, "num_frames does not apply to images, got 8"),
        ],
    )
    def test_settings_name_what_is_wrong(self, options, message):
        with pytest.raises(ValueError, match=message):
            PreparationSettings(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"splits": ["test"]}, "dataset 'acts' has train, validation, not test"),
            ({"splits": ["train", "train"]}, "each once"),
            ({"num_workers": 0}, "num_workers must be a positive whole number, got 0"),
            ({"rank": 2, "world_size": 2}, "rank: expected 0 to 1, got 2"),
            ({"settings": settings("image")}, "of videos, not of images"),
        ],
    )
    def test_arguments_name_what_is_wrong(self, folders, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            prepare_dataset(**{"dataset": entry(folders), "output": tmp_path, "settings": settings()} | options)
        assert list(tmp_path.iterdir()) == []

    def test_a_streamed_entry_is_refused(self, tmp_path):
        dataset = entry(tmp_path, "webdataset", streaming=True, labels=["wave"])
        with pytest.raises(ValueError, match="leave `streaming` out"):
            prepare_dataset(dataset, tmp_path / "out", settings())


class TestCommand:
    @pytest.fixture
    def recipe(self, folders, tmp_path) -> Path:
        content = {
            "data_root": str(folders),
            "clips": {"num_frames": 4, "image_size": 28, "short_side": 32},
            "datasets": [
                {
                    "name": "acts",
                    "format": "class_folders",
                    "modality": "video",
                    "splits": {"train": "train", "validation": "validation"},
                }
            ],
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def run(self, monkeypatch, recipe: Path, *options: str) -> int:
        fixed = ["--dataset", "acts", "--output", str(recipe.parent / "out"), "--num_workers", "1"]
        monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", str(recipe), *fixed, *options])
        return example.main()

    def test_it_prints_the_report_and_the_entry_that_reads_the_result(self, recipe, monkeypatch, capsys):
        self.run(monkeypatch, recipe)
        printed = capsys.readouterr().out
        assert "acts, train: 7 rows in 1 shard, 0 left out" in printed
        (written,) = yaml.safe_load(printed.partition("reads it:\n")[2])
        assert len(read_sources(DatasetRecipe(**written))["train"]) == 7
        assert Image.open(recipe.parent / "out/train/class_histogram.png").format == "PNG"

    def test_frames_and_short_side_are_the_recipes_unless_they_are_given(self, recipe, monkeypatch):
        def written(*options: str) -> tuple[int, int]:
            shutil.rmtree(recipe.parent / "out", ignore_errors=True)
            assert self.run(monkeypatch, recipe, "--splits", "validation", *options) == 0
            content = json.loads((recipe.parent / "out/validation/dataset.json").read_text())
            return content["num_frames"], content["short_side"]

        assert written() == (4, 32)
        assert written("--num_frames", "5", "--short_side", "30") == (5, 30)
        recipe.write_text(recipe.read_text() + "augmentation: {short_side_range: [32, 36]}\n")
        assert written() == (4, 36)

    def test_under_a_launcher_each_process_does_its_part(self, recipe, monkeypatch, capsys):
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank, expected in (("0", "Others still write"), ("1", "validation: 2 rows")):
            monkeypatch.setenv("RANK", rank)
            self.run(monkeypatch, recipe)
            assert expected in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--dataset", "words"], "--dataset: the recipe has acts, not 'words'"),
            (["--output", "/dev/null/out"], "Not a directory"),
            (["--max_bad_share", "2"], "--max_bad_share must be a finite number, from 0 to 1, got 2.0"),
            (["--codec", "webp"], "codec: expected one of mjpeg, h264"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_line(self, recipe, monkeypatch, capsys, options, message):
        assert self.run(monkeypatch, recipe, *options) == 2
        assert message in capsys.readouterr().err

    def test_the_bar_ends_with_all_rows(self, recipe, monkeypatch, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert self.run(monkeypatch, recipe) == 0
        *_, last = re.findall(r"preparing.*?(\d+)/(\d+)", capsys.readouterr().err)
        assert last[0] == last[1]

    def test_a_full_disk_is_no_finding_about_the_data(self, recipe, monkeypatch, capsys):
        def full(*args, **kwargs):
            raise CacheError("the cache of remote files cannot be used: No space left on device")

        monkeypatch.setattr(example, "prepare_dataset", full)
        assert self.run(monkeypatch, recipe) == 2
        assert capsys.readouterr().err.startswith("error: the cache of remote files cannot be used")

    def test_too_many_bad_files_end_it_once_the_report_is_out(self, folders, recipe, tmp_path, monkeypatch, capsys):
        shutil.copytree(folders, tmp_path / "raw")
        next((tmp_path / "raw/train/wave").iterdir()).write_bytes(b"nothing")
        recipe.write_text(recipe.read_text().replace(str(folders), str(tmp_path / "raw")))
        assert self.run(monkeypatch, recipe, "--max_bad_share", "0") == 1
        printed = capsys.readouterr()
        assert "6 rows in 1 shard, 1 left out" in printed.out
        assert "train split: 1 of 7 files cannot be read" in printed.err
