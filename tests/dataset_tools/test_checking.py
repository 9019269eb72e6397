# SPDX-License-Identifier: Apache-2.0
"""What a check of datasets finds, on real files of every sort of fault."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from checked_datasets import (
    PROCESSOR,
    check,
    copy,
    entry,
    kinds,
    only,
    scene,
    truncate,
    write_picture,
    write_recipe,
    write_scene,
)
from clips import write_clip
from modeling_cover import load_recipe, prepare_cotraining, read_video
from modeling_cover.commands import check as check_dataset
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.data.sources.media import Media
from modeling_cover.dataset_tools.checking import check_datasets
from modeling_cover.dataset_tools.file_inspection import inspect_file


class TestFiles:
    def test_of_clean_data_there_is_nothing_to_say_but_its_numbers(self, folder):
        report = check(
            folder, entry(folder / "a"), entry(folder / "b"), full=True, near_duplicates=True, num_workers=2
        )
        assert report.findings == []
        assert [(split.dataset, split.split, len(split)) for split in report.splits] == [
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
        assert len(report.splits[0]) == 4

    def test_a_dataset_that_is_gone_is_an_error(self, folder):
        recipe = load_recipe(write_recipe(folder / "recipe.yaml", entry(folder / "a")))
        sources = {"a": read_sources(recipe.datasets[0])}
        shutil.rmtree(folder / "a")
        with pytest.raises(FileNotFoundError, match="dataset 'a'"):
            check_datasets(sources, PROCESSOR)


class _Deadly:
    """A path that nobody survives."""

    def __fspath__(self) -> str:
        os._exit(1)


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
