# SPDX-License-Identifier: Apache-2.0
"""What the log tells of training: the loss, each dataset's loss, accuracy and share, and the wait for data."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..recipe.dataset_recipe import SINGLE_LABEL


class StepMetrics:
    """Sums up what the steps since the last log tell, without waiting for the device.

    A step counts once it is taken, see [`take_step`], which may be after the next one has begun. The metrics of a step
    that is skipped are dropped. `heads` are those of the configuration in the order of their ids; `reduce` sums a
    tensor over processes, all of which call it. `peak_tflops` is what a device can do at most, in 10^12 operations per
    second, if it is known.
    """

    def __init__(
        self,
        heads: Mapping[str, Mapping[str, Any]],
        device: torch.device,
        reduce: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
        num_processes: int = 1,
        peak_tflops: float | None = None,
    ):
        self._heads = heads
        self._reduce = reduce
        self._num_processes = num_processes
        self._peak_tflops = peak_tflops
        # The loss of the steps since the last log, as this process sees it: the loss is the mean over processes.
        self.loss = torch.zeros((), device=device)
        # (3, heads): the losses of each dataset's rows, the rows, and the correct ones, of this process.
        self.sums = torch.zeros(3, len(heads), device=device)
        # Of each step that is neither taken nor skipped yet.
        self._open: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self._loss_of_session = torch.zeros_like(self.loss)
        self.begin_session()

    def begin_session(self, step: int = 0) -> None:
        """Start from nothing, at an optimizer step of the run."""
        for total in (self.loss, self.sums, self._loss_of_session):
            total.zero_()
        self._open.clear()
        self._of_step = self._zeros()  # of a batch before any step
        self._taken = self._skipped = self._taken_in_session = 0
        # What the log has of the last step alone: its "grad_norm" and "learning_rate".
        self.last_step: dict[str, torch.Tensor | float | None] = {}
        self.start_clock(step)

    # ---- Steps ----

    def begin_step(self) -> None:
        self._of_step = self._zeros()
        self._open.append(self._of_step)

    def _zeros(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(self.loss), torch.zeros_like(self.sums)

    def add(self, head_losses: torch.Tensor, rows: torch.Tensor, hits: torch.Tensor) -> None:
        """Add a batch of the step: each head's mean loss, its rows, and the correct ones, each (heads,)."""
        _, sums = self._of_step
        sums += torch.stack([(head_losses * rows).detach(), rows, hits]).to(sums)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add a batch's part of the loss of the step."""
        total, _ = self._of_step
        total += loss

    def take_step(self) -> None:
        """Count the first of the steps that are open."""
        loss, sums = self._open.popleft()
        self.sums += sums
        self.loss += loss
        self._loss_of_session += loss
        self._taken, self._taken_in_session = self._taken + 1, self._taken_in_session + 1

    def skip_step(self) -> None:
        """Drop the first of the steps that are open."""
        self._open.popleft()
        self._skipped += 1

    # ---- The clock ----

    def start_clock(self, step: int) -> None:
        """Count time, and the steps after `step`, from now on."""
        self._first_step = step
        self._operations = 0
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
        """Inside, the time that passes is spent waiting for data."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds_waited += time.perf_counter() - started

    def counted(self, operations: int) -> int:
        """Count the operations of a batch of this process, which are returned."""
        self._operations += operations
        return operations

    def clock_logs(self, step: int, rows_per_step: int) -> dict[str, float]:
        """Up to `step`, after which the clock starts again: samples per second, the share of the time spent waiting,
        the operations of this process in 10^12 per second, and their share of the peak if that is known."""
        seconds, steps = time.perf_counter() - self._started_at, step - self._first_step
        waited, operations = self._seconds_waited, self._operations
        self.start_clock(step)
        if not steps:  # where a run resumes with a log that was due
            return {}
        tflops = operations / seconds / 1e12
        utilisation = {} if self._peak_tflops is None else {"mfu": tflops / self._peak_tflops}
        rates = {"samples_per_second": steps * rows_per_step / seconds, "data_wait": waited / seconds}
        return {**rates, "model_tflops": tflops, **utilisation}

    # ---- Logs ----

    def logs(self) -> dict[str, float]:
        """`loss`, `<dataset>_loss`, `_top1` and `_share` of the steps since the last call, and `skipped_steps` if any.

        Every process must call it.
        """
        (loss, *dataset_sums), skipped = self._reduced(self.loss, *self.sums), self._skipped
        logs = {"loss": loss / self._num_processes / self._taken if self._taken else math.nan}
        logs |= self._dataset_logs(*dataset_sums)
        if skipped:
            logs["skipped_steps"] = skipped
        self.loss.zero_()
        self.sums.zero_()
        self._taken = self._skipped = 0
        return logs

    def session_loss(self) -> float:
        """The mean loss of the steps that this session has taken; 0 if there are none. Every process must call it."""
        (loss,) = self._reduced(self._loss_of_session)
        return loss / self._num_processes / max(self._taken_in_session, 1)

    def _reduced(self, *totals: torch.Tensor) -> list[Any]:
        """Sums over processes, as numbers: one exchange, and one wait for the device."""
        parts = self._reduce(torch.cat([total.reshape(-1) for total in totals])).split([t.numel() for t in totals])
        return [part.reshape(total.shape).tolist() for part, total in zip(parts, totals, strict=True)]

    def _dataset_logs(self, sums: list[float], rows: list[float], hits: list[float]) -> dict[str, float]:
        logs = {}
        for (name, head), loss, count, correct in zip(self._heads.items(), sums, rows, hits, strict=True):
            if count:
                logs[f"{name}_loss"] = loss / count
                if head["problem_type"] == SINGLE_LABEL:
                    logs[f"{name}_top1"] = correct / count
                logs[f"{name}_share"] = count / sum(rows)
        return logs

    # ---- In checkpoints ----

    def counts(self) -> dict[str, int]:
        """What all processes know of the steps since the last log, JSON-able."""
        return {"steps": self._taken + self._skipped, "skipped": self._skipped}

    def process_sums(self) -> dict[str, Any]:
        """What this process has summed up since the last log, JSON-able. Checkpoints have the key "data_sets"."""
        return {"loss": self.loss.tolist(), "data_sets": self.sums.tolist()}

    def load(self, counts: Mapping[str, int], process_sums: list[Mapping[str, Any]], process: int) -> None:
        """Resume from what [`counts`] and each process's [`process_sums`] returned.

        With another number of processes, the first one takes the sums of all.
        """
        self._taken, self._skipped = counts["steps"] - counts["skipped"], counts["skipped"]
        for name, total in (("loss", self.loss), ("data_sets", self.sums)):
            of_each = torch.tensor([sums[name] for sums in process_sums], dtype=total.dtype, device=total.device)
            if len(of_each) == self._num_processes:
                total.copy_(of_each[process])
            elif process == 0:
                total.copy_(of_each.mean(dim=0) * self._num_processes if name == "loss" else of_each.sum(dim=0))
