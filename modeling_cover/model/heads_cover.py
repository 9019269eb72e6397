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
"""One classifier for each dataset on the class token (Zhang et al., 2021, section 3.3.1): linear, or an MLP."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch
from torch import nn


class CoverMlpHead(nn.Module):
    """A layer of `intermediate_size` with GELU, and the classifier on it: (rows, hidden) to (rows, labels)."""

    def __init__(self, hidden_size: int, intermediate_size: int, num_labels: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(pooled)))


def new_head(hidden_size: int, head: Mapping[str, Any]) -> nn.Module:
    """A classifier of what the encoder returns of the class token, for an entry of `config.heads`."""
    kind, num_labels = head.get("head"), len(head["labels"])
    # CODEPATH: linear by default, as in the paper; an MLP where the head's own entry asks for one.
    if kind is None:
        return nn.Linear(hidden_size, num_labels)
    return CoverMlpHead(hidden_size, kind["hidden_size"], num_labels)


class CoverHeads(nn.Module):
    """The classifiers by the names of their heads.

    No `nn.ModuleDict`, which peft's `modules_to_save` cannot train, for want of a forward pass.
    """

    def forward(self, pooled: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of each head, (rows, labels), of what the encoder returns of the class token, (rows, hidden)."""
        return {name: classifier(pooled) for name, classifier in self.items()}

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
