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
"""One classifier for each dataset on the class token (Zhang et al., 2021, section 3.3.1): linear, or an MLP; or one on
what a learnt query finds among all tokens.

Axes: R rows   S tokens of a clip   D hidden_size   L labels of a head
"""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

import torch
from torch import nn

from .configuration_cover import CoverConfig


class CoverMlpHead(nn.Module):
    """A layer of `intermediate_size` with GELU, and the classifier on it: (R, D) to (R, L)."""

    def __init__(self, hidden_size: int, intermediate_size: int, num_labels: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(pooled)))


class CoverAttentiveHead(nn.Module):
    """Attention of a learnt query to all tokens of a clip, as V-JEPA's attentive probes (Bardes et al. 2024), a
    LayerNorm, and the classifier: (R, S, D) to (R, L).

    The query is 0 at first, which attends to all tokens alike. Attention is torch's own, whatever
    `attn_implementation` the encoder has.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_labels: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.attention = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(hidden_size)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query = self.query.expand(tokens.shape[0], -1, -1)
        found, _ = self.attention(query, tokens, tokens, need_weights=False)
        return self.classifier(self.layernorm(found[:, 0]))


def new_head(name: str, config: CoverConfig, head: Mapping[str, Any]) -> nn.Module:
    """The classifier of the head `name`, whose entry of `config.heads` is `head`.

    Raises:
        ValueError: if its attention heads do not divide the encoder's `hidden_size`, or it would attend to tokens that
            the encoder's temporal layers do not change.
    """
    kind, num_labels, hidden_size = head.get("head"), len(head["labels"]), config.hidden_size
    # CODEPATH: linear by default, as in the paper; another where the head's own entry asks for one.
    if kind is None:
        return nn.Linear(hidden_size, num_labels)
    if kind["type"] == "mlp":
        return CoverMlpHead(hidden_size, kind["hidden_size"], num_labels)
    if hidden_size % (num_heads := kind["num_heads"]):
        raise ValueError(
            f"head '{name}': num_heads ({num_heads}) does not divide the encoder's hidden_size ({hidden_size})"
        )
    if config.encoder_temporal_layers:
        raise ValueError(
            f"head '{name}': an attentive head sees the tokens of frames, which encoder_temporal_layers do not change: "
            "choose one of the two"
        )
    return CoverAttentiveHead(hidden_size, num_heads, num_labels)


def attends_to_tokens(head: Mapping[str, Any]) -> bool:
    """Whether the classifier of an entry of `config.heads` needs more than the class token."""
    return (head.get("head") or {}).get("type") == "attentive"


def head_logits(classifier: nn.Module, pooled: torch.Tensor, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logits (R, L) of one head; see [`CoverHeads`]."""
    if isinstance(classifier, CoverAttentiveHead):
        # Nothing of the pooled feature, but with a gradient of zeros, as DDP needs of a pooler that no head sees.
        return torch.cat([classifier(group) for group in tokens]) + pooled[:, :0].sum(dim=-1, keepdim=True)
    return classifier(pooled)


class CoverHeads(nn.Module):
    """The classifiers by the names of their heads.

    No `nn.ModuleDict`, which peft's `modules_to_save` cannot train, for want of a forward pass.
    """

    def forward(self, pooled: torch.Tensor, tokens: Sequence[torch.Tensor] = ()) -> dict[str, torch.Tensor]:
        """The logits of each head, (R, L).

        Args:
            pooled: what the encoder returns of the class token, (R, D).
            tokens: of each group of clips, in the order of the rows, all tokens, (rows of the group, S, D); needed by
                heads that attend to them.
        """
        return {name: head_logits(classifier, pooled, tokens) for name, classifier in self.items()}

    def items(self) -> ItemsView[str, nn.Module]:
        return self._modules.items()

    def keys(self) -> KeysView[str]:
        return self._modules.keys()

    def values(self) -> ValuesView[nn.Module]:
        return self._modules.values()

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __getitem__(self, name: str) -> nn.Module:
        return self._modules[name]

    def __setitem__(self, name: str, classifier: nn.Module) -> None:
        self.add_module(name, classifier)

    def __delitem__(self, name: str) -> None:
        del self._modules[name]
