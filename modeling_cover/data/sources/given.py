# SPDX-License-Identifier: Apache-2.0
"""Datasets that are given as objects: of the `datasets` library, of PyTorch, or sources of ours.

    datasets.Dataset            rows by index, as they are stored; after with_transform as the transform makes them
    datasets.IterableDataset    rows in order
    map-style datasets          `data[row]` is a mapping with "video", "image" or "pixel_values", and "label"

All of them become the sources that recipes are read into: what is trained on them does not know how they were given.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import datasets
import torch
from datasets import iterable_dataset as iterables

from ...model.video_decoding_cover import VideoDecodingError
from ...recipe.dataset_recipe import SINGLE_LABEL, DatasetRecipe
from ...text import some
from .columns import FoundColumns, columns_of_features, columns_of_row, item_of
from .label_lists import LabelSpace, checked_labels
from .source import source_of_rows, source_of_stream
from .streams import Example, RowStream, SplitOfDataset
from .tables import Columns, Places, TableRowReader, paths_of, table_rows, to_media, undecoded


SHUFFLE_BUFFER = DatasetRecipe.shuffle_buffer

# What names classes.
_CAST = '.cast_column("{column}", {kind})'

_KINDS = "a datasets.Dataset, a datasets.IterableDataset, or a dataset with __len__ and __getitem__"

# Iterables of `datasets` that make each row of one: their shards may be read in any order, and are what they are
# without the others. The rows of all else (take, skip, interleave, ...) depend on the order in which they come.
_ROW_BY_ROW = (
    iterables.ExamplesIterable,
    iterables.ArrowExamplesIterable,
    iterables.RebatchedArrowExamplesIterable,
    iterables.SelectColumnsIterable,
    iterables.FormattedExamplesIterable,
    iterables.VerticallyConcatenatedMultiSourcesExamplesIterable,
)


def to_source(
    name: str,
    data: Any,
    split: str = "train",
    labels: list[str] | None = None,
    size: int | None = None,
    shuffle_buffer: int = SHUFFLE_BUFFER,
) -> SplitOfDataset:
    """The source of a dataset that is given as an object.

    The media column is the one whose feature is `Video` or `Image`, or which is called "video", "image" or
    "pixel_values", or which holds the paths of videos or of images. The label column is the one whose feature is a
    `ClassLabel`, or which is called "label" or "labels"; a list of classes makes the dataset multi-label.

    Args:
        name: of the dataset, and of its head.
        data: what is given.
        split: "train" or "validation", for messages.
        labels: the classes, where the dataset does not name them.
        size: rows of a stream, where it does not know them.
        shuffle_buffer: rows of the blocks in which a stream is shuffled.

    Raises:
        ValueError: names the dataset, the column and what to call if this is no such dataset.
    """
    with naming(name):
        if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
            split = next(iter(data), "train")
            raise ValueError(f'expected one split, got those of {type(data).__name__}: pass data["{split}"]')
        if isinstance(data, datasets.IterableDataset):
            return _of_stream(name, data, split, labels, size, shuffle_buffer)
        if size is not None:
            raise ValueError("sizes: of use to a datasets.IterableDataset only, this dataset has its rows counted")
        if isinstance(data, SplitOfDataset):
            if data.name != name:
                raise ValueError(f"the source was made for the dataset '{data.name}'")
            return data
        if isinstance(data, datasets.Dataset) and data.format["type"] != "custom":
            return _of_table(name, data, split, labels)
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            return _of_rows(name, data, labels)
        if isinstance(data, torch.utils.data.IterableDataset):
            raise ValueError(
                f"{type(data).__name__} can neither say how many rows it has nor resume in the middle: make it a "
                "datasets.IterableDataset, such as by IterableDataset.from_generator"
            )
    raise ValueError(f"dataset '{name}': expected {_KINDS}, got {type(data).__name__}")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """A `ValueError` from within names the dataset, unless it is about a file; a decoder that is missing is one."""
    try:
        yield
    except VideoDecodingError:
        raise
    except ValueError as error:
        raise ValueError(f"dataset '{name}': {error}") from error
    except ImportError as error:
        raise ValueError(f"dataset '{name}': {_missing_decoder(error)}") from error


def _missing_decoder(error: ImportError) -> str:
    return (
        f"its videos are decoded before they come here, by what is not installed ({error}): pass files, by "
        ".cast_column(COLUMN, Video(decode=False)) before what asks for frames, such as map or with_transform"
    )


def _entry(name: str, kind: str, found: FoundColumns, **options: Any) -> DatasetRecipe:
    """What a recipe would say of it."""
    return DatasetRecipe(
        name=name,
        format="dataset",
        path=kind,
        splits={"train": kind, "validation": kind},
        modality=found.modality,
        problem_type=found.problem_type,
        columns={"media": found.media, "label": found.label},
        **options,
    )


def _space(found: FoundColumns, listed: list[str] | None, labels: list[str] | None, how: str) -> LabelSpace:
    names = listed or labels
    if names is None:
        kind = "ClassLabel(names=[...])" if found.problem_type == SINGLE_LABEL else "List(ClassLabel(names=[...]))"
        raise ValueError(
            f"column '{found.label}': nothing names the classes in order: {how.format(column=found.label, kind=kind)}, "
            "or heads_of(..., labels={...}), does"
        )
    return LabelSpace(names, names, different=True)


def _of_table(name: str, table: datasets.Dataset, split: str, labels: list[str] | None) -> SplitOfDataset:
    if len(table) == 0:
        raise ValueError("it has no rows")
    found = columns_of_features(table.features, lambda: _undecoded_row(table), has_names=labels is not None)
    entry = _entry(name, "a datasets.Dataset", found)
    table, columns = undecoded(entry, table.with_format(None), "its features")
    rows = table_rows(table, columns, Places(["its rows"]))
    media = paths_of(table, columns.media) or rows.media
    rows = replace(rows, media=media, place_of=lambda row: f"column '{found.label}', row {row}")
    source = source_of_rows(entry, split, rows, _space(found, rows.names, labels, _CAST), is_listed=True)
    if source.class_starts is not None and len(source.classes) < len(rows.labels.codes):
        raise ValueError(f"column '{found.label}': expected the classes of each row, each once, not 0 or 1 for each")
    return source


def _undecoded_row(table: datasets.Dataset) -> Mapping[str, Any]:
    (row,) = table.with_format("arrow")[:1].to_pylist()
    return row


def _of_stream(
    name: str,
    stream: datasets.IterableDataset,
    split: str,
    labels: list[str] | None,
    size: int | None,
    shuffle_buffer: int,
) -> SplitOfDataset:
    parts = _parts(stream._ex_iterable)
    if any(isinstance(part, iterables.BufferShuffledExamplesIterable) for part in parts):
        raise ValueError(
            "what a shuffle buffer holds is lost when a run is resumed: leave .shuffle(...) out, the rows are shuffled "
            "here, in blocks of shuffle_buffer rows"
        )
    if stream._distributed is not None:
        raise ValueError("rows are dealt out to processes here: leave split_dataset_by_node(...) out")
    stream = stream.with_format(None)
    if stream.features is None:
        row = next(iter(_apart(stream)), None)
        if row is None:
            raise ValueError("it has no rows")
        found, how = columns_of_row(row), ".map(..., features=Features(...))"
        columns = Columns(found.media, found.label, None, None, holds_paths=False, names=None)
        stream = stream.select_columns(columns.all)
    else:
        stream, how = stream.decode(False), _CAST
        first_row = lambda: next(iter(_apart(stream)), None)  # noqa: E731
        found = columns_of_features(stream.features, first_row, has_names=labels is not None)
        is_array = isinstance(stream.features[found.media], datasets.Array3D | datasets.Array4D)
        stream, columns = undecoded(_entry(name, "a datasets.IterableDataset", found), stream, "its features")
        stream = stream.with_format("numpy" if is_array else None)
    entry = _entry(name, "a datasets.IterableDataset", found, streaming=True, shuffle_buffer=shuffle_buffer)
    rows = RowStream(
        rows=stream if all(map(_is_row_by_row, parts)) else _InOnePiece(stream),
        read=TableRowReader(columns, None),
        place="its rows",
        names=columns.names,
        size=_known_size(stream, parts) if size is None else size,
        roots=(),
    )
    if rows.size is None:
        sizes = "sizes" if split == "train" else "eval_sizes"
        raise ValueError(f'nothing says how many rows a pass over it has: give {sizes}={{"{name}": ...}}')
    return source_of_stream(entry, rows, _space(found, columns.names, labels, how))


def _parts(part: Any) -> list[Any]:
    """What an iterable of `datasets` is made of. No public member says it, see tests/data/test_given_refused.py."""
    below = getattr(part, "ex_iterables", None) or [getattr(part, "ex_iterable", None)]
    return [part, *(found for inner in below if inner is not None for found in _parts(inner))]


def _is_row_by_row(part: Any) -> bool:
    if isinstance(part, iterables.MappedExamplesIterable):  # and what is filtered: indices count within a shard
        return not part.with_indices and not part.batched
    return isinstance(part, _ROW_BY_ROW)


def _known_size(stream: datasets.IterableDataset, parts: list[Any]) -> int | None:
    """The rows of a split of a published dataset, unless some of them may be left out or others added."""
    changing = iterables.FilteredExamplesIterable, iterables.VerticallyConcatenatedMultiSourcesExamplesIterable
    is_whole = all(_is_row_by_row(part) and not isinstance(part, changing) for part in parts)
    splits = stream.info.splits
    return splits[str(stream.split)].num_examples if is_whole and splits and str(stream.split) in splits else None


def _apart(stream: datasets.IterableDataset) -> datasets.IterableDataset:
    """The same stream with a place of its own where it is read: `datasets` shares that with what it is made of."""
    stream = stream.with_format("numpy" if stream._formatting else None)
    stream._ex_iterable = _copied(stream._ex_iterable)
    return stream


def _copied(part: Any) -> Any:
    part = copy.copy(part)
    if getattr(part, "ex_iterable", None) is not None:
        part.ex_iterable = _copied(part.ex_iterable)
    if getattr(part, "ex_iterables", None):
        part.ex_iterables = [_copied(inner) for inner in part.ex_iterables]
    return part


class _InOnePiece:
    """A stream whose rows must come in the order that they have: as one shard."""

    num_shards = 1

    def __init__(self, stream: datasets.IterableDataset):
        self._stream = stream

    def shard(self, num_shards: int, index: int) -> datasets.IterableDataset:
        return _apart(self._stream)


_FEW = 10

# What goes wrong as a row is decoded, by whatever decodes it.
_BAD_ROW = (OSError, RuntimeError, SyntaxError, ValueError)


@dataclass(frozen=True, kw_only=True)
class RowSource(SplitOfDataset):
    """A dataset whose rows are what `data[row]` returns, label included."""

    data: Any
    size: int
    columns: FoundColumns
    label_space: LabelSpace

    def __len__(self) -> int:
        return self.size

    def rows(self) -> range:
        return range(self.size)

    def place(self, row: int) -> str:
        return f"row {row}"

    def row_hashes(self) -> dict[str, str]:
        return {}  # to know the rows would be to read them all

    def example(self, row: int) -> Example:
        with naming(self.name):
            if len(self.data) != self.size:
                raise ValueError(f"it had {self.size} rows at first, and has {len(self.data)} now")
            content = _row(self.data, row)
            missing = [key for key in (self.columns.media, self.columns.label) if key not in content]
            if missing:
                raise ValueError(f"row {row} has no {' and no '.join(missing)}, but {some(list(content))}")
            media = to_media(content[self.columns.media], self.place(row), None, column=self.columns.media)
            try:
                return Example(media, self.label_space.target(content[self.columns.label], self.is_multi_label))
            except ValueError as error:
                raise ValueError(f"row {row}, '{self.columns.label}': {error}") from error


def _row(data: Any, row: int) -> Any:
    """A row of a map-style dataset; a `VideoDecodingError` if it cannot be read."""
    try:
        return data[row]
    except _BAD_ROW as error:
        raise VideoDecodingError(f"row {row} cannot be read: {type(error).__name__}: {error}") from error


def first_row_of(data: Any) -> Any:
    """The first that can be read, among a few."""
    for row in range(min(len(data), _FEW)):
        try:
            return _row(data, row)
        except VideoDecodingError as error:
            fault = error
    raise ValueError(f"none of its first {min(len(data), _FEW)} rows can be read: {fault}")


def _of_rows(name: str, data: Any, labels: list[str] | None) -> RowSource:
    size = len(data)
    if size == 0:
        raise ValueError("it has no rows")
    found = columns_of_row(first_row_of(data))
    # As torchvision's datasets name them, and those of `datasets` with a transform.
    inner = data.dataset if isinstance(data, torch.utils.data.Subset) else data
    listed = getattr(inner, "classes", None)
    if listed is None and isinstance(inner, datasets.Dataset):
        listed = getattr(item_of(inner.features.get(found.label)), "names", None)
    listed = None if listed is None else checked_labels(list(listed), "its classes")
    space = _space(found, listed, labels, "an attribute `classes`, a list")
    of_dataset = {"name": name, "modality": found.modality, "problem_type": found.problem_type}
    return RowSource(**of_dataset, labels=space.labels, data=data, size=size, columns=found, label_space=space)


def heads_of(given: Mapping[str, Any], labels: Mapping[str, list[str]] | None = None) -> dict[str, dict[str, Any]]:
    """The heads of a model for these datasets, as `CoverConfig` and the ways to begin a model take them.

        heads = heads_of({"k400": load_dataset(...), "imagenet": load_dataset(..., streaming=True)})
        model = CoverForVideoClassification.from_image_checkpoint(id, heads=heads)

    Args:
        given: the dataset of each name, see [`to_source`].
        labels: the classes of those that do not name them.

    Raises:
        ValueError: names the dataset, the column and what to call where no classes are found.
    """
    given_labels = dict(labels or {})
    if unknown := sorted(set(given_labels) - set(given)):
        raise ValueError(f"labels: unknown datasets {unknown}: the datasets are {sorted(given)}")
    # A stream need not say here how many rows it has.
    sizes = {name: 1 if isinstance(data, datasets.IterableDataset) else None for name, data in given.items()}
    sources = {
        name: to_source(name, data, labels=given_labels.get(name), size=sizes[name]) for name, data in given.items()
    }
    for name, names in given_labels.items():
        if sources[name].labels != names:
            raise ValueError(f"labels: dataset '{name}' names its own classes, {some(sources[name].labels)}")
    return heads_of_sources(sources)


def heads_of_sources(sources: Mapping[str, SplitOfDataset]) -> dict[str, dict[str, Any]]:
    """The heads of a model that is trained on these, see [`CoverConfig`]."""
    return {
        name: {"labels": source.labels, "modality": source.modality, "problem_type": source.problem_type}
        for name, source in sources.items()
    }
