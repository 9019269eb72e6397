# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Mends torchvision beside a CPU-only torch before any test module imports transformers; and what several of them train on."""

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
