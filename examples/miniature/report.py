# SPDX-License-Identifier: Apache-2.0
"""The report of examples/paper_in_miniature.py: each table and figure of the paper beside its miniature, as Markdown
and PNG.

All numbers are top-1 in percent. A difference is taken within each seed, whose data and order of training the two runs
share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from miniature.data import LABELS
from miniature.plan import Scale
from modeling_cover.fonts import plain_text


PAPER_NAMES = {"outfits": "K400", "moves": "SSv2"}

Metrics = Mapping[str, Mapping[str, Any]]  # run -> what it measured
Table = dict[
    str, dict[str, float | np.ndarray | None]
]  # row -> column -> one number of the paper's, or one of each seed


@dataclass(frozen=True)
class Claim:
    """A difference that the paper reports, in points of top-1, and those of each seed (seeds,)."""

    text: str
    paper: float
    miniature: np.ndarray

    @property
    def verdict(self) -> str:
        """Whether each seed has the paper's sign, or its opposite, or they are of two minds."""
        signs = np.sign(self.miniature) * np.sign(self.paper)
        if (signs > 0).all():
            return "agrees"
        if (signs < 0).all():
            return "disagrees"
        return "undecided"

    def __str__(self) -> str:
        values = ", ".join(f"{value:+z.1f}" for value in self.miniature)
        return f"**{self.verdict}**: {self.text}: {self.paper:+.1f} in the paper, {_signed(self.miniature)} here ({values})"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table or figure of the paper, and what the study has of it."""

    title: str
    text: str
    paper: Table
    miniature: Table
    claims: Sequence[Claim]
    picture: str | None = None
    paper_measure: str = "top-1, %"


class Results:
    """What the runs of all seeds have measured."""

    def __init__(self, seeds: Sequence[Metrics]):
        self.seeds = seeds

    def top1(self, run: str, dataset: str, measure: str = "top1") -> np.ndarray:
        """Percent, of each seed (seeds,); `measure` is "top1", "reversed" or "probed"."""
        return 100 * np.array([metrics[run][measure][dataset] for metrics in self.seeds])

    def row(self, run: str, measure: str = "top1") -> dict[str, np.ndarray]:
        return {dataset: self.top1(run, dataset, measure) for dataset in self.seeds[0][run][measure]}


def compare(results: Results, scale: Scale) -> list[Comparison]:
    """Each table and figure of the paper that the study has a miniature of."""
    return [
        _co_training(results),
        _pretraining(results),
        _image_weight(results),
        _reversed_frames(results),
        _frozen_transfer(results),
        _transfer(results, "outfits", {"outfits": 1.3, "moves": 1.7}),
        _transfer(results, "moves", {"moves": 2.0, "outfits": 1.8}),
        _sizes(results),
        _inputs(results, scale),
    ]


def _co_training(results: Results) -> Comparison:
    alone = {name: results.top1(name, name) for name in ("outfits", "moves", "garments")}
    videos, together = results.row("videos"), results.row("together")
    return Comparison(
        title="Tables 3 and 5: one model for all, or one for each",
        text="The paper's numbers are those of Table 5 (a), which starts from JFT-3B. Table 3 starts from ImageNet-21k. It has 80.7 "
        "on K400 alone and 83.1 with SSv2, MiT and ImageNet, and on SSv2 62.4 and 64.2. The miniature has no third video "
        "dataset.",
        paper={
            "alone": {"K400": 85.0, "SSv2": 67.2, "MiT": 44.9},
            "K400 + SSv2": {"K400": 86.4, "SSv2": 69.9},
            "K400 + SSv2 + MiT": {"K400": 87.2, "SSv2": 70.6, "MiT": 45.9},
            "K400 + SSv2 + MiT + ImageNet": {"K400": 87.2, "SSv2": 70.8, "MiT": 46.1},
        },
        miniature={"alone": alone, "videos together": videos, "videos and images": together},
        claims=[
            Claim("outfits, with the other videos", 1.4, videos["outfits"] - alone["outfits"]),
            Claim("moves, with the other videos", 2.7, videos["moves"] - alone["moves"]),
            Claim("outfits, with videos and images", 2.2, together["outfits"] - alone["outfits"]),
            Claim("moves, with videos and images", 3.6, together["moves"] - alone["moves"]),
            Claim("moves, images beside the videos", 0.2, together["moves"] - videos["moves"]),
        ],
        picture="cotraining.png",
    )


def _pretraining(results: Results) -> Comparison:
    scratch, pretrained = results.row("together_from_scratch"), results.row("together")
    return Comparison(
        title="Table 4: more images to start from",
        text="All datasets are trained together, in the paper with K400. The paper pre-trains on 14 million images (Table 3), 300 "
        "million and 3 billion. The miniature pre-trains on none, or on those of `wardrobe`.",
        paper={
            "ImageNet-21k": {"K400": 83.1, "SSv2": 64.2, "MiT": 41.3},
            "JFT-300M": {"K400": 86.3, "SSv2": 69.3, "MiT": 45.0},
            "JFT-3B": {"K400": 87.2, "SSv2": 70.8, "MiT": 46.1},
        },
        miniature={"none": scratch, "wardrobe": pretrained},
        claims=[
            Claim("outfits, the most images in place of the fewest", 4.1, pretrained["outfits"] - scratch["outfits"]),
            Claim("moves, the most images in place of the fewest", 6.6, pretrained["moves"] - scratch["moves"]),
        ],
        picture="pretraining.png",
    )


def _image_weight(results: Results) -> Comparison:
    runs = {"0": "videos", "0.5": "together_0.5", "0.75": "together_0.75", "1": "together"}
    rows = {weight: results.row(run) for weight, run in runs.items()}
    return Comparison(
        title="Table 6: the weight of the images' loss",
        text="The weight of the video losses is 1. At a weight of 0, the images' loss has no weight and no image is read.",
        paper={
            "0": {"K400": 87.2, "SSv2": 70.6, "MiT": 45.9},
            "0.5": {"K400": 87.2, "SSv2": 70.8, "MiT": 46.1, "ImageNet": 86.1},
            "0.75": {"K400": 87.2, "SSv2": 70.6, "MiT": 45.8, "ImageNet": 86.6},
        },
        miniature=rows,
        claims=[
            Claim("garments, 0.75 in place of 0.5", 0.5, rows["0.75"]["garments"] - rows["0.5"]["garments"]),
            Claim("moves, 0.75 in place of 0.5", -0.2, rows["0.75"]["moves"] - rows["0.5"]["moves"]),
        ],
        picture="image_weight.png",
    )


def _reversed_frames(results: Results) -> Comparison:
    miniature = {
        f"{name}, {how}": {
            "forward": results.top1(run, name),
            "reversed": results.top1(run, name, "reversed"),
            "difference": results.top1(run, name, "reversed") - results.top1(run, name),
        }
        for name in ("outfits", "moves")
        for how, run in (("alone", name), ("together", "together"))
    }
    return Comparison(
        title="Table 2: frames in reverse order",
        text="",
        paper={
            "K400": {"forward": 78.1, "reversed": 78.0, "difference": -0.1},
            "SSv2": {"forward": 58.8, "reversed": 22.6, "difference": -36.2},
        },
        miniature=miniature,
        claims=[
            Claim("moves, alone, backwards", -36.2, miniature["moves, alone"]["difference"]),
            Claim(
                "how much more moves lose than outfits",
                -36.1,
                miniature["moves, alone"]["difference"] - miniature["outfits, alone"]["difference"],
            ),
        ],
    )


def _frozen_transfer(results: Results) -> Comparison:
    trained = results.top1("moves", "moves")
    frozen = {run: results.top1(run, "moves", "probed") for run in ("outfits", "outfits_garments")}
    return Comparison(
        title="Section 3.2: a frozen encoder of appearance, on motion",
        text="A linear classifier on the centre crop's features, from an encoder that was trained on something else. The paper's 62.4 "
        "is from Table 3. Chance is "
        f"{100 / len(LABELS['moves']):.0f}% here.",
        paper={"encoder of K400": {"SSv2": 19.5}, "trained on SSv2": {"SSv2": 62.4}},
        miniature={
            "encoder of outfits": {"moves": frozen["outfits"]},
            "encoder of outfits and garments": {"moves": frozen["outfits_garments"]},
            "trained on moves": {"moves": trained},
        },
        claims=[Claim("moves, frozen encoder of outfits in place of training", -42.9, frozen["outfits"] - trained)],
    )


def _transfer(results: Results, target: str, gains: Mapping[str, float]) -> Comparison:
    """`gains`: the paper's, by the dataset that the encoder was trained on alone."""

    def of(source: str) -> np.ndarray:
        return results.top1(f"{source}_to_{target}", target)

    miniature = {f"{source} → {target}": {target: of(source)} for source in ("outfits", "moves")}
    miniature[f"all together → {target}"] = {target: of("together")}
    claims = [
        Claim(f"co-trained in place of {source} → {target}", gain, of("together") - of(source))
        for source, gain in gains.items()
    ]
    if target == "moves":
        miniature["outfits and garments → moves"] = {target: of("outfits_garments")}
        unseen = of("outfits_garments") - of("outfits")
        claims.append(
            Claim("co-trained, but not on the target, in place of outfits → moves", gains["outfits"], unseen)
        )
    place = PAPER_NAMES[target]
    return Comparison(
        title=f"Figure 3 ({'a' if target == 'outfits' else 'b'}): fine-tuned on {target}, the miniature's {place}",
        text="The paper gives the gains of a co-trained encoder over that of a single dataset. The encoder of the target's own clips, "
        "and that of all datasets together, were already trained on the target. So their gain over an encoder that was not "
        "is no surprise.",
        paper={
            f"co-trained in place of {PAPER_NAMES[source]} → {place}": {place: gain} for source, gain in gains.items()
        },
        miniature=miniature,
        claims=claims,
        picture=f"transfer_to_{target}.png",
        paper_measure="gain in top-1, points",
    )


def _sizes(results: Results) -> Comparison:
    base, large = results.row("together"), results.row("together_large")
    return Comparison(
        title="Figure 4: Base and Large, both co-trained",
        text="The paper gives the gains of Large over Base.",
        paper={"gain of Large": {"K400": 3.2, "SSv2": 2.1, "MiT": 5.2}},
        miniature={"Base": base, "Large": large},
        claims=[
            Claim("outfits, Large", 3.2, large["outfits"] - base["outfits"]),
            Claim("moves, Large", 2.1, large["moves"] - base["moves"]),
        ],
        picture="sizes.png",
        paper_measure="gain in top-1, points",
    )


def _inputs(results: Results, scale: Scale) -> Comparison:
    small, standard = results.row("together_small_input"), results.row("together")
    names = {key: f"{clip['num_frames']} x {clip['image_size']}²" for key, clip in scale.inputs.items()}
    return Comparison(
        title="Table 7: two input settings, both co-trained",
        text="A setting is the frames of a clip x the side of the crop in pixels. The paper's numbers are with K400.",
        paper={
            "8 x 224²": {"K400": 85.1, "SSv2": 67.4, "MiT": 44.2},
            "16 x 448²": {"K400": 87.2, "SSv2": 70.8, "MiT": 46.1},
        },
        miniature={names["small"]: small, names["standard"]: standard},
        claims=[
            Claim("outfits, the larger input", 2.1, standard["outfits"] - small["outfits"]),
            Claim("moves, the larger input", 3.4, standard["moves"] - small["moves"]),
        ],
        picture="inputs.png",
    )


def _spread(values: np.ndarray, sign: str = "") -> str:
    """The mean and, of several seeds, the standard deviation."""
    mean = f"{values.mean():{sign}z.1f}"  # z: no minus before a zero
    return f"{mean} ± {values.std(ddof=1):.1f}" if len(values) > 1 else mean


def _signed(values: np.ndarray) -> str:
    return _spread(values, sign="+")


def _markdown_table(corner: str, table: Table) -> str:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [[corner, *columns], ["---"] * (1 + len(columns))]
    for name, row in table.items():
        cells = [row.get(column) for column in columns]
        lines.append([name, *("-" if cell is None else _cell(cell) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float | np.ndarray) -> str:
    return _spread(value) if isinstance(value, np.ndarray) else f"{value:.1f}"


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
                f"{claim.text} ({_signed(claim.miniature)}, the paper {claim.paper:+.1f})" for claim in claims
            )
            paragraphs.append(f"**{text}** ({len(claims)}): {listed}.")
    return paragraphs


def summary_table(comparisons: Sequence[Comparison]) -> str:
    lines = [["", "difference", "paper", "here", ""], ["---"] * 5]
    for comparison in comparisons:
        where = comparison.title.partition(":")[0]
        lines += [
            [where, claim.text, f"{claim.paper:+.1f}", _signed(claim.miniature), claim.verdict]
            for claim in comparison.claims
        ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_report(comparisons: Sequence[Comparison], introduction: str, folder: Path, name: str) -> Path:
    """Writes `name`.md and its pictures, in a folder beside it of the same name, and returns the path of the page."""
    pictures = folder / name
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [introduction, *_in_words(comparisons), summary_table(comparisons)]
    for comparison in comparisons:
        parts += [f"## {comparison.title}", comparison.text] if comparison.text else [f"## {comparison.title}"]
        parts += [
            _markdown_table("the paper", comparison.paper),
            _markdown_table("the miniature", comparison.miniature),
        ]
        if comparison.picture is not None:
            draw(comparison, pictures / comparison.picture)
            parts.append(f"![{comparison.title}]({name}/{comparison.picture})")
        parts.append("\n".join(f"- {claim}" for claim in comparison.claims))
    page = folder / f"{name}.md"
    page.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
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
