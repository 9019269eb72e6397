# SPDX-License-Identifier: Apache-2.0
"""Training on datasets that are given as objects: the same as by a recipe."""

import datasets
import pytest
import torch
from given_datasets import Rows, given_trainer, image_stream, video_rows, videos
from short_runs import final_weights, make_trainer


@pytest.fixture(scope="module")
def by_recipe(folder, tmp_path_factory):
    """The weights of a run by a recipe."""
    trainer = make_trainer(folder, tmp_path_factory.mktemp("recipe"), max_steps=6)
    trainer.train()
    return final_weights(trainer)


def shuffled_back(table: datasets.Dataset) -> datasets.Dataset:
    """The same rows in the same order, by way of an indices mapping."""
    order = [3, 1, 0, 5, 4, 2]
    return table.select(order).select([order.index(row) for row in range(6)])


@pytest.mark.parametrize(
    "given_videos",
    [
        pytest.param(lambda folder: videos(folder), id="video feature"),
        pytest.param(lambda folder: videos(folder, "path"), id="paths"),
        pytest.param(lambda folder: videos(folder, "bytes"), id="bytes"),
        pytest.param(lambda folder: shuffled_back(videos(folder)), id="indices mapping"),
        pytest.param(lambda folder: videos(folder).with_format("torch"), id="set_format"),
        pytest.param(
            lambda folder: videos(folder, "path").with_transform(lambda rows: {key: rows[key] for key in rows}),
            id="with_transform",
        ),
        pytest.param(lambda folder: videos(folder).rename_columns({"video": "clip", "label": "y"}), id="other names"),
        pytest.param(
            lambda folder: Rows(
                [
                    dict(zip(("video", "label"), row, strict=True))
                    for row in zip(*video_rows(folder).values(), strict=True)
                ],
                ["class0", "class1"],
            ),
            id="map-style",
        ),
    ],
)
def test_the_weights_are_those_of_a_run_by_a_recipe_to_the_bit(folder, tmp_path, by_recipe, given_videos):
    given = {"videos": given_videos(folder), "images": image_stream(folder)}
    trainer = given_trainer(folder, tmp_path, given)
    trainer.train()
    for name, weight in final_weights(trainer).items():
        assert torch.equal(weight, by_recipe[name]), name
    assert trainer.train_dataset.bad_files == {"videos": 1}
