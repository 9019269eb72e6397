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
"""Divided space-time attention (Bertasius et al. 2021): the layer, and its attention over time or over space.

Axes, in the shapes below:

    B clips   T frames of a clip   N patches of a frame   D hidden_size
    S tokens attended to: T frames, or 1 + N, a class token and the patches of a frame
    F frames of all clips, where they are packed, see [`PackedFrames`]
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_cover import CoverConfig
from .packed_frames_cover import PackedFrames, is_plain_linear
from .temporal_kernel_cover import mean_over_clips, temporal_attention


# Tokens of a clip that go through an MLP at a time in inference: more than 16 frames of 224 x 224 pixels have.
INFERENCE_CHUNK = 4096
# The same of packed frames, on a GPU, which more tokens keep busy.
PACKED_INFERENCE_CHUNK = 4 * INFERENCE_CHUNK


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class CoverAttention(nn.Module):
    """Multi-head self-attention over the second axis of (batch, S, D)."""

    def __init__(self, config: CoverConfig):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.scaling = self.head_dim**-0.5
        self.is_causal = False

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        over_time_of: PackedFrames | None = None,
        one_product: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of packed frames, (F, 1 + N, D), attention is over their axes of time instead, with `over_time_of`; with
        `one_product`, query, key and value are projected together."""
        if over_time_of is not None:
            return self.o_proj(self.attend_over_time(hidden_states, over_time_of)), None
        if hidden_states.shape[1] == 1:
            return self.attend_to_one_key(hidden_states)
        kwargs |= {"one_product": True} if one_product else {}
        attn_output, attn_weights = self.attend(hidden_states, **kwargs)
        # Of other backends than eager they are None, or a log-sum-exp, which is no map.
        is_map = attn_weights is not None and attn_weights.ndim == 4
        return self.o_proj(attn_output), attn_weights if is_map else None

    def attend(
        self, hidden_states: torch.Tensor, one_product: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the heads see, (batch, S, D), before the output projection, and the backend's weights."""
        if one_product:
            query, key, value = (part.transpose(1, 2) for part in self.query_key_value(hidden_states).unbind(3))
        else:
            hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
            query = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
            key = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
            value = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return attn_output.reshape(hidden_states.shape), attn_weights

    def query_key_value(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, S, D) to (batch, S, heads, 3, head size): one product where nothing but a product is asked for."""
        projections, heads = (self.q_proj, self.k_proj, self.v_proj), self.num_attention_heads
        if not all(is_plain_linear(projection) for projection in projections):
            parts = [projection(hidden_states).unflatten(-1, (heads, -1)) for projection in projections]
            return torch.stack(parts, dim=3)
        # Head by head. Each projection's weight and bias in turn, so that their gradients come in the order in which
        # they come from three products: ZeRO adds up what comes in one order on all processes.
        by_head = [
            [None if part is None else part.unflatten(0, (heads, -1)) for part in (projection.weight, projection.bias)]
            for projection in projections
        ]
        weight, bias = (
            None if parts[0] is None else torch.stack(parts, dim=1).flatten(0, 2)
            for parts in zip(*by_head, strict=True)
        )
        return nn.functional.linear(hidden_states, weight, bias).unflatten(-1, (heads, 3, -1))

    def attend_over_time(self, hidden_states: torch.Tensor, frames: PackedFrames) -> torch.Tensor:
        """What the heads see of packed frames, (F, 1 + N, D); the class token does not take part."""
        if frames.only_images:
            return self.value_of_one_key(hidden_states)
        query_key_value, tables = self.query_key_value(hidden_states), (frames.tiles, frames.tile_rows, frames.clips)
        return temporal_attention(query_key_value, *tables).flatten(2)

    def attend_to_one_key(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for S = 1."""
        value = self.value_of_one_key(hidden_states)
        weights = value.new_ones(()).expand(hidden_states.shape[0], self.num_attention_heads, 1, 1)
        return self.o_proj(value), weights

    def value_of_one_key(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The one weight is 1 whatever query and key are, so the heads see the projected value.

        Query and key project zero rows: that costs nothing and gives their parameters the gradient they have in the
        general case, zero rather than none, so that distributed training does not wait for it. They come before the
        value, as in the general case, since ZeRO asks for gradients in the same order on all processes.
        """
        no_rows = hidden_states[:0]
        nothing = self.q_proj(no_rows).sum() + self.k_proj(no_rows).sum()
        return self.v_proj(hidden_states) + nothing


class CoverDropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops the residual branch of whole clips in training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return residual
        keep = torch.rand((residual.shape[0], *[1] * (residual.ndim - 1)), device=residual.device) >= self.rate
        return residual * keep.to(residual.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def add_scaled(hidden_states: torch.Tensor, update: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return hidden_states + update if scale is None else torch.addcmul(hidden_states, update, scale)


class CoverLayer(GradientCheckpointingLayer):
    """Divided space-time attention (Bertasius et al. 2021): attention over time, over space, MLP, each pre-norm."""

    def __init__(self, config: CoverConfig, layer_index: int):
        super().__init__()
        self.temporal_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_attention = CoverAttention(config)
        self.temporal_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CoverAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = CoverDropPath(config.drop_path_rate * layer_index / max(config.num_hidden_layers - 1, 1))

    def forward(
        self, hidden_states: torch.Tensor, num_frames: int | PackedFrames, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Clips of one length, (B, 1 + T * N, D), or packed frames, (F, 1 + N, D), to the same."""
        if isinstance(num_frames, PackedFrames):
            return self.forward_packed(hidden_states, num_frames, **kwargs)
        class_token = hidden_states[:, :1]  # (B, 1, D)
        patches = hidden_states[:, 1:].unflatten(1, (num_frames, -1))  # (B, T, N, D)

        patches = patches + self.drop_path(self.attend_over_time(patches, **kwargs))

        update = self.drop_path(self.attend_over_space(class_token, patches, **kwargs))  # (B, T, 1 + N, D)
        class_token = class_token + update[:, :, 0].mean(dim=1, keepdim=True)
        hidden_states = torch.cat([class_token, (patches + update[:, :, 1:]).flatten(1, 2)], dim=1)
        del patches, update  # in inference their memory is free for what follows, the widest part

        return hidden_states + self.drop_path(self.feed_forward(hidden_states))

    def forward_packed(
        self, hidden_states: torch.Tensor, frames: PackedFrames, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """The same for packed frames: no token is moved, and only temporal attention and the class token's mean look
        at which frames belong together."""
        of_patches, dtype = frames.is_patch.to(hidden_states.dtype), hidden_states.dtype
        spatial_scale = scale = None
        if frames.scales is not None:
            temporal_scale, spatial_scale, scale = frames.scales.to(dtype)
            of_patches = of_patches * temporal_scale

        update, _ = self.temporal_attention(self.temporal_layernorm(hidden_states), over_time_of=frames)
        update = self.temporal_dense(self.dropout(update))
        hidden_states = torch.addcmul(hidden_states, update, of_patches)

        update, _ = self.attention(self.layernorm_before(hidden_states), one_product=True, **kwargs)
        update = self.dropout(update)
        update = torch.cat([mean_over_clips(update[:, 0], frames.spans)[:, None], update[:, 1:]], dim=1)
        hidden_states = add_scaled(hidden_states, update, spatial_scale)
        del update  # in inference its memory is free for what follows, the widest part

        update = self.feed_forward_of_frames(hidden_states)
        if self.training and self.dropout.p > 0:
            update = frames.with_one_class_token(update)
        return add_scaled(hidden_states, update, scale)

    def feed_forward_of_frames(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The MLP of packed frames, (F, S, D) to the same: in inference not of too many at a time, as their widest
        tensor is not kept. A compiled layer would have a program for each number of parts."""
        frames_at_once = max(1, PACKED_INFERENCE_CHUNK // hidden_states.shape[1])
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(hidden_states) <= frames_at_once:
            return self.feed_forward(hidden_states)
        return torch.cat([self.feed_forward(part) for part in hidden_states.split(frames_at_once)])

    def attend_over_time(self, patches: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Attention among the tokens of one patch position across the frames: (B, T, N, D) to the same."""
        batch_size = patches.shape[0]
        tracks = self.temporal_layernorm(patches).transpose(1, 2).flatten(0, 1).contiguous()  # (B * N, T, D)
        tracks, _ = self.temporal_attention(tracks, **kwargs)
        return self.temporal_dense(self.dropout(tracks)).unflatten(0, (batch_size, -1)).transpose(1, 2)

    def attend_over_space(
        self, class_token: torch.Tensor, patches: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Attention among the class token, repeated for each frame, and that frame's patches: to (B, T, 1 + N, D)."""
        batch_size, num_frames = patches.shape[:2]
        class_tokens = class_token[:, None].expand(-1, num_frames, -1, -1)
        frames = self.layernorm_before(torch.cat([class_tokens, patches], dim=2).flatten(0, 1))  # (B * T, 1 + N, D)
        frames, _ = self.attention(frames, **kwargs)
        return self.dropout(frames).unflatten(0, (batch_size, num_frames))

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The MLP, token by token: (B, S, D) to the same."""
        if not torch.is_grad_enabled() and hidden_states.shape[1] > INFERENCE_CHUNK:
            # Nothing is kept for a backward pass, so the widest tensor need not be there for all tokens at once.
            return torch.cat([self.feed_forward(part) for part in hidden_states.split(INFERENCE_CHUNK, dim=1)], dim=1)
        update = self.layernorm_after(hidden_states)
        update = self.fc1(update)
        update = self.activation_fn(update)
        return self.dropout(self.fc2(update))
