# SPDX-License-Identifier: Apache-2.0
"""Whether the datasets of a mixture help one another: measured in the first steps of a run.

In some steps, before each is taken: the gradient of each dataset in the encoder, on the rows of the step and on those
of the step before; the loss of each, on those of the step before, after a step for one of them alone; the features.

The gradient of a few rows is mostly noise, at right angles to any other. Products of gradients of different rows, at
the same weights, have none of it on average, a dataset's with itself either. An average over steps would not do: the
weights have gone along it since, so that all seem to pull against each other. What heads that are random ask of the
encoder says little: the first fifth of the steps only trains.

Axes: M measured steps, D datasets in the order of the heads. What a step without rows of a dataset cannot tell is NaN.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers.utils import logging

from ..evaluation.feature_overlap import feature_overlap
from .batches import normalized
from .gradient_shares import cosines, inner_products, norms, shares
from .gradient_watch import encoder_gradients, generators_of, gradients_of_step, scales_of_step


if TYPE_CHECKING:
    from .trainer import CoverTrainer


logger = logging.get_logger(__name__)

SHARE_OF_WARMUP = 5  # one in so many steps is before the first measurement
INTERVAL = 3  # steps from a measurement to the next
# Of the length of the optimizer's own step: a whole one along one dataset's gradient may go beyond where that lowers
# anything, and which way is what is asked.
_PART_OF_STEP = 0.1


class MixtureDiagnosis:
    """Measures in a trainer's steps; put in the place of its [`GradientWatch`], which it has do its part.

    Beside training itself, a measured step takes as long as two more (the gradients) and D + 1 forward passes (the
    losses): for S steps of two datasets 1.8 S in all, of four 2 S, no more than D S. It takes up to 3 D + 1 times the
    memory of the encoder's parameters.

    Raises:
        ValueError: if there is one dataset alone, the encoder is frozen, or no process has whole gradients.
    """

    def __init__(self, trainer: "CoverTrainer"):
        self._trainer = trainer
        self._watch = trainer.gradient_watch
        self._gradients = encoder_gradients(trainer, "diagnose")
        self._names = [name for name in trainer.head_names if name in trainer.train_dataset.sizes]
        self._measured: list[dict[str, np.ndarray]] = []
        self._features: dict[str, list[torch.Tensor]] = {name: [] for name in self._names}
        self._before: tuple[Sequence[Mapping[str, Any]], torch.Tensor] = (), torch.zeros(0)

    # ---- In place of the trainer's GradientWatch ----

    def before_step(self, batches: Sequence[Mapping[str, Any]], rows_of_step: torch.Tensor) -> None:
        self._watch.before_step(batches, rows_of_step)
        step, first = self._trainer.state.global_step, max(1, self._trainer.state.max_steps // SHARE_OF_WARMUP)
        if step >= first and (step - first) % INTERVAL == 0:
            self._trainer.note("diagnosing the mixture")
            with generators_of(self._trainer):
                self._measure(batches, rows_of_step)
        self._before = batches, rows_of_step

    def logs(self) -> dict[str, float]:
        return self._watch.logs()

    def state_dict(self) -> dict[str, Any]:
        return self._watch.state_dict()

    # ---- One step ----

    def _measure(self, batches: Sequence[Mapping[str, Any]], rows_of_step: torch.Tensor) -> None:
        trainer = self._trainer
        names, gradients = gradients_of_step(trainer, self._gradients, batches, rows_of_step)
        scales = scales_of_step(trainer, self._gradients, names, gradients)
        products = self._gradients.products(names, gradients, iter(scales))
        if not products.is_finite:
            self._refuse(names)
            return
        weights = [trainer.loss_weights[name] for name in names]
        self._measured.append(
            {
                "gradient_share": self._placed(names, shares(products.of_gradients, weights)),
                "update_share": self._placed(names, shares(products.of_updates, weights)),
                "share_by_depth": self._placed(names, shares(products.by_depth, weights).T),
                "gradient_cosine": self._placed(names, cosines(products.of_gradients), names),
            }
        )
        others_of, others = gradients_of_step(trainer, self._gradients, *self._before)
        product = inner_products(gradients, others)
        del others
        if not product.isfinite().all():
            self._measured.pop()
            self._refuse(others_of)
            return
        self._measured[-1]["product"] = self._placed(names, product, others_of)
        # Each dataset's step is equally long: how much of the step that all take together is whose, shares tell.
        length = self._gradients.length_of_step(trainer.optimizer.optimizer, scales)
        if length is None:
            length = _length_of_step(products.of_updates, weights)
        factors = [_PART_OF_STEP * length / own if own > 0 else 0.0 for own in norms(products.of_updates).tolist()]
        effects = self._effects(gradients, scales, factors)
        self._measured[-1]["effect"] = self._placed(names, effects[:, self._places(self._names)], self._names)

    def _refuse(self, names: Sequence[str]) -> None:
        """Leave out a step whose gradients are not finite, as its scale of fp16's may be to blame.

        Raises:
            ValueError: if it is not.
        """
        step = self._trainer.state.global_step
        what = f"diagnose: gradients of {', '.join(names)} are not finite at step {step}"
        if self._trainer.accelerator.scaler is None:
            raise ValueError(f"{what}: lower the learning rate, or look for rows that are not what they should be")
        logger.warning(f"{what}, which is left out")

    def _effects(
        self, gradients: Sequence[torch.Tensor], scales: Sequence[torch.Tensor | float], factors: Sequence[float]
    ) -> torch.Tensor:
        """(D, heads), what a step for each dataset adds to the loss of each head, on the rows of the step before."""
        pixels = self._trainer.pixel_processor
        other_rows = [normalized(batch, pixels) for batch in self._before[0]]
        before, features = self._losses(other_rows)
        for name, rows in features.items():
            self._features[name].append(rows)
        effects = []
        for place, factor in enumerate(factors):
            with self._moved([gradient[place] for gradient in gradients], scales, factor):
                effects.append(self._losses(other_rows)[0] - before)
        return torch.stack(effects)

    def _places(self, names: Sequence[str]) -> list[int]:
        return [self._trainer.head_names.index(name) for name in names]

    def _placed(self, names: Sequence[str], values: torch.Tensor, columns: Sequence[str] | None = None) -> np.ndarray:
        """Values of the datasets of a step, (D', ...) or (D', D''), among those of all."""
        number, axes = len(self._names), [names] if columns is None else [names, columns]
        found = np.full((number,) * len(axes) + tuple(values.shape[len(axes) :]), np.nan)
        where = [[self._names.index(name) for name in axis] for axis in axes]
        found[np.ix_(*where)] = values.double().cpu().numpy()
        return found

    @contextmanager
    def _moved(
        self, gradients: Sequence[torch.Tensor], scales: Sequence[torch.Tensor | float], factor: float
    ) -> Iterator[None]:
        """Inside, the encoder has gone a step against one dataset's gradient; after it, it is what it was."""
        kept = [parameter.detach().clone() for parameter in self._gradients.parameters]
        try:
            with torch.no_grad():
                for parameter, gradient, scale in zip(self._gradients.parameters, gradients, scales, strict=True):
                    parameter -= (factor * gradient * scale).to(parameter.dtype)
            yield
        finally:
            with torch.no_grad():
                for parameter, values in zip(self._gradients.parameters, kept, strict=True):
                    parameter.copy_(values)

    @torch.no_grad()
    def _losses(self, batches: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean loss of each head's rows, (heads,), without dropout, NaN where there are none; and this process's
        features."""
        trainer, sums, features = self._trainer, 0, {name: [] for name in self._names}
        was_training = trainer.model.training
        trainer.model.eval()
        for batch in batches:
            with trainer.accelerator.autocast():
                outputs, (losses, rows, _) = trainer.training_loss.of_heads(trainer.model, batch, may_compile=False)
            sums = sums + torch.stack([losses * rows, rows]).float()
            for name in self._names:
                own = batch["head_ids"] == trainer.head_names.index(name)
                features[name].append(outputs.pooler_output[own].float().cpu())
        trainer.model.train(was_training)
        losses, rows = trainer.accelerator.reduce(sums, reduction="sum").cpu()
        return losses / rows, {name: torch.cat(parts) for name, parts in features.items()}

    # ---- All of them ----

    def summary(self) -> dict[str, Any]:
        """What was found, JSON-able. Every process must call it.

        Raises:
            ValueError: if a dataset had no row in any step that was looked at.
        """
        trainer, names = self._trainer, self._names
        if not self._measured:
            raise ValueError(
                f"diagnose: none of {trainer.state.global_step} steps could be measured, take more --steps"
            )
        stacked = {key: np.stack([found[key] for found in self._measured]) for key in self._measured[0]}
        without = [name for index, name in enumerate(names) if np.isnan(stacked["update_share"][:, index]).all()]
        if without:
            raise ValueError(
                f"diagnose: {', '.join(without)} had no row in the {len(self._measured)} steps that were looked at: take "
                "more --steps, more rows a step, or another mixture"
            )
        schedule = trainer.train_sampler.schedule
        return {
            "datasets": names,
            "steps": trainer.state.global_step,
            "measured_steps": len(self._measured),
            "rows_per_step": trainer.args.rows_per_step,
            "row_share": {name: schedule.quotas[name] / schedule.round_size for name in names},
            "loss_weight": {name: trainer.loss_weights[name] for name in names},
            **{key: _of_datasets(names, stacked[key]) for key in ("gradient_share", "update_share", "share_by_depth")},
            **{key: _of_pairs(names, stacked[key]) for key in ("gradient_cosine", "effect")},
            "signal_cosine": {
                first: {second: signal_cosine(stacked["product"], row, column) for column, second in enumerate(names)}
                for row, first in enumerate(names)
            },
            "feature_overlap": self._overlaps(),
        }

    def _overlaps(self) -> dict[str, dict[str, float | None]]:
        own = {name: torch.cat(parts).numpy() for name, parts in self._features.items()}
        gathered = gather_object([own])
        of_all = {name: torch.from_numpy(np.concatenate([part[name] for part in gathered])) for name in self._names}
        overlaps = {name: {} for name in self._names}
        for first, second in itertools.permutations(self._names, 2):
            overlaps[first][second] = feature_overlap(of_all[first], of_all[second])
        return overlaps


def _length_of_step(products: torch.Tensor, weights: Sequence[float]) -> float:
    """The norm of the weighted sum of vectors with these inner products (D, D)."""
    weights = torch.tensor(weights, dtype=products.dtype)
    return (weights @ products @ weights).clamp(min=0).sqrt().item()


def signal_cosine(products: np.ndarray, first: int, second: int) -> dict[str, Any]:
    """The cosine between the expected gradients of two datasets, as [`_statistics`] has means.

    Args:
        products: (M, D, D), of the gradients of a step's rows, and those of other rows, at the same weights.
        first, second: of the datasets.

    Returns:
        None in place of the mean where the gradients of a dataset have no more in common than chance; the error is the
        jackknife's, over steps.
    """
    parts = products[:, (first, first, second, second), (first, second, first, second)]
    parts = parts[~np.isnan(parts).any(axis=1)]  # (M', 4)
    number = len(parts)

    def cosine(sums: np.ndarray) -> np.ndarray:
        own = np.where((sums[..., 0] > 0) & (sums[..., 3] > 0), sums[..., 0] * sums[..., 3], np.nan)
        return (sums[..., 1] + sums[..., 2]) / 2 / np.sqrt(own)

    mean = cosine(parts.sum(axis=0)) if number else np.nan
    without_one = cosine(parts.sum(axis=0) - parts)
    error = np.sqrt((number - 1) * np.mean((without_one - without_one.mean()) ** 2)) if number > 1 else np.nan
    is_known = not np.isnan(mean)
    return {
        "mean": float(np.clip(mean, -1, 1)) if is_known else None,
        "error": float(error) if is_known and not np.isnan(error) else None,
        "steps": number,
    }


def _of_datasets(names: Sequence[str], values: np.ndarray) -> dict[str, dict[str, Any]]:
    """[`_statistics`] of values (M, D, ...)."""
    return {name: _statistics(values[:, index]) for index, name in enumerate(names)}


def _of_pairs(names: Sequence[str], values: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
    """The same of values (M, D, D): by the row's dataset, then the column's."""
    return {name: _of_datasets(names, values[:, index]) for index, name in enumerate(names)}


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """Of what is there of values (M, ...): mean, standard deviation, standard error, and in how many steps it was.
    None where there is nothing, or one value has no deviation."""
    number = int((~np.isnan(values)).all(axis=tuple(range(1, values.ndim))).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means of nothing
        mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0, ddof=1)
    return {
        "mean": mean.tolist() if number else None,
        "std": deviation.tolist() if number > 1 else None,
        "error": (deviation / np.sqrt(number)).tolist() if number > 1 else None,
        "steps": number,
    }
