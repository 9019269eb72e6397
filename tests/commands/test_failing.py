# SPDX-License-Identifier: Apache-2.0
"""How commands end that cannot do what they are asked for."""

import subprocess
import sys
import time

import pytest
import torch
from modeling_cover import VideoDecodingError
from modeling_cover.commands import cover, failing
from modeling_cover.commands.failing import DEBUG_VALUES, SECONDS_FOR_THE_MAIN_PROCESS, told, without_debug
from modeling_cover.data.quarantine import TooManyBadFilesError
from modeling_cover.data.sources.file_cache import CacheError
from modeling_cover.hub.publishing import PublishingError
from modeling_cover.training.step_guard import NonFiniteTrainingError, TrainingOutOfMemoryError
from python_server import python
from torch.utils.data import DataLoader, Dataset
from transformers.debug_utils import DebugOption


class Unreadable(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise VideoDecodingError("clip.mp4: it is empty")


def ending(error: BaseException):
    @told
    def main() -> None:
        raise error

    return main


class TestTheLine:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (ValueError("weight must be positive, got -1"), 2),
            (FileNotFoundError(2, "No such file or directory", "recipe.yaml"), 2),
            (ImportError("onnx is not installed"), 2),
            (CacheError("the cache cannot be used"), 2),
            (TooManyBadFilesError("7 of 9 rows cannot be decoded"), 1),
            (PublishingError("the Hub cannot be reached"), 1),
            (NonFiniteTrainingError("10 steps in a row"), 1),
            (TrainingOutOfMemoryError("out of memory"), 1),
        ],
    )
    def test_an_error_is_one_and_its_exit_code_says_whether_work_had_begun(self, monkeypatch, capsys, error, code):
        monkeypatch.setattr(sys, "argv", ["cover train"])
        assert ending(error)() == code
        assert capsys.readouterr() == ("", f"error: {error}\n")

    def test_it_stays_one_whatever_the_message(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["cover train"])
        ending(OSError("gone.\n\n  Log in\tfirst.\n"))()
        assert capsys.readouterr().err == "error: gone. Log in first.\n"
        ending(ValueError("it differs:\n- seed\n- heads\nMake them equal"))()
        assert capsys.readouterr().err == "error: it differs: - seed; - heads; Make them equal\n"
        ending(ValueError())()
        assert capsys.readouterr().err == "error: ValueError\n"

    def test_of_a_data_loaders_worker_it_is_the_workers_error(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["cover train"])
        assert told(lambda: list(DataLoader(Unreadable(), num_workers=1)))() == 2
        assert capsys.readouterr().err == "error: clip.mp4: it is empty\n"

    def test_a_fault_of_the_program_keeps_its_traceback(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["cover train"])
        for fault in (TypeError, AssertionError, KeyError, RuntimeError):
            with pytest.raises(fault):
                ending(fault("mistake"))()

    def test_an_exit_code_of_its_own_is_left_alone(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["cover train"])
        with pytest.raises(SystemExit, match="75"):
            ending(SystemExit(75))()
        assert [told(lambda code=code: code)() for code in (None, 0, 1)] == [0, 0, 1]

    def test_ctrl_c_is_no_error(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["cover train"])
        assert ending(KeyboardInterrupt())() == 130
        assert ending(KeyboardInterrupt("nothing is written"))() == 130
        assert capsys.readouterr().err == "stopped\nstopped: nothing is written\n"

    def test_another_process_tells_its_own_only_after_the_main_one(self, monkeypatch, capsys):
        waits = []
        monkeypatch.setattr(sys, "argv", ["cover train"])
        monkeypatch.setattr(time, "sleep", waits.append)
        monkeypatch.setenv("RANK", "0")
        ending(ValueError("bad"))()
        assert not waits
        monkeypatch.setenv("RANK", "3")
        ending(ValueError("bad"))()
        assert waits == [SECONDS_FOR_THE_MAIN_PROCESS]
        assert capsys.readouterr().err == "error: bad\nerror: process 3: bad\n"


class TestDebug:
    def test_it_shows_the_traceback_anywhere_on_the_command_line(self, monkeypatch):
        for line in (
            ["--debug", "show", "nowhere.yaml"],
            ["show", "--debug", "nowhere.yaml"],
            ["show", "no.yaml", "--debug"],
        ):
            monkeypatch.setattr(sys, "argv", ["cover", *line])
            with pytest.raises(ValueError, match="No such file"):
                cover.main()
        for line in (["--debug", "train"], ["train", "--debug"]):
            monkeypatch.setattr(sys, "argv", ["cover", *line])
            with pytest.raises(ValueError, match="name a recipe"):
                cover.main()

    def test_with_a_value_it_is_an_argument_of_training(self):
        assert set(DEBUG_VALUES) == {option.value for option in DebugOption}
        assert without_debug(["r.yaml", "--debug"]) == (["r.yaml"], True)
        assert without_debug(["--debug", "r.yaml"]) == (["r.yaml"], True)
        argument = ["r.yaml", "--debug", "underflow_overflow"]
        assert without_debug(argument) == (argument, False)
        assert without_debug([*argument, "--debug"]) == (argument, True)

    def test_every_subcommand_has_it(self, monkeypatch, capsys):
        for name in set(cover.COMMANDS) - {"train"}:
            monkeypatch.setattr(sys, "argv", ["cover", name, "--help"])
            with pytest.raises(SystemExit, match="0"):
                cover.main()
            assert "--debug" in capsys.readouterr().out, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "recipe nowhere.yaml: [Errno 2] No such file or directory: 'nowhere.yaml'"),
        (["recipe.yaml", "--max_stepss", "3"], "--max_stepss 3: no training arguments"),
        (["recipe.yaml", "--max_steps", "few"], "argument --max_steps/--max-steps: invalid int value: 'few'"),
    ],
)
def test_training_tells_what_is_wrong_on_one_line(tmp_path, arguments, message):
    splits = "splits: {train: nowhere}"
    (tmp_path / "recipe.yaml").write_text(f"datasets: [{{name: a, format: class_folders, modality: image, {splits}}}]")
    command = [python(), "-m", "modeling_cover.commands.train", *arguments]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "", f"error: {message}\n")


@pytest.mark.slow
def test_two_processes_tell_it_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", failing.__name__.replace("failing", "train"), "nowhere.yaml"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 1
    assert finished.stderr.count("error: recipe nowhere.yaml") == 1
    assert "modeling_cover/commands" not in finished.stderr  # no traceback of ours
