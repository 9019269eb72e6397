# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself: a progress bar, and curves at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..hub.checkpoint_files import CURVES_NAME
from .log_table import LogTable


def show_progress(trainer: Trainer, names: Sequence[str]) -> None:
    """Have a trainer write logs as a [`LogTable`] in place of transformers' dictionaries; a notebook has a table
    already."""
    has_bar = trainer.pop_callback(ProgressCallback) is not None
    if has_bar:
        trainer.add_callback(CoverProgressCallback)
    if has_bar or trainer.pop_callback(PrinterCallback) is not None:
        trainer.add_callback(LogTable(names))


class CoverProgressCallback(ProgressCallback):
    """Beside the bar of steps, the newest loss of each dataset, samples a second, and the share of waiting for data.
    Logs are left to [`LogTable`]."""

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
