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
"""One linear classifier for each dataset on the class token (Zhang et al., 2021, section 3.3.1)."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView

import torch
from torch import nn


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
