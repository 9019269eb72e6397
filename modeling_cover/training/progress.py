# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself: a progress bar, and curves at its end."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..bars import bar
from ..hub.checkpoint_files import CURVES_NAME
from .arguments import LOGS_OF_A_RUN, MOST_STEPS_A_LOG
from .log_table import LogTable


if TYPE_CHECKING:
    from .trainer import CoverTrainer


logger = logging.get_logger(__name__)

MUCH_WAITING = 0.2  # a share of the time
SECONDS_TO_MEASURE = 30.0  # less of it says little: an epoch begins, say


def datasets_of(trainer: "CoverTrainer") -> list[str]:
    """The datasets that a trainer trains on or evaluates, in the order of the heads; heads that are kept from another
    run have none."""
    evaluated = trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {}
    names = {*evaluated, *(() if trainer.train_dataset is None else trainer.train_dataset.sizes)}
    # Without any, it may be given some when it evaluates.
    return [name for name in trainer.head_names if name in names or not names]


def show_progress(trainer: "CoverTrainer") -> None:
    """Have a trainer write logs as a [`LogTable`] in place of transformers' dictionaries; a notebook has a table
    already."""
    has_bar = trainer.pop_callback(ProgressCallback) is not None
    if has_bar:
        trainer.add_callback(CoverProgressCallback)
    if has_bar or trainer.pop_callback(PrinterCallback) is not None:
        trainer.add_callback(LogTable(datasets_of(trainer)))


class CoverProgressCallback(ProgressCallback):
    """Beside the bar of steps, the newest loss of each dataset, samples a second, and the share of waiting for data.
    Logs are left to [`LogTable`]; a file has these alone, and of an evaluation how far it is, from time to time."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=None)  # None: in a file

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.prediction_bar is None and state.is_world_process_zero and has_length(eval_dataloader):
            self.prediction_bar = bar(total=len(eval_dataloader), leave=self.training_bar is None, dynamic_ncols=True)
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and "data_wait" in (logs or {}):
            self.training_bar.set_postfix_str(progress_line(logs))


def progress_line(logs: Mapping[str, float]) -> str:
    losses = [
        f"{key.removesuffix('_loss')} {value:.3g}"
        for key, value in logs.items()
        if key.endswith("_loss") and not key.startswith("eval_")
    ]
    speed = f"{logs['samples_per_second']:.3g} samples/s"
    utilisation = [f"MFU {logs['mfu']:.1%}"] if "mfu" in logs else []
    return ", ".join(["loss " + " ".join(losses), speed, *utilisation, f"waiting for data {logs['data_wait']:.1%}"])


class PaceCallback(TrainerCallback):
    """Has logs come often enough where nobody says how often, and warns once of a run that waits for its data."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._waits = WaitForData()
        self._logged_step = state.global_step
        state.compute_steps(args, state.max_steps)  # of a checkpoint they are those of the run that has written it
        if args.logging_steps == LOGS_OF_A_RUN:
            state.logging_steps = min(state.logging_steps, MOST_STEPS_A_LOG)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "data_wait" not in (logs or {}) or not state.is_world_process_zero:
            return
        seconds = (state.global_step - self._logged_step) * args.rows_per_step / logs["samples_per_second"]
        self._logged_step = state.global_step
        if self._waits.has_become_much(seconds, logs["data_wait"]):
            logger.warning(waiting_line(self._waits.share, args.dataloader_num_workers))


class WaitForData:
    """How long a run has waited for data, but for the time up to its first log, in which workers start."""

    def __init__(self):
        self._logs, self._seconds, self._waited, self._is_told = 0, 0.0, 0.0, False

    @property
    def share(self) -> float:
        return self._waited / self._seconds if self._seconds else 0.0

    def has_become_much(self, seconds: float, share: float) -> bool:
        """Count the time since the last log, of which a share was waiting; whether that has become too much, once."""
        self._logs += 1
        if self._logs == 1:
            return False
        self._seconds, self._waited = self._seconds + seconds, self._waited + share * seconds
        is_much = self._seconds >= SECONDS_TO_MEASURE and self.share > MUCH_WAITING
        is_news, self._is_told = is_much and not self._is_told, self._is_told or is_much
        return is_news


def waiting_line(share: float, workers: int) -> str:
    return (
        f"{share:.0%} of the time is spent waiting for data: raise dataloader_num_workers, which is {workers} ({os.cpu_count()} "
        "cores), or make datasets compact with `cover prepare`, so that less is decoded"
    )


class CurvesCallback(TrainerCallback):
    """Draws `training_curves.png` in the output folder at the end of training."""

    def __init__(self, names: Sequence[str]):
        self.names = names

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and any("loss" in entry for entry in state.log_history):
            from ..fonts import told_if_not_drawn  # matplotlib, which a run need not load before its end
            from . import curves

            path = Path(args.output_dir) / CURVES_NAME
            with told_if_not_drawn(path):
                curves.draw_training_curves(state.log_history, self.names, path)
