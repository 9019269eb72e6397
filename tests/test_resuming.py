# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Checkpoints that are whole or not there, and runs that go on from them as if they had not been stopped."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_runs import (
    build_recipe,
    faults_of,
    finish,
    run_killed,
    run_whole,
    start,
    train,
    trained_batches,
    wait_for,
    write_data,
)
from modeling_cover import CoverForVideoClassification, CoverTrainer, CoverTrainingArguments, prepare_cotraining
from modeling_cover.recipe import Recipe
from modeling_cover.training.checkpoints import (
    CheckpointError,
    CheckpointWriter,
    checkpoints_in,
    newest_checkpoint,
    what_is_wrong,
)
from modeling_cover.training.preemption import PREEMPTED_EXIT_CODE, TrainingPreempted
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """The folder of a run that was not stopped."""
    return run_whole(folder, folder / "whole")


def make_trainer(folder: Path, output_dir: Path, recipe=None, **options) -> CoverTrainer:
    defaults = {"per_device_train_batch_size": 4, "max_steps": 6, "save_steps": 3, "report_to": "none"}
    args = CoverTrainingArguments(str(output_dir), use_cpu=True, disable_tqdm=True, **(defaults | options))
    torch.manual_seed(0)
    cotraining = prepare_cotraining(recipe or build_recipe(folder), args.seed, args.output_dir)
    return CoverTrainer(args=args, **cotraining.trainer_kwargs)


def with_validation(recipe: Recipe) -> Recipe:
    """The recipe with its videos evaluated as well."""
    videos, images = recipe.datasets
    videos = dataclasses.replace(videos, splits={**videos.splits, "validation": videos.splits["train"]})
    return dataclasses.replace(recipe, datasets=(videos, images))


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    """The folder of a run of 6 steps, with checkpoints at 3 and 6."""
    make_trainer(folder, folder / "finished").train()
    return folder / "finished"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


class TestKilledRuns:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_they_end_with_the_weights_and_the_samples_of_one_that_was_not_stopped(self, folder, whole, seed):
        run = folder / f"killed{seed}"
        run_killed(folder, run, kills=2, rng=random.Random(seed))
        assert faults_of(run, whole) == []

    def test_one_that_has_ended_trains_no_more(self, folder, whole):
        before = (whole / "trained-0.jsonl").read_text()
        train(folder, whole)
        assert (whole / "trained-0.jsonl").read_text() == before
        assert newest_checkpoint(whole).name == "checkpoint-24"

    def test_nothing_is_left_of_what_was_half_written(self, folder, whole):
        for name in (".incomplete-checkpoint-9", ".removed-checkpoint-3-0"):
            (whole / name).mkdir()
        train(folder, whole)
        assert [path.name for path in whole.iterdir() if path.name.startswith(".")] == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
    def test_one_that_is_told_to_stop_writes_a_checkpoint_and_the_same_command_goes_on_from_it(
        self, folder, whole, number
    ):
        run = folder / f"stopped{number}"
        run.mkdir()
        process = start(folder, run, save_steps=1000)
        trained = run / "trained-0.jsonl"
        assert wait_for(lambda: trained.exists() and len(trained.read_text().splitlines()) > 4, process)
        process.send_signal(number)
        assert process.wait(30) == PREEMPTED_EXIT_CODE
        steps = int(newest_checkpoint(run).name.removeprefix("checkpoint-"))
        assert steps == len(trained.read_text().splitlines())
        assert start(folder, run, save_steps=1000).wait(60) == 0
        assert faults_of(run, whole) == []


def labels_of_steps(run: Path, processes: int) -> dict[int, list[int]]:
    """The labels of each step, of all processes together."""
    labels = {}
    for (_, step), lines in sorted(trained_batches(run, processes).items()):
        (line,) = lines  # the same in each attempt
        labels.setdefault(step, []).extend(json.loads(line)["labels"])
    return {step: sorted(found) for step, found in labels.items()}


class TestTwoProcesses:
    """Each with half of the rows."""

    options = {"per_device_train_batch_size": 2}

    def test_killed_runs_end_as_one_that_was_not_stopped(self, folder):
        whole = run_whole(folder, folder / "whole2", 2, **self.options)
        run = folder / "killed2"
        run_killed(folder, run, kills=1, rng=random.Random(0), processes=2, **self.options)
        assert faults_of(run, whole, processes=2) == []

    def test_one_that_is_told_to_stop_stops_the_other_and_a_single_one_goes_on(self, folder, whole):
        run = folder / "stopped2"
        run.mkdir()
        process = start(folder, run, 2, **self.options, save_steps=1000)
        trained = run / "trained-1.jsonl"
        assert wait_for(lambda: trained.exists() and len(trained.read_text().splitlines()) > 2, process)
        os.kill(int((run / "1.pid").read_text()), signal.SIGTERM)
        assert process.wait(60) == 1  # torchrun's own; that of the processes is in its report
        log = run.with_suffix(".log").read_text()
        assert f"exitcode  : {PREEMPTED_EXIT_CODE}" in log
        assert newest_checkpoint(run) is not None
        before = labels_of_steps(run, 2)
        for number in range(2):
            (run / f"trained-{number}.jsonl").unlink()
        finish(start(folder, run), run)
        after = labels_of_steps(run, 1)
        assert min(after) == max(before) + 1
        assert {**before, **after} == labels_of_steps(whole, 1)

    def test_a_loss_that_is_not_finite_on_one_is_skipped_by_both(self, folder):
        run = folder / "poisoned2"
        run.mkdir()
        finish(start(folder, run, 2, **self.options, poisoned={"step": 2, "process": 1}, max_steps=4), run)
        weights = load_file(run / "final" / "model.safetensors")
        assert all(weight.isfinite().all() for weight in weights.values())
        (line,) = (run / "skipped_steps.jsonl").read_text().splitlines()
        assert json.loads(line)["step"] == 2


class TestAStalledProcess:
    options = {"per_device_train_batch_size": 2, "ddp_timeout": 20}

    def test_it_is_named_and_the_run_ends(self, folder):
        run = folder / "stalled"
        run.mkdir()
        process = start(folder, run, 2, **self.options, stalled={"step": 4, "process": 1})
        assert process.wait(90) == 1
        log = run.with_suffix(".log").read_text()
        assert "process 1 is behind the others, in step 4, forward pass" in log
        assert newest_checkpoint(run).name == "checkpoint-3"

    def test_so_is_one_that_does_not_move_at_all(self, folder):
        run = folder / "frozen"
        run.mkdir()
        process = start(folder, run, 2, **self.options, max_steps=1000)
        trained = run / "trained-1.jsonl"
        assert wait_for(lambda: trained.exists() and len(trained.read_text().splitlines()) > 4, process)
        os.kill(int((run / "1.pid").read_text()), signal.SIGSTOP)
        assert process.wait(120) == 1
        assert "process 1 does not answer any more" in run.with_suffix(".log").read_text()


def final_weights(trainer: CoverTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def resumed_from(whole: Path, step: int, output_dir: Path, folder: Path, recipe: Recipe, **options) -> CoverTrainer:
    """A run that has gone on from a checkpoint of another."""
    shutil.copytree(whole / f"checkpoint-{step}", output_dir / f"checkpoint-{step}")
    trainer = make_trainer(folder, output_dir, recipe, **options)
    trainer.train(resume_from_checkpoint="auto")
    return trainer


class TestGenerators:
    """Dropout and drop path draw from torch's generator: what happens beside the steps of training must not."""

    @pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}])
    def test_an_evaluation_after_a_checkpoint_changes_no_step(self, folder, tmp_path, options):
        """An epoch has 5 steps: the checkpoint of the last is written before the evaluation that the epoch ends with."""
        recipe = with_validation(build_recipe(folder))
        options = {"max_steps": 8, "save_steps": 5, "eval_strategy": "epoch", **options}
        trainer = make_trainer(folder, tmp_path / "whole", recipe, **options)
        trainer.train()
        resumed = resumed_from(tmp_path / "whole", 5, tmp_path / "resumed", folder, recipe, **options)
        torch.testing.assert_close(final_weights(resumed), final_weights(trainer), rtol=0, atol=0)

    def test_nor_do_workers_that_stay_through_the_epochs(self, folder, tmp_path):
        options = {"max_steps": 12, "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
        trainer = make_trainer(folder, tmp_path / "whole", **options)
        trainer.train()
        resumed = resumed_from(tmp_path / "whole", 3, tmp_path / "resumed", folder, build_recipe(folder), **options)
        torch.testing.assert_close(final_weights(resumed), final_weights(trainer), rtol=0, atol=0)

    def test_nothing_beside_the_steps_leaves_them_changed(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, with_validation(build_recipe(folder)), max_steps=1)
        trainer.train()

        def state() -> tuple:
            version, keys, *others = np.random.get_state()
            return random.getstate(), (version, keys.tolist(), others), torch.get_rng_state().tolist()

        class Draws(TrainerCallback):
            def on_log(self, args, state, control, **kwargs):
                random.random(), np.random.rand(), torch.rand(1)

            on_evaluate = on_predict = on_save = on_log

        trainer.add_callback(Draws())
        before = state()
        trainer.evaluate()
        assert state() == before
        trainer.predict(trainer.eval_dataset["videos"])
        assert state() == before
        trainer.control.should_log = trainer.control.should_save = trainer.control.should_evaluate = True
        trainer.state.global_step += 1
        trainer._maybe_log_save_evaluate(torch.tensor(0.0), None, trainer.model, None, 0, None, 0.0)
        assert state() == before
        torch.manual_seed(1)
        assert state() != before


class TestBeingToldToStop:
    def test_an_evaluation_that_is_cut_short_is_made_up_for(self, folder, tmp_path):
        options = {
            "recipe": with_validation(build_recipe(folder)),
            "eval_strategy": "steps",
            "eval_steps": 2,
            "per_device_eval_batch_size": 2,
        }
        expected = make_trainer(folder, tmp_path / "whole", **options)
        expected.train()

        class StopsInTheSecondEvaluation(TrainerCallback):
            def on_prediction_step(self, args, state, control, **kwargs):
                if state.global_step == 4:
                    os.kill(os.getpid(), signal.SIGTERM)

        stopped = make_trainer(folder, tmp_path / "stopped", **options)
        stopped.add_callback(StopsInTheSecondEvaluation())
        with pytest.raises(TrainingPreempted, match="checkpoint-4 is written"):
            stopped.train()
        resumed = make_trainer(folder, tmp_path / "stopped", **options)
        resumed.train(resume_from_checkpoint="auto")

        def evaluations(trainer):
            kept = [entry for entry in trainer.state.log_history if "eval_videos_top1" in entry]
            return [(entry["step"], entry["eval_videos_top1"], entry["eval_videos_loss"]) for entry in kept]

        assert [step for step, *_ in evaluations(resumed)] == [2, 4, 6]
        assert evaluations(resumed) == evaluations(expected)
        torch.testing.assert_close(final_weights(resumed), final_weights(expected), rtol=0, atol=0)

    def test_so_is_one_that_was_due_in_the_step(self, folder, tmp_path):
        options = {"recipe": with_validation(build_recipe(folder)), "eval_strategy": "steps", "eval_steps": 4}
        expected = make_trainer(folder, tmp_path / "whole", **options)
        expected.train()

        class StopsInTheStep(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)

        stopped = make_trainer(folder, tmp_path / "stopped", **options)
        stopped.add_callback(StopsInTheStep())
        with pytest.raises(TrainingPreempted, match="checkpoint-4 is written"):
            stopped.train()
        assert not any("eval_videos_loss" in entry for entry in stopped.state.log_history)
        resumed = make_trainer(folder, tmp_path / "stopped", **options)
        resumed.train(resume_from_checkpoint="auto")
        assert [entry["step"] for entry in resumed.state.log_history if "eval_videos_loss" in entry] == [4, 6]
        torch.testing.assert_close(final_weights(resumed), final_weights(expected), rtol=0, atol=0)

    def test_signals_are_what_they_were_after_training(self, folder, tmp_path):
        before = signal.getsignal(signal.SIGTERM)
        make_trainer(folder, tmp_path).train()
        assert signal.getsignal(signal.SIGTERM) is before


class TestCheckpoints:
    def test_each_is_a_model_and_all_else_that_a_run_needs_without_a_pickle(self, finished):
        model = CoverForVideoClassification.from_pretrained(finished / "checkpoint-6")
        assert model.config.head_names == ["images", "videos"]
        names = {file.name for file in (finished / "checkpoint-6").rglob("*") if file.is_file()}
        assert {"state.json", "optimizer.safetensors", "rng.safetensors", "quarantine.jsonl"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]

    @pytest.mark.parametrize(
        ("damage", "fault"),
        [
            (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
            (lambda path: os.truncate(path / "training_state/optimizer.safetensors", 100), "has 100 bytes, expected"),
            (lambda path: (path / "training_state/state.json").unlink(), "state.json cannot be read"),
            (lambda path: os.truncate(path / "training_state/state.json", 50), "state.json cannot be read"),
        ],
    )
    def test_one_that_is_damaged_is_left_aside(self, folder, run, damage, fault, caplog):
        damage(run / "checkpoint-6")
        assert newest_checkpoint(run) == run / "checkpoint-3"
        assert fault in caplog.text
        with pytest.raises(CheckpointError, match=f"checkpoint-6 is no whole checkpoint: .*{fault}"):
            make_trainer(folder, run).train(resume_from_checkpoint=str(run / "checkpoint-6"))
        trainer = make_trainer(folder, run)
        trainer.train(resume_from_checkpoint="auto")
        assert what_is_wrong(run / "checkpoint-6") is None

    def test_the_oldest_go_and_never_the_newest_nor_the_best(self, tmp_path):
        writer = CheckpointWriter(tmp_path)
        for step in (2, 10, 4, 6):
            writer.path(step).mkdir()
        writer.keep(2, best=writer.path(2))
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10", "checkpoint-2"]
        writer.keep(1, best=writer.path(2))
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10", "checkpoint-2"]
        writer.keep(1)
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10"]

    def test_a_run_that_has_ended_keeps_its_newest_beside_the_best(self, folder, tmp_path):
        options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.0, "max_steps": 3}
        options |= {"load_best_model_at_end": True, "save_total_limit": 1}
        make_trainer(folder, tmp_path, with_validation(build_recipe(folder)), **options).train()
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-3", "checkpoint-1"]

    def test_early_stopping_goes_on_counting_and_what_it_has_stopped_stays_so(self, folder, tmp_path):
        recipe = with_validation(build_recipe(folder))
        options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.0, "max_steps": 9}
        options |= {"load_best_model_at_end": True, "save_total_limit": 9}

        def trained(output_dir: Path) -> int:
            trainer = make_trainer(folder, output_dir, recipe, **options)
            trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=3))
            trainer.train(resume_from_checkpoint="auto")
            return trainer.state.global_step

        assert trained(tmp_path) == 4  # the first is the best: nothing gets better
        assert trained(tmp_path) == 4
        shutil.rmtree(tmp_path / "checkpoint-4")
        assert trained(tmp_path) == 4

    def test_a_disk_that_is_full_is_named_and_the_last_checkpoint_stays(self, folder, run):
        """The limit on the size of a file stands in for the disk: the write fails just so."""
        script = (
            "import resource, signal, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
            "from test_resuming import make_trainer\n"
            "trainer = make_trainer(Path(sys.argv[2]), Path(sys.argv[3]), max_steps=9)\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
            "trainer.train(resume_from_checkpoint='auto')\n"
        )
        finished = subprocess.run(
            [sys.executable, "-c", script, str(Path(__file__).parent), str(folder), str(run)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert finished.returncode == 1
        assert "checkpoint-9 cannot be written" in finished.stderr
        assert f"The last whole checkpoint is {run / 'checkpoint-6'}." in finished.stderr
        assert newest_checkpoint(run) == run / "checkpoint-6"
        assert not list(run.glob(".incomplete-*"))


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "differences"),
        [
            ({"seed": 1}, ["seed: 42 in the checkpoint, 1 now"]),
            (
                {"per_device_train_batch_size": 6},
                [r"rows of an optimizer step: 4 in the checkpoint, 6 now \(per_device_train_batch_size x"],
            ),
        ],
    )
    def test_a_checkpoint_of_another_run_is_refused_with_what_differs(self, folder, run, options, differences):
        with pytest.raises(CheckpointError) as error:
            make_trainer(folder, run, **options).train(resume_from_checkpoint="auto")
        for difference in ["is of another run", "restart_schedule", *differences]:
            assert error.match(difference)

    def test_so_is_one_with_other_heads_and_data(self, folder, run):
        recipe = build_recipe(folder)
        more = dataclasses.replace(recipe.datasets[0], name="more")
        fewer = dataclasses.replace(recipe.datasets[1], sizes={"train": 11})
        changed = dataclasses.replace(recipe, datasets=(more, fewer))
        with pytest.raises(CheckpointError) as error:
            make_trainer(folder, run, changed).train(resume_from_checkpoint="auto")
        for difference in (
            "heads: 'more' is not in the checkpoint",
            "heads: 'videos' is only in the checkpoint",
            "data sets: 'more' is not in the checkpoint",
            "data set 'images': 12 rows in the checkpoint, 11 now",
        ):
            assert error.match(difference)

    def test_its_weights_may_be_taken_and_the_schedule_started_anew(self, folder, run, tmp_path):
        recipe = build_recipe(folder)
        more = dataclasses.replace(recipe.datasets[0], name="more")
        changed = dataclasses.replace(recipe, datasets=(recipe.datasets[1], more))
        options = {"restart_schedule": True, "learning_rate": 0.0, "max_steps": 3}
        trainer = make_trainer(folder, tmp_path / "new", changed, **options)
        heads = {name: weight.clone() for name, weight in trainer.model.classifiers["more"].state_dict().items()}
        trainer.train(resume_from_checkpoint=run / "checkpoint-6")
        assert trainer.state.global_step == 3
        old = CoverForVideoClassification.from_pretrained(run / "checkpoint-6").state_dict()
        for name, weight in trainer.model.state_dict().items():
            expected = heads[name.split(".")[-1]] if name.startswith("classifiers.more") else old[name]
            assert torch.equal(weight, expected), name
        # The same command goes on from its own checkpoints.
        again = make_trainer(folder, tmp_path / "new", changed, **(options | {"max_steps": 4}))
        again.train(resume_from_checkpoint=run / "checkpoint-6")
        assert again._initial_global_step == 3

    def test_restarting_needs_weights_and_a_folder_of_its_own(self, folder, run):
        with pytest.raises(CheckpointError, match="say whose weights to take"):
            make_trainer(folder, run, restart_schedule=True).train(resume_from_checkpoint="auto")
        trainer = make_trainer(folder, run, restart_schedule=True, seed=1)
        with pytest.raises(CheckpointError, match="in an output_dir of its own"):
            trainer.train(resume_from_checkpoint=str(run / "checkpoint-6"))

    def test_a_new_run_among_the_checkpoints_of_another_is_refused(self, folder, run):
        with pytest.raises(CheckpointError, match="has checkpoints of an earlier run, such as checkpoint-6"):
            make_trainer(folder, run).train()

    def test_true_asks_for_a_checkpoint_that_there_is(self, folder, tmp_path):
        with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
            make_trainer(folder, tmp_path).train(resume_from_checkpoint=True)

    def test_a_folder_that_cannot_be_written_to_is_found_before_anything_is_trained(self, folder, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match=r"output_dir .*file/run: checkpoints cannot be written there"):
            make_trainer(folder, tmp_path / "file" / "run")
