# SPDX-License-Identifier: Apache-2.0
"""The report of examples/paper_in_miniature.py: what comes out, and each table and figure of the paper beside its
miniature, as Markdown and PNG. Its sentences are made from the figures, whichever way they come out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from miniature.comparisons import Comparison, Table
from miniature.data import FEW_MOMENTS, MOMENTS
from miniature.expectations import expectation_table, expectations_in_words
from miniature.results import SOME, Results, agreement, gain, listed, signed, spread
from modeling_cover.fonts import plain_text


OVER = {"steps": "_long", "epochs": ""}  # what runs alone for as many of them are called
GAINS_PICTURE = "gains.png"
FEW = "a quarter of the clips of `moments`"


def gains(results: Results, dataset: str, unit: str, few: bool = False) -> dict[str, np.ndarray]:
    """What a dataset gains together over alone for as many steps or epochs, of each overlap, from none to all; where
    `moments` has all of its clips, or a quarter of them."""
    overlaps, suffix = (FEW_MOMENTS, "_few") if few else (MOMENTS, "")
    return {
        overlap: results.difference(*gain(f"videos_{overlap}{suffix}", dataset + OVER[unit], dataset))
        for overlap in overlaps
    }


def _in_which_seeds(values: np.ndarray) -> str:
    """Those of which the values are positive."""
    found = agreement(values, 1)
    return "in some seeds only" if found == SOME else found


def gain_table(results: Results) -> str:
    rows = {}
    for dataset in ("moves", "outfits"):
        found = {f"{dataset}, over alone for as many {unit}": gains(results, dataset, unit) for unit in OVER}
        found[f"{dataset}, with {FEW}, over alone for as many steps"] = gains(results, dataset, "steps", few=True)
        for row, values_of in found.items():
            rows[row] = {
                f"{overlap} shared": f"{signed(values_of[overlap])} ({listed(values_of[overlap])})"
                for overlap in MOMENTS
                if overlap in values_of
            }
    return _markdown_table("together", rows)


def gain_sentences(results: Results) -> str:
    """What the picture shows, in words."""
    lines = []
    for dataset in ("moves", "outfits"):
        found = {f"against alone for as many {unit}": gains(results, dataset, unit) for unit in OVER}
        found[f"with {FEW}, against alone for as many steps"] = gains(results, dataset, "steps", few=True)
        for what, values_of in found.items():
            parts = [
                f"{signed(values)} with {overlap} of the motions shared (a gain {_in_which_seeds(values)})"
                for overlap, values in values_of.items()
            ]
            lines.append(f"- `{dataset}`, together, {what}: {'; '.join(parts)}.")
    return "\n".join(lines)


def uncontrolled(results: Results) -> str:
    """What the paper does not control for, and what it makes here."""

    def points(run: str, over: str, dataset: str = "moves", measure: str = "top1") -> str:
        values = results.difference(*gain(run, over, dataset, measure))
        return f"{signed(values)} (more {_in_which_seeds(values)})"

    epochs = results.difference(*gain("videos_all", "moves", "moves"))
    steps = results.difference(*gain("moves_long", "moves", "moves"))
    share = f", {100 * steps.mean() / epochs.mean():.0f}% of it" if epochs.mean() > 0 else ""
    trained_on = {
        run: f"{spread(results.top1(run, 'outfits', 'trained_on'))}"
        for run in ("outfits", "outfits_long", "videos_all")
    }
    return f"""- **The number of steps.** Together, a run has more steps than a dataset alone for as many epochs. Here
  `moves` has {signed(epochs)} together, all shared, over alone for as many epochs.
  Alone for as many steps as together it has
  {points("moves_long", "moves")}{share}. To `outfits` the steps alone are worth
  {points("outfits_long", "outfits", "outfits")}.
- **Quantity against overlap.** More datasets are more rows, and more rows of the same. At equal clips, classes and
  steps, all shared in place of none is worth {points("videos_all", "videos_none")} to `moves`, and
  {points("videos_all", "videos_none", "outfits")} to `outfits`. Where half is shared, the motions that are have
  {points("videos_half", "moves_long", measure="shared")} over alone for as many steps, the others
  {points("videos_half", "moves_long", measure="others")}. At equal steps and overlap, four times the clips of
  `moments` are worth {points("videos_all", "videos_all_few")} to `moves` with all shared, and
  {points("videos_none", "videos_none_few")} with none.
- **The division of the update.** Each step's update is divided among the datasets: AdamW's, and a clipped one, is as
  large for one as for three. With none shared, `moves` has {points("videos_none", "moves_long")} with AdamW over alone
  for as many steps, and {points("sgd_videos_none", "sgd_moves_long")} with SGD. On the rows that it is trained on,
  `outfits` has {trained_on["outfits"]} alone for as many epochs, {trained_on["outfits_long"]} alone for as many steps,
  and {trained_on["videos_all"]} together, all shared."""


def draw_gains(results: Results, path: Path) -> None:
    """Gain against overlap, and of two numbers of clips: the means, and a dot for each seed."""
    with plain_text({}):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, unit in zip(axes, OVER, strict=True):
            for place, (dataset, colour) in enumerate((("moves", "tab:blue"), ("outfits", "tab:orange"))):
                lines = {("-", "o", dataset): gains(results, dataset, unit)}
                if unit == "steps":
                    lines["--", "s", f"{dataset}, a quarter of moments' clips"] = gains(
                        results, dataset, "steps", few=True
                    )
                for ((style, marker, label), found), shift in zip(lines.items(), (0.03, 0.09), strict=False):
                    places = [list(MOMENTS).index(overlap) + (2 * place - 1) * shift for overlap in found]
                    means = [values.mean() for values in found.values()]
                    axis.plot(places, means, style, color=colour, label=label)
                    for x, values in zip(places, found.values(), strict=True):
                        axis.plot(np.full(len(values), x), values, marker, color=colour, markersize=3.5, alpha=0.6)
            axis.axhline(0, color="black", linewidth=0.8)
            axis.set_xticks(range(len(MOMENTS)), [f"{overlap} shared" for overlap in MOMENTS])
            axis.set_title(f"together, minus alone for as many {unit}", fontsize=10)
            axis.legend(frameon=False, fontsize=8)
        axes[0].set_ylabel("points of top-1")
        figure.savefig(path, dpi=110)


def conclusion(results: Results, name: str) -> list[str]:
    """The paragraphs of what comes out."""
    return [
        "## What comes out: gain against overlap and number of clips",
        f"![Gain of co-training against overlap, of two numbers of clips]({name}/{GAINS_PICTURE})",
        gain_sentences(results),
        gain_table(results),
        "## What was expected, and whether it was so",
        expectations_in_words(results),
        expectation_table(results),
        "## What the paper does not control for",
        uncontrolled(results),
    ]


def _markdown_table(corner: str, table: Table) -> str:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [[corner, *columns], ["---"] * (1 + len(columns))]
    for name, row in table.items():
        cells = [row.get(column) for column in columns]
        lines.append([name, *("-" if cell is None else _cell(cell) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float | np.ndarray | str) -> str:
    if isinstance(value, str):
        return value
    return spread(value) if isinstance(value, np.ndarray) else f"{value:.1f}"


def _in_words(comparisons: Sequence[Comparison]) -> list[str]:
    """Where the miniature agrees with the paper and where it does not."""
    paragraphs = ["## Where it agrees, and where it does not"]
    texts = {
        "agrees": "As in the paper, in every seed",
        "disagrees": "Opposite to the paper, in every seed",
        "undecided": "Not the same in every seed",
    }
    for verdict, text in texts.items():
        if claims := [claim for comparison in comparisons for claim in comparison.claims if claim.verdict == verdict]:
            listed = "; ".join(
                f"{claim.text} ({signed(claim.miniature)}, the paper {claim.paper:+.1f})" for claim in claims
            )
            paragraphs.append(f"**{text}** ({len(claims)}): {listed}.")
    return paragraphs


def summary_table(comparisons: Sequence[Comparison]) -> str:
    lines = [["", "difference", "paper", "here", ""], ["---"] * 5]
    for comparison in comparisons:
        where = comparison.title.partition(":")[0]
        lines += [
            [where, claim.text, f"{claim.paper:+.1f}", signed(claim.miniature), claim.verdict]
            for claim in comparison.claims
        ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_report(
    results: Results,
    comparisons: Sequence[Comparison],
    introduction: str,
    folder: Path,
    name: str,
    sections: Sequence[str] = (),
) -> Path:
    """Writes `name`.md and its pictures, in a folder beside it of the same name, and returns the path of the page.

    `sections` are paragraphs more, in Markdown, at the end.
    """
    pictures = folder / name
    pictures.mkdir(parents=True, exist_ok=True)
    draw_gains(results, pictures / GAINS_PICTURE)
    parts = [introduction, *conclusion(results, name), *_in_words(comparisons), summary_table(comparisons)]
    for comparison in comparisons:
        parts += [f"## {comparison.title}", comparison.text]
        if comparison.paper:
            parts.append(_markdown_table("the paper", comparison.paper))
        parts.append(_markdown_table("the miniature", comparison.miniature))
        if comparison.picture is not None:
            draw(comparison, pictures / comparison.picture)
            parts.append(f"![{comparison.title}]({name}/{comparison.picture})")
        parts.append("\n".join(f"- {claim}" for claim in comparison.claims))
    page = folder / f"{name}.md"
    page.write_text("\n\n".join(part for part in (*parts, *sections) if part) + "\n", encoding="utf-8")
    return page


def draw(comparison: Comparison, path: Path) -> None:
    """Bars of the means of each row, beside one another for each dataset, with a dot for each seed; the paper's on the
    left."""
    with plain_text(comparison.miniature):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, title, table in zip(
            axes, ("the paper", "the miniature"), (comparison.paper, comparison.miniature), strict=True
        ):
            columns = list(dict.fromkeys(column for row in table.values() for column in row))
            width = 0.8 / len(table)
            for index, (name, row) in enumerate(table.items()):
                there = [column for column in columns if row.get(column) is not None]
                places = np.array([columns.index(column) for column in there]) + (index - (len(table) - 1) / 2) * width
                values = [np.atleast_1d(row[column]) for column in there]
                shade = 0.85 - 0.65 * index / max(len(table) - 1, 1)
                means = [value.mean() for value in values]
                bars = axis.bar(places, means, 0.92 * width, color=_blue(shade), label=name)
                labels = [f"{mean:.1f}" for mean in means]
                axis.bar_label(
                    bars, labels, label_type="center", fontsize=7, color="black" if shade > 0.5 else "white"
                )
                for place, value in zip(places, values, strict=True):
                    if len(value) > 1:
                        axis.plot(np.full(len(value), place), value, "o", color="black", markersize=2.5)
            axis.set_xticks(range(len(columns)), columns)
            axis.set_title(title)
            axis.set_ylabel(comparison.paper_measure if title == "the paper" else "top-1, %")
            axis.margins(y=0.15)
            axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.1), ncols=2, frameon=False)
        figure.savefig(path, dpi=110)


def _blue(shade: float) -> tuple[float, float, float]:
    """From dark (0) to light (1)."""
    return 0.1 + 0.65 * shade, 0.25 + 0.6 * shade, 0.5 + 0.45 * shade
