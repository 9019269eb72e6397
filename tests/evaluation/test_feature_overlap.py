# SPDX-License-Identifier: Apache-2.0
"""How far the features of two datasets lie among each other."""

import pytest
import torch
from modeling_cover.evaluation.feature_overlap import feature_overlap


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_two_halves_of_one_dataset_lie_among_each_other():
    features = torch.randn(400, 16)
    assert feature_overlap(features[:200], features[200:]) == pytest.approx(1, abs=0.1)


def test_datasets_that_lie_apart_have_no_neighbours_in_each_other():
    first, second = torch.randn(50, 16), torch.randn(80, 16)
    first[:, 0] += 20
    second[:, 1] += 20
    assert feature_overlap(first, second) == 0
    assert feature_overlap(second, first) == 0


def test_copies_are_the_nearest_neighbours():
    features = torch.randn(30, 64)
    assert feature_overlap(features, features.clone(), neighbours=1) == pytest.approx(59 / 30)


def test_it_does_not_matter_which_has_more_rows_nor_in_what_order():
    features = torch.randn(600, 16)
    overlap = feature_overlap(features[:60], features[60:])
    assert overlap == pytest.approx(1, abs=0.1)
    assert feature_overlap(features[60:], features[:60]) == pytest.approx(overlap)
    assert feature_overlap(features[:60], features[60:].flip(0)) == pytest.approx(overlap)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_row_alone_has_no_neighbours(rows):
    assert feature_overlap(torch.randn(rows, 4), torch.randn(9, 4)) is None
