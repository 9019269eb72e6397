# SPDX-License-Identifier: Apache-2.0
"""A Trainer whose runs go on from where they were stopped, as if they had not been.

It relies on a sampler that can be told where to go on, see [`~modeling_cover.data.mixture.MixtureSampler`]: transformers'
Trainer restores the rest only nearly, and writes a checkpoint in place.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PredictionOutput, TrainOutput
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..data.mixture import MixtureSampler
from ..files import finite, write_json
from ..model.configuration_cover import CoverConfig
from ..model.modeling_cover import CoverForVideoClassification
from .background_publisher import PublishingTrainer
from .checkpoints import (
    STATE_VERSION,
    CheckpointError,
    CheckpointWriter,
    check_writable,
    checkpoints_in,
    read_state,
    read_tensors,
    what_is_wrong,
)
from .generators import kept_generators, load_rng_state, rng_state
from .run_identity import check_same_run, run_identity
from .run_settings import joined_parts, run_settings
from .training_state import WholeState, joined_rng_states, load_schedule, rng_state_of
from .zero import ZeroState, whole_parameters


logger = logging.get_logger(__name__)


class ResumableTrainer(PublishingTrainer):
    """Writes checkpoints that are whole or not there, and goes on from them exactly. See [`CheckpointWriter`]."""

    train_sampler: MixtureSampler
    _parts_before: Sequence[dict[str, Any]] = ()

    def train(
        self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train.

        Args:
            resume_from_checkpoint: a checkpoint to go on from; True for the newest whole one in `output_dir`, "auto"
                for the same or, if there are none, a new run. By default it is a new run.

        Raises:
            CheckpointError: if the checkpoint is damaged or of another run, or all of them are damaged, checkpoints cannot
                be written to `output_dir`, or a new run would write among those of another.
        """
        self._has_ended = False
        self._parts_before = []
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        if checkpoint is not None and self.args.restart_schedule and checkpoint.parent != Path(self.args.output_dir):
            self._take_weights(checkpoint)
            checkpoint = None
        if checkpoint is not None:
            self._check_same_run(checkpoint)
        if self.args.should_save:
            check_writable(self.args.output_dir)
            CheckpointWriter(self.args.output_dir).clear_remains()
        return super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)

    def _check_same_run(self, checkpoint: Path) -> None:
        config, identity, settings = self.model.config, self.run_identity, self.run_settings
        has_ended, error = self._has_no_step_left(checkpoint), None
        try:
            check_same_run(checkpoint, config, identity, settings, has_ended, self.args.accept_changed_rows)
        except CheckpointError as caught:
            error = caught
        # A process may see other files than the rest, which would wait for it.
        if (fault := self._fault_of_any(error)) is not None:
            raise CheckpointError(fault) from error

    @property
    def run_settings(self) -> dict[str, Any]:
        weights = dict(zip(self.head_names, self.loss_weights.tolist(), strict=True))
        return run_settings(self.args, self.model.config, self.train_dataset, weights)

    def _has_no_step_left(self, checkpoint: Path) -> bool:
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        of_epochs = math.ceil(self.args.num_train_epochs * self.steps_per_epoch)
        control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
        has_stopped = control.get("should_training_stop", False)  # early, say
        last = self.args.max_steps if self.args.max_steps > 0 else of_epochs
        return state.global_step >= last or (has_stopped and state.global_step < state.max_steps)

    @property
    def run_identity(self) -> dict[str, Any]:
        return run_identity(self.train_sampler.schedule, self.train_dataset, self.train_sampler.step_size)

    @property
    def parts(self) -> list[dict[str, Any]]:
        """With which settings the run has taken which steps, see [`joined_parts`]."""
        return joined_parts(self._parts_before, self.run_settings, self.state.global_step)

    def _checkpoint_to_resume(self, asked: str | os.PathLike | bool | None) -> Path | None:
        """The checkpoint that is asked for: the main process finds it, as others may see a folder a moment later."""
        found = [None, None]
        if self.is_world_process_zero():
            try:
                found[0] = self._find_checkpoint(asked)
            except CheckpointError as error:
                found[1] = str(error)
        checkpoint, fault = broadcast_object_list(found)
        if fault is not None:
            raise CheckpointError(fault)
        return checkpoint

    def _find_checkpoint(self, asked: str | os.PathLike | bool | None) -> Path | None:
        output_dir = self.args.output_dir
        if self.args.restart_schedule:
            if not isinstance(asked, str | os.PathLike) or asked == "auto":
                raise CheckpointError("restart_schedule: say whose weights to take, with resume_from_checkpoint")
            # The same command goes on from what it has written itself.
            asked = self._newest_whole() or asked
        if asked is True or asked == "auto":
            newest = self._newest_whole()
            if newest is None and asked is True:
                raise CheckpointError(f"output_dir {output_dir}: no checkpoint to go on from")
            return newest
        if asked:
            if (fault := what_is_wrong(asked, self.args.verify_checkpoints)) is not None:
                raise CheckpointError(f"{os.fspath(asked)} is no whole checkpoint: {fault}")
            return Path(asked)
        if self.args.save_strategy != "no" and (there := checkpoints_in(output_dir)):
            raise CheckpointError(
                f"output_dir {output_dir} has checkpoints of an earlier run, such as {there[0].name}: go on from them "
                "with resume_from_checkpoint 'auto', or choose another output_dir"
            )
        return None

    def _newest_whole(self) -> Path | None:
        """The newest checkpoint in `output_dir` that is whole; None if there are none at all.

        Those that are not are given other names: a run that goes on from an older one would count them as its newest.
        """
        faults = {}
        for path in checkpoints_in(self.args.output_dir):
            if (fault := what_is_wrong(path, self.args.verify_checkpoints)) is None:
                break
            faults[path] = fault
        else:
            if faults:
                listed = "\n".join(f"  {path.name}: {fault}" for path, fault in faults.items())
                raise CheckpointError(
                    f"output_dir {self.args.output_dir}: no checkpoint is whole:\n{listed}\nMove them away to begin anew"
                )
            return None
        for damaged, fault in faults.items():
            kept = CheckpointWriter(self.args.output_dir).set_aside(damaged) if self.args.should_save else damaged
            logger.warning(
                f"{damaged} is no whole checkpoint: {fault}. It is kept as {kept.name}, which may be removed; the run goes "
                f"on from {path.name}"
            )
        return path

    def _take_weights(self, checkpoint: Path) -> None:
        """Start from the weights of another run: the encoder's, and those of heads that have the same labels."""
        config = CoverConfig.from_pretrained(checkpoint)
        same = {name for name, head in self.model.config.heads.items() if config.heads.get(name) == head}
        weights = load_file(checkpoint / SAFE_WEIGHTS_NAME)
        taken = {
            name: weight
            for name, weight in weights.items()
            if not name.startswith("classifiers.") or name.split(".")[1] in same
        }
        own = self.model.state_dict()
        different = [name for name in taken if name not in own or own[name].shape != taken[name].shape]
        if missing := [name for name in own if name.startswith("cover.") and name not in taken] + different:
            raise CheckpointError(f"{checkpoint}: its encoder is another than the recipe's: {missing[0]} differs")
        self.model.load_state_dict({**own, **taken})
        new = sorted(set(self.model.config.heads) - same)
        logger.warning(
            f"Weights taken from {checkpoint}, new heads: {', '.join(new) or 'none'}; a new schedule begins"
        )

    # ---- Writing ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        writer = CheckpointWriter(self._get_output_dir(trial=trial))
        # What all processes must do together comes first: then the one that writes can fail without the others waiting.
        self._note_best(writer)
        weights, state, tensors = self._gathered_state()
        error = None
        try:
            if self.args.should_save:
                with writer.writing(self.state.global_step) as folder:
                    self._write_checkpoint(folder, writer, weights, state, tensors)
        except CheckpointError as caught:
            error = caught
        if (fault := self._fault_of_any(error)) is not None:
            raise CheckpointError(fault) from error
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(writer.path(self.state.global_step)))
        if self.args.should_save:
            written = writer.path(self.state.global_step)
            writer.keep(self.args.save_total_limit, self.state.best_model_checkpoint, written)

    def _fault_of_any(self, error: Exception | None) -> str | None:
        """What went wrong on any process, on all of them."""
        faults = gather_object([None if error is None else str(error)])
        return next((fault for fault in faults if fault is not None), None)

    @property
    def whole_state(self) -> WholeState:
        kind = WholeState if self.deepspeed is None else ZeroState
        return kind(self.model, getattr(self.optimizer, "optimizer", self.optimizer))  # accelerate wraps it

    def _gathered_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
        """The weights; what state.json holds; and the tensors, by name of their file."""
        weights = self.whole_state.weights()
        optimizer_tensors, optimizer_rest = self.whole_state.optimizer_state()
        rng_tensors, rng_rest = joined_rng_states(gather_object([rng_state()]))
        position = self.state.global_step * self.train_sampler.step_size
        draws = self.train_sampler.schedule.draws_before(position)
        scaler = self.accelerator.scaler
        state = {
            "version": STATE_VERSION,
            "run": self.run_identity,
            "parts": self.parts,
            "step": self.state.global_step,
            "position": position,
            "optimizer": optimizer_rest,
            "learning_rate_schedule": self.lr_scheduler.state_dict(),
            "gradient_scaler": None if scaler is None else scaler.state_dict(),
            "streams": {name: stream.state_dict(draws[name]) for name, stream in self.train_sampler.streams.items()},
            "rng": rng_rest,
        }
        return weights, state, {"optimizer": optimizer_tensors, "rng": rng_tensors}

    def _write_checkpoint(
        self,
        folder: Path,
        writer: CheckpointWriter,
        weights: dict[str, torch.Tensor],
        state: dict[str, Any],
        tensors: dict[str, dict[str, torch.Tensor]],
    ) -> None:
        self._save(str(folder), state_dict=weights)
        self._export_callbacks()
        self._write_trainer_state(folder)
        quarantine = self.train_dataset.quarantine
        if quarantine is not None:
            quarantine.copy_to(folder / "training_state" / "quarantine.jsonl")
        writer.write_state(folder, state, tensors)

    def _write_trainer_state(self, folder: Path) -> None:
        # TrainerState's own method writes NaN, which is no JSON: the loss where every step was skipped, say.
        write_json(folder / TRAINER_STATE_NAME, dataclasses.asdict(self.state), indent=2, sort_keys=True)

    def save_state(self) -> None:
        if self.is_world_process_zero():
            self._write_trainer_state(Path(self.args.output_dir))

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        super().save_metrics(split, finite(metrics), combined)

    def _save_whole(self, output_dir: str | None) -> None:
        if self._is_sharded:
            # Trainer writes nothing where the configuration asks for sharded state.
            self._save(output_dir, state_dict=self.whole_state.weights())
        else:
            super()._save_whole(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model = self.model
        if self._is_sharded:
            # It is of a class of torch's, whose source would be saved as the model's, or its parameters are empty.
            with torch.device("meta"), whole_parameters():
                self.model = CoverForVideoClassification(model.config)
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model = model
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        if self.args.should_save:
            # A pickle, which nothing reads.
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            (folder / "training_args.json").write_text(self.args.to_json_string(), encoding="utf-8")

    @property
    def _is_sharded(self) -> bool:
        """Whether the model in training may be a part of the whole."""
        return self.is_fsdp_enabled or self.deepspeed is not None

    def _note_best(self, writer: CheckpointWriter) -> None:
        """Every process must call it: what the main one sees holds for all, which load the best model together."""
        step, best = self.state.best_global_step, self.state.best_model_checkpoint
        if step and (step == self.state.global_step or writer.path(step).is_dir()):
            best = str(writer.path(step))
        (self.state.best_model_checkpoint,) = broadcast_object_list([best])

    def _export_callbacks(self) -> None:
        exported = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                exported.setdefault(type(callback).__name__, []).append(callback.state())
        # One of a class is stored by itself, as Trainer does it.
        self.state.stateful_callbacks = {
            name: states[0] if len(states) == 1 else states for name, states in exported.items()
        }

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # With a limit of 1, Trainer removes the newest checkpoint if another is the best: started again, the run would go
        # back to that one.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    # ---- Beside the steps ----

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        is_due = self.control.should_log or self.control.should_evaluate or self.control.should_save
        with kept_generators() if is_due else nullcontext():
            super()._maybe_log_save_evaluate(*args, **kwargs)

    @kept_generators()
    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        return super().predict(*args, **kwargs)

    # ---- Going on ----

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        # Early stopping, say. Trainer forgets it, and would train on.
        self._has_ended = self.control.should_training_stop and self.state.global_step < self.state.max_steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer would take one more step, also where the evaluation that was due has stopped the run.
        if self._has_ended or self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if kwargs["train_dataloader"]._iterator is not None:
            # Workers that stay are not seeded anew. Where a run goes on they are started, and a seed is drawn for them.
            torch.empty((), dtype=torch.int64).random_()
        super()._run_epoch(*args, **kwargs)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Trainer would look for a checkpoint of DeepSpeed's.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_from_checkpoint(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._load_weights(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)

    def _load_weights(self, path: Path) -> None:
        self.whole_state.load_weights(load_file(path))

    def _load_best_model(self) -> None:
        """Unless it is damaged: then the model stays that of the last step, and no checkpoint is the best."""
        best, found = self.state.best_model_checkpoint, [None]
        if self.is_world_process_zero():
            found[0] = what_is_wrong(best, self.args.verify_checkpoints)
        (fault,) = broadcast_object_list(found)
        if fault is not None:
            logger.warning(
                f"{best}, the best checkpoint, is not loaded: {fault}. The model stays that of the last step"
            )
            self.state.best_model_checkpoint = None
        elif self._is_sharded:
            self._load_weights(Path(self.state.best_model_checkpoint) / SAFE_WEIGHTS_NAME)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state, tensors = read_state(checkpoint), read_tensors(checkpoint, "optimizer")
        self._parts_before = state["parts"]
        self.whole_state.load_optimizer_state(tensors, state["optimizer"])
        load_schedule(self.lr_scheduler, state["learning_rate_schedule"])
        for name, stream in state["streams"].items():
            self.train_sampler.streams[name].load_state_dict(stream)
        quarantine, stored = self.train_dataset.quarantine, Path(checkpoint) / "training_state" / "quarantine.jsonl"
        if quarantine is not None and stored.is_file() and self.args.should_save:
            quarantine.add_from(stored)

    def _load_scaler(self, checkpoint: str | None) -> None:
        stored = None if checkpoint is None else read_state(checkpoint)["gradient_scaler"]
        if stored is not None and self.accelerator.scaler is not None:  # which only fp16 has
            self.accelerator.scaler.load_state_dict(stored)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state, process = read_state(checkpoint), self.args.process_index
        stored = rng_state_of(process, read_tensors(checkpoint, "rng"), state["rng"])
        if stored is None:
            # Which samples are drawn, and how they are augmented, does not depend on it.
            logger.warning(
                f"{checkpoint} was written by {len(state['rng'])} processes: process {process} seeds its own"
            )
            torch.manual_seed(self.args.seed + state["step"] + process)
        else:
            load_rng_state(stored)
