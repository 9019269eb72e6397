# SPDX-License-Identifier: Apache-2.0
"""Processes that work through the rows of a dataset, and outlive a file that takes a decoder down or hangs it."""

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from pebble import ProcessExpired, ProcessPool


TIME_LIMIT = 300.0  # seconds

# Tasks in the works for each worker: while one long video holds up the results, the others have these to go on with.
_TASKS_AHEAD = 8

_function: Callable[[Any], Any] | None = None  # of a worker


def usable_cores() -> int:
    """How many cores this process may use: a job on a shared machine has fewer than there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class RowPool:
    """Applies a function to tasks, in processes of their own.

    Args:
        function: of one task. Errors that it raises leave `map`, but a `TimeoutError` counts as taking too long.
        on_crash: what to make of a task that kills the process that works on it, or takes longer than it may.
        num_workers: processes.
        time_limit: seconds that a task may take, on the clock. A decoder that hangs would otherwise do so for ever.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        on_crash: Callable[[Any], Any],
        num_workers: int,
        time_limit: float = TIME_LIMIT,
    ):
        self._on_crash = on_crash
        self._tasks_ahead = _TASKS_AHEAD * num_workers
        self._time_limit = time_limit
        self._pool = ProcessPool(num_workers, initializer=_begin_worker, initargs=[function])

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """The results in the order of the tasks, which are taken as workers are about to need them."""
        pending = deque()
        for task in tasks:
            pending.append((task, self._pool.schedule(_apply, [task], timeout=self._time_limit)))
            if len(pending) > self._tasks_ahead:
                yield self._result(*pending.popleft())
        while pending:
            yield self._result(*pending.popleft())

    def close(self) -> None:
        """End the processes; tasks that have not ended are dropped."""
        self._pool.stop()
        self._pool.join()

    def _result(self, task: Any, future: Future) -> Any:
        try:
            return future.result()
        except (ProcessExpired, TimeoutError):
            return self._on_crash(task)


def _begin_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker whose parent is killed would wait for its next task forever.
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _apply(task: Any) -> Any:
    return _function(task)
