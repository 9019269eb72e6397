# SPDX-License-Identifier: Apache-2.0
"""Co-training with transformers' Trainer: the weighted sum of per-dataset losses (section 3.3 of the paper)."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from ..data.mixture import MixtureSampler, MixtureSchedule
from ..data.samples import EVALUATED, UNREADABLE, CoTrainingDataset, EvaluationDataset, collate_clips
from ..evaluation.metrics import MEAN_METRICS, compute_metrics, mean_metrics, metric_inputs, readable_rows
from ..model.modeling_cover import CoverForVideoClassification
from ..model.video_processing_cover import CoverVideoProcessor
from .arguments import CoverTrainingArguments
from .best_metric import check_best_metric, warn_of_unmeasurable
from .checkpoints import check_writable
from .generators import kept_generators
from .labels import hits_of_heads, row_losses, smoothed_labels
from .loss import step_loss
from .optimizing import OptimizingTrainer
from .parameter_groups import freeze_all_but
from .progress import CoverProgressCallback, CurvesCallback
from .sharding import configure_sharding, is_sharded, with_equal_groups
from .step_metrics import StepMetrics
from .zero import check_options


class _MixtureCallback(TrainerCallback):
    """Tells the sampler where the epoch begins, which accelerate does not do through every wrapper that a resumed run
    adds; and starts a new run with nothing in quarantine."""

    def __init__(self, trainer: "CoverTrainer"):
        self.trainer = trainer
        self.is_resumed = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.step_metrics.start_clock(state.global_step)
        self.trainer.has_begun = True
        self.is_resumed = state.global_step > 0
        quarantine = self.trainer.train_dataset.quarantine
        if quarantine is not None and state.global_step == 0:
            if args.process_index == 0:
                quarantine.clear()
            self.trainer.accelerator.wait_for_everyone()
        self.trainer.take_up_log()
        self.trainer.log_if_due()
        self.trainer.evaluate_if_due()
        self.trainer.step_metrics.start_clock(state.global_step)

    def on_epoch_begin(self, args, state, control, **kwargs):
        sampler = self.trainer.train_sampler
        sampler.set_epoch(int(state.epoch or 0))
        # Of the epoch that goes on from a checkpoint, Trainer draws what was trained on, too, and throws it away.
        is_skipped = self.is_resumed and not args.ignore_data_skip
        done = state.global_step % self.trainer.steps_per_epoch if is_skipped else 0
        sampler.skip(done * self.trainer.rows_per_step)
        self.is_resumed = False


def _check_made_for(dataset: CoTrainingDataset, heads: list[str]) -> None:
    """Raise a `ValueError` unless the head ids of `dataset` are those of a model with `heads`."""
    if not isinstance(dataset, CoTrainingDataset):
        raise ValueError(f"train_dataset: expected a CoTrainingDataset, got {type(dataset).__name__}")
    made_for = sorted(dataset.head_ids, key=dataset.head_ids.get)
    if made_for != heads:
        raise ValueError(f"train_dataset was made for the heads {made_for}, and the model has {heads}: make it anew")


def _check_same_seed(args: CoverTrainingArguments, schedule_seed: int, dataset_seed: int) -> None:
    """Raise a `ValueError` unless all that is random about the data follows from one seed."""
    if schedule_seed != dataset_seed:
        raise ValueError(f"the schedule has seed {schedule_seed} and train_dataset {dataset_seed}: make them with one")
    if args.data_seed not in (None, dataset_seed):
        raise ValueError(
            f"data_seed is {args.data_seed} and train_dataset has seed {dataset_seed}: make it with data_seed"
        )


def _processor_of(
    train_dataset: CoTrainingDataset | None,
    eval_dataset: Mapping[str, torch.utils.data.Dataset] | torch.utils.data.Dataset | None,
) -> CoverVideoProcessor | None:
    """The processor that the samples are made with."""
    evaluated = eval_dataset.values() if isinstance(eval_dataset, Mapping) else [eval_dataset]
    made = [data for data in (train_dataset, *evaluated) if isinstance(data, CoTrainingDataset | EvaluationDataset)]
    return made[0].processor if made else None


def _is_told_apart(eval_dataset: Any) -> bool:
    """Whether what is evaluated are splits of datasets, by their names."""
    return isinstance(eval_dataset, Mapping) and all(
        isinstance(data, EvaluationDataset) for data in eval_dataset.values()
    )


def _metrics_of(name: str, metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """One dataset's metrics, without what their names begin with."""
    return {key: metrics[f"{prefix}_{name}_{key}"] for key in MEAN_METRICS if f"{prefix}_{name}_{key}" in metrics}


class CoverTrainer(OptimizingTrainer):
    """A Trainer of one model on a mixture of datasets.

    The loss of an optimizer step, over all of its rows (every process, every accumulation step), is

        sum over datasets i of  weight_i * mean over the rows of dataset i of their loss

    or, with `loss_reduction="per_sample"`, the sum over rows of weight times loss divided by the number of rows. Its
    gradient does not depend on how the rows are spread over accumulation steps and processes. An epoch is a whole number
    of steps: see [`MixtureSampler`].

    The log has the mean loss (`<dataset>_loss`), the top-1 on training samples (`<dataset>_top1`), the share of the drawn samples (`<dataset>_share`) and, if there are
    any, the number of files that could not be decoded (`<dataset>_bad_files`) of each dataset, and the part of the
    time that was spent waiting for data (`data_wait`). An evaluation has top-1 and top-5 of each (`eval_<dataset>_top1`),
    of a multi-label dataset the mean average precision (`eval_<dataset>_map`), and the means that [`mean_metrics`] has,
    such as `eval_mean_score`, by which the best checkpoint is chosen unless `metric_for_best_model` says otherwise.
    Predictions are the five classes of largest logit, in order, of a multi-label dataset the logits; with another
    `compute_metrics` they are logits.

    Args:
        model: with a head for each dataset, of the same name.
        args: training arguments.
        loss_weights: the weight of each dataset's loss; 1 where none is given.
        train_dataset: the training samples.
        schedule: what is drawn at each position of the run; by default every dataset in proportion to its size.
        eval_dataset: by name of the dataset, see [`EvaluationDataset`].
        processing_class: saved with the model; by default the processor that the samples are made with, which also
            normalises them, on the training device.
        kwargs: `recipe`, see [`RecordedTrainer`]; and as of [`~transformers.Trainer`].

    Raises:
        ValueError: if a weight is negative or its dataset has no head, evaluation data has no head, the training data
            was made for other heads, or an argument is given that co-training has no use for.
    """

    # compute_loss divides by the rows of the whole step, accumulation steps included.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: CoverForVideoClassification,
        args: CoverTrainingArguments,
        *,
        loss_weights: Mapping[str, float] | None = None,
        train_dataset: CoTrainingDataset | None = None,
        schedule: MixtureSchedule | None = None,
        eval_dataset: Mapping[str, torch.utils.data.Dataset] | torch.utils.data.Dataset | None = None,
        **kwargs: Any,
    ):
        heads = model.config.head_names
        if not isinstance(args, CoverTrainingArguments):
            raise ValueError(f"args: expected CoverTrainingArguments, got {type(args).__name__}")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func: CoverTrainer has the co-training loss, override compute_loss instead")
        if train_dataset is not None:
            _check_made_for(train_dataset, heads)
        named = {*(loss_weights or {}), *(eval_dataset if isinstance(eval_dataset, Mapping) else ())}
        if unknown := sorted(named - set(heads)):
            raise ValueError(f"unknown datasets {unknown}: the model's heads are {heads}")
        if negative := {name: weight for name, weight in (loss_weights or {}).items() if weight < 0}:
            raise ValueError(f"loss weights must not be negative, got {negative}")
        if args.should_save:
            check_writable(args.output_dir)
        if args.n_gpu > 1:
            raise ValueError("one process drives one GPU: launch with `accelerate launch` or `torchrun`")
        freeze_all_but(model, args.trained_part)
        kwargs.setdefault("data_collator", collate_clips)
        made_with = _processor_of(train_dataset, eval_dataset)
        kwargs.setdefault("processing_class", made_with)
        if "compute_metrics" not in kwargs:
            kwargs["compute_metrics"] = compute_metrics
            kwargs.setdefault("preprocess_logits_for_metrics", metric_inputs)
        if kwargs["compute_metrics"] is compute_metrics and train_dataset is not None and _is_told_apart(eval_dataset):
            check_best_metric(args, eval_dataset)
            warn_of_unmeasurable(eval_dataset)
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        if self.is_deepspeed_enabled:
            check_options(self.accelerator.state.deepspeed_plugin.deepspeed_config, args.max_grad_norm)
        configure_sharding(self.accelerator)
        self.head_names = heads
        weights = [float((loss_weights or {}).get(name, 1.0)) for name in heads]
        self.loss_weights = torch.tensor(weights, device=args.device)
        self.step_metrics = StepMetrics({name: model.config.get_head(name) for name in heads}, args.device)
        self._config, self._patch_size = model.config, model.cover.embeddings.patch_size
        self._pixel_processor = made_with or self.processing_class
        # Of an evaluation: the sum of losses of the rows that could be read, and their number.
        self._evaluated = torch.zeros(2, dtype=torch.float64, device=args.device)
        self.has_begun = False  # to train or to evaluate
        if train_dataset is not None:
            schedule = schedule or MixtureSchedule(train_dataset.sizes, train_dataset.seed)
            _check_same_seed(args, schedule.seed, train_dataset.seed)
            self.train_sampler = MixtureSampler(
                schedule,
                self.rows_per_step,
                train_dataset.open_streams(),
                train_dataset.mixed,
                batch_size=args.train_batch_size,
                costs=train_dataset.costs,
            )
            self.add_callback(_MixtureCallback(self))
            self.add_callback(CurvesCallback(heads))
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(CoverProgressCallback)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # What is no argument of the model is taken out of the samples; `collate_clips` needs this one.
        self._signature_columns = [*{*self._signature_columns, "dataset"}]

    def _get_train_sampler(self, train_dataset: CoTrainingDataset | None = None) -> MixtureSampler:
        return self.train_sampler

    def step_begins(self) -> None:
        super().step_begins()
        self.step_metrics.begin_step()

    def step_is_taken(self) -> None:
        super().step_is_taken()
        self.step_metrics.take_step()

    def take_up_log(self) -> None:
        self.step_metrics.sums.zero_()
        super().take_up_log()
        self._logged_step = self._globalstep_last_logged

    def sums_since_log(self) -> dict[str, torch.Tensor]:
        return {**super().sums_since_log(), "data_sets": self.step_metrics.sums}

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | None]:
        batches, counts = super().get_batch_samples(self._timed(epoch_iterator), num_batches, device)
        if is_sharded(self.accelerator):
            batches = with_equal_groups(batches, self.accelerator, self._patch_size)
        return batches, counts

    def _timed(self, batches: Iterator) -> Iterator:
        """The batches, with the time that they keep the training loop waiting added up."""
        while True:
            self.note("waiting for data")
            with self.step_metrics.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Rows of each head, (heads,), in all batches of an optimizer step on all processes; None in evaluation."""
        if not batch_samples or "head" in batch_samples[0]:
            return None
        if "head_ids" not in batch_samples[0]:
            raise ValueError("a training batch needs head_ids, which say whose row is whose: see collate_clips")
        counts = sum(self._rows_of_heads(batch["head_ids"]) for batch in batch_samples)
        return self.accelerator.reduce(counts.to(device), reduction="sum")

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        clips = inputs["pixel_values"]
        groups = [self._normalized(group) for group in (clips if isinstance(clips, list) else [clips])]
        return {**inputs, "pixel_values": groups if isinstance(clips, list) else groups[0]}

    def _normalized(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, T, C, H, W) as the model takes them. They come as bytes; floats are somebody's own, and ready."""
        if clips.is_floating_point():
            return clips
        if not isinstance(self._pixel_processor, CoverVideoProcessor):
            raise ValueError("clips of bytes need the processing_class that normalises them: a CoverVideoProcessor")
        return self._pixel_processor.normalize_pixels(clips)

    def _rows_of_heads(self, head_ids: torch.Tensor) -> torch.Tensor:
        # As torch.bincount, which would wait for the device to learn its length.
        return (head_ids[:, None] == torch.arange(len(self.head_names), device=head_ids.device)).sum(dim=0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """This batch's part of the loss of its optimizer step; in evaluation, the mean over its rows that could be decoded.

        `inputs` is a batch of `collate_clips`, `num_items_in_batch` (heads,) the rows of each head in the step.
        """
        if not model.training:
            loss, outputs = self._evaluation_loss(model, **inputs)
            return (loss, outputs) if return_outputs else loss
        labels = inputs["labels"]
        if self.args.label_smoothing_factor:
            smoothed = smoothed_labels(self._config, labels, inputs["head_ids"], self.args.label_smoothing_factor)
            inputs = {**inputs, "labels": smoothed}
        outputs = model(**inputs)
        losses = torch.stack([outputs.head_losses[name] for name in self.head_names])
        rows = self._rows_of_heads(inputs["head_ids"])
        self.step_metrics.add(
            losses, rows, hits_of_heads(self._config, outputs.head_logits, labels, inputs["head_ids"])
        )
        loss = step_loss(losses, rows, num_items_in_batch, self.loss_weights, self.args.loss_reduction)
        # Gradients are averaged over processes, and this is a sum over them.
        loss = loss * self.accelerator.num_processes
        if self.is_deepspeed_enabled:
            # Its optimizer steps inside of `backward`, and looks at gradients alone.
            loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
        self.note("backward pass")
        return (loss, outputs) if return_outputs else loss

    def _evaluation_loss(
        self, model: nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor, head: str
    ) -> tuple[torch.Tensor, Any]:
        """The mean loss of the rows that could be decoded; 0 if there are none."""
        outputs = model(pixel_values, head=head)
        readable = readable_rows(labels)
        losses = row_losses(self._config, head, outputs.logits, labels.masked_fill(labels == UNREADABLE, 0))
        losses = torch.stack([losses.masked_fill(~readable, 0), readable.to(losses)], dim=1)
        self.note("evaluation")  # anew: from here on, it waits for the others
        # Rows that only fill up the last batch of a process do not count.
        self._evaluated += self.accelerator.gather_for_metrics(losses).double().sum(dim=0)
        total, rows = losses.sum(dim=0)
        return total / rows.clamp(min=1), outputs

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        if not self.has_begun:
            self._forget_unreadable(dataloader.dataset)
        self._evaluated.zero_()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if (loss := f"{metric_key_prefix}_loss") in output.metrics:
            # Trainer's is a mean of batches, whichever rows of them could be read.
            total, rows = self._evaluated.tolist()
            output.metrics[loss] = total / max(1, rows)
        return output

    def _forget_unreadable(self, dataset: torch.utils.data.Dataset) -> None:
        """An evaluation without training is a run of its own: files may have been mended since the last one."""
        self.has_begun = True
        quarantine = dataset.quarantine if isinstance(dataset, EvaluationDataset) else None
        if quarantine is not None:
            self.hold_output_dir()
            if self.is_world_process_zero():
                quarantine.clear(EVALUATED)
        self.accelerator.wait_for_everyone()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            step = self.state.global_step
            clock = self.step_metrics.clock_logs(step, self.rows_per_step)
            logs.update(self.step_metrics.dataset_logs(partial(self.accelerator.reduce, reduction="sum")))
            if self.train_dataset.quarantine is not None:
                counts = self.train_dataset.quarantine.counts()
                logs |= {f"{name}_bad_files": count for name, count in counts.items()}
            self._leave_out_skipped_steps(logs)
            logs |= clock
            self.step_metrics.start_clock(step)
        super().log(logs, start_time)

    def _leave_out_skipped_steps(self, logs: dict[str, float]) -> None:
        """Make the mean loss one over the steps that were taken."""
        if skipped := self._skipped_since_log:
            steps = self.state.global_step - self._logged_step
            logs["skipped_steps"] = skipped
            logs["loss"] = logs["loss"] * steps / (steps - skipped) if steps > skipped else math.nan
        self._skipped_since_log, self._logged_step = 0, self.state.global_step

    @kept_generators()
    def evaluate(
        self,
        eval_dataset: torch.utils.data.Dataset | dict | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        # `data_wait` is a part of the time of training. Of several datasets, each is evaluated by a call of its own.
        with self.step_metrics.clock_stopped():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(datasets, Mapping):
            return metrics
        means = mean_metrics({name: _metrics_of(name, metrics, metric_key_prefix) for name in datasets})
        means = {f"{metric_key_prefix}_{key}": value for key, value in means.items()}
        if means:  # another compute_metrics may have none of them
            self.log(means)
            # Callbacks such as early stopping look for the means; until now they have seen one dataset at a time.
            metrics = {**metrics, **means}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, of all processes and accumulation steps together."""
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 operations for each parameter of the encoder and each patch: forward and backward, attention left out."""
        clips = inputs["pixel_values"]
        rows, columns = self.model.cover.embeddings.patch_size
        patches = sum(
            group.shape[0] * group.shape[1] * (group.shape[-2] // rows) * (group.shape[-1] // columns)
            for group in (clips if isinstance(clips, list) else [clips])
        )
        return 6 * patches * sum(parameter.numel() for parameter in self.model.cover.layers.parameters())
