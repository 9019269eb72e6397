# SPDX-License-Identifier: Apache-2.0
"""Transforms of a user's own: what they are given, what they must return, and runs with them."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest
import torch
from given_datasets import Rows
from killed_runs import build_recipe
from modeling_cover import Augmentation, CoTrainingDataset, register_transform
from modeling_cover.data.augmentation import augment_frames
from modeling_cover.data.mixture import MixtureSchedule
from modeling_cover.data.randomness import Purpose, SampleRandomness
from modeling_cover.data.sources import to_source
from modeling_cover.recipe.augmentation_recipe import TRANSFORMS
from short_runs import final_weights, make_trainer, resumed_from
from tiny import tiny_processor
from torchvision.transforms import v2


def tint(frames, rng):
    frames[:, int(rng.integers(3))] = 255 * torch.randint(2, ()).to(torch.uint8)
    return frames


@pytest.fixture
def tinted(folder):
    register_transform("tint", tint)
    recipe = build_recipe(folder)
    yield dataclasses.replace(recipe, augmentation={"transform": "tint"})
    TRANSFORMS.pop("tint")


def frames_of(transform, frames=None, randomness=None) -> torch.Tensor:
    frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8) if frames is None else frames
    return augment_frames(frames, Augmentation(transform=transform), 8, 8, randomness or SampleRandomness(0, 0))


class TestATransform:
    def test_it_comes_after_the_crop_and_draws_what_the_samples_position_says(self):
        seen = []

        def note(frames, rng):
            seen.append((frames.shape, rng.random(), torch.rand(()).item()))
            return frames + 1

        frames = torch.full((2, 3, 12, 10), 7, dtype=torch.uint8)
        made = [frames_of(note, frames, SampleRandomness(3, position)) for position in (5, 5, 6)]
        assert [tuple(shape) for shape, *_ in seen] == [(2, 3, 8, 8)] * 3
        assert seen[0] == seen[1]
        assert not {*seen[0][1:]} & {*seen[2][1:]}
        assert seen[0][1] == SampleRandomness(3, 5).of(Purpose.TRANSFORM).random()
        assert all((clip == 8).all() for clip in made)

    def test_torchvisions_draw_from_the_samples_stream_too(self):
        frames = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
        jitter = lambda frames, rng: v2.ColorJitter(brightness=0.9)(frames)  # noqa: E731
        made = [frames_of(jitter, frames, SampleRandomness(0, position)) for position in (1, 1, 2)]
        assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])

    def test_it_may_write_into_its_frames_which_are_not_the_datasets(self):
        frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        assert frames_of(lambda frames, rng: frames.fill_(9), frames).unique().tolist() == [9]
        assert not frames.any()

    @pytest.mark.parametrize(
        ("made", "got"),
        [
            (lambda frames: frames.float(), r"torch.float32 of \(2, 3, 8, 8\)"),
            (lambda frames: frames[:1], r"torch.uint8 of \(1, 3, 8, 8\)"),
            (lambda frames: frames.numpy(), "ndarray"),
            (lambda frames: None, "NoneType"),
        ],
    )
    def test_anything_but_such_frames_is_an_error_that_names_it(self, made, got):
        def broken(frames, rng):
            return made(frames)

        with pytest.raises(ValueError, match=rf"transform '.*\.broken': expected a tensor of uint8 .* got {got}"):
            frames_of(broken)

    def test_a_file_that_it_lacks_is_not_taken_for_a_bad_sample(self):
        def overlay(frames, rng):
            return open("there/is/none.png")

        with pytest.raises(RuntimeError, match=r"transform '.*overlay': .*none.png"):
            frames_of(overlay)

    def test_floats_that_the_model_takes_as_they_are_cannot_be_transformed(self):
        rows = [{"pixel_values": torch.zeros(4, 3, 32, 32), "label": row % 2} for row in range(2)]
        source = to_source("clips", Rows(rows, ["a", "b"]))
        augmentations = {"clips": Augmentation(transform=tint)}
        samples = CoTrainingDataset([source], ["clips"], tiny_processor(), 0, augmentations=augmentations)
        reference = next(MixtureSchedule({"clips": 2}, 0).references())
        with pytest.raises(
            ValueError, match="dataset 'clips': its pixel_values are floats, which are not transformed"
        ):
            samples[reference]


class TestNames:
    def test_a_recipe_names_what_was_registered(self, tinted):
        assert {of.transform for of in tinted.augmentations.values()} == {tint}
        assert Augmentation(transform="tint") == Augmentation(transform=tint)

    def test_another_name_or_code_is_refused_with_those_there_are(self, tinted):
        with pytest.raises(
            ValueError, match=r"here: transform must be one of \('tint',\), got 'tnt'; .*register_tran"
        ):
            Augmentation.from_recipe("here", {"transform": "tnt"})
        with pytest.raises(
            ValueError, match="here: transform must be the name of a registered one, got <function tint"
        ):
            Augmentation.from_recipe("here", {"transform": tint})
        with pytest.raises(ValueError, match="transform must be a function"):
            Augmentation(transform=3)

    def test_what_cannot_be_registered_is_named(self):
        with pytest.raises(ValueError, match="transform name 'a b': expected letters"):
            register_transform("a b", tint)
        with pytest.raises(ValueError, match=r"transform 'new': expected a function of \(frames, rng\), got 'tint'"):
            register_transform("new", "tint")
        assert "new" not in TRANSFORMS

    def test_settings_have_its_name_and_without_one_no_word_of_it(self, tinted):
        assert Augmentation(transform=tint).settings()["transform"] == "tint"
        assert Augmentation(transform=v2.Identity()).settings()["transform"].endswith(".Identity")
        assert "transform" not in Augmentation().settings()


class TestARunWithOne:
    def test_workers_change_nothing_and_it_resumes_to_the_same_weights(self, tinted, folder, tmp_path):
        whole = make_trainer(folder, tmp_path / "whole", tinted)
        whole.train()
        workers = make_trainer(folder, tmp_path / "workers", tinted, dataloader_num_workers=2)
        workers.train()
        resumed = resumed_from(tmp_path / "whole", 3, tmp_path / "resumed", folder, tinted)
        plain = make_trainer(folder, tmp_path / "plain", build_recipe(folder))
        plain.train()
        expected = final_weights(whole)
        for run in (workers, resumed):
            torch.testing.assert_close(final_weights(run), expected, rtol=0, atol=0)
        assert any(not torch.equal(weight, expected[name]) for name, weight in final_weights(plain).items())

    def test_a_run_that_resumes_without_it_says_so(self, tinted, folder, tmp_path, caplog):
        make_trainer(folder, tmp_path / "whole", tinted, max_steps=3).train()
        with caplog.at_level(logging.WARNING):
            resumed_from(tmp_path / "whole", 3, tmp_path / "resumed", folder, build_recipe(folder), max_steps=6)
        assert "augmentation of 'videos': " in caplog.text
        assert "'transform': 'tint'} in the checkpoint" in caplog.text

    def test_the_frames_of_a_sample_do_not_depend_on_who_else_was_decoded(self, tinted, folder, tmp_path):
        samples = make_trainer(folder, tmp_path, tinted).train_dataset
        references = list(itertools.islice(MixtureSchedule({"videos": 6}, samples.seed).references(), 6))
        forwards = [samples[one]["pixel_values"] for one in references]
        backwards = [samples[one]["pixel_values"] for one in reversed(references)][::-1]
        assert all(torch.equal(one, other) for one, other in zip(forwards, backwards, strict=True))
        assert len(np.unique([int(clip.float().mean()) for clip in forwards])) > 1
