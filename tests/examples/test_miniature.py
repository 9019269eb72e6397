# SPDX-License-Identifier: Apache-2.0
"""The study in miniature: its runs and its report."""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forked_runs
import numpy as np
import paper_in_miniature
import psutil
import pytest
from fashion_mnist import write_fashion_mnist
from miniature.comparisons import compare
from miniature.data import LABELS, MOMENTS, SHARED_MOVES
from miniature.expectations import EXPECTATIONS
from miniature.measures import accuracies
from miniature.plan import CPU, TINY, Run, plan_runs
from miniature.report import gain_sentences, gains
from miniature.results import EVERY, NO, SOME, Claim, Results, agreement
from miniature.study import Study
from modeling_cover.commands import train as cotrain
from PIL import Image


LIMIT = 1800.0  # seconds, for what hangs: a busy machine takes many times as long as an idle one


@pytest.fixture(scope="module")
def pictures_folder(tmp_path_factory) -> Path:
    return write_fashion_mnist(tmp_path_factory.mktemp("fashion_mnist"))


def test_a_dataset_alone_has_a_control_of_as_many_epochs_and_one_of_as_many_steps(tmp_path):
    study = Study(output=tmp_path, scale=CPU, seeds=(1,))
    runs = {run.name: run for run in plan_runs()}
    steps = {name: study.recipe(run, 1)["training"]["max_steps"] for name, run in runs.items()}
    assert steps["videos_all"] == steps["videos_half"] == steps["videos_none"] == 2978  # 60 * 794 / 16
    assert steps["moves_long"] == steps["outfits_long"] == steps["moments_all_long"] == 2978
    assert (steps["moves"], steps["outfits"], steps["moments_all"]) == (300, 878, 1800)  # 60 epochs of each
    assert steps["images_1"] == steps["images_0.5"] == steps["videos_all_few"] == steps["small_encoder"] == 2978
    for name in ("moves_long", "moves", "videos_all"):
        assert steps[f"sgd_{name}"] == steps[name]
    rows = {recipe["training"]["per_device_train_batch_size"] for recipe in recipes_of(study, "training").values()}
    assert rows == {16}


def recipes_of(study: Study, stage: str) -> dict[str, dict]:
    return {run.name: study.recipe(run, study.seeds[0]) for run in plan_runs() if run.stage == stage}


def test_the_learning_rate_drops_at_the_same_parts_of_each_training(tmp_path):
    study = Study(output=tmp_path, scale=CPU, seeds=(1,))
    runs = {run.name: run for run in plan_runs()}
    for name, recipe in recipes_of(study, "training").items():
        training = recipe["training"]
        steps_per_epoch = -(-CPU.num_rows(*runs[name].datasets) // 16)
        drops = [
            round(epoch * steps_per_epoch) / training["max_steps"] for epoch in training["learning_rate_drop_epochs"]
        ]
        np.testing.assert_allclose(drops, [11 / 20, 15 / 20], atol=0.01)


def test_runs_differ_in_nothing_but_what_they_compare(tmp_path):
    study = Study(output=tmp_path, scale=CPU, seeds=(1,))
    recipes = recipes_of(study, "training")
    weighted, together = recipes["images_0.5"], recipes["images_1"]
    assert [entry["weight"] for entry in weighted["datasets"]] == [1.0, 1.0, 1.0, 0.5]
    assert [entry["weight"] for entry in together["datasets"]] == [1.0, 1.0, 1.0, 1.0]
    for recipe in (weighted, together):
        for entry in recipe["datasets"]:
            del entry["weight"]
        del recipe["training"]["output_dir"]
    assert weighted == together
    shared, others = recipes["videos_all"], recipes["videos_none"]
    assert shared["datasets"][:2] == others["datasets"][:2]
    for recipe in (shared, others):
        del recipe["datasets"], recipe["training"]["output_dir"]
    assert shared == others
    assert recipes["moves"]["model"] == recipes["moves_long"]["model"] == recipes["sgd_moves"]["model"]


def test_weights_that_adapt_are_the_only_difference_to_fixed_ones(tmp_path):
    recipes = recipes_of(Study(output=tmp_path, scale=CPU, seeds=(1,)), "training")
    adapting, fixed = recipes["equal_all"], recipes["videos_all"]
    assert adapting["mixture"] == {**fixed["mixture"], "weights": "equal_updates"}
    for recipe in (adapting, fixed):
        del recipe["mixture"], recipe["training"]["output_dir"]
    assert adapting == fixed


def test_a_mixture_is_diagnosed_as_it_is_trained(tmp_path):
    study = Study(output=tmp_path, scale=CPU, seeds=(1,))
    trained, diagnosed = recipes_of(study, "training"), recipes_of(study, "diagnosis")
    assert {name.removeprefix("diagnosis_of_") for name in diagnosed} <= set(trained)
    for name, recipe in diagnosed.items():
        expected = trained[name.removeprefix("diagnosis_of_")]
        assert (recipe["datasets"], recipe["mixture"]) == (expected["datasets"], expected["mixture"])
        assert recipe["training"]["learning_rate"] == expected["training"]["learning_rate"]
        assert recipe["training"]["max_steps"] == CPU.diagnosed_steps


def test_a_run_may_have_more_in_its_mixture(tmp_path):
    run = Run(name="other", datasets={"outfits": 1.0, "moves": 1.0}, mixture={"when_exhausted": "stop"})
    recipe = Study(output=tmp_path, scale=CPU, seeds=(1,)).recipe(run, 1)
    assert recipe["mixture"] == {"sampling": "proportional", "when_exhausted": "stop"}


def test_runs_beside_the_main_table_are_for_the_first_seeds(tmp_path):
    tasks = [(run.name, seed) for run, seed in Study(output=tmp_path, scale=CPU, seeds=(5, 3, 9, 7)).tasks()]
    assert len(set(tasks)) == len(tasks)
    assert [seed for name, seed in tasks if name == "moves_long"] == [5, 3, 9, 7]
    assert [seed for name, seed in tasks if name == "images_1"] == [5, 3, 9]


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
    done = {("pretrained", 0): study.do(runs["pretrained"], 0), ("videos_all", 1): study.do(runs["videos_all"], 1)}
    assert study.finished() == done
    for measure in ("top1", "trained_on", "reversed"):
        assert set(done["videos_all", 1][measure]) == {"outfits", "moves", MOMENTS["all"]}
    assert set(done["videos_all", 1]["motion"]) == {MOMENTS["all"]}


def test_what_is_right_of_a_label_is_told_apart():
    labels = list(LABELS[MOMENTS["all"]])
    targets = np.array([labels.index(name) for name in ("coat, east then east", "dress, west then rests")])
    predicted = np.array([labels.index(name) for name in ("coat, west then rests", "coat, west then rests")])
    found = accuracies(MOMENTS["all"], predicted, targets)
    assert found == {"top1": 0.0, "kind": 0.5, "motion": 0.5}
    labels = list(LABELS["moves"])
    targets = np.array(
        [labels.index(SHARED_MOVES[0]), labels.index("right, then left"), labels.index(SHARED_MOVES[1])]
    )
    predicted = np.array([targets[0], targets[1], targets[0]])
    found = accuracies("moves", predicted, targets)
    assert found == {"top1": 2 / 3, "shared": 0.5, "others": 1.0}


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


def diagnosis_of(names: list[str], cosine: float = 0.1, effect: float = -0.01) -> dict:
    """What a diagnosis has of datasets that all help each other alike."""
    return {
        "datasets": names,
        "signal_cosine": {name: {other: {"mean": cosine} for other in names} for name in names},
        "effect": {name: {other: {"mean": effect} for other in names} for name in names},
    }


def made_up(changes: dict[str, dict[str, float]], seeds: int = 2) -> Results:
    """Half of everything right in each run, but for what is given: of a run and dataset, for each seed 0.01 more."""

    def of_seed(seed: int) -> dict:
        figures = {}
        for run in plan_runs():
            names = (*run.datasets, "moves")
            measured = dict.fromkeys(names, 0.5)
            measured |= {name: value + 0.01 * seed for name, value in changes.get(run.name, {}).items()}
            measures = ("top1", "trained_on", "reversed", "probed", "kind", "motion", "shared", "others")
            figures[run.name] = dict.fromkeys(measures, measured)
            if run.stage == "diagnosis":
                figures[run.name] = {"diagnosis": diagnosis_of(list(run.datasets))}
        return figures

    return Results([of_seed(seed) for seed in range(1, seeds + 1)])


def test_a_difference_is_one_within_each_seed():
    results = made_up({"videos_all": {"moves": 0.5}, "moves": {"moves": 0.24}, "moves_long": {"moves": 0.54}})
    del results.seeds[0]["images_1"]  # as of seeds for which not all is done
    np.testing.assert_allclose(gains(results, "moves", "epochs")["all"], [26, 26])
    np.testing.assert_allclose(gains(results, "moves", "epochs")["none"], [25, 24])
    np.testing.assert_allclose(gains(results, "moves", "steps")["all"], [-4, -4])
    assert "`moves`, together, against alone for as many steps: -5.5 ± 0.7 with none" in gain_sentences(results)
    assert "-4.0 ± 0.0 with all of the motions shared (a gain in no seed)." in gain_sentences(results)
    np.testing.assert_allclose(
        results.difference((1, "images_1", "moves", "top1"), (-1, "moves", "moves", "top1")), [24]
    )
    claims = {claim.text: str(claim) for claim in compare(made_up({"moves": {"moves": 0.24}}), CPU)[0].claims}
    assert claims["moves, with the other videos, all shared, over alone for as many epochs"] == (
        "**agrees**: moves, with the other videos, all shared, over alone for as many epochs: +3.4 in the paper, "
        "+24.5 ± 0.7 here (+25.0, +24.0)"
    )


@pytest.mark.parametrize(
    ("values", "sign", "found"),
    [([1.0, 2.0], 1, EVERY), ([1.0, -2.0], 1, SOME), ([1.0, 2.0], -1, NO), ([0.0, 0.0], 1, NO), ([0.0, 1.0], 1, SOME)],
)
def test_an_expectation_is_held_against_the_sign_of_every_seed(values, sign, found):
    assert agreement(np.array(values), sign) == found


def test_expectations_are_of_runs_that_there_are_and_come_out_either_way():
    results = made_up({})
    for expectation in EXPECTATIONS:
        np.testing.assert_allclose(results.difference(*expectation.terms), [0, 0], atol=1e-9)
        assert sum(sign for sign, *_ in expectation.terms) == 0
    expectation = EXPECTATIONS[0]
    assert expectation.verdict(made_up({"videos_all": {"moves": 0.7}})) == EVERY
    assert expectation.verdict(made_up({"videos_all": {"moves": 0.3}})) == NO
    assert expectation.verdict(made_up({"videos_all": {"moves": 0.485}})) == SOME


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
    """What each run has measured, and a digest of its weights, if it keeps any."""
    found = {}
    for path in (folder / OUTPUT / "runs").rglob("metrics.json"):
        content = json.loads(path.read_text())
        found[path.parent.name] = {
            key: content[key] for key in ("top1", "trained_on", "reversed", "probed", "diagnosis") if key in content
        }
        if (weights := path.parent / "model.safetensors").exists():
            found[path.parent.name]["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
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
        *("What comes out", "What was expected", "What the paper does not control for", "SGD"),
        *("Tables 3 and 5", "Table 6", "Table 2", "Section 3.2"),
        *("Figure 3 (a)", "Figure 3 (b)", "Figure 4", "Table 7"),
        *("What `cover diagnose` said beforehand", "Weights that adapt to the update"),
    ):
        assert sum(title.startswith(f"## {wanted}") for title in titles) == 1
    assert titles.index("## What comes out: gain against overlap and number of clips") == 0
    assert page.count("| the paper |") == 8
    assert page.count("| the miniature |") == 9
    for expectation in EXPECTATIONS:
        assert page.count(f"| {expectation.text} |") == 1
    measured = figures(finished)
    assert f"| moves → outfits | {100 * measured['moves_to_outfits']['top1']['outfits']:.1f} |" in page
    pictures = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(pictures) == 8
    for picture in pictures:
        with Image.open(report / picture) as image:
            assert image.width > 600


@pytest.mark.slow
def test_every_run_is_a_recipe_that_trains_by_itself(finished, tmp_path, monkeypatch, capsys):
    run = OUTPUT / "runs" / "seed_1" / "videos_half"
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
