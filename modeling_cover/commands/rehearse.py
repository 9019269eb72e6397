# SPDX-License-Identifier: Apache-2.0
"""Try a recipe from end to end in a minute, before anything is downloaded.

    cover rehearse RECIPE.yaml [--steps 6] [--output outputs/rehearsal] [--any_training_argument value]

It writes stand-ins for the recipe's datasets: made-up clips and images of ten classes, called, laid out and listed as
those that are published. Then it does what a run does, with a small model of random weights and small clips: it reads
and checks the data, trains a few steps, stops half-way and resumes, evaluates each head, writes the checkpoint with
its card, loads it again, and predicts.

All else is the recipe's: the mixture, loss weights, augmentation, the optimizer and what is trained. What it prints
about accuracy says nothing. At the end it lists which files the recipe itself wants, and whether they are there.

What is left of the command line are training arguments, as of `cover train`.
"""

import argparse
import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from .. import (
    CoverForVideoClassification,
    CoverTrainer,
    CoverVideoProcessor,
    load_recipe,
    prepare_cotraining,
)
from ..bars import bar
from ..dataset_tools.stand_ins import moved, write_stand_ins
from ..model.file_access_cover import is_address, public_name
from ..recipe.dataset_recipe import DatasetRecipe
from ..recipe.recipe import ClipRecipe, Recipe
from ..text import make_printable, table
from ..training.arguments import MEASURING_SCHEDULES, last_layers, parse_training_arguments
from ..training.log_table import LogTable
from ..training.stop_signals import TrainingPreempted
from .failing import command_parser, parse_known, told


# In place of what the recipe starts from, which may be as large as it likes.
MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
}
FRAMES, SIDE, SHORT_SIDE = 4, 32, 40
ROWS = 8  # of a step

# What a recipe says of a model that is about its heads and what is trained of it, and holds for any.
_OF_ANY_MODEL = ("default_head", "drop_path_rate")
# The same of an adapter: what it says beyond these names layers.
_OF_ANY_LORA = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias")

# Of a recipe's training arguments those that are about many steps or devices, or send something elsewhere.
_NOT_REHEARSED = (
    "num_train_epochs",
    "learning_rate_drop_epochs",
    "load_best_model_at_end",
    "push_to_hub",
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "torch_compile",
    "bf16",
    "fp16",
    "tf32",
    "log_gradient_shares",
)


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = command_parser(__doc__, prog="cover rehearse")
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/rehearsal"), help="the folder of stand-ins and checkpoint, new"
    )
    options, others = parse_known(parser, arguments)
    if options.steps < 4:
        parser.error(f"--steps must be at least 4, to stop half-way, got {options.steps}")
    return options, others


def small(recipe: Recipe, folder: Path, steps: int) -> Recipe:
    """The recipe of a rehearsal in a folder: with stand-ins, a small model and a few steps."""
    training = {name: value for name, value in recipe.training.items() if name not in _NOT_REHEARSED}
    if training.get("lr_scheduler_type") in MEASURING_SCHEDULES:  # which go by evaluations
        training = {name: value for name, value in training.items() if not name.startswith("lr_scheduler")}
    if layers := last_layers(training.get("trained_part")):
        training["trained_part"] = f"last_{min(layers, MODEL['num_hidden_layers'])}_layers"
    training |= {
        "output_dir": str(folder / "run"),
        "max_steps": steps,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": ROWS,
        "warmup_steps": 0,
        "dataloader_num_workers": 0,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": steps // 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    kept = {key: recipe.model[key] for key in _OF_ANY_MODEL if key in recipe.model}
    if isinstance(lora := recipe.model.get("lora"), Mapping):
        kept["lora"] = {key: value for key, value in lora.items() if key in _OF_ANY_LORA}
    clips = ClipRecipe(num_frames=FRAMES, image_size=SIDE, short_side=SHORT_SIDE, sampling=recipe.clips.sampling)
    return dataclasses.replace(
        recipe,
        model={**kept, **MODEL},
        clips=clips,
        training=training,
        augmentation=_without_sizes(recipe.augmentation),
        # A folder for each, as two may have one list, or one file of classes.
        datasets=tuple(
            _small_dataset(dataset, folder / "data" / str(number)) for number, dataset in enumerate(recipe.datasets)
        ),
    )


def _small_dataset(dataset: DatasetRecipe, folder: Path) -> DatasetRecipe:
    """Its stand-in in a folder, with a head that the small model can have."""
    head = dataset.head
    if head.get("type") == "attentive":
        head = {**head, "num_heads": MODEL["num_attention_heads"]}
    return dataclasses.replace(moved(dataset, folder), augmentation=_without_sizes(dataset.augmentation), head=head)


def _without_sizes(augmentation: dict[str, Any]) -> dict[str, Any]:
    """Without what is in pixels of the recipe's own clips."""
    return {key: value for key, value in augmentation.items() if key != "short_side_range"}


class _StopAt(TrainerCallback):
    """Sends this process the signal that a cluster sends which wants its machine back."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


def rehearse(recipe: Recipe, folder: Path, steps: int, others: Sequence[str] = ()) -> str:
    """Do all of it in a folder; returns what is to be said of it.

    Raises:
        ValueError: if a dataset has no stand-ins, or something that the recipe asks for cannot be done.
    """
    given = {argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in others}
    if refused := sorted(given & {"output_dir", "max_steps"}):
        raise ValueError(f"--{refused[0]}: of a rehearsal these are --output and --steps")
    rehearsed = small(recipe, folder, steps)
    for dataset in bar(rehearsed.datasets, desc="writing stand-ins", unit="dataset"):
        write_stand_ins(dataset)
    stopped = _stopped_half_way(_trainer(rehearsed, others), steps // 2)
    trainer = _trainer(rehearsed, others)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    metrics = trainer.evaluate() if trainer.eval_dataset else {}
    trainer.create_model_card()
    done = f"Trained {steps} steps, stopped by a signal on the way and resumed from {stopped}."
    found = _table(trainer, rehearsed.datasets, metrics)
    return f"{found}\n\n{done}\nCheckpoint and card: {trainer.args.output_dir}"


def _table(trainer: CoverTrainer, datasets: Sequence[DatasetRecipe], metrics: Mapping[str, float]) -> str:
    """A line for each dataset: what was read, the loss of its last evaluation, or without one of its last step, and a
    prediction."""
    heads, predicted = trainer.model.config.heads, _predictions(trainer)
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    rows = [["dataset", "layout", "classes", "training rows", "validation rows", "loss", "a clip of it is"]]
    for dataset in datasets:
        name = dataset.name
        validated = (trainer.eval_dataset or {}).get(name, ())
        loss = metrics.get(f"eval_{name}_loss", logged.get(f"{name}_loss"))
        numbers = len(heads[name]["labels"]), trainer.train_dataset.sizes[name], len(validated)
        counts = [str(number) if number else "-" for number in numbers]
        rows.append([name, dataset.format, *counts, "-" if loss is None else f"{loss:.2f}", predicted[name]])
    return table(rows)


def _stopped_half_way(trainer: CoverTrainer, step: int) -> str:
    """The name of the checkpoint that a run leaves which is told to stop."""
    trainer.add_callback(_StopAt(step))
    try:
        trainer.train()
    except TrainingPreempted as preempted:
        return Path(preempted.checkpoint).name
    raise ValueError(f"the run ended before step {step}, at which it was to be told to stop")


def _trainer(recipe: Recipe, others: Sequence[str]) -> CoverTrainer:
    args = parse_training_arguments(recipe, others)
    set_seed(args.seed)
    seed = args.seed if args.data_seed is None else args.data_seed
    cotraining = prepare_cotraining(recipe, seed, args.output_dir)
    trainer = CoverTrainer(args=args, **cotraining.trainer_kwargs)
    trainer.remove_callback(LogTable)  # what it would print says nothing
    return trainer


def _predictions(trainer: CoverTrainer) -> dict[str, str]:
    """What the checkpoint, loaded again, makes of the first row of each dataset."""
    folder = trainer.args.output_dir
    model = CoverForVideoClassification.from_pretrained(folder).eval()
    processor = CoverVideoProcessor.from_pretrained(folder)
    predicted = {}
    for name, source in trainer.train_dataset.sources.items():
        inputs = processor(source.media[0].content, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).head_logits[name]
        predicted[name] = model.config.heads[name]["labels"][int(logits.argmax())]
    return predicted


def wanted_files(datasets: Sequence[DatasetRecipe]) -> str:
    """A table of what a recipe wants to be there, and what is."""
    rows = [["dataset", "wants", "is it there?"]]
    for dataset in datasets:
        places = [
            *(() if dataset.layout.has_named_splits else dataset.splits.values()),
            dataset.path,
            dataset.media_root,
        ]
        places += [dataset.synsets, dataset.labels if isinstance(dataset.labels, str) else None]
        for place in dict.fromkeys(place for place in places if place is not None):
            there = "remote" if is_address(place) else "yes" if os.path.exists(place) else "no"
            rows.append([dataset.name, public_name(place), there])
    return table(rows)


@told
def main(arguments: Sequence[str] | None = None) -> int:
    make_printable()
    options, others = parse_arguments(arguments)
    recipe = load_recipe(options.recipe)
    prepare_folder(options.output)
    said = rehearse(recipe, options.output, options.steps, others)
    print(f"\n{said}\n\nFor the run itself:\n\n{wanted_files(recipe.datasets)}")
    return 0


def prepare_folder(folder: Path) -> None:
    """Make the folder, or clear what an earlier rehearsal has left there.

    Raises:
        ValueError: if something else is in it.
    """
    mark = folder / ".rehearsal"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output: {folder} is not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not mark.is_file():
            raise ValueError(f"--output: {folder} holds something else: name another, or remove it")
        for name in ("data", "run"):
            shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


if __name__ == "__main__":
    sys.exit(main())
