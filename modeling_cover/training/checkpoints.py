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
"""Checkpoints that are whole or not there at all, and hold all that a run needs to go on.

    checkpoint-500/
        config.json, model.safetensors, ...     a model, as `save_pretrained` writes it
        trainer_state.json                      of transformers' Trainer
        training_state/
            optimizer.safetensors               by name of the parameter, however parameters are sharded
            rng.safetensors                     of each process
            quarantine.jsonl                    the files that could not be decoded
            state.json                          all that is no tensor; and the size of each file, so it is written last

A checkpoint is written under a name that nothing takes for one, flushed to the disk, and then renamed. One that is no
longer wanted is renamed before it is removed. Nothing in it is a pickle.
"""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)

TRAINING_STATE = "training_state"
STATE_NAME = "state.json"

# Not `checkpoint-...`, which others look for.
_INCOMPLETE, _REMOVED, _LINKED = ".incomplete-", ".removed-", ".publishing-"

# EFBIG: a quota of the shell. The others: a disk, or a quota on it, is full.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or cannot be gone on from; the message names it and the reason."""


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


def newest_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The newest checkpoint of a run that is whole. What is wrong with newer ones is logged."""
    for path in checkpoints_in(output_dir):
        if (fault := what_is_missing(path)) is None:
            return path
        logger.warning(f"{path} is no whole checkpoint and left aside: {fault}")
    return None


def what_is_missing(checkpoint: str | os.PathLike) -> str | None:
    """Why a checkpoint is not whole; None if it is."""
    try:
        sizes = read_state(checkpoint)["files"]
    except CheckpointError as error:
        return str(error)
    for name, expected in sizes.items():
        file = Path(checkpoint) / name
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            return f"{name} is missing"
        if size != expected:
            return f"{name} has {size} bytes, expected {expected}"
    return None


def read_state(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """What a checkpoint's state.json holds.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    path = Path(checkpoint) / TRAINING_STATE / STATE_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_tensors(checkpoint: str | os.PathLike, name: str) -> dict[str, Tensor]:
    """The tensors of a file of the checkpoint's training_state."""
    return load_file(Path(checkpoint) / TRAINING_STATE / f"{name}.safetensors")


class CheckpointWriter:
    """The checkpoints of a run, as the process that writes them sees them.

    Args:
        output_dir: of the run.
    """

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
            _flush_folder(self.output_dir)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)  # it may be what fills the disk
            newest = newest_checkpoint(self.output_dir)
            kept = f"The last whole checkpoint is {newest}." if newest else "There is no whole checkpoint yet."
            full = (isinstance(error, OSError) and error.errno in _FULL) or "os error 28" in str(error)
            hint = " Make room, or keep fewer of them with save_total_limit, and start again." if full else ""
            raise CheckpointError(f"{path} cannot be written: {error}. {kept}{hint}") from error

    def write_state(self, folder: Path, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
        """Write the training_state of a checkpoint whose other files are there; `tensors` by name of the file."""
        target = folder / TRAINING_STATE
        target.mkdir(exist_ok=True)
        for name, content in tensors.items():
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, target / f"{name}.safetensors")
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in _files(folder)}
        (target / STATE_NAME).write_text(json.dumps({**state, "files": sizes}, indent=1), encoding="utf-8")

    def remove(self, checkpoint: Path) -> None:
        """Remove a checkpoint so that half of it is never there under its name."""
        removed = checkpoint.with_name(f"{_REMOVED}{checkpoint.name}-{uuid.uuid4().hex[:8]}")
        checkpoint.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def link(self, checkpoint: Path) -> Path:
        """The files of a checkpoint under another name, without taking their room again; to be removed by the caller."""
        target = checkpoint.with_name(f"{_LINKED}{checkpoint.name}-{uuid.uuid4().hex[:8]}")
        try:
            return shutil.copytree(checkpoint, target, copy_function=_link)
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def keep(self, most: int | None, best: str | os.PathLike | None = None) -> None:
        """Remove the oldest checkpoints beyond `most`, never the newest nor the best."""
        if not most or most < 1:
            return
        newest_first = checkpoints_in(self.output_dir)
        kept = {path for path in newest_first[:1] + ([Path(best)] if best else []) if path in newest_first}
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
        _flush_folder(subfolder)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
