# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Names the process that all others wait for, where one has stalled, and ends the run.

Each process writes down what it is doing where the others can read it. One that has not come any further for too long looks
at what all are doing: the one that is furthest behind, or does not say anything any more, is the one to look at.
"""

import contextlib
import json
import os
import threading
import time
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed import DistError, TCPStore


STALLED_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h

# What a process is doing, in the order of a step. The others wait for it in the phases that follow.
PHASES = ("waiting for data", "forward pass", "backward pass", "optimizer step", "evaluation", "writing a checkpoint")

# Of the time after which the processes' own communication would fail, without saying whose fault it is.
_SHARE_OF_TIMEOUT = 0.9


class Watchdog:
    """Watches over the processes of a run, from a thread of each.

    Args:
        accelerator: of the run, with several processes. All of them must make a watchdog.
        timeout: seconds after which communication between processes fails.
    """

    def __init__(self, accelerator: Accelerator, timeout: float):
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.limit = timeout * _SHARE_OF_TIMEOUT
        self._pause = min(5.0, self.limit / 10)
        self._store = _open_store(accelerator, self._pause)
        self._doing = (0, PHASES[0], time.monotonic())
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def note(self, step: int, phase: str) -> None:
        """Say what this process begins to do, one of `PHASES`. Costs next to nothing."""
        self._doing = (step, phase, time.monotonic())

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._pause):
            self._beat()
            if time.monotonic() - self._doing[2] > self.limit:
                message = stall_message(self._states(), self.process, self.limit)
                os.write(2, f"{message}\n".encode())
                self._beat_on()  # for the others, which look just now
                os._exit(STALLED_EXIT_CODE)  # the main thread may be in a call that never returns

    def _beat(self) -> None:
        step, phase, _ = self._doing
        self._beats += 1
        # Where the main process is gone, there is nobody to write to; the others will find that out.
        with contextlib.suppress(DistError):
            self._store.set(str(self.process), json.dumps([step, phase, self._beats]))

    def _beat_on(self) -> None:
        for _ in range(3):
            time.sleep(self._pause)
            self._beat()

    def _states(self) -> dict[int, tuple[int, str] | None]:
        """The step and phase of each process; None for one that does not say any more."""
        before = self._read()
        self._beat_on()
        return {
            process: None if state is None or state == before[process] else (state[0], state[1])
            for process, state in self._read().items()
        }

    def _read(self) -> dict[int, list | None]:
        states = {}
        for process in range(self.num_processes):
            try:
                found = self._store.check([str(process)])
                states[process] = json.loads(self._store.get(str(process))) if found else None
            except DistError:
                states[process] = None
        return states


def stall_message(states: dict[int, tuple[int, str] | None], process: int, limit: float) -> str:
    """Who is to blame, of processes whose step and phase are known, or None."""
    silent = [number for number, state in states.items() if state is None]
    known = {number: (state[0], PHASES.index(state[1])) for number, state in states.items() if state is not None}
    own = f"process {process} has waited for {limit:.0f} s"
    if silent:
        return f"{own}: process {_listed(silent)} does not answer any more"
    last = min(known.values())
    behind = [number for number, place in known.items() if place == last]
    where = f"in step {last[0]}, {PHASES[last[1]]}"
    if len(behind) == len(states):
        return f"{own}: all processes are {where}"
    return f"{own}: process {_listed(behind)} is behind the others, {where}"


def _listed(processes: list[int]) -> str:
    return ", ".join(map(str, processes))


def _open_store(accelerator: Accelerator, timeout: float) -> TCPStore:
    """A place of its own for the processes' words: the main process keeps it."""
    host, wait = os.environ["MASTER_ADDR"], timedelta(seconds=max(timeout, 1.0))
    if accelerator.is_main_process:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
        broadcast_object_list([store.port])
        return store
    (port,) = broadcast_object_list([0])
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=wait)
