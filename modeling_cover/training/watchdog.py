# SPDX-License-Identifier: Apache-2.0
"""Names the process that all others wait for, where one has stalled, and ends the run.

Each process writes down what it is doing where the others can read it, in a store that the main process keeps. One
that has not come any further for too long looks at what all are doing: the one that is furthest behind, or does not
say anything any more, is the one to look at. Where the main process itself stands still, so does the store: a client
waits for its answer without a deadline, so each talks to it from a thread that nothing waits for.
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

# What a process is doing. All go through the same ones in the same order.
PHASES = ("waiting for data", "forward pass", "backward pass", "optimizer step", "evaluation", "writing a checkpoint")

# In beats, of which there is one a second. A process that has not said anything for so long is silent; the main one,
# whose store is read twice for it, has some more.
_BEATS_OF_THE_SILENT = 10
_BEATS_TO_ANSWER = 14

# Step, phase, and the number of phases begun so far; None of a process that does not say any more.
State = tuple[int, str, int] | None


class Watchdog:
    """Watches over the processes of a run, from threads of each; all of them must make one.

    Communication between processes fails after `timeout` seconds, without saying whose fault it is. So the run ends
    before.
    """

    def __init__(self, accelerator: Accelerator, timeout: float):
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self._pause = min(1.0, timeout / 40)
        # With the answer and the parting, 0.95 of the timeout at most.
        self.limit = 0.9 * timeout - (3 + _BEATS_TO_ANSWER) * self._pause
        self._store = _open_store(accelerator)
        self._doing, self._since = (0, PHASES[0], 0), time.monotonic()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._keep_beating, self._watch)]
        for thread in self._threads:
            thread.start()

    def note(self, step: int, phase: str) -> None:
        """Say what this process begins to do, one of `PHASES`. Costs next to nothing."""
        self._doing, self._since = (step, phase, self._doing[2] + 1), time.monotonic()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * self._pause)  # not longer: the store may never answer

    def _keep_beating(self) -> None:
        beats = 0
        while not self._ended.wait(self._pause):
            beats += 1
            # Where the main process is gone, there is nobody to write to; the others will find that out.
            with contextlib.suppress(DistError):
                self._store.set(str(self.process), json.dumps([*self._doing, beats]))

    def _watch(self) -> None:
        while not self._ended.wait(self._pause):
            doing = self._doing
            if time.monotonic() - self._since <= self.limit:
                continue
            states = self._states()
            if self._doing is doing and not self._ended.is_set():  # it may have come further meanwhile
                os.write(2, f"{stall_message(states, self.process, self.limit)}\n".encode())
                time.sleep(4 * self._pause)  # the others look just now, and should not find this one silent
                os._exit(STALLED_EXIT_CODE)  # the main thread may be in a call that never returns

    def _states(self) -> dict[int, State]:
        """What each process is doing; of the main one alone that it is silent, if it does not answer."""
        answer = {0: None}

        def ask() -> None:
            with contextlib.suppress(DistError):
                before = self._read()
                time.sleep(_BEATS_OF_THE_SILENT * self._pause)
                now = self._read()
                answer.update(
                    {n: None if said is None or said == before[n] else tuple(said[:3]) for n, said in now.items()}
                )

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_BEATS_TO_ANSWER * self._pause)
        return dict(answer)

    def _read(self) -> dict[int, list | None]:
        """What each process has said last: its state, and the number of the beat."""
        keys = {process: str(process) for process in range(self.num_processes)}
        return {n: json.loads(self._store.get(key)) if self._store.check([key]) else None for n, key in keys.items()}


class Watch:
    """A [`Watchdog`] while it is entered, where there are several processes; it may be entered again inside."""

    def __init__(self, accelerator: Accelerator, timeout: float):
        self._accelerator = accelerator
        self._timeout = timeout
        self._watchdog: Watchdog | None = None
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1 and self._accelerator.num_processes > 1:
            self._watchdog = Watchdog(self._accelerator, self._timeout)

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._watchdog is not None:
            self._watchdog.end()
            self._watchdog = None

    def note(self, step: int, phase: str) -> None:
        """Say what this process begins to do, see [`Watchdog.note`]."""
        if self._watchdog is not None:
            self._watchdog.note(step, phase)


def stall_message(states: dict[int, State], process: int, limit: float) -> str:
    """Who is to blame, of processes whose states are known, or None."""
    silent = [number for number, state in states.items() if state is None]
    own = f"process {process} has waited for {limit:.0f} s"
    if silent:
        return f"{own}: process {', '.join(map(str, silent))} does not answer any more"
    step, phase, last = min(states.values(), key=lambda state: state[2])
    behind = [number for number, state in states.items() if state[2] == last]
    where = f"in step {step}, {phase}"
    if len(behind) == len(states):
        return f"{own}: all processes are {where}"
    return f"{own}: process {', '.join(map(str, behind))} is behind the others, {where}"


def _open_store(accelerator: Accelerator) -> TCPStore:
    """A place of its own for the processes' words: the main process keeps it."""
    host, wait = os.environ["MASTER_ADDR"], timedelta(seconds=30)  # to connect
    if accelerator.is_main_process:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
        broadcast_object_list([store.port])
        return store
    (port,) = broadcast_object_list([0])
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=wait)
