# SPDX-License-Identifier: Apache-2.0
"""Mixing of two clips of a dataset and of their labels: mixup and CutMix.

Axes: T frames of a clip   C, H, W channels, height and width of a frame.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torchvision.transforms.v2 import functional as F

from ..recipe.augmentation_recipe import Augmentation
from .randomness import Purpose, SampleRandomness


class Box(NamedTuple):
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How a clip is mixed with a partner."""

    share: float  # of the clip; the partner has the rest
    centre: tuple[float, float] | None = None  # of CutMix's box, as parts of height and width; None for mixup

    def apply(self, clip: torch.Tensor, partner: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The mixed clip (T, C, H, W), uint8 as both are, and the share of the label of `clip` in it.

        With CutMix the share is that of the pixels: the part of the box beyond the border does not count.
        """
        if clip.shape != partner.shape:
            raise ValueError(f"clips to be mixed must have one shape, got {tuple(clip.shape)}, {tuple(partner.shape)}")
        if self.centre is None:
            mixed = torch.lerp(partner.float(), clip.float(), self.share)
            return mixed.round_().to(torch.uint8), self.share
        box = self.box(*clip.shape[-2:])
        mixed = F.erase(clip, *box, v=F.crop(partner, *box))
        return mixed, 1 - box.height * box.width / (clip.shape[-2] * clip.shape[-1])

    def box(self, height: int, width: int) -> Box:
        """What comes from the partner, in frames of `height` x `width`, with CutMix."""
        side = math.sqrt(1 - self.share)
        top, bottom = _cut(int(self.centre[0] * height), int(side * height / 2), height)
        left, right = _cut(int(self.centre[1] * width), int(side * width / 2), width)
        return Box(top, left, bottom - top, right - left)


def draw_mix(augmentation: Augmentation, randomness: SampleRandomness) -> Mix | None:
    """How to mix the sample with a partner, if at all. The partner is the caller's choice: another row of the
    dataset."""
    if not augmentation.mixes:
        return None
    rng = randomness.of(Purpose.MIX)
    # The share last, since how many numbers it takes differs: so all else is the same whatever the alphas are.
    is_mixed, is_cutmix = rng.random() < augmentation.mix_probability, rng.random() < 0.5
    centre = (rng.random(), rng.random())
    if not is_mixed:
        return None
    if augmentation.mixup_alpha == 0 or (is_cutmix and augmentation.cutmix_alpha > 0):
        return Mix(share=rng.beta(augmentation.cutmix_alpha, augmentation.cutmix_alpha), centre=centre)
    return Mix(share=rng.beta(augmentation.mixup_alpha, augmentation.mixup_alpha))


def soft_targets(target: Any, partner_target: Any, share: float, num_labels: int) -> torch.Tensor:
    """What a mixed clip is trained towards: a float vector (num_labels,), of which `share` is `target`.

    Either target is a class, or the vector (num_labels,) of a multi-label dataset.
    """
    vectors = [_target_vector(target, num_labels), _target_vector(partner_target, num_labels)]
    return share * vectors[0] + (1 - share) * vectors[1]


def _target_vector(target: Any, num_labels: int) -> torch.Tensor:
    target = torch.as_tensor(target)
    if target.shape == (num_labels,):
        return target.float()
    if target.ndim > 0 or target.is_floating_point() or not 0 <= target < num_labels:
        raise ValueError(f"expected a class from 0 to {num_labels - 1} or a vector of {num_labels}, got {target}")
    return torch.nn.functional.one_hot(target.long(), num_labels).float()


def _cut(centre: int, half: int, size: int) -> tuple[int, int]:
    return max(0, centre - half), min(size, centre + half)
