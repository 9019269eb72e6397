# SPDX-License-Identifier: Apache-2.0
"""The random streams of a run: all of them follow from its seed, and none from another."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch


# What separates the streams that share the run's seed: the order of samples within a block, each sample's
# augmentation, the rows that stand in for those that cannot be decoded, the order of the rows of a dataset, and, of a
# streamed one, of its shards and of the rows of a block. Other numbers would change every run, so they stay.
ORDER_STREAM, SAMPLE_STREAM, REPLACEMENT_STREAM, ROW_STREAM = 0, 1, 2, 3
SHARD_STREAM, BLOCK_STREAM = 10, 11


class Purpose(IntEnum):
    """What random numbers of a sample are drawn for. Another number for a purpose would change every run, so they
    stay."""

    # From 1, since a zero at the end of numpy's seeds means nothing: [1, 2, 0] seeds as [1, 2] does.
    FRAMES = 1
    SHORT_SIDE = 2
    CROP = 3
    FLIP = 4
    COLOR = 5
    RAND_AUGMENT = 6
    ERASING = 7
    MIX = 8
    PARTNER = 9
    TRANSFORM = 10


@dataclass(frozen=True)
class SampleRandomness:
    """The random streams of the sample at a position of a run, or of the partner that it is mixed with."""

    seed: int
    position: int
    is_partner: bool = False

    def of(self, purpose: Purpose) -> np.random.Generator:
        """A new generator, at the start of the stream for one purpose."""
        return np.random.default_rng(self._entropy(purpose))

    @contextmanager
    def seeding_torch(self, purpose: Purpose) -> Iterator[None]:
        """While it is open, torchvision's transforms draw from the stream for one purpose, afterwards as before."""
        seed = np.random.SeedSequence(self._entropy(purpose)).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also set the generators of GPUs, and these are not put back.
            torch.default_generator.manual_seed(int(seed))
            yield

    def of_partner(self) -> "SampleRandomness":
        """The streams for the crop, the colours and so on of the clip that the sample is mixed with."""
        return replace(self, is_partner=True)

    def _entropy(self, purpose: Purpose) -> list[int]:
        branch = [Purpose.PARTNER] if self.is_partner else []
        return [SAMPLE_STREAM, self.seed, self.position, *branch, purpose]
