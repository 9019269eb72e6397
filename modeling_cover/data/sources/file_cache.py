# SPDX-License-Identifier: Apache-2.0
"""Copies of remote files on the local disk, of bounded size, for any number of processes.

    FOLDER/ab/abcdef....mp4         a copy; whoever reads it holds a shared lock on it
    FOLDER/ab/abcdef....mp4.part    a copy that is not whole; whoever writes it holds a lock on it
    FOLDER/total                    the bytes of all copies, for whoever holds a lock on it

Locks are the kernel's, on open files: those of a process that is killed are gone. fsspec's caches of files have
neither a bound nor locks.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


_KEPT_SHARE = 0.9  # of the bound, when room is made: not again for each file


class CacheError(RuntimeError):
    """The cache cannot be used: a full disk, say. No fault of the file that was to be fetched."""


class FileCache:
    """Keeps copies of files, and lets those go that were not used for the longest time. What is being fetched or read
    comes on top of `max_bytes`."""

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self.max_bytes = max_bytes

    @contextmanager
    def copy(self, key: str, suffix: str, fetch: Callable[[BinaryIO], None]) -> Iterator[str]:
        """The path of a copy, which stays there until the end of the context.

        If there is none for `key`, `fetch` writes the content to an empty file, in one process at a time.

        Raises:
            CacheError: if the folder cannot be used.
        """
        name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
        path = self.folder / name[:2] / f"{name}{suffix}"
        file = None
        while file is None:  # another process may have just made it, or made room
            with self._using():
                file = _locked(path, fcntl.LOCK_SH)
            file = file or self._added(path, fetch)
        with file:
            with self._using():
                # The time of the last use. That of the last change stays.
                os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))
            yield str(path)

    def _added(self, path: Path, fetch: Callable[[BinaryIO], None]) -> BinaryIO | None:
        part = path.with_name(f"{path.name}.part")
        with self._using():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = _locked(part, fcntl.LOCK_EX, "a+b")
        if file is None:
            return None
        try:
            if path.exists():
                file.close()
                part.unlink(missing_ok=True)
                return None
            file.truncate(0)
            fetch(file)
            with self._using():
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)
                self._count(os.fstat(file.fileno()).st_size)
                fcntl.flock(file, fcntl.LOCK_SH)
        except BaseException:
            part.unlink(missing_ok=True)
            file.close()
            raise
        if _is_at(path, file):
            return file
        file.close()
        return None

    @contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheError(f"the cache of remote files, {self.folder}, cannot be used: {error}") from error

    def _count(self, size: int) -> None:
        """Add a copy of `size` bytes to the total, and make room if it is too much."""
        with open(self.folder / "total", "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            stored = file.read()
            total = int(stored) + size if stored.isdigit() else self.max_bytes + 1
            if total > self.max_bytes:
                total = self._make_room()
            file.truncate(0)
            file.write(b"%d" % total)

    def _make_room(self) -> int:
        """Remove copies that nobody reads until there is room, and return the bytes that are left."""
        copies, total = [], 0
        for folder in self.folder.iterdir():
            for entry in os.scandir(folder) if folder.is_dir() else ():
                if entry.name.endswith(".part"):
                    _remove(entry.path)  # of a process that was killed
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                copies.append((status.st_atime_ns, entry.path, status.st_size))
                total += status.st_size
        if total <= self.max_bytes:
            return total
        for _, path, size in sorted(copies):
            if total <= _KEPT_SHARE * self.max_bytes:
                break
            if _remove(path):
                total -= size
        return total


def _locked(path: str | Path, lock: int, mode: str = "rb") -> BinaryIO | None:
    """The file, opened and locked; None if there is none, or it is another's by now."""
    try:
        file = open(path, mode)  # noqa: SIM115 (the caller closes it)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, lock)
    except BlockingIOError:
        file.close()
        return None
    if _is_at(path, file):
        return file
    file.close()
    return None


def _is_at(path: str | Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _remove(path: str) -> bool:
    """Remove a file unless somebody holds a lock on it."""
    file = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if file is None:
        return False
    with file:
        os.unlink(path)
    return True
