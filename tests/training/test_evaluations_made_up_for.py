# SPDX-License-Identifier: Apache-2.0
"""A run that is told to stop before or within an evaluation makes up for it when it resumes, and ends as another."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import build_recipe
from modeling_cover import CoverTrainer, Recipe
from modeling_cover.hub.hashes import file_hashes
from modeling_cover.training.stop_signals import TrainingPreempted
from short_runs import final_weights, make_trainer, with_validation
from transformers import EarlyStoppingCallback, TrainerCallback


class StopsIn(TrainerCallback):
    """Tells the run to stop at an event after so many steps."""

    def __init__(self, event: str, step: int):
        self.step = step
        setattr(self, event, self.stop)

    def stop(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def evaluated_steps(trainer: CoverTrainer, metric: str = "eval_mean_score") -> list[tuple[int, float]]:
    return [(entry["step"], entry[metric]) for entry in trainer.state.log_history if metric in entry]


def both_evaluated(recipe: Recipe) -> Recipe:
    datasets = [
        dataclasses.replace(dataset, splits={**dataset.splits, "validation": dataset.splits["train"]})
        for dataset in recipe.datasets
    ]
    return dataclasses.replace(recipe, datasets=tuple(datasets))


def stopped_and_resumed(
    folder: Path, place: Path, event: str, step: int, **options: Any
) -> tuple[CoverTrainer, CoverTrainer]:
    """A run that is told to stop there and resumed, and one that is not."""
    expected = make_trainer(folder, place / "whole", **options)
    expected.train()
    stopped = make_trainer(folder, place / "stopped", **options)
    stopped.add_callback(StopsIn(event, step))
    with pytest.raises(TrainingPreempted):
        stopped.train()
    resumed = make_trainer(folder, place / "stopped", **options)
    resumed.train(resume_from_checkpoint="auto")
    return resumed, expected


class TestMadeUpFor:
    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            pytest.param({"eval_strategy": "steps", "eval_steps": 4}, [4, 6], id="the last step"),
            pytest.param({"eval_strategy": "epoch"}, [5, 6], id="an epoch that is cut short"),
        ],
    )
    def test_the_evaluation_of_the_end(self, folder, tmp_path, options, steps):
        options = {"recipe": with_validation(build_recipe(folder)), "logging_strategy": "epoch", **options}
        resumed, expected = stopped_and_resumed(folder, tmp_path, "on_step_begin", 5, **options)
        assert [step for step, _ in evaluated_steps(resumed)] == steps
        assert evaluated_steps(resumed) == evaluated_steps(expected)
        assert dict(evaluated_steps(resumed, "loss")) == pytest.approx(dict(evaluated_steps(expected, "loss")))

    def test_all_datasets_of_one_that_is_stopped_between_two(self, folder, tmp_path):
        options = {"recipe": both_evaluated(build_recipe(folder)), "eval_strategy": "steps", "eval_steps": 2}
        resumed, expected = stopped_and_resumed(folder, tmp_path, "on_evaluate", 4, **options)
        assert [step for step, _ in evaluated_steps(resumed)] == [2, 4, 6]
        for metric in ("eval_mean_score", "eval_videos_top1", "eval_images_top1"):
            assert evaluated_steps(resumed, metric) == evaluated_steps(expected, metric)

    def test_the_checkpoint_of_its_step_stays_as_it_is_where_the_best_are_kept(self, folder, tmp_path):
        options = {"recipe": with_validation(build_recipe(folder)), "save_strategy": "best"}
        options |= {"eval_strategy": "steps", "eval_steps": 4}
        expected = make_trainer(folder, tmp_path / "whole", **options)
        expected.train()
        stopped = make_trainer(folder, tmp_path / "stopped", **options)
        stopped.add_callback(StopsIn("on_step_begin", 3))
        with pytest.raises(TrainingPreempted):
            stopped.train()
        checkpoint = tmp_path / "stopped" / "checkpoint-4"
        files = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
        before = file_hashes(checkpoint, files)
        resumed = make_trainer(folder, tmp_path / "stopped", **options)
        resumed.train(resume_from_checkpoint="auto")
        assert file_hashes(checkpoint, files) == before
        assert resumed.state.best_model_checkpoint == expected.state.best_model_checkpoint.replace("whole", "stopped")
        torch.testing.assert_close(final_weights(resumed), final_weights(expected), rtol=0, atol=0)

    def test_the_best_checkpoint_may_be_one_elsewhere(self, folder, tmp_path):
        options = {"recipe": with_validation(build_recipe(folder)), "eval_strategy": "steps", "eval_steps": 4}
        options |= {"load_best_model_at_end": True, "save_steps": 4, "learning_rate": 0.0}
        stopped = make_trainer(folder, tmp_path / "stopped", **options)
        stopped.add_callback(StopsIn("on_step_begin", 3))
        with pytest.raises(TrainingPreempted):
            stopped.train()
        elsewhere = shutil.move(tmp_path / "stopped" / "checkpoint-4", tmp_path / "elsewhere")
        resumed = make_trainer(folder, tmp_path / "resumed", **options)
        resumed.train(resume_from_checkpoint=elsewhere)
        assert (resumed.state.best_global_step, resumed.state.best_model_checkpoint) == (4, str(elsewhere))


class TestCallbacks:
    def test_all_of_them_hear_of_the_last_checkpoint(self, folder, tmp_path):
        saved = []

        class Hears(TrainerCallback):
            def on_save(self, args, state, control, **kwargs):
                saved.append(state.global_step)

        trainer = make_trainer(folder, tmp_path)
        trainer.add_callback(StopsIn("on_step_begin", 3))
        trainer.add_callback(Hears())
        with pytest.raises(TrainingPreempted):
            trainer.train()
        assert saved == [3, 4]

    def test_a_run_that_was_stopped_early_trains_on_where_callbacks_start_again(self, folder, tmp_path):
        options = {"recipe": with_validation(build_recipe(folder)), "eval_strategy": "steps", "eval_steps": 1}
        options |= {"load_best_model_at_end": True, "save_steps": 1, "learning_rate": 0.0}
        stopped = make_trainer(folder, tmp_path, **options)
        stopped.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
        stopped.train()
        assert stopped.state.global_step == 3
        options |= {"restore_callback_states_from_checkpoint": False, "learning_rate": 1e-4}
        resumed = make_trainer(folder, tmp_path, **options)
        resumed.train(resume_from_checkpoint="auto")
        assert resumed.state.global_step == 6
