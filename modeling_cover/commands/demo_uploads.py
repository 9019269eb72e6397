# SPDX-License-Identifier: Apache-2.0
"""Storage for the files that visitors of `cover demo` send: temporary files without names.

No program can be told to open one, nobody else is served one, and nothing of them is left, however the server ends.
What a visitor has at once is bounded, and so is what all visitors have. A new file takes the place of that visitor's
oldest, or of the oldest of the visitor who has most.
"""

import io
import mimetypes
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO


_PIECE = 2**16
_ENVELOPE = 2**13  # what an upload has around its file


class TooMuchError(Exception):
    """There is no room for a file; the message is for the visitor."""


class GoneError(ValueError):
    """There is no such upload, or not any more; the message is for the visitor."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """How much there is at once, of what has arrived and what arrives."""

    file_bytes: int = 200 * 2**20
    visitor_bytes: int = 600 * 2**20
    all_bytes: int = 4000 * 2**20
    visitor_files: int = 24
    all_files: int = 200
    kept_seconds: float = 600  # after it was last used


@dataclass(eq=False)
class _Upload:
    visitor: str
    upload_id: str
    name: str = "file"
    size: int = 0
    file: BinaryIO | None = None  # None while it arrives
    holders: int = 0
    used: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)  # the file has one position


class Uploads:
    """The files that are there; used by the server's loop and by the threads that answer."""

    def __init__(self, room: Room | None = None):
        self.room = room or Room()
        self._lock = threading.RLock()
        self._arriving: set[_Upload] = set()
        self._kept: dict[str, _Upload] = {}

    def __len__(self) -> int:
        return len(self._kept) + len(self._arriving)

    @property
    def num_bytes(self) -> int:
        return sum(upload.size for upload in self._all())

    # ---- Coming and going ----

    @contextmanager
    def arriving(self, visitor: str, upload_id: str) -> Iterator["_Arrival"]:
        """A file that is being sent, which has room as it grows."""
        upload = _Upload(visitor, upload_id[:64])
        with self._lock:
            self._arriving.add(upload)
        try:
            yield _Arrival(self, upload)
        finally:
            with self._lock:
                self._arriving.discard(upload)

    def on_its_way(self, upload_id: str) -> _Upload | None:
        with self._lock:
            return next((upload for upload in self._arriving if upload.upload_id == upload_id), None)

    def touch(self, path: str) -> None:
        """It is still wanted: a question about it waits."""
        if (upload := self._kept.get(path)) is not None:
            upload.used = time.monotonic()

    def drop_old(self) -> None:
        late = time.monotonic() - self.room.kept_seconds
        with self._lock:
            for path, upload in list(self._kept.items()):
                if not upload.holders and upload.used < late:
                    self._drop(path)

    def close(self) -> None:
        with self._lock:
            for path in list(self._kept):
                self._drop(path)

    def _all(self) -> list[_Upload]:
        with self._lock:
            return [*self._arriving, *self._kept.values()]

    def _drop(self, path: str) -> None:
        upload = self._kept.pop(path)
        with upload.lock:
            upload.file.close()

    def _make_room(self, visitor: str) -> None:
        """Drop what must go until everything fits.

        Raises:
            TooMuchError: all of it arrives, or is being looked at.
        """
        room = self.room
        while self._is_over(
            [upload for upload in self._all() if upload.visitor == visitor], room.visitor_bytes, room.visitor_files
        ):
            self._drop_oldest(visitor, "You have sent more than there is room for: wait for your answers, please.")
        while self._is_over(self._all(), room.all_bytes, room.all_files):
            shares = Counter()
            for upload in self._all():
                shares[upload.visitor] += upload.size + room.all_bytes // room.all_files
            droppable = {upload.visitor for upload in self._kept.values() if not upload.holders}
            greediest = max(droppable, key=shares.__getitem__, default=visitor)
            self._drop_oldest(greediest, "There is no room for more files now: come again in some minutes, please.")

    @staticmethod
    def _is_over(uploads: list[_Upload], most_bytes: int, most_files: int) -> bool:
        return len(uploads) > most_files or sum(upload.size for upload in uploads) > most_bytes

    def _drop_oldest(self, visitor: str, otherwise: str) -> None:
        own = [path for path, upload in self._kept.items() if upload.visitor == visitor and not upload.holders]
        if not own:
            raise TooMuchError(otherwise)
        self._drop(min(own, key=lambda path: self._kept[path].used))

    # ---- Reading ----

    @contextmanager
    def held(self, path: str) -> Iterator[BinaryIO]:
        """The file that was sent, under its name, and there until it has been read.

        Raises:
            GoneError: it is not there.
        """
        with self._lock:
            upload = self._kept.get(path)
            if upload is None:
                raise GoneError("This file is no longer here: send it again, please.")
            upload.holders += 1
        try:
            yield io.BufferedReader(_View(upload), _PIECE)
        finally:
            with self._lock:
                upload.holders -= 1
                upload.used = time.monotonic()

    def size(self, path: str) -> int | None:
        """Bytes; None if there is no such file."""
        upload = self._kept.get(path)
        return None if upload is None else upload.size

    def media_type(self, path: str) -> str | None:
        """That of a video by its name, which a browser may play; None of all else, which it shall not open."""
        guessed, _ = mimetypes.guess_type(path)
        return guessed if guessed is not None and guessed.startswith("video/") else None

    def pieces(self, path: str, start: int, end: int) -> Iterator[bytes]:
        with self.held(path) as file:
            file.seek(start)
            while start < end and (piece := file.read(min(_PIECE, end - start))):
                start += len(piece)
                yield piece


class _Arrival:
    def __init__(self, uploads: Uploads, upload: _Upload):
        self._uploads, self._upload = uploads, upload

    def grow(self, num_bytes: int) -> None:
        """Raise a `TooMuchError` if there is no room for so many bytes more."""
        self._upload.size += num_bytes
        most = self._uploads.room.file_bytes
        if self._upload.size > most + _ENVELOPE:
            raise TooMuchError(f"A file has at most {most // 2**20} MB: make it smaller, please.")
        with self._uploads._lock:
            self._uploads._make_room(self._upload.visitor)

    def keep(self, file: BinaryIO, name: str) -> str:
        """The path to know it by, of a name that has no folder and can be shown."""
        upload, uploads = self._upload, self._uploads
        name = PureWindowsPath(PurePosixPath(name).name).name
        upload.name = (
            "".join(letter if letter.isprintable() and letter not in "/\\%#?" else "_" for letter in name)[-120:]
            or "file"
        )
        upload.size, upload.file, upload.used = file.seek(0, io.SEEK_END), file, time.monotonic()
        path = f"uploads/{secrets.token_urlsafe(16)}/{upload.name}"
        with uploads._lock:
            uploads._arriving.discard(upload)
            uploads._kept[path] = upload
        return path


class _View(io.RawIOBase):
    """A reader of an upload with a position of its own."""

    def __init__(self, upload: _Upload):
        super().__init__()
        self._upload, self._position, self.name = upload, 0, upload.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._upload.size}[whence]
        if start + offset < 0:
            raise ValueError(f"a place before the file's start: {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        with self._upload.lock:
            self._upload.file.seek(self._position)
            piece = self._upload.file.read(len(buffer))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
