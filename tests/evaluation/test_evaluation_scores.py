# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation, held against loops over rows, repeated rows and what statistics says."""

import math

import numpy as np
import pytest
from modeling_cover.data.samples import UNREADABLE
from modeling_cover.evaluation.metrics import average_precision, mean_average_precision
from modeling_cover.evaluation.scores import bootstrap_intervals, calibration_error, evaluate_scores


LABELS = ["a", "b", "c", "d", "e", "f", "g"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def random_scores(rng: np.random.Generator, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    scores = rng.dirichlet(np.ones(len(LABELS)), num_rows).astype(np.float32)
    return scores, rng.integers(0, len(LABELS), num_rows)


class TestSingleLabel:
    def test_figures_are_those_of_a_loop_over_rows(self, rng):
        scores, targets = random_scores(rng, 200)
        targets[targets == 3] = 4  # no row has it
        figures = evaluate_scores(scores, targets, LABELS, num_resamples=0)
        ranks = [sorted(range(len(LABELS)), key=lambda label: -row[label]) for row in scores]
        hits = [rank[0] == target for rank, target in zip(ranks, targets, strict=True)]
        assert figures["top1"] == pytest.approx(np.mean(hits))
        assert figures["top5"] == pytest.approx(
            np.mean([target in rank[:5] for rank, target in zip(ranks, targets, strict=True)])
        )
        of_classes = [
            np.mean([hit for hit, of in zip(hits, targets, strict=True) if of == label])
            for label in (0, 1, 2, 4, 5, 6)
        ]
        assert figures["mean_class_accuracy"] == pytest.approx(np.mean(of_classes))
        assert [entry["accuracy"] is None for entry in figures["classes"]] == [label == "d" for label in LABELS]
        assert [entry["rows"] for entry in figures["classes"]] == np.bincount(targets, minlength=7).tolist()
        assert np.sum(figures["confusion"]) == 200
        assert figures["intervals"] == {}

    def test_rows_that_cannot_be_read_count_for_nothing(self, rng):
        scores, targets = random_scores(rng, 50)
        expected = evaluate_scores(scores[:40], targets[:40], LABELS, num_resamples=20, seed=1)
        targets[40:] = UNREADABLE
        figures = evaluate_scores(scores, targets, LABELS, num_resamples=20, seed=1)
        assert figures == expected | {"rows": 50, "unreadable": 10}
        with pytest.raises(ValueError, match="not one file"):
            evaluate_scores(scores, np.full(50, UNREADABLE), LABELS)

    def test_of_fewer_than_five_classes_top_5_is_all(self):
        figures = evaluate_scores(np.array([[0.9, 0.1], [0.2, 0.8]], np.float32), np.array([1, 1]), ["a", "b"], 10)
        assert (figures["top1"], figures["top5"]) == (0.5, 1.0)


class TestCalibration:
    def test_it_is_the_mean_gap_of_bins_weighted_by_their_rows(self, rng):
        confidences, hits = rng.random(500), rng.random(500) < 0.6
        total = 0.0
        for number in range(15):
            inside = [i for i, value in enumerate(confidences) if number / 15 < value <= (number + 1) / 15]
            if inside:
                gap = abs(np.mean(hits[inside]) - np.mean(confidences[inside]))
                total += len(inside) / 500 * gap
        assert calibration_error(confidences, hits) == pytest.approx(total)

    def test_who_is_always_sure_and_wrong_is_off_by_one_and_who_says_half_and_is_half_right_by_nothing(self):
        assert calibration_error(np.ones(10), np.zeros(10, dtype=bool)) == pytest.approx(1.0)
        assert calibration_error(np.full(10, 0.5), np.arange(10) % 2 == 0) == pytest.approx(0.0)


class TestIntervals:
    def test_of_a_share_it_is_as_wide_as_the_normal_approximation_says(self, rng):
        scores, targets = np.zeros((900, 2), np.float32), np.zeros(900, dtype=int)
        scores[np.arange(900), rng.permutation(900) % 10 // 7] = 1  # seven in ten are right
        low, high = evaluate_scores(scores, targets, ["a", "b"], 2000, int(rng.integers(2**31)))["intervals"]["top1"]
        half = 1.96 * math.sqrt(0.7 * 0.3 / 900)
        assert low == pytest.approx(0.7 - half, abs=0.006)
        assert high == pytest.approx(0.7 + half, abs=0.006)

    def test_each_resample_has_as_many_rows_and_the_seed_decides_them(self):
        seen = []

        def statistics(counts: np.ndarray) -> dict[str, float]:
            seen.append(counts)
            return {"first": counts[0]}

        first = bootstrap_intervals(statistics, 12, 30, seed=3)
        assert {counts.sum() for counts in seen} == {12}
        assert bootstrap_intervals(statistics, 12, 30, seed=3) == first
        assert any(not np.array_equal(seen[0], counts) for counts in seen[1:30])


class TestSeveralLabels:
    def test_the_average_precision_of_each(self):
        scores = np.array([[0.9, 0.2, 0.5], [0.7, 0.9, 0.5], [0.5, 0.8, 0.5]], dtype=np.float32)
        targets = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=np.float32)
        figures = evaluate_scores(scores, targets, ["run", "walk", "swim"], num_resamples=50)
        assert [entry["average_precision"] for entry in figures["classes"]] == [pytest.approx(5 / 6), 1.0, None]
        assert figures["map"] == pytest.approx((5 / 6 + 1) / 2)
        low, high = figures["intervals"]["map"]
        assert low <= figures["map"] <= high
        assert not {"top1", "confusion", "ece"} & set(figures)

    def test_a_row_that_counts_twice_is_two_rows(self, rng):
        scores = rng.integers(0, 6, 40) / 6  # with ties
        has_label, counts = rng.random(40) < 0.4, rng.integers(0, 3, 40)
        has_label[0], counts[0] = True, 1
        repeated = np.repeat(np.arange(40), counts)
        once = np.ones(len(repeated))
        expected = average_precision(scores[repeated], has_label[repeated], once)
        assert average_precision(scores, has_label, counts) == pytest.approx(expected)

    def test_without_any_label_there_is_none(self):
        assert math.isnan(mean_average_precision(np.ones((3, 2)), np.zeros((3, 2), dtype=bool)))
