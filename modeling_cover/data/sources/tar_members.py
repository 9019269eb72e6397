# SPDX-License-Identifier: Apache-2.0
"""The members of a tar file, told by their headers, and the texts among them."""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple


_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"LZIP": "lzip"}
_BLOCK = 512
_MAX_HEADER, _MAX_TEXT = 2**20, 2**24  # bytes of a member's name and what else tar has of it, and of a member of text


class BrokenMemberError(ValueError):
    """The content of a member is not what its name says."""


class Member(NamedTuple):
    """A file in a tar file: where its content lies, in bytes."""

    name: str
    offset: int
    size: int


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Bytes of a file from an offset on; fewer at its end."""
    file.seek(offset)
    return file.read(size)


def text_of(file: BinaryIO, extension: str, member: Member) -> str:
    """The content of a member of that extension.

    Raises:
        BrokenMemberError: it is not in UTF-8, or has more than 16 MiB.
    """
    if member.size > _MAX_TEXT:
        raise BrokenMemberError(f"its .{extension} member has {member.size} bytes, more than {_MAX_TEXT}")
    try:
        return read_at(file, member.offset, member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenMemberError(f"its .{extension} member is not in UTF-8: {error}") from error


class _Headers:
    """A shard for `tarfile`, which would read a name of gigabytes."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header has more than {_MAX_HEADER} bytes")
        return self._file.read(size)


def members_of(shard: str, file: BinaryIO) -> Iterator[Member]:
    """The regular files of a tar file, in order; `shard` is what to call it in messages."""
    start = file.read(8)
    for magic, compression in _COMPRESSIONS.items():
        if start.startswith(magic):
            raise ValueError(f"{shard} is compressed ({compression}): decompress it, videos and images are")
    file.seek(0)
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
            for member in tar:
                if member.issparse():
                    raise ValueError(f"{shard}/{member.name} is sparse: write the shard without --sparse")
                if member.islnk() or member.issym():
                    link = f"{shard}/{member.name} is a link to {member.linkname}"
                    raise ValueError(f"{link}: write the shard with --dereference --hard-dereference")
                if member.isreg():
                    yield Member(member.name, member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, OverflowError) as error:  # OverflowError: of a size beyond all files
        raise ValueError(f"{shard} is truncated or no tar file: {error}") from error
    # tarfile takes whatever it cannot read after the first member for the end. The end is a block of zeros.
    if len(block := read_at(file, end, _BLOCK)) < _BLOCK or any(block):
        size = file.seek(0, os.SEEK_END)
        raise ValueError(f"{shard} is truncated or damaged: no end after byte {end} of {size}")
    if any(read_at(file, end + _BLOCK, 20 * _BLOCK)):
        raise ValueError(f"{shard} goes on after its end at byte {end}: tar files cannot be joined end to end")
