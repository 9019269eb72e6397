# SPDX-License-Identifier: Apache-2.0
"""By which metric the best checkpoint is chosen: known to be one that evaluations have before anything is trained."""

from collections.abc import Mapping

from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from ..data.samples import EvaluationDataset
from ..evaluation.metrics import TOP_K, mean_metrics
from ..recipe.dataset_recipe import MULTI_LABEL
from .arguments import CoverTrainingArguments


logger = logging.get_logger(__name__)


def evaluation_metrics(datasets: Mapping[str, EvaluationDataset]) -> list[str]:
    """The names of the metrics that an evaluation of these datasets has, without the prefix "eval"."""
    measured = {name: dict.fromkeys(_metrics_of(dataset), 0.0) for name, dataset in datasets.items()}
    of_datasets = [f"{name}_{key}" for name, metrics in measured.items() for key in ("loss", *metrics)]
    return [*of_datasets, *mean_metrics(measured)]


def _metrics_of(dataset: EvaluationDataset) -> list[str]:
    if dataset.source.problem_type != MULTI_LABEL:
        return [f"top{k}" for k in TOP_K]
    return ["map"] if dataset.source.class_counts().any() else []


def warn_of_unmeasurable(datasets: Mapping[str, EvaluationDataset]) -> None:
    """Name the datasets of whose evaluation nothing but the loss can be told."""
    for name, dataset in datasets.items():
        if not _metrics_of(dataset):
            logger.warning(
                f"dataset '{name}': no row of its validation split has a label, so it has a loss and no mAP"
            )


def check_best_metric(args: CoverTrainingArguments, datasets: Mapping[str, EvaluationDataset]) -> None:
    """Raise a `ValueError` if the best checkpoint is to be chosen by a metric that evaluations do not have."""
    if not (args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST):
        return
    there = evaluation_metrics(datasets)
    if (asked := args.metric_for_best_model.removeprefix("eval_")) not in there:
        metrics = ", ".join(f"eval_{name}" for name in there) or "none: no dataset is evaluated"
        raise ValueError(f"metric_for_best_model: an evaluation has no 'eval_{asked}', its metrics are {metrics}")
