# SPDX-License-Identifier: Apache-2.0
"""Compact datasets: shards that hold, of each video, just the frames that training samples from it.

The paper samples the same uniform frames of a video in each epoch. Decoded, scaled and encoded again once, they are
all that training has to read:

    OUTPUT/train/dataset.json        labels and settings, written first
    OUTPUT/train/train-00000.tar     000001234.mp4  000001234.json  000000077.mp4  ...
    OUTPUT/train/train-00000.json    what is in the shard and what was left out, written last: the shard is whole
    OUTPUT/train/report.json, failures.jsonl, class_histogram.png

Which rows a shard holds, and every byte of it, follow from the dataset and the settings alone. So a shard is either
whole or written again, by whichever process comes across it.
"""

import io
import json
import math
import os
import reprlib
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..bars import bar
from ..data.quarantine import TooManyBadFilesError, most_bad_files
from ..data.sources import Source, read_sources
from ..files import UNFINISHED, replacing, to_json, write_json
from ..fonts import told_if_not_drawn
from ..model.file_access_cover import public_name
from ..recipe.checks import check_whole_number
from ..recipe.dataset_recipe import DatasetRecipe
from .preparation_report import draw_class_histogram, summarise_split
from .prepared_rows import PreparationSettings, PreparedRow, prepare_row
from .row_pool import TIME_LIMIT, RowPool, usable_cores


# The keys of a recipe's entry that decide what the rows are.
_SELECTING = ("format", "path", "config_name", "columns", "label_separator", "media_root", "synsets", "missing_files")


def write_shard(path: Path, rows: Iterable[PreparedRow], extension: str) -> None:
    """Write a shard and, beside it, what is in it; both only once they are whole."""
    summary = {"rows": 0, "failures": [], "seconds": 0.0, "bytes_before": 0, "class_counts": {}}
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for prepared in rows:
            if prepared.content is None:
                failure = {"shard": path.name, "row": prepared.row, "path": prepared.path, "reason": prepared.reason}
                summary["failures"].append(failure)
                continue
            annotation = to_json(prepared.annotation)
            for suffix, content in ((extension, prepared.content), ("json", annotation)):
                member = tarfile.TarInfo(f"{prepared.row:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            _count(summary, prepared)
    summary["bytes_after"] = path.stat().st_size
    write_json(path.with_suffix(".json"), summary, indent=1)


def _count(summary: dict[str, Any], prepared: PreparedRow) -> None:
    summary["rows"] += 1
    summary["seconds"] += prepared.annotation.get("duration", 0)
    summary["bytes_before"] += prepared.bytes_before
    label = prepared.annotation["label"]
    for name in [label] if isinstance(label, str) else label:
        summary["class_counts"][name] = summary["class_counts"].get(name, 0) + 1


@dataclass(frozen=True, kw_only=True)
class _Split:
    """One split on its way into shards."""

    name: str
    source: Source
    folder: Path
    shard_size: int

    @cached_property
    def order(self) -> np.ndarray:
        """The rows, shuffled, so that shards can also be read one after another, and always alike."""
        return np.random.default_rng(0).permutation(len(self.source))

    @property
    def num_shards(self) -> int:
        return math.ceil(len(self.source) / self.shard_size)

    def shard(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:05d}.tar"

    def rows(self, number: int) -> list[int]:
        return self.order[number * self.shard_size : (number + 1) * self.shard_size].tolist()

    def is_written(self, number: int) -> bool:
        """Whether the shard is whole, as the summary beside it says."""
        path = self.shard(number)
        summary = path.with_suffix(".json")
        if not path.is_file() or not summary.is_file():
            return False
        try:
            return json.loads(summary.read_text(encoding="utf-8"))["bytes_after"] == path.stat().st_size
        except (ValueError, KeyError):
            return False

    def begin(self, dataset: DatasetRecipe, settings: PreparationSettings) -> None:
        """Write dataset.json.

        Raises:
            ValueError: if the folder holds shards of other rows or settings.
        """
        content = {
            "split": self.name,
            "labels": self.source.labels,
            "problem_type": self.source.problem_type,
            **asdict(settings),
            "rows": len(self.source),
            "rows_hash": self.source.row_hashes(),
            "recipe": _public(dataset),
        }
        path = self.folder / "dataset.json"
        if path.is_file():
            _check_same(self.folder, json.loads(path.read_text(encoding="utf-8")), json.loads(to_json(content)))
        elif any(self.folder.glob("*.tar")):
            raise ValueError(f"{self.folder} holds shards of another kind: name another --output")
        else:
            write_json(path, content, indent=1)


def _public(dataset: DatasetRecipe) -> dict[str, Any]:
    """The entry, without what would be the right to read remote files."""
    content = asdict(dataset)
    content["splits"] = {split: public_name(place) for split, place in dataset.splits.items()}
    for key in ("media_root", "synsets", "labels", "path"):
        if isinstance(content[key], str):
            content[key] = public_name(content[key])
    return content


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    def deciding(content: Mapping[str, Any]) -> dict[str, Any]:
        recipe = content["recipe"]
        return {
            **{key: value for key, value in content.items() if key != "recipe"},
            # Of earlier shards some are not there.
            **{key: recipe.get(key) for key in (*_SELECTING, "validation")},
            "place": recipe["splits"].get(content["split"], recipe["splits"]["train"]),
        }

    old, new = deciding(old), deciding(new)
    if differing := [key for key in new if old.get(key) != new[key]]:
        pairs = [f"{key} {reprlib.repr(old.get(key))}, not {reprlib.repr(new[key])}" for key in differing]
        raise ValueError(
            f"{folder} was written with {'; '.join(pairs)}: name another --output, or delete it to write it again"
        )


def prepare_dataset(
    dataset: DatasetRecipe,
    output: str | os.PathLike,
    settings: PreparationSettings,
    splits: Sequence[str] | None = None,
    num_workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, dict[str, Any]] | None:
    """Write a compact dataset, or continue where an earlier call was stopped.

    Any number of processes, on any machines that share a file system, each write their part of the shards. The one
    that finds all of them written adds the report.

    Args:
        splits: some of the dataset's, by default all.
        num_workers: processes that decode and encode, by default one for each core that this process may use.
        rank, world_size: the number of this process, and how many share the work.

    Returns:
        What became of each split, see [`summarise_split`]; None if other processes still have shards to write.

    Raises:
        ValueError: if an argument is not what it should be, or `output` holds shards of other settings.
    """
    num_workers = usable_cores() if num_workers is None else num_workers
    check_whole_number("num_workers", num_workers)
    check_whole_number("world_size", world_size)
    if rank not in range(world_size):
        raise ValueError(f"rank: expected 0 to {world_size - 1}, got {rank}")
    todo = _read_splits(dataset, Path(output), settings, splits)
    for split in todo:
        split.begin(dataset, settings)
    shards = [(split, number) for split in todo for number in range(split.num_shards)]
    _write_shards(shards[rank::world_size], settings, num_workers, rank)
    if not all(split.is_written(number) for split, number in shards):
        return None
    return {split.name: _write_report(split) for split in todo}


def _read_splits(
    dataset: DatasetRecipe, output: Path, settings: PreparationSettings, splits: Sequence[str] | None
) -> list[_Split]:
    there = dataset.split_names
    splits = list(there) if splits is None else list(splits)
    if unknown := [split for split in splits if split not in there]:
        raise ValueError(f"splits: dataset '{dataset.name}' has {', '.join(there)}, not {', '.join(unknown)}")
    if not splits or len(set(splits)) < len(splits):
        raise ValueError(f"splits: expected some of {', '.join(there)}, each once, got {splits}")
    if settings.modality != dataset.modality:
        raise ValueError(f"dataset '{dataset.name}' is of {dataset.modality}s, not of {settings.modality}s")
    if dataset.streaming:
        raise ValueError(f"dataset '{dataset.name}': rows are read by index here: leave `streaming` out of its entry")
    sources = read_sources(dataset)
    return [
        _Split(name=split, source=sources[split], folder=output / split, shard_size=settings.shard_size)
        for split in splits
    ]


def _write_shards(
    shards: list[tuple[_Split, int]], settings: PreparationSettings, num_workers: int, rank: int
) -> None:
    pending = [(split, number) for split, number in shards if not split.is_written(number)]
    total, left = (sum(len(split.rows(number)) for split, number in part) for part in (shards, pending))
    if not pending:
        return
    sources = {split.name: split.source for split, _ in pending}
    tasks = ((split.name, row) for split, number in pending for row in split.rows(number))
    prepare = partial(_prepare_task, sources=sources, settings=settings)
    options = {"total": total, "initial": total - left, "desc": "preparing", "unit": "row", "position": rank}
    pool = RowPool(prepare, _crashed, min(num_workers, left))
    with closing(pool), bar(**options) as progress:
        rows = pool.map(tasks)
        for split, number in pending:
            write_shard(split.shard(number), _counted(rows, len(split.rows(number)), progress), settings.extension)


def _counted(rows: Iterator[PreparedRow], number: int, progress: tqdm) -> Iterator[PreparedRow]:
    """The next so many rows."""
    for row in islice(rows, number):
        progress.update()
        yield row


def _prepare_task(task: tuple[str, int], sources: Mapping[str, Source], settings: PreparationSettings) -> PreparedRow:
    split, row = task
    return prepare_row(sources[split], row, settings)


def _crashed(task: tuple[str, int]) -> PreparedRow:
    split, row = task
    reason = f"the process that decoded it crashed, or took more than {TIME_LIMIT:.0f} seconds"
    return PreparedRow(row, f"{split}, row {row}", reason=reason)


def _write_report(split: _Split) -> dict[str, Any]:
    shards = [split.shard(number) for number in range(split.num_shards)]
    summary = summarise_split(shards, split.source.labels)
    write_json(split.folder / "report.json", {**summary, "failures": len(summary["failures"])}, indent=1)
    with replacing(split.folder / "failures.jsonl") as file:
        file.writelines(to_json(failure) + b"\n" for failure in summary["failures"])
    path = split.folder / "class_histogram.png"
    with told_if_not_drawn(path), replacing(path) as file:
        draw_class_histogram(f"{split.source.name}, {split.name}", summary["class_counts"], file)
    # What was being written when a process was killed: shards, which are all whole by now. Others may be reporting,
    # too.
    for leftover in split.folder.glob(f".{split.name}-*{UNFINISHED}"):
        leftover.unlink(missing_ok=True)
    return summary


def check_bad_share(summaries: Mapping[str, Mapping[str, Any]], max_bad_share: float) -> None:
    """Raise a [`TooManyBadFilesError`] if more of a split's rows were left out than training allows, see
    [`most_bad_files`]."""
    for split, summary in summaries.items():
        num_bad = len(summary["failures"])
        num_rows = summary["rows"] + num_bad
        if num_bad > (most := most_bad_files(max_bad_share, num_rows)):
            examples = "\n".join(f"  {failure['reason']}" for failure in summary["failures"][:3])
            raise TooManyBadFilesError(
                f"{split} split: {num_bad} of {num_rows} files cannot be read, more than the {int(most)} that "
                f"max_bad_share ({max_bad_share:.1%}) allows; all others are written. The list is {split}/failures.jsonl; it begins with\n"
                f"{examples}"
            )
