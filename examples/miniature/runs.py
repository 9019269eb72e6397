# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The runs of examples/paper_in_miniature.py: what each trains on and starts from, and how one is done.

A run is a recipe, written into its folder, so that `accelerate launch examples/cotrain.py` can do it again by itself.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from cotrain import parse_training_arguments
from miniature.data import IMAGE_DATASETS, LABELS, FilesPerLabel, draw_miniature
from modeling_cover import (
    CoverForVideoClassification,
    CoverTrainer,
    CoverVideoProcessor,
    load_recipe,
    prepare_cotraining,
)
from modeling_cover.dataset_recipe import DatasetRecipe
from modeling_cover.evaluation.probes import choose_l2, fit_linear
from modeling_cover.evaluation.running import extract_features, score_rows
from modeling_cover.evaluation.views import Views, ViewsDataset
from modeling_cover.sources import Source, read_sources
from transformers import set_seed


FIGURES = "figures.json"
PRETRAINING_SEED = 0
PRETRAINING_DATASETS = {"wardrobe"}
# Small models from random weights learn faster with larger ones than the usual.
ENCODER = {"patch_size": 8, "initializer_range": 0.1, "time_initializer_range": 1.0}
VIEWS = Views(1, 3)  # as the paper has them (section 4.1)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a study is. What is called an update of a data set is an optimizer step with `rows` of its rows.

    Attributes:
        files_per_label: of each data set and split.
        encoders: fields of `CoverConfig` of each size.
        inputs: frames of a clip and side of the crop, in pixels, of each input setting.
        rows: of each data set in a step.
        updates: of every data set, in each stage.
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
        "base": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256},
        "large": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 384},
    },
    inputs={"standard": {"num_frames": 8, "image_size": 32}, "small": {"num_frames": 4, "image_size": 24}},
    rows={"outfits": 8, "moves": 8, "garments": 16, "wardrobe": 64},
    updates={"pretraining": 1500, "training": 700, "transfer": 200},
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

# To see that all of it works, in a minute or two; its figures say nothing.
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
        probes: data sets for which a linear classifier is fitted to the encoder's features, too.
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


def dataset_entry(name: str, split: str) -> dict[str, Any]:
    """What a recipe says of a data set, whatever the run; `split` is the one that is evaluated."""
    return {
        "format": "class_folders",
        "modality": "image" if name in IMAGE_DATASETS else "video",
        "splits": {"train": f"{name}/train", "validation": f"{name}/{split}"},
        "labels": list(LABELS[name]),
        "horizontal_flip": name != "moves",  # which would turn left into right
    }


def plan_runs() -> list[Run]:
    """All runs of a seed, and those that it starts from before it; the longest early, so that none is left over at the end."""
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
        Run(name="moves_garments", datasets={"moves": 1.0, "garments": 1.0}),
        Run(name="together_small_input", datasets=together, input="small", start="pretrained_small_input"),
    ]
    for target in ("outfits", "moves"):
        for source in ("outfits", "moves", "outfits_garments", "moves_garments", "together"):
            if source != f"{target}_garments":
                name = f"{source}_to_{target}"
                runs.append(Run(name=name, datasets={target: 1.0}, start=source, stage="transfer"))
    return runs


@dataclass(frozen=True, kw_only=True)
class Study:
    """All runs of some seeds.

    Attributes:
        output: the folder of data and runs.
        scale: how large it is.
        seeds: each of data, weights and order of its own; pre-training is there once, as in the paper.
        split: that is evaluated, "test" or "validation".
        use_gpu: whether to train on it.
    """

    output: Path
    scale: Scale
    seeds: tuple[int, ...]
    split: str = "test"
    use_gpu: bool = False

    def tasks(self) -> list[tuple[Run, int]]:
        """Each run and its seed, after the one that it starts from; the longest first, so that no process is left with it alone."""
        runs = plan_runs()
        pretraining = [(run, PRETRAINING_SEED) for run in runs if run.stage == "pretraining"]
        return pretraining + [(run, seed) for seed in self.seeds for run in runs if run.stage != "pretraining"]

    def needed(self, run: Run, seed: int) -> list[tuple[str, int]]:
        """The run and its seed that must be done before; none before those that start from random weights."""
        return [] if run.start is None else [(run.start, _seed_of(run.start, seed))]

    def draw(self, fashion_mnist: Path) -> None:
        """Draws the data of all seeds.

        Raises:
            ValueError: if Fashion-MNIST is not in its folder.
        """
        for seed in (PRETRAINING_SEED, *self.seeds):
            datasets = PRETRAINING_DATASETS if seed == PRETRAINING_SEED else set(LABELS) - PRETRAINING_DATASETS
            files = {name: numbers for name, numbers in self.scale.files_per_label.items() if name in datasets}
            draw_miniature(self._data(seed), fashion_mnist, files, seed)

    def _data(self, seed: int) -> Path:
        return self.output / "data" / _of_seed(seed)

    def folder(self, name: str, seed: int) -> Path:
        """Of a run."""
        return self.output / "runs" / _of_seed(_seed_of(name, seed)) / name

    def recipe(self, run: Run, seed: int) -> dict[str, Any]:
        """What the recipe of a run says."""
        scale, clips = self.scale, self.scale.inputs[run.input]
        model = {**ENCODER, **scale.encoders[run.encoder]}
        if run.start is not None:
            model = {"from_pretrained": str(self.folder(run.start, seed))}
        datasets = [
            {
                "name": run.head(name),
                **dataset_entry(name, self.split),
                "weight": weight,
                "share": scale.rows[name],
            }
            for name, weight in run.datasets.items()
        ]
        training = {
            **scale.training,
            "output_dir": str(self.folder(run.name, seed)),
            "max_steps": scale.updates[run.stage],
            "per_device_train_batch_size": sum(scale.rows[name] for name in run.datasets),
            "save_strategy": "steps",
            "save_steps": 200,
            "save_total_limit": 1,
            "logging_steps": 100,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": seed,
            "use_cpu": not self.use_gpu,
        }
        return {
            "data_root": str(self._data(seed)),
            "model": {**model, "default_head": datasets[0]["name"]},
            "clips": {**clips, "short_side": clips["image_size"] * 9 // 8},
            "mixture": {"sampling": "shares"},
            "datasets": datasets,
            "training": training,
        }

    def do(self, run: Run, seed: int) -> dict[str, Any]:
        """Trains and evaluates, and returns the figures; what is done already is neither done again nor changed.

        Raises:
            ValueError: if the folder holds a run of other settings.
        """
        folder, recipe = self.folder(run.name, seed), self.recipe(run, seed)
        files = {name: dict(self.scale.files_per_label[name]) for name in (*run.datasets, *run.probes)}
        settings = {"recipe": recipe, "files_per_label": files}
        if (folder / FIGURES).exists():
            written = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
            if {key: written[key] for key in settings} != settings:
                raise ValueError(f"{folder} holds a run of other settings: name another --output, or remove it")
            return written
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        started = time.perf_counter()
        with open(folder / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            measured = self._train_and_evaluate(run, seed, folder)
        figures = {**settings, **measured, "seconds": time.perf_counter() - started}
        partial = folder / f"{FIGURES}.partial"
        partial.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        partial.rename(folder / FIGURES)
        return figures

    def _train_and_evaluate(self, run: Run, seed: int, folder: Path) -> dict[str, dict[str, float]]:
        model = _train(folder / "recipe.yaml")
        processor = CoverVideoProcessor.from_pretrained(folder)
        sources = {
            name: read_sources(DatasetRecipe(name=name, **dataset_entry(name, self.split)).resolved(self._data(seed)))
            for name in (*run.datasets, *run.probes)
        }
        return _evaluate(run, model, processor, sources)


def _seed_of(name: str, seed: int) -> int:
    return PRETRAINING_SEED if name.startswith("pretrained") else seed


def _of_seed(seed: int) -> str:
    return "pretraining" if seed == PRETRAINING_SEED else f"seed_{seed}"


def _train(path: Path) -> CoverForVideoClassification:
    recipe = load_recipe(path)
    args = parse_training_arguments(recipe, [])
    set_seed(args.seed)
    cotraining = prepare_cotraining(recipe, args.seed, args.output_dir)
    trainer = CoverTrainer(args=args, **{**cotraining.trainer_kwargs, "eval_dataset": None})
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    return trainer.model.eval()


def _evaluate(
    run: Run,
    model: CoverForVideoClassification,
    processor: CoverVideoProcessor,
    sources: Mapping[str, Mapping[str, Source]],
) -> dict[str, dict[str, float]]:
    """Top-1 of each data set; of videos also played backwards; and of a linear classifier of the frozen encoder's features."""
    top1, backwards = {}, {}
    for name in run.datasets:
        source = sources[name]["validation"]
        top1[name] = _top1(model, run.head(name), ViewsDataset(source, processor, views=VIEWS))
        if run.backwards and source.modality == "video":
            reverse = ViewsDataset(source, processor, views=VIEWS, frame_order="reversed")
            backwards[name] = _top1(model, run.head(name), reverse)
    probed = {name: _probe(model, processor, sources[name]) for name in run.probes}
    return {"top1": top1, "reversed": backwards, "probed": probed}


def _top1(model: CoverForVideoClassification, head: str, dataset: ViewsDataset) -> float:
    scored = score_rows(model, dataset, head, batch_size=32)
    return float((scored.outputs.argmax(axis=1) == scored.targets).mean())


def _probe(model: CoverForVideoClassification, processor: CoverVideoProcessor, splits: Mapping[str, Source]) -> float:
    """Top-1 of a linear classifier, whose strength of L2 is chosen on a part of the training rows."""
    train, evaluated = (
        extract_features(model, ViewsDataset(splits[part], processor), batch_size=32)
        for part in ("train", "validation")
    )
    features, targets = torch.from_numpy(train.outputs), torch.from_numpy(train.targets)
    num_classes = len(splits["train"].labels)
    classifier = fit_linear(features, targets, num_classes, choose_l2(features, targets, num_classes))
    predicted = classifier(torch.from_numpy(evaluated.outputs)).argmax(dim=-1).numpy()
    return float((predicted == evaluated.targets).mean())
