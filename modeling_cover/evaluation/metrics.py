# SPDX-License-Identifier: Apache-2.0
"""Top-k accuracy and mean average precision: as metrics of the `evaluate` library, and as functions of arrays.

The metrics are local: they load nothing from the Hub, and keep what they are given in memory.
"""

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Features, Sequence, Value
from transformers import EvalPrediction

from ..data.samples import UNREADABLE
from ..recipe.checks import check_new_name


TOP_K = (1, 5)

# What one number says of a dataset: of one label a row, and of several.
MAIN_METRICS = ("top1", "map")
MEAN_METRICS = ("top1", "top5", "map")

# What an evaluation has of its own under such names.
OWN_METRICS = frozenset([*MEAN_METRICS, "loss", "unreadable", "runtime", "samples_per_second", "steps_per_second"])


class _LocalMetric(evaluate.Metric):
    def __init__(self, **kwargs: Any):
        # Of several processes, evaluate gathers what each has written into a file.
        super().__init__(**{"keep_in_memory": kwargs.get("num_process", 1) == 1, **kwargs})

    def _build_data_dir(self) -> str:
        # evaluate makes the folder of its files also where it writes none, and a home may be read-only.
        return "" if self.keep_in_memory else super()._build_data_dir()

    def _described(self, inputs: str, features: Features) -> evaluate.MetricInfo:
        info = evaluate.MetricInfo(self.__doc__, citation="", inputs_description=inputs, features=features)
        # Rows are of one length, of which `datasets` makes one array. MetricInfo takes the format with single values
        # only.
        info.format = "numpy"
        return info


class TopKAccuracy(_LocalMetric):
    """The share of rows whose class is the first, or among the first five, of the classes predicted.

    ```python
    >>> TopKAccuracy().compute(predictions=[[3, 1, 0], [2, 0, 1]], references=[3, 0])
    {'top1': 0.5, 'top5': 1.0}
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Sequence(Value("int64")), "references": Value("int64")})
        return self._described(
            "predictions: (rows, up to 5), the classes of largest logit, in order. references: (rows,), the classes.",
            features,
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return top_k_accuracy(predictions, references)


class MeanAveragePrecision(_LocalMetric):
    """The mean over labels of the average precision, of rows with several labels each; see [`mean_average_precision`].

    ```python
    >>> MeanAveragePrecision().compute(predictions=[[0.9, 0.2], [0.1, 0.4]], references=[[True, True], [False, False]])
    {'map': 0.75}
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Sequence(Value("float32")), "references": Sequence(Value("bool"))})
        return self._described(
            "predictions: (rows, labels), scores, such as logits. references: (rows, labels), whether a row has a label.",
            features,
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"map": mean_average_precision(predictions, references)}


def top_k_accuracy(best: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The share of rows whose class (rows,) is among the best (rows, up to 5), the first of k, for k = 1 and 5."""
    hits = best == targets[:, None]
    return {f"top{k}": float(hits[:, :k].any(axis=1).mean()) for k in TOP_K}


def mean_average_precision(scores: np.ndarray, has_label: np.ndarray, counts: np.ndarray | None = None) -> float:
    """The mean, over the labels that some row has, of [`average_precision`]; NaN if no row has any.

    Scores and labels are (rows, labels); each row counts as often as `counts` (rows,) says, by default once.
    """
    precisions = average_precisions(scores, has_label, counts)
    there = ~np.isnan(precisions)
    return float(precisions[there].mean()) if there.any() else float("nan")


def average_precisions(scores: np.ndarray, has_label: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """(labels,), NaN for a label that no row has; see [`mean_average_precision`]."""
    counts = np.ones(len(scores)) if counts is None else counts
    return np.array(
        [
            average_precision(scores[:, label], has_label[:, label], counts) if there else np.nan
            for label, there in enumerate(counts @ has_label > 0)
        ]
    )


def average_precision(scores: np.ndarray, has_label: np.ndarray, counts: np.ndarray) -> float:
    """The area under precision over recall of one label: the sum of precision times gain in recall, from the highest
    score (rows,) down; rows of equal score are one point of the curve."""
    order = np.argsort(-scores, kind="stable")
    hits, ranks = np.cumsum((has_label * counts)[order]), np.cumsum(counts[order])
    is_last_of_equals = np.append(np.diff(scores[order]) != 0, True) & (ranks > 0)
    hits, ranks = hits[is_last_of_equals], ranks[is_last_of_equals]
    return float(np.sum(hits / ranks * np.diff(hits / hits[-1], prepend=0)))


def metric_inputs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """All that a Trainer needs to gather for `compute_metrics`: (rows, up to 5), the classes of largest logit; of a
    multi-label head, the logits."""
    if labels.ndim == 2:
        return logits
    return logits.topk(min(max(TOP_K), logits.shape[-1])).indices


def readable_rows(labels: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """(rows,), which of them could be decoded, of labels (rows,) or (rows, labels)."""
    return (labels if labels.ndim == 1 else labels[:, 0]) != UNREADABLE


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer whose predictions are `metric_inputs`.

    `top1` and `top5`, or `map` of a multi-label head, unless no row has a label; and `unreadable`, the number of rows
    whose file could not be decoded, if there are any: they count neither for nor against the model.

    Raises:
        ValueError: if not one row could be decoded.
    """
    labels, readable = prediction.label_ids, readable_rows(prediction.label_ids)
    if not readable.any():
        raise ValueError("not one file of the evaluation could be decoded")
    predictions, labels = prediction.predictions[readable], labels[readable]
    metrics = {}
    if labels.ndim == 1:
        metrics = TopKAccuracy().compute(predictions=predictions, references=labels)
    elif (has_label := labels > 0.5).any():
        metrics = MeanAveragePrecision().compute(predictions=predictions, references=has_label)
    return metrics if readable.all() else {**metrics, "unreadable": int((~readable).sum())}


@dataclass(frozen=True)
class ComputeWithFunctions:
    """`compute_metrics` of a Trainer whose predictions are logits: those of [`compute_metrics`], and a user's own.

    Attributes:
        functions: by the name of each metric, called with the float32 logits (rows, classes) and the targets of the
            rows that could be decoded: classes (rows,), or 0 and 1 (rows, classes) of a multi-label dataset. Each
            returns a number.

    Raises:
        ValueError: names the metric whose name is none or taken, or that is no function; or, as it is called, what a
            function returns that is no number.
    """

    functions: Mapping[str, Callable[[np.ndarray, np.ndarray], float]]

    def __post_init__(self):
        if not isinstance(self.functions, Mapping):
            raise ValueError(f"metrics: expected a function for each name, got {self.functions!r}")
        for name, function in self.functions.items():
            check_new_name("metric", name)
            if name in OWN_METRICS:
                raise ValueError(f"metric '{name}': an evaluation has one of that name already")
            if not callable(function):
                raise ValueError(f"metric '{name}': expected a function of (logits, targets), got {function!r}")

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, targets = prediction.predictions.astype(np.float32), prediction.label_ids
        inputs = metric_inputs(torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
        metrics, readable = compute_metrics(EvalPrediction(inputs, targets)), readable_rows(targets)
        for name, function in self.functions.items():
            value = function(logits[readable], targets[readable])
            if not isinstance(value, numbers.Real):
                raise ValueError(f"metric '{name}': expected a number, got {type(value).__name__}: {value!r}")
            metrics[name] = float(value)
        return metrics


def mean_metrics(of_datasets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What the metrics of several datasets, each as of [`compute_metrics`], come to.

    Returns:
        `mean_top1`, `mean_top5` and `mean_map`, each over the datasets that have the metric; and `mean_score`, over
        all datasets the mean of the main metric: top-1, or mAP of a multi-label one. What no dataset has is left out.
    """
    values = {key: [metrics[key] for metrics in of_datasets.values() if key in metrics] for key in MEAN_METRICS}
    values["score"] = [value for key in MAIN_METRICS for value in values[key]]
    return {f"mean_{key}": sum(found) / len(found) for key, found in values.items() if found}


def confusion_matrix(references: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(classes, classes), how many rows of each class (the first axis) were taken for each, of classes (rows,)."""
    counts = np.bincount(references * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def means_of_datasets(metrics: Mapping[str, float], datasets: object, prefix: str) -> dict[str, float]:
    """The means over datasets, `<prefix>_mean_...`, of an evaluation's metrics, `<prefix>_<dataset>_...`.

    Args:
        datasets: the evaluated datasets by name; a single dataset has no means.
    """
    if not isinstance(datasets, Mapping):
        return {}
    of_datasets = {
        name: {key: metrics[f"{prefix}_{name}_{key}"] for key in MEAN_METRICS if f"{prefix}_{name}_{key}" in metrics}
        for name in datasets
    }
    return {f"{prefix}_{key}": value for key, value in mean_metrics(of_datasets).items()}
