# SPDX-License-Identifier: Apache-2.0
"""The loss of an evaluation: over the rows that could be decoded, and each once."""

import pytest
import torch
from modeling_cover import CoverConfig
from modeling_cover.data.samples import UNREADABLE
from modeling_cover.training.evaluation_loss import EvaluationLoss
from torch.nn import functional


CONFIG = CoverConfig(
    heads={
        "one": {"labels": ["a", "b", "c"]},
        "many": {"labels": ["x", "y"], "problem_type": "multi_label_classification"},
    },
    default_head="one",
)


class TestTheMean:
    @pytest.mark.parametrize("seed", range(3))
    def test_it_is_torchs_own_over_the_rows_that_could_be_decoded(self, seed):
        generator = torch.Generator().manual_seed(seed)
        logits, labels = torch.randn(7, 3, generator=generator), torch.randint(3, (7,), generator=generator)
        read = torch.tensor([True, True, False, True, False, True, True])
        loss = EvaluationLoss(CONFIG, torch.device("cpu"))
        for rows in (slice(0, 4), slice(4, 7)):
            own = loss.add("one", logits[rows], labels[rows].masked_fill(~read[rows], UNREADABLE))
            expected = functional.cross_entropy(logits[rows][read[rows]], labels[rows][read[rows]])
            torch.testing.assert_close(own, expected)
        assert loss.mean() == pytest.approx(functional.cross_entropy(logits[read], labels[read]).item(), rel=1e-6)

    def test_so_it_is_of_several_labels_a_row(self):
        logits, labels = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[1, 0], [0, 0]])
        loss = EvaluationLoss(CONFIG, torch.device("cpu"))
        loss.add("many", logits, labels)
        expected = functional.binary_cross_entropy_with_logits(logits, labels.float())
        assert loss.mean() == pytest.approx(expected.item(), rel=1e-6)

    def test_without_a_row_it_is_zero(self):
        loss = EvaluationLoss(CONFIG, torch.device("cpu"))
        assert loss.add("one", torch.zeros(2, 3), torch.full((2,), UNREADABLE)) == 0
        assert loss.mean() == 0

    def test_a_new_evaluation_begins_with_nothing(self):
        loss = EvaluationLoss(CONFIG, torch.device("cpu"))
        loss.add("one", torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
        loss.begin()
        assert loss.mean() == 0
