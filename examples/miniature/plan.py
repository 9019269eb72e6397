# SPDX-License-Identifier: Apache-2.0
"""What is trained in the study in miniature: how large, on what, and from where."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miniature.data import FilesPerLabel


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a study is. What is called an update of a dataset is an optimizer step with `rows` of its rows.

    Attributes:
        files_per_label: of each dataset and split.
        encoders: fields of `CoverConfig` of each size.
        inputs: frames of a clip and side of the crop, in pixels, of each input setting.
        rows: of each dataset in a step.
        updates: of every dataset, in each stage.
        training: arguments of all runs.
    """

    files_per_label: FilesPerLabel
    encoders: Mapping[str, Mapping[str, int]]
    inputs: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, int]
    updates: Mapping[str, int]
    training: Mapping[str, Any]


CPU = Scale(
    files_per_label={
        "outfits": {"train": 20, "validation": 30, "test": 40},
        "moves": {"train": 12, "validation": 15, "test": 20},
        "garments": {"train": 150, "validation": 30, "test": 50},
        "wardrobe": {"train": 600, "validation": 30, "test": 50},
    },
    encoders={
        "base": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384},
        "large": {"hidden_size": 112, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 448},
    },
    inputs={"standard": {"num_frames": 4, "image_size": 32}, "small": {"num_frames": 2, "image_size": 24}},
    rows={"outfits": 8, "moves": 8, "garments": 16, "wardrobe": 64},
    updates={"pretraining": 1200, "training": 800, "transfer": 200},
    training={"learning_rate": 1e-3, "weight_decay": 0.05, "warmup_steps": 50, "lr_scheduler_type": "cosine"},
)

# Ten times the data, six times the updates and wider encoders.
GPU = dataclasses.replace(
    CPU,
    files_per_label={
        name: {"train": 10 * files["train"], "validation": 50, "test": 100}
        for name, files in CPU.files_per_label.items()
    },
    encoders={
        "base": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
        "large": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    },
    rows={"outfits": 32, "moves": 32, "garments": 32, "wardrobe": 128},
    updates={stage: 6 * updates for stage, updates in CPU.updates.items()},
    training={**CPU.training, "dataloader_num_workers": 8, "bf16": True},
)

# To see that all of it works, in a minute or two; its metrics say nothing.
TINY = dataclasses.replace(
    CPU,
    files_per_label={name: {"train": 1, "validation": 1, "test": 1} for name in CPU.files_per_label},
    encoders={
        "base": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        "large": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    },
    rows=dict.fromkeys(CPU.rows, 2),
    updates=dict.fromkeys(CPU.updates, 2),
)

SCALES = {"cpu": CPU, "gpu": GPU, "tiny": TINY}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, and what is measured after it.

    Attributes:
        name: of its folder.
        datasets: the weight of the loss of each.
        start: the run whose encoder it starts from; heads are always new.
        stage: "pretraining", "training" or "transfer", which decides the number of updates.
        encoder, input: of the scale's.
        backwards: whether clips are evaluated played backwards, too.
        probes: datasets for which a linear classifier is fitted to the encoder's features, too.
    """

    name: str
    datasets: Mapping[str, float]
    start: str | None = "pretrained"
    stage: str = "training"
    encoder: str = "base"
    input: str = "standard"
    backwards: bool = False
    probes: tuple[str, ...] = ()

    def head(self, dataset: str) -> str:
        """Another name than in the run that it starts from, whose heads stay in the checkpoint as they are."""
        return dataset if self.stage == "training" else f"{dataset}_{self.stage}"


def plan_runs() -> list[Run]:
    """All runs of a seed, and those that it starts from before it; the longest early, so that none is left over at the
    end."""
    together = {"outfits": 1.0, "moves": 1.0, "garments": 1.0}
    images = {"garments": 1.0}
    wardrobe = {"wardrobe": 1.0}
    pretraining = {"start": None, "stage": "pretraining"}
    runs = [
        Run(name="pretrained", datasets=wardrobe, **pretraining),
        Run(name="pretrained_large", datasets=wardrobe, encoder="large", **pretraining),
        Run(name="pretrained_small_input", datasets=wardrobe, input="small", **pretraining),
        Run(name="together_large", datasets=together, encoder="large", start="pretrained_large"),
        Run(name="outfits", datasets={"outfits": 1.0}, backwards=True, probes=("moves",)),
        Run(name="moves", datasets={"moves": 1.0}, backwards=True),
        Run(name="garments", datasets=images),
        Run(name="videos", datasets={"outfits": 1.0, "moves": 1.0}),
        Run(name="together", datasets=together, backwards=True),
        Run(name="together_0.5", datasets={**together, "garments": 0.5}),
        Run(name="together_0.75", datasets={**together, "garments": 0.75}),
        Run(name="together_from_scratch", datasets=together, start=None),
        Run(name="outfits_garments", datasets={"outfits": 1.0, "garments": 1.0}, probes=("moves",)),
        Run(name="together_small_input", datasets=together, input="small", start="pretrained_small_input"),
    ]
    for target in ("outfits", "moves"):
        sources = ("outfits", "moves", "together")
        # An encoder that was co-trained, but not on the target.
        sources += ("outfits_garments",) if target == "moves" else ()
        runs += [
            Run(name=f"{source}_to_{target}", datasets={target: 1.0}, start=source, stage="transfer")
            for source in sources
        ]
    return runs
