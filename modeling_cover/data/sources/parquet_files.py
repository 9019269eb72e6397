# SPDX-License-Identifier: Apache-2.0
"""Parquet files: which there are, what they hold, and those elsewhere as tables of the `datasets` library.

`datasets` itself takes a server that fails for a while for a file that is missing, and asks again and again for one
that it may not have.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from ...model.file_access_cover import check_is_regular, is_address, public_name
from .remote import find_remote, open_for_parts, version_of


_SPLIT_NAME = re.compile(r"(train|validation|valid|val|dev|test)(?=[-_.])")
_FOOTER_THREADS = 8  # that wait for servers
_ROWS_AT_A_TIME = 16  # whole videos, in memory


def find_parquet_files(place: str) -> list[str]:
    """A .parquet file, those of a folder or those of a pattern, here or elsewhere."""
    name = public_name(place)
    if is_address(place):
        found = find_remote(place, (".parquet",), deep=True)
        is_folder = not re.search(r"[*\[]", place)
    elif is_folder := os.path.isdir(place):
        found = sorted(str(file) for file in Path(place).rglob("*.parquet"))
    else:
        found = [place] if os.path.isfile(place) else sorted(glob.glob(place, recursive=True))
    splits = {split[0] for file in found if (split := _SPLIT_NAME.match(os.path.basename(file)))}
    if is_folder and len(splits) > 1:
        raise ValueError(f"{name} has files of {', '.join(sorted(splits))}: name a pattern, such as {name}/train-*")
    if not found:
        raise ValueError(f"no .parquet files: {name} is neither such a file, nor a folder or a pattern of them")
    return found


def parquet_row_counts(files: Sequence[str], columns: Sequence[str]) -> dict[str, int]:
    """The rows of each file that has any; all must be whole, and have the same types of the columns."""
    counts, first, names = {}, None, [public_name(file) for file in files]
    for file, name, (schema, rows) in zip(files, names, _footers(files), strict=True):
        if missing := [column for column in columns if column not in schema.names]:
            raise ValueError(f"{name}: no column {missing}, found {schema.names}")
        features = datasets.Features.from_arrow_schema(schema)
        first = features if first is None else first
        # `datasets` would take the first file's for all: an index would count another list of names than its own.
        for column in columns:
            if _kind(features[column]) != _kind(first[column]):
                expected = f"expected {first[column]}, as in {names[0]}, found {features[column]}"
                raise ValueError(f"{name}: column '{column}': {expected}")
        if rows:
            counts[file] = rows
    if not counts:
        raise ValueError(f"{names[0]}: no rows")
    return counts


def _footers(files: Sequence[str]) -> list[tuple[pa.Schema, int]]:
    if not is_address(files[0]):
        return [_footer(file) for file in files]
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return list(pool.map(_footer, files))


def _footer(file: str) -> tuple[pa.Schema, int]:
    if not is_address(file):
        try:
            check_is_regular(file)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    try:
        with open_parquet(file) as parquet:
            return parquet.schema_arrow, parquet.metadata.num_rows
    except pa.ArrowInvalid as error:
        raise ValueError(f"{public_name(file)} is truncated or no Parquet file: {error}") from error


def _kind(feature: Any) -> Any:
    """What a column holds, whatever its width: files of a kind can be read as one."""
    if isinstance(feature, datasets.Value):
        return feature.dtype.removeprefix("large_").rstrip("0123456789").removeprefix("u")
    return (list, _kind(feature.feature)) if isinstance(feature, datasets.List | datasets.LargeList) else feature


@contextmanager
def open_parquet(file: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, here or elsewhere."""
    if not is_address(file):
        with pq.ParquetFile(file) as parquet:
            yield parquet
        return
    with open_for_parts(file) as opened, pq.ParquetFile(opened, pre_buffer=True) as parquet:
        yield parquet


def load_remote_parquet(
    files: Sequence[str], columns: Sequence[str], streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """The columns of some files; a row group is a shard if they are streamed, and else they are a copy in the cache of
    `datasets`."""
    groups, features = [], None
    for file in files:
        with open_parquet(file) as parquet:
            groups += [(file, group) for group in range(parquet.num_row_groups)]
            features = features or datasets.Features.from_arrow_schema(parquet.schema_arrow)
    features = datasets.Features({name: features[name] for name in columns})
    arguments = {"groups": groups, "columns": tuple(columns)}
    if streaming:
        return datasets.IterableDataset.from_generator(_rows, features=features, gen_kwargs=arguments)
    # A copy of files that have changed since is another one.
    arguments["versions"] = tuple(version_of(file) for file in files)
    try:
        return datasets.Dataset.from_generator(
            _rows, features=features, gen_kwargs=arguments, writer_batch_size=_ROWS_AT_A_TIME
        )
    except (DatasetsError, OSError, ValueError) as error:
        reason = error if error.__cause__ is None else error.__cause__
        raise ValueError(f"cannot read {public_name(files[0])}: {reason}") from error


def _rows(
    groups: list[tuple[str, int]], columns: tuple[str, ...], versions: tuple[str, ...] = ()
) -> Iterator[dict[str, Any]]:
    for file, group in groups:
        with open_parquet(file) as parquet:
            batches = parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=list(columns))
            for batch in batches:
                yield from batch.to_pylist()
