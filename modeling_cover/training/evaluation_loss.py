# SPDX-License-Identifier: Apache-2.0
"""The mean loss of an evaluation's rows that could be decoded, each counted once."""

from collections.abc import Callable

import torch
from accelerate import PartialState

from ..data.samples import UNREADABLE, EvaluationDataset
from ..evaluation.metrics import readable_rows
from ..model.configuration_cover import CoverConfig
from ..model.head_losses_cover import head_loss
from .arguments import CoverTrainingArguments
from .folder_lock import FolderLock
from .resuming import hold_output_dir


class EvaluationLoss:
    """Sums up an evaluation, without waiting for the device.

    Trainer's own loss is a mean of batches, whichever of their rows could be read. `gather` has the rows of all
    processes, without those that only fill up the last batch; by default there is one process.
    """

    def __init__(
        self,
        config: CoverConfig,
        device: torch.device,
        gather: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
    ):
        self._config = config
        self._gather = gather
        # The sum of the losses, and the number of rows.
        self._totals = torch.zeros(2, dtype=torch.float64, device=device)

    def begin(self) -> None:
        self._totals.zero_()

    def add(self, head: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Add a batch, and return the mean loss of its rows; 0 if none could be decoded. Every process must call
        it."""
        readable = readable_rows(labels)
        losses = head_loss(self._config, head, logits, labels.masked_fill(labels == UNREADABLE, 0), reduction="none")
        losses = losses.reshape(len(labels), -1).mean(dim=-1)
        losses = torch.stack([losses.masked_fill(~readable, 0), readable.to(losses)], dim=1)
        self._totals += self._gather(losses).double().sum(dim=0)
        total, rows = losses.sum(dim=0)
        return total / rows.clamp(min=1)

    def mean(self) -> float:
        total, rows = self._totals.tolist()
        return total / max(1, rows)


def forget_unreadable(dataset: object, args: CoverTrainingArguments) -> FolderLock | None:
    """Empty the list of evaluated files that could not be decoded: they may have been mended since the last
    evaluation. Every process must call it; the one that writes to the list's folder gets the lock on it."""
    quarantine = dataset.quarantine if isinstance(dataset, EvaluationDataset) else None
    if quarantine is None:
        return None
    lock = hold_output_dir(args)
    if PartialState().is_main_process:
        quarantine.clear(dataset.split)
    PartialState().wait_for_everyone()
    return lock
