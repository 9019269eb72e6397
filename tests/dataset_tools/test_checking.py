# SPDX-License-Identifier: Apache-2.0
"""What a check of datasets finds, on real files of every sort of fault."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from clips import write_clip
from modeling_cover import CoverVideoProcessor, load_recipe, prepare_cotraining, read_video
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.data.sources.media import Media
from modeling_cover.dataset_tools.check_report import Finding, Report, new_file
from modeling_cover.dataset_tools.checking import check_datasets
from modeling_cover.dataset_tools.duplicates import TOLERANCE, equal_groups, fingerprint, near_groups
from modeling_cover.dataset_tools.file_inspection import inspect_file
from PIL import Image


EXAMPLES = Path(__file__).parents[2] / "examples"

import check_dataset  # noqa: E402


PROCESSOR = CoverVideoProcessor(num_frames=4, size={"shortest_edge": 48}, crop_size={"height": 32, "width": 32})


def scene(seed: int, num_frames: int = 12, height: int = 108, width: int = 144) -> np.ndarray:
    """uint8 (T, H, W, 3): clouds, others for each seed, which drift to one side and fade. As of photographs, what is
    twice as small is half as strong."""
    rng = np.random.default_rng(seed)
    clouds = torch.full((3, height, width), 128.0)
    for octave in range(5):
        blobs = torch.from_numpy(rng.normal(0, 50 / 2**octave, (1, 3, 3 * 2**octave, 4 * 2**octave))).float()
        clouds += torch.nn.functional.interpolate(blobs, (height, width), mode="bicubic")[0]
    clouds = clouds.clamp(0, 255).permute(1, 2, 0).numpy()
    return np.stack([np.roll(clouds, 3 * t, axis=1) * (1 - t / 40) for t in range(num_frames)]).astype(np.uint8)


def write_scene(path: Path, seed: int, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, scene(seed), **options)
    return path


def write_picture(path: Path, seed: int, side: int = 192, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(seed, num_frames=1, height=192)[0]).resize((side, side)).save(path, **options)
    return path


def copy(source: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)
    return path


def truncate(path: Path) -> None:
    """Cut a file in half whose header is at its front."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def entry(folder: Path, modality: str = "video", **keys) -> dict:
    """Of a dataset of class folders."""
    splits = {split: str(folder / split) for split in ("train", "validation") if (folder / split).exists()}
    return {"name": folder.name, "format": "class_folders", "modality": modality, "splits": splits, **keys}


def write_recipe(path: Path, *entries: dict) -> Path:
    path.write_text(yaml.safe_dump({"datasets": list(entries), "clips": {"num_frames": 4, "image_size": 32}}))
    return path


def check(tmp_path: Path, *entries: dict, **options) -> Report:
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", *entries))
    return check_datasets({dataset.name: read_sources(dataset) for dataset in recipe.datasets}, PROCESSOR, **options)


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def only(report: Report, kind: str) -> Finding:
    assert kinds(report) == [kind]
    return report.findings[0]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """Two datasets of videos, `a` and `b`, of two classes with two training rows and one validation row each."""
    folder = tmp_path_factory.mktemp("clean")
    for number, dataset in enumerate(("a", "b")):
        for index, label in enumerate(("left", "right")):
            seed = 100 * number + 10 * index
            write_scene(folder / dataset / "train" / label / "0.mp4", seed)
            write_scene(folder / dataset / "train" / label / "1.mp4", seed + 1)
            write_scene(folder / dataset / "validation" / label / "2.mp4", seed + 2)
    return folder


@pytest.fixture
def folder(clean, tmp_path) -> Path:
    """A copy of `clean` to be spoilt."""
    shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
    return tmp_path


class TestFiles:
    def test_of_clean_data_there_is_nothing_to_say_but_its_numbers(self, folder):
        report = check(
            folder, entry(folder / "a"), entry(folder / "b"), full=True, near_duplicates=True, num_workers=2
        )
        assert report.findings == []
        assert [(split.dataset, split.split, split.num_rows) for split in report.splits] == [
            ("a", "train", 4),
            ("a", "validation", 2),
            ("b", "train", 4),
            ("b", "validation", 2),
        ]
        assert report.splits[0].class_counts.tolist() == [2, 2]
        assert "0 problems, 0 notes" in report.summary()

    def test_a_video_and_an_image_that_cannot_be_decoded_are_named_with_the_reason(self, folder):
        truncate(folder / "a/train/left/1.mp4")
        for split in ("train", "validation"):
            for index, label in enumerate(("cat", "dog")):
                write_picture(folder / "c" / split / label / "0.png", 10 * index + len(split))
        truncate(folder / "c/validation/dog/0.png")
        report = check(folder, entry(folder / "a"), entry(folder / "c", "image"))
        assert kinds(report) == ["unreadable", "unreadable"]
        video, image = report.problems
        assert video.details["name"] == str(folder / "a/train/left/1.mp4")
        assert "1.mp4 cannot be read as a video" in video.message
        assert (image.dataset, image.split, image.details["row"]) == ("c", "validation", 1)
        assert "0.png cannot be read as an image" in image.message

    @pytest.mark.parametrize(
        "suffix, options",
        [
            ("mp4", {"container_options": {"movflags": "faststart"}}),
            ("mkv", {}),
            ("avi", {"codec": "mpeg4"}),
            ("flv", {}),
        ],
    )
    def test_a_file_that_is_cut_off_in_silence_is_told_from_a_whole_one(self, tmp_path, suffix, options):
        path = tmp_path / f"clip.{suffix}"
        write_clip(path, np.tile(scene(0), (4, 1, 1, 1)), **options)
        assert inspect_file(str(path), "video").truncated is None
        truncate(path)
        frames, _ = read_video(path, lambda metadata: range(metadata.total_num_frames))
        assert 0 < len(frames) < 48, "training would take what is left of it"
        assert "of the 2.0" in inspect_file(str(path), "video").truncated

    @pytest.mark.parametrize(
        ("suffix", "options"),
        [
            ("avi", {}),
            ("avi", {"codec": "mpeg4", "bf": "2"}),
            ("ts", {}),
            ("ts", {"fps": 60}),
            ("mpg", {"codec": "mpeg2video"}),
        ],
    )
    def test_a_whole_file_is_not_accused(self, tmp_path, suffix, options):
        """AVI tells no time of display of H.264, and transport streams have no duration in a header."""
        path = Path(write_clip(tmp_path / f"clip.{suffix}", np.tile(scene(0), (4, 1, 1, 1)), **options))
        assert inspect_file(str(path), "video").truncated is None

    def test_nor_are_transport_streams_whose_clock_runs_back(self, tmp_path):
        one, two = (Path(write_clip(tmp_path / f"{name}.ts", scene(0))) for name in ("one", "two"))
        joined = tmp_path / "joined.ts"
        joined.write_bytes(one.read_bytes() + two.read_bytes())
        # The clock has 33 bits of 1/90000 s: 26.5 hours. This one starts half a second before its end.
        options = {"container_options": {"output_ts_offset": str(2**33 / 90000 - 0.5)}}
        wrapped = Path(write_clip(tmp_path / "wrapped.ts", np.tile(scene(0), (4, 1, 1, 1)), **options))
        for path in (joined, wrapped):
            assert inspect_file(str(path), "video").truncated is None

    def test_an_avi_of_h264_that_is_cut_off_is_found(self, tmp_path):
        path = Path(write_clip(tmp_path / "clip.avi", np.tile(scene(0), (4, 1, 1, 1))))
        truncate(path)
        assert "of the 2.0" in inspect_file(str(path), "video").truncated

    def test_a_truncated_file_is_a_problem_of_its_row(self, folder):
        path = write_scene(folder / "a/train/left/3.mkv", 3, fps=6)
        truncate(path)
        finding = only(check(folder, entry(folder / "a")), "truncated")
        assert finding.is_problem
        assert (finding.split, finding.details) == ("train", {"row": 2, "name": str(path)})

    def test_frames_that_training_does_not_take_are_decoded_in_full_only(self, folder):
        path = write_scene(folder / "a/train/left/0.mp4", 0, g="1", bf="0")
        damaged = bytearray(path.read_bytes())
        middle = len(damaged) // 2
        damaged[middle : middle + 200] = bytes(200)
        path.write_bytes(damaged)
        assert "damaged" not in kinds(check(folder, entry(folder / "a")))
        finding = only(check(folder, entry(folder / "a"), full=True), "damaged")
        assert "0.mp4: " in finding.message
        assert "of its 12 packets cannot be decoded" in finding.message

    def test_a_file_that_kills_the_process_is_named_and_the_others_are_checked(self, clean):
        paths = sorted(map(str, (clean / "a/train").rglob("*.mp4")))
        media = [Media(path, path) for path in paths]
        media[1] = Media(_Deadly(), "deadly.mp4")
        source = Source(
            name="a",
            modality="video",
            labels=["left", "right"],
            problem_type="single_label_classification",
            media=media,
            classes=np.array([0, 0, 1, 1]),
        )
        report = check_datasets({"a": {"train": source}}, PROCESSOR, num_workers=2)
        assert only(report, "unreadable").message == "deadly.mp4 kills the process that reads it, or takes it too long"
        assert report.splits[0].num_rows == 4

    def test_a_data_set_that_is_gone_is_an_error(self, folder):
        recipe = load_recipe(write_recipe(folder / "recipe.yaml", entry(folder / "a")))
        sources = {"a": read_sources(recipe.datasets[0])}
        shutil.rmtree(folder / "a")
        with pytest.raises(FileNotFoundError, match="dataset 'a'"):
            check_datasets(sources, PROCESSOR)


class _Deadly:
    """A path that nobody survives."""

    def __fspath__(self) -> str:
        os._exit(1)


class TestCopies:
    def test_a_validation_row_of_one_data_set_that_another_trains_on_is_a_leak(self, folder):
        copy(folder / "b/validation/left/2.mp4", folder / "a/train/right/7.mp4")
        report = check(folder, entry(folder / "a"), entry(folder / "b"))
        leak = only(report, "leak")
        assert leak.is_problem
        assert (leak.dataset, leak.split, leak.details["row"]) == ("b", "validation", 0)
        assert leak.details["train_of"] == ["a"]
        assert leak.details["copies"] == [
            {"dataset": "a", "name": str(folder / "a/train/right/7.mp4"), "labels": ["right"]}
        ]
        assert (
            "THE VALIDATION OF b IS CONTAMINATED: 1 of its 2 rows (50.0%) are training rows of a." in report.summary()
        )

    def test_a_validation_row_of_its_own_training_split_is_a_leak(self, folder):
        copy(folder / "a/validation/left/2.mp4", folder / "a/train/left/7.mp4")
        report = check(folder, entry(folder / "a"))
        assert only(report, "leak").details["train_of"] == ["a"]
        assert "1 of its 2 rows (50.0%) are training rows of its own." in report.summary()

    def test_a_file_that_a_split_has_twice_is_a_duplicate(self, folder):
        copy(folder / "a/train/left/0.mp4", folder / "a/train/left/8.mp4")
        names = only(check(folder, entry(folder / "a")), "duplicate").details["names"]
        assert names == [str(folder / "a/train/left/0.mp4"), str(folder / "a/train/left/8.mp4")]

    def test_a_file_with_two_labels_is_a_mismatch(self, folder):
        copy(folder / "a/train/left/0.mp4", folder / "a/train/right/8.mp4")
        report = check(folder, entry(folder / "a"))
        assert kinds(report) == ["duplicate", "label_mismatch"]
        assert [row["labels"] for row in report.findings[1].details["rows"]] == [["left"], ["right"]]

    def test_other_labels_in_another_data_set_are_no_mismatch_and_shared_training_files_are_but_noted(self, folder):
        copy(folder / "a/train/left/0.mp4", folder / "b/train/right/8.mp4")
        note = only(check(folder, entry(folder / "a"), entry(folder / "b")), "shared")
        assert not note.is_problem
        assert (note.details["datasets"], note.split, note.details["num_files"]) == (["a", "b"], "train", 1)

    def test_files_in_a_table_are_compared_with_files_on_disk(self, folder):
        content = (folder / "a/validation/left/2.mp4").read_bytes()
        other = write_scene(folder / "other.mp4", 77).read_bytes()
        rows = {"video": [other, content], "label": ["up", "down"]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / "table.parquet")
        table = {
            "name": "t",
            "format": "parquet",
            "modality": "video",
            "splits": {"train": str(folder / "table.parquet")},
        }
        leak = only(check(folder, entry(folder / "a"), table), "leak")
        assert (leak.dataset, leak.details["train_of"]) == ("a", ["t"])
        assert "row 1" in leak.details["copies"][0]["name"]

    @pytest.mark.parametrize("size", [2, 3])
    def test_a_streamed_split_is_read_to_its_end_and_compared(self, folder, size):
        content = (folder / "a/validation/left/2.mp4").read_bytes()
        other = write_scene(folder / "other.mp4", 77).read_bytes()
        rows = {"video": [content, other], "label": ["up", "down"]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / "table.parquet")
        table = {
            "name": "t",
            "format": "parquet",
            "modality": "video",
            "splits": {"train": str(folder / "table.parquet")},
        }
        stream = {**table, "streaming": True, "sizes": {"train": size}, "labels": ["down", "up", "sideways"]}
        report = check(folder, entry(folder / "a"), stream, num_workers=2)
        assert kinds(report) == ["row_count"] * (size == 3) + ["empty_class", "leak"]
        assert report.findings[-2].message == "t: 'sideways' has no row in train"
        assert report.findings[-1].details["copies"][0]["labels"] == ["up"]
        assert report.splits[2].class_counts.tolist() == [1, 1, 0]

    def test_segments_of_one_file_are_copies_where_they_are_the_same_and_leaks_where_they_overlap(self, tmp_path):
        write_clip(tmp_path / "long.mp4", np.concatenate([scene(0), scene(1), scene(2)]), fps=12)
        (tmp_path / "train.csv").write_text(
            "video,label,start,end\nlong.mp4,x,0,1\nlong.mp4,x,1,2\nlong.mp4,x,1,2\n", encoding="utf-8"
        )
        (tmp_path / "validation.csv").write_text(
            "video,label,start,end\nlong.mp4,x,2,3\nlong.mp4,x,1.5,2.5\n", encoding="utf-8"
        )
        manifest = {
            "name": "m",
            "format": "manifest",
            "modality": "video",
            "splits": {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation")},
            "columns": {"path": "video", "start": "start", "end": "end"},
        }
        report = check(tmp_path, manifest)
        assert kinds(report) == ["duplicate", "leak"]
        duplicate, leak = report.findings
        assert duplicate.details["rows"] == [1, 2]
        assert leak.details["row"] == 1
        assert "from 1.5 to 2.5 s (x)" in leak.message


class TestNearDuplicates:
    @pytest.mark.parametrize(
        "change",
        [
            {"crf": "35"},
            {"crf": "23", "side": 72},
            {"crf": "23", "side": 216},
            {"codec": "libvpx-vp9", "suffix": "webm"},
            {"crf": "23", "brighter": 25},
        ],
        ids=["encoded anew", "scaled down", "scaled up", "in another codec", "brighter"],
    )
    def test_a_copy_that_looks_the_same_is_found_if_asked_for(self, folder, change):
        frames, _ = read_video(folder / "b/validation/left/2.mp4", lambda metadata: range(metadata.total_num_frames))
        path = folder / f"a/train/left/7.{change.pop('suffix', 'mp4')}"
        side = change.pop("side", 108)
        clip = torch.from_numpy(frames).permute(0, 3, 1, 2).float() * 0.8 + change.pop("brighter", 0)
        clip = torch.nn.functional.interpolate(clip, (side, side * 4 // 3), mode="bilinear", antialias=True)
        quality = {"qp": "35"} if change.pop("crf", None) == "35" else {}
        write_clip(path, clip.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy(), **change, **quality)
        entries = entry(folder / "a"), entry(folder / "b")
        assert check(folder, *entries).findings == []
        leak = only(check(folder, *entries, near_duplicates=True), "leak")
        assert (leak.dataset, leak.details["match"]) == ("b", "pixels")
        assert leak.details["copies"][0]["name"] == str(path)

    def test_a_copy_of_an_image_is_found_and_other_images_are_not(self, tmp_path):
        for index in range(20):
            write_picture(tmp_path / "c/train" / "ab"[index % 2] / f"{index}.png", index)
        write_picture(tmp_path / "c/validation/a/copy.jpg", 4, side=128, quality=60)
        write_picture(tmp_path / "c/validation/b/new.jpg", 50, side=128, quality=60)
        leak = only(check(tmp_path, entry(tmp_path / "c", "image"), near_duplicates=True), "leak")
        assert leak.details["name"].endswith("copy.jpg")
        assert leak.details["copies"][0]["name"].endswith("4.png")
        assert leak.details["num_copies"] == 1

    def test_the_same_scene_backwards_or_mirrored_is_another_clip(self):
        frames = torch.from_numpy(scene(0)).permute(0, 3, 1, 2)
        code = fingerprint(frames, is_video=True)
        for other in (frames.flip(0), frames.flip(-1)):
            assert np.bitwise_count(code ^ fingerprint(other, is_video=True)).sum() > 4 * TOLERANCE

    def test_a_row_that_is_exactly_there_is_not_found_twice(self, folder):
        path = copy(folder / "b/validation/left/2.mp4", folder / "a/train/left/7.mp4")
        frames, _ = read_video(path, lambda metadata: range(metadata.total_num_frames))
        write_clip(folder / "a/train/left/8.mp4", frames, qp="30")
        report = check(folder, entry(folder / "a"), entry(folder / "b"), near_duplicates=True)
        assert [(finding.kind, finding.details["match"]) for finding in report.findings] == [
            ("leak", "bytes"),
            ("duplicate", "pixels"),
        ]

    def test_plain_clips_have_no_fingerprint_and_are_noted(self, folder):
        for label, grey in (("left", 100), ("right", 101)):
            write_clip(folder / "a/train" / label / "7.mp4", np.full((4, 48, 64, 3), grey, dtype=np.uint8))
        note = only(check(folder, entry(folder / "a"), near_duplicates=True), "plain")
        assert (note.is_problem, note.details["rows"]) == (False, 2)

    def test_the_search_finds_what_comparing_all_with_all_finds(self):
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 2**64, (400, 4), dtype=np.uint64)
        for copied in range(200):  # each at some distance to one before it, some beyond the tolerance
            bits = np.unpackbits(codes[copied].view(np.uint8))
            bits[rng.choice(256, rng.integers(2 * TOLERANCE), replace=False)] ^= 1
            codes[200 + copied] = np.packbits(bits).view(np.uint64)
        distances = np.bitwise_count(codes[:, None] ^ codes[None]).sum(axis=-1, dtype=int)
        pairs = [(i, j) for i, j in zip(*np.nonzero(distances <= TOLERANCE), strict=True) if i < j]
        assert 20 < len(pairs) < 180
        assert sorted(map(tuple, near_groups(codes))) == pairs

    def test_thousands_of_equal_ones_take_no_time(self):
        codes = np.random.default_rng(0).integers(2**64, size=(50, 4), dtype=np.uint64)
        codes = np.concatenate([np.repeat(codes[:2], 3000, axis=0), codes[2:], codes[:1] ^ np.uint64(1)])
        started = time.perf_counter()
        first, second = sorted(near_groups(codes), key=lambda group: group[0])
        assert time.perf_counter() - started < 5  # 0.01 s; compared pair by pair, some minutes
        assert first.tolist() == [*range(3000), 6048] and second.tolist() == list(range(3000, 6000))
        assert near_groups(codes[:0]) == []

    def test_equal_keys_are_grouped_in_their_order(self):
        keys = np.array([[1, 2], [3, 4], [1, 2], [1, 5], [3, 4], [1, 2]], dtype=np.uint64)
        assert [group.tolist() for group in equal_groups(keys)] == [[0, 2, 5], [1, 4]]
        assert list(equal_groups(keys[:0])) == []


class TestClasses:
    def test_a_class_without_training_rows_is_a_problem_and_one_without_validation_rows_a_note(self, folder):
        shutil.rmtree(folder / "a/validation/right")
        report = check(folder, entry(folder / "a", labels=["left", "right", "up"]))
        assert [(finding.kind, finding.details["label"], finding.is_problem) for finding in report.findings] == [
            ("empty_class", "up", True),
            ("unvalidated_class", "right", False),
            ("unvalidated_class", "up", False),
        ]
        assert "0 (up)" in report.summary()

    def test_classes_that_differ_in_their_spelling_alone_are_noted(self, folder):
        for split in ("train", "validation"):
            (folder / "b" / split / "left").rename(folder / "b" / split / "Left ")
        report = check(folder, entry(folder / "a"), entry(folder / "b"))
        assert only(report, "spelling").details == {"datasets": ["a", "b"], "labels": [("left", "Left")]}
        copy(folder / "a/train/left/0.mp4", folder / "a/train/LEFT/0.mp4").write_bytes(
            write_scene(folder / "other.mp4", 78).read_bytes()
        )
        within = [finding for finding in check(folder, entry(folder / "a")).findings if finding.kind == "spelling"]
        assert within[0].details == {"datasets": ["a"], "labels": [("LEFT", "left")]}

    def test_names_that_were_taken_for_one_class_are_noted(self, folder):
        (folder / "a/train/left ").mkdir()
        write_scene(folder / "a/train/left /3.mp4", 77)
        finding = only(check(folder, entry(folder / "a")), "spelling")
        assert finding.message == "a, train: 'left', 'left ' are taken for one class"
        assert not finding.is_problem

    def test_files_of_which_no_row_is_made_are_counted(self, folder):
        write_scene(folder / "a/train/stray.mp4", 78)
        (folder / "a/train/left/notes.txt").touch()
        finding = only(check(folder, entry(folder / "a")), "left_out")
        assert finding.details["files"] == [str(folder / "a/train" / name) for name in ("stray.mp4", "left/notes.txt")]
        assert "a, train: 2 files, the first is" in finding.message

    def test_multi_label_rows_are_the_same_whatever_the_order_of_their_labels(self, folder):
        copy(folder / "a/train/left/0.mp4", folder / "copy.mp4")
        (folder / "tags.csv").write_text("video,label\na/train/left/0.mp4,x|y\ncopy.mp4,y|x\na/train/left/1.mp4,x\n")
        tags = {
            "name": "tags",
            "format": "manifest",
            "modality": "video",
            "splits": {"train": str(folder / "tags.csv")},
            "columns": {"path": "video"},
            "problem_type": "multi_label_classification",
        }
        report = check(folder, tags)
        assert only(report, "duplicate").details["rows"] == [0, 1]
        assert report.splits[0].class_counts.tolist() == [3, 2]


class TestCommand:
    def run(self, monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["check_dataset.py", *map(str, arguments)])
        code = check_dataset.main()
        return code, *capsys.readouterr()

    def test_it_writes_what_it_found_and_says_by_its_exit_code_whether_it_is_a_problem(
        self, folder, monkeypatch, capsys
    ):
        recipe = write_recipe(folder / "recipe.yaml", entry(folder / "a"), entry(folder / "b"))
        output = folder / "reports" / "report.jsonl"
        arguments = (recipe, "--output", output, "--num_workers", 1)
        code, out, _ = self.run(monkeypatch, capsys, *arguments)
        assert (code, output.read_text()) == (0, "")
        assert "0 problems" in out

        copy(folder / "a/train/left/0.mp4", folder / "b/train/left/9.mp4")
        assert self.run(monkeypatch, capsys, *arguments)[0] == 0, "notes do not count"
        truncate(folder / "a/train/right/0.mp4")
        code, out, _ = self.run(monkeypatch, capsys, *arguments)
        assert code == 1
        assert "files that cannot be decoded: 1" in out
        findings = [json.loads(line) for line in output.read_text().splitlines()]
        assert [(finding["kind"], finding["is_problem"]) for finding in findings] == [
            ("unreadable", True),
            ("shared", False),
        ]
        assert findings[0]["name"].endswith("a/train/right/0.mp4")

    def test_what_training_refuses_is_found(self, folder, monkeypatch, capsys):
        for split in ("train", "validation"):
            shutil.rmtree(folder / "a" / split / "right")
        recipe = write_recipe(folder / "recipe.yaml", entry(folder / "a"), entry(folder / "b"))
        with pytest.raises(ValueError, match=r"head 'a': a single-label head needs at least two labels"):
            prepare_cotraining(load_recipe(recipe))
        monkeypatch.setattr(sys, "argv", ["check_dataset.py", str(recipe), "--output", str(folder / "found.jsonl")])
        assert check_dataset.main() == 1
        (line,) = (folder / "found.jsonl").read_text().splitlines()
        assert json.loads(line)["kind"] == "refused"
        assert "head 'a': a single-label head needs at least two labels, got ['left']" in capsys.readouterr().out

    def test_a_mistake_in_the_recipe_is_one_line(self, folder, monkeypatch, capsys):
        recipe = write_recipe(folder / "recipe.yaml", entry(folder / "a", splits={"train": str(folder / "gone")}))
        code, out, err = self.run(monkeypatch, capsys, recipe, "--output", folder / "report.jsonl")
        assert (code, out) == (2, "")
        assert err.splitlines() == [f"error: dataset 'a': {folder / 'gone'} is not a folder"]
        assert not (folder / "report.jsonl").exists()

    def test_a_check_that_is_killed_leaves_the_last_report_as_it_was(self, tmp_path):
        report = tmp_path / "report.jsonl"
        report.write_text("the last one\n")
        child = os.fork()
        if child == 0:
            with new_file(report) as file:
                file.write("half of a li")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert report.read_text() == "the last one\n"

    def test_a_check_that_is_stopped_leaves_nothing_behind(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "report.jsonl") as file:
            file.write("half of a li")
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []
