# SPDX-License-Identifier: Apache-2.0
"""Runs whose processes are forked from one that has imported everything, so that they begin within a second.

What `killed_runs` does with a `subprocess.Popen`, it may do with a [`ForkedRun`].
"""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver, spawn
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import python_server


_CONTEXT = multiprocessing.get_context("forkserver")


def ensure_server() -> None:
    """Start the process that the others are forked from, which has one thread and finds the helpers.

    It is forked itself, from one that all processes of pytest share.
    """
    before, here, executable = dict(os.environ), str(Path(__file__).parent), spawn.get_executable()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
    }
    try:
        spawn.set_executable(python_server.python())
        _CONTEXT.set_forkserver_preload(["killed_runs", "modeling_cover.training.curves"])
        forkserver.ensure_running()
    finally:
        spawn.set_executable(executable)
        os.environ.clear()
        os.environ.update(before)


class ForkedRun:
    def __init__(self, processes: list[ForkServerProcess]):
        self.processes = processes
        self.pids = [process.pid for process in processes]

    @property
    def returncode(self) -> int | None:
        """The first that is not 0, once all have ended."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next((code for code in codes if code), 0)

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        for process in self.processes:
            process.join(None if end is None else max(0.0, end - time.monotonic()))
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked run", timeout)
        return self.returncode


def start(folder: Path, output_dir: Path, processes: int = 1, **options: Any) -> ForkedRun:
    """As `killed_runs.start`."""
    # Told by accelerate's variable to use CPUs, it would train with DDP.
    on_cpu = {"DS_ACCELERATOR": "cpu"} if options.get("deepspeed") else {"ACCELERATE_USE_CPU": "true"}
    return start_processes(_train, processes, output_dir.with_suffix(".log"), on_cpu, folder, output_dir, options)


def start_processes(
    function: Callable, processes: int, log: Path, environment: dict[str, str], *arguments: Any
) -> ForkedRun:
    """Call a function in each of some processes that train together. What they print is added to the log."""
    ensure_server()
    if processes > 1:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        environment = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **sizes}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {} for rank in range(processes)]
    started = [
        _CONTEXT.Process(target=_call, args=(function, log, {**environment, **rank}, arguments)) for rank in ranks
    ]
    for process in started:
        process.start()
    return ForkedRun(started)


def _call(function: Callable, log: Path, environment: dict[str, Any], arguments: tuple) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 2)
    os.dup2(file, 1)
    function(*arguments)


def call(main: Callable[[list[str]], int], arguments: list[str]) -> None:
    """Call a script's `main`, and exit with what it returns."""
    sys.exit(main(arguments))


def _train(folder: Path, output_dir: Path, options: dict[str, Any]) -> None:
    import killed_runs
    import torch.utils.data._utils as loading

    loading.MP_STATUS_CHECK_INTERVAL = 1.0  # workers of a forked process do not end by themselves
    killed_runs.train(folder, output_dir, **options)
