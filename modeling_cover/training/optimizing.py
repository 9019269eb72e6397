# SPDX-License-Identifier: Apache-2.0
"""A Trainer whose optimizer has a learning rate for each kind of parameters, and whose schedule may drop it at some epochs."""

import torch
from torch import nn

from .parameter_groups import parameter_groups
from .recording import RecordedTrainer


class OptimizingTrainer(RecordedTrainer):
    """Makes optimizer and schedule as the training arguments have them: rates by layer and of new parameters, drops."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # A head without training data has a gradient of zeros, and decay would eat its weights all the same.
        trained = self.head_names if self.train_dataset is None else self.train_dataset.sizes
        untrained = set(self.head_names) - set(trained)
        prefixes = tuple(f"classifiers.{name}." for name in untrained)
        return [name for name in super().get_decay_parameter_names(model) if not name.startswith(prefixes)]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is not None or self.optimizer_cls_and_kwargs is not None:
            return super().create_optimizer(model)
        model = self.model if model is None else model
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        decaying = self.get_decay_parameter_names(model)
        groups = parameter_groups(model, self._config.num_hidden_layers, self.args, decaying)
        # Optimizers that choose their parameters themselves have put them there.
        self.optimizer_cls_and_kwargs = optimizer_class, {"params": groups, **options}
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = None

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        drops = self.args.learning_rate_drop_epochs
        if not drops or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        drop_steps = [round(epoch * self.steps_per_epoch) for epoch in drops]

        def factor(step: int) -> float:
            if step < warmup:
                return step / warmup
            return self.args.learning_rate_drop_factor ** sum(step >= drop for drop in drop_steps)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler
