# SPDX-License-Identifier: Apache-2.0
"""Runs whose processes are forked from one that has imported everything, so that they begin within a second.

What `killed_runs` does with a `subprocess.Popen`, it may do with a [`ForkedRun`].
"""

import multiprocessing
import os
import socket
import subprocess
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any


_CONTEXT = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """To be called before the first run: it is what the others are forked from."""
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    _CONTEXT.set_forkserver_preload(["killed_runs"])


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

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        for process in self.processes:
            process.join(None if end is None else max(0.0, end - time.monotonic()))
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked run", timeout)
        return self.returncode


def start(folder: Path, output_dir: Path, processes: int = 1, **options: Any) -> ForkedRun:
    """As `killed_runs.start`."""
    environment = {}
    if processes > 1:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **sizes}
    arguments = [
        (folder, output_dir, {**environment, **({"RANK": rank, "LOCAL_RANK": rank} if environment else {})}, options)
        for rank in range(processes)
    ]
    started = [_CONTEXT.Process(target=_run, args=entry) for entry in arguments]
    for process in started:
        process.start()
    return ForkedRun(started)


def _run(folder: Path, output_dir: Path, environment: dict[str, Any], options: dict[str, Any]) -> None:
    import killed_runs

    os.environ |= {name: str(value) for name, value in environment.items()}
    log = os.open(output_dir.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    killed_runs.train(folder, output_dir, **options)
