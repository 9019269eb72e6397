# SPDX-License-Identifier: Apache-2.0
"""The order in which a mixture of datasets is drawn (section 4.1 of the paper).

An epoch is as many draws as the datasets have rows. Every dataset has its share of them, evenly spread: within any
stretch of an epoch it is drawn as often as its share says, give or take a draw or two in a thousand. A dataset is gone
through in a shuffled order, every row once, and then again in another order. With proportional shares, an epoch holds
every row once.

All of it is arithmetic: what is drawn at a position is a function of the position, the seed, the sizes and the shares,
in constant time and memory. It costs no file access, and knows nothing of workers, processes or of where a run was
stopped.
"""

import heapq
import itertools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .randomness import ORDER_STREAM, ROW_STREAM


# Draws of a block, about: what is shuffled at a time, and what shares are exact over, but for rounding. Epochs smaller
# than that are taken several at a time, since what is rounded in each of them would add up.
_BLOCK = 1024

_ROUNDS = 12  # of the Feistel network: fewer leave a bias where a dataset has but a few rows


class SampleReference(NamedTuple):
    """A sample to be decoded: the `draw`-th of dataset `dataset` and the `position`-th of the run, both from 0.

    The position counts through all epochs. With the run's seed it decides everything random about the sample. `row` is
    the row of the dataset; a streamed dataset, which has no rows to choose from, sends it along as it is `stored`,
    and where samples are mixed, its `partner`.
    """

    dataset: str
    row: int
    position: int
    draw: int
    stored: Any = None
    partner: Any = None


class MixtureSchedule:
    """What is drawn at each position of a run.

    Args:
        sizes: rows of each dataset.
        shares: of each dataset, adding up to 1; by default in proportion to the sizes.
        when_exhausted: see [`MixtureRecipe`].

    Attributes:
        epoch_size: draws of an epoch: the sum of the sizes, or fewer with `when_exhausted="stop"`.
        round_size: draws of a round, over which shares are kept: an epoch, or several small ones.
        quotas: draws of each dataset in a round.

    Raises:
        ValueError: if a dataset is empty, or its share so small that a round does not draw it once.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        seed: int,
        shares: Mapping[str, float] | None = None,
        when_exhausted: str = "repeat",
    ):
        if not sizes or any(size < 1 for size in sizes.values()):
            raise ValueError(f"sizes: expected at least one dataset, each with rows, got {dict(sizes)}")
        # Sorted, so that the order in which datasets are listed carries no meaning.
        self.names = sorted(sizes)
        self.seed = seed
        self._sizes = np.array([sizes[name] for name in self.names], dtype=np.int64)
        self._quotas = self._sizes if shares is None else self._apportioned(shares, when_exhausted)
        if never := [name for name, quota in self.quotas.items() if quota < 1]:
            raise ValueError(f"mixture: the share of {', '.join(never)} is less than one draw of an epoch")
        self.round_size = int(self._quotas.sum())
        # Of several small epochs, each is as large as the datasets together.
        self.epoch_size = min(self.round_size, int(self._sizes.sum()))
        self._num_blocks = math.ceil(self.round_size / _BLOCK)
        blocks = np.arange(self._num_blocks + 1, dtype=np.int64)
        self._block_starts = sum(self._drawn_before_block(index, blocks) for index in range(len(self.names)))
        keys = np.random.default_rng([ROW_STREAM, seed])
        self._keys = keys.integers(2**64, size=(len(self.names), _ROUNDS), dtype=np.uint64)

    @property
    def quotas(self) -> dict[str, int]:
        return dict(zip(self.names, self._quotas.tolist(), strict=True))

    def _apportioned(self, shares: Mapping[str, float], when_exhausted: str) -> np.ndarray:
        """Draws of each dataset in a round: its share of them, in whole numbers."""
        share = np.array([shares[name] for name in self.names])
        epoch_size = int(self._sizes.sum())
        if when_exhausted == "stop":
            exact = share * min(epoch_size, (self._sizes / share).min())
            return np.floor(exact + 1e-6).astype(np.int64)  # a division may have left it a hair below a whole number
        draws = epoch_size * math.ceil(_BLOCK / epoch_size)
        exact = share * draws
        quotas = np.floor(exact).astype(np.int64)
        largest_remainders = np.argsort(quotas - exact, kind="stable")
        quotas[largest_remainders[: draws - quotas.sum()]] += 1
        return quotas

    def _drawn_before_block(self, dataset: int, blocks: np.ndarray) -> np.ndarray:
        """Draws of a dataset before each block of a round: its quota, spread evenly and rounded."""
        return (blocks * self._quotas[dataset] + self._num_blocks // 2) // self._num_blocks

    def references(self, start: int = 0) -> Iterator[SampleReference]:
        """The references from position `start` on, without end."""
        turn, offset = divmod(start, self.round_size)
        block = int(np.searchsorted(self._block_starts, offset, side="right")) - 1
        skipped = offset - int(self._block_starts[block])
        while True:
            first = turn * self.round_size + int(self._block_starts[block])
            datasets, rows, draws = (column[skipped:].tolist() for column in self._block(turn, block))
            for index, (dataset, row, draw) in enumerate(zip(datasets, rows, draws, strict=True), first + skipped):
                yield SampleReference(self.names[dataset], row, index, draw)
            skipped, block = 0, block + 1
            if block == self._num_blocks:
                turn, block = turn + 1, 0

    def _block(self, turn: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Dataset, row and draw of each position of a block; `turn` counts the rounds."""
        edges = np.array([block, block + 1])
        firsts, ends = np.array([self._drawn_before_block(index, edges) for index in range(len(self.names))]).T
        counts = ends - firsts
        datasets = np.repeat(np.arange(len(self.names)), counts)
        draws = np.concatenate([np.arange(first, end) for first, end in zip(firsts, ends, strict=True)])
        draws += turn * self._quotas[datasets]
        rows = self._rows(datasets, draws)
        # Within a block the datasets come in random order, each dataset's draws in their own.
        places = np.random.default_rng([ORDER_STREAM, self.seed, turn, block]).permutation(datasets)
        order = np.empty(len(places), dtype=np.int64)
        order[np.argsort(places, kind="stable")] = np.arange(len(places))
        return places, rows[order], draws[order]

    def _rows(self, datasets: np.ndarray, draws: np.ndarray) -> np.ndarray:
        passes, offsets = np.divmod(draws, self._sizes[datasets])
        # A key for each round and for each pass through the dataset.
        keys = _mixed(self._keys[datasets].T + passes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        return permuted(offsets, self._sizes[datasets], keys)

    def draws_before(self, position: int) -> dict[str, int]:
        """How often each dataset is drawn before `position`."""
        turn, offset = divmod(position, self.round_size)
        block = int(np.searchsorted(self._block_starts, offset, side="right")) - 1
        datasets, _, _ = self._block(turn, block)
        seen = np.bincount(datasets[: offset - int(self._block_starts[block])], minlength=len(self.names))
        edge = np.array(block)
        return {
            name: int(turn * self._quotas[index] + self._drawn_before_block(index, edge) + seen[index])
            for index, name in enumerate(self.names)
        }


def permuted(indices: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The place of each index in a shuffled order of range(size), computed by itself: a random permutation.

    A Feistel network permutes the numbers of an even number of bits, of which there are up to four times as many; a
    result outside of the range goes through it again until one is inside (cycle walking).

    Args:
        indices: (N,) int64.
        sizes: (N,) int64, above their indices.
        keys: (rounds, N) uint64. Indices of one size and equal keys are of one permutation.
    """
    half = (np.frexp((sizes - 1).astype(np.float64))[1].clip(min=1) + 1) // 2
    half = half.astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    result, pending = indices.astype(np.uint64), np.arange(len(indices))
    while len(pending):
        width, bits = half[pending], mask[pending]
        left, right = result[pending] >> width, result[pending] & bits
        for key in keys[:, pending]:
            left, right = right, left ^ (_mixed(right + key) & bits)
        result[pending] = left << width | right
        pending = pending[result[pending] >= sizes[pending].astype(np.uint64)]
    return result.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: every bit of the result depends on every bit of the value (uint64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class MixtureSampler(torch.utils.data.Sampler[SampleReference]):
    """Yields the references of one epoch of training; `set_epoch` chooses which.

    An epoch of training is a whole number of optimizer steps: the last is filled up by the positions that follow, and
    the next epoch continues behind them. So step k of a run trains on the positions from k * step_size on, on however
    many processes, and no sample is left out or drawn twice.

    Args:
        schedule: of the run.
        step_size: rows of an optimizer step, of all processes and accumulation steps together.
        streams: by name, the datasets that are read in order: see [`~modeling_cover.data.sources.Stream`].
        mixed: names of the datasets whose samples are mixed with a partner.
        batch_size: rows of a batch of one process; by default `step_size`.
        costs: of a row of each dataset, relative to each other. The rows of a step are dealt out to its batches so
            that each costs about the same: processes wait for each other. By default they stay in order.
    """

    def __init__(
        self,
        schedule: MixtureSchedule,
        step_size: int = 1,
        streams: Mapping[str, Any] | None = None,
        mixed: Container[str] = (),
        batch_size: int | None = None,
        costs: Mapping[str, float] | None = None,
    ):
        self.schedule = schedule
        self.step_size = step_size
        self.streams = dict(streams or {})
        self.mixed = mixed
        self.batch_size = step_size if batch_size is None else batch_size
        self.costs = dict.fromkeys(schedule.names, 1) if costs is None else dict(costs)
        if step_size % self.batch_size:
            raise ValueError(f"a step of {step_size} rows is no whole number of batches of {self.batch_size}")
        self._length = math.ceil(schedule.epoch_size / step_size) * step_size
        self.epoch, self._skipped = 0, 0

    def __len__(self) -> int:
        return self._length

    @property
    def steps_per_epoch(self) -> int:
        return self._length // self.step_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def skip(self, rows: int) -> None:
        """Leave out the first rows of the epochs to come. In place of each there is None, for whoever counts them."""
        self._skipped = rows

    def __iter__(self) -> Iterator[SampleReference | None]:
        first = self.epoch * self._length
        yield from itertools.repeat(None, self._skipped)
        references = itertools.islice(self.references(first + self._skipped), self._length - self._skipped)
        while rows := list(itertools.islice(references, self.step_size)):
            yield from dealt_out(rows, [self.costs[row.dataset] for row in rows], self.batch_size)

    def references(self, start: int = 0) -> Iterator[SampleReference]:
        """The references from position `start` on, without end, with the rows of datasets that are streamed."""
        for reference in self.schedule.references(start):
            stream = self.streams.get(reference.dataset)
            if stream is None:
                yield reference
                continue
            draw = reference.draw
            partner = stream.partner(draw) if reference.dataset in self.mixed else None
            yield reference._replace(row=draw, stored=stream.row(draw), partner=partner)


def dealt_out(rows: Sequence[Any], costs: Sequence[float], batch_size: int) -> list:
    """The rows, in an order in which batches of `batch_size` of them cost about the same.

    The most expensive rows come first, each goes to the batch that is the cheapest so far and not full; within a batch
    they keep their order.
    """
    batches = [[] for _ in range(math.ceil(len(rows) / batch_size))]
    if len(batches) < 2 or len(set(costs)) < 2:
        return list(rows)
    cheapest = [(0, index) for index in range(len(batches))]
    for row in sorted(range(len(rows)), key=lambda index: -costs[index]):  # stable
        cost, index = heapq.heappop(cheapest)
        batches[index].append(row)
        if len(batches[index]) < batch_size:
            heapq.heappush(cheapest, (cost + costs[row], index))
    return [rows[row] for batch in batches for row in sorted(batch)]
