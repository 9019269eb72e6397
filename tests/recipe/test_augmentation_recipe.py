# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say of augmentation."""

import pytest
from modeling_cover.recipe.augmentation_recipe import Augmentation, ColorJitter, RandAugment, RandomResizedCrop


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
