# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the datasets of a mixture, found before it costs a training run.

Every row is read once, on all cores, as training reads it; what is kept of it is a hash of its file and, to find copies
that were encoded anew or scaled, a fingerprint of its pixels. What is found is a list of [`Finding`]s, each a problem
or a mere note.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..data.samples import check_is_of_file, check_still_there, load_frames
from ..data.sources import Source, StreamedSource
from ..data.sources.label_lists import NO_LABEL
from ..data.sources.media import Media
from ..data.sources.streams import StoredRow
from ..model.video_processing_cover import CoverVideoProcessor
from .check_report import Finding, Report, SplitSummary
from .duplicates import FINGERPRINT_WORDS, equal_groups, fingerprint, near_groups
from .file_inspection import inspect_file
from .row_pool import RowPool
from .spelling_findings import Sources, source_findings, spelling_findings


# That the reading of one row may take, on the clock; and with every frame of it.
_SECONDS, _SECONDS_IN_FULL = 300.0, 3600.0

_MOST_COPIES = 5  # that a leak lists: some datasets have one "image not available" thousands of times


def check_datasets(
    sources: Sources,
    processor: CoverVideoProcessor,
    num_workers: int = 1,
    full: bool = False,
    near_duplicates: bool = False,
    refusals: Iterable[tuple[str, str]] = (),
) -> Report:
    """Read every row of every split, and look for what is wrong.

    Args:
        sources: by dataset and split, see [`~modeling_cover.data.sources.read_sources`].
        processor: says which frames of a video are decoded, and at which size.
        num_workers: processes that decode.
        full: decode every frame of a video, not just those that training would.
        near_duplicates: also look for copies that were encoded anew or scaled, see [`~modeling_cover.dataset_tools.duplicates`].
        refusals: why training would not begin, each with the dataset that it is about.

    Raises:
        FileNotFoundError: if a dataset vanishes meanwhile.
    """
    scan = _Scan(sources, processor, full, near_duplicates)
    splits = [
        _SplitScan(dataset, split, source) for dataset, found in sources.items() for split, source in found.items()
    ]
    findings = [
        *(Finding(kind="refused", dataset=name, split=None, message=reason) for name, reason in refusals),
        *_scan_rows(scan, splits, num_workers),
        *_class_findings(splits),
        *source_findings(sources),
        *spelling_findings(sources),
        *_copy_findings(splits, near_duplicates),
    ]
    return Report(splits=[split.summary() for split in splits], findings=findings)


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
    """A row; of a stream, it comes along."""

    dataset: str
    split: str
    row: int
    stored: StoredRow | None = None


class _Result(NamedTuple):
    """Of a row: what is kept of it, and its faults as (kind, reason). Name and classes are kept of a stream's only."""

    facts: bytes
    name: str
    classes: tuple[int, ...] = ()
    faults: Sequence[tuple[str, str]] = ()


class _Scan:
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
        name, classes = _default_name(task), ()
        try:
            if task.stored is None:
                media = source.media[task.row]
            else:
                media, target = source.example(task.stored)
                classes = _classes_of(target)
            name = media.name
            return self._read(media, source.modality, classes)
        # ValueError: beside those of files, that of a stream's row whose label is no class.
        except (ValueError, OSError) as error:
            check_is_of_file(error, source)
            return _Result(self._unread, name, classes, [("unreadable", str(error))])

    def crashed(self, task: _Task) -> _Result:
        """What is known of a row that killed the process which read it."""
        media = None if task.stored is not None else self.sources[task.dataset][task.split].media[task.row]
        name = _default_name(task) if media is None else media.name
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


def _default_name(task: _Task) -> str:
    if task.stored is None:
        return f"row {task.row}"
    return f"shard {task.stored.shard}, row {task.stored.row}"


def _classes_of(target: int | np.ndarray) -> tuple[int, ...]:
    if isinstance(target, int):
        return () if target == NO_LABEL else (target,)
    return tuple(np.flatnonzero(target).tolist())


class _SplitScan:
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
        if not self.is_stream:
            yield from (_Task(self.dataset, self.split, row) for row in range(len(self.source)))
            return
        for row, stored in enumerate(_stored_rows(self.source)):
            yield _Task(self.dataset, self.split, row, stored)

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
        classes = self._classes[row] if self.is_stream else _classes_of(self.source.target(row))
        return [self.source.labels[index] for index in classes]

    def class_counts(self) -> np.ndarray:
        """(classes,), the rows of each."""
        if not self.is_stream:
            return self.source.class_counts()
        classes = np.fromiter(chain.from_iterable(self._classes), dtype=np.int64)
        return np.bincount(classes, minlength=len(self.source.labels))

    def summary(self) -> SplitSummary:
        return SplitSummary(
            dataset=self.dataset,
            split=self.split,
            num_rows=len(self),
            labels=self.source.labels,
            class_counts=self.class_counts(),
        )


def _stored_rows(source: StreamedSource) -> Iterator[StoredRow]:
    """All rows of a stream, as they are stored."""
    num_shards = source.stream.rows.num_shards
    for shard in range(num_shards):
        for row, content in enumerate(source.stream.rows.shard(num_shards=num_shards, index=shard)):
            yield StoredRow(shard, row, content)


def _scan_rows(scan: _Scan, splits: Sequence[_SplitScan], num_workers: int) -> Iterator[Finding]:
    """Read all rows; what is wrong with files by themselves."""
    total = sum(len(split.source) for split in splits)
    with (
        closing(RowPool(scan, scan.crashed, num_workers, _SECONDS_IN_FULL if scan.full else _SECONDS)) as pool,
        tqdm(total=total, unit=" rows", desc="checking", disable=None) as progress,
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


def _class_findings(splits: Sequence[_SplitScan]) -> Iterator[Finding]:
    for split in splits:
        kind = "empty_class" if split.split == "train" else "unvalidated_class"
        for index in np.flatnonzero(split.class_counts() == 0):
            label = split.source.labels[index]
            yield split.finding(kind, f"{split.dataset}: '{label}' has no row in {split.split}", label=label)


class _Copy(NamedTuple):
    """One of several rows that are the same; its segment of their file, in seconds."""

    split: _SplitScan
    row: int
    digest: bytes
    start: float = 0.0
    end: float = np.inf

    @property
    def name(self) -> str:
        return self.split.name(self.row)

    @property
    def labels(self) -> list[str]:
        return self.split.labels(self.row)

    def __str__(self) -> str:
        segment = "" if (self.start, self.end) == (0.0, np.inf) else f" from {self.start:g} to {self.end:g} s"
        return f"{self.name}{segment} ({', '.join(self.labels) or 'no label'})"


def _copy_findings(splits: Sequence[_SplitScan], near_duplicates: bool) -> Iterator[Finding]:
    read = [np.flatnonzero(split.rows["is_read"]) for split in splits]
    split_of, row_of = np.repeat(np.arange(len(splits)), list(map(len, read))), np.concatenate(read)
    facts = np.concatenate([split.rows[rows] for split, rows in zip(splits, read, strict=True)])
    copies = _Copies()

    def copy(index: int, *segment: float) -> _Copy:
        return _Copy(splits[split_of[index]], int(row_of[index]), facts["digest"][index].tobytes(), *segment)

    for group in equal_groups(facts["digest"]):
        segments = zip(facts["start"][group].tolist(), facts["end"][group].tolist(), strict=True)
        yield from copies.findings(
            [copy(index, *segment) for index, segment in zip(group, segments, strict=True)], "bytes"
        )
    if near_duplicates:
        modality = np.array([split.source.modality for split in splits])[split_of]
        for kind in np.unique(modality):
            candidates = np.flatnonzero((modality == kind) & ~facts["is_plain"])
            for group in near_groups(facts["fingerprint"][candidates]):
                members = [copy(index) for index in candidates[group]]
                # Those of one file have been dealt with; other segments of it are no copies.
                if len({member.digest for member in members}) > 1:
                    yield from copies.findings(members, "pixels")
        yield from _plain_findings(splits)
    yield from copies.shared_findings()


def _plain_findings(splits: Sequence[_SplitScan]) -> Iterator[Finding]:
    for split in splits:
        if count := int(split.rows["is_plain"].sum()):
            yield split.finding("plain", f"{split.dataset}, {split.split}: {count} of {len(split)} rows", rows=count)


class _Copies:
    """Turns groups of rows that are the same into findings."""

    def __init__(self):
        self._leaked: set[tuple[str, int]] = set()
        self._shared: dict[tuple[str, str, str, str], list[tuple[str, str]]] = defaultdict(list)

    def findings(self, members: Sequence[_Copy], match: str) -> Iterator[Finding]:
        """Of one group; `match` says in what the rows agree: "bytes" or "pixels"."""
        yield from _duplicates(members, match)
        yield from _label_mismatches(members, match)
        for member in members:
            if member.split.split == "validation" and (member.split.dataset, member.row) not in self._leaked:
                yield from self._leaks(member, members, match)
        for split in ("train", "validation"):
            first_of = {}
            for member in members:
                if member.split.split == split:
                    first_of.setdefault(member.split.dataset, member)
            for first, second in combinations(first_of.values(), 2):
                key = (first.split.dataset, second.split.dataset, split, match)
                self._shared[key].append((first.name, second.name))

    def _leaks(self, row: _Copy, members: Sequence[_Copy], match: str) -> Iterator[Finding]:
        train = [
            member
            for member in members
            if member.split.split == "train" and member.start < row.end and row.start < member.end
        ]
        if not train:
            return
        self._leaked.add((row.split.dataset, row.row))
        copies = [
            {"dataset": copy.split.dataset, "name": copy.name, "labels": copy.labels} for copy in train[:_MOST_COPIES]
        ]
        whose = "of its own" if train[0].split.dataset == row.split.dataset else f"of {train[0].split.dataset}"
        yield row.split.finding(
            "leak",
            f"{row.split.dataset}: {row} is a training row {whose}: {train[0]}{_HOW[match]}",
            row=row.row,
            name=row.name,
            labels=row.labels,
            match=match,
            train_of=sorted({copy.split.dataset for copy in train}),
            num_copies=len(train),
            copies=copies,
        )

    def shared_findings(self) -> Iterator[Finding]:
        """What datasets have in common beside leaks: no fault of either, but good to know."""
        for (first, second, split, match), names in self._shared.items():
            message = (
                f"{first} and {second}, {split}: {len(names)}, such as {names[0][0]} and {names[0][1]}{_HOW[match]}"
            )
            details = {"datasets": [first, second], "match": match, "num_files": len(names)}
            yield Finding(kind="shared", dataset=first, split=split, message=message, details=details)


_HOW = {"bytes": "", "pixels": " (by its pixels)"}


def _duplicates(members: Iterable[_Copy], match: str) -> Iterator[Finding]:
    groups = defaultdict(list)
    for member in members:
        groups[id(member.split), member.start, member.end].append(member)
    for group in groups.values():
        if match == "pixels":
            group = list({member.digest: member for member in reversed(group)}.values())[::-1]
        if len(group) > 1:
            split, names = group[0].split, [member.name for member in group]
            message = f"{split.dataset}, {split.split}: {group[0]} is also {names[1]}{_HOW[match]}"
            rows = [member.row for member in group]
            yield split.finding("duplicate", message, match=match, names=names, rows=rows)


def _label_mismatches(members: Iterable[_Copy], match: str) -> Iterator[Finding]:
    groups = defaultdict(dict)
    for member in members:
        groups[member.split.dataset, member.start, member.end].setdefault(tuple(sorted(member.labels)), member)
    for (dataset, _, _), by_labels in groups.items():
        if len(by_labels) > 1:
            first, second, *_ = by_labels.values()
            message = f"{dataset}: {first} is also {second}{_HOW[match]}"
            rows = [{"split": row.split.split, "name": row.name, "labels": row.labels} for row in by_labels.values()]
            details = {"match": match, "rows": rows}
            yield Finding(kind="label_mismatch", dataset=dataset, split=None, message=message, details=details)
