# SPDX-License-Identifier: Apache-2.0
"""The rows of a dataset: their files and their labels, read from the layouts that datasets come in."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...model.file_access_cover import is_address, public_name, without_secrets
from ...recipe.dataset_recipe import DatasetRecipe
from ...text import some
from .held_out import held_out
from .label_lists import NO_LABEL, LabelSpace, multi_hot, read_labels
from .manifests import SplitRows
from .media import Media, hash_of
from .remote import check_address
from .spelling import PathForms, normal_name, told_apart
from .streams import Example, RowStream, SplitOfDataset, StreamedSource


@dataclass(frozen=True, kw_only=True)
class Source(SplitOfDataset):
    """One split of a dataset, whose rows can be read in any order.

    `classes` are indices into `labels`, `NO_LABEL` of a row whose label, and so whose file, cannot be read: (rows,),
    or multi-label those of all rows, one after another.
    """

    media: Sequence[Media]  # the encoded file of each row, read when it is asked for
    classes: np.ndarray
    class_starts: np.ndarray | None = None  # (rows + 1,) where each row's start in `classes`, multi-label only
    spellings: Mapping[str, list[str]] = field(default_factory=dict)  # of a name found in several forms, these
    left_out: tuple[str, ...] = ()  # files that are there and no row is made of

    def __len__(self) -> int:
        return len(self.media)

    def target(self, row: int) -> int | np.ndarray:
        """The class index of a row; multi-label: (classes,) float32 of 0 and 1."""
        if self.class_starts is None:
            return int(self.classes[row])
        return multi_hot(self.classes[self.class_starts[row] : self.class_starts[row + 1]], len(self.labels))

    def names_of(self, row: int) -> list[str]:
        """The labels of a row; none if its file cannot be read."""
        start, end = (row, row + 1) if self.class_starts is None else self.class_starts[row : row + 2]
        return [self.labels[index] for index in self.classes[start:end].tolist() if index != NO_LABEL]

    def rows(self) -> range:
        return range(len(self))

    def place(self, row: int) -> str:
        return f"row {row}"

    def example(self, row: int) -> Example:
        return Example(self.media[row], self.target(row))

    def row_hashes(self) -> dict[str, str]:
        """A hash of the `names` of all rows in order, where they have any, and one of their `labels`.

        Where rows are in shards or tables, that of names changes with the size of a row, too; never with the folder
        that all the files are in.
        """
        labels = [self.classes] if self.class_starts is None else [self.classes, self.class_starts]
        hashes = {"labels": hash_of(np.ascontiguousarray(part, dtype=np.int64).tobytes() for part in labels)}
        return {"names": hash_of(self.media.identity()), **hashes} if hasattr(self.media, "identity") else hashes

    @property
    def has_labels(self) -> bool:
        return bool((self.classes != NO_LABEL).any())

    def class_counts(self) -> np.ndarray:
        """(classes,) int64, the rows of each class."""
        return np.bincount(self.classes[self.classes != NO_LABEL], minlength=len(self.labels))


def read_sources(
    dataset: DatasetRecipe, head_labels: list[str] | None = None, splits: Collection[str] | None = None
) -> dict[str, Source | StreamedSource]:
    """Read the splits of a dataset.

    The formats are

        class_folders        split/class/file, of videos or of images
        manifest             a .csv, .tsv, .json or .jsonl file with columns for path and label
        kinetics             the published lists of Kinetics, Something-Something v2 and Moments in Time, and the clips
        something_something    under `media_root`
        moments_in_time
        imagenet             folders of synsets, and validation images in one folder with their list
        webdataset           .tar shards: a folder of them, or a pattern; labels in .cls, .json or .txt members
        parquet              .parquet files with embedded bytes: a file, a folder of them, or a pattern
        dataset              any dataset of the `datasets` library, on disk or on the Hub; the splits are its own

    Lists, shards, Parquet files and the files of rows may be elsewhere: see `remote`.

    The classes are, in this order: those of the head, the recipe's, those that the source lists (the names of a
    `ClassLabel`, dataset.json beside shards), or those of the train split, sorted. Where a list of classes is given, a
    label may be an index into it: into the source's own, if it has one, or else into the recipe's.

    Args:
        dataset: where it is and in which layout.
        head_labels: the label space of an existing head, in its order; the dataset must have the same classes.
        splits: to read; by default all. Without the train split, which may not be there to evaluate a model, the
            classes are the head's, and a split may lack some. One that is held out of it needs it to be there.

    Raises:
        ValueError: if a path is missing or has no files, a list lacks a column or names a missing file, a shard is
            damaged, or the classes of a split are not those of the label space. The message names the dataset and
            the culprit.
    """
    with _naming(dataset):
        _check_places(dataset)
        dataset = _as_on_disk(dataset)
        given = None if dataset.labels is None else read_labels(dataset.labels)
        splits = dataset.split_names if splits is None else splits
        if missing := [split for split in splits if split not in dataset.split_names]:
            raise ValueError(f"there is no split '{missing[0]}', but {', '.join(dataset.split_names)}")
        if "train" not in splits and head_labels is None:
            raise ValueError("without its train split, the labels of a head are needed")
        stored = splits if dataset.validation is None else ("train",)
        found = {split: _read_split(dataset, split) for split in stored}
        first = found.get("train", next(iter(found.values())))
        labels = given or first.names or (_found_labels(dataset, first) if "train" in found else head_labels)
    if head_labels is not None:
        _check_same_classes(dataset.name, labels, head_labels)
        labels = head_labels
    sources = {}
    with _naming(dataset):
        for split, rows in found.items():
            space = LabelSpace(labels, rows.names or first.names or given)
            if isinstance(rows, RowStream):
                sources[split] = source_of_stream(dataset, rows, space)
            else:
                is_listed = given is not None or first.names is not None or "train" not in found
                sources[split] = source_of_rows(dataset, split, rows, space, is_listed)
        if dataset.validation is not None:
            parts = held_out(sources["train"], dataset.validation)
            sources = {split: parts[split] for split in splits}
    return sources


def _check_same_classes(name: str, labels: list[str], head_labels: list[str]) -> None:
    """Raise a `ValueError` unless both label spaces have the same classes, in whatever order."""
    of_dataset, of_head = ({normal_name(label) for label in found} for found in (labels, head_labels))
    only_dataset, only_head = sorted(of_dataset - of_head), sorted(of_head - of_dataset)
    if only_dataset or only_head:
        alike = next((found for label in only_dataset if (found := told_apart(label, only_head))), "")
        raise ValueError(
            f"dataset '{name}': its classes differ from those of head '{name}'. Only in the dataset: "
            f"{some(only_dataset)}; only in the head: {some(only_head)}{alike}"
        )


def _as_on_disk(dataset: DatasetRecipe) -> DatasetRecipe:
    """The recipe with accents in its paths composed as the disk has them."""
    forms = PathForms()
    keys = [key for key in ("media_root", "synsets", "path", "labels") if isinstance(getattr(dataset, key), str)]
    changes = {key: forms.find(place) or place for key in keys if not (place := getattr(dataset, key)).isascii()}
    if not dataset.layout.has_named_splits:
        changes["splits"] = {split: forms.find(place) or place for split, place in dataset.splits.items()}
    return replace(dataset, **changes)


@contextmanager
def _naming(dataset: DatasetRecipe) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        message = without_secrets(str(error))
        # The error may hold what its message must not.
        raise ValueError(f"dataset '{dataset.name}': {message}") from (error if message == str(error) else None)


def _check_places(dataset: DatasetRecipe) -> None:
    """Raise a `ValueError` that names the key if it holds an address where none can be read."""
    named = dataset.layout.has_named_splits
    splits = {} if named else {f"splits: {split}": place for split, place in dataset.splits.items()}
    places = splits | {key: getattr(dataset, key) for key in ("media_root", "synsets", "path", "labels")}
    for key, place in places.items():
        if not isinstance(place, str) or not is_address(place):
            continue
        if key.startswith(dataset.layout.on_disk):
            raise ValueError(
                f"{key}: the format '{dataset.format}' reads a folder on the disk, got {public_name(place)}"
            )
        try:
            check_address(place, is_row=key == "media_root")
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error


def _read_split(dataset: DatasetRecipe, split: str) -> SplitRows | RowStream:
    place = dataset.splits[split]
    if dataset.streaming and split == "train":
        return dataset.layout.stream(dataset, place)
    rows = dataset.layout.read(dataset, split, place)
    if not isinstance(rows, SplitRows | RowStream):
        expected = "expected what file_rows(dataset, split, root, rows) returns"
        raise ValueError(f"what reads the format '{dataset.format}' returned {type(rows).__name__}, {expected}")
    return rows


def _found_labels(dataset: DatasetRecipe, rows: SplitRows | RowStream) -> list[str]:
    """The classes of a split that nothing lists."""
    if isinstance(rows, RowStream):
        raise ValueError(f"{rows.place} does not list its classes: a streamed dataset needs `labels`")
    for code, value in enumerate(rows.labels.values):
        if not isinstance(value, str):
            place = rows.place(rows.labels.first_row_of(code))
            raise ValueError(f"{place}: the label {value} is an index: list the names that it counts under `labels`")
    if not rows.labels.values:
        place = dataset.splits["train"]
        raise ValueError(f"no row of the train split ({place}) has a label: list the classes under `labels`")
    return sorted(rows.labels.values)


def source_of_rows(dataset: DatasetRecipe, split: str, rows: SplitRows, space: LabelSpace, is_listed: bool) -> Source:
    """A split of which all rows were found; `is_listed` where something lists the classes of the space."""
    where = f"{split} split ({dataset.splits[split]})"
    column = rows.labels
    position_of, unknown = np.full(len(column.values) + 1, NO_LABEL, dtype=np.int64), []
    for code in np.setdiff1d(column.codes, [NO_LABEL]).tolist():
        try:
            position = space.position(column.values[code])
        except ValueError as error:
            raise ValueError(f"{where}: {rows.place(column.first_row_of(code))}: {error}") from error
        if position is None:
            unknown.append(code)
        else:
            position_of[code] = position
    if unknown:
        names = some(sorted(str(column.values[code]) for code in unknown))
        among = "the labels" if is_listed else f"those of the train split ({dataset.splits['train']}),"
        first = rows.place(column.first_row_of(unknown[0]))
        alike = next((found for code in unknown if (found := told_apart(str(column.values[code]), space.labels))), "")
        raise ValueError(f"{where}: classes {names} are not among {among} {some(space.labels)}{alike}; see {first}")
    classes, starts = position_of[column.codes], column.starts
    if starts is not None:
        classes, starts = _without_repeats(classes, starts, len(space.labels))
    read = {"media": rows.media, "spellings": column.spellings, "left_out": rows.left_out}
    return Source(**_known_of(dataset, rows, space), classes=classes, class_starts=starts, **read)


def _known_of(dataset: DatasetRecipe, rows: SplitRows | RowStream, space: LabelSpace) -> dict[str, Any]:
    """The fields of [`SplitOfDataset`]."""
    of_dataset = {name: getattr(dataset, name) for name in ("name", "modality", "problem_type")}
    return {**of_dataset, "labels": space.labels, "roots": rows.roots}


def _without_repeats(classes: np.ndarray, starts: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Each class once for each row, and where each row's start."""
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    rows, classes = np.divmod(np.unique(rows * num_classes + classes), num_classes)
    return classes, np.searchsorted(rows, np.arange(len(starts)))


def source_of_stream(dataset: DatasetRecipe, rows: RowStream, space: LabelSpace) -> StreamedSource:
    """A train split that is read in order."""
    size = rows.size if dataset.sizes is None else dataset.sizes["train"]
    if size is None:
        raise ValueError(f"{rows.place} does not say how many rows it has: give its `sizes`, such as {{train: 1000}}")
    read = {"shuffle_buffer": dataset.shuffle_buffer, "stream": rows, "label_space": space}
    return StreamedSource(**_known_of(dataset, rows, space), size=size, **read)
