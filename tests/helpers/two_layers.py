# SPDX-License-Identifier: Apache-2.0
"""A model of two layers and three heads, which differ in what their labels are of."""

import torch
from torch import nn


HEADS = {
    "ssv2": {"labels": ["push", "pull", "lift"]},
    "k400": {"labels": ["abseiling", "zumba"]},
    "imagenet": {"labels": ["tench", "goldfish", "hen", "ostrich"], "modality": "image"},
}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
}


def randomise(model: nn.Module, std: float = 0.3) -> nn.Module:
    """Give every parameter, biases and zeroed ones too, values that a comparison notices."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def clips(batch_size=2, num_frames=4, height=32, width=32) -> torch.Tensor:
    return torch.randn(batch_size, num_frames, 3, height, width)
