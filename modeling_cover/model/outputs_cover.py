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
"""What the models return, and what they record on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, auto_docstring


@auto_docstring(
    custom_intro="""
    Output of [`CoverModel`].
    """
)
@dataclass
class CoverModelOutput(BaseModelOutputWithPooling):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + num_frames * num_patches, hidden_size)`):
        The class token, then the patches of the first frame, of the second, and so on, after the final LayerNorm.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
        The class token after the final LayerNorm.
    attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True`):
        Spatial attention of each layer, `(batch_size * num_frames, num_attention_heads, 1 + num_patches,
        1 + num_patches)`.
    temporal_attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True`):
        Temporal attention of each layer, `(batch_size * num_patches, num_attention_heads, num_frames, num_frames)`.
    """

    temporal_attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(
    custom_intro="""
    Output of [`CoverForVideoClassification`].
    """
)
@dataclass
class CoverVideoClassifierOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `labels`):
        The sum of `head_losses`.
    logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
        The logits of the head asked for, else of the default head.
    head_logits (`dict[str, torch.FloatTensor]`):
        The logits of every head, `(batch_size, num_labels of the head)` each.
    head_losses (`dict[str, torch.FloatTensor]`, *optional*, returned with `labels`):
        Each head's mean loss over its rows; 0, with a gradient, for a head without rows.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
        The class token after the final LayerNorm.
    hidden_states (`tuple(torch.FloatTensor)`, *optional*):
        As in [`CoverModel`]; with several clip groups a tuple with one such entry for each group.
    attentions (`tuple(torch.FloatTensor)`, *optional*):
        Spatial attention, as in [`CoverModel`]; with several clip groups a tuple with one such entry for each group.
    temporal_attentions (`tuple(torch.FloatTensor)`, *optional*):
        Temporal attention, as in [`CoverModel`]; with several clip groups a tuple with one such entry for each group.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    head_logits: dict[str, torch.FloatTensor] | None = None
    head_losses: dict[str, torch.FloatTensor] | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    temporal_attentions: tuple | None = None


def record_both_attentions(forward: Callable) -> Callable:
    """Let `output_attentions` ask for temporal attention as well as spatial."""

    @wraps(forward)
    def wrapper(self, *args, **kwargs):
        if kwargs.get("output_attentions", self.config.output_attentions):
            kwargs = {**kwargs, "output_attentions": True, "output_temporal_attentions": True}
        return forward(self, *args, **kwargs)

    return wrapper
