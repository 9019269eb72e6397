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
"""The order in which a mixture of data sets is drawn (section 4.1 of the paper).

Every data set is drawn in proportion to its size, so an epoch is the sum of the sizes and holds every row once. The
order is a function of the seed and of the epoch alone: it costs no file access, and knows nothing of workers,
processes or of where a run was stopped.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch


# Separates the random streams that share the run's seed: the order of samples, and each sample's augmentation.
ORDER_STREAM, SAMPLE_STREAM = 0, 1


class SampleReference(NamedTuple):
    """A sample to be decoded: row `row` of data set `dataset`, the `position`-th sample of the run.

    The position counts from 0 through all epochs. With the run's seed it decides everything random about the sample.
    """

    dataset: str
    row: int
    position: int


class MixtureSampler(torch.utils.data.Sampler[SampleReference]):
    """Yields the references of one epoch; `set_epoch` chooses which.

    Args:
        sizes: rows of each data set, by name.
        seed: the run's.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int):
        if not sizes or any(size < 1 for size in sizes.values()):
            raise ValueError(f"sizes: expected at least one data set, each with rows, got {dict(sizes)}")
        # Sorted, so that the order in which data sets are listed carries no meaning.
        self.names = sorted(sizes)
        self.sizes = np.array([sizes[name] for name in self.names])
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[SampleReference]:
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        order = np.random.default_rng([ORDER_STREAM, self.seed, self.epoch]).permutation(len(self))
        datasets = np.searchsorted(starts, order, side="right") - 1
        rows = order - starts[datasets]
        first = self.epoch * len(self)
        for index, (dataset, row) in enumerate(zip(datasets.tolist(), rows.tolist(), strict=True)):
            yield SampleReference(self.names[dataset], row, first + index)
