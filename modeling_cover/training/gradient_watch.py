# SPDX-License-Identifier: Apache-2.0
"""At some steps of a run: what each dataset does to the encoder, for the log, and for weights that adapt to it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from .batches import normalized
from .equal_updates import AdaptedWeights, EqualUpdates, presence_in_steps
from .generators import kept_generators
from .gradient_shares import EncoderGradients, GradientProducts, cosines, norms, shares
from .optimization import WHOLE_GRADIENTS


if TYPE_CHECKING:
    from .trainer import CoverTrainer


logger = logging.get_logger(__name__)

ADAPTING_INTERVAL = 100  # steps between two measurements for weights that adapt, once the first have been taken


class GradientWatch:
    """Measures [`GradientProducts`] before some of a run's steps, which changes nothing of the step.

    With `log_gradient_shares`, the log has of the last measurement `<dataset>_gradient_share`, of the encoder's
    gradient, `<dataset>_update_share`, of what the optimizer makes of it, and `<dataset>_<dataset>_gradient_cosine` of
    each pair. With [`EqualUpdates`], it has `<dataset>_loss_weight`, and is measured more often at the beginning.

    Raises:
        ValueError: where there is something to measure, and one dataset alone, a frozen encoder, or gradients that no
            process has whole.
    """

    def __init__(self, trainer: "CoverTrainer", loss_weights: Mapping[str, float] | EqualUpdates | None):
        rule = loss_weights if isinstance(loss_weights, EqualUpdates) else None
        self._trainer = trainer
        self._log_interval = trainer.args.log_gradient_shares
        self._pending: dict[str, float] = {}
        self.update_shares: dict[str, float] | None = None  # that are asked for
        self.adapted: AdaptedWeights | None = None
        if rule is not None:
            schedule = trainer.train_sampler.schedule
            of_rows = {name: quota / schedule.round_size for name, quota in schedule.quotas.items()}
            self.update_shares = rule.targets(of_rows)
            presence = presence_in_steps(of_rows, trainer.args.rows_per_step)
            self.adapted = AdaptedWeights(self.update_shares, presence)
        if self._log_interval is not None or rule is not None:
            why = "log_gradient_shares" if rule is None else "equal_updates"
            self._gradients = encoder_gradients(trainer, why)

    def _is_logged(self, step: int) -> bool:
        return self._log_interval is not None and step % self._log_interval == 0

    def _is_adapted(self, step: int) -> bool:
        is_early = step < ADAPTING_INTERVAL and step & (step - 1) == 0  # 0 and the powers of 2
        return self.adapted is not None and (is_early or step % ADAPTING_INTERVAL == 0)

    def before_step(self, batches: Sequence[Mapping[str, Any]], rows_of_step: torch.Tensor) -> None:
        """Look at the batches of this process, and the rows of each head (heads,) in those of all."""
        trainer, step = self._trainer, self._trainer.state.global_step
        if not (self._is_logged(step) or self._is_adapted(step)):
            return
        trainer.note("measuring gradients of datasets")
        with generators_of(trainer):
            names, of_datasets = gradients_of_step(trainer, self._gradients, batches, rows_of_step)
            scales = scales_of_step(trainer, self._gradients, names, of_datasets)
            found = self._gradients.products(names, of_datasets, iter(scales))
        if not found.is_finite:
            logger.warning(
                f"step {step}: gradients of {', '.join(found.names)} are not finite, so no shares are measured"
            )
            return
        if self._is_logged(step):
            self._pending = shares_log(found, trainer.loss_weights)
        if self._is_adapted(step):
            self.adapted.see(dict(zip(found.names, norms(found.of_updates).tolist(), strict=True)))
            self._apply_weights()

    def _apply_weights(self) -> None:
        trainer = self._trainer
        trainer.loss_weights.update(self.adapted.weights())
        trainer.training_loss.set_weights(trainer.loss_weights)

    def logs(self) -> dict[str, float]:
        """What was measured since the last call, and the weights that adapt."""
        logs, self._pending = self._pending, {}
        adapted = {} if self.adapted is None else self.adapted.weights()
        return logs | {f"{name}_loss_weight": weight for name, weight in adapted.items()}

    # ---- In checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        return {
            "pending": self._pending,
            "adapted": None if self.adapted is None else self.adapted.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take what [`state_dict`] returned; a checkpoint from before there was any has None."""
        if state is None:
            return
        self._pending = dict(state["pending"])
        if self.adapted is not None and state["adapted"] is not None:
            self.adapted.load_state_dict(state["adapted"])
            self._apply_weights()


@contextmanager
def generators_of(trainer: "CoverTrainer") -> Iterator[None]:
    """Inside, random numbers that depend on the run's seed, the step and the process alone, as a run that resumes has
    not loaded those of training yet when its first step is looked at; after it, those of before."""
    args, step = trainer.args, trainer.state.global_step
    with kept_generators():
        torch.manual_seed(((args.seed * 1_000_003 + step) * 1_009 + args.process_index) % 2**63)
        yield


def encoder_gradients(trainer: "CoverTrainer", why: str) -> EncoderGradients:
    """Of a trainer's model and loss; errors begin with `why` they are asked for.

    Raises:
        ValueError: if there is one dataset alone, the encoder is frozen, or gradients are in parts.
    """
    names = list(trainer.train_dataset.sizes)
    if len(names) < 2:
        raise ValueError(f"{why}: '{names[0]}' is trained alone, expected at least two datasets to compare")
    if trainer.accelerator.distributed_type not in WHOLE_GRADIENTS:
        raise ValueError(
            f"{why}: with {trainer.accelerator.distributed_type.value} no process has whole gradients: train on one "
            "device or with DDP"
        )
    try:
        return EncoderGradients(
            trainer.model,
            trainer.model.config,
            trainer.training_loss,
            trainer.args.loss_reduction,
            lambda tensor: trainer.accelerator.reduce(tensor, reduction="sum"),
        )
    except ValueError as error:
        raise ValueError(f"{why}: {error}") from error


def gradients_of_step(
    trainer: "CoverTrainer",
    gradients: EncoderGradients,
    batches: Sequence[Mapping[str, Any]],
    rows_of_step: torch.Tensor,
) -> tuple[list[str], list[torch.Tensor]]:
    """The datasets of a step, and the gradients (D, ...) of each parameter."""
    scaler = trainer.accelerator.scaler
    trainer.model.train()
    batches = [normalized(batch, trainer.pixel_processor) for batch in batches]
    with trainer.accelerator.autocast():
        return gradients.of_step(batches, rows_of_step, 1.0 if scaler is None else scaler.get_scale())


def scales_of_step(
    trainer: "CoverTrainer", gradients: EncoderGradients, names: Sequence[str], of_datasets: Sequence[torch.Tensor]
) -> list[torch.Tensor | float]:
    """What the optimizer would multiply the gradients of a step by."""
    weights = [trainer.loss_weights[name] for name in names]
    max_norm = trainer.args.max_grad_norm or 0.0
    return list(gradients.scales(trainer.optimizer.optimizer, of_datasets, weights, max_norm))


def shares_log(found: GradientProducts, weights: Mapping[str, float]) -> dict[str, float]:
    names, of_step = found.names, [weights[name] for name in found.names]
    of_gradients = shares(found.of_gradients, of_step).tolist()
    of_updates = shares(found.of_updates, of_step).tolist()
    logs = {f"{name}_gradient_share": share for name, share in zip(names, of_gradients, strict=True)}
    logs |= {f"{name}_update_share": share for name, share in zip(names, of_updates, strict=True)}
    angles = cosines(found.of_gradients)
    for first in range(len(names)):
        for second in range(first + 1, len(names)):
            logs[f"{names[first]}_{names[second]}_gradient_cosine"] = angles[first, second].item()
    return logs
