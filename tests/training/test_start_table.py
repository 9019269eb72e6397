# SPDX-License-Identifier: Apache-2.0
"""What a run says before its first step."""

from functools import partial

import pytest
from modeling_cover.recipe.augmentation_recipe import Augmentation, RandAugment, RandomErasing, RandomResizedCrop
from modeling_cover.training.start_table import DatasetFacts, RunFacts, augmentation_text, start_text


RUN = {
    "parameters": 121_000_000,
    "trained": 121_000_000,
    "steps": 1080,
    "epochs": 4.0,
    "rows_per_step": 64,
    "processes": 8,
    "device": "cuda",
    "starting_point": "org/vit",
}


def facts(**changed) -> DatasetFacts:
    k400 = {"name": "k400", "rows": 240_000, "classes": 400, "share": 0.6, "weight": 1.0, "augmentation": "crop, flip"}
    return DatasetFacts(**{**k400, **changed})


def test_it_is_a_table_of_the_datasets_and_three_lines_of_the_run():
    text = start_text([facts(), facts(name="ssv2", rows=170_000, classes=174, share=0.4, weight=0.5)], RunFacts(**RUN))
    assert text.splitlines() == [
        "dataset  rows     classes  share  loss weight  augmentation",
        "k400     240,000  400      60.0%  1            crop, flip",
        "ssv2     170,000  174      40.0%  0.5          crop, flip",
        "121,000,000 parameters, all trained",
        "1,080 steps of 64 rows, 4 epochs, in 8 processes on cuda",
        "starts from org/vit",
    ]


def test_a_resumed_run_names_its_checkpoint():
    resumed = RunFacts(**{**RUN, "checkpoint": "checkpoint-300"})
    assert start_text([facts()], resumed).splitlines()[-1] == "resumes from checkpoint-300 of 1,080 steps"


def test_of_a_part_that_is_trained_the_parameters_are_told():
    assert "121,000,000 parameters, 600,000 of them trained" in start_text(
        [facts()], RunFacts(**{**RUN, "trained": 600_000})
    )


def test_rows_may_be_unknown_and_weights_may_adapt():
    line = start_text([facts(rows=None, weight=None)], RunFacts(**RUN)).splitlines()[1]
    assert line.split() == ["k400", "unknown", "400", "60.0%", "adapts", "crop,", "flip"]


@pytest.mark.parametrize(
    ("augmentation", "text"),
    [
        (Augmentation(), "crop, flip"),
        (Augmentation(horizontal_flip=False, short_side_range=(256, 320)), "crop, short side"),
        (Augmentation(random_resized_crop=RandomResizedCrop(), mixup_alpha=0.8), "resized crop, flip, mixup"),
        (Augmentation(rand_augment=RandAugment(), random_erasing=RandomErasing()), "crop, flip, RandAugment, erasing"),
        (Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0), "crop, flip, mixup, CutMix"),
        (Augmentation(mixup_alpha=0.8, mix_probability=0), "crop, flip"),
        (Augmentation(transform=abs), "crop, flip, builtins.abs"),
        (Augmentation(transform=partial(pow, exp=2)), "crop, flip, builtins.pow(exp=2)"),
    ],
)
def test_an_augmentation_is_a_few_words(augmentation, text):
    assert augmentation_text(augmentation) == text
