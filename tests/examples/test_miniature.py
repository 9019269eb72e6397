# SPDX-License-Identifier: Apache-2.0
"""The study in miniature: its data, its runs and its report."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import forked_runs
import numpy as np
import paper_in_miniature
import psutil
import pytest
from fashion_mnist import write_fashion_mnist
from miniature.data import (
    COURSES,
    KINDS,
    LABELS,
    MOVES,
    SCENES,
    FashionMNIST,
    draw_miniature,
    plan_sample,
    render,
)
from miniature.plan import CPU, GPU, TINY, plan_runs
from miniature.report import Claim, Results, compare
from miniature.study import Study
from modeling_cover.commands import train as cotrain
from PIL import Image


LIMIT = 1800.0  # seconds, for what hangs: a busy machine takes many times as long as an idle one
FILES = {name: {"train": 2, "validation": 1, "test": 1} for name in ("outfits", "moves", "garments")}


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


@pytest.mark.parametrize("label", MOVES)
def test_a_garment_moves_as_its_label_says_and_the_other_one_stands(pictures, label):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        standing, moving = SCENES["moves"](rng, partial(pictures.draw, rng, "train"), label)
        (right, down), size = moving.track[:2, -1] - moving.track[:2, 0], np.ptp(moving.track[2])
        reach = np.ptp(moving.track[:2], axis=1)
        course = label.partition(", ")[2]
        expected = {"to the right": right, "to the left": -right, "down": down, "up": -down, "to and fro": reach[0]}
        assert expected[course] > 6
        across = reach[0] if course in ("up", "down") else reach[1]
        assert max(across, size) < 2
        if course == "to and fro":
            assert abs(right) < 2
        assert np.ptp(standing.track, axis=1).max() == 0


def test_every_movement_but_to_and_fro_is_another_one_backwards():
    time = np.linspace(0, 1, 9)
    played = {(axis, *course(time)) for axis, course in COURSES.values()}
    assert len(played) == len(COURSES)
    for name, (axis, course) in COURSES.items():
        backwards = (axis, *course(time)[::-1])
        assert backwards in played
        assert (backwards == (axis, *course(time))) == (name == "to and fro")


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


@pytest.mark.parametrize("scale", [CPU, GPU, TINY], ids=["cpu", "gpu", "tiny"])
def test_a_dataset_has_the_same_updates_of_the_same_rows_alone_and_together(scale, tmp_path):
    study = Study(output=tmp_path, scale=scale, seeds=(1,))
    updates = {}
    for run in plan_runs():
        recipe = study.recipe(run, 1)
        assert recipe["training"]["per_device_train_batch_size"] == sum(entry["share"] for entry in recipe["datasets"])
        for name, entry in zip(run.datasets, recipe["datasets"], strict=True):
            key = (run.stage, name)
            updates.setdefault(key, set()).add((recipe["training"]["max_steps"], entry["share"]))
    assert {key for key in updates if key[0] == "training"} == {
        ("training", name) for name in ("outfits", "moves", "garments")
    }
    assert all(len(found) == 1 for found in updates.values())


def test_runs_differ_in_nothing_but_what_they_compare(tmp_path):
    study = Study(output=tmp_path, scale=CPU, seeds=(1,))
    recipes = {run.name: study.recipe(run, 1) for run in plan_runs()}
    weighted, together = recipes["together_0.5"], recipes["together"]
    assert [entry["weight"] for entry in weighted["datasets"]] == [1.0, 1.0, 0.5]
    assert [entry["weight"] for entry in together["datasets"]] == [1.0, 1.0, 1.0]
    for recipe in (weighted, together):
        for entry in recipe["datasets"]:
            del entry["weight"]
        del recipe["training"]["output_dir"]
    assert weighted == together
    assert recipes["moves"]["model"] == recipes["videos"]["model"] | {"default_head": "moves"}


def test_a_run_comes_after_the_one_that_it_starts_from(tmp_path):
    study, done = Study(output=tmp_path, scale=CPU, seeds=(1, 2)), set()
    tasks = study.tasks()
    for run, seed in tasks:
        assert set(study.needed(run, seed)) <= done
        done.add((run.name, seed))
    assert len(done) == len(tasks)
    assert {seed for name, seed in done if name.startswith("pretrained")} == {0}


def test_a_run_is_done_after_the_one_that_it_starts_from_and_known_to_be(pictures_folder, tmp_path):
    study = Study(output=tmp_path, scale=TINY, seeds=(1,))
    study.draw(pictures_folder)
    runs = {run.name: run for run in plan_runs()}
    done = {("pretrained", 0): study.do(runs["pretrained"], 0), ("videos", 1): study.do(runs["videos"], 1)}
    assert study.finished() == done
    assert set(done["videos", 1]["top1"]) == {"outfits", "moves"}


@pytest.mark.parametrize(
    ("paper", "seeds", "verdict"),
    [
        (1.4, [0.1, 3.0, 0.2], "agrees"),
        (-1.4, [-0.1, -3.0, -0.2], "agrees"),
        (1.4, [-0.1, -3.0, -0.2], "disagrees"),
        (-1.4, [0.1, 3.0, 0.2], "disagrees"),
        (1.4, [0.1, -0.1, 5.0], "undecided"),
        (1.4, [0.1, 0.0, 5.0], "undecided"),
    ],
)
def test_a_claim_is_judged_by_the_sign_of_every_seed(paper, seeds, verdict):
    assert Claim("a difference", paper, np.array(seeds)).verdict == verdict


def test_a_difference_is_one_within_each_seed():
    def of_seed(seed: int) -> dict:
        measured = dict.fromkeys(("outfits", "moves", "garments"), 0.5)
        figures = {run.name: {"top1": measured, "reversed": measured, "probed": measured} for run in plan_runs()}
        figures["videos"] = {"top1": {"outfits": 0.5, "moves": 0.5 + 0.01 * seed}}
        figures["moves"] = {**figures["moves"], "top1": {"moves": 0.25}}
        return figures

    claims = {claim.text: claim for claim in compare(Results([of_seed(1), of_seed(2)]), CPU)[0].claims}
    np.testing.assert_allclose(claims["moves, with the other videos"].miniature, [26, 27])
    assert "**agrees**: moves, with the other videos: +2.7 in the paper, +26.5 ± 0.7 here (+26.0, +27.0)" in map(
        str, claims.values()
    )


# As docs/paper.md says, in a folder with data/fashion-mnist.
COMMAND = "python examples/paper_in_miniature.py --fashion_mnist data/fashion-mnist --scale tiny --seeds 1"
OUTPUT = Path("outputs/miniature")


def test_the_page_has_the_command():
    page = Path(__file__).parents[2] / "docs" / "paper.md"
    assert f"```bash\n{COMMAND}\n```\n" in page.read_text(encoding="utf-8")


def call_in(folder: Path, arguments: list[str]) -> None:
    os.chdir(folder)
    forked_runs.call(paper_in_miniature.main, arguments)


def start(folder: Path, pictures_folder: Path, *more: str) -> forked_runs.ForkedRun:
    """The command in a folder, as a process that starts others; what it prints is added to log.txt."""
    if not (folder / "data").exists():
        (folder / "data").mkdir()
        (folder / "data" / "fashion-mnist").symlink_to(pictures_folder)
    return forked_runs.start_processes(call_in, 1, folder / "log.txt", {}, folder, [*COMMAND.split()[2:], *more])


def figures(folder: Path) -> dict[str, dict]:
    """What each run has measured, and a digest of its weights."""
    found = {}
    for path in (folder / OUTPUT / "runs").rglob("metrics.json"):
        content = json.loads(path.read_text())
        weights = hashlib.sha256((path.parent / "model.safetensors").read_bytes()).hexdigest()
        found[path.parent.name] = {key: content[key] for key in ("top1", "reversed", "probed")} | {"weights": weights}
    return found


def wait_for(condition, seconds: float = LIMIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures_folder) -> Path:
    """The folder in which a whole study was done at once."""
    folder = tmp_path_factory.mktemp("study")
    code, log = start(folder, pictures_folder).wait(LIMIT), (folder / "log.txt").read_text()
    assert code == 0, log[-3000:]
    assert f"\nreport: {OUTPUT / 'report' / 'paper_in_miniature.md'}\n" in log
    return folder


@pytest.fixture
def again(finished, monkeypatch) -> Callable[..., int]:
    """The command once more in the folder of the finished study, with more options."""
    monkeypatch.chdir(finished)
    return lambda *more: paper_in_miniature.main([*COMMAND.split()[2:], "--processes", "1", *more])


@pytest.mark.slow
def test_the_report_has_every_table_and_figure_and_its_pictures(finished):
    report = finished / OUTPUT / "report"
    page = (report / "paper_in_miniature.md").read_text()
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    for wanted in (
        *("Tables 3 and 5", "Table 4", "Table 6", "Table 2", "Section 3.2"),
        *("Figure 3 (a)", "Figure 3 (b)", "Figure 4", "Table 7"),
    ):
        assert sum(title.startswith(f"## {wanted}:") for title in titles) == 1
    assert page.count("| the paper |") == page.count("| the miniature |") == 9
    measured = figures(finished)
    assert f"| moves → outfits | {100 * measured['moves_to_outfits']['top1']['outfits']:.1f} |" in page
    pictures = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(pictures) == 8
    for picture in pictures:
        with Image.open(report / picture) as image:
            assert image.width > 600


@pytest.mark.slow
def test_every_run_is_a_recipe_that_trains_by_itself(finished, tmp_path, monkeypatch, capsys):
    run = OUTPUT / "runs" / "seed_1" / "videos"
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sys, "argv", ["cotrain.py", f"{run / 'recipe.yaml'}", "--output_dir", str(tmp_path / "again")])
    cotrain.main()
    weights = (run / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_finished_study_does_nothing_again(again, capsys):
    before = {path: path.stat().st_mtime_ns for path in (OUTPUT / "runs").rglob("*") if path.is_file()}
    assert again() == 0
    assert {path: path.stat().st_mtime_ns for path in (OUTPUT / "runs").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_report_that_cannot_be_written_is_an_error_and_no_run_is_lost(again, finished, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert again("--report", str(tmp_path / "taken")) == 1
    assert "taken" in capsys.readouterr().err
    assert len(figures(finished)) == len(plan_runs())


@pytest.mark.slow
def test_other_settings_in_the_folder_of_a_study_are_refused(again, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert again("--split", "validation") == 1
    assert "holds a run of other settings: name another --output" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
def test_a_killed_study_leaves_no_process_and_goes_on_to_the_same_weights_and_figures(finished, pictures_folder):
    expected = figures(finished)
    shutil.rmtree(finished / OUTPUT / "report")
    for run in plan_runs()[-6:]:  # transfers, each from a run that is done
        shutil.rmtree(finished / OUTPUT / "runs" / "seed_1" / run.name)
    done = len(figures(finished))
    assert done == len(expected) - 6

    process = start(finished, pictures_folder)
    wait_for(lambda: len(figures(finished)) > done or process.poll() is not None)
    workers = psutil.Process(process.pids[0]).children(recursive=True)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT)
    wait_for(lambda: not any(worker.is_running() for worker in workers))
    assert len(figures(finished)) < len(expected)
    assert not (finished / OUTPUT / "report").exists()
    code = start(finished, pictures_folder, "--processes", "1").wait(LIMIT)
    assert code == 0, (finished / "log.txt").read_text()[-3000:]
    assert (finished / OUTPUT / "report" / "paper_in_miniature.md").exists()
    assert figures(finished) == expected


def test_options_that_make_no_sense_are_named(pictures_folder, tmp_path, capsys):
    options = ["--output", str(tmp_path), "--fashion_mnist", str(pictures_folder), "--scale", "tiny"]
    for more, message in (
        (("--seeds", "2", "2"), "--seeds: expected different positive numbers, got [2, 2]"),
        (("--seeds", "0"), "--seeds: expected different positive numbers, got [0]"),
        (("--processes", "0"), "--processes must be at least 1, got 0"),
        (("--fashion_mnist", str(tmp_path / "nowhere")), "is missing: install Debian's package"),
    ):
        assert paper_in_miniature.main([*options, *more]) == 1
        assert message in capsys.readouterr().err
