# SPDX-License-Identifier: Apache-2.0
"""The picture of what the model is fed shows just that."""

import dataclasses
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from clips import frame_numbers, indexed_frames, write_clip
from modeling_cover import CoverTrainingArguments, load_recipe, prepare_cotraining
from modeling_cover.commands import show as show_batch
from PIL import Image, ImageFont
from tiny import ENCODER


COLOURS = {"red": (220, 30, 40), "green": (20, 200, 60)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A dataset `clips` of videos, whose frames are numbered, and one `pictures` of images of one colour each."""
    for label in ("left", "right"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for number in range(4):
            write_clip(tmp_path / "clips" / label / f"{number}.mp4", indexed_frames(8))
    for label, colour in COLOURS.items():
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (64, 48), colour).save(tmp_path / "pictures" / label / f"{number}.png")
    return tmp_path


def entry(folder: Path, name: str, **keys) -> dict:
    modality = "video" if name == "clips" else "image"
    splits = {"train": str(folder / name)}
    return {"name": name, "format": "class_folders", "modality": modality, "splits": splits, **keys}


def write_recipe(folder: Path, *entries: dict, **sections) -> Path:
    content = {"datasets": list(entries), "clips": {"num_frames": 4, "image_size": 32, "short_side": 40}, **sections}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def read(folder: Path, *entries: dict, start: int = 0, count: int = 8, seed: int = 0) -> list[show_batch.Row]:
    recipe = load_recipe(write_recipe(folder, *entries))
    return list(show_batch.read_rows(recipe, start, count, seed))


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["show_batch.py", *map(str, arguments)])
    code = show_batch.main()
    return code, *capsys.readouterr()


class TestRows:
    def test_they_are_the_samples_of_training(self, folder):
        jitter = {"augmentation": {"color_jitter": {"brightness": 0.4}}}
        rows = read(folder, entry(folder, "clips", **jitter), entry(folder, "pictures", **jitter), start=3, seed=5)
        recipe = write_recipe(
            folder,
            entry(folder, "clips", **jitter),
            entry(folder, "pictures", **jitter),
            model=ENCODER,
        )
        training = prepare_cotraining(load_recipe(recipe), seed=5)
        for row, reference in zip(rows, training.schedule.references(3), strict=False):
            sample = training.train_dataset[reference]
            assert row.position == reference.position
            assert row.dataset == reference.dataset
            assert torch.equal(torch.from_numpy(row.frames).permute(0, 3, 1, 2), sample["pixel_values"])

    def test_a_clip_has_its_frames_in_order_and_an_image_is_one(self, folder):
        rows = read(folder, entry(folder, "clips"), entry(folder, "pictures"), count=16)
        assert {row.modality for row in rows} == {"video", "image"}
        for row in rows:
            if row.modality == "video":
                assert frame_numbers(row.frames) == [1, 3, 5, 7]
            else:
                assert row.frames.shape == (1, 32, 32, 3)
                assert np.abs(row.frames[0].astype(int) - COLOURS[row.labels[0]]).max() <= 1
            assert f"/{row.labels[0]}/" in row.file

    def test_from_a_later_position_they_are_the_later_ones(self, folder):
        entries = entry(folder, "clips"), entry(folder, "pictures")
        first, later = read(folder, *entries), read(folder, *entries, start=5, count=3)
        assert [row.file for row in later] == [row.file for row in first[5:]]
        assert [row.position for row in later] == [5, 6, 7]

    def test_a_file_that_another_stands_in_for_is_marked(self, folder):
        bad = folder / "clips" / "left" / "2.mp4"
        bad.write_bytes(b"no video")
        rows = read(folder, entry(folder, "clips"))
        (row,) = [row for row in rows if row.replaced is not None]
        assert row.file == str(bad)
        assert "cannot be read as a video" in row.replaced
        assert frame_numbers(row.frames) == [1, 3, 5, 7]
        assert any("stands in" in text for text, _, _ in show_batch.row_lines(row, "#000000"))

    def test_a_streamed_dataset_is_shown_too(self, folder):
        content = [(folder / "clips" / label / "0.mp4").read_bytes() for label in ("left", "right")]
        table = datasets.Dataset.from_dict({"video": content, "label": ["left", "right"]})
        table.to_parquet(folder / "clips.parquet")
        stream = {"splits": {"train": str(folder / "clips.parquet")}, "streaming": True, "labels": ["left", "right"]}
        rows = read(folder, entry(folder, "clips", **{**stream, "format": "parquet"}), count=4)
        assert sorted(row.labels[0] for row in rows) == ["left", "left", "right", "right"]
        assert all("clips.parquet" in row.file for row in rows)

    def test_of_a_mixed_sample_both_labels_are_shown_with_their_shares(self, folder):
        augmentation = {"mixup_alpha": 1.0}
        rows = read(folder, entry(folder, "pictures", augmentation=augmentation))
        mixed = next(row for row in rows if len(row.labels) == 2)
        shares = {text.split()[1]: float(text.split()[0].rstrip("%")) / 100 for text in mixed.labels}
        assert sum(shares.values()) == pytest.approx(1, abs=0.011)
        expected = sum(shares[name] * np.array(colour) for name, colour in COLOURS.items())
        assert np.abs(mixed.frames[0].mean(axis=(0, 1)) - expected).max() < 3

    @pytest.mark.parametrize(
        "target, expected",
        [
            (1, ["b"]),
            (torch.tensor(2), ["c"]),
            (torch.tensor([1.0, 0.0, 1.0]), ["a", "c"]),
            (torch.tensor([0.0, 0.0, 0.0]), ["no label"]),
            (torch.tensor([0.25, 0.75, 0.0]), ["75% b", "25% a"]),
            (torch.tensor([1.0, 0.0, 0.3]), ["100% a", "30% c"]),
        ],
    )
    def test_labels_are_all_that_a_sample_is_trained_towards(self, target, expected):
        assert show_batch.label_texts(target, ["a", "b", "c"]) == expected


class TestSheet:
    def row(self, num_frames: int, side: int, **changes) -> show_batch.Row:
        frames = np.random.default_rng(0).integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8)
        fields = {"position": 0, "dataset": "d", "modality": "video", "labels": ["x"], "file": "a.mp4"}
        return show_batch.Row(**{**fields, **changes}, frames=frames)

    def test_small_frames_are_enlarged_a_whole_number_of_times(self):
        row = self.row(8, 32)
        figure = show_batch.draw_sheet([row], "A title")
        figure.canvas.draw()
        sheet = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        left = show_batch.MARGIN + show_batch.TEXT_WIDTH + 2 * (96 + show_batch.GAP)
        expected = row.frames[2].repeat(3, axis=0).repeat(3, axis=1)
        column = sheet[:, left : left + 96]
        assert any((column[top : top + 96] == expected).all() for top in range(len(sheet) - 95))

    @pytest.mark.parametrize(
        "native, num_frames, side",
        [(32, 8, 96), (32, 1, 96), (112, 8, 112), (224, 8, 112), (448, 16, 58), (16, 64, 48)],
    )
    def test_a_sheet_is_never_wider_than_a_screen(self, native, num_frames, side):
        columns = min(num_frames, show_batch.FRAMES_A_LINE)
        assert show_batch.shown_side(native, columns) == side
        sheet = show_batch.draw_sheet([self.row(num_frames, native)], "A title")
        assert sheet.bbox.width <= 1400
        assert sheet.bbox.height >= -(-num_frames // columns) * side

    def test_long_labels_are_wrapped_and_many_are_cut_short(self):
        long = "pretending to put something underneath something " * 4 + "x" * 200
        for size in (12, 18):
            lines = show_batch.wrapped(long, size, 250)
            assert max(ImageFont.truetype("DejaVuSans.ttf", size).getlength(line) for line in lines) <= 250
            assert "".join(lines).replace(" ", "") == long.replace(" ", "")
        assert max(map(len, show_batch.wrapped("走る人" * 20, 18, 250))) <= 250 / 18
        row = self.row(1, 32, labels=[f"label {index}" for index in range(30)])
        texts = [text for text, _, _ in show_batch.row_lines(row, "#000000")]
        assert "and more, 30 labels in all" in texts
        assert len(texts) < 12

    def test_of_a_long_path_the_end_is_shown(self):
        path = "/a/very/long/way" * 10 + "/video.mp4"
        shown = show_batch.clipped(path, 12, 200)
        assert shown.startswith("…") and shown.endswith("/video.mp4")
        assert ImageFont.truetype("DejaVuSans.ttf", 12).getlength(shown) <= 200


class TestCommand:
    def test_it_writes_a_picture_and_needs_no_weights(self, folder, monkeypatch, capsys):
        (folder / "checkpoint").mkdir()
        model = {"from_image_checkpoint": str(folder / "checkpoint")}
        recipe = write_recipe(folder, entry(folder, "clips"), entry(folder, "pictures"), model=model)
        output = folder / "pictures_of" / "batch.png"
        code, out, _ = run(monkeypatch, capsys, recipe, "--rows", 3, "--position", 2, "--output", output)
        assert code == 0
        assert "3 samples, 0 of them in place of files that cannot be decoded" in out
        with Image.open(output) as picture:
            assert picture.format == "PNG"
            assert picture.height > 3 * 96

    def test_a_mistake_in_the_recipe_is_one_line(self, folder, monkeypatch, capsys):
        recipe = write_recipe(folder, entry(folder, "absent"))
        code, _, err = run(monkeypatch, capsys, recipe, "--output", folder / "batch.png")
        assert code == 2
        assert err.splitlines() == [f"error: dataset 'absent': {folder / 'absent'} is not a folder"]
        assert not (folder / "batch.png").exists()

    @pytest.mark.parametrize(
        ("training", "seed"), [({}, 42), ({"seed": 3}, 3), ({"seed": 3, "data_seed": 7}, 7), ({"data_seed": None}, 42)]
    )
    def test_the_seed_is_the_one_that_the_recipe_trains_with(self, folder, training, seed):
        recipe = load_recipe(write_recipe(folder, entry(folder, "clips")))
        recipe = dataclasses.replace(recipe, training=training)
        assert show_batch.seed_of(recipe) == seed
        args = CoverTrainingArguments("unused", report_to="none", **training)
        assert seed == (args.seed if args.data_seed is None else args.data_seed)  # as cotrain.py has it

    @pytest.mark.parametrize("option", ["--rows=0", "--position=-1", "--seed=-1"])
    def test_numbers_that_make_no_sense_are_refused(self, folder, monkeypatch, capsys, option):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, capsys, "recipe.yaml", option)
        assert "at least" in capsys.readouterr().err
