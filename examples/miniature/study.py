# SPDX-License-Identifier: Apache-2.0
"""Doing the runs of a study: each is a recipe, written into its folder, that `examples/cotrain.py` trains by itself,
too."""

import dataclasses
import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from miniature.data import DIRECTED_DATASETS, IMAGE_DATASETS, LABELS, draw_miniature
from miniature.decoding import DecodedOnce
from miniature.measures import accuracies
from miniature.plan import DROPS, Run, Scale, plan_runs
from modeling_cover import (
    CoverForVideoClassification,
    CoverTrainer,
    CoverVideoProcessor,
    Recipe,
    load_recipe,
    prepare_cotraining,
)
from modeling_cover.commands.diagnose import diagnose, short_run
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.evaluation.probes import choose_l2, fit_linear
from modeling_cover.evaluation.running import extract_features, score_rows
from modeling_cover.evaluation.views import Views, ViewsDataset
from modeling_cover.files import replacing, to_json
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from modeling_cover.training.arguments import parse_training_arguments
from transformers import set_seed


METRICS = "metrics.json"
PRETRAINING_SEED = 0
PRETRAINING_DATASETS = {"wardrobe"}
# Small models from random weights learn faster with larger ones than the usual.
ENCODER = {"patch_size": 8, "initializer_range": 0.1, "time_initializer_range": 1.0}
VIEWS = Views(1, 3)  # as the paper has them (section 4.1)


def dataset_entry(name: str, split: str) -> dict[str, Any]:
    """What a recipe says of a dataset, whatever the run; `split` is the one that is evaluated."""
    return {
        "format": "class_folders",
        "modality": "image" if name in IMAGE_DATASETS else "video",
        "splits": {"train": f"{name}/train", "validation": f"{name}/{split}"},
        "labels": list(LABELS[name]),
        "horizontal_flip": name not in DIRECTED_DATASETS,
    }


@dataclass(frozen=True, kw_only=True)
class Study:
    """All runs of some seeds.

    Attributes:
        output: the folder of data and runs.
        scale: how large it is.
        seeds: each of data, weights and order of its own; pre-training is there once, as in the paper. Some runs are
            done for the first of them only.
        split: that is evaluated, "test" or "validation".
        use_gpu: whether to train on it.
    """

    output: Path
    scale: Scale
    seeds: tuple[int, ...]
    split: str = "test"
    use_gpu: bool = False

    def tasks(self) -> list[tuple[Run, int]]:
        """Each run and its seed, after the one that it starts from."""
        runs = plan_runs()
        pretraining = [(run, PRETRAINING_SEED) for run in runs if run.stage == "pretraining"]
        return pretraining + [
            (run, seed)
            for index, seed in enumerate(self.seeds)
            for run in runs
            if run.stage != "pretraining" and (run.num_seeds is None or index < run.num_seeds)
        ]

    def needed(self, run: Run, seed: int) -> list[tuple[str, int]]:
        """The run and its seed that must be done before; none before those that start from random weights."""
        return [] if run.start is None else [(run.start, _seed_of(run.start, seed))]

    def draw(self, fashion_mnist: Path) -> None:
        """Draws what all seeds train on and are evaluated on.

        Raises:
            ValueError: if Fashion-MNIST is not in its folder.
        """
        for seed in (PRETRAINING_SEED, *self.seeds):
            datasets = PRETRAINING_DATASETS if seed == PRETRAINING_SEED else set(LABELS) - PRETRAINING_DATASETS
            files = {
                name: {part: numbers[part] for part in ("train", self.split)}
                for name, numbers in self.scale.files_per_label.items()
                if name in datasets
            }
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
            {"name": run.head(name), **dataset_entry(name, self.split), "weight": weight}
            for name, weight in run.datasets.items()
        ]
        return {
            "data_root": str(self._data(seed)),
            "model": {**model, "default_head": datasets[0]["name"]},
            "clips": {**clips, "short_side": clips["image_size"] * 9 // 8},
            "mixture": {"sampling": "proportional", **run.mixture},
            "datasets": datasets,
            "training": self._training(run, seed),
        }

    def _training(self, run: Run, seed: int) -> dict[str, Any]:
        """The arguments of the training of a run."""
        scale, steps = self.scale, self.scale.steps(run)
        steps_per_epoch = math.ceil(scale.num_rows(*run.datasets) / scale.rows[run.stage])
        return {
            **scale.training,
            **scale.optimizers[run.optimizer],
            "learning_rate": scale.learning_rates[run.optimizer][run.kind],
            # In epochs of the run's own data, at the same parts of the training whatever it is as long as.
            "learning_rate_drop_epochs": [part * steps / steps_per_epoch for part in DROPS],
            "output_dir": str(self.folder(run.name, seed)),
            "max_steps": steps,
            "per_device_train_batch_size": scale.rows[run.stage],
            "save_strategy": "steps",
            "save_steps": 500,
            "save_total_limit": 1,
            "logging_steps": 500,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": seed,
            "use_cpu": not self.use_gpu,
        }

    def settings(self, run: Run, seed: int) -> dict[str, Any]:
        """What the metrics of a run depend on."""
        files = {name: dict(self.scale.files_per_label[name]) for name in (*run.datasets, *run.probes)}
        return {"recipe": self.recipe(run, seed), "files_per_label": files}

    def finished(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The metrics of the runs that are done, by name and seed.

        Raises:
            ValueError: if there is a run of other settings.
        """
        done = {}
        for run, seed in self.tasks():
            path, settings = self.folder(run.name, seed) / METRICS, self.settings(run, seed)
            if path.exists():
                written = json.loads(path.read_text(encoding="utf-8"))
                if {key: written[key] for key in settings} != settings:
                    raise ValueError(
                        f"{path.parent} holds a run of other settings: name another --output, or remove it"
                    )
                done[run.name, seed] = written
        return done

    def do(self, run: Run, seed: int) -> dict[str, Any]:
        """Trains, from where it was if it was begun, evaluates, and returns the metrics."""
        folder, settings = self.folder(run.name, seed), self.settings(run, seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(settings["recipe"], sort_keys=False), encoding="utf-8")
        started = time.perf_counter()
        with open(folder / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            measured = self._train_and_evaluate(run, seed, folder)
        metrics = {**settings, **measured, "seconds": time.perf_counter() - started}
        with replacing(folder / METRICS) as file:
            file.write(to_json(metrics, indent=1))
        # After the metrics: a study that is killed meanwhile must not find a run without them, and half a checkpoint.
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return metrics

    def _train_and_evaluate(self, run: Run, seed: int, folder: Path) -> dict[str, dict[str, Any]]:
        if run.stage == "diagnosis":
            return {"diagnosis": _diagnose(folder, self.scale.diagnosed_steps)}
        model = _train(folder / "recipe.yaml")
        processor = CoverVideoProcessor.from_pretrained(folder)
        sources = {}
        for name in (*run.datasets, *run.probes):
            recipe = DatasetRecipe(name=name, **dataset_entry(name, self.split)).resolved(self._data(seed))
            sources[name] = {part: _decoded_once(source, processor) for part, source in read_sources(recipe).items()}
        return _evaluate(run, model, processor, sources)


def _seed_of(name: str, seed: int) -> int:
    return PRETRAINING_SEED if name.startswith("pretrained") else seed


def _of_seed(seed: int) -> str:
    return "pretraining" if seed == PRETRAINING_SEED else f"seed_{seed}"


def _decoded_once(source: Source, processor: CoverVideoProcessor) -> Source:
    return dataclasses.replace(source, media=DecodedOnce(source.media, source.modality, processor))


def _train(path: Path) -> CoverForVideoClassification:
    trainer = _trainer(load_recipe(path))
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    return trainer.model.eval()


def _diagnose(folder: Path, steps: int) -> dict[str, Any]:
    """What `cover diagnose` writes of the recipe in a run's folder."""
    with tempfile.TemporaryDirectory() as nobodys:
        return diagnose(_trainer(short_run(load_recipe(folder / "recipe.yaml"), steps, None, nobodys)))


def _trainer(recipe: Recipe) -> CoverTrainer:
    """As cotrain.py has it for a recipe, but that no file is decoded twice, which takes longer than a step on it."""
    args = parse_training_arguments(recipe, [])
    set_seed(args.seed)
    cotraining = prepare_cotraining(recipe, args.seed, args.output_dir)
    sources = cotraining.train_dataset.sources
    sources.update({name: _decoded_once(source, cotraining.processor) for name, source in sources.items()})
    return CoverTrainer(args=args, **{**cotraining.trainer_kwargs, "eval_dataset": None})


def _evaluate(
    run: Run,
    model: CoverForVideoClassification,
    processor: CoverVideoProcessor,
    sources: Mapping[str, Mapping[str, Source]],
) -> dict[str, dict[str, float]]:
    """Top-1 of each dataset, and what else `accuracies` tells apart; on the rows that it was trained on; of videos
    also played backwards; and of a linear classifier of the frozen encoder's features."""
    measured = {"top1": {}, "trained_on": {}, "reversed": {}}
    for name in run.datasets:
        head, evaluated = run.head(name), sources[name]["validation"]
        predicted = _predicted(model, head, ViewsDataset(evaluated, processor, views=VIEWS))
        for measure, accuracy in accuracies(name, predicted, evaluated.classes).items():
            measured.setdefault(measure, {})[name] = accuracy
        if run.stage != "pretraining":
            trained_on = sources[name]["train"]
            predicted = _predicted(model, head, ViewsDataset(trained_on, processor))
            measured["trained_on"][name] = float((predicted == trained_on.classes).mean())
        if run.backwards and evaluated.modality == "video":
            reverse = ViewsDataset(evaluated, processor, views=VIEWS, frame_order="reversed")
            predicted = _predicted(model, head, reverse)
            measured["reversed"][name] = float((predicted == evaluated.classes).mean())
    measured["probed"] = {name: _probe(model, processor, sources[name]) for name in run.probes}
    return measured


def _predicted(model: CoverForVideoClassification, head: str, dataset: ViewsDataset) -> np.ndarray:
    """The class of each row, (rows,)."""
    return score_rows(model, dataset, head, batch_size=32).outputs.argmax(axis=1)


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
