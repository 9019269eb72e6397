# SPDX-License-Identifier: Apache-2.0
"""Augmentation: what is drawn, from what, and what it does to the pixels; torchvision's transforms are the reference."""

import random
from dataclasses import replace

import modeling_cover  # noqa: F401  (before torchvision)
import numpy as np
import pytest
import torch
from modeling_cover.data.augmentation import (
    Mix,
    Purpose,
    SampleRandomness,
    augment_frames,
    draw_colors,
    draw_crop,
    draw_erased,
    draw_mix,
    draw_short_side,
    erase,
    jittered,
    random_crop,
    soft_targets,
)
from modeling_cover.data.rand_augment import OPERATIONS, draw_operations
from modeling_cover.recipe.augmentation_recipe import (
    MAX_MAGNITUDE,
    Augmentation,
    ColorJitter,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
)
from torchvision import tv_tensors
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
# torchvision's names of RandAugment's operations.
TORCHVISION_NAMES = {name: "".join(word.title() for word in name.split("_")) for name in OPERATIONS}


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


def drawn_at(augmentation: Augmentation, randomness: SampleRandomness) -> dict[str, object]:
    """What each kind of augmentation that is on draws about one sample, by field."""
    kinds = {
        "random_resized_crop": (draw_crop, Purpose.CROP, (24, 32)),
        "color_jitter": (draw_colors, Purpose.COLOR, ()),
        "rand_augment": (draw_operations, Purpose.RAND_AUGMENT, ()),
        "random_erasing": (draw_erased, Purpose.ERASING, (24, 32)),
    }
    drawn: dict[str, object] = {
        name: draw(getattr(augmentation, name), *size, randomness.of(purpose))
        for name, (draw, purpose, size) in kinds.items()
        if getattr(augmentation, name) is not None
    }
    if augmentation.horizontal_flip:
        flipped = augment_frames(noise(), Augmentation(), 24, 32, randomness)
        drawn["horizontal_flip"] = torch.equal(flipped, noise().flip(-1))
    if augmentation.mixes:
        drawn["mix_probability"] = draw_mix(augmentation, randomness)
    return drawn


@pytest.mark.parametrize(
    "off",
    [
        {"horizontal_flip": False},
        {"random_resized_crop": None},
        {"color_jitter": None},
        {"rand_augment": None},
        {"random_erasing": None},
        {"mix_probability": 0},
    ],
)
def test_switching_one_augmentation_off_does_not_change_what_others_draw(off):
    for position in range(10):
        randomness = SampleRandomness(0, position)
        expected = drawn_at(EVERYTHING, randomness)
        del expected[next(iter(off))]
        assert drawn_at(replace(EVERYTHING, **off), randomness) == expected


def test_neither_the_colours_adjusted_nor_the_probability_of_operations_change_the_others():
    for position in range(20):
        randomness = SampleRandomness(0, position)
        every = dict(draw_colors(ColorJitter(hue=0.1), randomness.of(Purpose.COLOR)))
        assert dict(draw_colors(ColorJitter(contrast=0, hue=0), randomness.of(Purpose.COLOR))) == {
            name: factor for name, factor in every.items() if name in ("brightness", "saturation")
        }
        drawn = draw_operations(RandAugment(probability=1), randomness.of(Purpose.RAND_AUGMENT))
        assert set(draw_operations(RandAugment(probability=0.5), randomness.of(Purpose.RAND_AUGMENT))) <= set(drawn)


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


def test_a_resized_crop_is_torchvisions_of_the_box_drawn():
    augmentation = Augmentation(random_resized_crop=RandomResizedCrop(), horizontal_flip=False)
    frames = noise(3, 60, 90)
    for position in range(20):
        randomness = SampleRandomness(0, position)
        top, left, height, width = draw_crop(augmentation.random_resized_crop, 60, 90, randomness.of(Purpose.CROP))
        expected = v2.functional.resized_crop(frames, top, left, height, width, [CROP, CROP])
        assert torch.equal(augment_frames(frames, augmentation, CROP, CROP, randomness), expected)


def test_resized_crops_have_areas_shapes_and_places_as_asked_for():
    crop, height, width = RandomResizedCrop(scale=(0.2, 0.4), ratio=(0.5, 1.0)), 1000, 1000
    boxes = [
        draw_crop(crop, height, width, SampleRandomness(0, position).of(Purpose.CROP)) for position in range(2000)
    ]
    areas = np.array([box.height * box.width for box in boxes]) / (height * width)
    shapes = np.log([box.width / box.height for box in boxes])
    assert 0.199 < areas.min() < 0.205 and 0.395 < areas.max() < 0.401 and abs(areas.mean() - 0.3) < 0.01
    assert np.log(0.498) < shapes.min() < np.log(0.52) and np.log(0.98) < shapes.max() < np.log(1.002)
    assert abs(shapes.mean() - np.log(0.5) / 2) < 0.05
    assert all(0 <= box.top <= height - box.height and 0 <= box.left <= width - box.width for box in boxes)
    assert abs(np.mean([box.top / (height - box.height) for box in boxes]) - 0.5) < 0.04


def test_resized_crops_reach_every_edge_of_the_frame():
    crop = RandomResizedCrop(scale=(0.25, 0.25), ratio=(1, 1))
    boxes = [draw_crop(crop, 4, 4, SampleRandomness(0, position).of(Purpose.CROP)) for position in range(300)]
    assert {(box.top, box.left) for box in boxes} == {(top, left) for top in range(3) for left in range(3)}


@pytest.mark.parametrize("size", [(20, 90), (90, 20), (7, 500)])
@pytest.mark.parametrize("ratio", [(0.75, 4 / 3), (3.0, 3.0), (0.3, 0.3)])
def test_where_no_drawn_box_fits_the_middle_is_taken_as_in_torchvision(size, ratio):
    box = draw_crop(RandomResizedCrop(scale=(1, 1), ratio=ratio), *size, SampleRandomness(0, 0).of(Purpose.CROP))
    reference = v2.RandomResizedCrop(CROP, scale=(1, 1), ratio=ratio).make_params([torch.zeros(1, 3, *size)])
    assert box._asdict() == reference


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


def test_the_colour_jitter_is_torchvisions_with_the_factors_drawn():
    jitter, names, orders = ColorJitter(hue=0.3), ["brightness", "contrast", "saturation", "hue"], set()
    reference = v2.ColorJitter(brightness=1, contrast=1, saturation=1, hue=0.5)
    for position in range(30):
        drawn = draw_colors(jitter, SampleRandomness(0, position).of(Purpose.COLOR))
        orders.add(tuple(name for name, _ in drawn))
        params = {f"{name}_factor": factor for name, factor in drawn}
        params["fn_idx"] = torch.tensor([names.index(name) for name, _ in drawn])
        after = jittered(noise(), jitter, SampleRandomness(0, position).of(Purpose.COLOR))
        assert torch.equal(after, reference.transform(noise(), params))
    assert len(orders) > 10  # of 24


def test_colour_factors_are_uniform_in_their_ranges():
    jitter = ColorJitter(brightness=0.4, contrast=1.5, saturation=0, hue=0.25)
    drawn = [dict(draw_colors(jitter, SampleRandomness(0, position).of(Purpose.COLOR))) for position in range(1000)]
    for name, (low, high) in {"brightness": (0.6, 1.4), "contrast": (0, 2.5), "hue": (-0.25, 0.25)}.items():
        factors = (np.array([factors[name] for factors in drawn]) - low) / (high - low)
        assert factors.min() >= 0 and factors.max() <= 1
        assert abs(factors.mean() - 0.5) < 0.05 and abs(factors.std() - 12**-0.5) < 0.03
    assert all("saturation" not in factors for factors in drawn)


# RandAugment.


def test_the_operations_are_torchvisions():
    assert set(TORCHVISION_NAMES.values()) == set(v2.RandAugment._AUGMENTATION_SPACE)


@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions_of_the_same_magnitude(name, num_frames):
    frames = noise(num_frames) // 2 + 40  # leaves something to the operations on contrast
    reference, torchvision_name = v2.RandAugment(), TORCHVISION_NAMES[name]
    magnitudes, is_signed = v2.RandAugment._AUGMENTATION_SPACE[torchvision_name]
    bins = magnitudes(MAX_MAGNITUDE + 1, *frames.shape[-2:])
    # Of a shear by 4, 12, ... of 30, a column here would lie just between two rows, and a processor's rounding choose one.
    for magnitude in (0, 5, 9, 17, 30):
        for sign in (1, -1):
            after = OPERATIONS[name](frames, sign * magnitude / MAX_MAGNITUDE)
            value = 0.0 if bins is None else float(bins[magnitude]) * (sign if is_signed else 1)
            expected = reference._apply_image_or_video_transform(
                frames, torchvision_name, value, interpolation=reference.interpolation, fill=reference._fill
            )
            assert after.shape == frames.shape and after.dtype == torch.uint8
            # torchvision's magnitudes are float32: a colour between two levels may become the other one.
            difference = (after.int() - expected.int()).abs()
            assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01
    assert torch.equal(after, frames) == (name == "identity")


def test_operations_signs_and_strengths_are_drawn_as_asked_for():
    augment = RandAugment(num_ops=2, magnitude=15, magnitude_std=3, probability=0.6)
    drawn = [
        draw_operations(augment, SampleRandomness(0, position).of(Purpose.RAND_AUGMENT)) for position in range(3000)
    ]
    operations = [operation for sample in drawn for operation in sample]
    names = [name for name, _ in operations]
    strengths = np.array([strength for _, strength in operations])
    assert abs(len(operations) / 6000 - 0.6) < 0.04
    assert all(names.count(name) > 150 for name in OPERATIONS)  # some 257 each
    assert abs((strengths > 0).mean() - 0.5) < 0.05
    assert abs(abs(strengths).mean() * 30 - 15) < 0.4 and abs(abs(strengths).std() * 30 - 3) < 0.3


def test_strengths_stay_on_the_scale_and_without_deviation_are_all_one():
    for augment in (RandAugment(magnitude=30, magnitude_std=50), RandAugment(magnitude=0, magnitude_std=50)):
        for position in range(100):
            drawn = draw_operations(augment, SampleRandomness(0, position).of(Purpose.RAND_AUGMENT))
            assert len(drawn) == 2 and all(abs(strength) <= 1 for _, strength in drawn)
    exact = draw_operations(RandAugment(magnitude=9, magnitude_std=0), SampleRandomness(0, 0).of(Purpose.RAND_AUGMENT))
    assert [abs(strength) for _, strength in exact] == [0.3, 0.3]


# Erasing.


def test_one_box_of_the_mean_colour_is_erased_from_all_frames():
    augmentation = Augmentation(random_erasing=RandomErasing(probability=1, scale=(0.1, 0.3)))
    clip = noise(3, 40, 50) // 2 + 128  # nothing as dark as the mean colour
    for position in range(50):
        randomness = SampleRandomness(0, position)
        erased = erase(clip, augmentation, MEAN, randomness)
        top, left, height, width = draw_erased(augmentation.random_erasing, 40, 50, randomness.of(Purpose.ERASING))
        assert 0.09 < height * width / 2000 < 0.31 and top + height <= 40 and left + width <= 50
        inside = torch.zeros(40, 50, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert (erased[..., inside] == MEAN[..., 0]).all() and torch.equal(erased[..., ~inside], clip[..., ~inside])


def test_as_many_clips_are_erased_as_the_probability_says():
    augmentation, clip = Augmentation(random_erasing=RandomErasing(probability=0.25)), noise() // 2 + 128
    randoms = [SampleRandomness(0, position) for position in range(1000)]
    erased = sum(bool((erase(clip, augmentation, MEAN, randomness) < 128).any()) for randomness in randoms)
    assert 180 < erased < 320  # five standard deviations


# Mixing.


def test_mixup_is_torchvisions_with_the_share_drawn_rounded_to_bytes():
    clip, partner = noise(3, 8, 8), noise(3, 8, 9)[..., 1:]
    mixed, share = Mix(share=0.3).apply(clip, partner)
    batch, labels = tv_tensors.Video(torch.stack([partner, clip]).float()), torch.tensor([0, 1])
    expected = v2.MixUp(num_classes=2).transform(batch, {"labels": labels, "batch_size": 2, "lam": 1 - share})
    assert share == 0.3
    assert mixed.dtype == torch.uint8
    torch.testing.assert_close(mixed.float(), expected[0].as_subclass(torch.Tensor), atol=0.5 + 1e-4, rtol=0)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_shares_are_beta_distributed(kind, alpha):
    augmentation = Augmentation(**{kind: alpha})
    shares = np.array([draw_mix(augmentation, SampleRandomness(0, position)).share for position in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.05
    assert abs(shares.var() * (8 * alpha + 4) - 1) < 0.15


def test_the_share_after_cutmix_is_that_of_the_pixels_and_the_box_is_one_for_all_frames():
    augmentation, shares = Augmentation(cutmix_alpha=1.0), []
    clip = torch.ones(3, 3, 30, 47, dtype=torch.uint8)
    partner = torch.zeros_like(clip)
    for position in range(300):
        mixed, share = draw_mix(augmentation, SampleRandomness(0, position)).apply(clip, partner)
        assert torch.equal(mixed, mixed[:1, :1].expand_as(mixed))
        assert mixed.float().mean().item() == pytest.approx(share, abs=1e-6)
        rows, columns = (mixed[0, 0] == 0).any(1).sum(), (mixed[0, 0] == 0).any(0).sum()
        assert (mixed[0, 0] == 0).sum() == rows * columns
        shares.append(share)
    assert min(shares) < 0.3 and max(shares) > 0.9


def test_cutmix_puts_the_partners_pixels_at_their_own_place():
    clip, partner = noise(2, 20, 20), noise(2, 20, 20).flip(0)
    mixed, share = Mix(share=0.75, centre=(0.5, 0.5)).apply(clip, partner)
    expected = clip.clone()
    expected[..., 5:15, 5:15] = partner[..., 5:15, 5:15]
    assert torch.equal(mixed, expected) and share == 0.75


@pytest.mark.parametrize("centre", [None, (0.0, 0.0), (0.999, 0.999), (0.5, 0.5)])
def test_a_clip_with_all_of_the_share_stays_as_it_is(centre):
    clip, partner = noise(3, 8, 8), noise(3, 8, 9)[..., 1:]
    mixed, share = Mix(share=1.0, centre=centre).apply(clip, partner)
    assert torch.equal(mixed, clip) and share == 1


def test_with_both_alphas_each_mix_is_as_likely_and_drawn_as_it_would_be_alone():
    both, mixup = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0), Augmentation(mixup_alpha=0.8)
    mixes = [draw_mix(both, SampleRandomness(0, position)) for position in range(1000)]
    assert 420 < sum(mix.centre is None for mix in mixes) < 580  # five standard deviations
    for position, mix in enumerate(mixes[:50]):
        alone = draw_mix(
            mixup if mix.centre is None else replace(both, mixup_alpha=0.0), SampleRandomness(0, position)
        )
        assert mix == alone


def test_as_many_clips_are_mixed_as_the_probability_says():
    augmentation = Augmentation(mixup_alpha=0.8, mix_probability=0.3)
    mixed = sum(draw_mix(augmentation, SampleRandomness(0, position)) is not None for position in range(1000))
    assert 225 < mixed < 375  # five standard deviations
    assert augmentation.mixes and not Augmentation(mixup_alpha=1.0, mix_probability=0).mixes


def test_clips_of_different_shapes_cannot_be_mixed():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 8, 8\), \(1, 3, 8, 8\)"):
        Mix(share=0.5).apply(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_targets_are_mixed_by_the_share():
    assert soft_targets(2, 0, 0.75, 4).tolist() == [0.25, 0, 0.75, 0]
    assert soft_targets(np.int64(1), torch.tensor(1), 0.3, 2).tolist() == pytest.approx([0, 1])
    several = soft_targets(np.array([1, 0, 1]), torch.tensor([0.0, 0.0, 1.0]), 0.75, 3)
    assert several.tolist() == [0.75, 0, 1] and several.dtype == torch.float32


@pytest.mark.parametrize("target", [4, -1, 0.5, [1, 0, 1]])
def test_a_target_that_is_neither_a_class_nor_a_vector_of_all_is_an_error(target):
    with pytest.raises(ValueError, match="expected a class from 0 to 3 or a vector of 4, got"):
        soft_targets(0, target, 0.5, 4)


# Recipes.


def test_a_recipe_without_a_word_on_augmentation_has_the_papers():
    assert Augmentation.from_recipe("here", {}) == Augmentation()
    assert Augmentation.from_recipe("here", {}, horizontal_flip=False) == Augmentation(horizontal_flip=False)
    assert Augmentation.from_recipe("here", {"horizontal_flip": True}, horizontal_flip=False) == Augmentation()


def test_sections_of_a_recipe_are_mappings_or_true_or_false():
    content = {
        "random_resized_crop": {"scale": [0.5, 1], "ratio": [0.75, 1.333]},
        "color_jitter": True,
        "rand_augment": {"num_ops": 1, "magnitude": 5},
        "random_erasing": False,
        "mixup_alpha": 0.8,
    }
    assert Augmentation.from_recipe("here", content) == Augmentation(
        random_resized_crop=RandomResizedCrop(scale=(0.5, 1), ratio=(0.75, 1.333)),
        color_jitter=ColorJitter(),
        rand_augment=RandAugment(num_ops=1, magnitude=5),
        mixup_alpha=0.8,
    )
    assert Augmentation.from_recipe("here", {"short_side_range": [256, 320]}).short_side_range == (256, 320)


@pytest.mark.parametrize(
    "content, message",
    [
        (["mixup_alpha"], "here: expected keys and values, got ['mixup_alpha']"),
        ({"colour_jitter": True}, "here: unknown key 'colour_jitter', did you mean 'color_jitter'?"),
        ({"rand_augment": {"num_op": 3}}, "here: rand_augment: unknown key 'num_op', did you mean 'num_ops'?"),
        ({"color_jitter": 0.4}, "here: color_jitter: expected keys and values, got 0.4"),
        ({"horizontal_flip": "yes"}, "here: horizontal_flip must be true or false, got 'yes'"),
        ({"short_side_range": [320, 256]}, "here: short_side_range must be above 0, the smaller number first"),
        ({"short_side_range": 256}, "here: short_side_range must be a list of two finite numbers, got 256"),
        ({"short_side_range": [256, 320.5]}, "short_side_range must be a positive whole number, got 320.5"),
        ({"short_side_range": [256, 320], "random_resized_crop": True}, "no effect with random_resized_crop"),
        (
            {"random_resized_crop": {"scale": [0.08, 1.5]}},
            "here: random_resized_crop: scale must be above 0 and at most 1",
        ),
        ({"random_resized_crop": {"scale": [0, 1]}}, "here: random_resized_crop: scale must be above 0"),
        (
            {"random_resized_crop": {"ratio": [2, 0.5]}},
            "here: random_resized_crop: ratio must be above 0, the smaller",
        ),
        ({"random_resized_crop": {"ratio": [1, 2, 3]}}, "ratio must be a list of two finite numbers, got (1, 2, 3)"),
        ({"color_jitter": {"brightness": -0.1}}, "here: color_jitter: brightness must be a finite number, at least 0"),
        ({"color_jitter": {"hue": 0.6}}, "here: color_jitter: hue must be a finite number, from 0 to 0.5, got 0.6"),
        ({"rand_augment": {"num_ops": 1.5}}, "here: rand_augment: num_ops must be a positive whole number, got 1.5"),
        ({"rand_augment": {"magnitude": 31}}, "here: rand_augment: magnitude must be a finite number, from 0 to 30"),
        (
            {"rand_augment": {"probability": 1.1}},
            "here: rand_augment: probability must be a finite number, from 0 to 1",
        ),
        ({"random_erasing": {"probability": True}}, "probability must be a finite number, from 0 to 1, got True"),
        (
            {"random_erasing": {"ratio": [0.3, float("inf")]}},
            "random_erasing: ratio must be a list of two finite numbers",
        ),
        ({"mixup_alpha": float("nan")}, "here: mixup_alpha must be a finite number, at least 0, got nan"),
        ({"cutmix_alpha": "1e0"}, "here: cutmix_alpha must be a finite number, at least 0, got '1e0'"),
        ({"mixup_alpha": 1, "mix_probability": -0.5}, "here: mix_probability must be a finite number, from 0 to 1"),
        ({"mix_probability": 0.5}, "here: mix_probability is of no effect without mixup_alpha or cutmix_alpha"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(content, message):
    with pytest.raises(ValueError) as raised:
        Augmentation.from_recipe("here", content)
    assert message in str(raised.value)


def test_a_section_given_in_python_must_be_of_its_class():
    with pytest.raises(ValueError, match=r"color_jitter must be a ColorJitter, got \{'hue': 0.1\}"):
        Augmentation(color_jitter={"hue": 0.1})


def test_frames_resized_to_less_than_the_crop_are_an_error():
    augmentation = Augmentation(short_side_range=(200, 320))
    augmentation.check(200)
    Augmentation().check(224)
    with pytest.raises(ValueError, match=r"short_side_range \(200, 320\) begins below image_size \(224\)"):
        augmentation.check(224)
