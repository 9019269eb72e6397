# SPDX-License-Identifier: Apache-2.0
"""Batches on their way into the model: whose rows they have, their pixels normalised, the operations that they
take."""

from operator import attrgetter
from typing import Any

import torch
from torch import nn

from ..model.encoders_cover import encoder_adapter
from ..model.modeling_cover import CoverForVideoClassification
from ..model.video_processing_cover import CoverVideoProcessor


def head_ids_of(batch: dict[str, Any]) -> torch.Tensor:
    """(rows,), the head of each row of a training batch."""
    if "head_ids" not in batch:
        raise ValueError("a training batch needs head_ids, which say whose row is whose: see collate_clips")
    return batch["head_ids"]


def rows_of_heads(head_ids: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(heads,), the rows of each head."""
    # As torch.bincount, which would wait for the device to learn its length.
    return (head_ids[:, None] == torch.arange(num_heads, device=head_ids.device)).sum(dim=0)


def normalized(batch: dict[str, Any], processor: object) -> dict[str, Any]:
    """The batch with clips (B, T, C, H, W) as the model takes them. They come as bytes; floats are ready."""
    clips = batch["pixel_values"]
    if not isinstance(clips, list):
        return {**batch, "pixel_values": _normalized(clips, processor)}
    return {**batch, "pixel_values": [_normalized(group, processor) for group in clips]}


def _normalized(clips: torch.Tensor, processor: object) -> torch.Tensor:
    if clips.is_floating_point():
        return clips
    if not isinstance(processor, CoverVideoProcessor):
        raise ValueError("clips of bytes need the processing_class that normalises them: a CoverVideoProcessor")
    return processor.normalize_pixels(clips)


def encoder_operations(model: CoverForVideoClassification, clips: torch.Tensor | list[torch.Tensor]) -> int:
    """Operations of a training step: for each parameter of the layers and each token 2 forward, 2 for its gradient if
    it is trained, and 2 for that of its input if something before it is. Attention and recomputation are left out."""
    frames, rows, columns = model.config.tubelet
    tokens = sum(
        group.shape[0] * -(-group.shape[1] // frames) * (group.shape[-2] // rows) * (group.shape[-1] // columns)
        for group in (clips if isinstance(clips, list) else [clips])
    )
    layers, encoder = layers_of(model), model.config.encoder
    of_tokens = None if encoder is None else encoder_adapter(encoder).patches_of_a_token
    patches = [1] * len(layers) if of_tokens is None else of_tokens(encoder)
    total, has_trained = 0, any(p.requires_grad for p in model.cover.get_input_embeddings().parameters())
    for merged, layer in zip(patches, layers, strict=True):
        # ZeRO-3 leaves an empty tensor, and says how many numbers there are.
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in layer.parameters()]
        weights, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
        total += tokens // merged * 2 * (weights + trained + has_trained * weights)
        has_trained |= trained > 0
    return total


def layers_of(model: CoverForVideoClassification) -> list[nn.Module]:
    """The layers that a clip goes through, in order; also of a model of peft's."""
    return [layer for name in model.config.layer_lists for layer in attrgetter(name)(model)]
