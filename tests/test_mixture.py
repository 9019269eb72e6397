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
"""The order of a mixture: every row once an epoch, mixed, the same for the same seed and epoch whatever else happens."""

import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from modeling_cover.mixture import MixtureSampler, SampleReference


SIZES = {"ssv2": 90, "k400": 60, "imagenet": 850}


def rows_drawn(references: list[SampleReference]) -> list[tuple[str, int]]:
    return [(reference.dataset, reference.row) for reference in references]


class TestAnEpoch:
    def test_it_holds_every_row_of_every_data_set_exactly_once(self):
        sampler = MixtureSampler(SIZES, seed=0)
        references = list(sampler)
        assert len(references) == len(sampler) == 1000
        every_row = [(name, row) for name, size in SIZES.items() for row in range(size)]
        assert sorted(rows_drawn(references)) == sorted(every_row)

    def test_positions_count_its_samples(self):
        assert [reference.position for reference in MixtureSampler(SIZES, seed=0)] == list(range(1000))

    def test_positions_run_on_through_the_epochs(self):
        sampler = MixtureSampler(SIZES, seed=0)
        sampler.set_epoch(3)
        assert [reference.position for reference in sampler] == list(range(3000, 4000))

    def test_each_batch_draws_the_data_sets_in_proportion_to_their_sizes(self):
        names = [reference.dataset for reference in MixtureSampler(SIZES, seed=0)]
        for start in range(0, 1000, 100):
            batch = names[start : start + 100]
            for name, size in SIZES.items():
                share = size / 1000
                # Five standard deviations of 100 draws.
                assert abs(batch.count(name) - 100 * share) < 5 * (100 * share * (1 - share)) ** 0.5

    def test_rows_of_a_data_set_are_shuffled(self):
        rows = [reference.row for reference in MixtureSampler({"k400": 100}, seed=0)]
        assert rows != sorted(rows)
        assert sorted(rows) == list(range(100))

    def test_data_sets_of_one_row_are_drawn_too(self):
        assert sorted(rows_drawn(MixtureSampler({"a": 1, "b": 2, "c": 1}, seed=0))) == [
            ("a", 0),
            ("b", 0),
            ("b", 1),
            ("c", 0),
        ]


class TestTheOrder:
    def test_it_is_the_same_for_the_same_seed_and_epoch(self):
        first, second = MixtureSampler(SIZES, seed=7), MixtureSampler(SIZES, seed=7)
        for epoch in (0, 1, 5):
            first.set_epoch(epoch)
            second.set_epoch(epoch)
            assert list(first) == list(second)

    def test_it_does_not_depend_on_the_order_in_which_data_sets_are_listed(self):
        for names in itertools.permutations(SIZES):
            assert list(MixtureSampler({name: SIZES[name] for name in names}, seed=0)) == list(
                MixtureSampler(SIZES, seed=0)
            )

    def test_it_does_not_depend_on_what_was_drawn_before(self):
        sampler, fresh = MixtureSampler(SIZES, seed=0), MixtureSampler(SIZES, seed=0)
        list(sampler)
        next(iter(sampler))
        sampler.set_epoch(4)
        list(sampler)
        sampler.set_epoch(1)
        fresh.set_epoch(1)
        assert list(sampler) == list(fresh)

    def test_it_neither_reads_nor_changes_the_global_random_states(self):
        def draw_after_seeding(seed: int) -> tuple[list[SampleReference], tuple[float, ...]]:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            references = list(MixtureSampler(SIZES, seed=0))
            return references, (random.random(), np.random.rand(), torch.rand(()).item())

        order, _ = draw_after_seeding(1)
        other_order, drawn_afterwards = draw_after_seeding(2)
        assert order == other_order
        random.seed(2)
        np.random.seed(2)
        torch.manual_seed(2)
        assert drawn_afterwards == (random.random(), np.random.rand(), torch.rand(()).item())

    def test_it_differs_between_epochs_and_between_seeds(self):
        sampler = MixtureSampler(SIZES, seed=0)
        orders = []
        for seed, epoch in itertools.product((0, 1), (0, 1, 2)):
            sampler = MixtureSampler(SIZES, seed=seed)
            sampler.set_epoch(epoch)
            orders.append(rows_drawn(sampler))
        assert all(first != second for first, second in itertools.combinations(orders, 2))


class TestReferences:
    def test_they_hold_plain_values_that_go_to_a_worker_as_they_are(self):
        reference = next(iter(MixtureSampler(SIZES, seed=0)))
        assert [type(value) for value in reference] == [str, int, int]
        assert pickle.loads(pickle.dumps(reference)) == reference  # noqa: S301


class TestBadSizes:
    @pytest.mark.parametrize("sizes", [{}, {"k400": 0}, {"k400": 10, "ssv2": -1}])
    def test_there_is_a_data_set_and_each_has_rows(self, sizes):
        with pytest.raises(ValueError, match="expected at least one data set, each with rows, got") as error:
            MixtureSampler(sizes, seed=0)
        assert repr(sizes) in str(error.value)
