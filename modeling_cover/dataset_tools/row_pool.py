# SPDX-License-Identifier: Apache-2.0
"""Processes that work through the rows of a dataset, and outlive a file that takes a decoder down or hangs it."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


TIME_LIMIT = 300.0  # seconds

# Tasks in the works for each worker: while one long video holds up the results, the others have these to go on with.
_TASKS_AHEAD = 8

# Of a worker.
_function: Callable[[Any], Any] | None = None
_time_limit = 0.0


def usable_cores() -> int:
    """How many cores this process may use: a job on a shared machine has fewer than there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class RowPool:
    """Applies a function to tasks, in processes of their own.

    Args:
        function: of one task. Errors that it raises leave `map`.
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
        self._function = function
        self._on_crash = on_crash
        self._num_workers = num_workers
        self._time_limit = time_limit
        self._executor = self._new_executor(num_workers)

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """The results in the order of the tasks, which are taken as workers are about to need them."""
        pending = deque()
        for task in tasks:
            pending.append((task, self._submit(task)))
            if len(pending) > _TASKS_AHEAD * self._num_workers:
                yield self._first_result(pending)
        while pending:
            yield self._first_result(pending)

    def close(self) -> None:
        """End the processes; tasks that have not begun are dropped."""
        self._executor.shutdown(cancel_futures=True)

    def _new_executor(self, num_workers: int) -> ProcessPoolExecutor:
        arguments = (self._function, self._time_limit)
        return ProcessPoolExecutor(num_workers, initializer=_begin_worker, initargs=arguments)

    def _submit(self, task: Any) -> Future:
        try:
            return self._executor.submit(_apply, task)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
            return future

    def _first_result(self, pending: deque[tuple[Any, Future]]) -> Any:
        if _is_lost(pending[0][1]):
            self._recover(pending)
        return pending.popleft()[1].result()

    def _recover(self, pending: deque[tuple[Any, Future]]) -> None:
        """A worker has died, and the results of all tasks are lost that were in the works: which of them was it?

        Tasks begin in their order, so it is one of the first, as many as there are workers. These are tried one by one.
        """
        self._executor.shutdown()
        lost = [index for index, (_, future) in enumerate(pending) if _is_lost(future)]
        single = self._new_executor(1)
        for index in lost[: self._num_workers]:
            task = pending[index][0]
            pending[index] = (task, single.submit(_apply, task))
            if _is_lost(pending[index][1]):
                pending[index] = (task, Future())
                pending[index][1].set_result(self._on_crash(task))
                single.shutdown()
                single = self._new_executor(1)
        single.shutdown()
        self._executor = self._new_executor(self._num_workers)
        for index in lost[self._num_workers :]:
            task = pending[index][0]
            pending[index] = (task, self._submit(task))


def _is_lost(future: Future) -> bool:
    """Whether a result, once it is there, is that the process died."""
    return isinstance(future.exception(), BrokenProcessPool)


def _begin_worker(function: Callable[[Any], Any], time_limit: float) -> None:
    global _function, _time_limit
    _function, _time_limit = function, time_limit
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, also within a decoder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker whose parent is killed would wait for its next task forever.
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _apply(task: Any) -> Any:
    signal.setitimer(signal.ITIMER_REAL, _time_limit)
    try:
        return _function(task)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
