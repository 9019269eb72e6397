# SPDX-License-Identifier: Apache-2.0
"""Runs that lose their launcher, that another one uses the folder of, and in how many processes they are."""

import socket
import subprocess
import time
from collections.abc import Callable

import forked_runs
import pytest
import torch
from killed_runs import finish, kill, start, write_data
from modeling_cover import CoverTrainingArguments
from modeling_cover.training.checkpoints import newest_checkpoint
from modeling_cover.training.launching import TWO_ON_CPUS, is_launched, processes_line


LIMIT = 1800  # seconds, for what must come true on a machine that is busy
ACCELERATE_ON_CPU = ("accelerate.commands.launch", "--cpu", "--num_processes")


def comes_true(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + LIMIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has asked for its exit code has."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return state != "" and not state.startswith("Z")


@pytest.mark.slow
def test_a_run_keeps_its_folder_from_another_and_ends_with_its_launcher(tmp_path):
    write_data(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    log, trained = run.with_suffix(".log"), run / "trained-1.jsonl"
    options = {"save_steps": 100_000, "per_device_train_batch_size": 2}
    launcher = start(tmp_path, run, 2, max_steps=100_000, **options)
    try:
        assert comes_true(lambda: trained.exists() and len(trained.read_text().splitlines()) > 2)
        workers = [int((run / f"{process}.pid").read_text()) for process in range(2)]
        second = start(tmp_path, run, 2, launched_by=ACCELERATE_ON_CPU, max_steps=100_000, **options)
        assert second.wait(LIMIT) == 1
        assert f"another run uses this folder, process {workers[0]} on {socket.gethostname()}" in log.read_text()
        assert "Training in 1 process, on cpu: on CPUs `accelerate launch` starts one" in log.read_text()
        assert all(map(is_running, workers))
        launcher.kill()
        launcher.wait()
        assert comes_true(lambda: not any(map(is_running, workers)))
    finally:
        kill(launcher)
    steps = len(trained.read_text().splitlines())
    assert newest_checkpoint(run).name == f"checkpoint-{steps}"  # as if the launcher had passed on a SIGTERM
    finish(forked_runs.start(tmp_path, run, max_steps=steps + 1), run)
    assert len((run / "trained-0.jsonl").read_text().splitlines()) == steps + 1


class TestInHowManyProcesses:
    def test_the_log_says_and_where_accelerate_has_started_one_of_several_how_to_have_two(self):
        device = torch.device("cpu")
        assert processes_line(1, device, {}) == "Training in 1 process, on cpu"
        assert processes_line(2, torch.device("cuda"), {"WORLD_SIZE": "2"}) == "Training in 2 processes, on cuda"
        launched = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
        assert processes_line(1, device, launched).endswith(f"for two, `{TWO_ON_CPUS}`")

    def test_two_that_would_each_train_alone_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun says, and accelerate hears on a GPU, or if told of CPUs
        with pytest.raises(ValueError, match="2 processes were started, and each takes itself for the only one"):
            CoverTrainingArguments(str(tmp_path), report_to="none")

    def test_only_what_a_launcher_has_started_ends_with_its_parent(self):
        assert is_launched({"TORCHELASTIC_RUN_ID": "none"}) and is_launched({"ACCELERATE_MIXED_PRECISION": "no"})
        assert not is_launched({"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "1"})
