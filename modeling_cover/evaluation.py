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
"""Top-k accuracy, as an `evaluate` metric that needs no download."""

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction


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


def largest_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The classes of largest logit, (rows, up to 5): all that a Trainer needs to gather for `TopKAccuracy`."""
    return logits.topk(min(max(TOP_K), logits.shape[-1])).indices


def compute_top_k(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer whose predictions are `largest_classes`."""
    metric = TopKAccuracy(keep_in_memory=True)
    return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
