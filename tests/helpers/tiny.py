# SPDX-License-Identifier: Apache-2.0
"""The smallest models, processors and runs that have all of the parts, for a test to take and to change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from modeling_cover import (
    CoverConfig,
    CoverForVideoClassification,
    CoverTrainer,
    CoverTrainingArguments,
    CoverVideoProcessor,
    Recipe,
    prepare_cotraining,
)
from torch import nn


# An encoder, as a recipe's `model` names it too.
ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
}

# What a recipe may say of a run that is over at once.
TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def tiny_config(heads: Mapping[str, Any] | None = None, **options: Any) -> CoverConfig:
    """A configuration of one layer for 4 frames of 32 x 32; the first head is the default one."""
    if heads is not None:
        options = {"heads": dict(heads), "default_head": next(iter(heads)), **options}
    return CoverConfig(**{**ENCODER, "image_size": 32, "num_frames": 4, **options})


def perturb(model: nn.Module, std: float = 0.1) -> nn.Module:
    """Move every parameter, so that none of them is all zeros or ones, which a comparison would not miss."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=std)
    return model.eval()


def tiny_model(heads: Mapping[str, Any], std: float = 0.1, **options: Any) -> CoverForVideoClassification:
    """A model of which every parameter matters, the same each time."""
    torch.manual_seed(0)
    return perturb(CoverForVideoClassification(tiny_config(heads, **options)), std)


def tiny_processor(size: int = 32, **options: Any) -> CoverVideoProcessor:
    """A processor of 4 frames that are cut out of somewhat larger ones."""
    sizes = {"size": {"shortest_edge": size * 5 // 4}, "crop_size": {"height": size, "width": size}}
    return CoverVideoProcessor(**{**sizes, "num_frames": 4, **options})


def pixels(processor: CoverVideoProcessor, videos: Any, **kwargs: Any) -> torch.Tensor:
    """What a processor makes of videos."""
    return processor(videos, return_tensors="pt", **kwargs)["pixel_values"]


def save_tiny(folder: Path, heads: Mapping[str, Any], **options: Any) -> CoverForVideoClassification:
    """Saves a model and its processor, and returns the model; the options are [`tiny_model`]'s."""
    model = tiny_model(heads, **options)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return model


def tiny_trainer(
    recipe: Recipe, output_dir: Path, trainer_class: type[CoverTrainer] = CoverTrainer, **options: Any
) -> CoverTrainer:
    """A trainer that starts from the same weights each time and reports to nobody; the options are its arguments."""
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    args = CoverTrainingArguments(str(output_dir), **{**quiet, **options})
    torch.manual_seed(0)
    cotraining = prepare_cotraining(recipe, args.seed, args.output_dir)
    return trainer_class(args=args, **cotraining.trainer_kwargs)
