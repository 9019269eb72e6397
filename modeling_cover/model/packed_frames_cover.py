# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""All frames of one size in one pass, whichever clips they are of: an image is one frame more.

Everything but temporal attention looks at single tokens or single frames. So the frames of all clips lie one behind
the other, each with a copy of its clip's class token in front of its patches, and go through each layer together.

Axes, in the shapes below:

    R clips   F frames of all clips   S tokens of a frame, a class token and its patches   D hidden_size
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from .heads_cover import attends_to_tokens
from .temporal_kernel_cover import MAX_FRAMES, has_kernel, temporal_tiles, tile_rows


class PackedFrames(NamedTuple):
    """Which frames belong together; tables on the device of the frames."""

    first: torch.Tensor  # (R,), the first frame of each clip
    clip: torch.Tensor  # (F,), the clip of each frame
    spans: torch.Tensor  # (F, 2), see `mean_over_clips`
    tiles: torch.Tensor  # (P, 3), see `temporal_tiles`
    tile_rows: int
    clips: torch.Tensor  # (R or more, 2), as `spans`, of each clip; on the CPU
    is_patch: torch.Tensor  # (S, 1), 0 for the class token and 1 for patches
    only_images: bool
    scales: torch.Tensor | None = None  # (3, F, 1, 1), what drop path multiplies the residual branches of a layer by

    def with_one_class_token(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(F, S, D) with the class token of each clip's first frame in all of its frames."""
        first = self.first.index_select(0, self.clip).to(hidden_states.device)
        class_tokens = hidden_states[:, 0].index_select(0, first)
        return torch.cat([class_tokens[:, None], hidden_states[:, 1:]], dim=1)

    def class_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(F, S, D) to (R, D)."""
        return hidden_states[:, 0].index_select(0, self.first.to(hidden_states.device))  # layers may be on several


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _packed(
    shapes: tuple[tuple[int, int], ...], num_patches: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> PackedFrames:
    lengths = [length for count, length in shapes for _ in range(count)]
    ends = torch.tensor(lengths).cumsum(0)
    first, clip = ends - torch.tensor(lengths), torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    spans = torch.stack([first, torch.tensor(lengths)], dim=1)[clip].int()
    rows = tile_rows(max(lengths), dtype, head_dim, device)
    clips = list(zip(first.tolist(), lengths, strict=True))
    tiles = temporal_tiles(clips, num_patches, rows)
    is_patch = torch.ones(1 + num_patches, 1)
    is_patch[0] = 0
    # Two at least, as a compiler makes a program of its own for a size of 1: a clip without frames is none.
    clips = _of_any_length(torch.tensor([*clips, (0, 0)]))
    # For a mixture that is new; the CPU need not wait until the device has done all before.
    first, clip, spans, tiles, is_patch = (
        table.to(device, non_blocking=True) for table in (first, clip, spans, tiles, is_patch)
    )
    first, clip, spans, tiles = map(_of_any_length, (first, clip, spans, tiles))
    return PackedFrames(first, clip, spans, tiles, rows, clips, is_patch, max(lengths) == 1)


def _of_any_length(tensor: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Have a compiled layer take other lengths of an axis from its first program on."""
    torch._dynamo.maybe_mark_dynamic(tensor, axis)
    return tensor


def packed_frames(groups: Sequence[torch.Tensor], num_patches: int, head_dim: int, dtype: torch.dtype) -> PackedFrames:
    """Which frames belong together, of groups of clips (B, T, C, H, W); `dtype` is that of products."""
    shapes = tuple((len(clips), clips.shape[1]) for clips in groups)
    return _packed(shapes, num_patches, head_dim, dtype, groups[0].device)


def _product_dtype(model: nn.Module, device: torch.device) -> torch.dtype:
    """What a linear layer of the model returns on a device."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return model.embeddings.patch_embeddings.projection.weight.dtype


def _by_frame_size(groups: Sequence[torch.Tensor]) -> list[list[int]]:
    """The indices of groups of clips (B, T, C, H, W), those of one height and width together."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index, clips in enumerate(groups):
        sizes.setdefault(tuple(clips.shape[-2:]), []).append(index)
    return list(sizes.values())


def _in_groups(
    pooled: Sequence[torch.Tensor], indices: list[list[int]], groups: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Features of the clips of each frame size, (rows, D), put back into the order of the groups."""
    found = {}
    for features, members in zip(pooled, indices, strict=True):
        found |= zip(members, features.split([len(groups[index]) for index in members]), strict=True)
    return torch.cat([found[index] for index in range(len(groups))])


def packed_features(model: nn.Module, groups: Sequence[torch.Tensor], **kwargs: Any) -> torch.Tensor:
    """The feature of each clip of some groups, (rows, D), of a [`CoverModel`]: one pass for all of one height and
    width. `kwargs` are of its layers.

    Raises:
        ValueError: if there is no group, or one is not of clips (B, T, C, H, W) in whole patches; or they cannot go
            together: of more than 128 frames, with dropout of attention, or where something is to be recorded.
    """
    if not groups:
        raise ValueError("pixel_values: an empty list of clip groups")
    for clips in groups:
        model.embeddings.patch_embeddings.check(clips)
    if (reason := _why_apart(model, groups, model.training, kwargs)) is not None:
        raise ValueError(f"pixel_values: a list of groups, which cannot go through the layers together: {reason}")
    dtype, pooled, sizes = model.embeddings.patch_embeddings.projection.weight.dtype, [], _by_frame_size(groups)
    for members in sizes:
        hidden_states = model.embeddings([groups[index].to(dtype) for index in members])
        products = _product_dtype(model, hidden_states.device)
        sizes_of_tokens = hidden_states.shape[1] - 1, model.config.hidden_size // model.config.num_attention_heads
        frames = packed_frames([groups[index] for index in members], *sizes_of_tokens, products)
        if model.training and model.embeddings.dropout.p > 0:
            hidden_states = frames.with_one_class_token(hidden_states)
        for layer, scales in zip(model.layers, _drop_path(model, frames), strict=True):
            hidden_states = layer(_of_any_length(hidden_states), frames._replace(scales=scales), **kwargs)
        pooled.append(model.layernorm(frames.class_tokens(hidden_states)))
    return _in_groups(pooled, sizes, groups)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _on_device(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Copied once: the CPU would wait at each step until the device has done all before."""
    return torch.tensor(numbers, device=device)


def _drop_path(model: nn.Module, frames: PackedFrames) -> Sequence[torch.Tensor | None]:
    """What multiplies the residual branches of each layer, drawn for all layers at once, and for whole clips. No rate
    is in the layers' programs, so that they share them."""
    rates = tuple(layer.drop_path.rate for layer in model.layers)
    if not model.training or not any(rates):
        return [None] * len(rates)
    device, num_clips = frames.first.device, len(frames.first)
    rates = _on_device(rates, device)[:, None, None]
    scales = (torch.rand(len(rates), 3, num_clips, device=device) >= rates) / (1 - rates)
    scales = scales.index_select(2, frames.clip)[..., None, None]
    return [_of_any_length(part, axis=1) for part in scales.unbind()]


def num_passes(model: nn.Module, groups: Sequence[torch.Tensor]) -> int:
    """How often groups of clips go through the layers of a [`CoverModel`] in training."""
    return len(_by_frame_size(groups)) if can_pack(model, groups, training=True) else len(groups)


def can_pack(model: nn.Module, groups: Sequence[torch.Tensor], training: bool, **kwargs: Any) -> bool:
    """Whether groups of clips can go through a [`CoverModel`] together, where this is faster. `kwargs` are of its
    forward pass.

    On CPUs it is slower than one group after the other, and a whole model that is compiled or exported is one program
    for each mixture: there the groups are given one by one, as where something is to be recorded on the way, or a head
    needs the tokens, which are not returned.
    """
    if torch.compiler.is_compiling() or any(map(attends_to_tokens, model.config.heads.values())):
        return False
    if not all(isinstance(clips, torch.Tensor) and clips.ndim == 5 and 0 not in clips.shape for clips in groups):
        return False  # for the error, or the empty result, that one by one they get
    device = groups[0].device
    is_right = device.type in model.packing_devices and (device.type == "cpu" or has_kernel(device))
    return is_right and _why_apart(model, groups, training, kwargs) is None


def _why_apart(
    model: nn.Module, groups: Sequence[torch.Tensor], training: bool, kwargs: Mapping[str, Any]
) -> str | None:
    """Why groups of clips must go through the layers one by one, if they must."""
    config = model.config
    for name in ("output_hidden_states", "output_attentions", "output_temporal_attentions"):
        asked = kwargs.get(name)
        if getattr(config, name, False) if asked is None else asked:
            return f"{name} is asked for"
    if training and config.attention_probs_dropout_prob > 0:
        return "attention_probs_dropout_prob is not 0"
    if (longest := max(clips.shape[1] for clips in groups)) > MAX_FRAMES:
        return f"a clip of {longest} frames, at most {MAX_FRAMES} can"
    return None


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a layer is no more than a product, so that its weight can be used past it: no adapter, no hook, no
    quantised weight."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    is_plain = type(module) is nn.Linear and type(module.weight) is nn.Parameter
    return is_plain and not any(hooks) and "forward" not in module.__dict__
