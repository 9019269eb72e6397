# SPDX-License-Identifier: Apache-2.0
"""What the log tells of training: loss, accuracy and share of each dataset, and how long it waited for data."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..recipe.dataset_recipe import MULTI_LABEL


class StepMetrics:
    """Sums up what the steps since the last log tell, without waiting for the device.

    Args:
        heads: of the model, by name, in the order of their ids, as its configuration has them.
        device: of the sums.
    """

    def __init__(self, heads: Mapping[str, Mapping[str, Any]], device: torch.device):
        self._heads = heads
        # (3, heads): the losses of each dataset's rows, the rows, and those classified correctly, of this process.
        self.sums = torch.zeros(3, len(heads), device=device)
        self._sums_of_step = torch.zeros_like(self.sums)
        self.start_clock(step=0)

    def begin_step(self) -> None:
        self._sums_of_step.zero_()

    def add(self, head_losses: torch.Tensor, rows: torch.Tensor, hits: torch.Tensor) -> None:
        """A batch of the step: the mean loss of each head, its rows, and those classified correctly, each (heads,)."""
        batch = torch.stack([(head_losses * rows).detach(), rows, hits])
        self._sums_of_step += batch.to(self._sums_of_step)

    def take_step(self) -> None:
        """Count the step. One that is left out does not count."""
        self.sums += self._sums_of_step

    def start_clock(self, step: int) -> None:
        """Count time, and the steps after `step`, from now on."""
        self._first_step = step
        self._seconds_waited, self._started_at = 0.0, time.perf_counter()

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        started, started_at = time.perf_counter(), self._started_at
        try:
            yield
        finally:
            self._started_at = started_at + time.perf_counter() - started

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the time that passes is that of waiting for data."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds_waited += time.perf_counter() - started

    def dataset_logs(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """`<dataset>_loss`, `_top1` and `_share` of the steps since this was last called.

        Args:
            reduce: sums a tensor over processes, all of which call this.
        """
        sums, rows, hits = reduce(self.sums).tolist()
        self.sums.zero_()
        logs = {}
        for (name, head), loss, count, correct in zip(self._heads.items(), sums, rows, hits, strict=True):
            if count:
                logs[f"{name}_loss"] = loss / count
                if head["problem_type"] != MULTI_LABEL:
                    logs[f"{name}_top1"] = correct / count
                logs[f"{name}_share"] = count / sum(rows)
        return logs

    def clock_logs(self, step: int, rows_per_step: int) -> dict[str, float]:
        """`samples_per_second` and `data_wait`, the part of the time that was spent waiting, up to `step`."""
        seconds, steps = time.perf_counter() - self._started_at, step - self._first_step
        if not steps:  # where a run resumes with a log that was due
            return {}
        return {"samples_per_second": steps * rows_per_step / seconds, "data_wait": self._seconds_waited / seconds}
