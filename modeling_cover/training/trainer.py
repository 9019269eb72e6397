# SPDX-License-Identifier: Apache-2.0
"""Co-training with transformers' Trainer: the weighted sum of per-dataset losses (section 3.3 of the paper)."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any, NoReturn

import torch
from huggingface_hub import CommitInfo
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput

from ..data.mixture import MixtureSampler, MixtureSchedule
from ..data.samples import CoTrainingDataset, row_sampler
from ..evaluation.metrics import means_of_datasets
from ..files import finite
from ..hub.model_card import front_matter, write_model_card
from ..model.modeling_cover import CoverForVideoClassification
from ..recipe.recipe import Recipe
from .adapters import save_adapter
from .arguments import CoverTrainingArguments
from .background_publisher import RunPublisher
from .batches import encoder_operations, head_ids_of, normalized, rows_of_heads
from .callbacks import run_callbacks, settled_if_due
from .checkpoints import ADAPTER, RunCheckpoints, all_kept, write_model, write_trainer_state
from .compiling import shard_and_compile
from .equal_updates import EqualUpdates
from .evaluation_loss import EvaluationLoss, forget_unreadable
from .folder_lock import FolderLock
from .generators import kept_generators
from .gradient_watch import GradientWatch
from .launching import begin_training
from .loss import TrainingLoss
from .optimization import drop_schedule, freeze_all_but, gradient_norm, parameter_groups
from .progress import show_progress
from .quiet import leave_out_deepspeed
from .recording import RunRecord
from .resuming import best_weights, forget_evaluation, hold_output_dir, note_best, raised_by_all, resume_point
from .run_identity import stays_stopped
from .run_state import RunState, Tensors, WholeState, average_of_run, load_process_rng_state
from .sharding import is_in_parts, state_in_training, whole_model, with_equal_passes
from .step_guard import EvaluationAbandonedError, StepGuard, memory_explained
from .step_metrics import StepMetrics
from .stop_signals import StopSignals, end_run
from .trainer_inputs import checked_inputs, checked_weights, no_search
from .watchdog import Watch
from .weight_average import WeightAverage
from .zero import visible_to_zero


class CoverTrainer(Trainer):
    """A Trainer of one model on a mixture of datasets.

    The loss of an optimizer step is the sum over datasets of weight times mean loss of the dataset's rows, see
    [`step_loss`]. Its gradient does not depend on how the rows are spread over accumulation steps and processes. An
    epoch is a whole number of steps: see [`MixtureSampler`].

    The log has what [`StepMetrics`] sums up, and `<dataset>_bad_files`. An evaluation has [`compute_metrics`] of each
    dataset and [`mean_metrics`]: `eval_mean_score` chooses the best checkpoint unless `metric_for_best_model` says
    otherwise. Predictions are those of [`metric_inputs`]; with `metrics` or another `compute_metrics`, the logits.

    Args:
        model: with a head for each dataset, of the same name.
        args: training arguments.
        loss_weights: the weight of each dataset's loss, 1 where none is given; or [`EqualUpdates`].
        train_dataset: by name of the head, see [`to_source`] for what each may be; or a [`CoTrainingDataset`], and as
            `schedule` what is drawn when, by default every dataset in proportion to its size.
        eval_dataset: by name of the head, or the default head's alone; or [`EvaluationDataset`]s.
        recipe: the run's, for its record, see [`RunRecord`].
        kwargs: how datasets are mixed, by [`DataOptions`] such as `mixture`; `metrics`, see [`ComputeWithFunctions`];
            and those of [`~transformers.Trainer`]: `processing_class` makes the samples and is saved with the model.

    Raises:
        ValueError: names the weight, dataset or argument that does not go with the model, and what was expected.
    """

    # compute_loss divides by the rows of the whole step, accumulation steps included.
    loss_is_scaled_for_ga = True

    hyperparameter_search = no_search

    # Private members of transformers' Trainer that are overridden, as no public one does what they do:
    #   _get_train_sampler        the mixture's order
    #   _get_eval_sampler         the rows of a stream in order
    #   _get_grad_norm            the norm by which a step is skipped, which no event is told
    #   _load_from_checkpoint     weights are loaded once, by `RunState`
    #   _prepare_for_training     where a run resumes: model and optimizer are sharded, and no step is taken yet
    #   _load_rng_state           the moment at which a resumed run needs its generators
    #   _run_epoch                a run that has ended, or that its due evaluation has stopped, takes no step
    #   _maybe_log_save_evaluate  all that Trainer does beside the steps, which must draw none of their random numbers
    #   _save_checkpoint          a checkpoint is whole or not there, and has no pickles
    #   _load_best_model          the best checkpoint may be damaged, and the model sharded
    #   _finalize_training        the newest checkpoint stays, also where another is the best
    # tests/training/test_private_members.py names the one that a new version of transformers changes.

    # ---- Construction ----

    def __init__(
        self,
        model: CoverForVideoClassification,
        args: CoverTrainingArguments,
        *,
        loss_weights: Mapping[str, float] | EqualUpdates | None = None,
        train_dataset: Mapping[str, Any] | CoTrainingDataset | None = None,
        schedule: MixtureSchedule | None = None,
        eval_dataset: Mapping[str, Any] | Any | None = None,
        recipe: Recipe | None = None,
        **kwargs: Any,
    ):
        self._config, self.head_names = model.config, model.config.head_names
        self.loss_weights = checked_weights(self.head_names, loss_weights)
        inputs = checked_inputs(self._config, args, train_dataset, schedule, eval_dataset, kwargs)
        self._given, self.pixel_processor = inputs.given, inputs.pixel_processor
        freeze_all_but(model, args.trained_part)
        self.publisher = RunPublisher(args)  # which Trainer's constructor asks for
        leave_out_deepspeed(args)
        super().__init__(model=model, args=args, **inputs.for_trainer)
        compiled = shard_and_compile(self.accelerator, model, args)
        self.model_accepts_loss_kwargs = False  # in an evaluation, Trainer would count its rows
        self._make_collaborators(compiled)
        if (data := inputs.train_dataset) is not None:
            self.train_sampler = data.sampler(inputs.schedule, args.rows_per_step, args.train_batch_size)
            self.gradient_watch = GradientWatch(self, loss_weights)
            how = self.accelerator.mixed_precision, self.accelerator.distributed_type.value
            how += (self.gradient_watch.update_shares,)
            self.record = RunRecord(args, self._config, data, self.train_sampler, self.loss_weights, recipe, *how)
            for callback in run_callbacks(self):
                self.add_callback(callback)
        show_progress(self)

    def _make_collaborators(self, compiled: Callable) -> None:
        args, accelerator = self.args, self.accelerator
        reduce = partial(accelerator.reduce, reduction="sum")
        heads = {name: self._config.get_head(name) for name in self.head_names}
        self.step_metrics = StepMetrics(heads, args.device, reduce, accelerator.num_processes, args.peak_tflops)
        self.training_loss = TrainingLoss(self._config, self.loss_weights, args, self.step_metrics, compiled)
        self.step_guard = StepGuard(args.device, reduce, args.output_dir, args.max_skipped_steps)
        self.evaluation_loss = EvaluationLoss(self._config, args.device, accelerator.gather_for_metrics)
        self.weight_average: WeightAverage | None = None
        self.stop_signals, self.watch = StopSignals(), Watch(accelerator, args.ddp_timeout)
        self.checkpoints = RunCheckpoints(args.output_dir)
        self.record: RunRecord | None = None  # of a trainer that trains
        self._folder_lock: FolderLock | None = None
        self.resumed_from, self._resumed_step = None, 0  # the checkpoint and its step
        self._has_begun = False  # to train or to evaluate
        self.has_ended = False  # before the checkpoint was written that the run resumes from

    # ---- Training ----

    def train(
        self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train, from a checkpoint on if one is asked for, see [`find_checkpoint`].

        Raises:
            CheckpointError: see [`resume_point`]; or another run uses `output_dir`, or it cannot be written to.
        """
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset")
        self._has_begun = True
        begin_training(self.args)
        self._folder_lock = hold_output_dir(self.args)
        explained = memory_explained(lambda: self.state.global_step, self.args)
        with self.record.session(), self.watch, self.stop_signals, explained:
            checkpoint = resume_point(resume_from_checkpoint, self.model, self.record, self.args)
            output = super().train(checkpoint, *args, **kwargs)
        self.publisher.wait()
        # The best checkpoint, where it was loaded, is an average already.
        if self.weight_average is not None and self.record.best_step is None:
            self.weight_average.swap()
        self.weight_average = None
        return output._replace(training_loss=output.metrics["train_loss"])

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, checkpoint: str | None) -> Any:
        # Without the checkpoint: Trainer would look for what DeepSpeed writes, and for pickles.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.resumed_from, self._resumed_step = checkpoint, self.state.global_step
        self.has_ended = checkpoint is not None and stays_stopped(checkpoint, self.args)
        self.weight_average = average_of_run(checkpoint, self.whole_state, self.args.ema_decay)
        if checkpoint is not None:
            self.run_state.load(checkpoint)
            self.record.resume(checkpoint)
        return prepared

    @property
    def whole_state(self) -> WholeState:
        return state_in_training(self.model, self.optimizer, self.deepspeed)

    @property
    def run_state(self) -> RunState:
        schedule, scaler = self.lr_scheduler, self.accelerator.scaler
        parts = self.train_sampler, self.step_metrics, self.step_guard, self.gradient_watch, self.weight_average
        return RunState(self.whole_state, schedule, scaler, *parts)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_process_rng_state(checkpoint, self.args.process_index, self.args.seed)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.control.should_training_stop |= self.has_ended or self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    # ---- One step and its data ----

    def _get_train_sampler(self, train_dataset: CoTrainingDataset | None = None) -> MixtureSampler:
        return self.train_sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        return row_sampler(eval_dataset) or super()._get_eval_sampler(eval_dataset)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The batches of an optimizer step, and the rows of each head, (heads,), in those of all processes."""
        batches = []
        for _ in range(num_batches):
            self.note("waiting for data")
            with self.step_metrics.waiting():
                batches.extend(islice(epoch_iterator, 1))  # none at the end of an epoch
        if not batches:
            return [], None
        rows = sum(rows_of_heads(head_ids_of(batch), len(self.head_names)) for batch in batches).to(device)
        rows = self.accelerator.reduce(rows, reduction="sum")
        self.gradient_watch.before_step(batches, rows)
        return with_equal_passes(batches, self.accelerator, self.model), rows

    def note(self, phase: str) -> None:
        """Say what this process begins to do, see [`Watchdog`]."""
        self.watch.note(self.state.global_step, phase)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.note("forward pass")
        loss = super().training_step(model, normalized(inputs, self.pixel_processor), num_items_in_batch)
        self.step_guard.see(loss)
        self.step_metrics.add_loss(loss)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """This batch's part of the loss of its optimizer step; in evaluation, the mean over its readable rows.

        `inputs` is a batch of `collate_clips`, normalised; `num_items_in_batch`, (heads,), the rows of the whole step.
        """
        if model.training:
            loss, outputs = self.training_loss(model, inputs, num_items_in_batch)
            loss = visible_to_zero(loss) if self.is_deepspeed_enabled else loss
            self.note("backward pass")
        else:
            outputs = model(inputs["pixel_values"], head=inputs["head"])
            self.note("evaluation")  # once more: from here on, it waits for the others
            loss = self.evaluation_loss.add(inputs["head"], outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        self.step_guard.grad_norm = super()._get_grad_norm(model, gradient_norm(self.accelerator, model, grad_norm))
        return self.step_guard.grad_norm  # on which `GuardCallback` decides, before the optimizer's step

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return self.step_metrics.counted(encoder_operations(self.model, inputs["pixel_values"]))

    # ---- Optimizer and schedule ----

    def get_optimizer_cls_and_kwargs(self, args: CoverTrainingArguments, model: nn.Module) -> tuple[Any, dict]:
        optimizer_class, options = super().get_optimizer_cls_and_kwargs(args, model)
        decaying = self.get_decay_parameter_names(model)
        groups = parameter_groups(model, self._config, args, decaying, trained_heads=self.train_dataset.sizes)
        # Optimizers that choose their parameters themselves have put them there.
        return optimizer_class, {"params": groups, **options}

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        is_given = self.lr_scheduler is not None
        # First Trainer's, of a constant rate, so that it knows that the schedule is not the user's.
        super().create_scheduler(num_training_steps, optimizer)
        if not is_given and self.args.learning_rate_drop_epochs:
            steps = num_training_steps, self.train_sampler.steps_per_epoch
            self.lr_scheduler = drop_schedule(optimizer or self.optimizer, self.args, *steps)
        return self.lr_scheduler

    # ---- Beside the steps: logs and evaluations ----

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, *args: Any, learning_rate: float | None = None, **kwargs: Any
    ) -> None:
        self.step_metrics.last_step = {"grad_norm": grad_norm, "learning_rate": learning_rate}
        with kept_generators() if settled_if_due(self) else nullcontext():
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate, **kwargs)
        if self.step_guard.must_stop:
            self.stop()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            clock = self.step_metrics.clock_logs(self.state.global_step, self.args.rows_per_step)
            bad_files = {f"{name}_bad_files": count for name, count in self.train_dataset.bad_files.items()}
            logs |= self.step_metrics.logs() | self.gradient_watch.logs() | bad_files | clock
        elif "train_loss" in logs:  # in Trainer's are the steps that were skipped
            logs["train_loss"] = self.step_metrics.session_loss()
        super().log(logs, start_time)

    @kept_generators()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        try:
            # If it is abandoned, the checkpoint has the generators of the last step.
            eval_dataset = self._given.evaluation(eval_dataset)
            with kept_generators(), self.step_metrics.clock_stopped():
                metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        except EvaluationAbandonedError:
            forget_evaluation(self.state)
            if self.state.global_step > self._resumed_step:
                self._save_checkpoint(self.model)
                self.callback_handler.on_save(self.args, self.state, self.control)
            self.stop()
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if means := means_of_datasets(metrics, datasets, metric_key_prefix):  # another compute_metrics has none
            self.log(means)
            # Callbacks such as early stopping look for the means; until now they have seen one dataset at a time.
            metrics = {**metrics, **means}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @kept_generators()
    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        return super().predict(self._given.prediction(test_dataset), *args, **kwargs)

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        average = nullcontext() if self.weight_average is None else self.weight_average.in_place()
        with self.watch, average:
            self.note("evaluation")
            if not self._has_begun:  # an evaluation without training is a run of its own
                self._has_begun = True
                self._folder_lock = forget_unreadable(dataloader.dataset, self.args)
            self.evaluation_loss.begin()
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if (name := f"{metric_key_prefix}_loss") in output.metrics:
            output.metrics[name] = self.evaluation_loss.mean()
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple:
        self.note("evaluation")
        if self.is_in_train and self.step_guard.any_process(self.stop_signals.received):
            raise EvaluationAbandonedError
        return super().prediction_step(model, normalized(inputs, self.pixel_processor), *args, **kwargs)

    def stop(self) -> NoReturn:
        """End the run, which was told to stop and has a checkpoint of its last step, if it has taken one."""
        step = self.state.global_step
        end_run(self.resumed_from if step == self._resumed_step else self.checkpoints.path(step))

    # ---- Checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: None = None) -> None:
        if self.state.global_step == self._resumed_step:  # after an evaluation that was made up for: it is there
            return
        self.note("writing a checkpoint")
        self.store_flos()
        # First what all processes do together: then the one that writes can fail without the others waiting.
        note_best(self.state, self.checkpoints)
        step, quarantine = self.state.global_step, self.train_dataset.quarantine
        weights, state, tensors = self.run_state.gathered(step)
        state = {"run": self.record.identity, "parts": self.record.parts(step), **state}
        with raised_by_all():
            if self.args.should_save:
                with self.checkpoints.writing(step) as place:
                    self._write_model(place, weights, tensors.get(ADAPTER))
                    write_trainer_state(place, self.state, self.args, [*self.callback_handler.callbacks, self.control])
                    self.checkpoints.write_state(place, state, tensors, quarantine)
                best = self.state.best_model_checkpoint
                self.checkpoints.keep(self.args.save_total_limit, best, self.checkpoints.path(step))

    def _load_best_model(self) -> None:
        if (weights := best_weights(self.state, self.args)) is not None:
            self.whole_state.load_weights(weights)
            self.record.best_step = self.state.best_global_step

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        with all_kept(self.args):
            return super()._finalize_training(*args, **kwargs)

    def save_state(self) -> None:
        if self.is_world_process_zero():
            write_trainer_state(self.args.output_dir, self.state, self.args)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        super().save_metrics(split, finite(metrics), combined)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and with `push_to_hub` publish it. All processes must call it."""
        folder = output_dir or self.args.output_dir
        weights = self.whole_state.weights() if is_in_parts(self.accelerator, self.model) else None
        if self.args.should_save:
            self._write_model(folder, weights)
        if self.args.push_to_hub and not _internal_call and self.is_world_process_zero():
            self.publisher.publish_model(folder)

    def _write_model(self, folder: str | os.PathLike, weights: Tensors | None, adapter: Tensors | None = None) -> None:
        model = whole_model(self._config) if is_in_parts(self.accelerator, self.model) else self.model
        write_model(folder, model, weights, self.processing_class, self.args)
        save_adapter(self.model, folder, adapter)
        if self.record is not None:
            self.record.write(folder, self.state, self.eval_dataset)

    # ---- The Hub ----

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card into the output folder; for the arguments see [`front_matter`]."""
        if self.is_world_process_zero():
            if self.record is not None:  # with evaluations since the model was saved
                self.record.write(self.args.output_dir, self.state, self.eval_dataset)
            write_model_card(self.args.output_dir, self.args.hub_model_id, **front_matter(*args, **kwargs))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Have the repository made, by a thread, so that a network that fails is no reason not to train."""
        if self.is_world_process_zero():
            self.hub_model_id = self.publisher.begin(token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Save the model in `output_dir` and publish it with its card, see [`RunPublisher.publish_end`]; return the
        commit, on the main process. All processes must call it.

        `token`, `revision` and `private` come before the training arguments'; `kwargs` are `create_model_card`'s.
        """
        if not blocking:
            raise ValueError("blocking: the end of training is published while it is waited for, got False")
        self.save_model(_internal_call=True)
        self.create_model_card(**kwargs)
        if not self.is_world_process_zero():
            return None
        return self.publisher.publish_end(self.args.output_dir, commit_message, token, private, revision)
