# SPDX-License-Identifier: Apache-2.0
"""Attention rollout through encoders of transformers.

A feature is a weighted mean of the last tokens: the class token, the mean of all, or what a learnt query attends to.
These weights are followed backwards through the layers, as one row vector for each clip: the matrix among all tokens
of a clip is made only where a layer has it.

Axes: B clips, G groups of tokens (the frames of a clip that are encoded one by one, or else 1), S tokens of a group.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from ..model.encoders_cover import ClassTokenPooler, EncoderAdapter, MeanPooler, encoder_adapter
from ..model.frame_pooling_cover import CoverFramePooler
from ..model.modeling_cover import CoverEncoderModel
from .attention_maps import averaged


def _along_tracks(rows: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    tracks = rows.transpose(1, 2).flatten(0, 1)[:, None]  # (B * S, 1, G)
    return (tracks @ maps).reshape(rows.shape[0], rows.shape[2], rows.shape[1]).transpose(1, 2)


# Rows (B, G, S) through one layer's maps, by what `EncoderAdapter.attends` says.
_THROUGH: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "clip": lambda rows, maps: (rows.flatten(1)[:, None] @ maps).view_as(rows),
    "frame": lambda rows, maps: (rows.flatten(0, 1)[:, None] @ maps).view_as(rows),
    "track": _along_tracks,
}


def missing_for_rollout(encoder: CoverEncoderModel) -> str | None:
    """What is not known of an encoder and is needed for attention rollout; None if nothing is missing."""
    adapter = encoder_adapter(encoder.encoder.config)
    if not adapter.attends:
        return (
            f"the adapter of {encoder.encoder.config.model_type!r} does not say what its layers attend to (`attends`)"
        )
    pools = any(name.endswith(adapter.pooling_attention) for name, _ in encoder.named_modules())
    pooler = _pooler_of_tokens(encoder)
    if not (adapter.pooling_attention and pools) and not isinstance(pooler, ClassTokenPooler | MeanPooler):
        return f"it is not known how much of each token a {type(pooler).__name__} takes"
    if encoder.config.encoder_temporal_layers:
        return "attention among the features of frames is not followed"
    return None


def _pooler_of_tokens(encoder: CoverEncoderModel) -> nn.Module:
    return encoder.pooler.of_frame if isinstance(encoder.pooler, CoverFramePooler) else encoder.pooler


def bytes_of_maps(encoder: CoverEncoderModel, shape: Sequence[int]) -> int:
    """Of all attention maps for clips of this shape (B, T, C, H, W), in fp32."""
    config, adapter = encoder.encoder.config, encoder_adapter(encoder.encoder.config)
    batch_size, num_frames, _, height, width = shape
    frames, rows, columns = adapter.tubelet(config)
    frames, before = max(num_frames // frames, 1), adapter.tokens_before(config)
    patches = (height // rows) * (width // columns)
    elements = {
        "clip": (before + frames * patches) ** 2,
        "frame": frames * (before + patches) ** 2,
        "track": patches * frames**2,
    }
    maps = sum(
        len(encoder.encoder.get_submodule(name)) * elements[attends]
        for name, attends in zip(adapter.layers, adapter.attends, strict=True)
    )
    return 4 * batch_size * encoder.config.num_attention_heads * maps


def encoder_rollout(
    encoder: CoverEncoderModel,
    layers: Sequence[torch.Tensor],
    pooling: Sequence[torch.Tensor],
    pixel_values: torch.Tensor,
    logits: torch.Tensor | None,
) -> torch.Tensor:
    """How much of each patch of each frame is in the feature of each clip, (B, T, rows, columns), to a factor.

    Args:
        encoder: the one that `layers` and `pooling` are the maps of, in the order of the forward pass.
        layers: (R, heads, S, S) of each layer.
        pooling: of the attention that pools tokens; the last is a query's, (R, heads, 1, S).
        pixel_values: (B, T, C, H, W), which they were made of.
        logits: (B,), to weight each map with the gradient of; None for rollout as it is.
    """
    config, adapter = encoder.encoder.config, encoder_adapter(encoder.encoder.config)
    maps = averaged([*layers, *pooling], logits)
    layers, pooling = maps[: len(layers)], maps[len(layers) :]
    batch_size, num_frames = pixel_values.shape[:2]
    weights = _weights_of_tokens(encoder, layers[0], pooling, batch_size)
    # With gradients, what a token has of itself says nothing of the label, unless a query has chosen it: it is taken
    # off. That is done from the start, as it is far larger than the rest.
    own = weights if logits is not None and not pooling else torch.zeros_like(weights)
    rows = weights - own
    # Rollout averages attention and residual stream; with gradients the two are added.
    half = 0.5 if logits is None else 1.0
    for attends, of_layer in zip(
        reversed([*_attended(encoder, adapter), *("clip" for _ in pooling[:-1])]),
        reversed([*layers, *pooling[:-1]]),
        strict=True,
    ):
        rows = half * (rows + _THROUGH[attends](own + rows, of_layer))
    patches = rows[:, :, adapter.tokens_before(config) :].flatten(1)
    tubelet, *patch = adapter.tubelet(config)
    grid = [size // side for size, side in zip(pixel_values.shape[-2:], patch, strict=True)]
    tubelet = min(tubelet, num_frames)  # an image is seen as often as makes one token
    if patches.shape[1] != (expected := num_frames // tubelet * math.prod(grid)):
        raise ValueError(
            f"a {config.model_type} gives {patches.shape[1]} tokens of patches, expected {expected}: see `tokens_before` "
            "of its adapter"
        )
    return patches.unflatten(1, (-1, *grid)).repeat_interleave(tubelet, dim=1)


def _attended(encoder: CoverEncoderModel, adapter: EncoderAdapter) -> list[str]:
    """What each layer attends to, in the order of the forward pass."""
    return [
        attends
        for name, attends in zip(adapter.layers, adapter.attends, strict=True)
        for _ in encoder.encoder.get_submodule(name)
    ]


def _weights_of_tokens(
    encoder: CoverEncoderModel, first: torch.Tensor, pooling: Sequence[torch.Tensor], batch_size: int
) -> torch.Tensor:
    """How much of each token (B, G, S) the feature takes, from the maps (R, S, S) of the first layer and those of the
    pooling."""
    shape = batch_size, first.shape[0] // batch_size, first.shape[-1]
    if pooling:
        return pooling[-1].reshape(shape) / (pooling[-1].shape[0] // batch_size)
    if isinstance(_pooler_of_tokens(encoder), MeanPooler):
        return first.new_full(shape, 1 / math.prod(shape[1:]))
    weights = first.new_zeros(shape)
    weights[:, :, 0] = 1 / shape[1]
    return weights
