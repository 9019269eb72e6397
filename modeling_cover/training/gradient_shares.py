# SPDX-License-Identifier: Apache-2.0
"""What each dataset of a mixture does to the encoder that all share: its share of the update, and whether the
gradients of two datasets agree.

Axes: D datasets with rows in a step, in the order of the heads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..model.configuration_cover import CoverConfig
from .loss import TrainingLoss, step_loss
from .optimization import depths, is_of_heads


@dataclass(frozen=True)
class GradientProducts:
    """Inner products of the gradients that the datasets' parts of a step's loss have in the encoder, each part with a
    weight of 1, on the CPU in fp64.

    Attributes:
        names: the datasets with rows in the step.
        by_depth: (depths, D, D), of the gradients of the embeddings, of each layer, and of what follows.
        of_updates: (D, D), of what an optimizer would make of them, see [`EncoderGradients.scales`].
    """

    names: tuple[str, ...]
    by_depth: torch.Tensor
    of_updates: torch.Tensor

    @property
    def of_gradients(self) -> torch.Tensor:
        """(D, D), of the encoder's whole gradients."""
        return self.by_depth.sum(dim=0)

    @property
    def is_finite(self) -> bool:
        return bool(self.by_depth.isfinite().all() and self.of_updates.isfinite().all())


def norms(products: torch.Tensor) -> torch.Tensor:
    """(..., D), the norms of vectors with these inner products (..., D, D)."""
    return products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def shares(products: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """(..., D), the norm of each dataset's weighted gradient, of the sum of these norms. Where all are 0, so are
    they."""
    weighted = norms(products) * torch.tensor(weights, dtype=products.dtype)
    total = weighted.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, weighted / total, 0.0)


def cosines(products: torch.Tensor) -> torch.Tensor:
    """(..., D, D), the cosines of the angles between vectors with these inner products; 0 for one that is 0."""
    lengths = norms(products)
    divisors = lengths[..., :, None] * lengths[..., None, :]
    return torch.where(divisors > 0, products / divisors, 0.0)


class EncoderGradients:
    """The gradients that the datasets of a step have in the encoder's parameters that are trained.

    They take the forward and the backward pass of one step more, each dataset's rows apart, and for as long as they
    are needed D times the memory of these parameters in fp32.

    Args:
        model: as it is trained, whole on each process.
        config: the model's.
        training_loss: of the run.
        reduction: of the loss, see [`step_loss`].
        reduce: sums a tensor over processes, all of which call the methods.

    Raises:
        ValueError: if no parameter of the encoder is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        config: CoverConfig,
        training_loss: TrainingLoss,
        reduction: str,
        reduce: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
    ):
        self.model = model
        self._names = config.head_names
        self._training_loss = training_loss
        self._reduction = reduction
        self._reduce = reduce
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and not is_of_heads(name)}
        if not trained:
            raise ValueError("the encoder is frozen: no gradients of datasets meet in it")
        self.parameters = list(trained.values())
        depth_of = depths((name for name, _ in model.named_parameters()), config.layer_lists)
        self._depths = [depth_of[name] for name in trained]
        self.num_depths = max(depth_of.values()) + 1

    def of_step(
        self, batches: Sequence[Mapping[str, Any]], rows_of_step: torch.Tensor, scale: float = 1.0
    ) -> tuple[list[str], list[torch.Tensor]]:
        """The datasets of a step, and of each parameter the gradients of their parts of its loss, (D, ...).

        Args:
            batches: those of this process, normalised.
            rows_of_step: (heads,), the rows of each head, of all processes.
            scale: what the loss is multiplied by on the way, which fp16 needs.
        """
        present = [index for index, rows in enumerate(rows_of_step.tolist()) if rows]
        sums = [torch.zeros((len(present), *p.shape), device=p.device) for p in self.parameters]
        for batch in batches:
            for place, index in enumerate(present):
                if (part := rows_of_dataset(batch, index, self._names[index])) is None:
                    continue
                loss = self._loss(part, rows_of_step) * scale
                gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total[place] += gradient
        for place, total in enumerate(sums):  # one after the other, as each is copied
            sums[place] = self._reduce(total).div_(scale)
        return [self._names[index] for index in present], sums

    def _loss(self, part: Mapping[str, Any], rows_of_step: torch.Tensor) -> torch.Tensor:
        _, (losses, rows, _) = self._training_loss.of_heads(self.model, part, may_compile=False)
        return step_loss(losses, rows, rows_of_step, torch.ones_like(losses), self._reduction)

    def scales(
        self,
        optimizer: torch.optim.Optimizer,
        gradients: Sequence[torch.Tensor],
        weights: Sequence[float],
        max_norm: float = 0.0,
    ) -> Iterator[torch.Tensor | float]:
        """What an optimizer would multiply the gradient of each parameter by in this step, at the rates before any
        schedule: its learning rate and, of Adam and AdamW, one by the root of the mean of squared gradients, this
        step's among them. Momentum is left out.

        Args:
            gradients: those of the datasets, (D, ...) of each parameter.
            weights: of the datasets' losses.
            max_norm: that gradients are clipped at; 0 if they are not.

        Raises:
            ValueError: of another optimizer, which may do anything with a gradient.
        """
        if not isinstance(optimizer, torch.optim.Adam | torch.optim.SGD):  # AdamW is an Adam
            raise ValueError(
                f"what {type(optimizer).__name__} makes of a gradient is not known: expected Adam, AdamW or SGD of torch"
            )
        group_of, of_parameters = _groups(optimizer), zip(self.parameters, gradients, strict=True)
        if isinstance(optimizer, torch.optim.SGD):
            yield from (float(_rate(group_of[parameter])) for parameter, _ in of_parameters)
            return
        summed = [
            torch.tensordot(torch.tensor(weights, device=of_datasets.device), of_datasets, dims=1)
            for of_datasets in gradients
        ]
        norm = torch.stack([part.norm().cpu() for part in summed]).norm()
        # The heads' part of the norm is not known.
        clipping = min(1.0, max_norm / (norm.item() + 1e-6)) if max_norm > 0 and norm.isfinite() else 1.0
        for parameter, part in zip(self.parameters, summed, strict=True):
            group, state = group_of[parameter], optimizer.state.get(parameter, {})
            decay, steps = group["betas"][1], 1 + float(state.get("step", 0))
            squared = part.mul_(clipping).square_().mul_(1 - decay)
            if "exp_avg_sq" in state:
                squared.add_(state["exp_avg_sq"], alpha=decay)
            yield _rate(group) / (squared.div_(1 - decay**steps).sqrt_().add_(group["eps"]))

    def length_of_step(self, optimizer: torch.optim.Optimizer, scales: Sequence[torch.Tensor | float]) -> float | None:
        """The norm of the step that an optimizer would take now by its momentum alone, at the rates before any
        schedule; None where it has none."""
        group_of, squares = _groups(optimizer), []
        for parameter, scale in zip(self.parameters, scales, strict=True):
            state = optimizer.state.get(parameter, {})
            if state.get("exp_avg") is not None:
                corrected = state["exp_avg"] / (1 - group_of[parameter]["betas"][0] ** float(state["step"]))
                squares.append((corrected * scale).norm().cpu().double() ** 2)
            elif state.get("momentum_buffer") is not None:
                squares.append((state["momentum_buffer"] * scale).norm().cpu().double() ** 2)
        return torch.stack(squares).sum().sqrt().item() if squares else None

    def products(
        self, names: Sequence[str], gradients: Sequence[torch.Tensor], scales: Iterator[torch.Tensor | float]
    ) -> GradientProducts:
        number = len(names)
        by_depth = torch.zeros(self.num_depths, number, number, dtype=torch.float64)
        of_updates = torch.zeros_like(by_depth[0])
        for depth, of_datasets, scale in zip(self._depths, gradients, scales, strict=True):
            flat, scaled = of_datasets.flatten(1), (of_datasets * scale).flatten(1)
            by_depth[depth] += (flat @ flat.T).cpu().double()
            of_updates += (scaled @ scaled.T).cpu().double()
        return GradientProducts(tuple(names), by_depth, of_updates)


def _groups(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, dict[str, Any]]:
    """The group of each parameter."""
    return {parameter: group for group in optimizer.param_groups for parameter in group["params"]}


def _rate(group: Mapping[str, Any]) -> float:
    return group.get("initial_lr", group["lr"])


def inner_products(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
    """(D, E), on the CPU in fp64, of gradients (D, ...) and others (E, ...) of the same parameters."""
    parts = (one.flatten(1) @ other.flatten(1).T for one, other in zip(first, second, strict=True))
    return sum(part.cpu().double() for part in parts)


def rows_of_dataset(batch: Mapping[str, Any], index: int, name: str) -> dict[str, Any] | None:
    """The rows of one head of a batch of `collate_clips`, by the head's index and name; None if there are none."""
    own, labels = batch["head_ids"] == index, batch["labels"]
    if not own.any():
        return None
    groups, of_groups = batch["pixel_values"], own.split([len(clips) for clips in batch["pixel_values"]])
    return {
        "pixel_values": [clips[rows] for clips, rows in zip(groups, of_groups, strict=True) if rows.any()],
        "labels": labels[own] if isinstance(labels, torch.Tensor) else {name: labels[name]},
        "head_ids": batch["head_ids"][own],
    }
