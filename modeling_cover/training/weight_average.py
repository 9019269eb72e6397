# SPDX-License-Identifier: Apache-2.0
"""An exponential moving average of the weights, which is what is evaluated and saved.

    average <- decay * average + (1 - decay) * weights       after each optimizer step that is taken

In a checkpoint, model.safetensors holds the average, the model whose accuracy is in the log; the weights that
training continues from are in training_state/weights.safetensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from .run_state import WholeState


class WeightAverage:
    """The average of the parameters of a model that are trained; where they are sharded, so is the average.

    An update keeps the share `decay` of it; the n-th keeps (1 + n) / (10 + n) if that is less, since the first weights
    are no good.
    """

    def __init__(self, state: "WholeState", decay: float, updates: int = 0):
        self.decay = decay
        self.updates = updates
        self._state = state
        self._weights = state.local_weights()
        self._average = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average."""
        kept = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self._average)
        torch._foreach_copy_(self._average, kept)
        self._state.local_weights_have_changed()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average for weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
