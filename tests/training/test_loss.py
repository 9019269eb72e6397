# SPDX-License-Identifier: Apache-2.0
"""The loss of a step against torch's cross-entropy over all of its rows, however they are spread over batches."""

import pytest
import torch
from modeling_cover.training.loss import step_loss
from torch.nn.functional import cross_entropy


WEIGHTS, CLASSES = torch.tensor([1.0, 0.25, 3.0]), 5


def rows_of_a_step(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (rows, classes), targets (rows,), and of which of three datasets each row is (rows,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, CLASSES, generator=generator, requires_grad=True)
    return logits, torch.arange(40) % CLASSES, torch.randint(3, (40,), generator=generator)


def loss_of_batches(
    logits: torch.Tensor, targets: torch.Tensor, head_ids: torch.Tensor, sizes: list[int], reduction: str
) -> torch.Tensor:
    rows_of_step, total = torch.bincount(head_ids, minlength=3), 0
    for batch in torch.arange(len(logits)).split(sizes):
        rows = torch.bincount(head_ids[batch], minlength=3)
        of_rows = cross_entropy(logits[batch], targets[batch], reduction="none")
        losses = torch.zeros(3).index_add(0, head_ids[batch], of_rows) / rows.clamp(min=1)
        total = total + step_loss(losses, rows, rows_of_step, WEIGHTS, reduction)
    return total


def expected_loss(logits: torch.Tensor, targets: torch.Tensor, head_ids: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "per_sample":
        return (cross_entropy(logits, targets, reduction="none") * WEIGHTS[head_ids]).mean()
    means = [cross_entropy(logits[head_ids == head], targets[head_ids == head]) for head in range(3)]
    return (torch.stack(means) * WEIGHTS).sum()


@pytest.mark.parametrize("reduction", ["per_dataset", "per_sample"])
@pytest.mark.parametrize("sizes", [[40], [13, 27], [1, 2, 3, 34], [8] * 5], ids=str)
def test_loss_and_gradient_are_those_of_the_whole_step(sizes, reduction):
    for seed in range(3):
        logits, targets, head_ids = rows_of_a_step(seed)
        loss = loss_of_batches(logits, targets, head_ids, sizes, reduction)
        expected = expected_loss(logits, targets, head_ids, reduction)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, logits)
        (expected_gradient,) = torch.autograd.grad(expected, logits)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", ["per_dataset", "per_sample"])
def test_a_dataset_without_rows_has_no_part_in_it(reduction):
    rows = torch.tensor([4, 0, 0])
    loss = step_loss(torch.tensor([2.0, 0.0, 0.0]), rows, rows, WEIGHTS, reduction)
    assert loss.item() == 2.0
