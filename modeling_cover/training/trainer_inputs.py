# SPDX-License-Identifier: Apache-2.0
"""What a `CoverTrainer` is given, checked: model, data, weights and arguments must be made for one another."""

from collections.abc import Mapping
from typing import Any

from ..data.mixture import MixtureSchedule
from ..data.samples import CoTrainingDataset, EvaluationDataset, collate_clips
from ..evaluation.metrics import compute_metrics, metric_inputs
from ..model.video_processing_cover import CoverVideoProcessor
from .arguments import CoverTrainingArguments
from .best_metric import check_best_metric, warn_of_unmeasurable
from .checkpoints import check_writable


def check_inputs(
    heads: list[str],
    args: CoverTrainingArguments,
    loss_weights: Mapping[str, float],
    train_dataset: CoTrainingDataset | None,
    eval_dataset: Any,
    other: Mapping[str, Any],
) -> None:
    """Raise a `ValueError` that names what a trainer of a model with these heads cannot use, or a [`CheckpointError`].

    Args:
        other: the other arguments of transformers' Trainer.
    """
    if not isinstance(args, CoverTrainingArguments):
        raise ValueError(f"args: expected CoverTrainingArguments, got {type(args).__name__}")
    if other.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func: CoverTrainer has the co-training loss, override compute_loss instead")
    if train_dataset is not None:
        _check_made_for(train_dataset, heads)
    named = {*loss_weights, *(eval_dataset if isinstance(eval_dataset, Mapping) else ())}
    if unknown := sorted(named - set(heads)):
        raise ValueError(f"unknown datasets {unknown}: the model's heads are {heads}")
    if negative := {name: weight for name, weight in loss_weights.items() if weight < 0}:
        raise ValueError(f"loss weights must not be negative, got {negative}")
    if args.should_save:
        check_writable(args.output_dir)
    if args.n_gpu > 1:
        raise ValueError("one process drives one GPU: launch with `accelerate launch` or `torchrun`")


def _check_made_for(dataset: CoTrainingDataset, heads: list[str]) -> None:
    if not isinstance(dataset, CoTrainingDataset):
        raise ValueError(f"train_dataset: expected a CoTrainingDataset, got {type(dataset).__name__}")
    made_for = sorted(dataset.head_ids, key=dataset.head_ids.get)
    if made_for != heads:
        raise ValueError(f"train_dataset was made for the heads {made_for}, and the model has {heads}: make a new one")


def check_metric(
    args: CoverTrainingArguments, train_dataset: CoTrainingDataset | None, eval_dataset: Any, compute: Any
) -> None:
    """Raise a `ValueError` unless an evaluation has the metric by which the best checkpoint is chosen."""
    is_ours = isinstance(eval_dataset, Mapping) and all(
        isinstance(data, EvaluationDataset) for data in eval_dataset.values()
    )
    if compute is compute_metrics and train_dataset is not None and is_ours:
        check_best_metric(args, eval_dataset)
        warn_of_unmeasurable(eval_dataset)


def checked_schedule(
    args: CoverTrainingArguments, dataset: CoTrainingDataset, schedule: MixtureSchedule | None
) -> MixtureSchedule:
    """The schedule; by default every dataset in proportion to its size.

    Raises:
        ValueError: unless all that is random about the data follows from one seed.
    """
    schedule = schedule or MixtureSchedule(dataset.sizes, dataset.seed)
    if schedule.seed != dataset.seed:
        raise ValueError(f"the schedule has seed {schedule.seed} and train_dataset {dataset.seed}: make them with one")
    if args.data_seed not in (None, dataset.seed):
        raise ValueError(
            f"data_seed is {args.data_seed} and train_dataset has seed {dataset.seed}: make it with data_seed"
        )
    return schedule


def with_defaults(
    kwargs: Mapping[str, Any], train_dataset: CoTrainingDataset | None, eval_dataset: Any
) -> dict[str, Any]:
    """The other arguments of transformers' Trainer, with ours where they are not given."""
    kwargs = {"data_collator": collate_clips, "processing_class": processor_of(train_dataset, eval_dataset), **kwargs}
    if "compute_metrics" in kwargs:
        return kwargs
    return {"preprocess_logits_for_metrics": metric_inputs, "compute_metrics": compute_metrics, **kwargs}


def processor_of(train_dataset: CoTrainingDataset | None, eval_dataset: Any) -> CoverVideoProcessor | None:
    """The processor that the samples are made with."""
    evaluated = eval_dataset.values() if isinstance(eval_dataset, Mapping) else [eval_dataset]
    made = [data for data in (train_dataset, *evaluated) if isinstance(data, CoTrainingDataset | EvaluationDataset)]
    return made[0].processor if made else None
