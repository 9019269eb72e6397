# SPDX-License-Identifier: Apache-2.0
"""What a `CoverTrainer` is given, checked: model, data, weights and arguments must be made for one another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from transformers.utils import logging

from ..data.collation import collate_clips
from ..data.mixture import MixtureSchedule
from ..data.samples import CoTrainingDataset, EvaluationDataset
from ..evaluation.metrics import TOP_K, ComputeWithFunctions, compute_metrics, mean_metrics, metric_inputs
from ..model.configuration_cover import CoverConfig
from ..model.normalisation_cover import check_normalisation
from ..model.video_processing_cover import CoverVideoProcessor
from .arguments import CoverTrainingArguments
from .checkpoints import check_writable
from .equal_updates import EqualUpdates
from .given_data import DataOptions, GivenData


logger = logging.get_logger(__name__)


def checked_weights(heads: list[str], loss_weights: Mapping[str, float] | EqualUpdates | None) -> dict[str, float]:
    """The weight of each head's loss, 1 where none is given; a `ValueError` names what is no weight of a head."""
    given = {} if isinstance(loss_weights, EqualUpdates) else loss_weights or {}
    if unknown := sorted(set(given) - set(heads)):
        raise ValueError(f"loss_weights: unknown datasets {unknown}: the model's heads are {heads}")
    if negative := {name: weight for name, weight in given.items() if weight < 0}:
        raise ValueError(f"loss weights must not be negative, got {negative}")
    return {name: float(given.get(name, 1.0)) for name in heads}


@dataclass(frozen=True, kw_only=True)
class TrainerInputs:
    """What a trainer is given, checked; `given` makes the samples of what it is told to evaluate later."""

    train_dataset: CoTrainingDataset | None
    schedule: MixtureSchedule | None
    eval_dataset: Any
    given: GivenData
    other: dict[str, Any]  # the other arguments of transformers' Trainer

    @property
    def for_trainer(self) -> dict[str, Any]:
        """The arguments of transformers' Trainer."""
        return {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset, **self.other}

    @property
    def pixel_processor(self) -> Any:
        """What normalises samples on the training device."""
        return processor_of(self.train_dataset, self.eval_dataset) or self.other["processing_class"]


def no_search(*args: Any, **kwargs: Any) -> NoReturn:
    """What a search of hyperparameters is in place of transformers' own.

    Raises:
        ValueError: always; it says how to search.
    """
    raise ValueError(
        "hyperparameter_search: a trainer is of one run, which resumes in its output_dir; make a trainer of each trial, "
        "with a model and an output_dir of its own, and no model_init"
    )


def checked_inputs(
    config: CoverConfig,
    args: CoverTrainingArguments,
    train_dataset: Any,
    schedule: MixtureSchedule | None,
    eval_dataset: Any,
    other: Mapping[str, Any],
) -> TrainerInputs:
    """What a trainer trains and evaluates on, and the other arguments of transformers' Trainer, with ours where they
    are not given.

    Raises:
        ValueError: names what a trainer of a model with these heads cannot use.
        CheckpointError: if the output folder cannot be written to.
    """
    heads = config.head_names
    if not isinstance(args, CoverTrainingArguments):
        raise ValueError(f"args: expected CoverTrainingArguments, got {type(args).__name__}")
    if other.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func: CoverTrainer has the co-training loss, override compute_loss instead")
    if other.get("model_init") is not None:
        no_search()
    if args.should_save:
        check_writable(args.output_dir)
    if args.n_gpu > 1:
        raise ValueError("one process drives one GPU: launch with `accelerate launch` or `torchrun`")
    options, other = DataOptions.taken_from(other)
    processor = other.get("processing_class") or processor_of(train_dataset, eval_dataset)
    given = GivenData(config, args, processor, options)
    train_dataset, schedule = given.training(train_dataset, schedule)
    if train_dataset is not None:
        _check_made_for(train_dataset, heads)
        schedule = checked_schedule(args, train_dataset, schedule)
    eval_dataset = given.evaluation(eval_dataset)
    given.has_begun = True
    if isinstance(eval_dataset, Mapping) and (unknown := sorted(set(eval_dataset) - set(heads))):
        raise ValueError(f"eval_dataset: unknown datasets {unknown}: the model's heads are {heads}")
    other = _with_defaults(other, processor_of(train_dataset, eval_dataset))
    if isinstance(processor, CoverVideoProcessor):
        check_normalisation(config, processor)
    _check_metric(args, train_dataset, eval_dataset, other["compute_metrics"])
    return TrainerInputs(
        train_dataset=train_dataset, schedule=schedule, eval_dataset=eval_dataset, given=given, other=other
    )


def _check_made_for(dataset: CoTrainingDataset, heads: list[str]) -> None:
    if not isinstance(dataset, CoTrainingDataset):
        expected = "datasets by name, or a CoTrainingDataset"
        raise ValueError(f"train_dataset: expected {expected}, got {type(dataset).__name__}")
    made_for = sorted(dataset.head_ids, key=dataset.head_ids.get)
    if made_for != heads:
        raise ValueError(f"train_dataset was made for the heads {made_for}, and the model has {heads}: make a new one")


def _check_metric(
    args: CoverTrainingArguments, train_dataset: CoTrainingDataset | None, eval_dataset: Any, compute: Any
) -> None:
    """Raise a `ValueError` unless an evaluation has the metric by which the best checkpoint, or a rate, is chosen.

    Datasets of whose evaluation nothing but the loss can be told are logged.
    """
    is_ours = isinstance(eval_dataset, Mapping) and all(
        isinstance(data, EvaluationDataset) for data in eval_dataset.values()
    )
    added = list(compute.functions) if isinstance(compute, ComputeWithFunctions) else []
    if not (compute is compute_metrics or added) or train_dataset is None or not is_ours:
        return
    metrics_of = {name: _metrics_of(dataset) for name, dataset in eval_dataset.items()}
    if args.metric_for_best_model is not None:
        of_datasets = [f"{name}_{key}" for name, metrics in metrics_of.items() for key in ("loss", *metrics, *added)]
        means = mean_metrics({name: dict.fromkeys(metrics, 0.0) for name, metrics in metrics_of.items()})
        there = [*of_datasets, *means]
        if (asked := args.metric_for_best_model.removeprefix("eval_")) not in there:
            listed = ", ".join(f"eval_{name}" for name in there) or "none: no dataset is evaluated"
            raise ValueError(f"metric_for_best_model: an evaluation has no 'eval_{asked}', its metrics are {listed}")
    for name, metrics in metrics_of.items():
        if not metrics:
            logger.warning(
                f"dataset '{name}': no row of its validation split has a label, so it has a loss and no mAP"
            )


def _metrics_of(dataset: EvaluationDataset) -> list[str]:
    """The names of the metrics that an evaluation of a dataset has beside the loss."""
    if not dataset.source.is_multi_label:
        return [f"top{k}" for k in TOP_K]
    return ["map"] if dataset.source.has_labels else []


def checked_schedule(
    args: CoverTrainingArguments, dataset: CoTrainingDataset, schedule: MixtureSchedule | None
) -> MixtureSchedule:
    """The schedule; by default every dataset in proportion to its size."""
    schedule = schedule or MixtureSchedule(dataset.sizes, dataset.seed)
    if schedule.seed != dataset.seed:
        raise ValueError(f"the schedule has seed {schedule.seed} and train_dataset {dataset.seed}: make them with one")
    if args.data_seed not in (None, dataset.seed):
        raise ValueError(
            f"data_seed is {args.data_seed} and train_dataset has seed {dataset.seed}: make it with data_seed"
        )
    return schedule


def _with_defaults(kwargs: Mapping[str, Any], processor: CoverVideoProcessor | None) -> dict[str, Any]:
    kwargs = {"data_collator": collate_clips, "processing_class": processor, **kwargs}
    if metrics := kwargs.pop("metrics", None):
        if given := [key for key in ("compute_metrics", "preprocess_logits_for_metrics") if key in kwargs]:
            raise ValueError(f"metrics: they come on top of the trainer's own, which {given[0]} takes the place of")
        return {"compute_metrics": ComputeWithFunctions(metrics), **kwargs}
    if "compute_metrics" in kwargs:
        return kwargs
    return {"preprocess_logits_for_metrics": metric_inputs, "compute_metrics": compute_metrics, **kwargs}


def processor_of(train_dataset: CoTrainingDataset | None, eval_dataset: Any) -> CoverVideoProcessor | None:
    """The processor that the samples are made with."""
    evaluated = eval_dataset.values() if isinstance(eval_dataset, Mapping) else [eval_dataset]
    made = [data for data in (train_dataset, *evaluated) if isinstance(data, CoTrainingDataset | EvaluationDataset)]
    return made[0].processor if made else None
