# SPDX-License-Identifier: Apache-2.0
"""A Trainer whose logs are of all steps since the last one, also where the run was stopped in between."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers.trainer_utils import IntervalStrategy

from ..files import finite
from .checkpoints import read_state
from .resuming import ResumableTrainer


class LoggingTrainer(ResumableTrainer):
    """Keeps in its checkpoints what has been summed up since the last log, and goes on from that."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._stored_unlogged: Mapping[str, Any] | None = None
        # Of the step that was taken last.
        self._grad_norm: torch.Tensor | float | None = None
        self._learning_rate: float | None = None

    def counts_since_log(self) -> dict[str, Any]:
        """What all processes know of the steps since the last log, JSON-able."""
        norm = self._grad_norm
        if isinstance(norm, torch.Tensor):
            norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()  # of sharded parameters
        last_step = {"grad_norm": norm, "learning_rate": self._learning_rate}
        return {"steps": self.state.global_step - self._globalstep_last_logged, "last_step": finite(last_step)}

    def load_counts_since_log(self, counts: Mapping[str, Any]) -> None:
        """Go on from what [`counts_since_log`] returned."""
        self._globalstep_last_logged = self.state.global_step - counts["steps"]
        self._grad_norm, self._learning_rate = counts["last_step"]["grad_norm"], counts["last_step"]["learning_rate"]

    def sums_since_log(self) -> dict[str, torch.Tensor]:
        """What each process sums up by itself, in place; a log has the sums over processes. The loss is a mean over them."""
        return {"loss": self._tr_loss}

    def _gathered_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
        weights, state, tensors = super()._gathered_state()
        sums = gather_object([{name: total.tolist() for name, total in self.sums_since_log().items()}])
        state["unlogged"] = {**self.counts_since_log(), "sums": sums}
        return weights, state, tensors

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        # An earlier version has not stored it.
        self._stored_unlogged = None if checkpoint is None else read_state(checkpoint).get("unlogged")

    def take_up_log(self) -> None:
        """To be called once training has begun, which Trainer does with nothing summed up."""
        stored, self._stored_unlogged = self._stored_unlogged, None
        self._grad_norm = self._learning_rate = None
        if stored is None:
            return
        self.load_counts_since_log(stored)
        processes, process = self.args.world_size, self.args.process_index
        for name, total in self.sums_since_log().items():
            of_each = torch.tensor([sums[name] for sums in stored["sums"]], dtype=total.dtype, device=total.device)
            if len(of_each) == processes:
                total.copy_(of_each[process])
            elif process == 0:
                total.copy_(of_each.mean(dim=0) * processes if name == "loss" else of_each.sum(dim=0))
        # That of the end of training is the mean of the steps of this session.
        self._total_loss_scalar = -sum(sums["loss"] for sums in stored["sums"]) / len(stored["sums"])

    def log_if_due(self) -> None:
        """Log the epoch that ends with the checkpoint which a run goes on from, where that was written before the log."""
        step, unlogged = self.state.global_step, self.state.global_step > self._globalstep_last_logged
        if self.args.logging_strategy == IntervalStrategy.EPOCH and unlogged and step % self.steps_per_epoch == 0:
            self.control.should_log, self.control.should_evaluate, self.control.should_save = True, False, False
            norm, rate = self._grad_norm, self._learning_rate
            self._maybe_log_save_evaluate(self._tr_loss, norm, self.model, None, None, None, None, learning_rate=rate)
            self.control.should_log = False

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: torch.Tensor | float | None,
        model: nn.Module,
        *args: Any,
        learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._grad_norm, self._learning_rate = grad_norm, learning_rate
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *args, learning_rate=learning_rate, **kwargs)
