# SPDX-License-Identifier: Apache-2.0
"""A Trainer that takes no step it would have to regret, and stops in good order.

Before each optimizer step all processes decide together, by one sum over two numbers: whether anything about the step is
not finite on any of them, and whether any was told to stop.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, TrainOutput
from transformers.utils import logging

from ..model.video_decoding_cover import VideoDecodingError
from .checkpoints import CheckpointError, CheckpointWriter, newest_checkpoint
from .folder_lock import FolderLock, lock_folder
from .launching import end_with_launcher, processes_line
from .preemption import StopSignals, TrainingPreempted
from .unlogged import LoggingTrainer
from .watchdog import Watchdog


logger = logging.get_logger(__name__)

SKIPPED_STEPS = "skipped_steps.jsonl"


class NonFiniteTrainingError(ValueError):
    """Loss or gradient were not finite for so many steps in a row that training cannot be trusted to recover."""


class TrainingOutOfMemoryError(RuntimeError):
    """A step did not fit into memory."""


class _EvaluationAbandonedError(Exception):
    """An evaluation during training was told to stop."""


class GuardedTrainer(LoggingTrainer):
    """Skips optimizer steps whose loss or gradient is not finite, and writes a checkpoint when it is told to stop."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stop_signals = StopSignals()
        self._watchdog: Watchdog | None = None
        self._folder_lock: FolderLock | None = None
        self._must_stop = False  # which all processes know
        self._skipped_in_a_row = 0
        self._skipped_since_log = 0
        # Of the step that is being computed: whether each micro-step's loss was finite, on this process.
        self._step_is_finite = torch.ones((), dtype=torch.bool, device=self.args.device)
        self._loss_before_step = torch.zeros((), device=self.args.device)
        self.add_callback(_GuardCallback(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._must_stop, self._skipped_in_a_row, self._skipped_since_log = False, 0, 0
        end_with_launcher()
        if self.is_world_process_zero():
            logger.warning(processes_line(self.args.world_size, self.args.device))
        self.hold_output_dir()
        with self._watched(), self.stop_signals:
            try:
                return super().train(*args, **kwargs)
            except torch.OutOfMemoryError as error:
                raise TrainingOutOfMemoryError(self._out_of_memory(error)) from error

    def hold_output_dir(self) -> None:
        """Make the output folder this run's, as long as the trainer is there; every process must call it.

        Raises:
            CheckpointError: if another run uses it.
        """
        error = None
        try:
            if self.args.should_save:
                self._folder_lock = lock_folder(self.args.output_dir)
        except CheckpointError as caught:
            error = caught
        if (fault := self._fault_of_any(error)) is not None:
            raise CheckpointError(fault) from error

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        with self._watched():  # of an evaluation without training, or after it
            self.note("evaluation")
            return super().evaluation_loop(*args, **kwargs)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        if self.accelerator.num_processes == 1 or self._watchdog is not None:
            yield
            return
        self._watchdog = Watchdog(self.accelerator, self.args.ddp_timeout)
        try:
            yield
        finally:
            self._watchdog.end()
            self._watchdog = None

    def counts_since_log(self) -> dict[str, Any]:
        skipped = {"skipped": self._skipped_since_log, "skipped_in_a_row": self._skipped_in_a_row}
        return {**super().counts_since_log(), **skipped}

    def load_counts_since_log(self, counts: Mapping[str, Any]) -> None:
        super().load_counts_since_log(counts)
        self._skipped_since_log, self._skipped_in_a_row = counts["skipped"], counts["skipped_in_a_row"]

    def note(self, phase: str) -> None:
        """Say what this process begins to do, see [`Watchdog`]."""
        if self._watchdog is not None:
            self._watchdog.note(self.state.global_step, phase)

    def _out_of_memory(self, error: Exception) -> str:
        args = self.args
        return (
            f"process {args.process_index} ran out of memory in step {self.state.global_step} with batches of "
            f"{args.per_device_train_batch_size}: {error}. Halve per_device_train_batch_size and double "
            "gradient_accumulation_steps, which changes no gradient, or set activation_checkpointing. "
            f"{self._last_checkpoint()}"
        )

    def _last_checkpoint(self) -> str:
        newest = newest_checkpoint(self.args.output_dir)
        return f"The last checkpoint is {newest}." if newest else "There is no checkpoint yet."

    # ---- Before the optimizer's step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.note("forward pass")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_is_finite &= torch.isfinite(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        """Trainer's last hook before the optimizer's step, and the one that knows the norm."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        loss_is_finite, gradient_is_finite, self._must_stop = self._decided(grad_norm)
        self.note("optimizer step")
        if loss_is_finite and gradient_is_finite:
            self._skipped_in_a_row = 0
            self.step_is_taken()
        else:
            self._leave_out_step(model)
            if not (loss_is_finite and self._scale_can_shrink()):
                self._note_skipped_step()
        return grad_norm

    def _decided(self, grad_norm: torch.Tensor | float) -> tuple[bool, bool, bool]:
        """Whether the loss is finite on every process, whether the gradient is, and whether any was told to stop."""
        norm = torch.as_tensor(grad_norm, device=self.args.device)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        stop = torch.full_like(self._step_is_finite, self.stop_signals.received)
        votes = torch.stack([~self._step_is_finite, ~torch.isfinite(norm), stop]).float()
        loss, gradient, stop = self.accelerator.reduce(votes, reduction="sum").tolist()
        return loss == 0, gradient == 0, stop > 0

    def _scale_can_shrink(self) -> bool:
        """Whether the gradient may have overflown because of the scale that fp16 needs, which its scaler then lowers."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def step_begins(self) -> None:
        """Called before the first batch of an optimizer step."""
        self._step_is_finite.fill_(True)
        self._loss_before_step.copy_(self._tr_loss)

    def step_is_taken(self) -> None:
        """Called before an optimizer step whose loss and gradient are finite."""

    def _leave_out_step(self, model: nn.Module) -> None:
        # An optimizer leaves alone what has no gradient: neither weights nor its own state change.
        if not self.is_deepspeed_enabled:  # which has skipped it already
            model.zero_grad(set_to_none=True)
        self._tr_loss.copy_(self._loss_before_step)
        self._skipped_since_log += 1

    def _note_skipped_step(self) -> None:
        self._skipped_in_a_row += 1
        step, most = self.state.global_step, self.args.max_skipped_steps
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / SKIPPED_STEPS
            samples = self._samples_of_step(step)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "samples": samples}) + "\n")
            logger.warning(f"step {step}: loss or gradient is not finite, skipped; its samples are in {path}")
        if self._skipped_in_a_row >= most:
            raise NonFiniteTrainingError(
                f"loss or gradient were not finite in {self._skipped_in_a_row} steps in a row, up to step {step}: a lower "
                "learning rate, a longer warm-up or gradient clipping may help; their samples are in "
                f"{Path(self.args.output_dir) / SKIPPED_STEPS}. {self._last_checkpoint()}"
            )

    def _samples_of_step(self, step: int) -> list[dict[str, Any]]:
        first = step * self.train_sampler.step_size
        references = self.train_sampler.references(first)
        samples = []
        for _ in range(self.train_sampler.step_size):
            reference = next(references)
            try:
                name = self.train_dataset.sample_name(reference)
            except (VideoDecodingError, OSError) as error:
                name = f"unknown: {error}"
            samples.append({"position": reference.position, "dataset": reference.dataset, "sample": name})
        return samples

    # ---- Stopping ----

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if self._must_stop:
            # The evaluation that may be due is for the run that goes on: see `evaluate_if_due`.
            self.control.should_evaluate, self.control.should_save = False, True
        try:
            super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        except _EvaluationAbandonedError:
            self._must_stop = True
            self._save_checkpoint(self.model, None)
        if self._must_stop:
            checkpoint = CheckpointWriter(self.args.output_dir).path(self.state.global_step)
            preempted = TrainingPreempted(checkpoint)
            logger.warning(str(preempted))
            raise preempted

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.note("writing a checkpoint")
        super()._save_checkpoint(model, trial)

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        self.note("evaluation")
        if self.is_in_train:
            vote = torch.tensor([float(self.stop_signals.received)], device=self.args.device)
            if self.accelerator.reduce(vote, reduction="sum").item():
                raise _EvaluationAbandonedError
        return super().prediction_step(*args, **kwargs)

    def evaluate_if_due(self) -> None:
        """Evaluate the checkpoint that a run goes on from, where the run that wrote it was stopped before it could."""
        step, strategy = self.state.global_step, self.args.eval_strategy
        passed = self.state.epoch if strategy == IntervalStrategy.EPOCH else step
        due = (strategy == IntervalStrategy.STEPS and step % self.state.eval_steps == 0) or (
            strategy == IntervalStrategy.EPOCH and step % self.steps_per_epoch == 0
        )
        evaluated = any(
            entry["step"] == step and any(key.startswith("eval_") for key in entry) for entry in self.state.log_history
        )
        if step == 0 or not due or evaluated or passed < self.args.eval_delay:
            return
        try:
            metrics = self._evaluate(None, None)
        except _EvaluationAbandonedError:
            raise TrainingPreempted(CheckpointWriter(self.args.output_dir).path(step)) from None
        self._determine_best_metric(metrics=metrics, trial=None)
        self._note_best(CheckpointWriter(self.args.output_dir))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(len(self.train_sampler) / self.train_sampler.step_size)


class _GuardCallback(TrainerCallback):
    def __init__(self, trainer: GuardedTrainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.step_begins()

    def on_optimizer_step(self, args, state, control, **kwargs):
        # Where the scaler, or DeepSpeed, has skipped the step, Trainer would have the schedule fall behind the steps.
        if self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.lr_scheduler.step()
