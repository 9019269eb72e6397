# SPDX-License-Identifier: Apache-2.0
"""Being told to stop: by a cluster that wants its machine back, or by `kill`."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import NoReturn

from transformers.utils import logging


logger = logging.get_logger(__name__)

# EX_TEMPFAIL of sysexits.h: try again later. A process that a signal has killed ends with 128 + its number instead.
PREEMPTED_EXIT_CODE = 75

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class TrainingPreempted(SystemExit):
    """Training was told to stop, and `checkpoint` is where the run resumes, None before its first step; not caught, it
    ends the process with exit code 75."""

    def __init__(self, checkpoint: str | os.PathLike | None):
        super().__init__(PREEMPTED_EXIT_CODE)
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        if self.checkpoint is None:
            return "told to stop before the first step; the same command starts again"
        return f"told to stop: {os.fspath(self.checkpoint)} is written, and the same command resumes from it"


def end_run(checkpoint: str | os.PathLike | None) -> NoReturn:
    """Log where the run resumes, and raise a [`TrainingPreempted`]."""
    preempted = TrainingPreempted(checkpoint)
    logger.warning(str(preempted))
    raise preempted


class StopSignals:
    """While it is entered, SIGTERM and SIGUSR1 only set `received`."""

    def __init__(self):
        self.received = False
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "StopSignals":
        self.received = False
        if threading.current_thread() is threading.main_thread():  # no other may
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = True
            # Not through the logger, whose lock the interrupted code may hold.
            os.write(
                2,
                f"{signal.Signals(number).name}: a checkpoint will be written after this step or the next\n".encode(),
            )
