# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Top-k accuracy and mean average precision, as `evaluate` metrics that need no download."""

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction

from ..data import UNREADABLE


TOP_K = (1, 5)


class TopKAccuracy(evaluate.Metric):
    """The share of rows whose class is among the k classes of largest logit, for k = 1 and 5.

    `predictions`: (rows, up to 5), the classes of largest logit in descending order; `references`: (rows,).
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Top-1 and top-5 accuracy.",
            citation="",
            inputs_description=self.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: list[list[int]], references: list[int]) -> dict[str, float]:
        hits = np.asarray(predictions) == np.asarray(references)[:, None]
        return {f"top{k}": float(hits[:, :k].any(axis=1).mean()) for k in TOP_K}


class MeanAveragePrecision(evaluate.Metric):
    """The area under precision over recall of each label, averaged over the labels that some row has.

    `predictions`: (rows, labels), a score for each label; `references`: (rows, labels), 0 or 1. Rows of equal score are
    one point of the curve.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean average precision.",
            citation="",
            inputs_description=self.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        scores, has_label = np.asarray(predictions), np.asarray(references) > 0.5
        precisions = [
            average_precision(scores[:, label], has_label[:, label])
            for label in range(scores.shape[1])
            if has_label[:, label].any()
        ]
        return {"map": float(np.mean(precisions)) if precisions else float("nan")}


def average_precision(scores: np.ndarray, has_label: np.ndarray) -> float:
    """The sum of precision times gain in recall, from the highest score (rows,) down."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(has_label[order])
    is_last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    ranks = np.flatnonzero(is_last_of_equals)
    precision, recall = hits[ranks] / (ranks + 1), hits[ranks] / hits[-1]
    return float(np.sum(precision * np.diff(recall, prepend=0)))


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

    `top1` and `top5`, or `map` of a multi-label head; and `unreadable`, the number of rows whose file could not be
    decoded, if there are any: they count neither for nor against the model.

    Raises:
        ValueError: if not one row could be decoded.
    """
    labels, readable = prediction.label_ids, readable_rows(prediction.label_ids)
    if not readable.any():
        raise ValueError("not one file of the evaluation could be decoded")
    metric = (TopKAccuracy if labels.ndim == 1 else MeanAveragePrecision)(keep_in_memory=True)
    metrics = metric.compute(predictions=prediction.predictions[readable], references=labels[readable])
    return metrics if readable.all() else {**metrics, "unreadable": int((~readable).sum())}
