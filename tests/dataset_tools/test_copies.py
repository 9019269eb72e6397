# SPDX-License-Identifier: Apache-2.0
"""What a check of datasets finds in rows that are the same, by their bytes or by what they show."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from checked_datasets import (
    check,
    copy,
    entry,
    kinds,
    only,
    scene,
    write_picture,
    write_scene,
)
from clips import write_clip
from modeling_cover import read_video
from modeling_cover.dataset_tools.duplicates import TOLERANCE, fingerprint, near_groups


def table_entry(path: Path) -> dict:
    """What a recipe says of a table of videos."""
    return {"name": "t", "format": "parquet", "modality": "video", "splits": {"train": str(path)}}


class TestCopies:
    def test_a_validation_row_of_one_dataset_that_another_trains_on_is_a_leak(self, folder):
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

    def test_other_labels_in_another_dataset_are_no_mismatch_and_shared_training_files_are_but_noted(self, folder):
        copy(folder / "a/train/left/0.mp4", folder / "b/train/right/8.mp4")
        note = only(check(folder, entry(folder / "a"), entry(folder / "b")), "shared")
        assert not note.is_problem
        assert (note.details["datasets"], note.split, note.details["num_files"]) == (["a", "b"], "train", 1)

    def test_files_in_a_table_are_compared_with_files_on_disk(self, folder):
        content = (folder / "a/validation/left/2.mp4").read_bytes()
        other = write_scene(folder / "other.mp4", 77).read_bytes()
        rows = {"video": [other, content], "label": ["up", "down"]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / "table.parquet")
        table = table_entry(folder / "table.parquet")
        leak = only(check(folder, entry(folder / "a"), table), "leak")
        assert (leak.dataset, leak.details["train_of"]) == ("a", ["t"])
        assert "row 1" in leak.details["copies"][0]["name"]

    @pytest.mark.parametrize("size", [2, 3])
    def test_a_streamed_split_is_read_to_its_end_and_compared(self, folder, size):
        content = (folder / "a/validation/left/2.mp4").read_bytes()
        other = write_scene(folder / "other.mp4", 77).read_bytes()
        rows = {"video": [content, other], "label": ["up", "down"]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / "table.parquet")
        table = table_entry(folder / "table.parquet")
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
        ids=["encoded again", "scaled down", "scaled up", "in another codec", "brighter"],
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
            ("duplicate", "pixels"),
            ("leak", "bytes"),
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
        expected = np.arange(400)
        for first, second in pairs:  # no fingerprint is near to more than one other
            expected[second] = first
        assert near_groups(codes).tolist() == expected.tolist()

    def test_what_is_near_to_one_of_a_group_belongs_to_it(self):
        codes = np.array(
            [[2**40 - 1, 7, 0, 0], [0, 0, 0, 0], [2**20 - 1, 7, 0, 0], [2**30 - 1, 7, 0, 0]], dtype=np.uint64
        )
        assert near_groups(codes).tolist() == [0, 1, 0, 0]

    def test_thousands_of_equal_ones_are_not_compared_with_one_another(self, monkeypatch):
        codes = np.random.default_rng(0).integers(2**64, size=(50, 4), dtype=np.uint64)
        codes = np.concatenate([np.repeat(codes[:2], 3000, axis=0), codes[2:], codes[:1] ^ np.uint64(1)])
        compared, count = [], np.bitwise_count
        monkeypatch.setattr(np, "bitwise_count", lambda differing: compared.append(len(differing)) or count(differing))
        groups = near_groups(codes)
        assert 0 < sum(compared) < 1000  # pair by pair, millions
        assert groups.tolist() == [0] * 3000 + [3000] * 3000 + [*range(6000, 6048), 0]
        assert near_groups(codes[:0]).tolist() == []
