# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation: which classes are taken for which, and how well each does."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..fonts import plain_text
from ..text import shortened


_MOST_NAMES = 60  # classes whose names are written at an axis
_MOST_NUMBERS = 20  # classes of a matrix with a number in each cell
_LONGEST_NAME = 32  # columns of a terminal


def draw_confusion_matrix(counts: np.ndarray, labels: Sequence[str], title: str, path: str | os.PathLike) -> None:
    """The share of each class that was taken for each, of counts as [`confusion_matrix`] has them, as a PNG."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.5, 0.32 * len(labels) + 2.5), 22.0)
    with plain_text(labels):
        figure = Figure(figsize=(side + 1.2, side), layout="constrained")
        axis = figure.subplots()
        image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        figure.colorbar(image, ax=axis, shrink=0.8, format=lambda share, _: f"{share:.0%}", label="of the true class")
        if len(labels) <= _MOST_NAMES:
            names = [shortened(label, _LONGEST_NAME) for label in labels]
            axis.set_xticks(range(len(labels)), names, rotation=90)
            axis.set_yticks(range(len(labels)), names)
        if len(labels) <= _MOST_NUMBERS:
            for row, column in np.argwhere(counts):
                dark = shares[row, column] < 0.6
                axis.text(
                    column, row, counts[row, column], ha="center", va="center", color="white" if dark else "black"
                )
        axis.set_xlabel("predicted class")
        axis.set_ylabel("true class")
        axis.set_title(title)
        figure.savefig(path, dpi=110)


def draw_scores_of_classes(
    scores: np.ndarray, rows: np.ndarray, labels: Sequence[str], title: str, measure: str, path: str | os.PathLike
) -> None:
    """A bar for each class, the best above, with its number of rows, and their mean, as a PNG.

    `scores` and `rows` are (classes,), from 0 to 1 where there are rows; `measure` says what scores they are.
    """
    there = np.flatnonzero(rows)
    order = there[np.argsort(scores[there], kind="stable")]
    with plain_text(labels):
        figure = Figure(figsize=(8.5, min(max(2.4, 0.26 * len(order) + 1.4), 60.0)), layout="constrained")
        axis = figure.subplots()
        axis.barh(range(len(order)), scores[order], color="#3b6ea5", height=0.8)
        mean = scores[there].mean()
        axis.axvline(mean, color="#d1495b", label=f"mean over classes: {mean:.1%}")
        if len(order) <= 3 * _MOST_NAMES:
            axis.set_yticks(
                range(len(order)), [f"{shortened(labels[index], _LONGEST_NAME)} ({rows[index]})" for index in order]
            )
        else:
            axis.set_yticks([])
            axis.set_ylabel(f"{len(order)} classes")
        axis.set_xlim(0, 1)
        axis.set_ylim(-0.6, len(order) - 0.4)
        axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axis.set_xlabel(f"{measure} (in brackets: rows)")
        axis.set_title(title)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), frameon=False)
        figure.savefig(path, dpi=110)
