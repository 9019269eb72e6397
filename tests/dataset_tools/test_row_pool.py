# SPDX-License-Identifier: Apache-2.0
"""Processes that work through rows: what kills one of them, or hangs, costs no other row."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from modeling_cover.dataset_tools.row_pool import RowPool


HANGS = 1000  # seconds


def test_a_task_that_kills_its_process_costs_no_other():
    pool = RowPool(_square_or_die, lambda task: f"{task} died", num_workers=2)
    assert list(pool.map(range(40))) == [f"{n} died" if n in (3, 4, 30) else n * n for n in range(40)]
    pool.close()


def test_a_task_that_hangs_is_ended_and_costs_no_other():
    pool = RowPool(_square_or_hang, lambda task: f"{task} hung", num_workers=2, time_limit=5)
    started = time.monotonic()
    assert list(pool.map(range(40))) == [f"{n} hung" if n == 5 else n * n for n in range(40)]
    assert time.monotonic() - started < HANGS / 2
    pool.close()


def test_after_a_crash_few_tasks_are_done_by_one_process_alone():
    pool = RowPool(_pid_or_die, str, num_workers=8)
    results = list(pool.map(range(200)))
    pool.close()
    assert results[3] == "3" and len(set(results)) > 3
    busiest = Counter(results).most_common(1)[0][1]
    assert busiest < 8 * 8  # which is how many there are in the works


def test_an_error_in_a_task_is_raised():
    pool = RowPool(_square_or_die, str, num_workers=1)
    with pytest.raises(TypeError):
        list(pool.map([1, "two"]))
    pool.close()


def test_a_process_that_is_killed_leaves_no_workers_behind(tmp_path):
    child = os.fork()
    if child == 0:
        list(RowPool(_leave_pid_and_hang, str, num_workers=2).map([tmp_path] * 2))
    workers = _soon(lambda: [int(path.name) for path in tmp_path.iterdir()], lambda pids: len(pids) == 2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert _soon(lambda: list(filter(_is_alive, workers)), lambda alive: not alive) == []


def _soon(look: Callable[[], list], is_there: Callable[[list], bool]) -> list:
    """What is seen once it is there, or after ten minutes."""
    deadline = time.monotonic() + 600
    while not is_there(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return seen


def _is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _leave_pid_and_hang(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(1000)


def _square_or_hang(number: int) -> int:
    if number == 5:
        time.sleep(HANGS)
    return number * number


def _pid_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return os.getpid()


def _square_or_die(number: int) -> int:
    if number in (3, 4, 30):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number
