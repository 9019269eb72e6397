# SPDX-License-Identifier: Apache-2.0
"""The curves of a run: the losses and metrics of its log, drawn."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..fonts import plain_text


_SMALL = 30  # points of a curve up to which each is marked


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
