# SPDX-License-Identifier: Apache-2.0
"""Augmentation: what is random about the pixels of a training sample (section 4.1 of the paper, and the field's usual).

Everything drawn is a function of the run's seed and of the sample's position alone, each kind of augmentation from a
random stream of its own: switching one on does not change what another draws. All frames of a clip are treated alike;
an image is a clip of one frame.

Axes: T frames of a clip   C, H, W channels, height and width of a frame.
"""

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from ..recipe.augmentation_recipe import Augmentation, ColorJitter, RandomErasing, RandomResizedCrop
from .mixture import SAMPLE_STREAM
from .rand_augment import rand_augmented


# A box of a drawn area and shape may not fit into the frame; this many are tried.
_BOX_TRIALS = 10


class Purpose(IntEnum):
    """What random numbers are drawn for. Another number for a purpose would change every run, so they stay."""

    # From 1, since a zero at the end of numpy's seeds means nothing: [1, 2, 0] seeds as [1, 2] does.
    FRAMES = 1
    SHORT_SIDE = 2
    CROP = 3
    FLIP = 4
    COLOR = 5
    RAND_AUGMENT = 6
    ERASING = 7
    MIX = 8
    PARTNER = 9


@dataclass(frozen=True)
class SampleRandomness:
    """The random streams of the sample at a position of a run, or of the partner that it is mixed with."""

    seed: int
    position: int
    is_partner: bool = False

    def of(self, purpose: Purpose) -> np.random.Generator:
        """A new generator, at the start of the stream for one purpose."""
        branch = [Purpose.PARTNER] if self.is_partner else []
        return np.random.default_rng([SAMPLE_STREAM, self.seed, self.position, *branch, purpose])

    def of_partner(self) -> "SampleRandomness":
        """The streams for the crop, the colours and so on of the clip that the sample is mixed with."""
        return replace(self, is_partner=True)


class Box(NamedTuple):
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_short_side(augmentation: Augmentation, short_side: int, randomness: SampleRandomness) -> int | None:
    """The short side that frames are resized to before they are cropped, in pixels; None: left as they are.

    Args:
        augmentation: the dataset's.
        short_side: what the recipe asks for.
        randomness: the sample's.
    """
    if augmentation.random_resized_crop is not None:
        return None
    if augmentation.short_side_range is None:
        return short_side
    lowest, highest = augmentation.short_side_range
    return int(randomness.of(Purpose.SHORT_SIDE).integers(lowest, highest + 1))


def augment_frames(
    frames: torch.Tensor, augmentation: Augmentation, height: int, width: int, randomness: SampleRandomness
) -> torch.Tensor:
    """Crop, mirror and recolour the frames of a clip: (T, 3, H, W) to (T, 3, `height`, `width`), both uint8.

    Raises:
        ValueError: if `frames` is no such tensor, or the crop does not fit into it.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"expected frames (T, 3, H, W) of uint8, got {tuple(frames.shape)} of {frames.dtype}")
    if augmentation.random_resized_crop is None:
        frames = random_crop(frames, height, width, randomness.of(Purpose.CROP))
    else:
        box = draw_crop(augmentation.random_resized_crop, *frames.shape[-2:], randomness.of(Purpose.CROP))
        frames = F.resized_crop(frames, *box, size=[height, width], antialias=True)
    if augmentation.horizontal_flip and randomness.of(Purpose.FLIP).random() < 0.5:
        frames = F.horizontal_flip(frames)
    if augmentation.color_jitter is not None:
        frames = jittered(frames, augmentation.color_jitter, randomness.of(Purpose.COLOR))
    if augmentation.rand_augment is not None:
        frames = rand_augmented(frames, augmentation.rand_augment, randomness.of(Purpose.RAND_AUGMENT))
    return frames


def draw_crop(crop: RandomResizedCrop, height: int, width: int, rng: np.random.Generator) -> Box:
    """What to cut out of frames of `height` x `width`; their middle, in the nearest shape, if nothing drawn fits."""
    if (box := _draw_box(height, width, crop.scale, crop.ratio, rng)) is not None:
        return box
    ratio = min(max(width / height, crop.ratio[0]), crop.ratio[1])
    crop_height = max(1, min(height, round(width / ratio)))
    crop_width = max(1, min(width, round(height * ratio)))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def random_crop(frames: torch.Tensor, height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """Cut (T, C, `height`, `width`) out of (T, C, H, W) at a place drawn uniformly.

    Raises:
        ValueError: if it does not fit.
    """
    if frames.shape[-2] < height or frames.shape[-1] < width:
        raise ValueError(f"a crop of {height}x{width} does not fit into frames of {tuple(frames.shape[-2:])}")
    top = int(rng.integers(frames.shape[-2] - height + 1))
    left = int(rng.integers(frames.shape[-1] - width + 1))
    # Contiguous: all that follows takes longer on a window into rows of interleaved colours.
    return F.crop(frames, top, left, height, width).contiguous()


_COLOR_ADJUSTMENTS = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def draw_colors(jitter: ColorJitter, rng: np.random.Generator) -> list[tuple[str, float]]:
    """What to adjust, in this order, each with its factor; of hue, the part of the circle."""
    strengths = {name: getattr(jitter, name) for name in ("brightness", "contrast", "saturation")}
    ranges = {name: (max(0.0, 1.0 - strength), 1.0 + strength) for name, strength in strengths.items()}
    ranges["hue"] = (-jitter.hue, jitter.hue)
    # Factors of all four, so that each is the same whichever others are on.
    factors = {name: rng.uniform(*bounds) for name, bounds in ranges.items()}
    names = rng.permutation(list(factors)).tolist()
    return [(name, factors[name]) for name in names if getattr(jitter, name) > 0]


def jittered(frames: torch.Tensor, jitter: ColorJitter, rng: np.random.Generator) -> torch.Tensor:
    """Frames (T, 3, H, W), uint8, in other colours."""
    for name, factor in draw_colors(jitter, rng):
        frames = _COLOR_ADJUSTMENTS[name](frames, factor)
    return frames


def draw_erased(erasing: RandomErasing, height: int, width: int, rng: np.random.Generator) -> Box | None:
    """What to erase from frames of `height` x `width`, if anything."""
    if rng.random() >= erasing.probability:
        return None
    return _draw_box(height, width, erasing.scale, erasing.ratio, rng)


def erase(
    clip: torch.Tensor, augmentation: Augmentation, mean_color: torch.Tensor, randomness: SampleRandomness
) -> torch.Tensor:
    """A clip (T, C, H, W) with a box of one colour, if `augmentation` says so.

    The colour is `mean_color` (C, 1, 1), which normalising makes zero, as in torchvision, and no noise: it would be a
    texture, or flicker, that no video has.
    """
    if augmentation.random_erasing is None:
        return clip
    box = draw_erased(augmentation.random_erasing, *clip.shape[-2:], randomness.of(Purpose.ERASING))
    return clip if box is None else F.erase(clip, *box, v=mean_color)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How a clip is mixed with a partner.

    Attributes:
        share: of the clip; the partner has the rest.
        centre: of CutMix's box, as parts of height and width; None for mixup.
    """

    share: float
    centre: tuple[float, float] | None = None

    def apply(self, clip: torch.Tensor, partner: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The mixed clip (T, C, H, W), uint8 as both are, and the share of the label of `clip` in it.

        With CutMix the share is that of the pixels: the part of the box beyond the border does not count.

        Raises:
            ValueError: if the clips are of different shapes.
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
    """How to mix the sample with a partner, if at all. The partner is the caller's choice: another row of the dataset."""
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
    """What a mixed clip is trained towards: a float vector (num_labels,).

    Args:
        target: a class, or the vector (num_labels,) of a multi-label dataset.
        partner_target: likewise, of the partner.
        share: of `target`.
        num_labels: of the dataset.

    Raises:
        ValueError: if a target is neither.
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


def _draw_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box | None:
    """A box of an area drawn uniformly, a log-uniform width / height, at a place drawn uniformly."""
    for _ in range(_BOX_TRIALS):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return Box(int(top), int(left), box_height, box_width)
    return None
