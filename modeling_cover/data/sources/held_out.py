# SPDX-License-Identifier: Apache-2.0
"""A validation split that is held out of the rows to train on, where a dataset has none of its own.

    run/    a b c d e      validation: 0.2       train       run/a run/c run/d run/e   walk/f walk/g walk/h walk/j
    walk/   f g h i j                            validation  run/b                     walk/i

Of each class the files come in the order of a hash of their names, from which the first are taken. So the seed of a
run, the number of its processes and the order in which a disk lists files change nothing, and a file that is added
takes one other of its class, at most, to the other side.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from transformers.utils import logging

from ...text import counted, some
from .label_lists import NO_LABEL
from .media import Media


if TYPE_CHECKING:
    from .source import Source


logger = logging.get_logger(__name__)


class SelectedMedia(Sequence):
    """The media of some rows, which are indices into others, (rows,)."""

    def __init__(self, media: Sequence[Media], rows: np.ndarray):
        self._media = media
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def identity(self) -> list[bytes]:
        """Bytes that change with any of the rows that they are selected from, and with which are."""
        return [*self._media.identity(), self._rows.tobytes()]

    def __getitem__(self, row: int) -> Media:
        return self._media[int(self._rows[row])]


def held_out(source: "Source", share: float) -> dict[str, "Source"]:
    """The train and the validation split of rows that came as one.

    All rows of a file are on one side, such as segments of a video. Of each class `share` of its files are held out,
    rounded; of two or more files at least one, and not all. A class that has but one file stays in training.

    Where rows have several labels, or segments of a file have different ones, a file counts for each of its classes.
    Classes are looked at from the rarest to the most frequent, which then takes fewer files, as some of its own are
    held out already. No class loses its last file in training, so one that shares all of its files with such classes
    may have none in validation. Rows without a label are a class of their own where there may be several, and else
    stay in training.

    Args:
        source: all rows, whose `media` tell files apart by their `file_keys`.
        share: between 0 and 1.

    Raises:
        ValueError: if no class has a file to spare.
    """
    keys, classes = source.media.file_keys(), _classes_of_rows(source)
    files: dict[str, set[int]] = {}
    for key, of_row in zip(keys, classes, strict=True):
        files.setdefault(key, set()).update(of_row)
    names = dict(enumerate(source.labels)) | {NO_LABEL: ""}
    of_class: dict[int, list[str]] = defaultdict(list)
    for key in sorted(files, key=_place):
        for index in files[key]:
            of_class[index].append(key)
    held = _held_files(files, of_class, names, share)
    if not held:
        raise ValueError(
            f"validation: {share} leaves no row to validate on: no class has two files that can be parted"
        )
    _tell_unvalidated(source.name, files, of_class, names, held)
    is_held = np.fromiter((key in held for key in keys), dtype=bool, count=len(keys))
    return {
        "train": _selected(source, np.flatnonzero(~is_held)),
        "validation": replace(_selected(source, np.flatnonzero(is_held)), spellings={}, left_out=()),
    }


def _classes_of_rows(source: "Source") -> list[Iterable[int]]:
    """The classes of each row, by their indices."""
    if source.class_starts is None:
        return [() if index == NO_LABEL else (index,) for index in source.classes.tolist()]
    parts = np.split(source.classes, source.class_starts[1:-1])
    return [part.tolist() or (NO_LABEL,) for part in parts]


def _place(key: str) -> bytes:
    """Where a file comes among those of a class."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _held_files(
    files: Mapping[str, set[int]], of_class: Mapping[int, Sequence[str]], names: Mapping[int, str], share: float
) -> set[str]:
    held: set[str] = set()
    left = {index: len(members) for index, members in of_class.items()}  # in training
    for index in sorted(of_class, key=lambda index: (len(of_class[index]), names[index])):
        members = of_class[index]
        # Half a file is one: Python's own `round` would make two of two and a half.
        wanted = min(max(1, int(len(members) * share + 0.5)), len(members) - 1) - (len(members) - left[index])
        for key in members:
            if wanted <= 0:
                break
            if key not in held and all(left[other] > 1 for other in files[key]):
                held.add(key)
                wanted -= 1
                for other in files[key]:
                    left[other] -= 1
    return held


def _tell_unvalidated(
    dataset: str,
    files: Mapping[str, set[int]],
    of_class: Mapping[int, Sequence[str]],
    names: Mapping[int, str],
    held: Iterable[str],
) -> None:
    validated = {index for key in held for index in files[key]}
    without = [index for index in of_class if index not in validated]
    single = sorted(names[index] for index in without if len(of_class[index]) == 1)
    shared = sorted(names[index] for index in without if len(of_class[index]) > 1)
    for found, why in ((single, "with a single file, which stays in training"), (shared, "that share their files")):
        if found:
            classes = f"{counted(len(found), 'class', 'classes')} {why}: {some(found)}"
            logger.warning(f"dataset '{dataset}': no row in validation for {classes}")


def _selected(source: "Source", rows: np.ndarray) -> "Source":
    """The same split with some of its rows."""
    classes, starts = source.classes, source.class_starts
    if starts is None:
        classes = classes[rows]
    else:
        parts = [classes[starts[row] : starts[row + 1]] for row in rows.tolist()]
        classes = np.concatenate([classes[:0], *parts])
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
    return replace(source, media=SelectedMedia(source.media, rows), classes=classes, class_starts=starts)
