# SPDX-License-Identifier: Apache-2.0
"""Runs of some steps, within the process of the test."""

import dataclasses
import shutil
from pathlib import Path

import torch
from killed_runs import build_recipe
from modeling_cover import CoverTrainer
from modeling_cover.hub.checkpoint_files import SUMS_NAME, TRAINING_STATE
from modeling_cover.hub.hashes import file_hashes, read_sums, sums_text
from modeling_cover.recipe.recipe import Recipe
from tiny import tiny_trainer


def make_trainer(folder: Path, output_dir: Path, recipe=None, **options) -> CoverTrainer:
    defaults = {"per_device_train_batch_size": 4, "max_steps": 6, "save_steps": 3}
    return tiny_trainer(recipe or build_recipe(folder), output_dir, **{**defaults, **options})


def with_validation(recipe: Recipe) -> Recipe:
    """The recipe with its videos evaluated as well."""
    videos, images = recipe.datasets
    videos = dataclasses.replace(videos, splits={**videos.splits, "validation": videos.splits["train"]})
    return dataclasses.replace(recipe, datasets=(videos, images))


def final_weights(trainer: CoverTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def resumed_from(whole: Path, step: int, output_dir: Path, folder: Path, recipe: Recipe, **options) -> CoverTrainer:
    """A run that has gone on from a checkpoint of another."""
    shutil.copytree(whole / f"checkpoint-{step}", output_dir / f"checkpoint-{step}")
    trainer = make_trainer(folder, output_dir, recipe, **options)
    trainer.train(resume_from_checkpoint="auto")
    return trainer


def seal(checkpoint: Path) -> None:
    """Make the hashes of a checkpoint those of its files as they are now."""
    sums = checkpoint / TRAINING_STATE / SUMS_NAME
    names = [name for name in read_sums(sums) if (checkpoint / name).is_file()]
    sums.write_text(sums_text(file_hashes(checkpoint, names)))
