# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

import os
import signal

import pytest
from modeling_cover.files import replacing


def test_a_file_is_there_once_it_is_written(tmp_path):
    with replacing(tmp_path / "new" / "report.jsonl") as file:
        file.write(b"all of it")
        assert not (tmp_path / "new" / "report.jsonl").exists()
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "new").iterdir()] == [
        ("report.jsonl", b"all of it")
    ]


def test_a_process_that_is_killed_leaves_the_last_file_as_it_was(tmp_path):
    report = tmp_path / "report.jsonl"
    report.write_text("the last one\n")
    child = os.fork()
    if child == 0:
        with replacing(report) as file:
            file.write(b"half of a li")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert report.read_text() == "the last one\n"


def test_one_that_is_stopped_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "report.jsonl") as file:
        file.write(b"half of a li")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
