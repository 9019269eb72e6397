# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis of a mixture is said to mean."""

import copy

import numpy as np
import pytest
from modeling_cover.evaluation.mixture_report import (
    dataset_table,
    draw_diagnosis,
    effect_on,
    help_of_others,
    pair_table,
    sentences,
)
from PIL import Image


def statistics(mean, error=0.001):
    return {"mean": mean, "std": error, "error": error, "steps": 24}


def of_pairs(values):
    return {row: {column: statistics(value) for column, value in of_row.items()} for row, of_row in values.items()}


@pytest.fixture
def diagnosis():
    """Two datasets that help each other."""
    return {
        "datasets": ["a", "b"],
        "measured_steps": 24,
        "rows_per_step": 16,
        "row_share": {"a": 0.25, "b": 0.75},
        "loss_weight": {"a": 1.0, "b": 0.5},
        "gradient_share": {"a": statistics(0.3), "b": statistics(0.7)},
        "update_share": {"a": statistics(0.4), "b": statistics(0.6)},
        "share_by_depth": {"a": statistics([0.2, 0.3, 0.4]), "b": statistics([0.8, 0.7, 0.6])},
        "gradient_cosine": of_pairs({"a": {"a": 1.0, "b": 0.1}, "b": {"a": 0.1, "b": 1.0}}),
        "signal_cosine": of_pairs({"a": {"a": 1.0, "b": 0.25}, "b": {"a": 0.25, "b": 1.0}}),
        "effect": of_pairs({"a": {"a": -0.02, "b": -0.01}, "b": {"a": -0.005, "b": -0.04}}),
        "feature_overlap": {"a": {"b": 0.9}, "b": {"a": 0.9}},
    }


class TestEffects:
    def test_are_in_the_measure_of_the_own_step(self, diagnosis):
        assert effect_on(diagnosis, on="b", of="a") == pytest.approx(0.25)
        assert effect_on(diagnosis, on="a", of="b") == pytest.approx(0.25)
        assert help_of_others(diagnosis, "a") == pytest.approx(0.25)

    @pytest.mark.parametrize("own", [0.02, -0.0015])
    def test_have_none_where_that_does_not_surely_lower_the_loss(self, diagnosis, own):
        diagnosis["effect"]["a"]["a"] = statistics(own)
        assert effect_on(diagnosis, on="a", of="b") is None
        assert help_of_others(diagnosis, "a") is None
        assert help_of_others(diagnosis, "b") == pytest.approx(0.25)


class TestSentences:
    def test_of_datasets_that_agree(self, diagnosis):
        (sentence,) = sentences(diagnosis)
        assert sentence == (
            "a and b pull the encoder the same way (cosine +0.25 ± 0.00). A step for b lowers the loss of a by 25% of what "
            "its own step lowers it by. A step for a lowers the loss of b by 25% of what its own step lowers it by. Train "
            "them together."
        )

    def test_of_datasets_that_do_not(self, diagnosis):
        diagnosis["signal_cosine"]["a"]["b"] = statistics(-0.2)
        diagnosis["effect"]["a"]["b"] = statistics(0.02)
        (sentence,) = sentences(diagnosis)
        assert "pull against each other (cosine -0.20 ± 0.00)" in sentence
        assert "A step for a raises the loss of b by 50%" in sentence
        assert "Try each without the other" in sentence

    def test_of_datasets_of_which_nothing_can_be_told(self, diagnosis):
        diagnosis["signal_cosine"]["a"]["b"] = statistics(0.02, error=0.02)
        diagnosis["effect"]["a"]["b"] = statistics(0.001, error=0.001)
        (sentence,) = sentences(diagnosis)
        assert "at right angles, as far as can be told (cosine +0.02 ± 0.02)" in sentence
        assert "A step for a does nothing to the loss of b that can be told from chance" in sentence
        assert "Train them together" not in sentence

    def test_of_one_that_is_harmed_though_gradients_agree(self, diagnosis):
        diagnosis["effect"]["b"]["a"] = statistics(0.005)
        assert sentences(diagnosis)[-1].endswith("Train them together, and watch a.")

    def test_of_a_small_share_of_the_update(self, diagnosis):
        diagnosis["update_share"]["b"] = statistics(0.3)
        assert sentences(diagnosis)[0] == (
            "b: 75% of the rows, and 30% of the update. Try a larger weight, or `mixture: {weights: equal_updates}`."
        )

    @pytest.mark.parametrize(
        ("own", "said"), [(0.02, "a: a step for it raises its own loss"), (-0.001, "a: a step for it does nothing")]
    )
    def test_of_a_step_that_does_not_help_its_own_dataset(self, diagnosis, own, said):
        diagnosis["effect"]["a"]["a"] = statistics(own)
        assert sentences(diagnosis)[0].startswith(said)
        assert "the loss of a by" not in sentences(diagnosis)[-1]

    def test_of_datasets_that_were_never_in_one_step(self, diagnosis):
        for key in ("signal_cosine", "gradient_cosine", "effect"):
            diagnosis[key]["a"]["b"] = {"mean": None, "std": None, "error": None, "steps": 0}
        assert "no step had rows of both" in sentences(diagnosis)[-1]
        assert "?" in pair_table(diagnosis)


class TestTables:
    def test_have_a_line_for_each_dataset_and_each_pair(self, diagnosis):
        lines = dataset_table(diagnosis).splitlines()
        assert lines[1].split() == ["a", "25%", "1", "30%", "40%", "+25%", "of", "its", "own"]
        assert len(lines) == 3
        (_, line) = pair_table(diagnosis).splitlines()
        assert line.split() == ["a,", "b", "+0.10", "±", "0.00", "+0.25", "±", "0.00", "0.90", "+25%,", "+25%"]


class TestThePicture:
    def test_is_blue_where_datasets_help_and_red_where_they_harm(self, diagnosis, tmp_path):
        def with_all(cosine, effect):
            found = copy.deepcopy(diagnosis)
            for first, second in (("a", "b"), ("b", "a")):
                found["signal_cosine"][first][second] = statistics(cosine)
                found["effect"][first][second] = statistics(effect)
            return found

        def count(found, name):
            draw_diagnosis(found, "a recipe", tmp_path / name)
            pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
            matrices = pixels[:, : pixels.shape[1] * 2 // 3]
            return ((matrices[..., 0] > matrices[..., 2] + 60).sum(), (matrices[..., 2] > matrices[..., 0] + 60).sum())

        red, blue = count(with_all(0.9, -0.03), "helpful.png")
        more_red, less_blue = count(with_all(-0.9, 0.03), "harmful.png")
        assert more_red > 2 * red
        assert less_blue < blue

    def test_can_have_any_number_of_layers_and_unknown_pairs(self, diagnosis, tmp_path):
        for name, share in (("a", 0.4), ("b", 0.6)):
            diagnosis["share_by_depth"][name] = statistics([share] * 40)
        diagnosis["effect"]["a"]["a"] = statistics(0.0)
        draw_diagnosis(diagnosis, "_hidden", tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 1000
