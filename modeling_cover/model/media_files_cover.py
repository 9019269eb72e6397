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
"""Files on the disk whose names a stranger may have chosen: regular ones alone are opened."""

import os
import stat
from typing import BinaryIO


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Lest what took the place of a file in between, a pipe, is waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def check_is_regular(path: str | os.PathLike) -> None:
    """Raise an error unless there is a regular file, or a link to one. It is not opened: a pipe would be waited for,
    and a device may do what it does.

    Raises:
        ValueError: it is something else, or the path has a zero in it.
        OSError: there is none, or it cannot be looked at.
    """
    _check_mode(os.stat(path).st_mode)


def open_regular(path: str | os.PathLike, buffering: int = -1) -> BinaryIO:
    """A regular file, opened to be read.

    Raises:
        ValueError, OSError: as of `check_is_regular`.
    """
    check_is_regular(path)
    file = open(os.open(path, _FLAGS), "rb", buffering=buffering)  # noqa: SIM115 (the caller closes it)
    try:
        _check_mode(os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _check_mode(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError(f"it is no regular file, but {_KINDS.get(stat.S_IFMT(mode), 'something else')}")


__all__ = ["check_is_regular", "open_regular"]
