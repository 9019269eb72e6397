# SPDX-License-Identifier: Apache-2.0
"""Where the model looks: attention rollout over space and time.

Each layer mixes tokens three times over: temporal attention, spatial attention, and the residual streams around both.
Followed backwards from the class token through all layers, they say how much of each patch of each frame reaches it.
With divided attention that is one row vector that is multiplied by small matrices, a track or a frame at a time: the
matrix among all 1 + T * N tokens is never made.

Axes: B clips, T frames, N patches of a frame, S = 1 + N tokens of a frame with the class token.
"""

import copy

import torch

from ..model.modeling_cover import CoverForVideoClassification


def attention_rollout(
    model: CoverForVideoClassification,
    pixel_values: torch.Tensor,
    head: str | None = None,
    label: int | str | None = None,
) -> torch.Tensor:
    """How much of each patch of each frame reaches the class token, (B, T, H / patch, W / patch).

    Without a head, attention rollout ([Abnar and Zuidema 2020](https://arxiv.org/abs/2005.00928)): attention maps
    averaged over their heads, and the residual stream counted as half of each. With a head, for one of its labels
    ([Chefer et al. 2021](https://arxiv.org/abs/2103.15679)): what counts is the positive part of each map times the
    gradient of the label's logit. Either way the class token is followed, whose rows of spatial attention are averaged
    over frames. Values are not negative and sum to 1 over a clip, or are all 0 where no attention speaks for the
    label.

    Args:
        model: with any attention; maps are taken from eager attention, on the same weights.
        pixel_values: (B, T, C, H, W), as the processor makes them.
        head: the name of a head.
        label: of this head, an index or a name; by default the one with the largest logit, clip by clip.

    Raises:
        ValueError: if the model has another encoder than ours, or no such head, or the head no such label, or a label
            is given without a head.
    """
    if (encoder := model.config.encoder) is not None:
        raise ValueError(f"attention rollout is of this package's own encoder, got a {encoder.model_type}")
    if pixel_values.ndim != 5:
        raise ValueError(f"pixel_values: expected shape (B, T, C, H, W), got {tuple(pixel_values.shape)}")
    if head is None and label is not None:
        raise ValueError(f"label {label!r}: which head's? give `head`, too")
    index = None if head is None else _label_index(model, head, label)
    eager = _with_eager_attention(model)
    if head is None:
        with torch.no_grad():
            outputs = eager(pixel_values, output_attentions=True)
        spatial = [maps.mean(dim=1) for maps in outputs.attentions]
        temporal = [maps.mean(dim=1) for maps in outputs.temporal_attentions]
    else:
        spatial, temporal = _weighted_maps(eager, pixel_values, head, index)
    relevance = _follow_class_token(spatial, temporal, pixel_values.shape[1], is_weighted=head is not None)
    relevance = relevance / relevance.sum(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(relevance.dtype).tiny)
    patch_height, patch_width = model.cover.embeddings.patch_size
    return relevance.unflatten(2, (pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width))


def _label_index(model: CoverForVideoClassification, head: str, label: int | str | None) -> int | None:
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


def _with_eager_attention(model: CoverForVideoClassification) -> CoverForVideoClassification:
    """A model of the same weights, not copies of them, so that others may use the given one at the same time."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        eager = type(model)(config)
    eager.load_state_dict(model.state_dict(), assign=True)
    return eager.requires_grad_(False).eval()


def _weighted_maps(
    model: CoverForVideoClassification, pixel_values: torch.Tensor, head: str, label: int | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each layer's maps the positive part of map times gradient, averaged over attention heads."""
    with torch.enable_grad():
        outputs = model(pixel_values.detach().clone().requires_grad_(), head=head, output_attentions=True)
        best = outputs.logits.argmax(dim=-1) if label is None else torch.full_like(outputs.logits[:, 0], label).long()
        logits = outputs.logits.gather(1, best[:, None])
        # Of one frame, temporal attention has no choice, and its maps are no part of the graph.
        maps = [*outputs.attentions, *(temporal for temporal in outputs.temporal_attentions if temporal.requires_grad)]
        gradients = torch.autograd.grad(logits.sum(), maps)
    weighted = [(a * gradient).clamp(min=0).mean(dim=1).detach() for a, gradient in zip(maps, gradients, strict=True)]
    layers = len(outputs.attentions)
    none = [torch.zeros_like(temporal[:, 0]) for temporal in outputs.temporal_attentions]
    return weighted[:layers], weighted[layers:] or none


def _follow_class_token(
    spatial: list[torch.Tensor], temporal: list[torch.Tensor], num_frames: int, is_weighted: bool
) -> torch.Tensor:
    """The patches' part of the class token's row, (B, T, N), from maps (B * T, S, S) and (B * N, T, T) of each
    layer."""
    batch_size, num_patches = spatial[0].shape[0] // num_frames, spatial[0].shape[-1] - 1
    # Rollout averages attention and residual stream; with gradients the two are added.
    half = 1.0 if is_weighted else 0.5
    class_token = spatial[0].new_ones(batch_size, 1)
    patches = spatial[0].new_zeros(batch_size, num_frames, num_patches)
    for of_space, of_time in zip(reversed(spatial), reversed(temporal), strict=True):
        # The class token attends in each frame, and the mean is taken; gradients hold that mean already.
        in_frames = class_token if is_weighted else class_token / num_frames
        rows = torch.cat([in_frames[:, None].expand(-1, num_frames, -1), patches], dim=2)  # (B, T, S)
        reached = (rows.flatten(0, 1)[:, None] @ of_space).view_as(rows)
        class_token = half * (class_token + reached[:, :, 0].sum(dim=1, keepdim=True))
        patches = half * (patches + reached[:, :, 1:])
        tracks = patches.transpose(1, 2).flatten(0, 1)[:, None]  # (B * N, 1, T)
        reached = (tracks @ of_time).view(batch_size, num_patches, num_frames).transpose(1, 2)
        patches = half * (patches + reached)
    return patches
