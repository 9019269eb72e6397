# SPDX-License-Identifier: Apache-2.0
"""What recipes on encoders of transformers are predicted to take, from what was measured of our Large.

Their operations are counted, not timed. They are taken to be done as fast as Large's were, and their memory is taken
to be what Large's was for each layer and token. So an encoder that keeps a GPU less busy takes longer than predicted:
images do, and attention over many tokens.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from encoder_sizes import HEADS, operations, published_config
from modeling_cover import CoverConfig, CoverForVideoClassification, Recipe, load_recipe
from modeling_cover.model.video_swin_cover import VideoSwinConfig


GPUS = 8
FP32 = 4  # bytes
# A training step in operations of forward passes: backward is two, and computing layers a second time is one.
TRAINED, RECOMPUTED = 3, 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of our Large, by units that others are predicted from.

    Attributes:
        rate: operations of a GPU in a second.
        working: bytes for each token and each number of its width, beside the inputs of layers, which are kept.
    """

    rate: float
    working: float

    @classmethod
    def of(cls, found: Mapping[str, Any], config: CoverConfig) -> "Measured":
        """Of the measurements of benchmark_scaling.py, with layers computed twice, and the model that they are of."""
        (few, many), side = sorted(int(rows) for rows in found["step"])[::2], config.image_size
        clip, _ = operations(config, config.num_frames, side)
        rate = (TRAINED + RECOMPUTED) * clip * many / found["step"][f"{many}"][f"{many}"]
        of_row = (found["peak_memory"][f"{many}"] - found["peak_memory"][f"{few}"]) / (many - few)
        of_number = of_row / (tokens_of(config, config.num_frames, side) * config.hidden_size)
        return cls(rate=rate, working=of_number - FP32 * config.num_hidden_layers)


def tokens_of(config: CoverConfig, num_frames: int, side: int) -> int:
    frames, rows, columns = config.tubelet
    return -(-num_frames // frames) * (side // rows) * (side // columns)


def numbers_of(config: CoverConfig, num_frames: int, side: int) -> tuple[float, float]:
    """Of a clip: those that go into all layers, and those that go into the widest."""
    tokens = tokens_of(config, num_frames, side)
    if isinstance(config.encoder, VideoSwinConfig):  # each stage has a quarter of the tokens, twice as wide
        first = tokens * config.encoder.embed_dim
        return sum(layers * first / 2**stage for stage, layers in enumerate(config.encoder.depths)), first
    return tokens * config.hidden_size * config.num_hidden_layers, tokens * config.hidden_size


def config_of(recipe: Recipe) -> CoverConfig:
    """The encoder of a recipe, as large as it is published, with one head.

    Raises:
        ValueError: if the recipe is on no encoder of transformers, or on one whose size is not known.
    """
    sizes = {"num_frames": recipe.clips.num_frames, "image_size": recipe.clips.image_size}
    if "from_encoder" not in recipe.model:
        raise ValueError(f"model: expected from_encoder, got {sorted(recipe.model)}")
    pooling = recipe.model.get("encoder_pooling")
    return published_config(recipe.model["from_encoder"], heads=HEADS, encoder_pooling=pooling, **sizes)


def parameters_of(config: CoverConfig) -> tuple[int, int]:
    """All of an encoder, and those of what pools its tokens."""
    with torch.device("meta"):
        encoder = CoverForVideoClassification(config).cover
    pooler = getattr(encoder, "pooler", None)
    return tuple(sum(p.numel() for p in part.parameters()) if part is not None else 0 for part in (encoder, pooler))


@functools.cache
def forward_operations(name: str, num_frames: int, side: int, pooling: str | None, pooler: bool) -> tuple[int, int]:
    """See [`operations`]; recipes on the same encoder ask for the same."""
    config = published_config(name, heads=HEADS, encoder_pooling=pooling, num_frames=num_frames, image_size=side)
    return operations(config, num_frames, side, pooler)


def operations_of(recipe: Recipe, pooler: bool = False) -> tuple[int, int]:
    """Of a forward pass of one clip and of one image, all or what pools the encoder's tokens."""
    model, clips = recipe.model, recipe.clips
    pooling = model.get("encoder_pooling")
    return forward_operations(model["from_encoder"], clips.num_frames, clips.image_size, pooling, pooler)


def step_operations(recipe: Recipe) -> tuple[float, float]:
    """Of training on one clip and on one image."""
    recomputed = RECOMPUTED if recipe.training.get("activation_checkpointing") else 0
    whole = operations_of(recipe)
    if recipe.training.get("trained_part", "all") == "all":
        return tuple((TRAINED + recomputed) * count for count in whole)
    # A frozen encoder has no backward pass; what pools for the heads has.
    pooler = operations_of(recipe, pooler=True)
    return tuple(count + (TRAINED - 1 + recomputed) * pooled for count, pooled in zip(whole, pooler, strict=True))


def memory_of(recipe: Recipe, config: CoverConfig, measured: Measured) -> float:
    """Bytes on each GPU if all rows of a pass are clips: weights, gradients, moments and activations."""
    training = recipe.training
    parameters, pooler = parameters_of(config)
    trained = parameters if training.get("trained_part", "all") == "all" else pooler
    moments = 1 if training.get("optim") == "sgd" else 2
    numbers, widest = numbers_of(config, recipe.clips.num_frames, recipe.clips.image_size)
    rows = training["per_device_train_batch_size"]
    if trained == parameters:
        of_row = FP32 * numbers + measured.working * widest
    else:  # nothing of the encoder is kept, and all of the pooler, by as many layers as it has the parameters of
        of_row = measured.working * widest * (1 + pooler * config.num_hidden_layers / (parameters - pooler))
    return FP32 * (parameters + trained * (1 + moments)) + rows * of_row


def prediction(path: Path, rows: Mapping[str, int], measured: Measured) -> list[str]:
    """A row of the table; `rows` are those of an epoch of each dataset.

    Raises:
        ValueError: if those of a dataset are not known.
    """
    recipe = load_recipe(path)
    if unknown := [dataset.name for dataset in recipe.datasets if dataset.name not in rows]:
        raise ValueError(f"recipe {path}: how many rows has {unknown[0]}? Known are {list(rows)}")
    config, epochs = config_of(recipe), recipe.training["num_train_epochs"]
    of_clip, of_image = step_operations(recipe)
    of_epoch = sum(
        rows[dataset.name] * (of_image if dataset.modality == "image" else of_clip) for dataset in recipe.datasets
    )
    hours = epochs * of_epoch / (measured.rate * GPUS) / 3600
    clip, image = operations_of(recipe)
    return [
        f"`{path.stem}`",
        f"{parameters_of(config)[0] / 1e6:.0f} M",
        f"{clip / 1e9:.0f} / {image / 1e9:.0f} G",
        f"{recipe.training['per_device_train_batch_size']}",
        f"{memory_of(recipe, config, measured) / 1e9:.0f} GB",
        f"{epochs}",
        f"{hours / epochs:.2f} h",
        f"{hours:.3g} h",
    ]


def predictions(
    paths: Sequence[Path], rows: Mapping[str, int], measured: Measured
) -> tuple[list[str], list[list[str]]]:
    """The table's header and rows."""
    header = ["recipe", "parameters", "operations, clip / image", "rows of a GPU", "memory of a GPU", "epochs"]
    header += ["an epoch", f"all, {GPUS} GPUs"]
    return header, [prediction(path, rows, measured) for path in paths]
