# SPDX-License-Identifier: Apache-2.0
"""Rows of files on disk: folders named after classes, and lists of files in CSV, TSV, JSON and JSON-lines files."""

import csv
import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ...model.file_access_cover import is_address, parent, public_name
from ...recipe.dataset_recipe import DatasetRecipe
from ...text import some
from .label_lists import LabelColumn, LabelColumnBuilder, checked_labels, single_label, split_labels
from .media import SUFFIXES, Media, PathMedia, Segments, absent_rows, parse_segment, roots_of
from .remote import check_row_addresses, open_text
from .spelling import PathForms


logger = logging.get_logger(__name__)

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """What is found of one split, before its label space is known."""

    media: Sequence[Media]
    labels: LabelColumn
    names: list[str] | None = None  # the classes that the source itself lists in order, if it does
    roots: tuple[str, ...]  # the folders or files that must exist for the rows to be there
    place_of: Callable[[int], str] | None = None  # where a row is written down; by default in its file's name
    left_out: tuple[str, ...] = ()  # files that are there and no row is made of

    def place(self, row: int) -> str:
        """What to call a row in messages."""
        name = self.media[row].name
        return name if self.place_of is None else f"{self.place_of(row)} ({name})"


class Records:
    """The rows of a table in a file, in order, as tuples of the wanted columns' values.

    Args:
        file: .csv or .tsv with a header line, .json (a list of objects, or an object of columns) or .jsonl; a path or
            an address.
        columns: their names; the values of None are None or empty.
        header: names of the first columns of a CSV file without a header line.

    Raises:
        ValueError: in the constructor, if the file is missing or of another type; from the iterator, if it is not
            what its name says, or lacks a column or all rows. The message names the file and the line, or the item,
            counted from 1.
    """

    def __init__(self, file: str | Path, columns: Sequence[str | None], header: list[str] | None = None):
        self._source, file = str(file), public_name(str(file))
        if not is_address(file) and not os.path.isfile(file):
            raise ValueError(f"{file} is not a file")
        self.suffix = os.path.splitext(file)[1].lower()
        if self.suffix not in (*_DELIMITERS, ".json", ".jsonl"):
            raise ValueError(f"{file}: expected a .csv, .tsv, .json or .jsonl file")
        self.is_text = self.suffix in _DELIMITERS
        self.file = file
        self.columns = list(columns)
        self.number = 0
        self._header = header

    def place(self, number: int | None = None) -> str:
        """Where the current row is, or the one of that number."""
        unit = "item" if self.suffix == ".json" else "line"
        return f"{self.file}, {unit} {self.number if number is None else number}"

    def __iter__(self) -> Iterator[tuple]:
        rows = {".json": self._in_json, ".jsonl": self._in_json_lines}.get(self.suffix, self._in_text)
        is_empty = True
        try:
            for self.number, values in rows():
                is_empty = False
                yield values
        except (csv.Error, _RecordError) as error:
            raise ValueError(f"{self.place()}: {error}") from error
        except json.JSONDecodeError as error:
            line = error.lineno if self.suffix == ".json" else self.number
            raise ValueError(f"{self.file}, line {line}: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.file}: expected text in UTF-8: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{self.place()}: too deeply nested") from error
        if is_empty:
            raise ValueError(f"{self.file}: no {'lines after the header' if self.is_text else 'items'}")

    def _in_text(self) -> Iterator[tuple[int, tuple]]:
        with open_text(self._source, newline="") as file:
            reader = csv.reader(file, delimiter=_DELIMITERS[self.suffix], strict=True)
            self.number = 1
            header = self._header or next(reader, [])
            self._check_columns(header)
            if repeated := [column for column in self.columns if header.count(column) > 1]:
                raise _RecordError(f"more than one column {repeated}, found {header}")
            places = [len(header) if column is None else header.index(column) for column in self.columns]
            for row in self._text_rows(reader):
                if not row:
                    continue
                if len(row) > len(header) and self._header is None:
                    raise _RecordError("more cells than columns (quote cells with commas)")
                # A short row has nothing in its last columns.
                row = row[: len(header)] + [""] * (len(header) + 1 - len(row))
                yield self.number, tuple([row[place] for place in places])

    def _text_rows(self, reader: Any) -> Iterator[list[str]]:
        try:
            for row in reader:
                self.number = reader.line_num
                yield row
        except csv.Error:
            # Behind the last row that was whole: the reader's own line may be hundreds on, in search of a closing
            # quote.
            self.number += 1
            raise

    def _in_json(self) -> Iterator[tuple[int, tuple]]:
        with open_text(self._source) as file:
            content = json.loads(file.read())
        if isinstance(content, dict):
            self._check_columns(list(content))
            columns = [content[column] for column in self.columns if column is not None]
            if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
                raise ValueError(f"{self.file}: expected lists of one length under {self._names()}")
            for self.number, values in enumerate(zip(*columns, strict=True), start=1):
                row = dict(zip(self._names(), values, strict=True))
                yield self.number, tuple([row.get(column) for column in self.columns])
        elif isinstance(content, list):
            for self.number, item in enumerate(content, start=1):
                yield self.number, self._values(item)
        else:
            raise ValueError(f"{self.file}: expected a list of objects or an object of columns, got {content!r}")

    def _in_json_lines(self) -> Iterator[tuple[int, tuple]]:
        with open_text(self._source) as file:
            for self.number, line in enumerate(file, start=1):
                if line.strip():
                    yield self.number, self._values(json.loads(line))

    def _values(self, item: Any) -> tuple:
        if not isinstance(item, dict):
            raise _RecordError(f"expected an object, got {item!r}")
        self._check_columns(list(item))
        return tuple([item.get(column) for column in self.columns])

    def _names(self) -> list[str]:
        return [column for column in self.columns if column is not None]

    def _check_columns(self, found: list[str]) -> None:
        if missing := [column for column in self._names() if column not in found]:
            raise MissingColumnError(f"{self.place()}: no column {missing}, found {found}", missing)


class MissingColumnError(ValueError):
    """A list lacks columns, which are named in `columns`."""

    def __init__(self, message: str, columns: list[str]):
        super().__init__(message)
        self.columns = columns


class _RecordError(ValueError):
    """What is wrong with a row; the message continues after the place of the row."""


def read_manifest(dataset: DatasetRecipe, split: str, place: str) -> SplitRows:
    """A list of files and their labels, with segments of them where the recipe names columns for start and end."""
    columns = [dataset.column(key) for key in ("path", "label", "start", "end")]
    records = Records(place, columns)
    paths, numbers, labels = [], array("q"), LabelColumnBuilder(dataset.is_multi_label)
    starts, ends = array("d"), array("d")
    has_segments = columns[2:] != [None, None]
    for path, label, start, end in records:
        try:
            if not path or (label == "" and not dataset.is_multi_label):
                raise ValueError("path or label is empty")
            if not isinstance(path, str):
                raise ValueError(f"a path must be a string, got {path!r}")
            if records.is_text:
                label = split_labels(label, dataset.label_separator) if dataset.is_multi_label else single_label(label)
            labels.append(label)
            if has_segments:
                start, end = parse_segment(start, end)
                starts.append(start)
                ends.append(end)
        except ValueError as error:
            raise ValueError(f"{records.place()}: {error}") from error
        paths.append(path)
        numbers.append(records.number)
    root = dataset.media_root
    if root is None:
        root = parent(place) if is_address(place) else str(Path(place).parent)
    segments = Segments(starts, ends) if has_segments else None
    return existing_rows(
        dataset, split, root, paths, labels.build(), lambda row: records.place(numbers[row]), segments=segments
    )


def file_rows(
    dataset: DatasetRecipe,
    split: str,
    root: str | os.PathLike,
    rows: Iterable[Sequence[Any]],
    classes: Sequence[str] | None = None,
    place_of: Callable[[int], str] | None = None,
) -> SplitRows:
    """What a layout of [`register_layout`] reads: a split of files.

    Args:
        dataset, split: as the layout's `read` has them.
        root: the folder, or the address, that paths start from.
        rows: (path, label) of each, or (path, label, start, end) of a segment, in seconds, None for the file's own. A
            label is the name of a class, or its index in `classes`; of a multi-label dataset it is a list of these.
        classes: all of them in order, if the layout lists them; by default they are the train split's, sorted.
        place_of: where a row is written down, for messages; by default its number, from 0.

    Raises:
        ValueError: names the row that is no such tuple; or whose file does not exist, unless the recipe says
            `missing_files: skip`.
    """
    if place_of is None:
        place_of = lambda row: f"row {row} of {public_name(dataset.splits[split])}"  # noqa: E731
    paths, labels, times = [], LabelColumnBuilder(dataset.is_multi_label), []
    for number, row in enumerate(rows):
        try:
            if isinstance(row, str) or not isinstance(row, Sequence) or len(row) not in (2, 4):
                raise ValueError(f"expected (path, label) or (path, label, start, end), got {row!r}")
            path, label, *segment = row
            if not isinstance(path, str | os.PathLike) or not os.fspath(path):
                raise ValueError(f"a path must be a string that is not empty, got {path!r}")
            labels.append(label)
            times.append(parse_segment(*segment) if segment else (math.nan, math.nan))
        except ValueError as error:
            raise ValueError(f"{place_of(number)}: {error}") from error
        paths.append(os.fspath(path))
    if not paths:
        raise ValueError(f"the format '{dataset.format}' finds no rows in {public_name(dataset.splits[split])}")
    segments = None if np.isnan(times).all() else Segments(*zip(*times, strict=True))
    found = existing_rows(dataset, split, os.fspath(root), paths, labels.build(), place_of, segments)
    return found if classes is None else replace(found, names=checked_labels(list(classes), "classes"))


def existing_rows(
    dataset: DatasetRecipe,
    split: str,
    root: str,
    paths: list[str],
    labels: LabelColumn,
    place_of: Callable[[int], str],
    segments: Segments | None = None,
    absent: list[int] | None = None,
) -> SplitRows:
    """The rows whose file exists.

    `paths` are absolute or start from `root`; `absent` are the rows without a file, if these are known already.
    """
    check_row_addresses(paths, place_of)
    absent = absent_rows(root, paths) if absent is None else absent
    paths, absent = _in_forms_on_disk(root, paths, absent)
    kept = np.arange(len(paths))
    if absent:
        first = f"{place_of(absent[0])}: {os.path.join(root, paths[absent[0]])} does not exist"
        more = f" (nor do {len(absent) - 1} more of the {len(paths)} files)" if len(absent) > 1 else ""
        if dataset.missing_files == "error" or len(absent) == len(paths):
            raise ValueError(f"{first}{more}")
        logger.warning(f"dataset '{dataset.name}', {split} split: rows without a file are left out: {first}{more}")
        kept = np.delete(kept, absent)
        paths, labels = [paths[row] for row in kept.tolist()], labels.selected(kept)
        segments = None if segments is None else segments.selected(kept)
    return SplitRows(
        media=PathMedia(root, paths, segments),
        labels=labels,
        roots=roots_of(root, paths),
        place_of=lambda row: place_of(int(kept[row])),
    )


def _in_forms_on_disk(root: str, paths: list[str], absent: list[int]) -> tuple[list[str], list[int]]:
    """The paths with accents composed as the disk has them, and the rows that are absent all the same."""
    forms = PathForms()
    found = {row: path for row in absent if (path := forms.find(os.path.join(root, paths[row]))) is not None}
    if found:
        paths = [found.get(row, path) for row, path in enumerate(paths)]
    return paths, [row for row in absent if row not in found]


def read_class_folders(dataset: DatasetRecipe, split: str, place: str) -> SplitRows:
    """Files of `place/class/`, however deep; the label is the folder's name. Links are followed."""
    if not os.path.isdir(place):
        raise ValueError(f"{place} is not a folder")
    paths, labels = [], LabelColumnBuilder(multi_label=False)
    entries = sorted((entry for entry in os.scandir(place) if entry.name[0] != "."), key=lambda entry: entry.name)
    left_out = [entry.name for entry in entries if not entry.is_dir()]
    for label in (entry.name for entry in entries if entry.is_dir()):
        folder = os.path.join(place, label)
        files = list(_files_in(folder, label, (os.path.realpath(folder),)))
        taken = [path for path in files if os.path.splitext(path)[1].lower() in SUFFIXES[dataset.modality]]
        if not taken:
            raise ValueError(
                f"no {dataset.modality} files in {folder}, expected some for each class{_others(dataset, files)}"
            )
        left_out += sorted({*files} - {*taken})
        paths += taken
        for _ in taken:
            labels.append(label)
    if not paths:
        raise ValueError(f"no class folders in {place}: expected {place}/CLASS/FILE{_others(dataset, left_out)}")
    if left_out:
        first = f"the first is {os.path.join(place, left_out[0])}"
        why = f"lie in no class's folder, or do not end as {dataset.modality}s do"
        logger.warning(
            f"dataset '{dataset.name}', {split} split: {len(left_out)} files are left out that {why}; {first}"
        )
    return SplitRows(media=PathMedia(place, paths), labels=labels.build(), roots=(place,), left_out=tuple(left_out))


def _others(dataset: DatasetRecipe, files: Sequence[str]) -> str:
    """What is there in place of what was expected, for a message."""
    if not files:
        return ""
    there = some([os.path.basename(file) for file in files], most=3)
    suffixes = ", ".join(sorted(SUFFIXES[dataset.modality]))
    return f": there {'is' if len(files) == 1 else 'are'} {there}, and {dataset.modality}s end in {suffixes}"


def _files_in(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    """All files in order of their names, each after `prefix`. Hidden ones are none: "._a.mp4" is what a Mac leaves
    beside a.mp4. A link may lead back to the folders that this one is in, whose real paths are `above`."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name[0] == ".":
            continue
        if not entry.is_dir():
            yield f"{prefix}/{entry.name}"
        elif (real := os.path.realpath(entry.path)) not in above:
            yield from _files_in(entry.path, f"{prefix}/{entry.name}", (*above, real))
