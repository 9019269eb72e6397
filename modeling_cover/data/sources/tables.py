# SPDX-License-Identifier: Apache-2.0
"""Rows of tables: Parquet files with embedded videos or images, and any dataset of the `datasets` library.

`datasets` maps such tables into memory: a row is read when it is asked for, and processes share the pages.
"""

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetsError

from ...model.file_access_cover import is_address, joined_file, parent, public_name
from ...model.video_decoding_cover import VideoDecodingError
from ...recipe.dataset_recipe import DatasetRecipe
from .columns import LISTS, item_of
from .decoded import checked_decoded
from .label_lists import LabelColumn, checked_labels
from .manifests import SplitRows, existing_rows
from .media import PIXEL_VALUES, Media, PathMedia, Segments, check_content_size, hash_of, parse_segment
from .parquet_files import find_parquet_files, load_remote_parquet, parquet_row_counts
from .remote import check_address, check_row_addresses
from .streams import RowStream


_ARRAYS = (datasets.Array3D, datasets.Array4D)
_FEATURES = {"video": datasets.Video, "image": datasets.Image}
_LABEL_TYPES = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
_MAX_DISK_SHARDS = 64  # of a dataset on disk that is streamed: pieces whose order is shuffled


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called, and what is in them."""

    media: str
    label: str
    start: str | None
    end: str | None
    holds_paths: bool  # whether the media column holds paths alone
    names: list[str] | None  # the classes that indices in the label column count, if it lists them

    @property
    def all(self) -> list[str]:
        return [column for column in (self.media, self.label, self.start, self.end) if column is not None]


def load(path: str, *args: Any, **kwargs: Any) -> datasets.Dataset | datasets.IterableDataset:
    """`datasets.load_dataset`, whatever goes wrong in which is a `ValueError`."""
    try:
        return datasets.load_dataset(path, *args, **kwargs)
    except (DatasetsError, OSError, ValueError) as error:
        cause = "" if error.__cause__ is None else f": {error.__cause__}"
        raise ValueError(f"cannot load {path}: {error}{cause}") from error


def load_from_disk(path: str, split: str) -> datasets.Dataset:
    """A split, or a slice such as "train[:90%]" of one, of what `save_to_disk` has left in a folder."""
    try:
        saved = datasets.load_from_disk(path)
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load {path}: {error}") from error
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or "train"): saved}
    try:
        (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(saved[name]) for name in saved})
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{path}: no split '{split}', expected one of {', '.join(saved)} or a slice of it") from error
    table = saved[part.splitname]
    first, end = part.from_ or 0, len(table) if part.to is None else part.to
    return table if (first, end) == (0, len(table)) else table.select(range(first, end))


def _is_saved_to_disk(path: str) -> bool:
    """Whether a folder is of `save_to_disk`; others are read as on the Hub."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json"))


def undecoded(
    dataset: DatasetRecipe, table: datasets.Dataset | datasets.IterableDataset, place: str
) -> tuple[datasets.Dataset | datasets.IterableDataset, Columns]:
    """The wanted columns of a table, the videos or images as they are encoded."""
    names, features = {key: dataset.column(key) for key in ("media", "label", "start", "end")}, table.features
    if features is None:  # it does not say
        columns = Columns(**names, holds_paths=False, names=None)
        return table.select_columns(columns.all), columns
    if missing := [name for name in names.values() if name is not None and name not in features]:
        raise ValueError(f"{place}: no column {missing}, found {list(features)}")
    media, label = features[names["media"]], features[names["label"]]
    kind = _FEATURES[dataset.modality]
    if isinstance(media, kind):
        table = table.cast_column(names["media"], kind(decode=False))
    elif not any(check(media) for check in (_is_path, _is_binary, _is_file, _is_array, _is_frames)):
        expected = f"expected {dataset.modality}s, bytes or paths"
        raise ValueError(f"{place}: column '{names['media']}': {expected}, found {media}")
    is_list = isinstance(label, LISTS)
    if is_list != dataset.is_multi_label:
        raise ValueError(f"{place}: column '{names['label']}': {dataset.problem_type} does not go with {label}")
    item = item_of(label)
    listed = None
    if isinstance(item, datasets.ClassLabel):
        listed = checked_labels(list(item.names), f"{place}: column '{names['label']}'")
    columns = Columns(**names, holds_paths=_is_path(media), names=listed)
    return table.select_columns(columns.all), columns


def _is_path(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_binary(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _is_file(feature: Any) -> bool:
    return isinstance(feature, Mapping) and {"bytes", "path"} <= set(feature)


def _is_frames(feature: Any) -> bool:
    """A list of images; of a `Dataset` it is read as it is stored, and a cast would write all of them anew."""
    return isinstance(feature, LISTS) and isinstance(feature.feature, datasets.Image)


def _is_array(feature: Any) -> bool:
    """Of an image or of frames, which are stored as numbers."""
    if isinstance(feature, _ARRAYS):
        return True
    depth = 0
    while isinstance(feature, LISTS):
        feature, depth = feature.feature, depth + 1
    return depth in (3, 4) and isinstance(feature, datasets.Value)


class Places:
    """What to call the rows of a table that was read from several files, by their names and the rows of each."""

    def __init__(self, files: Sequence[str], counts: Sequence[int] | None = None):
        self.name = ", ".join(files[:2]) + (", ..." if len(files) > 2 else "")
        self._files = list(files)
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64) if counts else np.zeros(1)

    def __getitem__(self, row: int) -> str:
        if len(self._files) == 1:
            return f"{self._files[0]}, row {row}"
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self._files[file]}, row {row - int(self._starts[file])}"


def to_media(
    value: Any,
    place: str,
    root: str | None,
    start: float | None = None,
    end: float | None = None,
    column: str | None = None,
) -> Media:
    """The file in a cell: bytes, a path, an address, or a mapping with both; or what is decoded already, whose
    `column` tells how far."""
    if not isinstance(value, str | bytes | Mapping | None):
        if start is not None or end is not None:
            raise ValueError(f"{place}: a segment needs a file, decoded frames have no time")
        return Media(checked_decoded(value, place, is_ready=column == PIXEL_VALUES), place)
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
    if content is None:
        content = path
    if not isinstance(content, bytes | str) or not content:
        raise VideoDecodingError(f"{place}: expected a file's bytes or path, found {value!r}")
    if isinstance(content, bytes):
        check_content_size(len(content), place)
        return Media(content, f"{place} ({public_name(path)})" if path else place, start, end)
    if root is not None and not is_address(content):
        is_remote = is_address(root) and not content.startswith("/")
        content = joined_file(root, content) if is_remote else os.path.join(root, content)
    if is_address(content):
        try:
            check_address(content, is_row=True)
        except ValueError as error:
            raise VideoDecodingError(f"{place}: {error}") from error
    return Media(content, public_name(content) if is_address(content) else content, start, end)


class TableMedia(Sequence):
    """The media column of a table."""

    def __init__(
        self, table: datasets.Dataset, column: str, places: Places, root: str | None, segments: Segments | None
    ):
        self._is_array = isinstance(table.features[column], _ARRAYS)
        self._is_nested = _is_array(table.features[column]) and not self._is_array
        self._table = table.select_columns([column]).with_format("numpy" if self._is_nested else "arrow")
        self._data, self._order, self._length = self._table.data, row_order(table), len(table)
        self._column = column
        self._places = places
        self._root = root
        self._segments = segments or Segments()

    def __len__(self) -> int:
        return self._length

    def identity(self) -> list[bytes]:
        """Bytes that change with any row's path, size or segment, or with the order of the rows; of what is decoded
        already, with their order alone."""
        paths, sizes, order = [], [], self._order
        for chunk in self._data.column(self._column).chunks:
            content = chunk
            if pa.types.is_struct(chunk.type):
                content = pc.struct_field(chunk, "bytes")
                paths += pc.struct_field(chunk, "path").to_pylist()
            elif pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
                paths += chunk.to_pylist()
            elif not pa.types.is_binary(chunk.type) and not pa.types.is_large_binary(chunk.type):
                continue
            # The content itself is not touched.
            lengths = pc.binary_length(content.cast(pa.large_binary()))
            sizes.append(pc.fill_null(lengths, -1).to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
        names = "\0".join(path or "" for path in paths).encode(errors="surrogateescape")
        return [names, b"".join(sizes), *self._segments.identity(), *([] if order is None else [order.tobytes()])]

    def file_keys(self) -> list[str]:
        """What tells the file of each row from others: a hash of what the table holds of it, which is read for it."""
        return [self._key(self._cell(row)) for row in range(self._length)]

    def _cell(self, row: int) -> pa.ChunkedArray:
        return self._data.fast_slice(row if self._order is None else int(self._order[row]), 1).column(0)

    def _key(self, cell: pa.ChunkedArray) -> str:
        value = cell[0].as_py()
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        return hash_of([value if isinstance(value, bytes) else repr(value).encode(errors="surrogateescape")])

    def __getitem__(self, row: int) -> Media:
        row = range(self._length)[row]  # an IndexError behind the end, where iterating stops
        place = self._places[row]
        if self._is_nested:
            return to_media(self._table[row][self._column], place, None, column=self._column)
        # `self._table[row]` says the same in ten times as long.
        cell = self._cell(row)
        if self._is_array and not cell.null_count:
            (value,) = cell.chunk(0).to_numpy(zero_copy_only=False)
            return to_media(np.asarray(value), place, None, column=self._column)
        check_content_size(cell.nbytes, place)  # before it is copied
        return to_media(cell[0].as_py(), place, self._root, *self._segments[row], column=self._column)


@dataclass(frozen=True)
class TableRowReader:
    """Reads the file and the label out of a streamed row of a table."""

    columns: Columns
    root: str | None

    def __call__(self, row: Mapping[str, Any], place: str) -> tuple[Media, Any]:
        columns = self.columns
        try:
            start, end = parse_segment(row.get(columns.start), row.get(columns.end))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        segment = Segments([start], [end])[0]
        media = to_media(row[columns.media], place, self.root, *segment, column=columns.media)
        return media, row[columns.label]


def label_column(table: datasets.Dataset, name: str, places: Places) -> LabelColumn:
    """The labels of all rows."""
    column = _array(table, name)
    if column.null_count:
        raise ValueError(f"{places[_first(pc.is_null(column))]}: no {name}")
    starts = None
    if any(check(column.type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        column = pc.list_flatten(column)
        if column.null_count:
            row = int(np.searchsorted(starts, _first(pc.is_null(column)), side="right")) - 1
            raise ValueError(f"{places[row]}: an empty label in the list under {name}")
    if not any(check(column.type) for check in _LABEL_TYPES):
        raise ValueError(f"{places.name}: column '{name}': expected names or indices of classes, found {column.type}")
    if not pa.types.is_integer(column.type) and (empty := _first(pc.equal(pc.utf8_trim_whitespace(column), ""))) >= 0:
        row = empty if starts is None else int(np.searchsorted(starts, empty, side="right")) - 1
        raise ValueError(f"{places[row]}: the {name} is empty")
    encoded = pc.dictionary_encode(column)
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return LabelColumn.of_raw(encoded.dictionary.to_pylist(), codes, starts)


def _array(table: datasets.Dataset, name: str) -> pa.Array:
    """A column in the order of the rows. `table[:]` would look for one row after another where there is an order."""
    column, order = table.data.column(name), row_order(table)
    column = column if order is None else column.take(pa.array(order))
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def paths_of(table: datasets.Dataset, column: str) -> PathMedia | None:
    """The media of a column where each row has a path on the disk, and no bytes: apart from the table, a path is found
    in a tenth of the time. None for any other."""
    chunks, order = table.data.column(column).chunks, row_order(table)
    if pa.types.is_struct(table.data.column(column).type):
        if any(pc.struct_field(chunk, "bytes").null_count < len(chunk) for chunk in chunks):
            return None
        chunks = [pc.struct_field(chunk, "path") for chunk in chunks]
    if not all(pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type) for chunk in chunks):
        return None
    paths = pa.chunked_array([chunk.cast(pa.large_string()) for chunk in chunks])
    paths = paths if order is None else paths.take(pa.array(order))
    are_odd = pc.or_kleene(pc.equal(paths, ""), pc.match_substring(paths, "://"))
    return None if paths.null_count or pc.any(are_odd).as_py() else PathMedia("", paths.combine_chunks())


def row_order(table: datasets.Dataset) -> np.ndarray | None:
    """Which of the stored rows each row is, (rows,), after `shuffle`, `select` or `filter`; None: all as they are.

    `Dataset` has no public member for it, see tests/data/test_given_refused.py.
    """
    return None if table._indices is None else table._indices.column(0).to_numpy().astype(np.int64)


def _first(mask: pa.Array) -> int:
    return pc.index(mask, True).as_py()


def segments(table: datasets.Dataset, columns: Columns, places: Places) -> Segments | None:
    """The segments of all rows, if there are columns of them."""
    if columns.start is None and columns.end is None:
        return None
    starts, ends = (
        [None] * len(table) if name is None else _array(table, name).to_pylist()
        for name in (columns.start, columns.end)
    )
    parsed = np.empty((len(table), 2))
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        try:
            parsed[row] = parse_segment(start, end)
        except ValueError as error:
            raise ValueError(f"{places[row]}: {error}") from error
    return Segments(parsed[:, 0], parsed[:, 1])


def _check_addresses(table: datasets.Dataset, column: str, place: str) -> None:
    """Raise a `ValueError` for the first row without bytes whose path is an address of a kind that cannot be read."""
    column, order = table.data.column(column), row_order(table)
    if not pa.types.is_struct(column.type):
        return
    # Where no row has a path, a column may be of the type null.
    paths = pa.chunked_array([pc.struct_field(chunk, "path").cast(pa.large_string()) for chunk in column.chunks])
    is_inside = pa.chunked_array([pc.struct_field(chunk, "bytes").is_valid() for chunk in column.chunks])
    is_address = pc.fill_null(pc.and_not(pc.match_substring(paths, "://"), is_inside), False)
    rows = np.flatnonzero(is_address.to_numpy())
    if order is not None and len(rows):
        rows = np.intersect1d(rows, order)
    check_row_addresses(paths.take(pa.array(rows)).to_pylist(), lambda row: place)


def read_table(dataset: DatasetRecipe, split: str, place: str) -> SplitRows:
    """All rows of a split, by index."""
    root = dataset.media_root
    if dataset.format == "parquet":
        table, counts = _load_parquet(dataset, place)
        places = Places([public_name(file) for file in counts], list(counts.values()))
        root = _folder_of(next(iter(counts))) if root is None else root
    else:
        table, places = _load_split(dataset, place), Places([f"{dataset.path}, split {place}"])
    table, columns = undecoded(dataset, table, places.name)
    if columns.holds_paths and len(table):
        labels, parts = label_column(table, columns.label, places), segments(table, columns, places)
        paths = _array(table, columns.media).to_pylist()
        if None in paths or "" in paths:
            raise ValueError(f"{places[next(row for row, path in enumerate(paths) if not path)]}: no {columns.media}")
        rows = existing_rows(dataset, split, root or "", paths, labels, places.__getitem__, segments=parts)
        return replace(rows, names=columns.names)
    roots = () if dataset.media_root is None else (public_name(dataset.media_root),)
    return table_rows(table, columns, places, root, roots)


def table_rows(
    table: datasets.Dataset, columns: Columns, places: Places, root: str | None = None, roots: tuple[str, ...] = ()
) -> SplitRows:
    """All rows of a table as `undecoded` leaves it, whose files are not looked for; `roots` beside those of its own
    files."""
    if len(table) == 0:
        raise ValueError(f"{places.name}: no rows")
    _check_addresses(table, columns.media, places.name)
    parts = segments(table, columns, places)
    return SplitRows(
        media=TableMedia(table, columns.media, places, root, parts),
        labels=label_column(table, columns.label, places),
        names=columns.names,
        roots=tuple(dict.fromkeys([*(file["filename"] for file in table.cache_files), *roots])),
    )


def stream_table(dataset: DatasetRecipe, place: str) -> RowStream:
    """The train split, in order."""
    size, root, roots = None, dataset.media_root, ()
    if dataset.format == "parquet":
        table, counts = _load_parquet(dataset, place, streaming=True)
        root, name = _folder_of(next(iter(counts))) if root is None else root, public_name(place)
        size, roots = sum(counts.values()), tuple(map(public_name, counts))
    else:
        table, name = _load_split(dataset, place, streaming=not _is_saved_to_disk(dataset.path)), dataset.path
        if isinstance(table, datasets.Dataset):
            size, roots = len(table), tuple(dict.fromkeys(file["filename"] for file in table.cache_files))
            table = table.to_iterable_dataset(num_shards=max(1, min(_MAX_DISK_SHARDS, size)))
        elif table.info.splits is not None and place in table.info.splits:
            size = table.info.splits[place].num_examples
    if table.features is not None:
        table = table.decode(False)  # a remote one is decoded by threads
    table, columns = undecoded(dataset, table, name)
    return RowStream(
        rows=table, read=TableRowReader(columns, root), place=name, names=columns.names, size=size, roots=roots
    )


def _folder_of(file: str) -> str:
    return parent(file) if is_address(file) else os.path.dirname(file)


def _load_parquet(
    dataset: DatasetRecipe, place: str, streaming: bool = False
) -> tuple[datasets.Dataset | datasets.IterableDataset, dict[str, int]]:
    """The wanted columns of all files, and the rows of each file."""
    names = [dataset.column(key) for key in ("media", "label", "start", "end")]
    columns = [name for name in names if name is not None]
    counts = parquet_row_counts(find_parquet_files(place), columns)
    if is_address(place):
        return load_remote_parquet(list(counts), columns, streaming), counts
    files = [glob.escape(file) for file in counts]  # as `datasets` takes names of files for patterns
    table = load("parquet", data_files={"train": files}, split="train", columns=columns, streaming=streaming)
    # Shards are what is shuffled as a whole: better the row groups than the files, of which there may be but one.
    return table.reshard() if streaming else table, counts


def _load_split(
    dataset: DatasetRecipe, split: str, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    if dataset.revision is not None and os.path.exists(dataset.path):
        raise ValueError(
            f"{dataset.path}: revision {dataset.revision!r} has no effect, as it is no dataset of the Hub"
        )
    if _is_saved_to_disk(dataset.path):
        if dataset.config_name is not None:
            raise ValueError(f"{dataset.path}: config_name does not apply to what save_to_disk has written")
        return load_from_disk(dataset.path, split)
    return load(dataset.path, dataset.config_name, split=split, streaming=streaming, revision=dataset.revision)
