# SPDX-License-Identifier: Apache-2.0
"""One run a folder: the lock on an output folder, which any death of its process releases.

It is the system's lock on a file in the folder (flock), which says nothing where two machines of a network drive each
have locks of their own, or where there are none. So the file names the host and the process that hold it, and a thread
of theirs sets its time every few seconds: a holder on another machine is there if that time moves.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import BinaryIO

from transformers.utils import logging

from .checkpoints import CheckpointError


logger = logging.get_logger(__name__)

LOCK_NAME = ".run.lock"

_SECONDS_PER_BEAT = 5.0
_BEATS_TO_WATCH = 4

_held: "weakref.WeakValueDictionary[tuple[int, int], FolderLock]" = weakref.WeakValueDictionary()


class FolderLock:
    """Held by this process until nothing refers to it any more, see [`lock_folder`]."""

    def __init__(self, file: BinaryIO):
        self.file = file
        ended = threading.Event()
        threading.Thread(target=_keep_beating, args=(file, ended), name="folder lock", daemon=True).start()
        self._release = weakref.finalize(self, _release, file, ended, os.getpid())


def lock_folder(folder: str | os.PathLike) -> FolderLock:
    """Make a folder this process's; all of its locks on one folder are the same.

    Raises:
        CheckpointError: if a run holds it, whose host and process it names, or the lock cannot be written.
    """
    path = Path(folder) / LOCK_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # noqa: SIM115, as it is open as long as the lock is held
    except OSError as error:
        raise CheckpointError(f"output_dir {os.fspath(folder)} cannot be locked: {error}") from error
    key = _identity(file)
    if (lock := _held.get(key)) is not None:
        file.close()
        return lock
    try:
        is_certain = _take(file)
        holder = _holder(path)
        is_elsewhere = holder is not None and (not is_certain or holder["host"] != socket.gethostname())
        if is_elsewhere and _is_alive(path):
            raise BlockingIOError
    except BlockingIOError:
        file.close()
        raise CheckpointError(_refusal(folder, _holder(path))) from None
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode())
    lock = _held[key] = FolderLock(file)
    return lock


def _take(file: BinaryIO) -> bool:
    """Lock a file; False where the file system has no locks.

    Raises:
        BlockingIOError: if another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError from error
        logger.warning(
            f"{file.name}: the file system has no locks ({error.strerror}): whether another run uses this folder is told by "
            "what it writes there"
        )
        return False
    return True


def _holder(path: Path) -> dict | None:
    """The host and the process that hold a lock, or held it when they died; None if it was released, or is being
    taken."""
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"host", "process"} <= record.keys() else None


def _is_alive(path: Path) -> bool:
    """Whether somebody sets the time of a lock's file."""
    before = _time_set(path)
    for _ in range(_BEATS_TO_WATCH):
        time.sleep(_SECONDS_PER_BEAT)
        if _time_set(path) != before:
            return True
    return False


def _time_set(path: Path) -> int:
    with open(path, "rb") as file:  # opened each time: a network drive's client may remember an older time
        return os.fstat(file.fileno()).st_mtime_ns


def _refusal(folder: str | os.PathLike, holder: dict | None) -> str:
    who = "a process" if holder is None else f"process {holder['process']} on {holder['host']}"
    return (
        f"output_dir {os.fspath(folder)}: another run uses this folder, {who}. Wait until it has ended, or end it; or choose "
        "another output_dir"
    )


def _identity(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _keep_beating(file: BinaryIO, ended: threading.Event) -> None:
    while not ended.wait(_SECONDS_PER_BEAT):
        try:
            os.utime(file.fileno())
        except (OSError, ValueError):  # a drive that is away for a while; a file that has been closed meanwhile
            continue


def _release(file: BinaryIO, ended: threading.Event, process: int) -> None:
    if file.closed or os.getpid() != process:
        return
    ended.set()
    try:
        file.truncate(0)
    except OSError as error:
        logger.warning(f"{file.name}: {error}")
    file.close()


def _leave_to_parent() -> None:
    """In a forked process, a data loader's worker say: the lock must not outlive the process that holds it."""
    for lock in list(_held.values()):
        lock.file.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
