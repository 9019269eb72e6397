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
"""Multi-head self-attention, over time or over space, through transformers' attention interface.

Axes: S tokens attended to (T frames, or 1 + N: a class token and the patches of a frame)   D hidden_size
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_cover import CoverConfig


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
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if hidden_states.shape[1] == 1:
            return self.attend_to_one_key(hidden_states)
        attn_output, attn_weights = self.attend(hidden_states, **kwargs)
        # Of other backends than eager they are None, or a log-sum-exp, which is no map.
        is_map = attn_weights is not None and attn_weights.ndim == 4
        return self.o_proj(attn_output), attn_weights if is_map else None

    def attend(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the heads see, (batch, S, D), before the output projection, and the backend's weights."""
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

    def attend_to_one_key(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for S = 1: the one weight is 1 whatever query and key are, so the result is the projected value.

        Query and key project zero rows: that costs nothing and gives their parameters the gradient they have in the
        general case, zero rather than none, so that distributed training does not wait for it. They come before the
        value, as in the general case, since ZeRO asks for gradients in the same order on all processes.
        """
        no_rows = hidden_states[:0]
        nothing = self.q_proj(no_rows).sum() + self.k_proj(no_rows).sum()
        value = self.v_proj(hidden_states) + nothing
        weights = value.new_ones(()).expand(hidden_states.shape[0], self.num_attention_heads, 1, 1)
        return self.o_proj(value), weights
