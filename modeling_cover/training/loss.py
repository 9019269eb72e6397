# SPDX-License-Identifier: Apache-2.0
"""The loss of a step: the weighted sum of the losses of all datasets (section 3.3 of the paper)."""

import torch


LOSS_REDUCTIONS = ("per_dataset", "per_sample")


def step_loss(
    head_losses: torch.Tensor,
    rows: torch.Tensor,
    rows_of_step: torch.Tensor,
    weights: torch.Tensor,
    reduction: str = "per_dataset",
) -> torch.Tensor:
    """A batch's part of the loss of its optimizer step. Summed over all batches of the step, it is

        sum over datasets i of  weights[i] * mean over the rows of dataset i of their loss      "per_dataset"
        sum over datasets i of  weights[i] * sum over the rows of dataset i of their loss       "per_sample"
                                / rows of all datasets

    whichever batches the rows of the step are spread over.

    Args:
        head_losses: (heads,), the mean loss of each head over its rows of the batch.
        rows: (heads,), the rows of each head in the batch.
        rows_of_step: (heads,), the rows of each head in the step: of all processes and accumulation steps.
        weights: (heads,), the weight of each dataset's loss, w in the paper.
        reduction: "per_dataset", as the paper has it, or "per_sample".

    Returns:
        A scalar.
    """
    sums = head_losses * rows
    divisor = rows_of_step.sum() if reduction == "per_sample" else rows_of_step
    return (weights * sums / divisor.clamp(min=1)).sum()
