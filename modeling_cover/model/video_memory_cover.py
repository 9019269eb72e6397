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
"""How much memory a video file may make FFmpeg take: of each allocation, and of an MP4 file's index, which is many."""

import ctypes
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

import av._core
import numpy as np


# Of a single allocation: a picture of 4096 x 4096 pixels of 32 bits, as a packet or as a frame, with what pads it.
MAX_ALLOCATION = 2**26 + 2**20
_UNLIMITED = 2**31 - 1  # FFmpeg's own default

# Of an MP4 file, all tracks together. FFmpeg takes some 100 bytes for each of the first, and 150 for the others, of
# which up to 1024 samples of sound are one.
_MAX_SAMPLES, _MAX_SOUNDS, _MAX_BOXES = 2**22, 2**21, 2**20
_SAMPLES_A_FRAGMENT = 16  # FFmpeg notes as much of each as of so many samples
_MAX_DEPTH = 11  # FFmpeg's own limit
_MAX_HEADER = 2**22  # bytes of what is read as a whole: a compressed header, or what describes a track's samples

# Where the number of samples stands in a box, behind its head. "saiz" has other fields before it if a flag is set.
_COUNTED = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"senc": 4, b"saiz": 5}
# Boxes of boxes; so are, to FFmpeg, those that are "free" and seem to hold what "moov" does.
_CONTAINERS = frozenset(b"moov trak mdia minf stbl moof traf mvex udta ilst edts tref wave sinf schi dinf".split())
_FREE, _IN_HEADER = (b"free", b"hoov"), (b"mvhd", b"cmov")
# Boxes whose boxes begin somewhere in them.
_READ_WHOLE = (b"stsd", b"iprp", b"cmov", b"meta")
_READ = frozenset((*_COUNTED, *_CONTAINERS, *_FREE, *_READ_WHOLE, b"stco", b"co64", b"stsc", b"sidx"))


class _AllocationLimit:
    """FFmpeg's bound on single allocations (`av_max_alloc`), which it has for the whole process.

    It holds while a file is being read, in all threads, and for all else that PyAV does meanwhile; and then FFmpeg's
    default does again.
    """

    def __init__(self):
        self._lock, self._num_readers = threading.Lock(), 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it, FFmpeg allocates no more than `MAX_ALLOCATION` bytes at a time; several may overlap."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, step: int) -> None:
        set_limit = _max_alloc()
        if set_limit is None:
            return
        with self._lock:
            self._num_readers += step
            set_limit(MAX_ALLOCATION if self._num_readers else _UNLIMITED)

    def after_fork(self) -> None:
        # Another thread may have held the lock, and is not there any more.
        self._lock = threading.Lock()


_allocation_limit = _AllocationLimit()
limited_allocations = _allocation_limit.held
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_allocation_limit.after_fork)


@cache
def _max_alloc() -> Any:
    """FFmpeg's function of that name in the library that PyAV uses; None where it cannot be found, which is said
    once."""
    try:
        # Of a name that a library lacks, the libraries are asked that it was linked with. (On Windows they are not.)
        function = ctypes.CDLL(av._core.__file__).av_max_alloc
    except (OSError, AttributeError):
        warnings.warn(
            "FFmpeg's av_max_alloc cannot be found through this build of PyAV: a damaged or malicious video can take "
            "gigabytes of memory. Read files of strangers in a process whose memory is bounded, or install PyAV's own "
            "wheel (pip install av) on Linux or macOS.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    function.argtypes, function.restype = [ctypes.c_size_t], None
    return function


def check_mp4(file: BinaryIO) -> None:
    """Raise a `ValueError` if an MP4 or MOV file announces more samples than FFmpeg's index of them may take.

    A file of 700 bytes can announce billions, in each of its tracks. Files of other kinds have no such boxes.
    """
    size = file.seek(0, io.SEEK_END)
    boxes = _Boxes()
    boxes.walk(file, 0, size, 0)
    boxes.check_sounds()


class _Boxes:
    """What the boxes of an MP4 file announce. They are walked through as FFmpeg does, which takes any box anywhere."""

    def __init__(self):
        self._num_boxes = self._num_samples = self._most_chunks = 0
        self._chunks: list[np.ndarray] = []  # of "stsc": from which chunk on there are how many samples in each

    def walk(self, file: BinaryIO, start: int, end: int, depth: int) -> None:
        while start + 8 <= end:
            file.seek(start)
            head = file.read(32)
            if len(head) < 8:
                return
            (size,), kind, length = struct.unpack_from(">I", head), head[4:8], 8
            if size == 1 and len(head) >= 16:
                (size,), length = struct.unpack_from(">Q", head, 8), 16
            stop = end if size == 0 else min(start + size, end)
            if stop < start + length:
                return
            self._num_boxes += 1
            if kind in _READ:
                self._read(file, kind, head[length:], start + length, stop, depth)
            if self._num_boxes > _MAX_BOXES:
                raise ValueError(f"it has more than {_MAX_BOXES} boxes")
            if self._num_samples > _MAX_SAMPLES:
                raise ValueError(f"it announces more than {_MAX_SAMPLES} samples")
            start = stop

    def check_sounds(self) -> None:
        if sum(map(self._num_sounds, self._chunks)) > _MAX_SOUNDS:
            raise ValueError(f"it announces more than {_MAX_SOUNDS} pieces of sound")

    def _read(self, file: BinaryIO, kind: bytes, content: bytes, start: int, stop: int, depth: int) -> None:
        if kind in _COUNTED:
            self._num_samples += _count_in(kind, content)
        elif kind in (b"stco", b"co64"):
            self._most_chunks = max(self._most_chunks, min(_count_in(kind, content, 4), (stop - start) // 4))
        elif kind == b"stsc":
            file.seek(start + 8)
            rows = file.read(min(stop - start - 8, 12 * _count_in(kind, content, 4), 12 * _MAX_SAMPLES))
            self._chunks.append(np.frombuffer(rows[: len(rows) // 12 * 12], dtype=">u4").reshape(-1, 3)[:, :2])
        elif kind == b"sidx":
            self._num_samples += _SAMPLES_A_FRAGMENT * ((stop - start) // 12)
        elif depth == _MAX_DEPTH:
            return
        elif kind in _READ_WHOLE:
            self._read_whole(file, kind, start, stop, depth)
        elif kind in _CONTAINERS or (kind in _FREE and content[4:8] in _IN_HEADER):
            self._num_samples += _SAMPLES_A_FRAGMENT * (kind == b"moof")
            self.walk(file, start, stop, depth + 1)

    def _read_whole(self, file: BinaryIO, kind: bytes, start: int, stop: int, depth: int) -> None:
        if kind == b"meta":
            # FFmpeg looks for the first of its boxes by fours, which is the second of them as a rule.
            file.seek(start)
            content = file.read(min(stop - start, _MAX_HEADER))
            place = next((place for place in range(4, len(content), 4) if content.startswith(b"hdlr", place)), None)
            if place is not None:
                self.walk(file, start + place - 4, stop, depth + 1)
            return
        if stop - start > _MAX_HEADER:
            raise ValueError(f"its box {kind.decode()} has more than {_MAX_HEADER} bytes")
        file.seek(start)
        content = file.read(stop - start)
        if kind == b"cmov":
            place = content.find(b"cmvd")
            content = b"" if place < 0 else _decompressed(content[place + 8 :])
            self.walk(io.BytesIO(content), 0, len(content), depth + 1)
            return
        # What in it is a box depends on the codec. It is no table of numbers, in which the codes would stand by
        # chance.
        for code in (*_COUNTED, b"stsc"):
            if code in content:
                raise ValueError(f"its box {kind.decode()} has a box {code.decode()}")

    def _num_sounds(self, chunks: np.ndarray) -> int:
        """Up to how many entries FFmpeg's index has of a track of sound whose samples are all of one size."""
        firsts, counts = chunks.astype(np.int64).T
        lasts = np.append(firsts[1:], max(self._most_chunks + 1, int(firsts[-1]) if len(firsts) else 0))
        return int((np.maximum(lasts - firsts, 0) * -(-counts // 1024)).sum())


def _count_in(kind: bytes, content: bytes, place: int | None = None) -> int:
    place = _COUNTED[kind] if place is None else place
    if kind == b"saiz" and content[3:4] and content[3] & 1:
        place += 8
    return struct.unpack_from(">I", content, place)[0] if len(content) >= place + 4 else 0


def _decompressed(content: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        header = decompressor.decompress(content, _MAX_HEADER)
    except zlib.error:
        return b""  # for FFmpeg, too
    if decompressor.unconsumed_tail:
        raise ValueError(f"its compressed header has more than {_MAX_HEADER} bytes")
    return header
