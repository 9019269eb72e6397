# SPDX-License-Identifier: Apache-2.0
"""Label spaces: lists of classes in files, and the labels of rows as indices into such a list.

A label of a row is the name of a class, or its index in a list of names. Where nothing lists names, an index means
nothing: an order would have to be guessed.
"""

import csv
import json
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...model.file_access_cover import is_address, joined, parent, public_name
from ...text import some
from .remote import exists, open_text
from .spelling import listed_in, normal_name, told_apart


Label = str | int

# In place of a class, of a row whose label cannot be read: nor is its file then.
NO_LABEL = -1

# Of a column of classes. Taken for one of them, it would shift the indices of all others.
_HEADERS = ("class", "class_name", "classes", "label", "label_name", "labels", "name", "names")


def read_labels(labels: str | list[str]) -> list[str]:
    """A label space in its order.

    Args:
        labels: a list of it, or a file, here or elsewhere: one class a line, without a header; a class and its index
            on each line, separated by a comma; a JSON list; or a JSON object {class: index}.

    Raises:
        ValueError: if the file is missing, empty or none of these, a class is given twice, or indices are not 0, 1,
            2 and so on; the message names the file and the line.
    """
    if isinstance(labels, list):
        return checked_labels(labels, "labels")
    if not is_address(labels) and not os.path.isfile(labels):
        raise ValueError(f"labels: {labels} is not a file, nor a name among the recipe's class_lists")
    name = public_name(labels)
    where = f"labels: {name}"
    try:
        with open_text(labels) as file:
            text = file.read()
        if name.lower().endswith(".json"):
            return checked_labels(_in_json(json.loads(text)), where)
        return checked_labels(_in_lines(text, is_csv=name.lower().endswith(".csv")), where)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}, line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: too deeply nested") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {error}") from error
    except (csv.Error, _FileError) as error:
        raise ValueError(f"{where}{error}") from error


class _FileError(ValueError):
    """What is wrong within a file; the message continues after the file's name."""


def _in_json(content: Any) -> list[str]:
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise _FileError(f": expected a list or an object {{label: index}}, got {content!r}")
    return _in_order([(f"of {label!r}", label, str(index)) for label, index in content.items()])


def _in_lines(text: str, is_csv: bool) -> list[str]:
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    cells = [next(csv.reader([line])) for _, line in lines] if is_csv else [line.rsplit(",", 1) for _, line in lines]
    if is_csv and cells and len(cells[0]) == 2 and not any(cell.strip().isdecimal() for cell in cells[0]):
        lines, cells = lines[1:], cells[1:]  # the header line
    if is_csv and all(len(row) == 1 for row in cells):
        if cells and cells[0][0].strip().lower() in _HEADERS:
            number, line = lines[0]
            raise _FileError(
                f", line {number}: expected a class, got what looks like a header: delete the line {line!r}"
            )
        return [row[0].strip() for row in cells]
    # The lines of a plain list may have commas, but hardly all of them a comma and a number at their end.
    if not is_csv and not all(len(row) == 2 and row[1].strip().isdecimal() for row in cells):
        return [line for _, line in lines]
    for (number, line), row in zip(lines, cells, strict=True):
        if len(row) != 2:
            raise _FileError(f", line {number}: expected a label and its index, got {line!r}")
    column = 0 if is_csv and all(row[0].strip().isdecimal() for row in cells) else 1
    return _in_order(
        [
            (f"on line {number}", row[1 - column].strip(), row[column])
            for (number, _), row in zip(lines, cells, strict=True)
        ]
    )


def _in_order(entries: list[tuple[str, str, str]]) -> list[str]:
    """Labels by their indices; an entry says where it is, its label and its index."""
    ordered: list[str | None] = [None] * len(entries)
    for where, label, index in entries:
        position = int(index) if index.strip().isdecimal() else -1
        if not 0 <= position < len(entries) or ordered[position] is not None:
            expected = f"each of 0 to {len(entries) - 1} once"
            raise _FileError(f": the index {where}: expected {expected}, got {index!r}")
        ordered[position] = label
    return ordered


def checked_labels(labels: Any, where: str) -> list[str]:
    """The list, with names as they are compared; see [`normal_name`]."""
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label for label in labels):
        raise ValueError(f"{where}: expected a list of strings, got {labels!r}")
    given, labels = labels, [normal_name(label) for label in labels]
    if "" in labels:
        raise ValueError(f"{where}: expected names, got {given[labels.index('')]!r}")
    alike = [(one, other) for one, other in _pairs_of_one_name(given, labels) if one != other]
    if alike:
        one, other = map(ascii, alike[0])
        raise ValueError(f"{where}: {one} and {other} are one name but for blanks and how accents are composed")
    if repeated := sorted(label for label, count in Counter(labels).items() if count > 1):
        raise ValueError(f"{where}: {repeated} given more than once")
    return labels


def _pairs_of_one_name(given: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each label that has the name of an earlier one, behind that."""
    first: dict[str, str] = {}
    for label, name in zip(given, names, strict=True):
        if name in first:
            yield first[name], label
        first.setdefault(name, label)


def listed_names(shards: Sequence[str]) -> list[str] | None:
    """The classes that a dataset.json beside the shards lists under "labels", if there is one."""
    remote = dict.fromkeys(joined(parent(shard), "dataset.json") for shard in shards if is_address(shard))
    folders = dict.fromkeys(Path(shard).parent for shard in shards if not is_address(shard))
    paths = [path for folder in folders if (path := folder / "dataset.json").is_file()]
    lists = {public_name(str(path)): _names_in(path) for path in [*paths, *filter(exists, remote)]}
    first = next(iter(lists), None)
    for path, names in lists.items():
        if names != lists[first]:
            raise ValueError(f"{path} lists other labels than {first}, or in another order: name them apart")
    return lists.get(first)


def _names_in(path: str | Path) -> list[str]:
    name = public_name(str(path))
    try:
        with open_text(path) as file:
            content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise ValueError(f'{name}: expected an object with "labels"')
    return checked_labels(content["labels"], f"{name}: labels")


@dataclass(frozen=True)
class LabelColumn:
    """The labels of all rows, as they were found."""

    values: list[Label]  # the different ones
    codes: np.ndarray  # int32, each label's index into `values`; of a row whose label cannot be read, `NO_LABEL`
    starts: np.ndarray | None = None  # (rows + 1,) int64, where each row's start in `codes`; None where each has one
    spellings: Mapping[str, list[str]] = field(default_factory=dict)  # of a name found in several forms, these

    @classmethod
    def of_raw(cls, values: list[Label], codes: np.ndarray, starts: np.ndarray | None = None) -> "LabelColumn":
        """Of values as they were found, of which several may be one name; an empty one is left to the caller."""
        names = [normal_name(value) if isinstance(value, str) else value for value in values]
        different = list(dict.fromkeys(names))
        place = {name: index for index, name in enumerate(different)}
        forms = defaultdict(list)
        for name, value in zip(names, values, strict=True):
            forms[name].append(value)
        spellings = {name: found for name, found in forms.items() if len(found) > 1}
        merged = np.array([place[name] for name in names], dtype=np.int32)
        return cls(different, np.append(merged, np.int32(NO_LABEL))[codes], starts, spellings)

    def __len__(self) -> int:
        return len(self.codes) if self.starts is None else len(self.starts) - 1

    def selected(self, rows: np.ndarray) -> "LabelColumn":
        """Those of some rows; values that none of them has stay, so that the label space does."""
        if self.starts is None:
            return replace(self, codes=self.codes[rows])
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return replace(self, codes=self.codes[np.repeat(self.starts[rows], lengths) + within], starts=starts)

    def first_row_of(self, code: int) -> int | None:
        found = np.flatnonzero(self.codes == code)
        if not len(found):
            return None
        return int(found[0] if self.starts is None else np.searchsorted(self.starts, found[0], side="right") - 1)


class LabelColumnBuilder:
    """Collects the labels of one row after another."""

    def __init__(self, multi_label: bool):
        self._codes_of: dict[Label, int] = {}
        self._codes = array("i")
        self._starts = array("q", [0]) if multi_label else None

    def append(self, label: Any) -> None:
        """One label; of a multi-label row, a list of them.

        Raises:
            ValueError: if it is neither a string nor a whole number.
        """
        for value in check_label(label, multi_label=self._starts is not None):
            self._codes.append(self._codes_of.setdefault(value, len(self._codes_of)))
        if self._starts is not None:
            self._starts.append(len(self._codes))

    def append_none(self) -> None:
        """For a row whose label cannot be read."""
        if self._starts is None:
            self._codes.append(NO_LABEL)
        else:
            self._starts.append(len(self._codes))

    def build(self) -> LabelColumn:
        starts = None if self._starts is None else np.array(self._starts, dtype=np.int64)
        return LabelColumn.of_raw(list(self._codes_of), np.array(self._codes, dtype=np.int32), starts)


def check_label(label: Any, multi_label: bool) -> Sequence[Label]:
    """The labels of one row. Raises a `ValueError` unless it is one label or, if multi-label, a list of them."""
    if multi_label and not isinstance(label, list | tuple):
        raise ValueError(f"expected a list of labels, got {label!r}")
    labels = label if multi_label else (label,)
    for value in labels:
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(f"a label must be a name or an index, got {value!r}")
        if isinstance(value, str) and not value.strip():
            raise ValueError("the label is empty")
    return labels


class LabelSpace:
    """The classes of a head, and which of them a label means.

    Args:
        labels: the classes in the head's order.
        listed: the names that indices count in the source, if there is such a list.
        different: whether the labels of a row must be, as those of 0 and 1 for each class are not.
    """

    def __init__(self, labels: list[str], listed: list[str] | None, different: bool = False):
        self.labels = labels
        self.different = different
        # A head of an older checkpoint may have names as they were found.
        self._positions = {normal_name(label): position for position, label in enumerate(labels)}
        if len(self._positions) < len(labels):
            one, other = next(_pairs_of_one_name(labels, [normal_name(label) for label in labels]))
            raise ValueError(f"the labels {one!a} and {other!a} are one name but for blanks and accents")
        self._listed = None if listed is None else [normal_name(label) for label in listed]

    def position(self, label: Label) -> int | None:
        """The class's index in the head; None if the head has no such class.

        Raises:
            ValueError: if the label is an index and there is no list that it counts, or is beyond its end.
        """
        if isinstance(label, str):
            label = normal_name(label)
            if label in self._positions or self._listed is None or not label.isdecimal():
                return self._positions.get(label)
            label = int(label)
        if self._listed is None:
            raise ValueError(f"the label {label} is an index: list the names that it counts under `labels`")
        if not 0 <= label < len(self._listed):
            raise ValueError(f"the label {label} is none of the {len(self._listed)} classes' indices")
        return self._positions.get(self._listed[label])

    def target(self, label: Any, multi_label: bool) -> int | np.ndarray:
        """What the label of one row is to a loss: a class index, or (classes,) float32 of 0 and 1.

        Raises:
            ValueError: if it is no label, or one of a class that the head does not have.
        """
        label = label.tolist() if hasattr(label, "tolist") else label  # of NumPy or torch
        positions = [self.position(value) for value in check_label(label, multi_label)]
        if None in positions:
            alike = "" if multi_label else told_apart(str(label), self.labels)
            raise ValueError(f"class {label!r} is not among the labels {some(self.labels)}{alike}")
        if self.different and len(set(positions)) < len(positions):
            raise ValueError(f"expected the classes of the row, each once, got {label!r}")
        return multi_hot(positions, len(self.labels)) if multi_label else positions[0]


def multi_hot(classes: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes,) float32: 1 for each of `classes`, 0 elsewhere."""
    target = np.zeros(num_classes, dtype=np.float32)
    target[classes] = 1
    return target


def split_labels(cell: str, separator: str) -> list[str]:
    """The labels of a multi-label cell of text, which may be a list as Python writes it; an empty cell has none."""
    if (items := listed_in(cell)) is not None:
        return items
    return [label.strip() for label in cell.split(separator)] if cell.strip() else []


def single_label(cell: str) -> str:
    """A cell of text that is one label."""
    if cell[:2] in ("['", '["', "[]"):
        raise ValueError(f"expected one label, got the list {cell!r}: that is multi_label_classification")
    return cell
