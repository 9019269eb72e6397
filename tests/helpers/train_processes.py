# SPDX-License-Identifier: Apache-2.0
"""Started by test_trainer.py on several processes: one step, each with a part of the rows of its single-process twin, and
an evaluation."""

import json
import sys
from pathlib import Path

import torch
from modeling_cover.recipe.recipe import ClipRecipe, DatasetRecipe, Recipe
from test_trainer import MODEL, logged_and_evaluated, make_trainer, weights


def main(recipe_path: str, output: str, options: str, processes: str) -> None:
    folders = json.loads(Path(recipe_path).read_text())
    modalities, loss_weights = {"videos": "video", "images": "image"}, {"videos": 1.0, "images": 0.5}
    recipe = Recipe(
        datasets=tuple(
            DatasetRecipe(
                name=name,
                format="class_folders",
                modality=modalities[name],
                splits=folder,
                weight=loss_weights[name],
            )
            for name, folder in folders.items()
        ),
        clips=ClipRecipe(num_frames=2, image_size=16, short_side=20),
        model=MODEL,
    )
    trainer = make_trainer(recipe, Path(output).parent, **json.loads(options))
    before = weights(trainer.model)
    trainer.train()
    metrics = logged_and_evaluated(trainer)
    if trainer.args.process_index == 0:
        if trainer.accelerator.num_processes != int(processes):
            raise RuntimeError(f"expected {processes} processes, got {trainer.accelerator.num_processes}")
        after = weights(trainer.model)
        torch.save({name: after[name] - before[name] for name in after}, output)
        Path(output).with_suffix(".json").write_text(json.dumps(metrics))
    trainer.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
