# SPDX-License-Identifier: Apache-2.0
"""Mends torchvision beside a CPU-only torch before any test module imports transformers; and what several of them
train on."""

import modeling_cover._torchvision  # noqa: F401  isort: skip

import shutil
from pathlib import Path

import pytest
from killed_runs import write_data
from short_runs import make_trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of clips and a stream of images, see `killed_runs.write_data`."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    """The folder of a run of 6 steps, with checkpoints at 3 and 6."""
    make_trainer(folder, folder / "finished").train()
    return folder / "finished"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
