# SPDX-License-Identifier: Apache-2.0
"""An output folder is one run's, as long as its process lives. Other processes here are forks, which hold nothing of
it."""

import errno
import fcntl
import gc
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from modeling_cover.training import folder_lock
from modeling_cover.training.checkpoints import CheckpointError
from modeling_cover.training.folder_lock import LOCK_NAME, lock_folder


@contextmanager
def another_process(work: Callable[[], object]) -> Iterator[int]:
    """A fork that has done some work and then sleeps, until it is killed."""
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        try:
            kept = work()  # noqa: F841, which a lock must be
            os.write(writing, b"done")
            time.sleep(300)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 4) == b"done"
        yield process
    finally:
        os.close(reading)
        kill(process)


def kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    except (ProcessLookupError, ChildProcessError):  # killed before
        pass


def is_free(folder: Path) -> bool:
    """Whether another process can take it."""
    if (process := os.fork()) == 0:
        code = 1
        try:
            lock_folder(folder)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_a_second_run_is_told_the_host_and_the_process_of_the_first_until_that_is_killed(tmp_path):
    with another_process(lambda: lock_folder(tmp_path)) as holder:
        expected = f"another run uses this folder, process {holder} on {socket.gethostname()}"
        with pytest.raises(CheckpointError, match=expected):
            lock_folder(tmp_path)
        kill(holder)
        assert lock_folder(tmp_path) is not None


def test_a_process_takes_its_own_again_and_gives_it_up_with_its_last_trainer(tmp_path):
    locks = [lock_folder(tmp_path), lock_folder(tmp_path)]
    assert locks[0] is locks[1]
    assert not is_free(tmp_path)
    locks.clear()
    gc.collect()
    assert is_free(tmp_path)


def test_a_worker_that_outlives_the_run_does_not_keep_it(tmp_path):
    workers = tmp_path / "workers"

    def work():
        lock = lock_folder(tmp_path)
        if (worker := os.fork()) == 0:
            time.sleep(300)
            os._exit(0)
        workers.write_text(str(worker))
        return lock

    with another_process(work) as holder:
        assert not is_free(tmp_path)
        kill(holder)
        try:
            assert is_free(tmp_path)
        finally:
            os.kill(int(workers.read_text()), signal.SIGKILL)


def test_the_folder_is_made_and_one_that_cannot_be_is_named(tmp_path):
    assert lock_folder(tmp_path / "new") is not None
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/new cannot be locked"):
        lock_folder(tmp_path / "file" / "new")


@pytest.fixture
def fast_beats(monkeypatch) -> None:
    monkeypatch.setattr(folder_lock, "_SECONDS_PER_BEAT", 0.2)


class TestAMachineWhoseLocksAreItsOwn:
    """Of a network drive: the lock is had, and the file says that another machine has it."""

    @pytest.fixture
    def locked_elsewhere(self, tmp_path, fast_beats) -> Path:
        (tmp_path / LOCK_NAME).write_text(json.dumps({"host": "elsewhere", "process": 7}))
        return tmp_path

    def test_another_machine_that_goes_on_writing_is_believed(self, locked_elsewhere):
        ended = threading.Event()

        def beat():
            while not ended.wait(0.05):
                os.utime(locked_elsewhere / LOCK_NAME)

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            with pytest.raises(CheckpointError, match="process 7 on elsewhere"):
                lock_folder(locked_elsewhere)
        finally:
            ended.set()
            thread.join()

    def test_one_that_has_died_is_not(self, locked_elsewhere):
        lock = lock_folder(locked_elsewhere)
        record = json.loads((locked_elsewhere / LOCK_NAME).read_text())
        assert record == {"host": socket.gethostname(), "process": os.getpid()}
        del lock


def test_where_there_are_no_locks_what_is_written_tells_and_that_is_said(tmp_path, fast_beats, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)  # as some network drives answer
    with another_process(lambda: lock_folder(tmp_path)) as holder:
        with pytest.raises(CheckpointError, match=f"process {holder} on"):
            lock_folder(tmp_path)
        kill(holder)
        assert lock_folder(tmp_path) is not None
