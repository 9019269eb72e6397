# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""RandAugment (Cubuk et al. 2020), the same for all frames of a clip.

Axes: T frames of a clip   H, W height and width of a frame.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from ..recipe.checks import check_number, check_whole_number


MAX_MAGNITUDE = 30


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Operations drawn out of [`OPERATIONS`], done one after the other.

    Attributes:
        num_ops: how many.
        magnitude: their strength, from 0, which changes little, to 30; torchvision's scale. (timm's goes to 10.)
        magnitude_std: standard deviation of the strength of a single operation around `magnitude`.
        probability: of each of the `num_ops` to be done at all.
    """

    num_ops: int = 2
    magnitude: float = 9
    magnitude_std: float = 0.5
    probability: float = 1.0

    def __post_init__(self):
        check_whole_number("num_ops", self.num_ops)
        check_number("magnitude", self.magnitude, at_most=MAX_MAGNITUDE)
        check_number("magnitude_std", self.magnitude_std)
        check_number("probability", self.probability, at_most=1)

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """The operations to be done, each with its strength from -1 to 1."""
        names = list(OPERATIONS)
        drawn = []
        for _ in range(self.num_ops):
            # All of it is drawn for each, so that the operations are the same whatever the probability is.
            name, is_done = names[rng.integers(len(names))], rng.random() < self.probability
            sign = 1 if rng.random() < 0.5 else -1
            magnitude = min(max(rng.normal(self.magnitude, self.magnitude_std), 0), MAX_MAGNITUDE)
            if is_done:
                drawn.append((name, sign * magnitude / MAX_MAGNITUDE))
        return drawn

    def apply(self, frames: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Frames (T, 3, H, W), uint8, after the operations drawn."""
        for name, strength in self.draw(rng):
            frames = OPERATIONS[name](frames, strength)
        return frames


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
