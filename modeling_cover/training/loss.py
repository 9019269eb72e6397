# SPDX-License-Identifier: Apache-2.0
"""The loss of a step: the weighted sum of the losses of all datasets (section 3.3 of the paper)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..model.configuration_cover import CoverConfig
from ..model.head_losses_cover import mixed_head_losses
from .arguments import CoverTrainingArguments
from .batches import rows_of_heads
from .labels import Labels, hits_of_heads, smoothed_labels
from .step_metrics import StepMetrics


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


def losses_and_hits(
    config: CoverConfig,
    head_logits: Mapping[str, torch.Tensor],
    labels: Labels,
    targets: Labels,
    head_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each head in a batch: the mean loss of its rows, their number, and how many are right, each (heads,).

    Args:
        head_logits: (R, L) of each head, for all rows.
        labels, head_ids: as [`~modeling_cover.collate_clips`] makes them.
        targets: the labels that the loss is of, which may be smoothed.
    """
    losses = mixed_head_losses(config, head_logits, targets, head_ids)
    return (
        torch.stack([losses[name] for name in config.head_names]),
        rows_of_heads(head_ids, len(config.head_names)),
        hits_of_heads(config, head_logits, labels, head_ids),
    )


class TrainingLoss:
    """The forward pass of a training batch, and its part of the loss of its optimizer step, see [`step_loss`].

    Args:
        config: the model's.
        weights: the weight of each dataset's loss.
        args: with the reduction, and the factor of label smoothing.
        metrics: gets the batch's losses, and its hits, which are of the labels without smoothing.
        compiled: compiles a function, or leaves it as it is. The heads' losses are some hundred small kernels.
    """

    def __init__(
        self,
        config: CoverConfig,
        weights: Mapping[str, float],
        args: CoverTrainingArguments,
        metrics: StepMetrics,
        compiled: Callable[[Callable], Callable] = lambda function: function,
    ):
        self._config = config
        self._args = args
        self.set_weights(weights)
        self._metrics = metrics
        # Where labels are a dict, shapes depend on how many rows are whose: each would be compiled anew.
        self._of_integers = compiled(losses_and_hits)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Have the weight of each dataset's loss."""
        weights = [float(weights[name]) for name in self._config.head_names]
        self.weights = torch.tensor(weights, device=self._args.device)

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Any], rows_of_step: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """The loss and the model's output for a batch of `collate_clips`, normalised; `rows_of_step` is (heads,)."""
        outputs, of_heads = self.of_heads(model, batch)
        self._metrics.add(*of_heads)
        losses, rows, _ = of_heads
        loss = step_loss(losses, rows, rows_of_step, self.weights, self._args.loss_reduction)
        # Gradients are averaged over processes, and this is a sum over them.
        return loss * self._args.world_size, outputs

    def of_heads(
        self, model: nn.Module, batch: Mapping[str, Any], may_compile: bool = True
    ) -> tuple[Any, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The model's output for a batch, and [`losses_and_hits`] of it."""
        labels, head_ids = batch["labels"], batch["head_ids"]
        targets = labels
        if factor := self._args.label_smoothing_factor:
            targets = smoothed_labels(self._config, labels, head_ids, factor)
        outputs = model(batch["pixel_values"])
        compute = self._of_integers if may_compile and isinstance(targets, torch.Tensor) else losses_and_hits
        return outputs, compute(self._config, outputs.head_logits, labels, targets, head_ids)
