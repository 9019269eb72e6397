# SPDX-License-Identifier: Apache-2.0
"""The cache of remote files: bounded, and whole for everyone who reads it, whatever other processes do to it."""

import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from modeling_cover.data.sources.file_cache import CacheError, FileCache


def writes(content: bytes) -> Callable[[BinaryIO], None]:
    return lambda file: file.write(content)


def never(file: BinaryIO) -> None:
    raise AssertionError("it is there already")


def add(cache: FileCache, *keys: str, size: int = 100) -> None:
    for key in keys:
        with cache.copy(key, "", writes(key[0].encode() * size)):
            pass


def copies(cache: FileCache) -> list[str]:
    """The keys of what is in a cache, by what `add` has written."""
    files = [path for path in cache.folder.rglob("*") if path.is_file() and path.name != "total"]
    return sorted(path.read_text()[0] for path in files)


class TestCopies:
    def test_a_file_is_fetched_once_and_has_its_suffix(self, tmp_path):
        cache = FileCache(tmp_path, 1000)
        with cache.copy("a", ".mp4", writes(b"A")) as path:
            assert (Path(path).read_bytes(), Path(path).suffix) == (b"A", ".mp4")
        with FileCache(tmp_path, 1000).copy("a", ".mp4", never) as again:
            assert again == path

    def test_half_a_file_is_none(self, tmp_path):
        cache = FileCache(tmp_path, 1000)

        def fail(file: BinaryIO) -> None:
            file.write(b"half")
            raise ValueError("the rest stays away")

        with pytest.raises(ValueError, match="the rest stays away"), cache.copy("a", "", fail):
            pass
        assert copies(cache) == []
        add(cache, "a")
        assert copies(cache) == ["a"]

    def test_a_folder_that_cannot_be_used_is_no_fault_of_the_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CacheError, match="/file/cache, cannot be used: "):
            add(FileCache(tmp_path / "file/cache", 1000), "a")

    def test_a_total_that_cannot_be_counted_leaves_no_lock_behind(self, tmp_path):
        cache = FileCache(tmp_path, 1000)
        (tmp_path / "total").mkdir()
        with pytest.raises(CacheError, match="cannot be used: ") as caught:
            add(cache, "a")
        assert caught.value.__traceback__ is not None  # as long as it lives, so would the file
        (tmp_path / "total").rmdir()
        for path in tmp_path.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TestBound:
    def test_what_was_not_used_for_the_longest_time_goes_first(self, tmp_path):
        cache = FileCache(tmp_path, 300)
        add(cache, "a", "b", "c")
        with cache.copy("a", "", never):
            pass
        add(cache, "d")
        assert copies(cache) == ["a", "d"]  # 90% of the bound are kept, which is two of them

    def test_it_holds_however_much_is_fetched(self, tmp_path):
        cache = FileCache(tmp_path, 1000)
        for number in range(100):
            add(cache, f"{number}", size=70 + number % 50)
            files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "total"]
            assert sum(path.stat().st_size for path in files) <= 1000

    def test_what_is_read_stays(self, tmp_path):
        cache = FileCache(tmp_path, 300)
        with cache.copy("a", "", writes(b"a" * 100)) as path:
            add(cache, *"bcdefgh")
            assert Path(path).read_bytes() == b"a" * 100
        add(cache, *"ijk")
        assert "a" not in copies(cache)

    def test_what_was_there_before_counts(self, tmp_path):
        add(FileCache(tmp_path, 10_000), *"abcdefgh")
        (tmp_path / "total").unlink()
        cache = FileCache(tmp_path, 300)
        add(cache, "i")
        assert len(copies(cache)) == 2

    def test_reading_a_copy_does_not_change_its_time(self, tmp_path):
        """The time of the last change is what tells whether a file is the one that was looked at."""
        cache = FileCache(tmp_path, 300)
        with cache.copy("a", "", writes(b"a")) as path:
            changed = os.stat(path).st_mtime_ns
        with cache.copy("a", "", never) as path:
            assert os.stat(path).st_mtime_ns == changed


def _read_all(folder: Path, log: Path, start: int) -> None:
    cache = FileCache(folder, 2_500)

    def fetch(key: str, file: BinaryIO) -> None:
        with open(log, "a") as fetched:
            fetched.write(f"{key}\n")
        file.write(key.encode() * 50)
        file.flush()
        time.sleep(0.001)
        file.write(key.encode() * 50)

    for step in range(60):
        key = chr(ord("a") + (start + step) % 26)
        with cache.copy(key, "", lambda file, key=key: fetch(key, file)) as path:
            assert Path(path).read_bytes() == key.encode() * 100


def _hang(folder: Path) -> None:
    def fetch(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        (folder / "begun").touch()
        time.sleep(600)

    with FileCache(folder, 1000).copy("a", "", fetch):
        pass


class TestProcesses:
    def test_each_reads_whole_files_while_others_fetch_and_remove_them(self, tmp_path):
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(target=_read_all, args=(tmp_path / "cache", tmp_path / "log", start)) for start in range(4)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
        assert len(copies(FileCache(tmp_path / "cache", 1))) <= 25
        # 26 files fit into 2600 bytes, and 2500 are allowed: without sharing there would have been 240.
        assert len((tmp_path / "log").read_text().split()) < 240

    def test_several_that_want_one_file_fetch_it_once(self, tmp_path):
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_read_one, args=(tmp_path,)) for _ in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 8
        assert (tmp_path / "log").read_text() == "once\n"

    def test_what_a_killed_one_has_left_is_no_copy(self, tmp_path):
        process = multiprocessing.get_context("fork").Process(target=_hang, args=(tmp_path,))
        process.start()
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        (tmp_path / "begun").unlink()
        cache = FileCache(tmp_path, 1000)
        assert [path.suffix for path in tmp_path.rglob("??/*")] == [".part"]
        add(cache, "a")
        with cache.copy("a", "", never) as path:
            assert Path(path).read_bytes() == b"a" * 100
        assert list(tmp_path.rglob("*.part")) == []

    def test_what_a_killed_one_has_left_goes_when_room_is_made(self, tmp_path):
        process = multiprocessing.get_context("fork").Process(target=_hang, args=(tmp_path,))
        process.start()
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        add(FileCache(tmp_path, 1000), "b", size=2000)
        assert len(list(tmp_path.rglob("*.part"))) == 1  # it is being written to
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        (tmp_path / "begun").unlink()
        add(FileCache(tmp_path, 1000), "c", size=2000)
        assert list(tmp_path.rglob("*.part")) == []


def _read_one(folder: Path) -> None:
    def fetch(file: BinaryIO) -> None:
        with open(folder / "log", "a") as log:
            log.write("once\n")
        file.write(b"A" * 1000)

    with FileCache(folder / "cache", 10_000).copy("a", "", fetch) as path:
        assert Path(path).read_bytes() == b"A" * 1000
