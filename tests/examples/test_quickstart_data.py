# SPDX-License-Identifier: Apache-2.0
"""The quickstart's data: files as promised, the same ones every time, in which only what is named tells the label."""

import csv
import re
import shutil
import sys
from pathlib import Path

import make_quickstart_data
import numpy as np
import pytest
import quickstart_data as quickstart
from PIL import Image


TINY = 0.01  # two files per label and split
OPPOSITES = [("moving left", "moving right"), ("moving up", "moving down"), ("shrinking", "growing")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "quickstart"
    assert quickstart.draw_quickstart(folder, seed=0, scale=TINY) == 3 * 6 * 2 * 2
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_manifest(folder: Path, split: str) -> list[tuple[Path, str]]:
    with open(folder / "motions" / f"{split}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"video", "label"}
    return [(folder / "motions" / row["video"], row["label"]) for row in rows]


def measure(frames: np.ndarray) -> np.ndarray:
    """The x, y and area of the bright pixels of each frame: (T, H, W, 3) -> (T, 3), in pixels."""
    bright = frames.max(axis=-1) > 95
    area = bright.sum(axis=(1, 2))
    rows, columns = np.indices(bright.shape[1:])
    return np.stack([(bright * columns).sum(axis=(1, 2)) / area, (bright * rows).sum(axis=(1, 2)) / area, area], 1)


def draw_motion(seed: int, motion: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape, texture = rng.choice(list(quickstart.SHAPES)), rng.choice(list(quickstart.TEXTURES))
    return quickstart.draw_clip(rng, motion, shape, texture, quickstart.draw_colour(rng, None))


@pytest.mark.parametrize(("dataset", "suffix"), [("shapes", ".mp4"), ("images", ".png")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_shapes_and_images_have_a_folder_per_class(drawn, dataset, suffix, split):
    classes = sorted(path.name for path in (drawn / dataset / split).iterdir())
    assert classes == sorted(quickstart.LABELS[dataset])
    for name in classes:
        files = sorted(path.name for path in (drawn / dataset / split / name).iterdir())
        assert files == [f"000{suffix}", f"001{suffix}"]


def test_manifests_list_every_video_of_the_motions_once(drawn):
    videos = []
    for split in ("train", "val"):
        rows = read_manifest(drawn, split)
        assert sorted(label for _, label in rows) == sorted(2 * list(quickstart.MOTIONS))
        videos += [video for video, _ in rows]
    assert sorted(videos) == sorted((drawn / "motions" / "videos").iterdir())


def test_every_clip_decodes_to_sixteen_frames_and_every_image_opens(drawn):
    clips = list(drawn.rglob("*.mp4"))
    assert len(clips) == 2 * 6 * 2 * 2
    assert {quickstart.read_clip(clip).shape for clip in clips} == {(16, 40, 40, 3)}
    assert {Image.open(image).size for image in drawn.rglob("*.png")} == {(40, 40)}


def test_files_move_as_their_label_says(drawn):
    direction = {"moving left": (0, -1), "moving right": (0, 1), "moving up": (1, -1), "moving down": (1, 1)}
    for video, label in read_manifest(drawn, "train") + read_manifest(drawn, "val"):
        first, *_, last = measure(quickstart.read_clip(video))
        if label in direction:
            axis, sign = direction[label]
            assert sign * (last - first)[axis] > 8, (video, label)
            assert abs((last - first)[1 - axis]) < 3, (video, label)
        else:
            ratio = last[2] / first[2]
            assert (ratio if label == "growing" else 1 / ratio) > 1.5, (video, label)
            assert np.abs(last - first)[:2].max() < 4, (video, label)


@pytest.mark.parametrize(("backwards", "forwards"), OPPOSITES)
def test_a_motion_is_its_opposite_played_backwards(backwards, forwards):
    for seed in range(5):
        np.testing.assert_array_equal(draw_motion(seed, backwards), draw_motion(seed, forwards)[::-1])


@pytest.mark.parametrize(("backwards", "forwards"), OPPOSITES)
def test_first_frames_of_a_motion_are_distributed_as_last_frames_of_its_opposite(backwards, forwards):
    # Independent draws of the two: the means of 30 differ by some 3 standard errors at most.
    one = np.stack([measure(draw_motion(seed, backwards)) for seed in range(30)])
    other = np.stack([measure(draw_motion(1000 + seed, forwards)) for seed in range(30)])[:, ::-1]
    error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / 30)
    assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) < 4 * error).all()


def test_a_frame_at_random_does_not_tell_the_motion():
    # x, y and area of one frame per clip, their spread too: a motion along x must not show as a wider spread of x.
    frames = {}
    for number, motion in enumerate(quickstart.MOTIONS):
        picks = np.random.default_rng(number).integers(quickstart.NUM_FRAMES, size=40)
        frames[motion] = np.stack([measure(draw_motion(200 * number + i, motion))[t] for i, t in enumerate(picks)])
    everything = np.concatenate(list(frames.values()))
    for motion, values in frames.items():
        error = everything.std(axis=0) / np.sqrt(40)
        assert (np.abs(values.mean(axis=0) - everything.mean(axis=0)) < 4 * error).all(), motion
        assert np.allclose(values.std(axis=0), everything.std(axis=0), rtol=0.25), motion


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(drawn, tmp_path):
    quickstart.draw_quickstart(tmp_path, seed=1, scale=TINY)
    other = contents(tmp_path)
    assert other.keys() == contents(drawn).keys()
    assert all(other[name] != data for name, data in contents(drawn).items() if name.endswith((".mp4", ".png")))
    quickstart.draw_quickstart(tmp_path, seed=0, scale=TINY)  # in the place of the other's
    assert contents(tmp_path) == contents(drawn)


def test_no_two_files_are_alike(drawn):
    files = [data for name, data in contents(drawn).items() if name.endswith((".mp4", ".png"))]
    assert len(set(files)) == len(files)


def test_a_file_depends_neither_on_the_scale_nor_on_the_order_of_drawing(drawn, tmp_path):
    samples = [sample for sample in quickstart.plan_samples(0.02) if sample.number < 2]
    for sample in reversed(samples[::5]):
        (tmp_path / sample.path).parent.mkdir(parents=True, exist_ok=True)
        quickstart.draw_sample(sample, tmp_path, seed=0)
    small = {(s.dataset, s.split, s.label, s.number): s.path for s in quickstart.plan_samples(TINY)}
    for sample in samples[::5]:
        twin = drawn / small[sample.dataset, sample.split, sample.label, sample.number]
        assert (tmp_path / sample.path).read_bytes() == twin.read_bytes()


def test_the_default_size_stays_under_20_megabytes(drawn):
    sizes = {
        suffix: np.mean([path.stat().st_size for path in drawn.rglob(f"*{suffix}")]) for suffix in (".mp4", ".png")
    }
    assert sum(sizes[sample.path.suffix] for sample in quickstart.plan_samples(1.0)) < 20e6


def test_a_second_run_touches_nothing(drawn):
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    assert quickstart.draw_quickstart(drawn, seed=0, scale=TINY) == 0
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before


def test_an_interrupted_run_starts_over(drawn, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quickstart, "write_manifests", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quickstart.draw_quickstart(tmp_path, seed=1, scale=TINY)
    assert not (tmp_path / "quickstart.json").exists()
    quickstart.draw_quickstart(tmp_path, seed=0, scale=TINY)
    assert contents(tmp_path) == contents(drawn)


def test_data_that_lost_a_file_is_drawn_anew_and_files_beside_it_are_kept(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    (tmp_path / "shapes" / "val" / "star" / "001.mp4").unlink()
    (tmp_path / "notes.txt").write_bytes(b"kept")
    quickstart.draw_quickstart(tmp_path, seed=0, scale=TINY)
    assert contents(tmp_path) == contents(drawn) | {"notes.txt": b"kept"}


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        quickstart.draw_quickstart(tmp_path, scale=TINY)
    assert contents(tmp_path) == {"images/holiday.jpg": b"mine"}


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("scale", 0), ("scale", float("nan"))])
def test_a_wrong_option_is_named_before_anything_is_written(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must .* got {value}"):
        quickstart.draw_quickstart(tmp_path / "data", **{name: value})
    assert not (tmp_path / "data").exists()


def test_the_command_line_draws_says_so_and_writes_a_preview(tmp_path, monkeypatch, capsys):
    output, preview = tmp_path / "data", tmp_path / "preview.png"
    options = ["--output", str(output), "--scale", str(TINY), "--preview", str(preview)]
    monkeypatch.setattr(sys, "argv", ["make_quickstart_data.py", *options])
    make_quickstart_data.main()
    assert "72 files" in capsys.readouterr().out
    assert Image.open(preview).width > 600
    make_quickstart_data.main()
    assert "nothing to draw" in capsys.readouterr().out
