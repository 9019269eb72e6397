# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself: a progress bar, and curves at its end."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from ..fonts import plain_text, told_if_not_drawn
from ..hub.checkpoint_files import CURVES_NAME


_SMALL = 30  # points of a curve up to which each is marked


class CoverProgressCallback(ProgressCallback):
    """Beside the bar of steps, the newest loss of each dataset, samples a second, and the share of waiting for
    data."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=logs, **kwargs)
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
            path = Path(args.output_dir) / CURVES_NAME
            with told_if_not_drawn(path):
                draw_training_curves(state.log_history, self.names, path)


def draw_training_curves(
    log_history: Sequence[Mapping[str, Any]], names: Sequence[str], path: str | os.PathLike
) -> None:
    """Loss and top-1 of each dataset over the optimizer steps, in training and in evaluation, as a PNG.

    Of a dataset of several labels a row, the mAP of evaluations is in the place of top-1.
    """
    with plain_text(names):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, kind, title in zip(
            axes, ("loss", "top1"), ("Loss", "Top-1, of several labels a row mAP"), strict=True
        ):
            for index, name in enumerate(names):
                color = f"C{index % 10}"
                _draw(axis, log_history, f"{name}_{kind}", f"{name}, training", color=color, linewidth=1, alpha=0.55)
                style = {"color": color, "linewidth": 2, "marker": "o"}
                for measure in ("top1", "map") if kind == "top1" else (kind,):  # a dataset has one of the two
                    _draw(axis, log_history, f"eval_{name}_{measure}", f"{name}, evaluation", **style)
            axis.set_title(title)
            axis.set_xlabel("optimizer step")
            axis.grid(alpha=0.3)
            if axis.has_data():
                # With the labels, as it leaves out those that begin with "_" otherwise.
                axis.legend(axis.lines, [line.get_label() for line in axis.lines], fontsize="small")
        axes[0].set_ylim(bottom=0)
        axes[1].set_ylim(0, 1.02)
        axes[1].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        figure.savefig(path, dpi=120)


def _draw(axis: Axes, log_history: Sequence[Mapping[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
    if points:
        if len(points) > _SMALL:
            style.pop("marker", None)
        elif len(points) == 1:
            style.setdefault("marker", ".")
        axis.plot(*zip(*points, strict=True), label=label, **style)
