# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis of a mixture means: tables, a sentence for each dataset and each pair, and a picture.

A diagnosis is what [`MixtureDiagnosis.summary`] returns.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..fonts import plain_text
from ..text import shortened, table


Diagnosis = Mapping[str, Any]

_SURE = 2.0  # standard errors from nothing
_SMALL_SHARE = 0.5  # of what the rows are
_LONGEST_NAME = 24  # columns


def effect_on(diagnosis: Diagnosis, on: str, of: str) -> float | None:
    """How much a step for one dataset lowers the loss of another, relative to the other's own step of the same length:
    1 is as much, 0 nothing, and less than 0 raises it. None where its own step does not surely lower it."""
    own, other = diagnosis["effect"][on][on], diagnosis["effect"][of][on]["mean"]
    return None if other is None or not _is_sure(own) or own["mean"] >= 0 else other / own["mean"]


def help_of_others(diagnosis: Diagnosis, name: str) -> float | None:
    """The mean of [`effect_on`] a dataset over all others: what training with them is predicted to do for it."""
    effects = [effect_on(diagnosis, name, other) for other in diagnosis["datasets"] if other != name]
    return None if None in effects else sum(effects) / len(effects)


def dataset_table(diagnosis: Diagnosis) -> str:
    header = ["dataset", "of the rows", "weight", "of the gradient", "of the update", "others' steps do"]
    rows = []
    for name in diagnosis["datasets"]:
        helped = help_of_others(diagnosis, name)
        rows.append(
            [
                shortened(name, _LONGEST_NAME),
                f"{diagnosis['row_share'][name]:.0%}",
                f"{diagnosis['loss_weight'][name]:.3g}",
                _percent(diagnosis["gradient_share"][name]),
                _percent(diagnosis["update_share"][name]),
                "?" if helped is None else f"{helped:+.0%} of its own",
            ]
        )
    return table([header, *rows])


def pair_table(diagnosis: Diagnosis) -> str:
    header = ["pair", "cosine of steps", "without noise", "overlap of features", "a step of the other does"]
    rows = []
    for first, second in itertools.combinations(diagnosis["datasets"], 2):
        overlap = diagnosis["feature_overlap"][first][second]
        effects = [effect_on(diagnosis, first, second), effect_on(diagnosis, second, first)]
        rows.append(
            [
                f"{shortened(first, _LONGEST_NAME)}, {shortened(second, _LONGEST_NAME)}",
                _with_error(diagnosis["gradient_cosine"][first][second]),
                _with_error(diagnosis["signal_cosine"][first][second]),
                "?" if overlap is None else f"{overlap:.2f}",
                ", ".join("?" if effect is None else f"{effect:+.0%}" for effect in effects),
            ]
        )
    return table([header, *rows])


def sentences(diagnosis: Diagnosis) -> list[str]:
    """One for each dataset of which there is something to say, and one for each pair, with what to try."""
    pairs = itertools.combinations(diagnosis["datasets"], 2)
    return [*_of_datasets(diagnosis), *(_of_pair(diagnosis, first, second) for first, second in pairs)]


def _of_datasets(diagnosis: Diagnosis) -> Iterator[str]:
    for name in diagnosis["datasets"]:
        own = diagnosis["effect"][name][name]
        if not _is_sure(own):
            yield (
                f"{name}: a step for it does nothing to its own loss that can be told from chance, so the others' steps "
                "have no measure. Try more --steps, or more rows a step."
            )
        elif own["mean"] > 0:
            yield f"{name}: a step for it raises its own loss. Try a lower learning rate."
        share, of_rows = diagnosis["update_share"][name]["mean"], diagnosis["row_share"][name]
        if share < _SMALL_SHARE * of_rows:
            yield (
                f"{name}: {of_rows:.0%} of the rows, and {share:.0%} of the update. Try a larger weight, or "
                "`mixture: {weights: equal_updates}`."
            )


def _of_pair(diagnosis: Diagnosis, first: str, second: str) -> str:
    cosine = diagnosis["signal_cosine"][first][second]
    if cosine["mean"] is None:
        return (
            f"{first} and {second}: the gradients of one of them have no more in common than chance, or no step had rows of "
            "both. Try more --steps, or more rows a step."
        )
    angle = f"cosine {_with_error(cosine)}"
    effects = [_effect_in_words(diagnosis, first, second), _effect_in_words(diagnosis, second, first)]
    helps = [effect_on(diagnosis, first, second), effect_on(diagnosis, second, first)]
    harmed = [on for on, effect in zip((first, second), helps, strict=True) if effect is not None and effect < 0]
    if _is_sure(cosine) and cosine["mean"] > 0:
        advice = "Train them together." if not harmed else f"Train them together, and watch {' and '.join(harmed)}."
        verdict = f"{first} and {second} pull the encoder the same way ({angle})."
    elif _is_sure(cosine):
        advice = "Try each without the other, a smaller weight of the one that matters less, or a larger encoder."
        verdict = f"{first} and {second} pull against each other ({angle})."
    else:
        advice = "They share the encoder's size and not a direction: the share of the update decides what each gets."
        verdict = f"{first} and {second} are at right angles, as far as can be told ({angle})."
    return " ".join([verdict, *filter(None, effects), advice])


def _effect_in_words(diagnosis: Diagnosis, on: str, of: str) -> str:
    effect = effect_on(diagnosis, on, of)
    if effect is None:
        return ""
    if not _is_sure(diagnosis["effect"][of][on]):
        return f"A step for {of} does nothing to the loss of {on} that can be told from chance."
    return (
        f"A step for {of} {'lowers' if effect > 0 else 'raises'} the loss of {on} by {abs(effect):.0%} of what its own "
        "step lowers it by."
    )


def _is_sure(statistics: Mapping[str, Any]) -> bool:
    return statistics["error"] is not None and abs(statistics["mean"]) > _SURE * statistics["error"]


def _percent(statistics: Mapping[str, Any]) -> str:
    return f"{statistics['mean']:.0%}"


def _with_error(statistics: Mapping[str, Any]) -> str:
    if statistics["mean"] is None:
        return "?"
    error = "" if statistics["error"] is None else f" ± {statistics['error']:.2f}"
    return f"{statistics['mean']:+.2f}{error}"


# ---- The picture ----


def draw_diagnosis(diagnosis: Diagnosis, title: str, path: str | os.PathLike) -> None:
    """Cosines of gradients, effects of steps, and shares by depth, side by side, as a PNG."""
    names = [shortened(name, _LONGEST_NAME) for name in diagnosis["datasets"]]
    with plain_text([title, *names]):
        side = max(3.6, 0.5 * len(names) + 2.4)
        figure = Figure(figsize=(3 * side + 1.6, side + 0.9), layout="constrained")
        axes = figure.subplots(1, 3)
        _draw_matrix(axes[0], figure, _cosines(diagnosis), names, "Cosine between gradients", "{:+.2f}")
        _draw_matrix(axes[1], figure, _effects(diagnosis), names, "A step for the row's dataset does", "{:+.0%}")
        axes[1].set_xlabel("to the loss of, relative to its own step")
        _draw_depths(axes[2], diagnosis, names)
        figure.suptitle(title)
        figure.savefig(path, dpi=110)


def _cosines(diagnosis: Diagnosis) -> np.ndarray:
    names = diagnosis["datasets"]
    means = [[diagnosis["signal_cosine"][row][column]["mean"] for column in names] for row in names]
    return np.array(means, dtype=float)


def _effects(diagnosis: Diagnosis) -> np.ndarray:
    names = diagnosis["datasets"]
    return np.array([[effect_on(diagnosis, column, row) for column in names] for row in names], dtype=float)


def _draw_matrix(axis: Axes, figure: Figure, values: np.ndarray, names: Sequence[str], title: str, text: str) -> None:
    """Blue where datasets help each other, red where they harm; what is not known stays empty."""
    image = axis.imshow(values, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if abs(value) > 0.6 else "black"
            axis.text(column, row, text.format(value), ha="center", va="center", color=colour, fontsize="small")
    axis.set_title(title)
    figure.colorbar(image, ax=axis, shrink=0.7)


def _draw_depths(axis: Axes, diagnosis: Diagnosis, names: Sequence[str]) -> None:
    of_depths = np.array([diagnosis["share_by_depth"][name]["mean"] for name in diagnosis["datasets"]], dtype=float)
    bottom, depths = np.zeros(of_depths.shape[1]), np.arange(of_depths.shape[1])
    for index, shares in enumerate(of_depths):
        axis.bar(depths, shares, 0.85, bottom=bottom, color=f"C{index % 10}")
        bottom += np.nan_to_num(shares)
    labels = ["embeddings", *(str(layer) for layer in depths[1:-1]), "norm"]
    shown = depths if len(depths) <= 16 else [*depths[:: len(depths) // 8]]
    axis.set_xticks(shown, [labels[depth] for depth in shown], rotation=45, ha="right")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.set_title("Share of the gradient, by layer")
    axis.legend(
        axis.containers,
        names,
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.22),
        frameon=False,
        ncols=2,
    )
