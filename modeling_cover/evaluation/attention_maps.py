# SPDX-License-Identifier: Apache-2.0
"""Attention maps of a model, and the logits that they are weighted for.

Axes: B clips, R rows of attention, S tokens of a row.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..model.modeling_cover import CoverForVideoClassification


class EagerMultiheadAttention(nn.MultiheadAttention):
    """The same weights and the same output, with maps of each head, of which the output is made."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # A mask among `kwargs` is of padding, which clips do not have.
        parts = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        query, key, value = (
            nn.functional.linear(*part).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts
        )
        maps = (query @ key.transpose(-1, -2) * self.head_dim**-0.5).softmax(dim=-1)
        return self.out_proj((maps @ value).transpose(1, 2).flatten(2)), maps


def with_shared_weights(model: CoverForVideoClassification) -> CoverForVideoClassification:
    """A model of the same weights, not copies of them, so that others may use the given one at the same time. None
    of them asks for a gradient."""
    shared = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    return copy.deepcopy(model, {**shared, **{id(buffer): buffer for buffer in model.buffers()}}).eval()


def with_eager_attention(model: CoverForVideoClassification) -> CoverForVideoClassification:
    """The same, with an attention that returns its maps."""
    eager = with_shared_weights(model)
    eager.set_attn_implementation("eager")
    for module in eager.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = EagerMultiheadAttention
    return eager


@contextmanager
def recorded_maps(model: nn.Module, endings: tuple[str, ...]) -> Iterator[list[torch.Tensor]]:
    """The maps (R, heads, S, S) that the modules whose names end so return beside their outputs, in the order in
    which they run."""
    maps: list[torch.Tensor] = []
    modules = [module for name, module in model.named_modules() if endings and name.endswith(endings)]
    hooks = [module.register_forward_hook(lambda *call: maps.append(call[-1][1])) for module in modules]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def averaged(maps: Sequence[torch.Tensor], logits: torch.Tensor | None) -> list[torch.Tensor]:
    """Maps (R, heads, S, S) averaged over their heads; with logits, the positive part of each map times its
    gradient."""
    if logits is None:
        return [each.mean(dim=1) for each in maps]
    # Of one frame, temporal attention has no choice, and its maps are no part of the graph.
    gradients = iter(torch.autograd.grad(logits.sum(), [each for each in maps if each.requires_grad]))
    weighted = [each * next(gradients) if each.requires_grad else torch.zeros_like(each) for each in maps]
    return [each.clamp(min=0).mean(dim=1).detach() for each in weighted]


def label_index(model: CoverForVideoClassification, head: str, label: int | str | None) -> int | None:
    """The index of a label, given by its index or its name; None if none is given.

    Raises:
        ValueError: if there is no such head, or the head has no such label.
    """
    labels = model.config.get_head(head)["labels"]
    if label is None:
        return None
    if isinstance(label, str):
        if label not in labels:
            raise ValueError(f"head {head!r} has no label {label!r}, expected one such as {', '.join(labels[:5])}")
        return labels.index(label)
    if not 0 <= label < len(labels):
        raise ValueError(f"label must be from 0 to {len(labels) - 1} for head {head!r}, got {label}")
    return label


def logits_of(logits: torch.Tensor, label: int | None) -> torch.Tensor:
    """One logit (B,) of each clip: the label's, or the largest."""
    return logits.max(dim=-1).values if label is None else logits[:, label]


def check_clips(pixel_values: torch.Tensor) -> None:
    if pixel_values.ndim != 5:
        raise ValueError(f"pixel_values: expected shape (B, T, C, H, W), got {tuple(pixel_values.shape)}")


def normalized(relevance: torch.Tensor) -> torch.Tensor:
    """Relevance (B, T, rows, columns), not negative, so that it sums to 1 over a clip, unless it is all 0."""
    return relevance / relevance.sum(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(relevance.dtype).tiny)
