# SPDX-License-Identifier: Apache-2.0
"""Each table and figure of the paper beside its miniature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from miniature.data import LABELS, MOMENTS
from miniature.plan import Scale
from miniature.results import Claim, Results, gain, shown, spread


PAPER_NAMES = {"outfits": "K400", "moves": "SSv2"}

# Row -> column -> one number of the paper's, or one of each seed, or text.
Table = Mapping[str, Mapping[str, float | np.ndarray | str | None]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table or figure of the paper, and what the study has of it; of some, the paper has nothing."""

    title: str
    text: str
    paper: Table
    miniature: Table
    claims: Sequence[Claim] = ()
    picture: str | None = None
    paper_measure: str = "top-1, %"


def compare(results: Results, scale: Scale) -> list[Comparison]:
    """Each table and figure of the paper that the study has a miniature of."""
    return [
        _co_training(results),
        _sgd(results),
        _image_weight(results),
        _reversed_frames(results),
        _frozen_transfer(results),
        _transfer(results, "outfits", ("moves", "outfits"), {"outfits": 1.3, "moves": 1.7}),
        _transfer(
            results,
            "moves",
            ("outfits", MOMENTS["none"], MOMENTS["all"], "moves"),
            {"moves": 2.0, "outfits": 1.8},
        ),
        _sizes(results, scale),
        _inputs(results, scale),
    ]


def _columns(dataset: str) -> dict[str, tuple[str, str]]:
    """The columns of the main table: the run, and what it calls a dataset of "outfits", "moves" and "moments"."""
    alone = MOMENTS["all"] if dataset == "moments" else dataset
    together = {
        f"together, {overlap} shared": (f"videos_{overlap}", MOMENTS[overlap] if dataset == "moments" else dataset)
        for overlap in MOMENTS
    }
    return {
        "alone, as many epochs": (alone, alone),
        "alone, as many steps": (f"{alone}_long", alone),
        **together,
        "all shared and images, as many steps": ("images_1", alone),
    }


def _co_training(results: Results) -> Comparison:
    rows = {}
    for dataset in ("outfits", "moves", "moments"):
        rows[dataset] = {
            column: f"{spread(results.top1(run, name))} ({results.top1(run, name, 'trained_on').mean():.0f})"
            for column, (run, name) in _columns(dataset).items()
        }
    for dataset, measure, text in (
        ("moments", "kind", "moments: the kind of garment"),
        ("moments", "motion", "moments: the motion"),
        ("moves", "shared", "moves: the motions that half has"),
        ("moves", "others", "moves: the other motions"),
    ):
        rows[text] = {column: results.top1(run, name, measure) for column, (run, name) in _columns(dataset).items()}
    hard = {overlap: results.top1(MOMENTS[overlap], MOMENTS[overlap], "motion") for overlap in ("all", "none")}
    claims = [
        Claim(
            f"{dataset}, {what}, over alone for as many {unit}", paper, results.difference(*gain(run, over, dataset))
        )
        for dataset, with_videos, with_images in (("outfits", 2.2, 2.2), ("moves", 3.4, 3.6))
        for unit, over in (("epochs", dataset), ("steps", f"{dataset}_long"))
        for what, run, paper in (
            ("with the other videos, all shared", "videos_all", with_videos),
            ("with the other videos, none shared", "videos_none", with_videos),
            ("with all shared and images", "images_1", with_images),
        )
    ]
    return Comparison(
        title="Tables 3 and 5: one model for all, or one for each",
        text="In parentheses: top-1 on the training rows. The paper's numbers are those of Table 5 (a), which "
        "starts from JFT-3B; alone is for as many epochs. Table 3 starts from ImageNet-21k. It has 80.7 on K400 "
        "alone and 83.1 with SSv2, MiT and ImageNet, and on SSv2 62.4 and 64.2. Of `moments`, columns without "
        "overlap have `moments_all`. Alone, and with images, it is there for the first seeds only. Its two sets of "
        f"motions alone, for as many epochs: {spread(hard['all'])} of the motions that `moves` has are right, and "
        f"{spread(hard['none'])} of the others.",
        paper={
            "K400": {"alone": 85.0, "with SSv2": 86.4, "with SSv2 and MiT": 87.2, "and ImageNet": 87.2},
            "SSv2": {"alone": 67.2, "with K400": 69.9, "with K400 and MiT": 70.6, "and ImageNet": 70.8},
            "MiT": {"alone": 44.9, "with K400 and SSv2": 45.9, "and ImageNet": 46.1},
        },
        miniature=rows,
        claims=claims,
    )


def _sgd(results: Results) -> Comparison:
    runs = {
        "alone, as many epochs": "moves",
        "alone, as many steps": "moves_long",
        "together, none shared": "videos_none",
        "together, all shared": "videos_all",
    }
    first = results.having(*(f"sgd_{run}" for run in runs.values()))
    return Comparison(
        title="SGD, as in the paper, beside AdamW",
        text="`moves`, and in parentheses its training rows. Both clip the norm of the gradient at 1, which the "
        "paper does not.",
        paper={},
        miniature={
            name: {
                row: f"{spread(first.top1(prefix + run, 'moves'))} "
                f"({first.top1(prefix + run, 'moves', 'trained_on').mean():.0f})"
                for row, run in runs.items()
            }
            for name, prefix in (("AdamW", ""), ("SGD", "sgd_"))
        },
    )


def _image_weight(results: Results) -> Comparison:
    runs = {"0": "videos_all", "0.5": "images_0.5", "1": "images_1"}
    first = results.having(*runs.values())
    rows = {weight: first.row(run) for weight, run in runs.items()}
    return Comparison(
        title="Table 6: the weight of the images' loss",
        text="The weight of the video losses is 1. At a weight of 0, no image is read. Here all three have as many "
        "steps, so with images there are fewer passes over the videos. The paper has more steps with images.",
        paper={
            "0": {"K400": 87.2, "SSv2": 70.6, "MiT": 45.9},
            "0.5": {"K400": 87.2, "SSv2": 70.8, "MiT": 46.1, "ImageNet": 86.1},
            "0.75": {"K400": 87.2, "SSv2": 70.6, "MiT": 45.8, "ImageNet": 86.6},
        },
        miniature=rows,
        claims=[
            Claim("garments, the larger weight in place of 0.5", 0.5, rows["1"]["garments"] - rows["0.5"]["garments"]),
            Claim("moves, the larger weight in place of 0.5", -0.2, rows["1"]["moves"] - rows["0.5"]["moves"]),
            Claim("moves, 0.5 in place of 0", 0.2, rows["0.5"]["moves"] - rows["0"]["moves"]),
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
        for how, run in (("alone", name), ("together", "videos_all"))
    }
    return Comparison(
        title="Table 2: frames in reverse order",
        text="Two motions of `moves`, those there and back, are themselves backwards.",
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
    sources = ("outfits", MOMENTS["none"], MOMENTS["all"])
    first = results.having(*sources)
    trained = first.top1("moves", "moves")
    frozen = {source: first.top1(source, "moves", "probed") for source in sources}
    return Comparison(
        title="Section 3.2: a frozen encoder of appearance, on motion",
        text="A linear classifier on the centre crop's features, from an encoder that was trained on something "
        f"else. The paper's 62.4 is from Table 3. Chance is {100 / len(LABELS['moves']):.1f}% here. The paper has no "
        "encoder of another set of motions.",
        paper={"encoder of K400": {"SSv2": 19.5}, "trained on SSv2": {"SSv2": 62.4}},
        miniature={
            **{f"encoder of {source}": {"moves": frozen[source]} for source in sources},
            "trained on moves": {"moves": trained},
        },
        claims=[Claim("moves, frozen encoder of outfits in place of training", -42.9, frozen["outfits"] - trained)],
    )


def _transfer(results: Results, target: str, sources: Sequence[str], gains: Mapping[str, float]) -> Comparison:
    """`gains`: the paper's, by the dataset that the encoder was trained on alone."""

    def of(source: str) -> np.ndarray:
        return results.top1(f"{source}_to_{target}", target)

    miniature = {f"{source} → {target}": {target: of(source)} for source in sources}
    miniature[f"all together → {target}"] = {target: of("videos_all")}
    claims = [
        Claim(f"co-trained in place of {source} → {target}", gain, of("videos_all") - of(source))
        for source, gain in gains.items()
    ]
    place = PAPER_NAMES[target]
    return Comparison(
        title=f"Figure 3 ({'a' if target == 'outfits' else 'b'}): fine-tuned on {target}, the miniature's {place}",
        text="The paper gives the gains of a co-trained encoder over that of a single dataset. The encoder of the "
        "target's own clips, and that of all videos together, were already trained on the target. So their gain "
        "over an encoder that was not is no surprise.",
        paper={
            f"co-trained in place of {PAPER_NAMES[source]} → {place}": {place: gain} for source, gain in gains.items()
        },
        miniature=miniature,
        claims=claims,
        picture=f"transfer_to_{target}.png",
        paper_measure="gain in top-1, points",
    )


def _sizes(results: Results, scale: Scale) -> Comparison:
    first = results.having("small_encoder")
    small, base = first.row("small_encoder"), first.row("videos_all")
    names = {key: f"{size['num_hidden_layers']} x {size['hidden_size']}" for key, size in scale.encoders.items()}
    return Comparison(
        title="Figure 4: two sizes of the encoder, both co-trained",
        text="A size is the encoder's layers x its width; the paper's are TimeSformer's Base and Large, and its "
        "numbers are of the text of its supplement B. The learning rate was chosen for the larger one.",
        paper={"Large in place of Base": {"K400": 3.2, "SSv2": 2.1, "MiT": 5.2}},
        miniature={names["small"]: small, names["base"]: base},
        claims=_claims_of_two("the larger encoder", (3.2, 2.1, 5.2), base, small),
        picture="sizes.png",
        paper_measure="gain in top-1, points",
    )


def _inputs(results: Results, scale: Scale) -> Comparison:
    first = results.having("small_input")
    small, standard = first.row("small_input"), first.row("videos_all")
    names = {key: f"{clip['num_frames']} x {clip['image_size']}²" for key, clip in scale.inputs.items()}
    return Comparison(
        title="Table 7: two input settings, both co-trained",
        text="A setting is the frames of a clip x the side of the crop in pixels. The paper's numbers are with K400.",
        paper={
            "8 x 224²": {"K400": 85.1, "SSv2": 67.4, "MiT": 44.2},
            "16 x 448²": {"K400": 87.2, "SSv2": 70.8, "MiT": 46.1},
        },
        miniature={names["small"]: small, names["standard"]: standard},
        claims=_claims_of_two("the larger input", (2.1, 3.4, 1.9), standard, small),
        picture="inputs.png",
    )


def _claims_of_two(
    what: str, paper: Sequence[float], row: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> list[Claim]:
    names = [shown(name) for name in ("outfits", "moves", MOMENTS["all"])]
    return [Claim(f"{name}, {what}", value, row[name] - other[name]) for name, value in zip(names, paper, strict=True)]
