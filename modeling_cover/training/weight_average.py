# SPDX-License-Identifier: Apache-2.0
"""An exponential moving average of the weights, which is what is evaluated and saved.

    average <- decay * average + (1 - decay) * weights       after each optimizer step that is taken

In a checkpoint, model.safetensors holds the average, the model whose accuracy is in the log; the weights that training
goes on with are in training_state/weights.safetensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from ..hub.checkpoint_files import TRAINING_STATE
from .checkpoints import read_state
from .guarding import GuardedTrainer
from .training_state import WholeState


_WEIGHTS = "weights"


class WeightAverage:
    """The average of the parameters of a model that are trained.

    Args:
        state: of the model whose weights it starts from; where they are sharded, so is the average.
        decay: the share of the average that stays, at most: in the n-th update, (1 + n) / (10 + n) if that is less,
            since the first weights are no good.
        updates: how many there were.
    """

    def __init__(self, state: WholeState, decay: float, updates: int = 0):
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


class AveragingTrainer(GuardedTrainer):
    """With `ema_decay`, evaluates and saves an average of the weights."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weight_average: WeightAverage | None = None
        self._takes_step = False
        self.add_callback(_AverageCallback(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        output = super().train(*args, **kwargs)
        if self.weight_average is not None:
            # The best checkpoint, where it was loaded, is an average already.
            if not (self.args.load_best_model_at_end and self.state.best_model_checkpoint):
                self.weight_average.swap()
            self.weight_average = None
        return output

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.weight_average = None
        if self.args.ema_decay is not None:
            updates = 0
            if resume_from_checkpoint is not None:
                updates = read_state(resume_from_checkpoint).get("average_updates", 0)
                self._load_weights(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)
            self.weight_average = WeightAverage(self.whole_state, self.args.ema_decay, updates)
            if resume_from_checkpoint is not None:
                self._load_from_checkpoint(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        trained = Path(resume_from_checkpoint) / TRAINING_STATE / f"{_WEIGHTS}.safetensors"
        if trained.is_file():
            self._load_weights(trained)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def step_is_taken(self) -> None:
        super().step_is_taken()
        self._takes_step = True

    def step_begins(self) -> None:
        super().step_begins()
        self._takes_step = False

    def optimizer_has_stepped(self) -> None:
        if self.weight_average is not None and self._takes_step:
            self.weight_average.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the average for weights, if there is one."""
        if self.weight_average is None:
            yield
        else:
            with self.weight_average.in_place():
                yield

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        with self.averaged():
            return super().evaluation_loop(*args, **kwargs)

    def _gathered_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
        weights, state, tensors = super()._gathered_state()
        if self.weight_average is not None:
            state["average_updates"] = self.weight_average.updates
            tensors[_WEIGHTS] = weights
            with self.averaged():
                weights = self.whole_state.weights()
        return weights, state, tensors


class _AverageCallback(TrainerCallback):
    def __init__(self, trainer: AveragingTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.optimizer_has_stepped()
