# SPDX-License-Identifier: Apache-2.0
"""The encoded files that the rows of a dataset consist of, found without opening any."""

import hashlib
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyarrow as pa
import torch

from ...model.file_access_cover import is_address, joined_file, public_name
from ...model.image_reading_cover import STILL_SUFFIXES
from ...model.video_decoding_cover import VideoDecodingError
from .remote import local_copy


# Of the containers that the reader opens; a moving GIF is a video, a still one an image.
VIDEO_SUFFIXES = frozenset(
    [
        *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m2t", ".m2ts", ".m2v", ".m4v"),
        *(".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ]
)
IMAGE_SUFFIXES = STILL_SUFFIXES | {".gif"}
SUFFIXES = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES}

# What a row may be that is no file.
Decoded = np.ndarray | torch.Tensor | PIL.Image.Image | list | tuple
PIXEL_VALUES = "pixel_values"  # the column of clips that the model takes as they are

_MAX_CONTENT = 2**29


class Media(NamedTuple):
    """The encoded file of one row.

    Attributes:
        content: a path, the address of a remote file, or the file itself; or what is decoded already, see `decoded`.
        name: what to call the file in messages: a path, "data/shard-000.tar/key.mp4", "data/train.parquet, row 3", an
            address without what would be the right to read it.
        start, end: of the segment of a longer file, in seconds; None for the file's own.
    """

    content: str | bytes | Decoded
    name: str
    start: float | None = None
    end: float | None = None

    @property
    def is_decoded(self) -> bool:
        return isinstance(self.content, Decoded)

    @property
    def key(self) -> str:
        """Another for each row: several may be segments of one file."""
        name = self.name
        if isinstance(self.content, str) and is_address(self.content) and public_name(self.content) != self.content:
            # What the name leaves out may be what tells two files apart.
            name += f" ({hashlib.sha256(self.content.encode()).hexdigest()[:8]})"
        segment = self.start is not None or self.end is not None
        return f"{name}, from {self.start} to {self.end} s" if segment else name

    @contextmanager
    def on_disk(self) -> Iterator["Media"]:
        """The same, whose content is no address: a remote file is fetched, and its copy stays until the end.

        Raises:
            VideoDecodingError: if it cannot be fetched; and those from within the context name the file, not the copy.
        """
        if not isinstance(self.content, str) or not is_address(self.content):
            yield self
            return
        with local_copy(self.content) as path:
            try:
                yield self._replace(content=path)
            except VideoDecodingError as error:
                raise VideoDecodingError(str(error).replace(path, self.name)) from error


def check_content_size(size: int, name: str) -> None:
    """Raise a `VideoDecodingError` if a file of so many bytes, in a shard or a table, is too large for memory."""
    if size > _MAX_CONTENT:
        raise VideoDecodingError(f"{name} has {size} bytes, more than {_MAX_CONTENT}: store it as a file of its own")


def hash_of(parts: Iterable[bytes]) -> str:
    """A hash that changes with any of the parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class Segments:
    """Start and end of each row, in seconds, NaN for the file's own; without arrays, every row is a whole file."""

    def __init__(self, starts: Iterable[float] | None = None, ends: Iterable[float] | None = None):
        self._starts = None if starts is None else np.asarray(starts, dtype=np.float64)
        self._ends = None if ends is None else np.asarray(ends, dtype=np.float64)

    def __getitem__(self, row: int) -> tuple[float | None, float | None]:
        return _at(self._starts, row), _at(self._ends, row)

    def identity(self) -> list[bytes]:
        """Bytes that change with any of them."""
        return [b"" if times is None else times.tobytes() for times in (self._starts, self._ends)]

    def selected(self, rows: np.ndarray) -> "Segments":
        return Segments(*(None if times is None else times[rows] for times in (self._starts, self._ends)))


def _at(times: np.ndarray | None, row: int) -> float | None:
    if times is None:
        return None
    time = float(times[row])
    return None if math.isnan(time) else time


def parse_segment(start: Any, end: Any) -> tuple[float, float]:
    """Seconds out of two cells; NaN for an empty one."""
    start, end = _parse_seconds("start", start), _parse_seconds("end", end)
    if end <= (0 if math.isnan(start) else start):
        raise ValueError(f"the segment from {start} to {end} s is empty")
    return start, end


def _parse_seconds(key: str, value: Any) -> float:
    if value is None or value == "":
        return math.nan
    try:
        seconds = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{key} must be a number of seconds, at least 0, got {value!r}")
    return seconds


class PathMedia(Sequence):
    """Files by their paths, which start from `root` unless they are absolute, or addresses.

    The paths lie in one Arrow array. Of a list, every look-up in a forked worker would copy the page that holds the
    string's reference count, until each worker had millions of strings of its own.
    """

    def __init__(self, root: str, paths: Iterable[str] | pa.Array, segments: Segments | None = None):
        self._root, self._prefix = root, None if is_address(root) else os.path.join(root, "")
        try:
            self._paths = paths if isinstance(paths, pa.Array) else pa.array(paths, type=pa.large_string())
        except UnicodeEncodeError as error:
            raise ValueError(f"{root}: the name {error.object!r} is not in UTF-8: rename the file") from error
        self._segments = segments or Segments()

    def __len__(self) -> int:
        return len(self._paths)

    def identity(self) -> list[bytes]:
        """Bytes that change with any path or segment."""
        names = "\0".join(self._paths.to_pylist()).encode(errors="surrogateescape")
        return [names, *self._segments.identity()]

    def file_keys(self) -> list[str]:
        """What tells the file of each row from others, wherever the folder lies that they start from."""
        return [self._key(path) for path in self._paths.to_pylist()]

    def _key(self, path: str) -> str:
        if "://" in path:
            return path.removeprefix(f"{self._root.rstrip('/')}/") if is_address(self._root) else path
        if self._prefix:
            path = os.path.relpath(path, self._root) if path.startswith(self._prefix) else path
        # One file however a list spells it, and on a Mac, which composes accents in another way.
        return unicodedata.normalize("NFC", os.path.normpath(path))

    def __getitem__(self, row: int) -> Media:
        path = self._paths[row].as_py()
        name = path
        if path[0] != "/":
            if self._prefix is None or "://" in path:
                path = path if is_address(path) else joined_file(self._root, path)
                name = public_name(path)
            else:
                name = path = self._prefix + path
        return Media(path, name, *self._segments[row])


def absent_rows(root: str, paths: Sequence[str]) -> list[int]:
    """The rows whose file does not exist. Remote files are not looked for: each would be a request.

    One listing a folder: hundreds of thousands of look-ups on a network drive would take an hour.
    """
    present, absent, is_remote = {}, [], is_address(root)
    for row, path in enumerate(paths):
        if ("://" in path and is_address(path)) or (is_remote and path[:1] != "/"):
            continue
        name = path.rpartition("/")[2]
        folder = path[: len(path) - len(name)]
        names = present.get(folder)
        if names is None:
            names = present[folder] = file_names(os.path.join(root, folder))
        if name not in names:
            absent.append(row)
    return absent


def file_names(folder: str) -> frozenset[str]:
    """The names in a folder; none if there is no such folder."""
    return frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()


def roots_of(root: str, paths: Iterable[str]) -> tuple[str, ...]:
    """The folders that all the paths are in: `root`, and what the absolute ones outside of it have in common.

    Addresses are in none: that a server is there says nothing of its files.
    """
    root = public_name(root) if is_address(root) else root
    outside = {os.path.dirname(path) for path in paths if path[:1] == "/" and not path.startswith(f"{root}/")}
    return (root, os.path.commonpath(outside)) if outside else (root,)
