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
"""From features of frames, which an encoder of images sees one by one, to the feature of a clip ("late fusion").

Axes: B clips   T frames of a clip   D hidden_size
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_cover import CoverConfig
from .divided_attention_cover import CoverAttention
from .embeddings_cover import resize_time_embeddings


class CoverFramePooler(nn.Module):
    """The mean of the features of frames, which may attend to one another before, in `encoder_temporal_layers`.

    `of_frame` makes the features of the encoder's outputs for the frames, (B * T, D).
    """

    def __init__(self, config: CoverConfig, of_frame: nn.Module):
        super().__init__()
        self.of_frame = of_frame
        self.layers = nn.ModuleList(CoverTemporalLayer(config) for _ in range(config.encoder_temporal_layers))
        if self.layers:
            self.time_embeddings = nn.Parameter(torch.zeros(1, config.num_frames, config.hidden_size))

    def forward(self, outputs: ModelOutput, num_frames: int) -> torch.Tensor:
        features = self.of_frame(outputs).unflatten(0, (-1, num_frames))  # (B, T, D)
        if self.layers:
            features = features + resize_time_embeddings(self.time_embeddings, num_frames)
        for layer in self.layers:
            features = layer(features)
        return features.mean(dim=1)


class CoverTemporalLayer(GradientCheckpointingLayer):
    """Attention among the frames of a clip, and MLP, each pre-norm: (B, T, D) to the same."""

    def __init__(self, config: CoverConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CoverAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(features))
        features = features + self.dropout(attended)
        return features + self.dropout(self.fc2(self.activation_fn(self.fc1(self.layernorm_after(features)))))

    def init_as_identity(self) -> None:
        """So that a clip's feature is at first the mean, as temporal attention adds nothing at first in section 3.1 of
        the paper."""
        for projection in (self.attention.o_proj, self.fc2):
            init.zeros_(projection.weight)
            init.zeros_(projection.bias)
