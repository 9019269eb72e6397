# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix: what is drawn, and what becomes of clips and targets; torchvision's transforms are the
reference."""

from dataclasses import replace

import modeling_cover  # noqa: F401  (before torchvision)
import numpy as np
import pytest
import torch
from modeling_cover.data.mixing import Mix, draw_mix, soft_targets
from modeling_cover.data.randomness import SampleRandomness
from modeling_cover.recipe.augmentation_recipe import Augmentation
from torchvision import tv_tensors
from torchvision.transforms import v2


def noise(num_frames: int, height: int, width: int) -> torch.Tensor:
    """Frames (T, 3, H, W) of random colours, no two alike."""
    generator = torch.Generator().manual_seed(num_frames * height * width)
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)


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
