# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints of the architectures that CoVeR starts from, made on the spot."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from modeling_cover import CoverForVideoClassification
from tiny import perturb, tiny_config, tiny_processor
from transformers import (
    PreTrainedModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    ViTConfig,
    ViTModel,
)


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
# In the original release a head of attention is 64 wide.
ORIGINAL_SIZES = {**SIZES, "hidden_size": 128, "num_attention_heads": 2}

QUICKSTART_LABELS = {
    "motions": ["growing", "moving down", "moving left"],
    "shapes": ["circle", "ring", "star"],
    "textures": ["checker", "dots", "plain"],
}

# The original release's names of what transformers' TimeSformer calls by others, within a layer and outside.
_LAYER_NAMES = {
    "temporal_layernorm": "temporal_norm1",
    "temporal_attention.attention.qkv": "temporal_attn.qkv",
    "temporal_attention.output.dense": "temporal_attn.proj",
    "temporal_dense": "temporal_fc",
    "layernorm_before": "norm1",
    "attention.attention.qkv": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_OTHER_NAMES = {
    "timesformer.embeddings.cls_token": "cls_token",
    "timesformer.embeddings.position_embeddings": "pos_embed",
    "timesformer.embeddings.time_embeddings": "time_embed",
    "timesformer.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "timesformer.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "timesformer.layernorm.weight": "norm.weight",
    "timesformer.layernorm.bias": "norm.bias",
    "classifier.weight": "head.weight",
    "classifier.bias": "head.bias",
}


def save_quickstart(
    folder: str | os.PathLike, labels: Mapping[str, list[str]] = QUICKSTART_LABELS
) -> CoverForVideoClassification:
    """Saves a model with the heads of the quickstart's, and its video processor, and returns the model."""
    heads = {name: {"labels": of_head} for name, of_head in labels.items()}
    config = tiny_config(heads, hidden_size=64, num_attention_heads=1, intermediate_size=64, num_frames=8)
    model = perturb(CoverForVideoClassification(config))
    model.save_pretrained(folder)
    tiny_processor(num_frames=8).save_pretrained(folder)
    return model


def save_vit(
    folder: str | os.PathLike, model_class: type[PreTrainedModel] = ViTModel, **options: Any
) -> PreTrainedModel:
    """Saves a ViT as a checkpoint of transformers, and returns it."""
    model = perturb(model_class(ViTConfig(**{**SIZES, **options})))
    model.save_pretrained(folder)
    return model


def make_timesformer(**options: Any) -> TimesformerForVideoClassification:
    return perturb(TimesformerForVideoClassification(TimesformerConfig(**{**SIZES, **options})))


def save_timesformer(folder: str | os.PathLike, **options: Any) -> TimesformerForVideoClassification:
    """Saves a TimeSformer as a checkpoint of transformers, and returns it."""
    model = make_timesformer(**options)
    model.save_pretrained(folder)
    return model


def original_state(model: TimesformerForVideoClassification) -> dict[str, torch.Tensor]:
    """The weights of transformers' TimeSformer under the names of the original release."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name in _OTHER_NAMES:
            state[f"model.{_OTHER_NAMES[name]}"] = tensor
        else:
            index, _, rest = name.removeprefix("timesformer.encoder.layer.").partition(".")
            part, _, kind = rest.rpartition(".")
            state[f"model.blocks.{index}.{_LAYER_NAMES[part]}.{kind}"] = tensor
    return state


def save_original(path: str | os.PathLike, state: Mapping[str, torch.Tensor]) -> str:
    """Writes a file as the original release has them, with what a training run leaves in it beside the weights."""
    torch.save({"model_state": dict(state), "epoch": 3, "cfg": "TRAIN:\n  ENABLE: true\n"}, path)
    return os.fspath(path)
