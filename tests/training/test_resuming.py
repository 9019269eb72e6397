# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there, and runs that go on from them as if they had not been stopped."""

import dataclasses
import json
import os
import random
import signal
from pathlib import Path

import forked_runs
import pytest
import torch
from killed_runs import (
    TIME_LIMIT,
    build_recipe,
    faults_of,
    finish,
    run_killed,
    run_whole,
    start,
    train,
    trained_batches,
    wait_for,
)
from modeling_cover import CoverForVideoClassification
from modeling_cover.training.checkpoints import CheckpointError, newest_checkpoint
from modeling_cover.training.folder_lock import LOCK_NAME
from modeling_cover.training.stop_signals import PREEMPTED_EXIT_CODE, TrainingPreempted
from safetensors.torch import load_file
from short_runs import final_weights, make_trainer, with_validation
from transformers import EarlyStoppingCallback, TrainerCallback


# Processes are forked; some are started as a user starts them.
FORKED = {"launch": forked_runs.start, "workers": (0,)}
STARTED = {"launch": start, "workers": (2, 0)}


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """The folder of a run that was not stopped."""
    return run_whole(folder, folder / "whole", launch=forked_runs.start)


@pytest.mark.slow
class TestKilledRuns:
    @pytest.mark.parametrize(("seed", "kills", "workers"), [(0, 2, (0,)), (1, 1, (2,))])
    def test_they_end_with_the_weights_and_the_samples_of_one_that_was_not_stopped(
        self, folder, whole, seed, kills, workers
    ):
        run = folder / f"killed{seed}"
        how = {"kills": kills, "workers": workers, "rng": random.Random(seed)}
        run_killed(folder, run, launch=forked_runs.start, **how)
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
        assert [path.name for path in whole.iterdir() if path.name.startswith(".")] == [LOCK_NAME]

    @pytest.mark.parametrize(
        ("number", "launch"),
        [(signal.SIGTERM, forked_runs.start), (signal.SIGUSR1, start)],
    )
    def test_one_that_is_told_to_stop_writes_a_checkpoint_and_the_same_command_goes_on_from_it(
        self, folder, whole, number, launch
    ):
        run = folder / f"stopped{number}"
        run.mkdir()
        process = launch(folder, run, save_steps=1000)
        trained = run / "trained-0.jsonl"
        assert wait_for(lambda: trained.exists() and len(trained.read_text().splitlines()) > 4, process)
        process.send_signal(number)
        assert process.wait(TIME_LIMIT) == PREEMPTED_EXIT_CODE
        steps = int(newest_checkpoint(run).name.removeprefix("checkpoint-"))
        assert steps == len(trained.read_text().splitlines())
        assert forked_runs.start(folder, run, save_steps=1000).wait(TIME_LIMIT) == 0
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

    @pytest.fixture(scope="class")
    def whole_of_two(self, folder) -> Path:
        return run_whole(folder, folder / "whole_of_two", 2, launch=forked_runs.start, **self.options)

    @pytest.mark.slow
    @pytest.mark.parametrize("how", [FORKED, STARTED], ids=["forked", "started"])
    def test_killed_runs_end_as_one_that_was_not_stopped(self, folder, whole_of_two, tmp_path, how):
        run = tmp_path / "killed"
        run_killed(folder, run, kills=1, rng=random.Random(0), processes=2, **how, **self.options)
        assert faults_of(run, whole_of_two, processes=2) == []

    @pytest.mark.slow
    def test_one_that_is_told_to_stop_stops_the_other_and_a_single_one_goes_on(self, folder, whole):
        run = folder / "stopped2"
        run.mkdir()
        process = start(folder, run, 2, **self.options, save_steps=1000)
        trained = run / "trained-1.jsonl"
        assert wait_for(lambda: trained.exists() and len(trained.read_text().splitlines()) > 2, process)
        os.kill(int((run / "1.pid").read_text()), signal.SIGTERM)
        assert process.wait(TIME_LIMIT) == 1  # torchrun's own; that of the processes is in its report
        log = run.with_suffix(".log").read_text()
        assert f"exitcode  : {PREEMPTED_EXIT_CODE}" in log
        assert newest_checkpoint(run) is not None
        before = labels_of_steps(run, 2)
        for number in range(2):
            (run / f"trained-{number}.jsonl").unlink()
        finish(forked_runs.start(folder, run), run)
        after = labels_of_steps(run, 1)
        assert min(after) == max(before) + 1
        assert {**before, **after} == labels_of_steps(whole, 1)

    @pytest.mark.slow
    def test_a_loss_that_is_not_finite_on_one_is_skipped_by_both(self, folder):
        run = folder / "poisoned2"
        run.mkdir()
        finish(
            forked_runs.start(folder, run, 2, **self.options, poisoned={"step": 2, "process": 1}, max_steps=4),
            run,
        )
        weights = load_file(run / "final" / "model.safetensors")
        assert all(weight.isfinite().all() for weight in weights.values())
        (line,) = (run / "skipped_steps.jsonl").read_text().splitlines()
        assert json.loads(line)["step"] == 2


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

    @pytest.mark.parametrize("step", [2, 3, 4])  # the second is one of those evaluated, [3, 6]
    def test_a_share_of_all_steps_is_as_many_of_them_where_it_resumes(self, folder, tmp_path, step):
        options = {"recipe": with_validation(build_recipe(folder)), "eval_strategy": "steps", "eval_steps": 0.5}

        class StopsInTheStep(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == step - 1:
                    os.kill(os.getpid(), signal.SIGTERM)

        stopped = make_trainer(folder, tmp_path, **options)
        stopped.add_callback(StopsInTheStep())
        with pytest.raises(TrainingPreempted, match=f"checkpoint-{step} is written"):
            stopped.train()
        resumed = make_trainer(folder, tmp_path, **options)
        resumed.train(resume_from_checkpoint="auto")
        assert [entry["step"] for entry in resumed.state.log_history if "eval_videos_loss" in entry] == [3, 6]

    def test_nor_is_a_step_taken_after_one_that_ends_the_run(self, folder, tmp_path):
        options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.0}
        options |= {"load_best_model_at_end": True, "recipe": with_validation(build_recipe(folder))}

        class StopsInTheThirdStep(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

        def trained(*callbacks: TrainerCallback) -> int:
            trainer = make_trainer(folder, tmp_path, **options)
            for callback in (EarlyStoppingCallback(early_stopping_patience=2), *callbacks):
                trainer.add_callback(callback)
            trainer.train(resume_from_checkpoint="auto")
            return trainer.state.global_step

        with pytest.raises(TrainingPreempted, match="checkpoint-3 is written"):
            trained(StopsInTheThirdStep())
        assert trained() == 3  # whose evaluation is the second that is no better

    def test_signals_are_what_they_were_after_training(self, folder, tmp_path):
        before = signal.getsignal(signal.SIGTERM)
        make_trainer(folder, tmp_path).train()
        assert signal.getsignal(signal.SIGTERM) is before


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
            "datasets: 'more' is not in the checkpoint",
            "dataset 'images': 12 rows in the checkpoint, 11 now",
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
        # The same command resumes from its own checkpoints.
        again = make_trainer(folder, tmp_path / "new", changed, **(options | {"max_steps": 4}))
        again.train(resume_from_checkpoint=run / "checkpoint-6")
        assert again.resumed_from.endswith("checkpoint-3")

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
        with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
            make_trainer(folder, tmp_path).train(resume_from_checkpoint=True)

    def test_a_folder_that_cannot_be_written_to_is_found_before_anything_is_trained(self, folder, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match=r"output_dir .*file/run: checkpoints cannot be written there"):
            make_trainer(folder, tmp_path / "file" / "run")
