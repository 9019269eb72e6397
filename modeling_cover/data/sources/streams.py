# SPDX-License-Identifier: Apache-2.0
"""Splits that are read in order instead of by index; to train on, shuffled so that a run can stop and resume anywhere.

    pass 0    shards in one order      | block | block | block |      each block permuted
    pass 1    shards in another        | block | block | block |

What is drawn at a place is a function of the seed and of that place. A shuffle buffer as in `datasets`, which mixes as
it goes, has no such place: what is in it when a run stops is lost.
"""

import itertools
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from datasets import IterableDataset
from datasets.exceptions import DatasetsError
from transformers.utils import logging

from ...recipe.dataset_recipe import MULTI_LABEL
from ..randomness import BLOCK_STREAM, SHARD_STREAM
from .label_lists import LabelSpace
from .media import Media, hash_of


logger = logging.get_logger(__name__)

_REMEMBERED_DRAWS = 10_000  # how far back the stream can be taken without starting from its beginning
_DRAWS_PER_MARK = 100

_SHARD_ERRORS = OSError, ValueError, ImportError, DatasetsError


@dataclass(frozen=True, kw_only=True)
class RowStream:
    """The rows of a split in the order they are stored in; nothing in them is decoded.

    `read` takes a row, and what to call it in messages, to its file and its label as it is written there.
    """

    rows: IterableDataset  # or what has its `num_shards` and `shard`
    read: Callable[[Mapping[str, Any], str], tuple[Media, Any]]
    place: str  # where the rows are, for messages
    names: list[str] | None  # the classes that the source itself lists in order, if it does
    size: int | None  # how many rows there are, if the source says so
    roots: tuple[str, ...]  # the folders or files that must exist for the rows to be there


class Example(NamedTuple):
    """One row: its encoded file, and its class index or, multi-label, (classes,) float32 of 0 and 1."""

    media: Media
    target: int | np.ndarray


@dataclass(frozen=True, kw_only=True)
class SplitOfDataset(ABC):
    """One split of a dataset, however it is read."""

    name: str  # the dataset's, and its head's
    modality: str  # "video" or "image"
    labels: list[str]  # the label space of the head
    problem_type: str
    roots: tuple[str, ...] = ()  # the folders or files that must exist for the dataset to be there

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == MULTI_LABEL

    @property
    def has_labels(self) -> bool:
        """Whether any row has a class, as far as it is known before rows are read."""
        return True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self) -> Iterable[Any]:
        """All rows in order, as `place` and `example` take them."""

    @abstractmethod
    def place(self, row: Any) -> str:
        """What to call a row before it is read, and where what it is in is damaged."""

    @abstractmethod
    def example(self, row: Any) -> Example:
        """Read a row.

        Raises:
            VideoDecodingError, OSError: if its file, or what that is in, cannot be read.
            ValueError: if it has no label of the label space.
        """

    @abstractmethod
    def row_hashes(self) -> dict[str, str]:
        """Hashes of all rows by what they are of, as far as it can be told without reading them: of `names` and of
        `labels`."""


@dataclass(frozen=True, kw_only=True)
class StreamedSource(SplitOfDataset):
    """A split that is only read in order."""

    size: int  # rows of a pass, as the source or the recipe says
    shuffle_buffer: int  # rows of the blocks in which it is shuffled
    stream: RowStream
    label_space: LabelSpace  # which class a row's label means

    def __len__(self) -> int:
        return self.size

    def row_hashes(self) -> dict[str, str]:
        """A hash of the `names` of the files that the rows are in, in order, without the folder that they are all
        in."""
        # Up to a slash, and of addresses as well, which `commonpath` would change.
        folder = os.path.commonprefix(self.roots).rpartition("/")[0]  # noqa: RUF071
        return {"names": hash_of(root.removeprefix(folder).encode(errors="surrogateescape") for root in self.roots)}

    def open(self, seed: int) -> "Stream":
        """The endless stream of one run."""
        return Stream(self, seed)

    def rows(self) -> Iterator["StoredRow"]:
        rows = self.stream.rows
        for shard in range(rows.num_shards):
            try:
                for row, content in enumerate(rows.shard(num_shards=rows.num_shards, index=shard)):
                    yield StoredRow(shard, row, content)
            except _SHARD_ERRORS as error:
                raise self.damaged(shard, error) from error

    def damaged(self, shard: int, error: Exception) -> ValueError:
        """What went wrong as a shard was read, with its name."""
        hint = ": .decode(False) before map and filter passes files as they are" * isinstance(error, ImportError)
        return ValueError(
            f"dataset '{self.name}': {self.stream.place}, shard {shard} cannot be read on: {error}{hint}"
        )

    def place(self, row: "StoredRow") -> str:
        return f"{self.stream.place}, shard {row.shard}, row {row.row}"

    def example(self, row: "StoredRow") -> Example:
        media, label = self.stream.read(row.content, self.place(row))
        try:
            return Example(media, self.label_space.target(label, self.is_multi_label))
        except ValueError as error:
            raise ValueError(f"dataset '{self.name}': {media.name}: {error}") from error


class StoredRow(NamedTuple):
    """A row as it is stored: the number of its shard, its number in the shard, and its columns."""

    shard: int
    row: int
    content: Mapping[str, Any]


class _Pass:
    """Goes through all rows once, one shard after another.

    The shards are opened one by one, each as an iterable dataset of its own: then the order is ours, and the state
    within a shard is one that `datasets` restores exactly.
    """

    def __init__(self, rows: IterableDataset, order: np.ndarray, state: Mapping[str, Any] | None = None):
        self._rows = rows
        self._order = order
        state = {"shard": 0, "row": 0, "inside": None} if state is None else state
        self._position, self._row, self._inside = state["shard"], state["row"], state["inside"]
        self._shard = self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; where the next row is."""
        inside = self._inside if self._shard is None else self._shard.state_dict()
        return {"shard": self._position, "row": self._row, "inside": inside}

    @property
    def shard(self) -> int:
        """The number of the shard that is being read."""
        return int(self._order[self._position])

    def read(self, count: int) -> list[StoredRow]:
        """The next rows; fewer than `count` at the end."""
        found = []
        while len(found) < count and self._position < len(self._order):
            if self._iterator is None:
                self._open_shard()
            content = next(self._iterator, None)
            if content is None:
                self._position, self._row, self._inside = self._position + 1, 0, None
                self._shard = self._iterator = None
                continue
            found.append(StoredRow(self.shard, self._row, content))
            self._row += 1
        return found

    def _open_shard(self) -> None:
        self._shard = self._rows.shard(num_shards=len(self._order), index=self.shard)
        if self._inside is not None:
            self._shard.load_state_dict(self._inside)
        self._iterator = iter(self._shard)


class _Mark(NamedTuple):
    """The start of a block: its first draw, its pass, its number in the pass, the first draw of the pass, and the
    state that the pass is read on from."""

    draw: int
    pass_index: int
    block: int
    pass_draw: int
    state: dict[str, Any] | None


_START = _Mark(0, 0, 0, 0, None)


class Stream:
    """Pass after pass over a streamed split, each in another order; a function of the seed.

    A block of `shuffle_buffer` rows is read at a time and permuted. The states at the starts of the latest blocks are
    remembered: of them alone, the stream can be taken back, saved, and reached again with little reading.
    """

    def __init__(self, source: StreamedSource, seed: int):
        self.source = source
        self.seed = seed
        self._num_shards = source.stream.rows.num_shards
        apart = max(_DRAWS_PER_MARK, source.shuffle_buffer)
        self._marks = deque([_START], maxlen=_REMEMBERED_DRAWS // apart + 2)
        self._has_warned = False
        self._go_to(_START)

    def row(self, draw: int) -> StoredRow:
        """The `draw`-th row, counted from 0 through all passes; nothing in it is read yet.

        Raises:
            ValueError: if the split has no rows, or a shard is damaged.
        """
        if draw < 0:
            raise ValueError(f"draws count from 0, got {draw}")
        nearest = self._nearest_mark(draw)
        if draw < self._block_start or nearest.draw > self._next.draw:
            self._go_to(nearest)
        while draw >= self._block_start + len(self._block):
            self._read_block()
        return self._block[draw - self._block_start]

    def partner(self, draw: int) -> StoredRow:
        """Another row to mix the `draw`-th with: the one behind it in its block, which is in random order."""
        self.row(draw)
        return self._block[(draw - self._block_start + 1) % len(self._block)]

    def state_dict(self, draw: int) -> dict[str, Any]:
        """JSON-able; a stream that loads it reaches `draw` with little reading, whatever this one has read beyond."""
        return {
            "seed": self.seed,
            "shuffle_buffer": self.source.shuffle_buffer,
            "num_shards": self._num_shards,
            "mark": self._nearest_mark(draw)._asdict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was taken.

        Raises:
            ValueError: if the state is of another seed, another shuffle buffer, or another dataset.
        """
        own = self.state_dict(0)
        for key in ("seed", "shuffle_buffer", "num_shards"):
            if state[key] != own[key]:
                change = f"{key} {state[key]}, which is now {own[key]}"
                raise ValueError(f"dataset '{self.source.name}': cannot resume from a state with {change}")
        mark = _Mark(**state["mark"])
        self._marks.clear()
        self._marks.append(mark)
        self._go_to(mark)

    def sample_pool(self, most: int = 64) -> list[StoredRow]:
        """The first rows as they are stored, whatever the seed: to stand in for those that cannot be decoded."""
        rows = self.source.stream.rows
        stored = (
            # Not `iter(...)`: in a data loader's worker that would be the worker's part of the rows.
            StoredRow(shard, row, {column: values[0] for column, values in batch.items()})
            for shard in range(self._num_shards)
            for row, batch in enumerate(rows.shard(self._num_shards, shard).iter(batch_size=1))
        )
        return list(itertools.islice(stored, most))

    def _nearest_mark(self, draw: int) -> _Mark:
        return next((mark for mark in reversed(self._marks) if mark.draw <= draw), _START)

    def _go_to(self, mark: _Mark) -> None:
        self._next = mark
        self._pass = self._open_pass(mark.pass_index, mark.state)
        self._block: list[StoredRow] = []
        self._block_start = mark.draw

    def _open_pass(self, index: int, state: Mapping[str, Any] | None = None) -> _Pass:
        order = np.random.default_rng([SHARD_STREAM, self.seed, index]).permutation(self._num_shards)
        return _Pass(self.source.stream.rows, order, state)

    def _read_block(self) -> None:
        mark = self._next
        rows = self._read_rows()
        if not rows:
            self._check_pass(mark)
            mark = _Mark(mark.draw, mark.pass_index + 1, 0, mark.draw, None)
            self._pass = self._open_pass(mark.pass_index)
            rows = self._read_rows()
        order = np.random.default_rng([BLOCK_STREAM, self.seed, mark.pass_index, mark.block]).permutation(len(rows))
        self._block = [rows[index] for index in order]
        self._block_start = mark.draw
        if mark.draw >= self._marks[-1].draw + _DRAWS_PER_MARK:
            self._marks.append(mark)
        state = self._pass.state_dict()
        self._next = _Mark(mark.draw + len(rows), mark.pass_index, mark.block + 1, mark.pass_draw, state)

    def _read_rows(self) -> list[StoredRow]:
        try:
            return self._pass.read(self.source.shuffle_buffer)
        except _SHARD_ERRORS as error:
            raise self.source.damaged(self._pass.shard, error) from error

    def _check_pass(self, end: _Mark) -> None:
        rows = end.draw - end.pass_draw
        if rows == 0:
            raise ValueError(f"dataset '{self.source.name}': no rows in {self.source.stream.place}")
        if rows != self.source.size and not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"dataset '{self.source.name}': {self.source.stream.place} has {rows} rows, not {self.source.size}"
            )
