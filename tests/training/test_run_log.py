# SPDX-License-Identifier: Apache-2.0
"""The file beside the checkpoints with what a run says."""

import logging

import pytest
from modeling_cover.training.run_log import RunLog


@pytest.fixture
def log(tmp_path) -> RunLog:
    """One whose file cannot be written: its folder is a file."""
    (tmp_path / "taken").write_text("a file")
    return RunLog(tmp_path / "taken" / "log.txt")


def test_a_file_that_cannot_be_written_is_warned_of_once_and_ends_nothing(log, caplog, capsys):
    log.say("first")
    log.write("second")
    assert capsys.readouterr().out == "first\n"
    (record,) = caplog.records
    assert record.message.startswith(f"{log.path} cannot be written: ")


def test_nor_does_it_hide_what_a_run_ends_with(log, caplog):
    with pytest.raises(ArithmeticError), log.warnings_kept():
        logging.getLogger("transformers").warning("something else")
        raise ArithmeticError
    assert sum("cannot be written" in record.message for record in caplog.records) == 1
