# SPDX-License-Identifier: Apache-2.0
"""From scores of classes to metrics: accuracy in several senses, calibration, and how sure one may be of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from ..bars import bar
from .metrics import (
    average_precisions,
    compute_metrics,
    confusion_matrix,
    mean_average_precision,
    metric_inputs,
    readable_rows,
)


NUM_BINS = 15
CONFIDENCE_LEVEL = 0.95

Metrics = dict[str, Any]


def evaluate_scores(
    scores: np.ndarray, targets: np.ndarray, labels: Sequence[str], num_resamples: int = 1000, seed: int = 0
) -> Metrics:
    """What a set of scores is worth.

    Args:
        scores: (rows, classes), probabilities.
        targets: the class of each row (rows,), or with several labels a row 0 and 1 (rows, classes); `UNREADABLE`
            where a file could not be decoded, which counts neither for nor against the model.
        labels: of the classes.
        num_resamples, seed: of the bootstrap.

    Returns:
        `rows` in all and, if there are any, `unreadable` ones; `top1`, `top5`, `mean_class_accuracy` over the classes
        that have rows, `ece` (see [`calibration_error`]) and the `confusion` matrix; with several labels a row, `map`,
        unless no row has a label.
        `intervals` has 95% bootstrap intervals of these but `ece`; `classes` the rows of each class and its `accuracy`
        or `average_precision`, None where it has no row.

    Raises:
        ValueError: if not one row could be decoded.
    """
    inputs = metric_inputs(torch.from_numpy(scores), torch.from_numpy(targets)).numpy()
    metrics = {"rows": len(targets), **compute_metrics(EvalPrediction(inputs, targets))}
    readable = readable_rows(targets)
    scores, targets, inputs = scores[readable], targets[readable], inputs[readable]
    if targets.ndim == 2:
        has_label = targets > 0.5
        counts, measure = has_label.sum(axis=0), "average_precision"
        of_classes = average_precisions(scores, has_label)

        def statistics(counts: np.ndarray) -> dict[str, float]:
            return {"map": mean_average_precision(scores, has_label, counts)} if has_label.any() else {}
    else:
        confusion = confusion_matrix(targets, inputs[:, 0], len(labels))
        counts, measure, statistics = confusion.sum(axis=1), "accuracy", _accuracies(inputs, targets, len(labels))
        of_classes = confusion.diagonal() / np.maximum(counts, 1)
        metrics["mean_class_accuracy"] = float(of_classes[counts > 0].mean())
        metrics["ece"] = calibration_error(scores.max(axis=1), inputs[:, 0] == targets)
        metrics["confusion"] = confusion.tolist()
    metrics["intervals"] = bootstrap_intervals(statistics, len(targets), num_resamples, seed)
    metrics["classes"] = [
        {"label": label, measure: float(score) if count else None, "rows": int(count)}
        for label, score, count in zip(labels, of_classes, counts, strict=True)
    ]
    return metrics


def calibration_error(confidences: np.ndarray, hits: np.ndarray) -> float:
    """The expected calibration error (Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3).

    The mean, over rows, of how far the accuracy of a row's bin is from its mean confidence; bins are of equal width.
    Confidences (rows,) are the scores of the classes that were chosen, from 0 to 1; hits (rows,) if they are right.
    """
    bins = np.clip(np.ceil(confidences * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)  # (0, 1/M], (1/M, 2/M], ...
    surplus = np.bincount(bins, weights=hits - confidences.astype(np.float64), minlength=NUM_BINS)
    return float(np.abs(surplus).sum() / len(hits))


def bootstrap_intervals(
    statistics: Callable[[np.ndarray], Mapping[str, float]], num_rows: int, num_resamples: int, seed: int
) -> dict[str, list[float]]:
    """Between which values 95% of the statistics of resampled rows are (the percentile bootstrap of Efron).

    `statistics` is given how often each row was drawn (rows,), as many as there are, with replacement.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        statistics(np.bincount(rng.integers(num_rows, size=num_rows), minlength=num_rows))
        for _ in bar(range(num_resamples), desc="bootstrap", leave=False, delay=2)
    ]
    outside = (1 - CONFIDENCE_LEVEL) / 2
    return {
        name: np.nanquantile([values[name] for values in drawn], [outside, 1 - outside]).tolist()
        for name in (drawn[0] if drawn else ())
    }


def _accuracies(
    best: np.ndarray, targets: np.ndarray, num_classes: int
) -> Callable[[np.ndarray], Mapping[str, float]]:
    """Top-1, top-5 and mean accuracy over classes, of the best five classes (rows, up to 5)."""
    is_best = best[:, 0] == targets
    is_among = (best == targets[:, None]).any(axis=1)

    def statistics(counts: np.ndarray) -> Mapping[str, float]:
        rows = np.bincount(targets, counts, num_classes)
        right = np.bincount(targets, counts * is_best, num_classes)
        return {
            "top1": right.sum() / rows.sum(),
            "top5": (counts @ is_among) / rows.sum(),
            "mean_class_accuracy": (right[rows > 0] / rows[rows > 0]).mean(),
        }

    return statistics
