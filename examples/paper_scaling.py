# SPDX-License-Identifier: Apache-2.0
"""What the paper's runs are predicted to take, from what was measured of its largest: Large, 16 frames of 448 x 448.

A clip and an image take what they took in passes of 16 rows, with layers computed twice. With another model or other
clips they take so much more or less as there are operations. Communication and waiting for data are left out.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from encoder_sizes import operations
from modeling_cover import CoverConfig, Recipe, load_recipe


GPUS, ROWS_OF_A_GPU = 8, "16"
SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
LARGEST = ("large", 16, 448)


def size_of(recipe: Recipe) -> tuple[str, int, int]:
    """Of the model, and frames and side of a clip."""
    start = recipe.model.get("from_image_checkpoint") or recipe.model.get("from_pretrained", "")
    name = next((size for size in SIZES if f"-{size}" in start), None)
    if name is None:
        raise ValueError(f"model: expected a starting point called base or large, got {start!r}")
    return name, recipe.clips.num_frames, recipe.clips.image_size


@functools.cache
def operations_of(size: str, num_frames: int, side: int) -> tuple[int, int]:
    """Of a forward pass of a clip and of an image."""
    heads = {"a": {"labels": ["a", "b"]}}
    config = CoverConfig(**SIZES[size], image_size=side, num_frames=num_frames, patch_size=16, heads=heads)
    return operations(config, num_frames, side)


def prediction(path: Path, rows: Mapping[str, int], found: Mapping[str, Any]) -> list[str]:
    """A line of the table; `rows` are those of an epoch of each dataset, `found` is what benchmark_scaling.py
    measured."""
    recipe = load_recipe(path)
    size, num_frames, side = size_of(recipe)
    steps = found["step"][ROWS_OF_A_GPU]
    measured = [steps[clips] / int(ROWS_OF_A_GPU) for clips in (ROWS_OF_A_GPU, "0")]
    counted = zip(operations_of(size, num_frames, side), operations_of(*LARGEST), strict=True)
    of_clip, of_image = (time * mine / largest for time, (mine, largest) in zip(measured, counted, strict=True))
    clips, images = (
        sum(rows[dataset.name] for dataset in recipe.datasets if dataset.modality == modality)
        for modality in ("video", "image")
    )
    epochs = recipe.training["num_train_epochs"]
    hours = (clips * of_clip + images * of_image) / GPUS / 3600
    decoding = clips * found["samples"]["raw clip"] / 3600
    model = f"{size.title()}, {num_frames} x {side}²"
    rows_of_a_step = GPUS * int(ROWS_OF_A_GPU)
    steps_of_an_epoch = math.ceil((clips + images) / rows_of_a_step)
    counts = [f"{clips:,}", f"{images:,}" if images else "-", f"{steps_of_an_epoch:,}", str(epochs)]
    return [f"`{path.stem}`", model, *counts, f"{hours:.2g} h", f"{epochs * hours:.0f} h", f"{decoding:.0f} h"]


def predictions(paths: Sequence[Path], rows: Mapping[str, int], found: Mapping[str, Any]) -> tuple[list[str], list]:
    """The table's header and lines."""
    header = ["recipe", "model", "clips", "images", "steps an epoch", "epochs"]
    header += ["an epoch", f"all, {GPUS} GPUs", "preparing, one core"]
    return header, [prediction(path, rows, found) for path in paths]
