# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there at all, and hold all that a run needs to resume.

    checkpoint-500/
        config.json, model.safetensors, ...     a model, as `save_pretrained` writes it
        trainer_state.json                      of transformers' Trainer
        training_state/
            weights.safetensors                 those in training, where model.safetensors is their average
            adapter.safetensors                 of peft's, which is merged into model.safetensors
            optimizer.safetensors               by name of the parameter, however parameters are sharded
            rng.safetensors                     of each process
            quarantine.jsonl                    the files that could not be decoded
            state.json                          all that is no tensor, and the size of each other file
            SHA256SUMS                          the hash of each file, so it is written last

A checkpoint is written under a name that nothing takes for one, flushed to the disk, and then renamed. One that is no
longer wanted is renamed before it is removed. Nothing in it is a pickle.
"""

import dataclasses
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..data.quarantine import Quarantine
from ..files import flush_folder, write_json
from ..hub.checkpoint_files import QUARANTINE_NAME, STATE_NAME, SUMS_NAME, TRAINING_STATE
from ..hub.hashes import file_hashes, read_sums, sums_text
from .quiet import without_bar


logger = logging.get_logger(__name__)

_INTERVALS = ("logging_steps", "eval_steps", "save_steps")

STATE_VERSION = 3  # of what state.json holds

STATE_KEYS = (
    *("version", "run", "parts", "step", "position", "optimizer", "learning_rate_schedule"),
    *("gradient_scaler", "streams", "rng", "unlogged", "files"),
)

# Where model.safetensors is an average: the weights in training.
TRAINED_WEIGHTS = "weights"
# Where model.safetensors has one merged into it, see `adapters`.
ADAPTER = "adapter"


# Not `checkpoint-...`, which others look for.
_INCOMPLETE, _REMOVED, _LINKED = ".incomplete-", ".removed-", ".publishing-"
_DAMAGED = "damaged-"

# EFBIG: a quota of the shell. The others: a disk, or a quota on it, is full.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or not be resumed from; the message names it and the reason."""


def checkpoint_step(path: str | os.PathLike) -> int | None:
    """The optimizer step that a folder is named after; None if it is not named like a checkpoint."""
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", Path(path).name)
    return None if match is None else int(match[1])


def checkpoints_in(output_dir: str | os.PathLike) -> list[Path]:
    """The checkpoints of a run, the newest first, whole or not."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and checkpoint_step(path) is not None]
    return sorted(found, key=checkpoint_step, reverse=True)


def newest_checkpoint(output_dir: str | os.PathLike, check_hashes: bool = False) -> Path | None:
    """The newest checkpoint of a run that is whole, see [`what_is_wrong`]. What is wrong with newer ones is logged."""
    for path in checkpoints_in(output_dir):
        if (fault := what_is_wrong(path, check_hashes)) is None:
            return path
        logger.warning(f"{path} is no whole checkpoint and left aside: {fault}")
    return None


def what_is_wrong(checkpoint: str | os.PathLike, check_hashes: bool = True) -> str | None:
    """Why a checkpoint is not whole, with the name of the file; None if it is.

    Args:
        check_hashes: compare the hash of each file, which reads them all. Without, those of tensors are looked at by
            their sizes and their headers alone.
    """
    folder = Path(checkpoint)
    try:
        state = read_state(folder)
        return _fault_of_sizes(folder, state) or _fault_of_content(folder, state, check_hashes)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"a file cannot be read: {error}"


def _fault_of_sizes(folder: Path, state: dict[str, Any]) -> str | None:
    if not isinstance(state.get("files"), dict):
        return f"{TRAINING_STATE}/{STATE_NAME} does not say which files there are"
    for name, expected in state["files"].items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            return f"{name} is missing"
        if size != expected:
            return f"{name} has {size} bytes, expected {expected}"
    return None


def _fault_of_content(folder: Path, state: dict[str, Any], check_hashes: bool) -> str | None:
    if state.get("version") != STATE_VERSION:
        return None  # which is refused with a reason of its own
    if missing := [key for key in STATE_KEYS if key not in state]:
        return f"{TRAINING_STATE}/{STATE_NAME} has no '{missing[0]}'"
    names = [*state["files"], f"{TRAINING_STATE}/{STATE_NAME}"]
    try:
        hashes = read_sums(folder / TRAINING_STATE / SUMS_NAME)
    except (OSError, ValueError) as error:
        return f"{TRAINING_STATE}/{SUMS_NAME} cannot be read: {error}"
    if missing := [name for name in names if name not in hashes]:
        return f"{TRAINING_STATE}/{SUMS_NAME} has no hash of {missing[0]}"
    by_header = [name for name in names if name.endswith(".safetensors") and not check_hashes]
    for name in by_header:
        try:
            with safe_open(folder / name, "pt"):
                pass
        except SafetensorError as error:
            return f"{name} is damaged: {error}"
    found = file_hashes(folder, [name for name in names if name not in by_header])
    changed = [name for name, found_hash in found.items() if found_hash != hashes[name]]
    return f"{changed[0]} is not as it was written: its SHA-256 is another" if changed else None


def read_state(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """What a checkpoint's state.json holds.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    path = Path(checkpoint) / TRAINING_STATE / STATE_NAME
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} cannot be read: expected a JSON object, found {type(state).__name__}")
    return state


def last_checkpoint(output_dir: str | os.PathLike) -> str:
    """A sentence about where a run that ends can be resumed."""
    newest = newest_checkpoint(output_dir)
    return f"The last checkpoint is {newest}." if newest else "There is no checkpoint yet."


def read_tensors(checkpoint: str | os.PathLike, name: str) -> dict[str, Tensor]:
    """The tensors of a file of the checkpoint's training_state."""
    return load_file(Path(checkpoint) / TRAINING_STATE / f"{name}.safetensors")


def evaluated_weights(checkpoint: str | os.PathLike) -> dict[str, Tensor]:
    """What was trained, as it was evaluated: model.safetensors, or the adapter that is merged into it."""
    adapter = Path(checkpoint) / TRAINING_STATE / f"{ADAPTER}.safetensors"
    return load_file(adapter if adapter.is_file() else Path(checkpoint) / SAFE_WEIGHTS_NAME)


def trained_weights(checkpoint: str | os.PathLike) -> dict[str, Tensor]:
    """The weights that training continues from: those that were evaluated, or what these are the average of."""
    trained = Path(checkpoint) / TRAINING_STATE / f"{TRAINED_WEIGHTS}.safetensors"
    return load_file(trained) if trained.is_file() else evaluated_weights(checkpoint)


def write_model(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    weights: Mapping[str, Tensor] | None,
    processor: Any,
    args: TrainingArguments,
) -> None:
    """Write model, processor and training arguments, the latter as JSON: transformers' Trainer writes a pickle.

    Args:
        weights: by default the model's.
    """
    # By the model's own names: transformers would give weights of some encoders the names of older versions.
    with without_bar("Writing model shards"):
        model.save_pretrained(folder, state_dict=weights, save_original_format=False)
    if processor is not None:
        processor.save_pretrained(folder)
    (Path(folder) / "training_args.json").write_text(args.to_json_string(), encoding="utf-8")


def load_quarantine(checkpoint: str | os.PathLike, quarantine: Quarantine) -> None:
    """Add the bad files that a checkpoint knows of to the run's."""
    stored = Path(checkpoint) / TRAINING_STATE / QUARANTINE_NAME
    if stored.is_file():
        quarantine.add_from(stored)


def write_trainer_state(
    folder: str | os.PathLike,
    state: TrainerState,
    args: TrainingArguments,
    callbacks: Iterable[object] | None = None,
) -> None:
    """Write what `TrainerState.save_to_json` does, whose NaN is no JSON: the loss where every step was skipped, say.

    Args:
        args: of the run. Where they have a share of all steps, so has the file: as a run resumes, transformers
            compares the two, and warns of steps in place of a share.
        callbacks: those whose states are taken up first; by default the state has them.
    """
    if callbacks is not None:
        state.stateful_callbacks = _exported(callbacks)
    shares = {name: share for name in _INTERVALS if 0 < (share := getattr(args, name) or 0) < 1}
    write_json(Path(folder) / TRAINER_STATE_NAME, {**dataclasses.asdict(state), **shares}, indent=2, sort_keys=True)


def _exported(callbacks: Iterable[object]) -> dict[str, Any]:
    """The state of the callbacks that have one, by class; of several of one class, as a list, as Trainer stores it."""
    states = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            states.setdefault(type(callback).__name__, []).append(callback.state())
    return {name: found[0] if len(found) == 1 else found for name, found in states.items()}


class RunCheckpoints:
    """The checkpoints of a run, in its `output_dir`. One process writes them."""

    def __init__(self, output_dir: str | os.PathLike):
        self.output_dir = Path(output_dir)

    def path(self, step: int) -> Path:
        return self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """A folder to fill, which becomes the checkpoint of `step` at the end of the block, if that is reached.

        Raises:
            CheckpointError: if it cannot be written, because the disk is full, say.
        """
        path = self.path(step)
        folder = self.output_dir / f"{_INCOMPLETE}{path.name}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            yield folder
            _flush(folder)
            if path.exists():  # a run that went back to an older one
                self.remove(path)
            folder.rename(path)
            flush_folder(self.output_dir)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)  # it may be what fills the disk
            full = (isinstance(error, OSError) and error.errno in _FULL) or "os error 28" in str(error)
            hint = " Make room, or keep fewer of them with save_total_limit, and start again." if full else ""
            raise CheckpointError(
                f"{path} cannot be written: {error}. {last_checkpoint(self.output_dir)}{hint}"
            ) from error

    def write_state(
        self,
        folder: Path,
        state: dict[str, Any],
        tensors: dict[str, dict[str, Tensor]],
        quarantine: Quarantine | None = None,
    ) -> None:
        """Write the training_state of a checkpoint whose other files are there; `tensors` by name of the file."""
        target = folder / TRAINING_STATE
        target.mkdir(exist_ok=True)
        if quarantine is not None:
            quarantine.copy_to(target / QUARANTINE_NAME)
        for name, content in tensors.items():
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, target / f"{name}.safetensors")
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in _files(folder)}
        (target / STATE_NAME).write_text(
            json.dumps({"version": STATE_VERSION, **state, "files": sizes}, indent=1), encoding="utf-8"
        )
        hashes = file_hashes(folder, [*sizes, f"{TRAINING_STATE}/{STATE_NAME}"])
        (target / SUMS_NAME).write_text(sums_text(hashes), encoding="utf-8")

    def remove(self, checkpoint: Path) -> None:
        """Remove a checkpoint so that half of it is never there under its name."""
        removed = checkpoint.with_name(f"{_REMOVED}{checkpoint.name}-{uuid.uuid4().hex[:8]}")
        checkpoint.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def set_aside(self, checkpoint: Path) -> Path:
        """Give a damaged checkpoint a name by which it is no longer taken for one, and return that."""
        target = checkpoint.with_name(f"{_DAMAGED}{checkpoint.name}")
        if target.exists():
            target = target.with_name(f"{target.name}-{uuid.uuid4().hex[:8]}")
        return checkpoint.rename(target)

    def link(self, checkpoint: Path) -> Path:
        """The files of a checkpoint under another name, without taking their room again; to be removed by the
        caller."""
        target = checkpoint.with_name(f"{_LINKED}{checkpoint.name}-{uuid.uuid4().hex[:8]}")
        try:
            return shutil.copytree(checkpoint, target, copy_function=_link)
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def keep(self, most: int | None, best: str | os.PathLike | None = None, written: Path | None = None) -> None:
        """Remove the oldest checkpoints beyond `most`, never the newest nor the best, nor the one just `written`:
        there may be newer ones where a run has resumed from an older one."""
        if not most or most < 1:
            return
        newest_first = checkpoints_in(self.output_dir)
        kept = {
            *newest_first[:1],
            *([Path(best)] if best else []),
            *([written] if written else []),
        } & {*newest_first}
        for path in newest_first:
            if len(kept) < most:
                kept.add(path)
        for path in set(newest_first) - kept:
            self.remove(path)

    def clear_remains(self) -> None:
        """Remove what a run that was killed has left of checkpoints that it was writing, publishing or removing."""
        if self.output_dir.is_dir():
            for path in self.output_dir.iterdir():
                if path.name.startswith((_INCOMPLETE, _REMOVED, _LINKED)) and path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def all_kept(args: TrainingArguments) -> Iterator[None]:
    """Trainer removes no checkpoint here. With a limit of 1, it would remove the newest if another is the best, and no
    run could resume."""
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit


def check_writable(output_dir: str | os.PathLike) -> None:
    """Raise a [`CheckpointError`] if nothing can be written to a folder; it is made if need be."""
    probe = Path(output_dir) / f"{_INCOMPLETE}probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"checkpoint")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"output_dir {os.fspath(output_dir)}: checkpoints cannot be written there: {error}"
        ) from error


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(folder: Path) -> None:
    for file in _files(folder):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    for subfolder in [path for path in folder.rglob("*") if path.is_dir()]:
        flush_folder(subfolder)
    flush_folder(folder)
