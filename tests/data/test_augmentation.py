# SPDX-License-Identifier: Apache-2.0
"""Augmentation: what is drawn, from what, and what it does to the pixels; torchvision's transforms are the
reference."""

import random
from collections import Counter

import modeling_cover  # noqa: F401  (before torchvision)
import numpy as np
import pytest
import torch
from modeling_cover.data import augmentation as augmentation_module
from modeling_cover.data.augmentation import augment_frames, draw_short_side, erase, random_crop
from modeling_cover.data.mixing import draw_mix
from modeling_cover.data.randomness import Purpose, SampleRandomness
from modeling_cover.recipe.augmentation_recipe import (
    Augmentation,
    ColorJitter,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
)
from torchvision.transforms import v2


CROP = 16
EVERYTHING = Augmentation(
    random_resized_crop=RandomResizedCrop(),
    color_jitter=ColorJitter(hue=0.2),
    rand_augment=RandAugment(num_ops=3, magnitude=20),
    random_erasing=RandomErasing(probability=0.5),
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
)


def noise(num_frames: int = 3, height: int = 24, width: int = 32) -> torch.Tensor:
    """Frames (T, 3, H, W) of random colours, no two alike."""
    generator = torch.Generator().manual_seed(num_frames * height * width)
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)


MEAN = torch.tensor([60, 70, 80], dtype=torch.uint8)[:, None, None]


def still(num_frames: int = 3) -> torch.Tensor:
    """One frame of random colours, again and again: what is consistent over frames leaves them equal."""
    return noise(1).expand(num_frames, -1, -1, -1)


def places(height: int, width: int, num_frames: int = 2) -> torch.Tensor:
    """Frames whose pixels tell where they are: red is the row, green the column."""
    frames = torch.zeros(num_frames, 3, height, width, dtype=torch.uint8)
    frames[:, 0] = torch.arange(height, dtype=torch.uint8)[:, None]
    frames[:, 1] = torch.arange(width, dtype=torch.uint8)
    return frames


def augmented(augmentation: Augmentation, frames: torch.Tensor, position: int = 0, seed: int = 0) -> torch.Tensor:
    return augment_frames(frames, augmentation, CROP, CROP, SampleRandomness(seed, position))


def everything_at(randomness: SampleRandomness) -> list[torch.Tensor]:
    """All that is drawn about one sample: its pixels after every step."""
    frames = augment_frames(noise(), EVERYTHING, CROP, CROP, randomness)
    clip = erase(frames, EVERYTHING, MEAN, randomness)
    mixed, share = draw_mix(EVERYTHING, randomness).apply(clip, clip.flip(0))
    return [frames, clip, mixed, torch.tensor(share)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# What is random.


def test_seed_and_position_decide_every_bit_and_global_generators_none():
    first = everything_at(SampleRandomness(3, 7))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    state = torch.get_rng_state()
    assert same(first, everything_at(SampleRandomness(3, 7)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "other", [SampleRandomness(3, 8), SampleRandomness(4, 7), SampleRandomness(3, 7).of_partner()]
)
def test_another_position_seed_or_the_partner_is_augmented_otherwise(other):
    for one, another in zip(everything_at(SampleRandomness(3, 7)), everything_at(other), strict=True):
        assert not torch.equal(one, another)


def test_every_purpose_of_every_sample_and_partner_has_a_stream_of_its_own():
    samples = [SampleRandomness(seed, position) for seed in range(3) for position in (0, 1, 2, 2**31, 2**32 + 1)]
    first_numbers = [
        randomness.of(purpose).random()
        for sample in samples
        for randomness in (sample, sample.of_partner())
        for purpose in Purpose
    ]
    assert len(set(first_numbers)) == len(samples) * 2 * len(Purpose)


def test_torchs_streams_are_as_many_and_the_generators_of_gpus_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's generator was set"))
    numbers = []
    for randomness in (SampleRandomness(0, 0), SampleRandomness(0, 2**32), SampleRandomness(1, 0).of_partner()):
        for purpose in Purpose:
            with randomness.seeding_torch(purpose):
                numbers.append(torch.rand(()).item())
    assert len(set(numbers)) == len(numbers) == 3 * len(Purpose)


def test_together_the_augmentations_do_what_each_does_alone():
    # What one of them draws does not depend on which others are on.
    alone = [
        Augmentation(horizontal_flip=False, random_resized_crop=EVERYTHING.random_resized_crop),
        Augmentation(),
        Augmentation(horizontal_flip=False, color_jitter=EVERYTHING.color_jitter),
        Augmentation(horizontal_flip=False, rand_augment=EVERYTHING.rand_augment),
    ]
    for position in range(20):
        frames = noise()
        for augmentation in alone:
            frames = augmented(augmentation, frames, position)
        assert torch.equal(augmented(EVERYTHING, noise(), position), frames)
        only_erased = Augmentation(random_erasing=EVERYTHING.random_erasing)
        randomness = SampleRandomness(0, position)
        assert torch.equal(erase(frames, EVERYTHING, MEAN, randomness), erase(frames, only_erased, MEAN, randomness))


@pytest.mark.parametrize("num_frames", [1, 3])
def test_all_frames_of_a_clip_are_augmented_alike_and_an_image_is_a_clip(num_frames):
    for position in range(40):
        frames = augmented(EVERYTHING, still(num_frames), position)
        assert frames.shape == (num_frames, 3, CROP, CROP) and frames.dtype == torch.uint8
        clip = erase(frames, EVERYTHING, MEAN, SampleRandomness(0, position))
        mixed, _ = draw_mix(EVERYTHING, SampleRandomness(0, position)).apply(clip, 255 - clip)
        for each in (frames, clip, mixed):
            assert torch.equal(each, each[:1].expand_as(each))


def test_a_clip_is_augmented_as_its_frames_one_by_one_would_be():
    frames = noise()
    for position in range(20):
        alone = torch.cat([augmented(EVERYTHING, frame[None], position) for frame in frames])
        assert torch.equal(augmented(EVERYTHING, frames, position), alone)


def test_the_clip_handed_in_stays_as_it_is():
    frames, partner = noise(), noise().flip(0)
    before = [tensor.clone() for tensor in (frames, partner)]
    for position in range(20):
        augmented(EVERYTHING, frames, position)
        erase(frames, EVERYTHING, MEAN, SampleRandomness(0, position))
        draw_mix(EVERYTHING, SampleRandomness(0, position)).apply(frames, partner)
    assert same(before, [frames, partner])


# Crop and flip.


def test_by_default_a_clip_is_only_cropped_and_mirrored():
    frames, augmentation = places(24, 32), Augmentation()
    for position in range(20):
        crop = augmented(augmentation, frames, position)
        top, left = int(crop[0, 0].min()), int(crop[0, 1].min())
        expected = frames[..., top : top + CROP, left : left + CROP]
        assert torch.equal(crop, expected) or torch.equal(crop, expected.flip(-1))
    assert draw_mix(augmentation, SampleRandomness(0, 0)) is None
    assert erase(frames, augmentation, MEAN, SampleRandomness(0, 0)) is frames
    assert draw_short_side(augmentation, 20, SampleRandomness(0, 0)) == 20


def test_crops_are_spread_evenly_over_all_places():
    frames, counts = places(CROP + 2, CROP + 3, num_frames=1), np.zeros((3, 4))
    for position in range(2400):
        crop = random_crop(frames, CROP, CROP, SampleRandomness(0, position).of(Purpose.CROP))
        counts[crop[0, 0, 0, 0], crop[0, 1, 0, 0]] += 1
    assert counts.min() > 130 and counts.max() < 270  # 200 each; five standard deviations


def test_half_of_the_clips_are_mirrored_unless_left_and_right_differ():
    frames = places(CROP, CROP, num_frames=1)
    mirrored = sum(bool(augmented(Augmentation(), frames, position)[0, 1, 0, 0]) for position in range(1000))
    assert 420 < mirrored < 580  # five standard deviations
    # Wherever they are cropped.
    larger = places(CROP + 1, CROP + 1, num_frames=1)
    crops = [augmented(Augmentation(), larger, position)[0] for position in range(1000)]
    for channel in (0, 1):
        of_first = [bool(crop[1, 0, 0] > crop[1, 0, 1]) for crop in crops if crop[channel].min() == 0]
        assert 0.38 < np.mean(of_first) < 0.62
    kept = Augmentation(horizontal_flip=False)
    assert all(torch.equal(augmented(kept, frames, position), frames) for position in range(50))


@pytest.mark.parametrize("size", [(CROP - 1, 40), (40, CROP - 1)])
def test_a_crop_that_does_not_fit_is_an_error(size):
    with pytest.raises(ValueError, match=r"a crop of 16x16 does not fit into frames of \(\d+, \d+\)"):
        augmented(Augmentation(), noise(1, *size))


@pytest.mark.parametrize("frames", [noise().float(), noise()[0], noise()[:, :1]])
def test_frames_of_another_type_or_shape_are_an_error(frames):
    with pytest.raises(ValueError, match=r"expected frames \(T, 3, H, W\) of uint8, got \("):
        augmented(Augmentation(), frames)


@pytest.mark.parametrize("crop", [RandomResizedCrop(), RandomResizedCrop(scale=(0.2, 0.4), ratio=(0.5, 1.0))])
def test_a_resized_crop_is_torchvisions(crop):
    augmentation = Augmentation(random_resized_crop=crop, horizontal_flip=False)
    reference, frames = v2.RandomResizedCrop(CROP, scale=crop.scale, ratio=crop.ratio), noise(3, 60, 90)
    for position in range(20):
        with SampleRandomness(0, position).seeding_torch(Purpose.CROP):
            expected = reference(frames)
        assert torch.equal(augmented(augmentation, frames, position), expected)


@pytest.mark.parametrize("ratio", [(5.0, 5.0), (0.2, 0.2)])
def test_a_resized_crop_is_never_empty_however_small_the_frame(ratio):
    augmentation = Augmentation(random_resized_crop=RandomResizedCrop(ratio=ratio))
    assert augmented(augmentation, noise(2, 1, 1)).shape == (2, 3, CROP, CROP)


def test_the_short_side_is_drawn_evenly_with_both_ends():
    augmentation = Augmentation(short_side_range=(18, 22))
    drawn = [draw_short_side(augmentation, 40, SampleRandomness(0, position)) for position in range(1000)]
    counts = {side: drawn.count(side) for side in set(drawn)}
    assert sorted(counts) == [18, 19, 20, 21, 22] and min(counts.values()) > 130  # 200 each


def test_resized_crops_are_out_of_frames_as_they_are():
    assert draw_short_side(Augmentation(random_resized_crop=RandomResizedCrop()), 40, SampleRandomness(0, 0)) is None


# Colours.


@pytest.mark.parametrize("jitter", [ColorJitter(hue=0.3), ColorJitter(brightness=1.5, contrast=0, saturation=0.1)])
def test_the_colour_jitter_is_torchvisions(jitter):
    reference = v2.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    augmentation, frames = Augmentation(horizontal_flip=False, color_jitter=jitter), noise(3, CROP, CROP)
    for position in range(20):
        with SampleRandomness(0, position).seeding_torch(Purpose.COLOR):
            expected = reference(frames)
        assert not torch.equal(expected, frames)
        assert torch.equal(augmented(augmentation, frames, position), expected)


# RandAugment.


def rand_augmented(augment: RandAugment, frames: torch.Tensor, position: int) -> torch.Tensor:
    return augmented(Augmentation(horizontal_flip=False, rand_augment=augment), frames, position)


@pytest.mark.parametrize("num_frames", [1, 3])
# Of a shear by 4, 12, ... of 30, a column here would lie just between two rows, and a processor's rounding choose one.
@pytest.mark.parametrize("magnitude", [0, 9, 17, 30])
def test_operations_are_all_of_torchvisions_at_the_magnitude_asked_for(magnitude, num_frames):
    frames = noise(num_frames, CROP, CROP) // 2 + 40  # leaves something to the operations on contrast
    expected = torchvision_operations(frames, magnitude)
    augment, drawn = RandAugment(num_ops=1, magnitude=magnitude, magnitude_std=0), Counter()
    for position in range(280):
        after = rand_augmented(augment, frames, position)
        assert after.shape == frames.shape and after.dtype == torch.uint8
        differences = {name: (after.int() - other.int()).abs() for name, other in expected.items()}
        # torchvision's magnitudes are float32: a colour between two levels may become the other one.
        close = [name for name, far in differences.items() if far.max() <= 1 and (far > 0).float().mean() < 0.01]
        assert close, position
        drawn.update(close)
    # Some 20 each, or half of it where the sign makes a difference.
    assert set(drawn) == set(expected) and min(drawn.values()) >= 2


def torchvision_operations(frames: torch.Tensor, magnitude: int) -> dict[tuple[str, int], torch.Tensor]:
    """What torchvision's RandAugment may make of frames, by operation and sign."""
    reference, results = v2.RandAugment(), {}
    for name, (magnitudes, is_signed) in reference._AUGMENTATION_SPACE.items():
        values = magnitudes(reference.num_magnitude_bins, *frames.shape[-2:])
        for sign in (1, -1) if is_signed else (1,):
            results[name, sign] = reference._apply_image_or_video_transform(
                frames,
                name,
                0.0 if values is None else sign * float(values[magnitude]),
                interpolation=reference.interpolation,
                fill=reference._fill,
            )
    return results


def test_as_many_operations_are_done_as_asked_for():
    once, twice = RandAugment(num_ops=1), RandAugment(num_ops=2)
    frames = noise(1, CROP, CROP)
    assert all(torch.equal(rand_augmented(RandAugment(probability=0), frames, at), frames) for at in range(20))
    for position in range(20):
        randomness = SampleRandomness(0, position)
        with randomness.seeding_torch(Purpose.RAND_AUGMENT):
            one_more = augmentation_module.rand_augment(augmentation_module.rand_augment(frames, once), once)
        assert torch.equal(rand_augmented(twice, frames, position), one_more)


class Recorder(v2.RandAugment):
    """Does nothing, and keeps how strong it would have been."""

    strengths: list[float] = []

    def forward(self, frames):
        self.strengths.append(30 * self.magnitude / (self.num_magnitude_bins - 1))
        return frames


def strengths_of(augment: RandAugment, monkeypatch) -> np.ndarray:
    """Those of all operations on 1000 samples."""
    monkeypatch.setattr(Recorder, "strengths", [])
    monkeypatch.setattr(augmentation_module.v2, "RandAugment", Recorder)
    for position in range(1000):
        rand_augmented(augment, noise(1, CROP, CROP), position)
    return np.array(Recorder.strengths)


def test_operations_are_left_out_and_their_strengths_deviate_as_asked_for(monkeypatch):
    strengths = strengths_of(RandAugment(num_ops=2, magnitude=15, magnitude_std=3, probability=0.6), monkeypatch)
    assert abs(len(strengths) / 2000 - 0.6) < 0.05
    assert abs(strengths.mean() - 15) < 0.5 and abs(strengths.std() - 3) < 0.35


@pytest.mark.parametrize("magnitude", [0, 30])
def test_strengths_stay_on_the_scale(magnitude, monkeypatch):
    strengths = strengths_of(RandAugment(magnitude=magnitude, magnitude_std=50), monkeypatch)
    assert strengths.min() == 0 and strengths.max() == 30 and len(set(strengths)) > 100


# Erasing.


def test_one_box_of_the_mean_colour_is_erased_from_all_frames():
    augmentation = Augmentation(random_erasing=RandomErasing(probability=1, scale=(0.1, 0.3), ratio=(1.5, 3.0)))
    clip = noise(3, 40, 50) // 2 + 128  # nothing as dark as the mean colour
    for position in range(50):
        erased = erase(clip, augmentation, MEAN, SampleRandomness(0, position))
        inside = (erased != clip).any(1).any(0)
        height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
        assert inside.sum() == height * width and 0.09 < height * width / 2000 < 0.31
        assert 1.3 < width / height < 3.4  # of whole pixels
        assert (erased[..., inside] == MEAN[..., 0]).all() and torch.equal(erased[..., ~inside], clip[..., ~inside])


def test_erasing_is_torchvisions():
    erasing, clip = RandomErasing(probability=0.5, scale=(0.1, 0.2), ratio=(0.5, 2.0)), noise()
    reference = v2.RandomErasing(0.5, scale=(0.1, 0.2), ratio=(0.5, 2.0), value=[60, 70, 80])
    for position in range(20):
        randomness = SampleRandomness(0, position)
        with randomness.seeding_torch(Purpose.ERASING):
            expected = reference(clip)
        assert torch.equal(erase(clip, Augmentation(random_erasing=erasing), MEAN, randomness), expected)


def test_as_many_clips_are_erased_as_the_probability_says():
    augmentation, clip = Augmentation(random_erasing=RandomErasing(probability=0.25)), noise() // 2 + 128
    randoms = [SampleRandomness(0, position) for position in range(1000)]
    erased = sum(bool((erase(clip, augmentation, MEAN, randomness) < 128).any()) for randomness in randoms)
    assert 180 < erased < 320  # five standard deviations
