# SPDX-License-Identifier: Apache-2.0
"""Steps that are not finite: skipped by all processes together, written down, and too many of them the end."""

import dataclasses
import json
import math
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from killed_runs import InfiniteGradient, build_recipe
from modeling_cover import CoverTrainer
from modeling_cover.training import optimization
from modeling_cover.training.step_guard import NonFiniteTrainingError, StepGuard, TrainingOutOfMemoryError
from modeling_cover.training.stop_signals import TrainingPreempted
from safetensors.torch import load_file
from tiny import tiny_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback


class PoisonedTrainer(CoverTrainer):
    """In the steps of `poisoned`, the loss or the gradient is not finite."""

    poisoned: dict[int, str] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        kind = self.poisoned.get(self.state.global_step)
        if kind == "loss":
            return loss * math.nan
        if kind == "gradient":
            return InfiniteGradient.apply(loss)
        if kind == "memory":
            raise torch.OutOfMemoryError("no room for 3 GiB")
        return loss


def make_trainer(
    folder: Path, output_dir: Path, poisoned: dict[int, str], model: dict | None = None, **options
) -> PoisonedTrainer:
    defaults = {
        "max_steps": 6,
        "learning_rate": 0.01,
        "logging_steps": 3,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
    }
    recipe = build_recipe(folder)
    recipe = dataclasses.replace(recipe, model={**recipe.model, **(model or {})})
    trainer = tiny_trainer(recipe, output_dir, PoisonedTrainer, **{**defaults, **options})
    trainer.poisoned = poisoned
    return trainer


def trained(*args, **options) -> PoisonedTrainer:
    trainer = make_trainer(*args, **options)
    trainer.train()
    return trainer


def weights(trainer: CoverTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


class Calls(TorchDispatchMode):
    """Counts the operations of torch."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.of[operation.overloadpacket.__name__] += 1
        return operation(*args, **(kwargs or {}))


def recorded(function: Callable, name: str, told: list[str]) -> Callable:
    """The function; its calls are added to `told`."""
    return lambda *args: told.append(name) or function(*args)


def steps_logged(trainer: CoverTrainer) -> str:
    """The log without what is of time; in words, as NaN is not itself."""
    of_time = re.compile("second|runtime|data_wait|tflops").search
    kept = [{name: value for name, value in entry.items() if not of_time(name)} for entry in trainer.state.log_history]
    return json.dumps(kept)


@pytest.fixture(params=["waits", "goes on"])
def either_way(request, monkeypatch) -> None:
    """The CPU waits for what is decided about a step, or goes on without knowing, as it does where there is a GPU."""
    if request.param == "goes on":
        monkeypatch.setattr(optimization, "ASYNCHRONOUS", ("cpu",))


class TestTheNorm:
    def test_it_is_that_of_torch_and_no_gradient_is_changed_where_none_is_clipped(self, folder, tmp_path):
        norms, multiplied = {}, {}
        for name, max_grad_norm in (("none", 0.0), ("all", 1e9)):
            options = {"optim": "sgd", "max_grad_norm": max_grad_norm, "logging_steps": 1, "max_steps": 2}
            trainer = make_trainer(folder, tmp_path / name, {}, **options)
            with Calls() as calls:
                trainer.train()
            norms[name] = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
            multiplied[name] = calls.of["_foreach_mul_"]
        assert len(norms["none"]) == 2
        assert norms["none"] == norms["all"]
        assert (multiplied["none"], multiplied["all"]) == (0, 2)


@pytest.mark.usefixtures("either_way")
class TestASkippedStep:
    @pytest.mark.parametrize("kind", ["loss", "gradient"])
    @pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
    def test_it_changes_neither_weights_nor_the_optimizer_and_training_goes_on(
        self, folder, tmp_path, kind, max_grad_norm
    ):
        before, after = (
            trained(folder, tmp_path / str(steps), {2: kind}, max_steps=steps, lr_scheduler_type="constant")
            for steps in (2, 3)
        )
        for name, weight in weights(after).items():
            assert torch.equal(weight, weights(before)[name]), name
        moments = [list(trainer.optimizer.optimizer.state.values()) for trainer in (before, after)]
        for old, new in zip(*moments, strict=True):
            assert all(torch.equal(old[key], new[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
        onward = make_trainer(folder, tmp_path / "6", {2: kind}, max_grad_norm=max_grad_norm)
        onward.train()
        assert onward.state.global_step == 6
        assert all(weight.isfinite().all() for weight in weights(onward).values())
        assert not torch.equal(
            weights(onward)["classifiers.videos.weight"], weights(before)["classifiers.videos.weight"]
        )

    def test_its_samples_are_written_down_by_name(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, {2: "loss"})
        trainer.train()
        (line,) = (tmp_path / "skipped_steps.jsonl").read_text().splitlines()
        entry = json.loads(line)
        assert entry["step"] == 2
        assert [sample["position"] for sample in entry["samples"]] == [8, 9, 10, 11]
        references = [reference for _, reference in zip(range(12), trainer.train_sampler.references(), strict=False)]
        assert [sample["dataset"] for sample in entry["samples"]] == [row.dataset for row in references[8:]]
        names = {sample["sample"] for sample in entry["samples"] if sample["dataset"] == "videos"}
        assert names <= {str(path) for path in (folder / "videos").rglob("*.mp4")}
        assert not any("2.mp4" in name for name in names)  # which cannot be decoded: another stood in for it

    def test_the_log_has_the_mean_of_the_others_and_their_number(self, folder, tmp_path):
        plain = make_trainer(folder, tmp_path / "plain", {}, max_steps=2, logging_steps=2)
        plain.train()
        trainer = make_trainer(folder, tmp_path / "poisoned", {2: "loss"}, max_steps=3)
        trainer.train()
        (expected,) = [entry for entry in plain.state.log_history if "loss" in entry]
        (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert logged["skipped_steps"] == 1
        assert logged["videos_loss"] == pytest.approx(expected["videos_loss"])
        assert logged["loss"] == pytest.approx(expected["loss"], rel=1e-5)

    def test_it_counts_as_a_step_of_the_schedule(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, {2: "loss"}, save_steps=3, max_steps=4)
        trainer.train()
        resumed = make_trainer(folder, tmp_path, {}, save_steps=3, max_steps=4)
        (tmp_path / "checkpoint-4" / "training_state" / "state.json").unlink()
        resumed.train(resume_from_checkpoint="auto")
        for name, weight in weights(trainer).items():
            assert torch.equal(weight, weights(resumed)[name]), name


class TestGoingOn:
    """A CPU that goes on without knowing what is decided about a step ends as one that waits, to the bit."""

    @pytest.fixture
    def goes_on(self, monkeypatch) -> Callable[[], None]:
        return partial(monkeypatch.setattr, optimization, "ASYNCHRONOUS", ("cpu",))

    def test_weights_and_average_and_logs_and_checkpoints_are_the_same(self, folder, tmp_path, goes_on):
        poisoned = {0: "gradient", 2: "loss", 3: "gradient", 5: "loss"}
        options = {"ema_decay": 0.9, "save_steps": 4, "max_steps": 7, "logging_steps": 2}
        waited = trained(folder, tmp_path / "waited", poisoned, **options)
        goes_on()
        went_on = trained(folder, tmp_path / "went_on", poisoned, **options)
        for name, weight in weights(waited).items():
            assert torch.equal(weight, weights(went_on)[name]), name
        assert steps_logged(waited) == steps_logged(went_on)
        for step in (4, 7):
            folders = [tmp_path / name / f"checkpoint-{step}" for name in ("waited", "went_on")]
            files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.safetensors"))
            assert len(files) > 1
            for file in files:
                tensors, others = (load_file(folder / file) for folder in folders)
                assert all(torch.equal(tensors[name], others[name]) for name in tensors | others), file
            counted = [json.loads((folder / "training_state" / "state.json").read_text()) for folder in folders]
            assert counted[0]["unlogged"] == counted[1]["unlogged"]
            assert counted[0]["average_updates"] == counted[1]["average_updates"]

    def test_what_follows_from_a_step_comes_after_the_next_is_computed_but_where_it_is_logged(
        self, folder, tmp_path, goes_on, monkeypatch
    ):
        """The first step makes the optimizer's state, so it waits."""
        told = []
        for name in ("see", "vote", "close"):
            monkeypatch.setattr(StepGuard, name, recorded(getattr(StepGuard, name), name, told))
        goes_on()
        trained(folder, tmp_path, {}, max_steps=5, logging_steps=3, save_steps=9)
        expected = ["see vote close", "see vote", "see close vote close", "see vote", "see close vote close"]
        assert told == " ".join(expected).split()

    def test_one_that_is_told_to_stop_does_so_a_step_later_and_is_resumed_to_the_same(self, folder, tmp_path, goes_on):
        options = {"save_steps": 9, "logging_steps": 9, "max_steps": 6}
        whole = trained(folder, tmp_path / "whole", {}, **options)

        class Stops(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

        goes_on()
        stopped = make_trainer(folder, tmp_path / "stopped", {}, **options)
        stopped.add_callback(Stops())
        with pytest.raises(TrainingPreempted, match="checkpoint-4 is written"):
            stopped.train()
        resumed = make_trainer(folder, tmp_path / "stopped", {}, **options)
        resumed.train(resume_from_checkpoint="auto")
        for name, weight in weights(whole).items():
            assert torch.equal(weight, weights(resumed)[name]), name


@pytest.mark.usefixtures("either_way")
class TestTheEnd:
    def test_too_many_in_a_row_stop_it_and_name_the_last_checkpoint(self, folder, tmp_path):
        trainer = make_trainer(
            folder, tmp_path, {3: "loss", 4: "gradient", 5: "loss"}, max_skipped_steps=3, max_steps=9
        )
        with pytest.raises(NonFiniteTrainingError, match=r"in 3 steps in a row, up to step 5: (.|\n)*checkpoint-4"):
            trainer.train()

    def test_others_in_between_begin_the_count_anew(self, folder, tmp_path):
        poisoned = {1: "loss", 2: "loss", 4: "loss", 5: "loss"}
        make_trainer(folder, tmp_path, poisoned, max_skipped_steps=3).train()

    def test_out_of_memory_says_what_to_do_and_names_the_last_checkpoint(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, {5: "memory"})
        with pytest.raises(TrainingOutOfMemoryError, match=r"in step 5 with batches of 4: no room.*checkpoint-4"):
            trainer.train()
