# SPDX-License-Identifier: Apache-2.0
"""A file beside the checkpoints of a run with all that it says, without bars."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from transformers import TrainerCallback

from .log_table import LogTable
from .progress import datasets_of


if TYPE_CHECKING:
    from .trainer import CoverTrainer


logger = logging.getLogger(__name__)

LOG_NAME = "log.txt"  # which names folders, so it is not published
_LOGGERS = (__name__.partition(".")[0], "transformers", "accelerate")


class RunLog:
    """Says lines on stdout, and appends them to a file with the warnings of loggers.

    Args:
        path: of the file; None on a process that is not the main one, which says nothing.
    """

    def __init__(self, path: str | os.PathLike | None):
        self.path = path
        self._has_failed = False

    def write(self, text: str) -> None:
        """Append to the file. Where that fails, on a full disk, say, it is warned of once: a run does not end for its
        log."""
        if self.path is None:
            return
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{text}\n")
        except OSError as error:
            had_failed, self._has_failed = self._has_failed, True
            if not had_failed:
                logger.warning(f"{self.path} cannot be written: {error}")

    def say(self, text: str) -> None:
        if self.path is not None:
            tqdm.write(text)  # above the bars
            self.write(text)

    @contextmanager
    def warnings_kept(self) -> Iterator[None]:
        """Inside, what loggers warn of is in the file as well as on stderr."""
        if self.path is None:
            yield
            return
        handler = _Appending(self)
        # Of a logger that nobody handles Python writes the warnings to stderr, until somebody does.
        unhandled = logging.getLogger(_LOGGERS[0])
        plain = [] if unhandled.hasHandlers() else [logging.lastResort]
        for kind in plain:
            unhandled.addHandler(kind)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(handler)
        try:
            yield
        finally:
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(handler)
            for kind in plain:
                unhandled.removeHandler(kind)


class _Appending(logging.Handler):
    def __init__(self, log: RunLog):
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record))


class StartCallback(TrainerCallback):
    """Says what a run is about to do, as `text` has it then."""

    def __init__(self, say: Callable[[str], None], text: Callable[[], str]):
        self.say, self.text = say, text

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.say(f"{self.text()}\n")


def follow(trainer: "CoverTrainer", log: RunLog, start: Callable[[], str]) -> None:
    """Have a trainer say what it begins with, before any other callback does anything, and keep its lines in the
    log."""
    callbacks = trainer.callback_handler.callbacks
    callbacks.insert(0, StartCallback(log.say, start))
    # Beside that for the screen, which `add_callback` would warn of.
    callbacks.append(LogTable(datasets_of(trainer), log.write))
