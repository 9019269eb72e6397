# SPDX-License-Identifier: Apache-2.0
"""What is trained in the study in miniature: how large, on what, for how long, and from where."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from miniature.data import FEW_MOMENTS, LABELS, MOMENTS, OVERLAP_OF, FilesPerLabel


# Of training, as in the paper: its learning rate drops after 11 and 15 of 20 epochs.
DROPS = (11 / 20, 15 / 20)
SECONDARY_SEEDS = 3  # the first ones, for what is not in the main table
DIAGNOSED_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a study is.

    Attributes:
        files_per_label: of each dataset and split.
        encoders: fields of `CoverConfig` of each size.
        inputs: frames of a clip and side of the crop, in pixels, of each input setting.
        rows: of a step of each stage, of all datasets together.
        epochs: of the mixture, of each stage.
        diagnosed_steps: of a diagnosis, see `cover diagnose`.
        training: arguments of all runs.
        optimizers: more arguments, of each optimizer.
        learning_rates: of each optimizer, and of each kind of run with it, see `Run.kind`.
    """

    files_per_label: FilesPerLabel
    encoders: Mapping[str, Mapping[str, int]]
    inputs: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, int]
    epochs: Mapping[str, float]
    diagnosed_steps: int
    training: Mapping[str, Any]
    optimizers: Mapping[str, Mapping[str, Any]]
    learning_rates: Mapping[str, Mapping[str, float]]

    def num_rows(self, *datasets: str) -> int:
        """That the datasets have to train on."""
        return sum(self.files_per_label[name]["train"] * len(LABELS[name]) for name in datasets)

    def steps(self, run: "Run") -> int:
        if run.stage == "diagnosis":
            return self.diagnosed_steps
        rows = self.num_rows(*(run.as_long_as or run.datasets))
        return math.ceil(self.epochs[run.stage] * rows / self.rows[run.stage])


# What the learning rates of the CPU scale were chosen by: top-1 in percent on the validation splits of seed 93. Where
# several datasets are trained together (with all shared), all are given, and no rate is best for each. What is not
# here was not tried, and has the rate of what is nearest.
TRIED = {
    ("adamw", "together"): {
        1e-3: "outfits 43.2, moves 92.2, moments_all 71.3",
        2e-3: "outfits 37.5, moves 91.5, moments_all 72.8",
    },
    ("adamw", "moves, as many epochs"): {1e-3: 58.2, 2e-3: 73.2, 4e-3: 79.2},
    ("adamw", "moves, as many steps"): {1e-3: 77.2, 2e-3: 85.5, 4e-3: 85.0},
    ("adamw", "outfits, as many epochs"): {1e-3: 45.2, 2e-3: 48.1},
    ("adamw", "outfits, as many steps"): {1e-3: 47.2},
    ("adamw", "moments, as many epochs"): {1e-3: 75.5, 2e-3: 79.2},
    ("sgd", "together"): {
        0.02: "outfits 43.5, moves 77.2, moments_all 60.0",
        0.05: "outfits 40.5, moves 85.0, moments_all 70.3",
        0.1: "outfits 28.1, moves 79.5, moments_all 59.3",
    },
    ("sgd", "moves, as many steps"): {0.05: 79.0, 0.1: 80.2},
    ("sgd", "moves, as many epochs"): {0.02: 23.0, 0.1: 69.2, 0.2: 68.8, 0.4: 15.8},
}

CPU = Scale(
    files_per_label={
        "outfits": {"train": 26, "validation": 45, "test": 45},
        "moves": {"train": 10, "validation": 50, "test": 50},
        **{key: {"train": 20, "validation": 17, "test": 17} for key in MOMENTS.values()},
        **{key: {"train": 5, "validation": 17, "test": 17} for key in FEW_MOMENTS.values()},
        "garments": {"train": 128, "validation": 50, "test": 50},
        "wardrobe": {"train": 600, "validation": 30, "test": 30},
    },
    encoders={
        "base": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
        "small": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    },
    inputs={"standard": {"num_frames": 4, "image_size": 24}, "small": {"num_frames": 3, "image_size": 16}},
    # Of a diagnosis more: the smallest set has a tenth of them.
    rows={"pretraining": 64, "training": 16, "transfer": 16, "diagnosis": 64},
    epochs={"pretraining": 12, "training": 60, "transfer": 30},
    diagnosed_steps=600,
    training={
        "weight_decay": 0.05,
        "max_grad_norm": 1.0,
        "warmup_steps": 20,
        "lr_scheduler_type": "constant_with_warmup",
    },
    optimizers={"adamw": {}, "sgd": {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.0}},
    learning_rates={
        "adamw": {
            "pretraining": 1e-3,
            "transfer": 1e-3,
            "together": 1e-3,
            "moves, as many epochs": 4e-3,
            "moves, as many steps": 2e-3,
            "outfits, as many epochs": 2e-3,
            "outfits, as many steps": 1e-3,
            "moments, as many epochs": 2e-3,
            "moments, as many steps": 2e-3,
        },
        "sgd": {"together": 0.05, "moves, as many epochs": 0.1, "moves, as many steps": 0.1},
    },
)

# Ten times the data, wider encoders, and four times the rows in a step.
GPU = dataclasses.replace(
    CPU,
    files_per_label={
        name: {"train": 10 * files["train"], "validation": 50, "test": 100}
        for name, files in CPU.files_per_label.items()
    },
    encoders={
        "base": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
        "small": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 384},
    },
    rows={stage: 4 * rows for stage, rows in CPU.rows.items()},
    training={**CPU.training, "bf16": True},
)

# To see that all of it works, in a minute or two; its metrics say nothing.
TINY = dataclasses.replace(
    CPU,
    files_per_label={name: {"train": 1, "validation": 1, "test": 1} for name in CPU.files_per_label},
    encoders={
        "base": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        "small": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    },
    epochs=dict.fromkeys(CPU.epochs, 0.6),
    diagnosed_steps=6,
)

SCALES = {"cpu": CPU, "gpu": GPU, "tiny": TINY}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, and what is measured after it.

    Attributes:
        name: of its folder.
        datasets: the weight of the loss of each.
        as_long_as: the datasets in whose mixture `Scale.epochs` are counted; by default the run's own. With others, a
            dataset alone has as many steps as all of them together.
        start: the run whose encoder it starts from; heads are always new.
        stage: "pretraining", "training" or "transfer"; or "diagnosis", which trains a few steps and keeps no model.
        encoder, input, optimizer: of the scale's.
        mixture: more of what its recipe says under `mixture`.
        num_seeds: how many of the seeds it is done for; None for all.
        backwards: whether clips are evaluated played backwards, too.
        probes: datasets for which a linear classifier is fitted to the encoder's features, too.
    """

    name: str
    datasets: Mapping[str, float]
    as_long_as: tuple[str, ...] = ()
    start: str | None = "pretrained"
    stage: str = "training"
    encoder: str = "base"
    input: str = "standard"
    optimizer: str = "adamw"
    mixture: Mapping[str, Any] = field(default_factory=dict)
    num_seeds: int | None = None
    backwards: bool = False
    probes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What its learning rate goes by."""
        if self.stage in ("pretraining", "transfer"):
            return self.stage
        if len(self.datasets) > 1:
            return "together"
        (dataset,) = self.datasets
        name = "moments" if dataset in OVERLAP_OF else dataset
        return f"{name}, as many {'steps' if self.as_long_as else 'epochs'}"

    def head(self, dataset: str) -> str:
        """Another name than in the run that it starts from, whose heads stay in the checkpoint as they are."""
        return dataset if self.stage in ("training", "diagnosis") else f"{dataset}_{self.stage}"


def videos(overlap: str) -> tuple[str, ...]:
    """The three video datasets, with `moments` of an overlap."""
    return "outfits", "moves", MOMENTS[overlap]


def _weights(*datasets: str) -> dict[str, float]:
    return dict.fromkeys(datasets, 1.0)


def _core_runs() -> list[Run]:
    """Those of the main table: each video dataset alone, for as many epochs and for as many steps as together; and
    together, at each overlap."""
    together = [
        Run(name=f"videos_{overlap}", datasets=_weights(*videos(overlap)), backwards=overlap == "all")
        for overlap in MOMENTS
    ]
    alone, long = (
        [
            Run(
                name=name + suffix,
                datasets=_weights(name),
                as_long_as=as_long_as,
                backwards=name in ("outfits", "moves") and not suffix,
                probes=("moves",) if name != "moves" and not suffix else (),
                # Of the largest set, the longest runs, and not what the study is about.
                num_seeds=SECONDARY_SEEDS if name == MOMENTS["all"] else None,
            )
            for name in videos("all")
        ]
        for suffix, as_long_as in (("", ()), ("_long", videos("all")))
    )
    return together + long + alone


def _image_runs() -> list[Run]:
    """With images beside the videos, for as many steps as videos alone: as many epochs would take the longest of
    all."""
    with_images = _weights(*videos("all"), "garments")
    return [
        Run(
            name=f"images_{weight:g}",
            datasets={**with_images, "garments": weight},
            as_long_as=videos("all"),
            num_seeds=SECONDARY_SEEDS,
        )
        for weight in (0.5, 1.0)
    ]


def _few_runs() -> list[Run]:
    """Together with a quarter of the clips of the large set, for as many steps as with all of them: as long as those
    that each dataset has alone."""
    return [
        Run(
            name=f"videos_{overlap}_few",
            datasets=_weights("outfits", "moves", name),
            as_long_as=videos("all"),
            num_seeds=SECONDARY_SEEDS,
        )
        for overlap, name in FEW_MOMENTS.items()
    ]


def _sgd_runs() -> list[Run]:
    sgd = {"optimizer": "sgd", "num_seeds": SECONDARY_SEEDS}
    return [
        Run(name="sgd_videos_all", datasets=_weights(*videos("all")), **sgd),
        Run(name="sgd_videos_none", datasets=_weights(*videos("none")), **sgd),
        Run(name="sgd_moves_long", datasets=_weights("moves"), as_long_as=videos("all"), **sgd),
        Run(name="sgd_moves", datasets=_weights("moves"), **sgd),
    ]


def _diagnosed_runs() -> list[Run]:
    """Of each mixture that is trained, what is told beforehand; and with weights that adapt to the update."""
    mixtures = {f"videos_{overlap}": videos(overlap) for overlap in MOMENTS}
    mixtures["images_1"] = (*videos("all"), "garments")
    diagnoses = [
        Run(name=f"diagnosis_of_{name}", datasets=_weights(*datasets), stage="diagnosis", num_seeds=DIAGNOSED_SEEDS)
        for name, datasets in mixtures.items()
    ]
    equal = {"mixture": {"weights": "equal_updates"}, "num_seeds": SECONDARY_SEEDS}
    return diagnoses + [
        Run(name=f"equal_{overlap}", datasets=_weights(*videos(overlap)), **equal) for overlap in ("all", "none")
    ]


def _secondary_runs() -> list[Run]:
    together, secondary = _weights(*videos("all")), {"num_seeds": SECONDARY_SEEDS}
    runs = [
        Run(name="small_input", datasets=together, input="small", start="pretrained_small_input", **secondary),
        Run(name="small_encoder", datasets=together, encoder="small", start="pretrained_small_encoder", **secondary),
        # Whether the motions that `moves` does not have are as hard as those that it has.
        Run(name=MOMENTS["none"], datasets=_weights(MOMENTS["none"]), probes=("moves",), **secondary),
    ]
    sources = {
        "outfits": ("moves", "outfits", "videos_all"),
        "moves": ("outfits", MOMENTS["none"], MOMENTS["all"], "moves", "videos_all"),
    }
    return runs + [
        Run(name=f"{source}_to_{target}", datasets=_weights(target), start=source, stage="transfer", **secondary)
        for target, names in sources.items()
        for source in names
    ]


def plan_runs() -> list[Run]:
    """All runs of a seed, and those that it starts from before it."""
    wardrobe = {"datasets": _weights("wardrobe"), "start": None, "stage": "pretraining"}
    pretraining = [
        Run(name="pretrained", **wardrobe),
        Run(name="pretrained_small_input", input="small", **wardrobe),
        Run(name="pretrained_small_encoder", encoder="small", **wardrobe),
    ]
    together = [*_image_runs(), *_core_runs(), *_few_runs(), *_sgd_runs()]
    return [*pretraining, *together, *_diagnosed_runs(), *_secondary_runs()]
