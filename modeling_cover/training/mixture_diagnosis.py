# SPDX-License-Identifier: Apache-2.0
"""Whether the datasets of a mixture help one another: measured in the first steps of a run.

In some steps, before each is taken: the gradient of each dataset in the encoder; the loss of each, on the rows of the
step before, after a step for one of them alone; the features.

The gradient of a few rows is mostly noise, at right angles to any other: so a step goes along a dataset's moving
average of gradients, and cosines are of these, too. On its own rows, a step would lower the loss by what is learnt of
them alone. And what heads that are random ask of the encoder says little: the first fifth of the steps only trains.

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

from ..evaluation.feature_overlap import feature_overlap
from .batches import normalized
from .generators import kept_generators
from .gradient_shares import cosines, shares
from .gradient_watch import encoder_gradients, gradients_of_step


if TYPE_CHECKING:
    from .trainer import CoverTrainer


SHARE_OF_WARMUP = 5  # one in so many steps is before the first measurement
INTERVAL = 2  # steps from a measurement to the next
_DECAY = 0.8  # of a dataset's moving average of gradients
# Of the length of the optimizer's own step: a whole one along one dataset's gradient may go beyond where that lowers
# anything, and which way is what is asked.
_PART_OF_STEP = 0.1


class MixtureDiagnosis:
    """Measures in a trainer's steps; put in the place of its [`GradientWatch`], which it has do its part.

    Beside training itself, a measured step takes as long as one more (the gradients) and D + 1 forward passes (the
    losses): for S steps of two datasets 1.8 S in all, of four 2.1 S, less than D S. It takes up to 2 D + 1 times the
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
        self._batches_before: Sequence[Mapping[str, Any]] = ()
        # Of each parameter (D, ...), and the datasets that there is something of.
        self._averages = [
            p.new_zeros((len(self._names), *p.shape), dtype=torch.float32) for p in self._gradients.parameters
        ]
        self._seen: set[str] = set()

    # ---- In place of the trainer's GradientWatch ----

    def before_step(self, batches: Sequence[Mapping[str, Any]], rows_of_step: torch.Tensor) -> None:
        self._watch.before_step(batches, rows_of_step)
        step, first = self._trainer.state.global_step, max(1, self._trainer.state.max_steps // SHARE_OF_WARMUP)
        if step >= first and (step - first) % INTERVAL == 0:
            self._trainer.note("diagnosing the mixture")
            with kept_generators():
                self._measure(batches, rows_of_step)
        self._batches_before = batches

    def logs(self) -> dict[str, float]:
        return self._watch.logs()

    def state_dict(self) -> dict[str, Any]:
        return self._watch.state_dict()

    # ---- One step ----

    def _measure(self, batches: Sequence[Mapping[str, Any]], rows_of_step: torch.Tensor) -> None:
        trainer = self._trainer
        names, gradients, scales = gradients_of_step(trainer, self._gradients, batches, rows_of_step)
        products = self._gradients.products(names, gradients, iter(scales))
        if not products.is_finite:
            raise ValueError(
                f"diagnose: gradients of {', '.join(names)} are not finite at step {trainer.state.global_step}: lower the "
                "learning rate, or look for rows that are not what they should be"
            )
        weights = [trainer.loss_weights[name] for name in names]
        self._measured.append(
            {
                "gradient_share": self._placed(names, shares(products.of_gradients, weights)),
                "update_share": self._placed(names, shares(products.of_updates, weights)),
                "share_by_depth": self._placed(names, shares(products.by_depth, weights).T),
                "gradient_cosine": self._placed(names, cosines(products.of_gradients), axes=2),
            }
        )
        self._average(names, gradients)
        self._look_ahead(scales)

    def _average(self, names: Sequence[str], gradients: Sequence[torch.Tensor]) -> None:
        """Take the gradients of a step's datasets, (D', ...) of each parameter, into the averages."""
        for place, name in enumerate(names):
            weight = 1 - _DECAY if name in self._seen else 1.0
            for average, gradient in zip(self._averages, gradients, strict=True):
                average[self._names.index(name)].lerp_(gradient[place], weight)
        self._seen |= set(names)

    def _look_ahead(self, scales: Sequence[torch.Tensor | float]) -> None:
        """Add what a step for each dataset does to the loss of each, and the cosines of the averages."""
        trainer, names = self._trainer, [name for name in self._names if name in self._seen]
        averages = [average[[self._names.index(name) for name in names]] for average in self._averages]
        products = self._gradients.products(names, averages, iter(scales))
        other_rows = [normalized(batch, trainer.pixel_processor) for batch in self._batches_before]
        before, features = self._losses(other_rows)
        for name, rows in features.items():
            self._features[name].append(rows)
        # Each dataset's step is equally long: how much of the step that all take together is whose, shares tell.
        length = self._gradients.length_of_step(trainer.optimizer.optimizer, scales)
        if length is None:
            length = _length_of_step(products.of_updates, [trainer.loss_weights[name] for name in names])
        after = []
        for place in range(len(names)):
            own = products.of_updates[place, place].sqrt().item()
            with self._moved(
                [average[place] for average in averages], scales, _PART_OF_STEP * length / own if own > 0 else 0.0
            ):
                after.append(self._losses(other_rows)[0] - before)
        self._measured[-1] |= {
            "average_cosine": self._placed(names, cosines(products.of_gradients), axes=2),
            "effect": self._placed(names, torch.stack(after)[:, self._places(names)], axes=2),
        }

    def _places(self, names: Sequence[str]) -> list[int]:
        return [self._trainer.head_names.index(name) for name in names]

    def _placed(self, names: Sequence[str], values: torch.Tensor, axes: int = 1) -> np.ndarray:
        """Values of the datasets of a step, (D', ...) or (D', D'), among those of all."""
        number, where = len(self._names), [self._names.index(name) for name in names]
        found = np.full((number,) * axes + tuple(values.shape[axes:]), np.nan)
        found[np.ix_(*[where] * axes)] = values.double().cpu().numpy()
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
            sums = sums + torch.stack([losses.double() * rows, rows.double()])
            for name in self._names:
                own = batch["head_ids"] == trainer.head_names.index(name)
                features[name].append(outputs.pooler_output[own].float().cpu())
        trainer.model.train(was_training)
        losses, rows = trainer.accelerator.reduce(sums, reduction="sum")
        return losses / rows, {name: torch.cat(parts) for name, parts in features.items()}

    # ---- All of them ----

    def summary(self) -> dict[str, Any]:
        """What was found, JSON-able. Every process must call it.

        Raises:
            ValueError: if a dataset had no row in any step that was looked at.
        """
        trainer, names = self._trainer, self._names
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
            "average_cosine": _of_pairs(names, stacked["average_cosine"], _DECAY),
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


def _of_datasets(names: Sequence[str], values: np.ndarray, decay: float = 0.0) -> dict[str, dict[str, Any]]:
    """[`_statistics`] of values (M, D, ...)."""
    return {name: _statistics(values[:, index], decay) for index, name in enumerate(names)}


def _of_pairs(names: Sequence[str], values: np.ndarray, decay: float = 0.0) -> dict[str, dict[str, dict[str, Any]]]:
    """The same of values (M, D, D): by the row's dataset, then the column's."""
    return {name: _of_datasets(names, values[:, index], decay) for index, name in enumerate(names)}


def _statistics(values: np.ndarray, decay: float = 0.0) -> dict[str, Any]:
    """Of what is there of values (M, ...): mean, standard deviation, standard error, and in how many steps it was.
    None where there is nothing, or one value has no deviation.

    Averages with a decay over the steps say nearly the same in one as in the next: their mean's error is larger by the
    root of (1 + decay) / (1 - decay).
    """
    number = int((~np.isnan(values)).all(axis=tuple(range(1, values.ndim))).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means of nothing
        mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0, ddof=1)
    factor = np.sqrt((1 + decay) / (1 - decay) / max(number, 1))
    return {
        "mean": mean.tolist() if number else None,
        "std": deviation.tolist() if number > 1 else None,
        "error": (deviation * factor).tolist() if number > 1 else None,
        "steps": number,
    }
