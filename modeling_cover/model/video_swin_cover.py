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
"""Video Swin Transformer (Liu et al. 2022): attention within windows of time and space, shifted in every other layer.

transformers has no such model. This one gives what torchvision's `swin3d_t`, `swin3d_s` and `swin3d_b` give, with the
attention implementations, recomputed layers and adapters of transformers' models.

Axes, in tokens: B clips   T, H, W time, rows and columns   W* windows   V tokens of a window   D channels
"""

import math
from collections.abc import Callable

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .divided_attention_cover import CoverDropPath, eager_attention_forward


# Added to the attention between tokens of a shifted window that are no neighbours in the clip.
_APART = -100.0

Size = tuple[int, int, int]


@strict
class VideoSwinConfig(PreTrainedConfig):
    r"""
    The configuration of a [`VideoSwinModel`]; by default that of torchvision's `swin3d_t`.

    Args:
        patch_size: frames, rows and columns of pixels of a token.
        embed_dim: channels of the first stage; each further one has twice as many.
        depths, num_heads: layers, and attention heads of a layer, of each stage.
        window_size: tokens of a window in time, rows and columns.
        num_frames, image_size: of the clips that it was trained on; it takes any.
    """

    model_type = "video_swin"

    patch_size: list[int] | tuple[int, ...] = (2, 4, 4)
    num_channels: int = 3
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: list[int] | tuple[int, ...] = (8, 7, 7)
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-5
    num_frames: int = 32
    image_size: int | list[int] | tuple[int, int] = 224

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    @property
    def intermediate_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def num_attention_heads(self) -> int:
        return self.num_heads[-1]

    @property
    def num_hidden_layers(self) -> int:
        return sum(self.depths)

    def validate_architecture(self) -> None:
        """Raise a `ValueError` for fields that contradict one another."""
        if len(self.depths) != len(self.num_heads) or not self.depths or min(self.depths) < 1:
            raise ValueError(
                f"expected layers and attention heads of each stage, got depths {self.depths}, num_heads {self.num_heads}"
            )
        for name in ("patch_size", "window_size"):
            if len(size := getattr(self, name)) != 3 or min(size) < 1:
                raise ValueError(f"{name} must be that of time, rows and columns, got {size}")
        if any((self.embed_dim * 2**stage) % heads for stage, heads in enumerate(self.num_heads)):
            raise ValueError(f"num_heads {self.num_heads} do not divide the channels, {self.embed_dim} at first")


class VideoSwinEmbeddings(nn.Module):
    """Projects patches of frames: (B, frames, C, height, width) to (B, T, H, W, D)."""

    def __init__(self, config: VideoSwinConfig):
        super().__init__()
        patch = tuple(config.patch_size)
        self.projection = nn.Conv3d(config.num_channels, config.embed_dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.projection(pixel_values.transpose(1, 2)).permute(0, 2, 3, 4, 1)
        return self.dropout(self.norm(tokens))


class VideoSwinAttention(nn.Module):
    """Multi-head attention among the tokens of each window, (B, T, H, W, D) to the same.

    In a layer that shifts, windows are moved by half of their size, and the clip is a ring: a window at its end has
    tokens that are no neighbours, which do not attend to one another. A window is no larger than the clip.
    """

    def __init__(self, config: VideoSwinConfig, channels: int, num_heads: int, shifts: bool):
        super().__init__()
        self.config = config
        self.window_size = tuple(config.window_size)
        self.shifts = shifts
        self.num_heads = num_heads
        self.scaling = (channels // num_heads) ** -0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        distances = math.prod(2 * size - 1 for size in self.window_size)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(distances, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(self.window_size), persistent=False)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        size = tuple(hidden_states.shape[1:4])
        window = tuple(min(sides) for sides in zip(size, self.window_size, strict=True))
        shift = tuple(
            side // 2 if self.shifts and whole > side else 0
            for whole, side in zip(size, self.window_size, strict=True)
        )
        padding = tuple(-whole % side for whole, side in zip(size, window, strict=True))
        clips = nn.functional.pad(hidden_states, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        padded = tuple(clips.shape[1:4])
        if any(shift):
            clips = torch.roll(clips, [-side for side in shift], dims=(1, 2, 3))
        attended, weights = self.attend(into_windows(clips, window), padded, window, shift, **kwargs)
        clips = from_windows(self.dropout(self.proj(attended)), padded, window)
        if any(shift):
            clips = torch.roll(clips, shift, dims=(1, 2, 3))
        return clips[:, : size[0], : size[1], : size[2]], weights

    def attend(
        self, windows: torch.Tensor, size: Size, window: Size, shift: Size, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the heads see, (B, W*, V, D), of windows of this shape, and the maps of attention, (B * W*, heads, V,
        V)."""
        num_windows = windows.shape[1]
        # Windows stand beside heads, so that one bias serves for all clips.
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(2, 3).flatten(1, 2)
            for part in self.qkv(windows).chunk(3, dim=-1)
        )
        bias = self.position_bias(math.prod(window)).expand(num_windows, -1, -1, -1)
        if any(shift):
            bias = bias + windows_apart(size, window, shift, windows.device)[:, None].to(bias.dtype)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attention_interface(
            self,
            query,
            key,
            value,
            bias.flatten(0, 1)[None].to(query.dtype),
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attended = attended.unflatten(2, (num_windows, -1)).transpose(1, 2).flatten(3)
        return attended, None if weights is None else weights.unflatten(1, (num_windows, -1)).flatten(0, 1)

    def position_bias(self, tokens: int) -> torch.Tensor:
        """Added to the attention between the first so many tokens of a window, (heads, V, V).

        Of a window that is cut to the size of the clip, rows and columns are then counted as those of a whole one: so
        it is in the release, which was trained with it.
        """
        index = self.relative_position_index[:tokens, :tokens]
        return self.relative_position_bias_table[index].permute(2, 0, 1)


class VideoSwinMerging(nn.Module):
    """Makes one token of each 2 x 2 of a frame, and doubles their channels."""

    def __init__(self, config: VideoSwinConfig, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        height, width = hidden_states.shape[2:4]
        tokens = nn.functional.pad(hidden_states, (0, 0, 0, width % 2, 0, height % 2))
        tokens = tokens.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, T, H / 2, 2, W / 2, 2, D)
        return self.reduction(self.norm(tokens.permute(0, 1, 2, 4, 5, 3, 6).flatten(4)))


class VideoSwinLayer(GradientCheckpointingLayer):
    """Attention and MLP, each pre-norm; the last of a stage merges tokens for the next one."""

    def __init__(self, config: VideoSwinConfig, stage: int, index: int):
        super().__init__()
        channels, last = config.embed_dim * 2**stage, index == config.depths[stage] - 1
        layer = sum(config.depths[:stage]) + index
        self.norm1 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attention = VideoSwinAttention(config, channels, config.num_heads[stage], shifts=index % 2 == 1)
        self.norm2 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(channels, int(channels * config.mlp_ratio))
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(int(channels * config.mlp_ratio), channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = CoverDropPath(config.drop_path_rate * layer / max(config.num_hidden_layers - 1, 1))
        merges = last and stage < len(config.depths) - 1
        self.merging = VideoSwinMerging(config, channels) if merges else nn.Identity()

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.attention(self.norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(attended)
        update = self.dropout(self.activation_fn(self.fc1(self.norm2(hidden_states))))
        return self.merging(hidden_states + self.drop_path(self.dropout(self.fc2(update))))


class VideoSwinModel(PreTrainedModel):
    """A Video Swin Transformer, without a classifier."""

    config: VideoSwinConfig
    base_model_prefix = "video_swin"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VideoSwinEmbeddings", "VideoSwinLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": VideoSwinLayer,
        "attentions": OutputRecorder(VideoSwinAttention, index=1, layer_name="attention"),
    }
    _input_embed_layer = "embeddings"

    def __init__(self, config: VideoSwinConfig):
        super().__init__(config)
        self.embeddings = VideoSwinEmbeddings(config)
        self.layers = nn.ModuleList(
            VideoSwinLayer(config, stage, index) for stage, depth in enumerate(config.depths) for index in range(depth)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VideoSwinAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=self.config.initializer_range)
            init.copy_(module.relative_position_index, relative_position_index(module.window_size))

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Clips, (B, frames, C, height, width) in whole tokens, to tokens of the last stage, (B, T * H * W, D)."""
        hidden_states = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layernorm(hidden_states).flatten(1, 3))


def relative_position_index(window: Size) -> torch.Tensor:
    """The row, in the table of biases, of each two tokens of a window, (V, V): of their distance in time, rows and
    columns."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in window))
    distances = places[:, None] - places + torch.tensor(window) - 1  # (V, V, 3), none of them negative
    _, rows, columns = (2 * side - 1 for side in window)
    return (distances * torch.tensor([rows * columns, columns, 1])).sum(dim=-1)


def into_windows(clips: torch.Tensor, window: Size) -> torch.Tensor:
    """(B, T, H, W, D) to (B, W*, V, D)."""
    for axis, side in zip((3, 2, 1), reversed(window), strict=True):
        clips = clips.unflatten(axis, (-1, side))  # (B, T', t, H', h, W', w, D)
    return clips.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)


def from_windows(windows: torch.Tensor, size: Size, window: Size) -> torch.Tensor:
    """(B, W*, V, D) to (B, T, H, W, D), `size` being T, H and W."""
    grid = tuple(whole // side for whole, side in zip(size, window, strict=True))
    clips = windows.unflatten(2, window).unflatten(1, grid)  # (B, T', H', W', t, h, w, D)
    return clips.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def windows_apart(size: Size, window: Size, shift: Size, device: torch.device) -> torch.Tensor:
    """What keeps tokens of shifted windows apart that are no neighbours in the clip, (W*, V, V)."""
    regions = torch.zeros(1, 1, 1, device=device)
    for axis, (whole, side, moved) in enumerate(zip(size, window, shift, strict=True)):
        places = torch.arange(whole, device=device)
        # What has come round from the start of the clip stands in the last window, behind what belongs there.
        region = (places >= whole - side).float() + (places >= whole - moved) if moved else torch.zeros_like(places)
        regions = 3 * regions + region.view([-1 if other == axis else 1 for other in range(3)])
    regions = into_windows(regions.expand(size)[None, ..., None], window)[0, ..., 0]
    return (regions[:, None] != regions[..., None]) * _APART


# As for transformers' own. A checkpoint's copy of this file, loaded beside it, takes its place.
AutoConfig.register(VideoSwinConfig.model_type, VideoSwinConfig, exist_ok=True)
AutoModel.register(VideoSwinConfig, VideoSwinModel, exist_ok=True)


__all__ = ["VideoSwinConfig", "VideoSwinModel"]
