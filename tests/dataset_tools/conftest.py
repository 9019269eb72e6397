# SPDX-License-Identifier: Apache-2.0
"""Datasets without a fault, which tests of the check spoil."""

import shutil
from pathlib import Path

import pytest
from checked_datasets import write_clean


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def folder(clean, tmp_path) -> Path:
    """Clean datasets to be spoilt."""
    return Path(shutil.copytree(clean, tmp_path, dirs_exist_ok=True))
