# SPDX-License-Identifier: Apache-2.0
"""The curves of a run: the losses and metrics of its log, drawn."""

import itertools
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

    Of a dataset of several labels a row, the mAP of evaluations is in the place of top-1. Where the log has them, the
    share of each dataset in the update, and the cosine between the gradients of each pair, are below.
    """
    has_shares = any(key.endswith("_update_share") for entry in log_history for key in entry)
    with plain_text(names):
        figure = Figure(figsize=(11, 8.4 if has_shares else 4.2), layout="constrained")
        axes = figure.subplots(2 if has_shares else 1, 2, squeeze=False)
        _draw_metrics(axes[0], log_history, names)
        if has_shares:
            _draw_shares(axes[1], log_history, names)
        for axis in axes.flat:
            axis.set_xlabel("optimizer step")
            axis.grid(alpha=0.3)
            if axis.has_data():
                # With the labels, as it leaves out those that begin with "_" otherwise.
                axis.legend(axis.lines, [line.get_label() for line in axis.lines], fontsize="small")
        figure.savefig(path, dpi=120)


def _draw_metrics(axes: Sequence[Axes], log_history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for axis, kind, title in zip(axes, ("loss", "top1"), ("Loss", "Top-1, of several labels a row mAP"), strict=True):
        for index, name in enumerate(names):
            color = f"C{index % 10}"
            _draw(axis, log_history, f"{name}_{kind}", f"{name}, training", color=color, linewidth=1, alpha=0.55)
            style = {"color": color, "linewidth": 2, "marker": "o"}
            for measure in ("top1", "map") if kind == "top1" else (kind,):  # a dataset has one of the two
                _draw(axis, log_history, f"eval_{name}_{measure}", f"{name}, evaluation", **style)
        axis.set_title(title)
    axes[0].set_ylim(bottom=0)
    _in_percent(axes[1])


def _draw_shares(axes: Sequence[Axes], log_history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        _draw(axes[0], log_history, f"{name}_update_share", name, color=f"C{index % 10}", linewidth=2, marker="o")
    axes[0].set_title("Share of the encoder's update")
    _in_percent(axes[0])
    for index, (first, second) in enumerate(itertools.combinations(names, 2)):
        key, style = f"{first}_{second}_gradient_cosine", {"linewidth": 2, "marker": "o", "color": f"C{index % 10}"}
        _draw(axes[1], log_history, key, f"{first}, {second}", **style)
    axes[1].axhline(0, color="grey", linewidth=0.8, label="at right angles")
    axes[1].set_title("Cosine between gradients")


def _in_percent(axis: Axes) -> None:
    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")


def _draw(axis: Axes, log_history: Sequence[Mapping[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
    if points:
        if len(points) > _SMALL:
            style.pop("marker", None)
        elif len(points) == 1:
            style.setdefault("marker", ".")
        axis.plot(*zip(*points, strict=True), label=label, **style)
