# SPDX-License-Identifier: Apache-2.0
"""The order of a mixture: exact shares, every row once a pass, the same for the same seed whatever else happens."""

import itertools
import math
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from modeling_cover.data import mixture
from modeling_cover.data.mixture import MixtureSampler, MixtureSchedule, SampleReference, permuted
from modeling_cover.recipe.mixture_recipe import MixtureRecipe


SIZES = {"ssv2": 90, "k400": 60, "imagenet": 850}
PAPER_SIZES = {"k400": 240_000, "ssv2": 169_000, "mit": 791_000, "imagenet": 1_281_000}


def drawn(schedule: MixtureSchedule, count: int, start: int = 0) -> list[SampleReference]:
    return list(itertools.islice(schedule.references(start), count))


def rows_drawn(references: list[SampleReference]) -> list[tuple[str, int]]:
    return [(reference.dataset, reference.row) for reference in references]


def scheduled(recipe: MixtureRecipe, sizes: dict[str, int], seed: int = 0, **listed: float) -> MixtureSchedule:
    return MixtureSchedule(sizes, seed, recipe.shares(sizes, listed), recipe.when_exhausted)


class TestAnEpoch:
    @pytest.mark.parametrize(
        "sizes", [SIZES, {"a": 1, "b": 2, "c": 1}, {"a": 5, "b": 1700, "c": 3000}, {"k400": 4096}]
    )
    @pytest.mark.parametrize("epoch", [0, 1, 7])
    def test_with_proportional_shares_it_holds_every_row_of_every_dataset_exactly_once(self, sizes, epoch):
        schedule = MixtureSchedule(sizes, seed=0)
        assert schedule.epoch_size == sum(sizes.values())
        references = drawn(schedule, schedule.epoch_size, start=epoch * schedule.epoch_size)
        every_row = [(name, row) for name, size in sizes.items() for row in range(size)]
        assert sorted(rows_drawn(references)) == sorted(every_row)

    def test_positions_and_draws_count_through_the_epochs(self):
        references = drawn(MixtureSchedule(SIZES, seed=0), 3500)
        assert [reference.position for reference in references] == list(range(3500))
        for name in SIZES:
            draws = [reference.draw for reference in references if reference.dataset == name]
            assert draws == list(range(len(draws)))

    def test_rows_of_a_dataset_are_shuffled_anew_in_each_pass(self):
        rows = [reference.row for reference in drawn(MixtureSchedule({"k400": 100}, seed=0), 300)]
        passes = [rows[:100], rows[100:200], rows[200:]]
        assert all(sorted(one) == list(range(100)) for one in passes)
        assert all(first != second for first, second in itertools.combinations([*passes, list(range(100))], 2))

    def test_a_dataset_that_is_drawn_more_often_than_it_has_rows_is_gone_through_again(self):
        schedule = scheduled(MixtureRecipe(sampling="equal"), {"large": 990, "small": 10})
        rows = [reference.row for reference in drawn(schedule, 1000) if reference.dataset == "small"]
        assert len(rows) == 500
        for start in range(0, 500, 10):
            assert sorted(rows[start : start + 10]) == list(range(10))


class TestShares:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(
        ("recipe", "listed"),
        [
            (MixtureRecipe(), {}),
            (MixtureRecipe(sampling="equal"), {}),
            (MixtureRecipe(sampling="temperature", temperature=3), {}),
            (MixtureRecipe(sampling="shares"), {"k400": 1, "ssv2": 0.013, "mit": 3, "imagenet": 0.3}),
        ],
    )
    def test_they_hold_over_any_stretch_of_the_run(self, recipe, listed, seed):
        schedule = scheduled(recipe, PAPER_SIZES, seed, **listed)
        shares = recipe.shares(PAPER_SIZES, listed)
        for start in (0, 123_456, 50_000_000):
            counts = Counter(reference.dataset for reference in drawn(schedule, 10_000, start))
            before, after = schedule.draws_before(start), schedule.draws_before(start + 1_000_000)
            for name, share in shares.items():
                assert abs(counts[name] - 10_000 * share) < 50
                assert abs(after[name] - before[name] - 1_000_000 * share) < 50

    def test_each_batch_mixes_the_datasets(self):
        names = [reference.dataset for reference in drawn(MixtureSchedule(SIZES, seed=0), 1000)]
        for start in range(0, 1000, 100):
            batch = names[start : start + 100]
            for name, size in SIZES.items():
                share = size / 1000
                # Five standard deviations of 100 independent draws.
                assert abs(batch.count(name) - 100 * share) < 5 * (100 * share * (1 - share)) ** 0.5

    def test_temperature_1_is_proportional_and_a_high_one_nearly_equal(self):
        sizes = {"small": 100, "large": 900}
        assert MixtureRecipe(sampling="temperature", temperature=1).shares(sizes, {}) == pytest.approx(
            {"small": 0.1, "large": 0.9}
        )
        assert MixtureRecipe(sampling="temperature", temperature=2).shares(sizes, {}) == pytest.approx(
            {"small": 0.25, "large": 0.75}
        )
        assert MixtureRecipe(sampling="temperature", temperature=1e6).shares(sizes, {})["small"] == pytest.approx(
            0.5, abs=1e-5
        )

    def test_listed_shares_are_relative_to_their_sum(self):
        shares = MixtureRecipe(sampling="shares").shares({"a": 10, "b": 10}, {"a": 3, "b": 1})
        assert shares == {"a": 0.75, "b": 0.25}

    @pytest.mark.parametrize(
        ("sizes", "listed"),
        [((3, 4), (1, 1)), ((10, 10, 20), (1, 1, 1)), ((3, 1_000_000), (0.35, 0.65)), ((1, 2), (0.9, 0.1))],
    )
    def test_shares_hold_over_many_epochs_however_small_they_are(self, sizes, listed):
        names = "abc"[: len(sizes)]
        sizes, listed = dict(zip(names, sizes, strict=True)), dict(zip(names, listed, strict=True))
        schedule = scheduled(MixtureRecipe(sampling="shares"), sizes, **listed)
        counts = Counter(reference.dataset for reference in drawn(schedule, 10_000))
        for name in names:
            share = listed[name] / sum(listed.values())
            assert counts[name] / 10_000 == pytest.approx(share, abs=0.005)
            assert schedule.draws_before(100_000)[name] / 100_000 == pytest.approx(share, abs=0.005)
        assert schedule.epoch_size == sum(sizes.values())

    @pytest.mark.parametrize("seed", range(5))
    def test_stop_ends_an_epoch_before_any_dataset_repeats(self, seed):
        rng = random.Random(seed)
        sizes = {name: rng.randint(50, 5000) for name in "abcd"}
        listed = {name: rng.uniform(0.1, 1) for name in "abcd"}
        schedule = scheduled(MixtureRecipe(sampling="shares", when_exhausted="stop"), sizes, **listed)
        assert all(quota <= sizes[name] for name, quota in schedule.quotas.items())
        exhausted = min(sizes, key=lambda name: sizes[name] / listed[name])
        assert schedule.quotas[exhausted] == sizes[exhausted]
        rows = rows_drawn(drawn(schedule, schedule.epoch_size))
        assert len(set(rows)) == len(rows)
        total = sum(listed.values())
        for name, quota in schedule.quotas.items():
            assert quota == pytest.approx(schedule.epoch_size * listed[name] / total, abs=4)


class TestTheOrder:
    def test_it_is_the_same_from_wherever_it_is_entered(self):
        for recipe in (MixtureRecipe(), MixtureRecipe(sampling="equal")):
            references = drawn(scheduled(recipe, SIZES), 5000)
            for start in (0, 1, 999, 1000, 1001, 2047, 2048, 4321):
                assert drawn(scheduled(recipe, SIZES), 50, start) == references[start : start + 50]

    def test_draws_before_a_position_are_counted_without_drawing_them(self):
        schedule = scheduled(MixtureRecipe(sampling="equal"), {"a": 1500, "b": 7, "c": 999})
        references = drawn(schedule, 8000)
        for position in (0, 1, 1023, 1024, 2505, 2506, 2507, 7999):
            counts = Counter(reference.dataset for reference in references[:position])
            assert schedule.draws_before(position) == {name: counts[name] for name in "abc"}

    def test_it_does_not_depend_on_the_order_in_which_datasets_are_listed(self):
        for names in itertools.permutations(SIZES):
            permuted_sizes = {name: SIZES[name] for name in names}
            assert drawn(MixtureSchedule(permuted_sizes, 0), 2000) == drawn(MixtureSchedule(SIZES, 0), 2000)

    def test_it_neither_reads_nor_changes_the_global_random_states(self):
        def draw_after_seeding(seed: int) -> tuple[list[SampleReference], tuple[float, ...]]:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            references = drawn(MixtureSchedule(SIZES, seed=0), 1000)
            return references, (random.random(), np.random.rand(), torch.rand(()).item())

        order, _ = draw_after_seeding(1)
        other_order, drawn_afterwards = draw_after_seeding(2)
        assert order == other_order
        random.seed(2)
        np.random.seed(2)
        torch.manual_seed(2)
        assert drawn_afterwards == (random.random(), np.random.rand(), torch.rand(()).item())

    def test_it_differs_between_epochs_and_between_seeds(self):
        orders = [
            rows_drawn(drawn(MixtureSchedule(SIZES, seed), 1000, epoch * 1000))
            for seed, epoch in itertools.product((0, 1), (0, 1, 2))
        ]
        assert all(first != second for first, second in itertools.combinations(orders, 2))

    def test_a_row_costs_the_same_however_far_the_run_is(self, monkeypatch):
        permuted_rows = []

        def counted(indices: np.ndarray, *args: np.ndarray) -> np.ndarray:
            permuted_rows.append(len(indices))
            return permuted(indices, *args)

        monkeypatch.setattr(mixture, "permuted", counted)
        for start in (0, 50_000_000):
            schedule = MixtureSchedule({name: 100 * size for name, size in PAPER_SIZES.items()}, seed=0)
            permuted_rows.clear()
            assert drawn(schedule, 20_000, start)[0].position == start
            # Each of its block once: no block is longer than 1024 rows and those that rounding adds.
            assert sum(permuted_rows) < 20_000 + 2 * 1028 and len(permuted_rows) <= 21


class TestPermuted:
    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4096, 4097])
    def test_it_is_a_permutation_of_any_size(self, size):
        keys = np.random.default_rng(size).integers(2**64, size=(12, 1), dtype=np.uint64)
        result = permuted(np.arange(size), np.full(size, size), np.repeat(keys, size, axis=1))
        assert sorted(result.tolist()) == list(range(size))

    def test_every_index_goes_to_every_place_equally_often(self):
        size, draws = 7, 20_000
        keys = np.random.default_rng(0).integers(2**64, size=(12, draws), dtype=np.uint64)
        for index in range(size):
            counts = np.bincount(permuted(np.full(draws, index), np.full(draws, size), keys), minlength=size)
            chi_squared = ((counts - draws / size) ** 2 / (draws / size)).sum()
            assert chi_squared < 27.9  # of 6 degrees of freedom, exceeded once in 10,000

    def test_two_neighbours_go_to_every_pair_of_places_equally_often(self):
        size, draws = 6, 60_000
        keys = np.random.default_rng(1).integers(2**64, size=(12, draws), dtype=np.uint64)
        first, second = (permuted(np.full(draws, index), np.full(draws, size), keys) for index in (2, 3))
        counts = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
        expected = draws / (size * (size - 1))
        apart = counts[~np.eye(size, dtype=bool)]
        assert counts.trace() == 0
        assert ((apart - expected) ** 2 / expected).sum() < 66.2  # of 29 degrees of freedom, once in 10,000


class TestTheSampler:
    def test_an_epoch_of_training_is_whole_steps_and_the_next_goes_on_behind_it(self):
        schedule = MixtureSchedule(SIZES, seed=0)
        sampler = MixtureSampler(schedule, step_size=64)
        assert len(sampler) == 1024
        references = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            assert len(list(sampler)) == 1024
            references.extend(sampler)
        assert references == drawn(schedule, 3 * 1024)

    @pytest.mark.parametrize("num_processes", [1, 2, 4])
    @pytest.mark.parametrize("num_workers", [0, 1, 4])
    def test_workers_and_processes_together_draw_each_sample_once_in_the_same_order(self, num_processes, num_workers):
        global_batch = 16
        sampler = MixtureSampler(MixtureSchedule(SIZES, seed=0), global_batch)
        loaders = []
        for rank in range(num_processes):
            batches = torch.utils.data.BatchSampler(sampler, global_batch // num_processes, drop_last=False)
            loaders.append(
                torch.utils.data.DataLoader(
                    _Echo(),
                    batch_sampler=BatchSamplerShard(batches, num_processes, rank),
                    num_workers=num_workers,
                    collate_fn=list,
                )
            )
        steps = list(zip(*loaders, strict=True))
        in_order = [reference for step in steps for batch in step for reference in batch]
        assert in_order == drawn(MixtureSchedule(SIZES, seed=0), math.ceil(1000 / global_batch) * global_batch)

    def test_references_are_plain_values_that_go_to_a_worker_as_they_are(self):
        reference = next(iter(MixtureSampler(MixtureSchedule(SIZES, seed=0))))
        assert [type(value) for value in reference] == [str, int, int, int, type(None), type(None)]
        assert pickle.loads(pickle.dumps(reference)) == reference  # noqa: S301

    def test_a_streamed_dataset_sends_its_examples_along_in_the_order_of_its_draws(self):
        sampler = MixtureSampler(MixtureSchedule(SIZES, seed=0), streams={"ssv2": _Letters()})
        references = list(sampler)
        streamed = [reference for reference in references if reference.dataset == "ssv2"]
        assert [reference.stored for reference in streamed] == [f"row {draw}" for draw in range(90)]
        assert [reference.row for reference in streamed] == list(range(90))
        assert all(reference.stored is None for reference in references if reference.dataset != "ssv2")
        assert all(reference.partner is None for reference in references)
        mixed = MixtureSampler(MixtureSchedule(SIZES, seed=0), streams={"ssv2": _Letters()}, mixed=["ssv2"])
        partners = [reference.partner for reference in mixed if reference.dataset == "ssv2"]
        assert partners == [f"partner of {draw}" for draw in range(90)]

    @pytest.mark.parametrize(("num_processes", "batch_size"), [(1, 16), (2, 32), (4, 16), (8, 1)])
    def test_rows_are_dealt_out_so_that_batches_cost_about_the_same_and_steps_hold_what_they_held(
        self, num_processes, batch_size
    ):
        costs = {"ssv2": 16, "k400": 16, "imagenet": 1}
        schedule = MixtureSchedule({"ssv2": 200, "k400": 100, "imagenet": 700}, seed=0)
        plain = list(MixtureSampler(schedule, 64))
        balanced = list(MixtureSampler(schedule, 64, batch_size=batch_size, costs=costs))
        spreads = {}
        for name, references in {"plain": plain, "balanced": balanced}.items():
            steps = [references[start : start + 64] for start in range(0, len(references), 64)]
            spreads[name] = max(
                max(batch) - min(batch)
                for step in steps
                for batch in [
                    [
                        sum(costs[row.dataset] for row in step[first : first + batch_size])
                        for first in range(0, 64, batch_size)
                    ]
                ]
            )
            expected = [sorted(row.position for row in step) for step in steps]
            assert expected == [list(range(64 * step, 64 * step + 64)) for step in range(len(steps))]
        assert spreads["balanced"] <= 16  # one clip, which cannot be divided
        if batch_size in (16, 32):
            assert spreads["plain"] > 3 * spreads["balanced"]

    def test_where_all_cost_the_same_they_stay_in_order(self):
        schedule = MixtureSchedule(SIZES, seed=0)
        dealt = MixtureSampler(schedule, 64, batch_size=8, costs=dict.fromkeys(SIZES, 8))
        assert list(dealt) == list(MixtureSampler(schedule, 64))

    def test_a_step_is_a_whole_number_of_batches(self):
        with pytest.raises(ValueError, match="a step of 64 rows is no whole number of batches of 24"):
            MixtureSampler(MixtureSchedule(SIZES, seed=0), 64, batch_size=24)

    def test_what_is_skipped_is_counted_and_the_rest_is_as_ever(self):
        sampler = MixtureSampler(MixtureSchedule(SIZES, seed=0), step_size=64)
        sampler.set_epoch(1)
        whole = list(sampler)
        sampler.skip(256)
        assert list(sampler) == [None] * 256 + whole[256:]
        assert len(sampler) == len(whole)

    def test_a_run_goes_on_without_drawing_what_it_has_had_however_far_it_was(self, monkeypatch):
        """Through the wrapper that Trainer puts around a loader to go on from a checkpoint."""
        schedule = MixtureSchedule({"k400": 24_000_000, "imagenet": 76_000_000}, seed=0)
        sampler = MixtureSampler(schedule, step_size=64)
        sampler.skip(10_000_000)
        loader = torch.utils.data.DataLoader(_Echo(), 64, sampler=sampler, collate_fn=list)
        blocks, block = [], schedule._block
        monkeypatch.setattr(schedule, "_block", lambda *place: blocks.append(place) or block(*place))
        batch = next(iter(skip_first_batches(loader, 10_000_000 // 64)))
        assert [reference.position for reference in batch] == list(range(10_000_000, 10_000_064))
        assert len(blocks) <= 2


class _Echo(torch.utils.data.Dataset):
    def __getitem__(self, reference: SampleReference) -> SampleReference:
        return reference


class _Letters:
    def row(self, draw: int) -> str:
        return f"row {draw}"

    def partner(self, draw: int) -> str:
        return f"partner of {draw}"


class TestBadInput:
    @pytest.mark.parametrize("sizes", [{}, {"k400": 0}, {"k400": 10, "ssv2": -1}])
    def test_there_is_a_dataset_and_each_has_rows(self, sizes):
        with pytest.raises(ValueError, match="expected at least one dataset, each with rows, got") as error:
            MixtureSchedule(sizes, seed=0)
        assert repr(sizes) in str(error.value)

    def test_a_share_too_small_to_be_drawn_is_named(self):
        with pytest.raises(ValueError, match="the share of tiny is less than one draw of an epoch"):
            scheduled(MixtureRecipe(sampling="shares"), {"large": 100, "tiny": 100}, large=1, tiny=1e-6)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"sampling": "random"}, "sampling must be one of"),
            ({"when_exhausted": "loop"}, "when_exhausted must be one of"),
            ({"sampling": "temperature", "temperature": 0}, "temperature must be a finite number above 0, got 0"),
            ({"sampling": "temperature", "temperature": float("nan")}, "temperature must be a finite number above 0"),
            ({"temperature": 2.0}, "temperature 2.0 has no effect with sampling 'proportional'"),
        ],
    )
    def test_a_recipe_is_checked(self, fields, message):
        with pytest.raises(ValueError, match=message):
            MixtureRecipe(**fields)

    def test_shares_are_listed_for_all_datasets_and_only_where_asked_for(self):
        with pytest.raises(ValueError, match="a list a share: set `sampling: shares`"):
            MixtureRecipe().shares({"a": 1, "b": 1}, {"a": 0.5})
        with pytest.raises(ValueError, match="needs a share of each dataset, missing: b"):
            MixtureRecipe(sampling="shares").shares({"a": 1, "b": 1}, {"a": 0.5, "b": None})
