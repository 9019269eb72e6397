# SPDX-License-Identifier: Apache-2.0
"""Augmentation: what is random about the pixels of a training sample (section 4.1 of the paper, and the field's
usual).

Everything drawn is a function of the run's seed and of the sample's position alone, each kind of augmentation from a
random stream of its own: switching one on does not change what another draws. All frames of a clip are treated alike;
an image is a clip of one frame. What the paper does not have is torchvision's.

Axes: T frames of a clip   C, H, W channels, height and width of a frame.
"""

from dataclasses import asdict

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..recipe.augmentation_recipe import MAX_MAGNITUDE, Augmentation, RandAugment, RandomResizedCrop
from .randomness import Purpose, SampleRandomness


# torchvision's magnitudes are whole numbers of a scale that may have any length: this many for one of the recipe's.
_STEPS = 100


def draw_short_side(augmentation: Augmentation, short_side: int, randomness: SampleRandomness) -> int | None:
    """The short side that frames are resized to before they are cropped, in pixels; None: left as they are."""
    if augmentation.random_resized_crop is not None:
        return None
    if augmentation.short_side_range is None:
        return short_side
    lowest, highest = augmentation.short_side_range
    return int(randomness.of(Purpose.SHORT_SIDE).integers(lowest, highest + 1))


def augment_frames(
    frames: torch.Tensor, augmentation: Augmentation, height: int, width: int, randomness: SampleRandomness
) -> torch.Tensor:
    """Crop, mirror and recolour the frames of a clip: (T, 3, H, W) to (T, 3, `height`, `width`), both uint8."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"expected frames (T, 3, H, W) of uint8, got {tuple(frames.shape)} of {frames.dtype}")
    if augmentation.random_resized_crop is None:
        frames = random_crop(frames, height, width, randomness.of(Purpose.CROP))
    else:
        with randomness.seeding_torch(Purpose.CROP):
            frames = random_resized_crop(frames, augmentation.random_resized_crop, height, width)
    if augmentation.horizontal_flip and randomness.of(Purpose.FLIP).random() < 0.5:
        frames = F.horizontal_flip(frames)
    if augmentation.color_jitter is not None:
        with randomness.seeding_torch(Purpose.COLOR):
            frames = v2.ColorJitter(**asdict(augmentation.color_jitter))(frames)
    if augmentation.rand_augment is not None:
        with randomness.seeding_torch(Purpose.RAND_AUGMENT):
            frames = rand_augment(frames, augmentation.rand_augment)
    if augmentation.transform is not None:
        frames = transform_frames(frames, augmentation, randomness)
    return frames


def random_crop(frames: torch.Tensor, height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """Cut (T, C, `height`, `width`) out of (T, C, H, W) at a place drawn uniformly."""
    if frames.shape[-2] < height or frames.shape[-1] < width:
        raise ValueError(f"a crop of {height}x{width} does not fit into frames of {tuple(frames.shape[-2:])}")
    top = int(rng.integers(frames.shape[-2] - height + 1))
    left = int(rng.integers(frames.shape[-1] - width + 1))
    # Contiguous: all that follows takes longer on a window into rows of interleaved colours.
    return F.crop(frames, top, left, height, width).contiguous()


def random_resized_crop(frames: torch.Tensor, crop: RandomResizedCrop, height: int, width: int) -> torch.Tensor:
    """Frames (T, C, H, W) cropped and resized to `height` x `width`, drawn from torch's generator."""
    transform = v2.RandomResizedCrop((height, width), scale=crop.scale, ratio=crop.ratio)
    box = transform.make_params([frames])
    # Of a frame a pixel wide, torchvision takes none at all where the shape asked for is a narrower one.
    box |= {side: max(1, box[side]) for side in ("height", "width")}
    return transform.transform(frames, box)


def rand_augment(frames: torch.Tensor, augment: RandAugment) -> torch.Tensor:
    """Frames (T, 3, H, W), uint8, after the operations of RandAugment (Cubuk et al. 2020) drawn from torch's
    generator.

    torchvision does one operation of one strength at a time; that strengths deviate, and that an operation may be left
    out, is timm's.
    """
    for _ in range(augment.num_ops):
        deviation = augment.magnitude_std * torch.randn(()).item()
        magnitude = min(max(augment.magnitude + deviation, 0), MAX_MAGNITUDE)
        operation = v2.RandAugment(1, round(_STEPS * magnitude), num_magnitude_bins=_STEPS * MAX_MAGNITUDE + 1)
        frames = v2.RandomApply([operation], p=augment.probability)(frames)
    return frames


def transform_frames(frames: torch.Tensor, augmentation: Augmentation, randomness: SampleRandomness) -> torch.Tensor:
    """Frames (T, 3, H, W), uint8, after the user's own transform.

    Raises:
        ValueError: names the transform if it returns anything but frames of that type and shape.
        RuntimeError: names it if a file that it needs cannot be read.
    """
    name, of = augmentation.transform_name, Purpose.TRANSFORM
    with randomness.seeding_torch(of):
        try:
            # A copy: a transform may write into what may be the dataset's own memory.
            made = augmentation.transform(frames.clone(), randomness.of(of))
        except OSError as error:  # which would be taken for a sample's file that cannot be decoded
            raise RuntimeError(f"transform '{name}': {error}") from error
    if not isinstance(made, torch.Tensor) or made.dtype != torch.uint8 or made.shape != frames.shape:
        is_tensor = isinstance(made, torch.Tensor)
        got = f"{made.dtype} of {tuple(made.shape)}" if is_tensor else type(made).__name__
        raise ValueError(f"transform '{name}': expected a tensor of uint8 of {tuple(frames.shape)} back, got {got}")
    return made


def erase(
    clip: torch.Tensor, augmentation: Augmentation, mean_color: torch.Tensor, randomness: SampleRandomness
) -> torch.Tensor:
    """A clip (T, C, H, W) with a box of one colour, if `augmentation` says so.

    The colour is `mean_color` (C, 1, 1), which normalising makes zero, as in torchvision, and no noise: it would be a
    texture, or flicker, that no video has.
    """
    if (erasing := augmentation.random_erasing) is None:
        return clip
    # torchvision's ratio is height / width.
    ratio = (1 / erasing.ratio[1], 1 / erasing.ratio[0])
    transform = v2.RandomErasing(erasing.probability, erasing.scale, ratio, value=mean_color.flatten().tolist())
    with randomness.seeding_torch(Purpose.ERASING):
        return transform(clip)
