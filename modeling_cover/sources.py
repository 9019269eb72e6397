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
"""The files and labels of a data set, read from the layouts that data sets come in."""

import csv
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .recipe import DatasetRecipe


VIDEO_SUFFIXES = frozenset(
    [".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"]
)
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".webp"])
SUFFIXES = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES}

Rows = list[tuple[str, str]]  # (path, label) pairs


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of a data set: files and their classes.

    Attributes:
        name: the data set's, and its head's.
        modality: "video" or "image".
        labels: the label space of the head.
        paths: a file for each row.
        targets: (rows,) int64, the class of each row, an index into `labels`.
        horizontal_flip: whether training may mirror it.
    """

    name: str
    modality: str
    labels: list[str]
    paths: list[str]
    targets: np.ndarray
    horizontal_flip: bool

    def __len__(self) -> int:
        return len(self.paths)


def read_sources(dataset: DatasetRecipe, head_labels: list[str] | None = None) -> dict[str, Source]:
    """Read every split of a data set.

    Args:
        dataset: where it is and in which layout.
        head_labels: the label space of an existing head, in its order; the data set must have the same classes.

    Raises:
        ValueError: if a path is missing or has no files, a manifest lacks a column or names a missing file, or the
            classes of a split are not those of the label space.
    """
    rows = {split: _READERS[dataset.format](dataset, Path(place)) for split, place in dataset.splits.items()}
    found = sorted({label for _, label in rows["train"]})
    labels = _listed_labels(dataset) or found
    if head_labels is not None:
        check_same_classes(dataset.name, labels, head_labels)
        labels = head_labels
    return {
        split: Source(
            name=dataset.name,
            modality=dataset.modality,
            labels=labels,
            paths=[path for path, _ in split_rows],
            targets=_targets(f"dataset '{dataset.name}', {split} split", split_rows, labels),
            horizontal_flip=dataset.horizontal_flip,
        )
        for split, split_rows in rows.items()
    }


def check_same_classes(name: str, labels: list[str], head_labels: list[str]) -> None:
    """Raise a `ValueError` unless both label spaces have the same classes, in whatever order."""
    only_dataset, only_head = sorted(set(labels) - set(head_labels)), sorted(set(head_labels) - set(labels))
    if only_dataset or only_head:
        raise ValueError(
            f"dataset '{name}': its classes differ from those of head '{name}'. Only in the data set: "
            f"{_some(only_dataset)}; only in the head: {_some(only_head)}"
        )


def _read_class_folders(dataset: DatasetRecipe, folder: Path) -> Rows:
    """Files of `folder/class/`; the label is the folder's name."""
    if not folder.is_dir():
        raise ValueError(f"dataset '{dataset.name}': {folder} is not a folder")
    suffixes, rows = SUFFIXES[dataset.modality], []
    for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."):
        files = sorted(file for file in class_folder.rglob("*") if file.suffix.lower() in suffixes)
        if not files:
            raise ValueError(f"dataset '{dataset.name}': no {dataset.modality} files in {class_folder}")
        rows.extend((str(file), class_folder.name) for file in files)
    if not rows:
        raise ValueError(f"dataset '{dataset.name}': no class folders in {folder}")
    return rows


def _read_manifest(dataset: DatasetRecipe, manifest: Path) -> Rows:
    """Lines of a CSV file with a header line; `dataset.columns` names the columns of path and label."""
    if not manifest.is_file():
        raise ValueError(f"dataset '{dataset.name}': {manifest} is not a file")
    root = Path(dataset.media_root) if dataset.media_root is not None else manifest.parent
    path_column, label_column = dataset.columns["path"], dataset.columns["label"]
    rows, lines_of_folder = [], defaultdict(list)
    with open(manifest, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = reader.fieldnames or []
            if missing := [column for column in (path_column, label_column) if column not in header]:
                raise ValueError(f"line 1: no column {missing}, found {header}")
            for line in reader:
                if None in line:
                    raise ValueError(f"line {reader.line_num}: more cells than columns (quote cells with commas)")
                if not line[path_column] or not line[label_column]:
                    raise ValueError(f"line {reader.line_num}: path or label is empty")
                path = root / line[path_column]
                rows.append((str(path), line[label_column]))
                lines_of_folder[path.parent].append((path.name, reader.line_num))
        except csv.Error as error:
            raise ValueError(f"{manifest}, line {reader.reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{manifest}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{manifest}, {error}") from error
    if not rows:
        raise ValueError(f"{manifest}: no lines after the header")
    _check_files_exist(manifest, lines_of_folder)
    return rows


def _check_files_exist(manifest: Path, lines_of_folder: dict[Path, list[tuple[str, int]]]) -> None:
    # One listing a folder: hundreds of thousands of look-ups on a network drive would take an hour.
    for folder, lines in lines_of_folder.items():
        present = set(os.listdir(folder)) if folder.is_dir() else set()
        for name, line in lines:
            if name not in present:
                raise ValueError(f"{manifest}, line {line}: {folder / name} does not exist")


_READERS = {"class_folders": _read_class_folders, "manifest": _read_manifest}


def _listed_labels(dataset: DatasetRecipe) -> list[str] | None:
    """The labels that the recipe gives, itself or in a file with one a line."""
    labels = dataset.labels
    if labels is None:
        return None
    where = f"dataset '{dataset.name}': labels: "
    if isinstance(labels, str):
        where += f"{labels}: "
        if not os.path.isfile(labels):
            raise ValueError(f"dataset '{dataset.name}': labels: {labels} is not a file")
        try:
            text = Path(labels).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}{error}") from error
        labels = [line.strip() for line in text.split("\n") if line.strip()]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{where}expected a list of strings or a file, got {labels!r}")
    if repeated := sorted(label for label, count in Counter(labels).items() if count > 1):
        raise ValueError(f"{where}{repeated} given more than once")
    return labels


def _targets(where: str, rows: Rows, labels: list[str]) -> np.ndarray:
    index = {label: position for position, label in enumerate(labels)}
    if unknown := sorted({label for _, label in rows} - set(labels)):
        raise ValueError(f"{where}: classes {_some(unknown)} are not among the labels {_some(labels)}")
    return np.array([index[label] for _, label in rows], dtype=np.int64)


def _some(names: list[str], most: int = 5) -> str:
    listed = ", ".join(repr(name) for name in names[:most]) or "none"
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed
