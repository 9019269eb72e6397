# SPDX-License-Identifier: Apache-2.0
"""A sample of the twenty thousand damaged files of damaged_files.py, in every run of the tests."""

import pytest
from damaged_files import VIDEOS, damaged_files, run_all, write_whole_files


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_whole_files(folder)
    return folder


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_a_damaged_file_yields_frames_or_an_error_and_neither_crashes_nor_hangs_nor_fills_the_memory(
    whole_files, count
):
    assert run_all(count=count, seed=1, processes=2, whole_files=whole_files) == []


def test_the_sample_has_every_kind_of_damage(whole_files):
    files = list(damaged_files(range(500), 1, whole_files))
    assert {file.kind for file in files} == {
        *("truncated", "flipped", "wrong numbers", "mutated"),
        *("script", "bomb", "empty", "audio only", "wrong extension", "zeros"),
    }
    assert set(VIDEOS) <= {file.name for file in files if file.kind == "truncated"}


def test_the_same_seed_makes_the_same_files(whole_files):
    assert list(damaged_files(range(300), 5, whole_files)) == list(damaged_files(range(300), 5, whole_files))
