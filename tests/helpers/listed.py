# SPDX-License-Identifier: Apache-2.0
"""Datasets of files that are listed and not read, and what their sources say of the files."""

from modeling_cover.recipe.dataset_recipe import DatasetRecipe


def class_folders(**options) -> DatasetRecipe:
    return DatasetRecipe(**{"name": "k400", "format": "class_folders", "modality": "video", **options})


def manifest(**options) -> DatasetRecipe:
    return DatasetRecipe(**{"name": "ssv2", "format": "manifest", "modality": "video", **options})


def paths(source) -> list[str]:
    return [media.content for media in source.media]


def targets(source) -> list[int]:
    return [source.target(row) for row in range(len(source))]


def rows(source) -> list[tuple[str, str]]:
    """(path, label) of every row."""
    return [(path, source.labels[target]) for path, target in zip(paths(source), targets(source), strict=True)]
