# SPDX-License-Identifier: Apache-2.0
"""A run that goes on with other settings than it began with: they are used and told apart, or refused by name."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from killed_runs import build_recipe
from modeling_cover import CoverTrainer
from modeling_cover.hub.model_card import build_model_card
from modeling_cover.hub.run_record import read_summary
from modeling_cover.recipe.recipe import Recipe
from modeling_cover.training.checkpoints import STATE_VERSION, CheckpointError
from modeling_cover.training.run_settings import changed_settings, differing_parts, joined_parts
from short_runs import seal
from tiny import tiny_trainer
from transformers import TrainerCallback


@pytest.fixture(scope="module")
def recipe(folder) -> Recipe:
    return build_recipe(folder)


def make_trainer(recipe: Recipe, output_dir: Path, **options) -> CoverTrainer:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-3,
    }
    return tiny_trainer(recipe, output_dir, **{**defaults, **options})


@pytest.fixture(scope="module")
def stopped(recipe, tmp_path_factory) -> Path:
    """The folder of a run of 6 steps, of which 3 were taken."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    make_trainer(recipe, run).train()
    shutil.rmtree(run / "checkpoint-6")
    return run


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def go_on(recipe: Recipe, run: Path, **options) -> CoverTrainer:
    trainer = make_trainer(recipe, run, **options)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    return trainer


def weights(trainer: CoverTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def rates(trainer: CoverTrainer) -> list[float]:
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


class TestWhatMayChange:
    def test_a_weight_that_was_stored_in_fp32_has_not_changed(self):
        was = {"weight of 'videos'": torch.tensor(0.1).item(), "seed": 1}
        assert changed_settings(was, {"weight of 'videos'": 0.1, "seed": 1}) == []
        assert changed_settings(was, {"weight of 'videos'": 0.1001, "seed": 2}) == ["weight of 'videos'", "seed"]

    def test_another_learning_rate_is_used_from_the_next_step_on(self, recipe, run, tmp_path):
        """As a run does that was not stopped, and whose rate drops there."""
        resumed = go_on(recipe, run, learning_rate=1e-4)
        # 18 rows in steps of 4: an epoch is 5 steps.
        whole = make_trainer(recipe, tmp_path / "whole", learning_rate_drop_epochs=[3 / 5])
        whole.train()
        assert rates(resumed) == rates(whole) == [1e-3] * 3 + [1e-4] * 3
        for name, weight in weights(whole).items():
            torch.testing.assert_close(weights(resumed)[name], weight, rtol=0, atol=0)

    def test_another_schedule_goes_on_from_the_step(self, recipe, run):
        trainer = go_on(recipe, run, lr_scheduler_type="linear", learning_rate=2e-3)
        assert rates(trainer)[3:] == pytest.approx([2e-3 * left / 6 for left in (3, 2, 1)])

    @pytest.mark.parametrize("settings", [{"weight_decay": 0.5}, {"layer_decay": 0.5}, {"adam_beta1": 0.5}])
    def test_optimizer_settings_are_those_of_now_and_its_state_is_that_of_the_checkpoint(self, recipe, run, settings):
        trainer, seen = make_trainer(recipe, run, **settings), []

        class Look(TrainerCallback):
            def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
                groups = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
                seen.append((groups, {float(state["step"]) for state in optimizer.state.values()}))

        trainer.add_callback(Look())
        trainer.train(resume_from_checkpoint="auto")
        groups, steps = seen[0]
        fresh = make_trainer(recipe, run.parent / "fresh", **settings).create_optimizer().param_groups
        assert len(groups) == len(fresh) > 1 or "adam_beta1" in settings
        for group, expected in zip(groups, fresh, strict=True):
            assert group["params"] == len(expected["params"])
            assert list(group["betas"]) == list(expected["betas"])
            for key in ("lr", "weight_decay", "eps"):
                assert group[key] == expected[key]
        assert steps == {3.0}

    def test_another_loss_weight_and_augmentation_are_used(self, recipe, run):
        videos, images = recipe.datasets
        other = dataclasses.replace(
            recipe, datasets=(dataclasses.replace(videos, weight=0.0, horizontal_flip=False), images)
        )
        trainer = go_on(other, run)
        # The loss of a step is that of images alone.
        logs = [entry for entry in trainer.state.log_history[3:] if "images_loss" in entry]
        assert [entry["loss"] for entry in logs] == pytest.approx([entry["images_loss"] for entry in logs], rel=1e-3)
        first, second = read_summary(run)["parts"]
        assert [part["settings"]["weight of 'videos'"] for part in (first, second)] == [1.0, 0.0]
        assert second["settings"]["augmentation of 'videos'"]["horizontal_flip"] is False

    def test_fp16_may_be_left(self, recipe, run):
        """A scaler's state without a scaler is left aside."""
        path = run / "checkpoint-3" / "training_state" / "state.json"
        text = path.read_text()
        path.write_text(text.replace('"gradient_scaler": null', '"gradient_scaler": {"scale": 2.0}'))
        seal(run / "checkpoint-3")
        assert go_on(recipe, run).state.global_step == 6


class TestWhatMayNot:
    @pytest.mark.parametrize(
        ("settings", "difference"),
        [
            ({"optim": "sgd"}, "optim: adamw_torch_fused in the checkpoint, sgd now"),
            ({"trained_part": "heads"}, "trained_part: all in the checkpoint, heads now"),
            ({"optim_args": "momentum=0.9"}, "optim_args: not set in the checkpoint, momentum=0.9 now"),
        ],
    )
    def test_an_argument_that_the_state_is_not_made_for_is_refused_with_both_values(
        self, recipe, run, settings, difference
    ):
        with pytest.raises(CheckpointError, match=difference):
            go_on(recipe, run, **settings)

    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            ({"clips": {"num_frames": 4}}, "num_frames: 2 in the checkpoint, 4 now"),
            ({"clips": {"image_size": 8}}, "image_size: 16 in the checkpoint, 8 now"),
            ({"model": {"hidden_act": "relu"}}, "hidden_act: gelu in the checkpoint, relu now"),
            ({"model": {"num_hidden_layers": 1}}, "num_hidden_layers: 2 in the checkpoint, 1 now"),
        ],
    )
    def test_so_is_another_model(self, recipe, run, changes, difference):
        other = dataclasses.replace(
            recipe,
            clips=dataclasses.replace(recipe.clips, **changes.get("clips", {})),
            model={**recipe.model, **changes.get("model", {})},
        )
        with pytest.raises(CheckpointError, match=difference):
            go_on(other, run)

    def test_a_rate_that_is_in_the_state_of_a_measuring_schedule_is_refused(self, recipe, run):
        with pytest.raises(CheckpointError, match="lr_scheduler_type: constant in the checkpoint, reduce_lr_on_plat"):
            go_on(recipe, run, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps")

    def test_another_metric_of_the_best_is_refused(self, recipe, tmp_path):
        best = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
        make_trainer(recipe, tmp_path / "run", max_steps=3, **best).train()
        with pytest.raises(
            CheckpointError, match="metric_for_best_model: eval_mean_score in the checkpoint, eval_videos_loss now"
        ):
            go_on(recipe, tmp_path / "run", metric_for_best_model="eval_videos_loss", **best)

    def test_a_checkpoint_of_an_earlier_version_is_refused(self, recipe, run):
        path = run / "checkpoint-3" / "training_state" / "state.json"
        path.write_text(path.read_text().replace(f'"version": {STATE_VERSION}', '"version": 1'))
        with pytest.raises(CheckpointError, match="another version of this package"):
            go_on(recipe, run)


class TestAFinishedRun:
    @pytest.mark.parametrize("settings", [{"learning_rate": 1e-5}, {"max_steps": 3}, {"weight_decay": 0.5}])
    def test_what_would_change_nothing_any_more_is_refused(self, recipe, tmp_path, settings):
        make_trainer(recipe, tmp_path / "run", max_steps=4).train()
        (name,) = settings
        with pytest.raises(CheckpointError, match=f"would train nothing with what is other now:\n  {name}: "):
            go_on(recipe, tmp_path / "run", **({"max_steps": 4} | settings))

    def test_so_is_another_weight_of_the_recipe(self, recipe, run):
        go_on(recipe, run)
        videos, images = recipe.datasets
        other = dataclasses.replace(recipe, datasets=(dataclasses.replace(videos, weight=0.5), images))
        with pytest.raises(CheckpointError, match=r"weight of 'videos': 1\.0 in the checkpoint, 0.5 now"):
            go_on(other, run)

    def test_what_decides_nothing_may_be_other(self, recipe, run):
        go_on(recipe, run)
        again = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 2}
        assert go_on(recipe, run, **again).state.global_step == 6


class TestTheRecord:
    def test_it_tells_part_by_part_what_was_trained_with(self, recipe, run):
        go_on(recipe, run, learning_rate=1e-5)
        summary = read_summary(run)
        assert summary["training"]["learning_rate"] == 1e-5
        assert summary["parts"] == [
            {"first_step": 1, "last_step": 3, "settings": {"learning_rate": 1e-3}},
            {"first_step": 4, "last_step": 6, "settings": {"learning_rate": 1e-5}},
        ]
        card = str(build_model_card(run))
        assert "| 1 to 3 | 0.001 |" in card
        assert "| 4 to 6 | 1e-05 |" in card

    def test_a_run_that_never_changed_has_no_parts(self, recipe, run):
        go_on(recipe, run)
        assert read_summary(run)["parts"] == []
        assert "went on with other settings" not in str(build_model_card(run))

    def test_parts_are_joined_where_settings_are_the_same(self):
        parts = joined_parts([], {"rate": 1}, 3)
        assert joined_parts(parts, {"rate": 2}, 3) == parts  # no step was taken
        parts = joined_parts(joined_parts(parts, {"rate": 1}, 5), {"rate": 2}, 6)
        assert [(part["first_step"], part["last_step"]) for part in parts] == [(1, 5), (6, 6)]

    def test_a_setting_that_was_not_there_differs(self):
        parts = joined_parts(joined_parts([], {"rate": 1}, 1), {"rate": 1, "decay": 2}, 2)
        assert [part["settings"] for part in differing_parts(parts)] == [{"decay": None}, {"decay": 2}]
