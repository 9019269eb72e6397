# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, and JSON that any reader takes."""

import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


UNFINISHED = ".tmp"  # how the name of a file ends that is being written


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is written and on the disk; nothing does if that fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process's own, lest two of them that were started by mistake write into one file.
    unfinished = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: str | os.PathLike) -> None:
    """Have what a folder lists on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(value: Any, instead: Callable[[float], Any] = lambda number: None) -> Any:
    """A value for JSON, which has neither NaN nor infinity: None is in their place, or what `instead` makes of it."""
    if isinstance(value, Mapping):
        return {key: finite(entry, instead) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry, instead) for entry in value]
    return instead(value) if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, **options: Any) -> bytes:
    """JSON in UTF-8 that any reader takes; `options` are those of `json.dumps`."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, **options)
    # A lone surrogate, which UTF-8 lacks, stands for a byte of a file's name that is not UTF-8: `\udc80`, as in JSON.
    return text.encode("utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: Any, **options: Any) -> None:
    """Write [`to_json`] and the end of the line."""
    with replacing(path) as file:
        file.write(to_json(value, **options) + b"\n")
