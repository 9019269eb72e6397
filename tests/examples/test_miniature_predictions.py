# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis said beforehand, beside what training gave: the arithmetic and the section of the report."""

import numpy as np
import pytest
from miniature.data import MOMENTS
from miniature.plan import plan_runs
from miniature.predictions import draw_predictions, points, predictions_section, rank_correlation, spearman
from PIL import Image
from test_miniature import diagnosis_of, made_up


def test_ranks_are_compared_and_equal_values_share_theirs():
    assert spearman(np.array([1.0, 2.0, 30.0]), np.array([-5.0, 0.0, 0.1])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2.0, 30.0]), np.array([5.0, 0.0, -0.1])) == pytest.approx(-1)
    # As scipy.stats.spearmanr has it.
    assert spearman(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.9486833)


def test_an_interval_is_around_the_correlation_and_what_is_unknown_is_left_out():
    rng = np.random.default_rng(1)
    predicted = rng.normal(size=40)
    value, low, high = rank_correlation(predicted, predicted + rng.normal(size=40))
    assert low < value < high
    assert 0 < low < 0.8
    with_gaps = np.append(predicted, np.nan)
    assert rank_correlation(with_gaps, np.append(predicted, 5.0))[0] == pytest.approx(1)
    assert np.isnan(rank_correlation(np.array([1.0, np.nan, 2.0]), np.ones(3))[0])


@pytest.fixture
def results():
    """`moves` gains where its motions are shared, and the diagnoses say so."""
    gains = {"none": -0.05, "half": 0.05, "all": 0.15}
    found = made_up({f"videos_{overlap}": {"moves": 0.5 + gain} for overlap, gain in gains.items()})
    for metrics in found.seeds:
        for overlap, gain in gains.items():
            names = ["outfits", "moves", MOMENTS[overlap]]
            metrics[f"diagnosis_of_videos_{overlap}"]["diagnosis"] = diagnosis_of(names, effect=-gain)
    return found


def test_a_point_is_a_dataset_that_was_trained_alone_for_as_many_steps(results):
    found = {(point["mixture"], point["dataset"]): point for point in points(results)}
    assert len(found) == 10
    assert ("videos_none", MOMENTS["none"]) not in found
    point = found["videos_all", "moves"]
    np.testing.assert_allclose(point["gain"], [16, 17])  # made up: a point more in each seed
    assert point["effect"] == pytest.approx(0.15)
    assert point["cosine"] == pytest.approx(0.1)


def test_what_a_seed_cannot_tell_is_not_guessed(results):
    diagnosis = results.seeds[0]["diagnosis_of_videos_all"]["diagnosis"]
    diagnosis["signal_cosine"]["moves"]["outfits"] = {"mean": None}
    found = {(point["mixture"], point["dataset"]): point for point in points(results)}
    assert np.isnan(found["videos_all", "moves"]["cosine"])
    assert "| videos_all | moves | ? |" in predictions_section(results, "page")[5]


def test_the_section_says_what_adapting_weights_lose(results):
    assert "none loses more than 2 points." in "\n".join(predictions_section(results, "page"))
    lost = made_up({"equal_none": {"moves": 0.2}})
    assert "more than 2 points are lost by moves, none shared (-28.5)" in "\n".join(predictions_section(lost, "page"))
    assert sum(run.name.startswith("equal_") for run in plan_runs()) == 2


def test_the_picture_is_drawn(results, tmp_path):
    draw_predictions(results, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.width > 600
