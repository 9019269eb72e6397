# SPDX-License-Identifier: Apache-2.0
"""Reading of every row of a mixture, once and on all cores, as training reads it.

What is kept of a row is a hash of its file, 34 bytes with the segment, and 32 more of a fingerprint of its pixels, to
find copies that were encoded again or scaled: millions fit into memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from ..bars import bar
from ..data.samples import check_is_of_file, check_still_there, load_frames
from ..data.sources import Source, StreamedSource
from ..data.sources.label_lists import NO_LABEL
from ..data.sources.media import Media
from ..data.sources.streams import StoredRow
from ..model.video_processing_cover import CoverVideoProcessor
from .check_report import Finding
from .duplicates import FINGERPRINT_WORDS, fingerprint
from .file_inspection import inspect_file
from .row_pool import TIME_LIMIT, RowPool


_SECONDS_IN_FULL = 3600.0  # that the reading of one row may take, with every frame of it

Sources = Mapping[str, Mapping[str, Source | StreamedSource]]  # by dataset and split


def _row_type(near_duplicates: bool) -> np.dtype:
    """What is kept of a row: its file's hash, its segment of the file in seconds, and its fingerprint."""
    return np.dtype(
        [
            ("is_read", "?"),
            ("digest", "u8", (2,)),
            ("start", "f8"),
            ("end", "f8"),
            ("is_plain", "?"),
            ("fingerprint", "u8", (FINGERPRINT_WORDS if near_duplicates else 0,)),
        ]
    )


class _Task(NamedTuple):
    """A row: its number; of a stream, the row as it is stored."""

    dataset: str
    split: str
    row: int | StoredRow


class _Result(NamedTuple):
    """Of a row: what is kept of it, and its faults as (kind, reason). Name and classes are kept of a stream's only."""

    facts: bytes
    name: str
    classes: tuple[int, ...] = ()
    faults: Sequence[tuple[str, str]] = ()


class Scan:
    """Reads one row, in whatever process."""

    def __init__(self, sources: Sources, processor: CoverVideoProcessor, full: bool, near_duplicates: bool):
        self.sources = sources
        self.processor = processor
        self.full = full
        self.near_duplicates = near_duplicates
        self.row_type = _row_type(near_duplicates)

    def __call__(self, task: _Task) -> _Result:
        torch.set_num_threads(1)  # the other cores are other rows'
        source = self.sources[task.dataset][task.split]
        name, classes = source.place(task.row), ()
        try:
            media, target = source.example(task.row)
            name, classes = media.name, _classes_of(target)
            return self._read(media, source.modality, classes)
        # ValueError: beside those of files, that of a stream's row whose label is no class.
        except (ValueError, OSError) as error:
            check_is_of_file(error, source)
            return _Result(self._unread, name, classes, [("unreadable", str(error))])

    def crashed(self, task: _Task) -> _Result:
        """What is known of a row that killed the process which read it."""
        source = self.sources[task.dataset][task.split]
        name = source.place(task.row) if isinstance(source, StreamedSource) else source.media[task.row].name
        reason = f"{name} kills the process that reads it, or takes it too long"
        return _Result(self._unread, name, (), [("unreadable", reason)])

    @property
    def _unread(self) -> bytes:
        return np.zeros((), dtype=self.row_type).tobytes()

    def _read(self, media: Media, modality: str, classes: tuple[int, ...]) -> _Result:
        short_side = self.processor.size["shortest_edge"]
        with media.on_disk() as local:
            frames = load_frames(local, modality, self.processor, self.processor.sample_frames, short_side)
            file = inspect_file(local.content, modality, self.full)
        facts = np.zeros((), dtype=self.row_type)
        facts["is_read"], facts["digest"] = True, file.digest
        facts["start"] = 0.0 if media.start is None else media.start
        facts["end"] = np.inf if media.end is None else media.end
        if self.near_duplicates:
            code = fingerprint(frames, is_video=modality == "video")
            facts["is_plain"], facts["fingerprint"] = code is None, 0 if code is None else code
        # What a file lacks behind a segment of it does no harm.
        faults = {"damaged": file.damaged} | ({"truncated": file.truncated} if media.end is None else {})
        found = [(kind, f"{media.name}: {reason}") for kind, reason in faults.items() if reason is not None]
        return _Result(facts.tobytes(), media.name, classes, found)


def _classes_of(target: int | np.ndarray) -> tuple[int, ...]:
    if isinstance(target, int):
        return () if target == NO_LABEL else (target,)
    return tuple(np.flatnonzero(target).tolist())


class SplitScan:
    """What is known of the rows of a split, in their order."""

    def __init__(self, dataset: str, split: str, source: Source | StreamedSource):
        self.dataset = dataset
        self.split = split
        self.source = source
        self.is_stream = isinstance(source, StreamedSource)
        self.rows: np.ndarray
        self._facts = bytearray()
        self._names: list[str] = []
        self._classes: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def tasks(self) -> Iterator[_Task]:
        return (_Task(self.dataset, self.split, row) for row in self.source.rows())

    def add(self, result: _Result) -> None:
        self._facts += result.facts
        if self.is_stream:
            self._names.append(result.name)
            self._classes.append(result.classes)

    def finish(self, row_type: np.dtype) -> None:
        self.rows = np.frombuffer(self._facts, dtype=row_type)

    def finding(self, kind: str, message: str, **details: Any) -> Finding:
        return Finding(kind=kind, dataset=self.dataset, split=self.split, message=message, details=details)

    def name(self, row: int) -> str:
        return self._names[row] if self.is_stream else self.source.media[row].name

    def labels(self, row: int) -> list[str]:
        if not self.is_stream:
            return self.source.names_of(row)
        return [self.source.labels[index] for index in self._classes[row]]

    @cached_property
    def class_counts(self) -> np.ndarray:
        """(classes,), the rows of each."""
        if not self.is_stream:
            return self.source.class_counts()
        classes = np.fromiter(chain.from_iterable(self._classes), dtype=np.int64)
        return np.bincount(classes, minlength=len(self.source.labels))


def scan_rows(scan: Scan, splits: Sequence[SplitScan], num_workers: int) -> Iterator[Finding]:
    """Read all rows; what is wrong with files by themselves."""
    total = sum(len(split.source) for split in splits)
    with (
        closing(RowPool(scan, scan.crashed, num_workers, _SECONDS_IN_FULL if scan.full else TIME_LIMIT)) as pool,
        bar(total=total, unit=" rows", desc="checking") as progress,
    ):
        for split in splits:
            for row, result in enumerate(pool.map(split.tasks())):
                if result.faults:
                    check_still_there(split.source)
                for kind, reason in result.faults:
                    yield split.finding(kind, reason, row=row, name=result.name)
                split.add(result)
                progress.update()
            split.finish(scan.row_type)
            if len(split) != len(split.source):
                rows = f"{len(split)} rows, not {len(split.source)}"
                yield split.finding("row_count", f"{split.source.stream.place} has {rows}: give its `sizes`")
