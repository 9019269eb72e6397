# SPDX-License-Identifier: Apache-2.0
"""How much each patch of each frame adds to a label's logit: by attention rollout, or by gradient times input."""

import torch

from ..model.heads_cover import attends_to_tokens
from ..model.modeling_cover import CoverForVideoClassification
from .attention_maps import check_clips, label_index, logits_of, normalized, with_shared_weights
from .encoder_rollout import bytes_of_maps, missing_for_rollout
from .rollout import attention_rollout


METHODS = {"rollout": "Attention rollout", "gradient": "Gradient times input"}

MOST_BYTES_OF_MAPS = 2 * 2**30  # of all attention maps, which rollout holds at once


def default_method(model: CoverForVideoClassification, pixel_values: torch.Tensor, head: str | None = None) -> str:
    """Of `METHODS`: rollout, unless the encoder's attention is not known, or its maps of these clips (B, T, C, H, W)
    take more than 2 GiB, or the head, by default the default one, attends to all tokens."""
    if attends_to_tokens(model.config.get_head(head or model.config.default_head)):
        return "gradient"
    if model.config.encoder is None:
        return "rollout"
    if missing_for_rollout(model.cover) is not None:
        return "gradient"
    return "rollout" if bytes_of_maps(model.cover, pixel_values.shape) <= MOST_BYTES_OF_MAPS else "gradient"


def label_relevance(
    model: CoverForVideoClassification,
    pixel_values: torch.Tensor,
    head: str,
    label: int | str | None = None,
    method: str | None = None,
) -> torch.Tensor:
    """What each patch of each frame adds to a label's logit, (B, T, H / patch, W / patch), by one of `METHODS`: see
    [`attention_rollout`] and [`gradient_times_input`]. By default by [`default_method`].

    Raises:
        ValueError: as they do, and if there is no such method.
    """
    method = default_method(model, pixel_values, head) if method is None else method
    if method not in METHODS:
        raise ValueError(f"method: expected one of {list(METHODS)}, got {method!r}")
    explain = attention_rollout if method == "rollout" else gradient_times_input
    return explain(model, pixel_values, head, label)


def gradient_times_input(
    model: CoverForVideoClassification,
    pixel_values: torch.Tensor,
    head: str,
    label: int | str | None = None,
    signed: bool = False,
) -> torch.Tensor:
    """What each patch of each frame adds to a label's logit, (B, T, H / patch, W / patch), to first order.

    Each pixel counts as its value times the gradient of the logit at it ([Shrikumar et al.
    2017](https://arxiv.org/abs/1605.01713), section 2), summed over a patch's pixels. What speaks against the label is
    0, and values sum to 1 over a clip, or are all 0 where nothing speaks for it. It is the same for any encoder and
    any attention. Pixels of the mean colour are 0, and so count as nothing.

    Args:
        model: with any attention that has a gradient.
        pixel_values: (B, T, C, H, W), as the processor makes them.
        head: the name of a head.
        label: of this head, an index or a name; by default the one with the largest logit, clip by clip.
        signed: leave the sums as they are: of a model that is linear, they sum to the logit without its bias.

    Raises:
        ValueError: if the model has no such head, or the head no such label.
    """
    check_clips(pixel_values)
    index = label_index(model, head, label)
    with torch.enable_grad():
        pixels = pixel_values.detach().clone().requires_grad_()
        logits = logits_of(with_shared_weights(model)(pixels, head=head).logits, index)
        (gradient,) = torch.autograd.grad(logits.sum(), pixels)
    _, patch_height, patch_width = model.config.tubelet
    products = (pixels.detach() * gradient).float().sum(dim=2)
    relevance = products.unflatten(-1, (-1, patch_width)).unflatten(-3, (-1, patch_height)).sum(dim=(-1, -3))
    return relevance if signed else normalized(relevance.clamp(min=0))
