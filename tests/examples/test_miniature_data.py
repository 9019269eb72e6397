# SPDX-License-Identifier: Apache-2.0
"""The data of the study in miniature."""

import gzip
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fashion_mnist import write_fashion_mnist
from miniature.data import (
    DIRECTED_DATASETS,
    FEW_MOMENTS,
    KINDS,
    LABELS,
    LEGS,
    MOMENT_LABELS,
    MOMENTS,
    MOTIONS,
    MOVES,
    OF_MOVES,
    OVERLAPS,
    SCENES,
    SHARED_MOVES,
    FashionMNIST,
    draw_miniature,
    plan_sample,
    render,
)
from miniature.plan import CPU, GPU, TINY, videos


FILES = {name: {"train": 2, "validation": 1, "test": 1} for name in ("outfits", "moves", MOMENTS["half"], "garments")}


@pytest.fixture(scope="module")
def pictures_folder(tmp_path_factory) -> Path:
    return write_fashion_mnist(tmp_path_factory.mktemp("fashion_mnist"))


@pytest.fixture(scope="module")
def pictures(pictures_folder) -> FashionMNIST:
    return FashionMNIST(pictures_folder)


def test_pictures_of_a_split_are_in_no_other(pictures, pictures_folder):
    rng, seen = np.random.default_rng(0), {}
    for split in ("train", "validation", "test"):
        drawn = (pictures.draw(rng, split, "coat") for _ in range(60))
        seen[split] = {min(picture.tobytes(), picture[:, ::-1].tobytes()) for picture in drawn}
    assert len(seen["train"]) > 1
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_pictures_are_of_the_kind_that_is_asked_for(pictures_folder, pictures):
    content = gzip.decompress((pictures_folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    labels = np.frombuffer(content, np.uint8, offset=8)
    images = gzip.decompress((pictures_folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    sandals = {picture.tobytes() for picture in images[labels == KINDS.index("sandal")]}
    picture = pictures.draw(np.random.default_rng(1), "test", "sandal")
    assert {picture.tobytes(), picture[:, ::-1].tobytes()} & sandals


def test_a_missing_file_of_fashion_mnist_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is missing: .*dataset-fashion-mnist"):
        FashionMNIST(tmp_path)


@pytest.mark.parametrize("content", [b"", bytes((0, 0, 8, 3)), bytes((0, 0, 8, 1, 0, 0, 0, 9)) + bytes(9)])
def test_a_file_that_is_not_of_fashion_mnist_is_refused(tmp_path, content):
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is not a file of MNIST's format with 3 axes"):
        FashionMNIST(tmp_path)


def test_files_without_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no T-shirt of train"):
        FashionMNIST(write_fashion_mnist(tmp_path, pictures_per_kind=0))


def test_a_file_that_is_not_compressed_is_refused(tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz is not a file of MNIST's format"):
        FashionMNIST(tmp_path)


def test_a_sample_is_a_function_of_itself_and_the_seed(pictures):
    sample = plan_sample("outfits", "train", "coat and sandal", 3)
    frames = render(sample, pictures, seed=1)
    assert frames.shape == (8, 40, 40, 3)
    np.testing.assert_array_equal(frames, render(sample, pictures, seed=1))
    assert (frames != render(sample, pictures, seed=2)).any()
    other = plan_sample("outfits", "train", "coat and sandal", 4)
    assert (frames != render(other, pictures, seed=1)).any()


@pytest.mark.parametrize(
    ("dataset", "label", "motion"),
    [("moves", *item) for item in MOVES.items()]
    + [(MOMENTS["none"], label, MOMENT_LABELS[label][1]) for label in LABELS[MOMENTS["none"]][:8]],
)
def test_a_garment_moves_as_its_label_says_and_the_other_one_stands(pictures, dataset, label, motion):
    legs = np.array([LEGS[leg] for leg in motion])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        standing, moving = SCENES[dataset](rng, partial(pictures.draw, rng, "train"), label)
        middle = moving.track[:2, 3:5].mean(axis=1)
        for leg, way in zip(legs, (middle - moving.track[:2, 0], moving.track[:2, -1] - middle), strict=True):
            assert (way[leg != 0] * leg[leg != 0] > 3.5).all()
            assert np.abs(way[leg == 0]).max() < 3.5
        assert np.ptp(moving.track[2]) < 2
        assert np.ptp(standing.track, axis=1).max() == 0


def test_motions_of_two_overlaps_differ_in_nothing_but_which_they_are():
    assert len(set(MOTIONS)) == len(MOTIONS) == 2 * len(OF_MOVES) == 16
    assert set(MOVES.values()) == set(OF_MOVES)
    shared = {overlap: len(set(motions) & set(OF_MOVES)) for overlap, motions in OVERLAPS.items()}
    assert shared == {"none": 0, "half": 4, "all": 8}
    assert {MOVES[label] for label in SHARED_MOVES} == set(OVERLAPS["half"]) & set(OF_MOVES)
    for motions in OVERLAPS.values():
        assert len(set(motions)) == 8
        # As hard: of each, as many that go on, come back, stop and start.
        kinds = [(first == second, "still" in (first, second), first == "still") for first, second in motions]
        assert sorted(kinds) == sorted((a == b, "still" in (a, b), a == "still") for a, b in OF_MOVES)
    moved = {motion: {leg for leg in motion if leg != "still"} for motion in MOTIONS}
    legs_of = {overlap: set().union(*map(moved.get, motions)) for overlap, motions in OVERLAPS.items()}
    assert not legs_of["none"] & legs_of["all"]  # not even a part of a motion
    assert {MOMENT_LABELS[label][1] for label in LABELS[MOMENTS["all"]]} == set(OF_MOVES)
    assert not set(LABELS["moves"]) & set(MOMENT_LABELS)


@pytest.mark.parametrize("scale", [CPU, GPU, TINY], ids=["cpu", "gpu", "tiny"])
def test_the_overlap_is_the_only_difference_between_the_large_sets(scale):
    files = [scale.files_per_label[name] for name in MOMENTS.values()]
    assert files[0] == files[1] == files[2]
    assert {len(LABELS[name]) for name in MOMENTS.values()} == {24}
    kinds = [sorted(MOMENT_LABELS[label][0] for label in LABELS[name]) for name in MOMENTS.values()]
    assert kinds[0] == kinds[1] == kinds[2]
    assert len({scale.num_rows(*videos(overlap)) for overlap in MOMENTS}) == 1
    for overlap, few in FEW_MOMENTS.items():
        assert LABELS[few] == LABELS[MOMENTS[overlap]]
        assert scale is TINY or 4 * scale.num_rows(few) == scale.num_rows(MOMENTS[overlap])


def test_the_cpu_scale_is_of_the_sizes_that_were_asked_for():
    sizes = {name: CPU.num_rows(name) for name in ("outfits", "moves", MOMENTS["all"], "garments")}
    assert sizes == {"outfits": 234, "moves": 80, MOMENTS["all"]: 480, "garments": 1280}
    for name, files in CPU.files_per_label.items():
        assert name == "wardrobe" or files["test"] * len(LABELS[name]) >= 400


def test_a_class_that_two_overlaps_have_has_the_same_clips_in_both(pictures):
    def clip(overlap: str, label: str) -> np.ndarray:
        return render(plan_sample(MOMENTS[overlap], "train", label, 3), pictures, seed=1)

    common = sorted(set(LABELS[MOMENTS["half"]]) & set(LABELS[MOMENTS["all"]]))
    assert len(common) == 12
    np.testing.assert_array_equal(clip("half", common[5]), clip("all", common[5]))
    (other, *_) = sorted(set(LABELS[MOMENTS["half"]]) & set(LABELS[MOMENTS["none"]]))
    np.testing.assert_array_equal(clip("half", other), clip("none", other))
    few = render(plan_sample(FEW_MOMENTS["all"], "train", common[5], 3), pictures, seed=1)
    np.testing.assert_array_equal(few, clip("all", common[5]))


def test_motions_of_outfits_look_the_same_backwards_and_those_of_moves_do_not(pictures):
    """Of many clips, the way of a garment and its reverse are distributed alike."""

    def ways(dataset: str, label: str) -> np.ndarray:
        found = []
        for seed in range(300):
            rng = np.random.default_rng(seed)
            track = SCENES[dataset](rng, partial(pictures.draw, rng, "train"), label)[-1].track
            found.append(track[:, -1] - track[:, 0])
        return np.array(found)

    drifting = ways("outfits", "coat and sandal")
    spread = drifting.std(axis=0)
    assert (spread > 1).all()
    assert (np.abs(drifting.mean(axis=0)) < 4 * spread / np.sqrt(len(drifting))).all()
    moving = ways("moves", "right, then right")
    assert moving[:, 0].min() > 6


def test_mirrored_clips_are_for_datasets_that_ask_for_no_direction():
    assert set(DIRECTED_DATASETS) == set(LABELS) - {"outfits", "garments", "wardrobe"}


def test_data_are_drawn_once_and_anew_where_they_were_interrupted_or_are_others(pictures_folder, tmp_path):
    folder, labels = tmp_path / "data", {name: LABELS[name] for name in FILES}
    total = 4 * sum(map(len, labels.values()))
    assert draw_miniature(folder, pictures_folder, FILES, seed=1) == total
    files = sorted(path for path in folder.rglob("*.*") if path.suffix in (".mp4", ".png"))
    assert len(files) == total
    content = files[0].read_bytes()
    assert draw_miniature(folder, pictures_folder, FILES, seed=1) == 0
    (folder / "miniature.json").unlink()
    files[0].write_bytes(b"half of it")
    assert draw_miniature(folder, pictures_folder, FILES, seed=1) == total
    assert files[0].read_bytes() == content
    assert draw_miniature(folder, pictures_folder, FILES, seed=2) == total
    assert files[0].read_bytes() != content


def test_a_folder_that_holds_something_else_is_left_alone(pictures_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(ValueError, match=r"holds thesis\.tex, which this script did not draw"):
        draw_miniature(tmp_path, pictures_folder, FILES, seed=1)
    assert (tmp_path / "thesis.tex").read_text() == "all of it"
