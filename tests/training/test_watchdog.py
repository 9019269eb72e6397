# SPDX-License-Identifier: Apache-2.0
"""Runs of two processes, of which one stalls: it is named, and the run ends."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import forked_runs
import psutil
import pytest
from forked_runs import ForkedRun
from killed_runs import ACCELERATE, kill, start, write_data
from modeling_cover.training.checkpoints import newest_checkpoint
from modeling_cover.training.watchdog import Watchdog, stall_message


# Seconds after which communication would fail, were it not for CPUs, where transformers leaves it at 30 minutes.
OPTIONS = {"per_device_train_batch_size": 2, "ddp_timeout": 30, "save_steps": 3}
LIMIT = 1800  # seconds, for what must come true on a machine that is busy


def started(folder: Path, name: str, launch: Callable, **options) -> tuple[subprocess.Popen | ForkedRun, Path]:
    output_dir = folder / name
    output_dir.mkdir()
    return launch(folder, output_dir, 2, **OPTIONS, **options), output_dir


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[dict[str, tuple[subprocess.Popen | ForkedRun, Path]]]:
    """Both at the same time, as they mostly wait."""
    folder = tmp_path_factory.mktemp("stalled")
    write_data(folder)
    stalled = {"step": 3, "process": 0}
    asleep = started(folder, "asleep", forked_runs.start, max_steps=3, evaluated=True, stalled=stalled)
    frozen = started(folder, "frozen", start, max_steps=100_000, launched_by=ACCELERATE)
    try:
        assert comes_true(lambda: (frozen[1] / "checkpoint-3").exists())
        os.kill(pid_of(frozen[1], 0), signal.SIGSTOP)
        yield {"asleep": asleep, "frozen": frozen}
    finally:
        for process, _ in (asleep, frozen):
            kill(process)


def pid_of(output_dir: Path, process: int) -> int:
    return int((output_dir / f"{process}.pid").read_text())


def comes_true(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + LIMIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frozen", "process 1 has waited for 14 s: process 0 does not answer any more"),
        # After training: where the main process decodes and scores, the other waits just as long.
        ("asleep", "process 1 has waited for 14 s: process 0 is behind the others, in step 3, evaluation"),
    ],
)
def test_a_main_process_that_stalls_is_named_by_the_other_which_ends(runs, name, message):
    _, output_dir = runs[name]
    log = output_dir.with_suffix(".log")
    assert comes_true(lambda: message in log.read_text()), log.read_text()[-2000:]
    assert comes_true(lambda: not psutil.pid_exists(pid_of(output_dir, 1)))
    assert newest_checkpoint(output_dir) is not None


@pytest.mark.slow
def test_the_launcher_ends_the_one_that_is_frozen(runs):
    process, output_dir = runs["frozen"]
    assert process.wait(LIMIT) == 1
    assert not psutil.pid_exists(pid_of(output_dir, 0))
    assert "exitcode  : 70" in output_dir.with_suffix(".log").read_text()


@pytest.fixture
def watchdog(monkeypatch) -> Iterator[Watchdog]:
    """The main process's, of two; the other never says a word."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    alone = SimpleNamespace(process_index=0, num_processes=2, is_main_process=True)
    watchdog = Watchdog(alone, timeout=2000)
    yield watchdog
    watchdog.end()


class TestAnotherProcess:
    def test_that_is_frozen_is_silent_to_the_main_one(self, watchdog, monkeypatch):
        monkeypatch.setattr(watchdog, "_pause", 0.05)
        watchdog.note(7, "backward pass")
        assert comes_true(lambda: watchdog._states() == {0: (7, "backward pass", 1), 1: None})


class TestWhoIsBlamed:
    def test_the_one_that_has_begun_the_fewest_phases(self):
        # While gradients are accumulated, a forward pass comes after a backward pass of the same step.
        states = {0: (3, "forward pass", 12), 1: (3, "backward pass", 10), 2: (3, "forward pass", 12)}
        expected = "process 0 has waited for 9 s: process 1 is behind the others, in step 3, backward pass"
        assert stall_message(states, 0, 9.0) == expected

    def test_nobody_where_all_are_in_the_same_phase(self):
        states = {0: (3, "optimizer step", 5), 1: (3, "optimizer step", 5)}
        assert stall_message(states, 1, 9.0).endswith("all processes are in step 3, optimizer step")

    def test_those_that_are_silent_before_all_others(self):
        states = {0: (3, "forward pass", 5), 1: None, 2: None}
        assert stall_message(states, 0, 9.0).endswith("process 1, 2 does not answer any more")
