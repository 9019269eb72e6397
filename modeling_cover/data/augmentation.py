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
"""Augmentation: what is random about the pixels of a training sample (section 4.1 of the paper, and the field's usual).

Everything drawn is a function of the run's seed and of the sample's position alone, each kind of augmentation from a
random stream of its own: switching one on does not change what another draws. All frames of a clip are treated alike;
an image is a clip of one frame.

Axes: T frames of a clip   C, H, W channels, height and width of a frame.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from ..recipe.checks import check_flag, check_number, check_range, check_whole_number, checked_keys
from .mixture import SAMPLE_STREAM
from .rand_augment import RandAugment


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


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A crop of a random size and shape, resized to the size that the model takes.

    Attributes:
        scale: range of the crop's area, as a part of the frame's.
        ratio: range of the crop's width / height.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self):
        check_range("scale", self.scale, at_most=1)
        check_range("ratio", self.ratio)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """What to cut out of frames of `height` x `width`; their middle, in the nearest shape, if nothing drawn fits."""
        if (box := _draw_box(height, width, self.scale, self.ratio, rng)) is not None:
            return box
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        crop_height = max(1, min(height, round(width / ratio)))
        crop_width = max(1, min(width, round(height * ratio)))
        return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, changed in random order.

    Attributes:
        brightness, contrast, saturation: x multiplies by a factor between max(0, 1 - x) and 1 + x.
        hue: x turns by up to x of the colour circle either way, at most 0.5. It costs several times the others together.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            check_number(name, getattr(self, name))
        check_number("hue", self.hue, at_most=0.5)

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """What to adjust, in this order, each with its factor; of hue, the part of the circle."""
        strengths = {name: getattr(self, name) for name in ("brightness", "contrast", "saturation")}
        ranges = {name: (max(0.0, 1.0 - strength), 1.0 + strength) for name, strength in strengths.items()}
        ranges["hue"] = (-self.hue, self.hue)
        # Factors of all four, so that each is the same whichever others are on.
        factors = {name: rng.uniform(*bounds) for name, bounds in ranges.items()}
        names = rng.permutation(list(factors)).tolist()
        return [(name, factors[name]) for name in names if getattr(self, name) > 0]

    def apply(self, frames: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Frames (T, 3, H, W), uint8, in other colours."""
        for name, factor in self.draw(rng):
            frames = _COLOR_ADJUSTMENTS[name](frames, factor)
        return frames


_COLOR_ADJUSTMENTS = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """A box, the same in all frames, replaced by the mean colour (Zhong et al. 2020).

    Attributes:
        probability: of a box.
        scale: range of its area, as a part of the frame's.
        ratio: range of its width / height.
    """

    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self):
        check_number("probability", self.probability, at_most=1)
        check_range("scale", self.scale, at_most=1)
        check_range("ratio", self.ratio)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Box | None:
        """What to erase from frames of `height` x `width`, if anything."""
        if rng.random() >= self.probability:
            return None
        return _draw_box(height, width, self.scale, self.ratio, rng)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The augmentation of a data set: by default that of the paper, a random crop and a horizontal flip.

    Attributes:
        horizontal_flip: mirror half of the clips; false where left and right are different classes.
        short_side_range: of frames before the random crop, in pixels, drawn uniformly, both ends included; without it,
            the short side of the recipe.
        random_resized_crop: in place of the random crop, out of frames as large as they are.
        color_jitter: change the colours.
        rand_augment: do RandAugment's operations, after the colour jitter.
        random_erasing: erase a box.
        mixup_alpha: mix two clips of the data set, and their labels, in shares out of Beta(alpha, alpha) (Zhang et al.
            2018); 0 for none.
        cutmix_alpha: put a box of one clip into another, of an area out of Beta(alpha, alpha) (Yun et al. 2019); 0 for
            none. With mixup too, each is as likely.
        mix_probability: of mixing at all.
    """

    horizontal_flip: bool = True
    short_side_range: tuple[int, int] | None = None
    random_resized_crop: RandomResizedCrop | None = None
    color_jitter: ColorJitter | None = None
    rand_augment: RandAugment | None = None
    random_erasing: RandomErasing | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_probability: float = 1.0

    def __post_init__(self):
        check_flag("horizontal_flip", self.horizontal_flip)
        for name, kind in _SECTIONS.items():
            if not isinstance(value := getattr(self, name), kind | None):
                raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
        if self.short_side_range is not None:
            check_range("short_side_range", self.short_side_range)
            for bound in self.short_side_range:
                check_whole_number("each end of short_side_range", bound)
            if self.random_resized_crop is not None:
                raise ValueError(
                    "short_side_range is of no effect with random_resized_crop, which takes frames as they are"
                )
        check_number("mixup_alpha", self.mixup_alpha)
        check_number("cutmix_alpha", self.cutmix_alpha)
        check_number("mix_probability", self.mix_probability, at_most=1)
        if self.mix_probability != 1 and not self.mixup_alpha and not self.cutmix_alpha:
            raise ValueError("mix_probability is of no effect without mixup_alpha or cutmix_alpha")

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed, so that labels become vectors."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @classmethod
    def from_recipe(cls, where: str, content: Any, horizontal_flip: bool = True) -> "Augmentation":
        """The augmentation that a recipe asks for.

        Args:
            where: what errors begin with.
            content: fields of this class. Those that are classes are mappings in turn, or `true` for their
                defaults, or `false`.
            horizontal_flip: what holds if `content` does not say.

        Raises:
            ValueError: for an unknown key, or a value that is not what the key takes.
        """
        values = {"horizontal_flip": horizontal_flip, **_checked_fields(where, cls, content)}
        for name, kind in _SECTIONS.items():
            section = {} if values.get(name) is True else values.get(name)
            if section is None or section is False:
                values[name] = None
            else:
                place = f"{where}: {name}"
                values[name] = _build(place, kind, _checked_fields(place, kind, section))
        return _build(where, cls, values)

    def check(self, image_size: int) -> None:
        """Raise a `ValueError` if a crop of `image_size` x `image_size` pixels may not fit into the frames."""
        if self.short_side_range is not None and self.short_side_range[0] < image_size:
            raise ValueError(f"short_side_range {self.short_side_range} begins below image_size ({image_size})")


_SECTIONS = {
    "random_resized_crop": RandomResizedCrop,
    "color_jitter": ColorJitter,
    "rand_augment": RandAugment,
    "random_erasing": RandomErasing,
}


def _checked_fields(where: str, kind: type, content: Any) -> dict[str, Any]:
    return checked_keys(where, content, {field.name for field in fields(kind)})


def _build(where: str, kind: type, values: Mapping[str, Any]) -> Any:
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return kind(**tuples)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def draw_short_side(augmentation: Augmentation, short_side: int, randomness: SampleRandomness) -> int | None:
    """The short side that frames are resized to before they are cropped, in pixels; None: left as they are.

    Args:
        augmentation: the data set's.
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
        box = augmentation.random_resized_crop.draw(*frames.shape[-2:], randomness.of(Purpose.CROP))
        frames = F.resized_crop(frames, *box, size=[height, width], antialias=True)
    if augmentation.horizontal_flip and randomness.of(Purpose.FLIP).random() < 0.5:
        frames = F.horizontal_flip(frames)
    if augmentation.color_jitter is not None:
        frames = augmentation.color_jitter.apply(frames, randomness.of(Purpose.COLOR))
    if augmentation.rand_augment is not None:
        frames = augmentation.rand_augment.apply(frames, randomness.of(Purpose.RAND_AUGMENT))
    return frames


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


def erase(
    clip: torch.Tensor, augmentation: Augmentation, mean_color: torch.Tensor, randomness: SampleRandomness
) -> torch.Tensor:
    """A clip (T, C, H, W) with a box of one colour, if `augmentation` says so.

    The colour is `mean_color` (C, 1, 1), which normalising makes zero, as in torchvision, and no noise: it would be a
    texture, or flicker, that no video has.
    """
    if augmentation.random_erasing is None:
        return clip
    box = augmentation.random_erasing.draw(*clip.shape[-2:], randomness.of(Purpose.ERASING))
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
    """How to mix the sample with a partner, if at all. The partner is the caller's choice: another row of the data set."""
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
        target: a class, or the vector (num_labels,) of a multi-label data set.
        partner_target: likewise, of the partner.
        share: of `target`.
        num_labels: of the data set.

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
