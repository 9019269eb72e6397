# SPDX-License-Identifier: Apache-2.0
"""Where the model looks: attention rollout over space and time.

Each layer mixes tokens three times over: temporal attention, spatial attention, and the residual streams around both.
Followed backwards from the class token through all layers, they say how much of each patch of each frame reaches it.
With divided attention that is one row vector that is multiplied by small matrices, a track or a frame at a time: the
matrix among all 1 + T * N tokens is never made. `encoder_rollout.py` is for other encoders than ours.

Axes: B clips, T frames, N patches of a frame, S = 1 + N tokens of a frame with the class token.
"""

import torch

from ..model.encoders_cover import encoder_adapter
from ..model.heads_cover import attends_to_tokens
from ..model.modeling_cover import CoverForVideoClassification
from .attention_maps import (
    averaged,
    check_clips,
    label_index,
    logits_of,
    normalized,
    recorded_maps,
    with_eager_attention,
)
from .encoder_rollout import encoder_rollout, missing_for_rollout


def attention_rollout(
    model: CoverForVideoClassification,
    pixel_values: torch.Tensor,
    head: str | None = None,
    label: int | str | None = None,
) -> torch.Tensor:
    """How much of each patch of each frame reaches the feature of a clip, (B, T, H / patch, W / patch).

    Without a head, attention rollout ([Abnar and Zuidema 2020](https://arxiv.org/abs/2005.00928)): attention maps
    averaged over their heads, and the residual stream counted as half of each. With a head, for one of its labels
    ([Chefer et al. 2021](https://arxiv.org/abs/2103.15679)): what counts is the positive part of each map times the
    gradient of the label's logit. Either way the feature is followed: our class token, whose rows of spatial attention
    are averaged over frames, or what another encoder pools, see [`encoder_rollout`]. Frames that make one token share
    its relevance. Values are not negative and sum to 1 over a clip, or are all 0 where no attention speaks for the
    label.

    Args:
        model: with any attention; maps are taken from eager attention, on the same weights.
        pixel_values: (B, T, C, H, W), as the processor makes them.
        head: the name of a head.
        label: of this head, an index or a name; by default the one with the largest logit, clip by clip.

    Raises:
        ValueError: if the model has an encoder whose attention is not known, or no such head, or the head no such
            label, or attends to all tokens, or a label is given without a head.
    """
    check_clips(pixel_values)
    is_own, index = model.config.encoder is None, None
    if head is not None:
        index = label_index(model, head, label)
        if attends_to_tokens(model.config.get_head(head)):
            raise ValueError(
                f"attention rollout: head '{head}' attends to all tokens, and not to the clip's feature alone; gradient "
                "times input is there for any head"
            )
    elif label is not None:
        raise ValueError(f"label {label!r}: which head's? give `head`, too")
    if not is_own and (missing := missing_for_rollout(model.cover)) is not None:
        raise ValueError(f"attention rollout: {missing}; gradient times input is there for any encoder")
    eager = with_eager_attention(model)
    pooling_attention = () if is_own else encoder_adapter(model.config.encoder).pooling_attention
    with torch.set_grad_enabled(head is not None), recorded_maps(eager.cover, pooling_attention) as pooling:
        pixels = pixel_values.detach().clone().requires_grad_(head is not None)
        outputs = eager(pixels, head=head, output_attentions=True)
        logits = None if head is None else logits_of(outputs.logits, index)
        if is_own:
            maps = averaged([*outputs.attentions, *outputs.temporal_attentions], logits)
            spatial, temporal = maps[: len(outputs.attentions)], maps[len(outputs.attentions) :]
            relevance = _follow_class_token(spatial, temporal, pixels.shape[1], is_weighted=head is not None)
            rows = pixels.shape[-2] // model.config.tubelet[1]
            relevance = relevance.unflatten(2, (rows, -1))
        else:
            relevance = encoder_rollout(eager.cover, outputs.attentions, pooling, pixels, logits)
    return normalized(relevance.detach())


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
