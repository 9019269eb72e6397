# SPDX-License-Identifier: Apache-2.0
"""Measure how much of the training time is spent waiting for data, with the quickstart's model on its compact data.

    python examples/benchmark_wait.py [--num_workers 0 1 2] [--steps 250]

Prepares compact versions of the quickstart's three datasets (drawn first if need be). Trains its model on them for
some steps with each number of workers, on one thread beside them, as `make quickstart` does. Prints the table of
docs/compact_data.md: the share of the time that the training loop waited, without the first steps, in which workers
start. About 2 minutes on 2 CPU cores.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from modeling_cover import CoverTrainer, CoverTrainingArguments, Recipe, load_recipe, prepare_cotraining
from modeling_cover.dataset_tools.preparation import prepare_dataset
from modeling_cover.dataset_tools.prepared_rows import PreparationSettings
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from quickstart_data import QUICKSTART, QUICKSTART_DATA, draw_quickstart


LOGGING_STEPS = 25


def compact_recipe(folder: Path) -> Recipe:
    """The quickstart's recipe, on compact copies of its data in `folder`."""
    recipe = load_recipe(QUICKSTART)
    return replace(recipe, datasets=tuple(compact(dataset, recipe, folder) for dataset in recipe.datasets))


def compact(dataset: DatasetRecipe, recipe: Recipe, folder: Path) -> DatasetRecipe:
    num_frames = recipe.clips.num_frames if dataset.modality == "video" else None
    settings = PreparationSettings(
        modality=dataset.modality, num_frames=num_frames, short_side=recipe.clips.short_side
    )
    prepare_dataset(dataset, folder / dataset.name, settings)
    splits = {split: str(folder / dataset.name / split) for split in dataset.splits}
    return replace(dataset, format="webdataset", columns={}, splits=splits)


def train(recipe: Recipe, steps: int, num_workers: int) -> tuple[list[float], float]:
    """Train, and return the part of the time that was spent waiting, at each log, and the steps a second."""
    with tempfile.TemporaryDirectory() as folder:
        options = {key: recipe.training[key] for key in ("per_device_train_batch_size", "optim", "learning_rate")}
        args = CoverTrainingArguments(
            folder,
            max_steps=steps,
            logging_steps=LOGGING_STEPS,
            dataloader_num_workers=num_workers,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            **options,
        )
        trainer = CoverTrainer(args=args, **prepare_cotraining(recipe, args.seed, folder).trainer_kwargs)
        seconds = trainer.train().metrics["train_runtime"]
        waits = [entry["data_wait"] for entry in trainer.state.log_history if "data_wait" in entry]
        return waits[1:], steps / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=250)
    arguments = parser.parse_args()
    if arguments.steps < 2 * LOGGING_STEPS:
        parser.error(f"--steps must be at least {2 * LOGGING_STEPS}")
    torch.set_num_threads(1)  # of the training process; each worker has one anyway
    draw_quickstart(QUICKSTART_DATA)
    with tempfile.TemporaryDirectory() as name:
        recipe = compact_recipe(Path(name))
        rows = []
        for num_workers in arguments.num_workers:
            waits, speed = train(recipe, arguments.steps, num_workers)
            rows.append(f"| {num_workers} | {statistics.mean(waits):.1%} | {max(waits):.1%} | {speed:.1f} |")
    print("\n| workers | waiting, on average | at most, of 25 steps | steps a second |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
