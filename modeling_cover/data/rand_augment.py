# SPDX-License-Identifier: Apache-2.0
"""RandAugment (Cubuk et al. 2020), the same for all frames of a clip.

Axes: T frames of a clip   H, W height and width of a frame.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from ..recipe.augmentation_recipe import MAX_MAGNITUDE, RandAugment


def _move(frames: torch.Tensor, rows: float = 0, columns: float = 0) -> torch.Tensor:
    return F.affine(frames, angle=0, translate=[int(columns), int(rows)], scale=1, shear=[0, 0])


def _shear(frames: torch.Tensor, x: float = 0, y: float = 0) -> torch.Tensor:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(frames, angle=0, translate=[0, 0], scale=1, shear=degrees, center=[0, 0])


# What each operation does to frames (T, 3, H, W), uint8, at a strength from -1 to 1. The sign is the direction; where
# there is none it means nothing. The ranges are those of torchvision's RandAugment, and so are its nearest-neighbour
# interpolation and the black beyond the border: other ways of filling take several times as long.
OPERATIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "identity": lambda frames, strength: frames,
    "auto_contrast": lambda frames, strength: F.autocontrast(frames),
    "equalize": lambda frames, strength: F.equalize(frames),
    "rotate": lambda frames, strength: F.rotate(frames, angle=30 * strength),
    "solarize": lambda frames, strength: F.solarize(frames, threshold=255 * (1 - abs(strength))),
    "color": lambda frames, strength: F.adjust_saturation(frames, saturation_factor=1 + 0.9 * strength),
    "posterize": lambda frames, strength: F.posterize(frames, bits=round(8 - 4 * abs(strength))),
    "contrast": lambda frames, strength: F.adjust_contrast(frames, contrast_factor=1 + 0.9 * strength),
    "brightness": lambda frames, strength: F.adjust_brightness(frames, brightness_factor=1 + 0.9 * strength),
    "sharpness": lambda frames, strength: F.adjust_sharpness(frames, sharpness_factor=1 + 0.9 * strength),
    "shear_x": lambda frames, strength: _shear(frames, x=0.3 * strength),
    "shear_y": lambda frames, strength: _shear(frames, y=0.3 * strength),
    "translate_x": lambda frames, strength: _move(frames, columns=150 / 331 * frames.shape[-1] * strength),
    "translate_y": lambda frames, strength: _move(frames, rows=150 / 331 * frames.shape[-2] * strength),
}


def draw_operations(augment: RandAugment, rng: np.random.Generator) -> list[tuple[str, float]]:
    """The operations to be done, each with its strength from -1 to 1."""
    names = list(OPERATIONS)
    drawn = []
    for _ in range(augment.num_ops):
        # All of it is drawn for each, so that the operations are the same whatever the probability is.
        name, is_done = names[rng.integers(len(names))], rng.random() < augment.probability
        sign = 1 if rng.random() < 0.5 else -1
        magnitude = min(max(rng.normal(augment.magnitude, augment.magnitude_std), 0), MAX_MAGNITUDE)
        if is_done:
            drawn.append((name, sign * magnitude / MAX_MAGNITUDE))
    return drawn


def rand_augmented(frames: torch.Tensor, augment: RandAugment, rng: np.random.Generator) -> torch.Tensor:
    """Frames (T, 3, H, W), uint8, after the operations drawn."""
    for name, strength in draw_operations(augment, rng):
        frames = OPERATIONS[name](frames, strength)
    return frames
