# SPDX-License-Identifier: Apache-2.0
"""From which checkpoint a run resumes, and the weights that another run starts from."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..model.configuration_cover import CoverConfig
from ..model.modeling_cover import CoverForVideoClassification
from .adapters import has_adapter
from .arguments import CoverTrainingArguments
from .checkpoints import CheckpointError, RunCheckpoints, checkpoints_in, evaluated_weights, what_is_wrong
from .folder_lock import FolderLock, lock_folder
from .recording import RunRecord


logger = logging.get_logger(__name__)

Found = TypeVar("Found")


# ---- Several processes ----


def from_main_process(find: Callable[[], Found]) -> Found:
    """What the main process finds, on every process, as the others may see a folder a moment later.

    Raises:
        CheckpointError: on every process, if the main one raises it, or an `OSError`.
    """
    found = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = find()
        except (CheckpointError, OSError) as error:
            found[1] = str(error)
    value, fault = broadcast_object_list(found)
    if fault is not None:
        raise CheckpointError(fault)
    return value


@contextmanager
def raised_by_all() -> Iterator[None]:
    """Raise a [`CheckpointError`] on all processes, at the end of the block, if it, or an `OSError`, is raised by any:
    the others would wait for it."""
    error = None
    try:
        yield
    except (CheckpointError, OSError) as caught:
        error = caught
    faults = gather_object([None if error is None else str(error)])
    if (fault := next((fault for fault in faults if fault is not None), None)) is not None:
        raise CheckpointError(fault) from error


def hold_output_dir(args: CoverTrainingArguments) -> FolderLock | None:
    """Make the output folder this run's, as long as the writing process has the lock, see [`lock_folder`]. Every
    process must call it."""
    with raised_by_all():
        return lock_folder(args.output_dir) if args.should_save else None


# ---- The checkpoint ----


def find_checkpoint(asked: str | os.PathLike | bool | None, args: CoverTrainingArguments) -> Path | None:
    """The checkpoint that a run resumes from; None for a new run.

    Args:
        asked: a checkpoint; True for the newest whole one in `output_dir`, "auto" for the same or, if there are none,
            a new run; by default a new run.

    Raises:
        CheckpointError: if the checkpoint is not there or damaged, or a new run would write among those of another.
    """
    output_dir = args.output_dir
    if args.restart_schedule:
        if not isinstance(asked, str | os.PathLike) or asked == "auto":
            raise CheckpointError("restart_schedule: say whose weights to take, with resume_from_checkpoint")
        # The same command resumes from what it has written itself.
        asked = _newest_whole(args) or asked
    if asked is True or asked == "auto":
        newest = _newest_whole(args)
        if newest is None and asked is True:
            raise CheckpointError(f"output_dir {output_dir}: no checkpoint to resume from")
        return newest
    if asked:
        if (fault := what_is_wrong(asked, args.verify_checkpoints)) is not None:
            raise CheckpointError(f"{os.fspath(asked)} is no whole checkpoint: {fault}")
        return Path(asked)
    if args.save_strategy != "no" and (there := checkpoints_in(output_dir)):
        raise CheckpointError(
            f"output_dir {output_dir} has checkpoints of an earlier run, such as {there[0].name}: resume from them "
            "with resume_from_checkpoint 'auto', or choose another output_dir"
        )
    return None


def _newest_whole(args: CoverTrainingArguments) -> Path | None:
    """The newest checkpoint in `output_dir` that is whole; None if there are none at all.

    Those that are not are given other names: a run that resumes from an older one would count them as its newest.
    """
    faults = {}
    for path in checkpoints_in(args.output_dir):
        if (fault := what_is_wrong(path, args.verify_checkpoints)) is None:
            break
        faults[path] = fault
    else:
        if faults:
            listed = "\n".join(f"  {path.name}: {fault}" for path, fault in faults.items())
            raise CheckpointError(
                f"output_dir {args.output_dir}: no checkpoint is whole:\n{listed}\nMove them away to start a new run"
            )
        return None
    for damaged, fault in faults.items():
        kept = RunCheckpoints(args.output_dir).set_aside(damaged) if args.should_save else damaged
        logger.warning(
            f"{damaged} is no whole checkpoint: {fault}. It is kept as {kept.name}, which may be removed; the run "
            f"resumes from {path.name}"
        )
    return path


def take_weights(model: CoverForVideoClassification, checkpoint: Path) -> None:
    """Start from the weights of another run: the encoder's, and those of heads that have the same labels."""
    if has_adapter(model):
        raise CheckpointError("restart_schedule: build the model from that checkpoint, and the adapter anew")
    config = CoverConfig.from_pretrained(checkpoint)
    same = {name for name, head in model.config.heads.items() if config.heads.get(name) == head}
    taken = {
        name: weight
        for name, weight in load_file(checkpoint / SAFE_WEIGHTS_NAME).items()
        if not name.startswith("classifiers.") or name.split(".")[1] in same
    }
    own = model.state_dict()
    different = [name for name in taken if name not in own or own[name].shape != taken[name].shape]
    if missing := [name for name in own if name.startswith("cover.") and name not in taken] + different:
        raise CheckpointError(f"{checkpoint}: its encoder is another than the recipe's: {missing[0]} differs")
    model.load_state_dict({**own, **taken})
    new = sorted(set(model.config.heads) - same)
    logger.warning(f"Weights taken from {checkpoint}, new heads: {', '.join(new) or 'none'}; a new schedule begins")


def resume_point(
    asked: str | os.PathLike | bool | None,
    model: CoverForVideoClassification,
    record: RunRecord,
    args: CoverTrainingArguments,
) -> str | None:
    """The checkpoint that a run resumes from, known to be of the same run, or whose weights the model has taken; None
    for a new run. Every process must call it.

    Raises:
        CheckpointError: see [`find_checkpoint`] and [`check_same_run`].
    """
    checkpoint = from_main_process(lambda: find_checkpoint(asked, args))
    if args.should_save:
        RunCheckpoints(args.output_dir).clear_remains()
    if checkpoint is None:
        return None
    if args.restart_schedule and checkpoint.parent != Path(args.output_dir):
        take_weights(model, checkpoint)
        record.start_from_another_run()
        return None
    with raised_by_all():  # a process may see other files than the rest
        record.check_resumes(checkpoint)
    return str(checkpoint)


# ---- The best checkpoint ----


def note_best(state: TrainerState, checkpoints: RunCheckpoints) -> None:
    """Have the state name the best checkpoint if it is there, or about to be. Every process must call it: what the
    main one sees holds for all, which load it together."""
    step, best = state.best_global_step, state.best_model_checkpoint
    if step and (step == state.global_step or checkpoints.path(step).is_dir()):
        best = str(checkpoints.path(step))
    state.best_model_checkpoint = from_main_process(lambda: best)


def best_weights(state: TrainerState, args: CoverTrainingArguments) -> dict[str, torch.Tensor] | None:
    """The weights of the best checkpoint. If it is damaged, None, and the state names none any more. Every process
    must call it."""
    best = state.best_model_checkpoint
    if (fault := from_main_process(lambda: what_is_wrong(best, args.verify_checkpoints))) is None:
        return evaluated_weights(best)
    logger.warning(f"{best}, the best checkpoint, is not loaded: {fault}. The model stays that of the last step")
    state.best_model_checkpoint = None
    return None


# ---- What was due at the checkpoint ----


def forget_evaluation(state: TrainerState) -> None:
    """Drop what the log has of an evaluation of the last step, which is cut short: it is made up for as a whole."""
    state.log_history = [
        entry
        for entry in state.log_history
        if entry["step"] != state.global_step or not any(key.startswith("eval_") for key in entry)
    ]


def log_is_due(args: CoverTrainingArguments, state: TrainerState, steps_per_epoch: int, has_ended: bool) -> bool:
    """Whether the log of an epoch was due at this step; the epoch's last checkpoint may be written before it."""
    ends = _epoch_ends(state, steps_per_epoch, has_ended)
    return args.logging_strategy == IntervalStrategy.EPOCH and ends


def _epoch_ends(state: TrainerState, steps_per_epoch: int, has_ended: bool) -> bool:
    return has_ended or state.global_step % steps_per_epoch == 0 or state.global_step >= state.max_steps


def evaluation_is_due(
    args: CoverTrainingArguments, state: TrainerState, steps_per_epoch: int, has_ended: bool
) -> bool:
    """Whether the run was stopped before the evaluation of its last step; or `has_ended`, by early stopping, say."""
    step, strategy = state.global_step, args.eval_strategy
    if step == 0 or strategy == IntervalStrategy.NO:
        return False
    if strategy == IntervalStrategy.EPOCH and not _epoch_ends(state, steps_per_epoch, has_ended):
        return False
    if strategy == IntervalStrategy.STEPS and step % state.eval_steps and step < state.max_steps:
        return False
    passed = state.epoch if strategy == IntervalStrategy.EPOCH else step
    logged = [entry for entry in state.log_history if entry["step"] == step]
    evaluated = any(key.startswith("eval_") for entry in logged for key in entry)
    return not evaluated and passed >= args.eval_delay
