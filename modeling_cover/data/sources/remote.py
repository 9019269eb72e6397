# SPDX-License-Identifier: Apache-2.0
"""Files elsewhere: http(s)://, hf://, s3://, gs:// and what else fsspec knows, wherever a path may stand.

A file of a row is fetched as a whole, into a cache on the local disk, and of a shard or a Parquet file just the parts
that are wanted, where the server has parts to give. What fails and may heal is tried again. What stays away is a
[`RemoteError`], and so as bad a file as one on the disk that cannot be decoded.
"""

import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar
from urllib.parse import quote

import fsspec
import fsspec.config
from fsspec.core import url_to_fs

from ...model.file_access_cover import (
    base_name,
    is_address,
    is_transient,
    is_web,
    protocol_of,
    public_name,
    reason_of,
    retried,
    status_of,
)
from ...model.video_decoding_cover import VideoDecodingError
from .file_cache import CacheError, FileCache


CACHE_FOLDER, CACHE_GIGABYTES = "MODELING_COVER_CACHE", "MODELING_COVER_CACHE_GB"
FETCH_SECONDS = "MODELING_COVER_FETCH_SECONDS"
_DEFAULT_GIGABYTES = 10.0
_DEFAULT_SECONDS = 240.0  # `cover check` and `cover prepare` end a process whose row takes 300

# What the rows of a dataset, which may be a stranger's, may name. "file" is what a plain path is.
ROW_PROTOCOLS = ("http", "https", "hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "memory", "file", "local")
_LOCAL = ("file", "local")
_ARCHIVES = ("zip",)  # which `datasets` names files in when it streams: zip://a.jpg::hf://datasets/org/name/x.zip
_PATIENT = ("gs", "gcs")  # whose library tries again by itself, for long enough
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}

# Of http, in seconds: to connect, and between two pieces of the content.
_CONNECT_SECONDS, _READ_SECONDS = 30.0, 60.0
_PIECE = 2**23
_BUFFER = 2**16  # read around a tar header, since the next one may be near
_UNQUOTED = "%/:=&?~#+!$,;'@()*[]"  # what may stand in an address as it is

Result = TypeVar("Result")

_KEPT: dict[int, fsspec.AbstractFileSystem] = {}


class RemoteError(VideoDecodingError):
    """A remote file cannot be fetched. The message names it, without what would be the right to fetch it."""

    def __init__(self, message: str, status: int | None = None, is_missing: bool = False):
        super().__init__(message)
        self.status = status  # what the server has answered, if it has
        self.is_missing = is_missing  # whether there is no such file


class _NoRangesError(Exception):
    """A server sends whole files only."""


def check_address(address: str, is_row: bool = False) -> None:
    """Check that files of its protocol can be read here, or with `is_row`, that a row of a dataset may name one.

    Raises:
        ValueError: if a row may not name such a file, the protocol is unknown, or its package is not installed.
    """
    *archives, last = address.split("::")
    protocol = protocol_of(last)
    known = ROW_PROTOCOLS if is_row else (*ROW_PROTOCOLS, *fsspec.available_protocols())
    is_path = bool(archives) and not is_address(last)  # of an archive on the disk
    if (not is_path and protocol not in known) or any(protocol_of(hop) not in _ARCHIVES for hop in archives):
        expected = ", ".join(f"{name}://" for name in ROW_PROTOCOLS)
        raise ValueError(f"{public_name(address)}: expected a path, or an address of one of {expected}")
    if not is_path:
        _check_package(protocol)


def check_row_addresses(paths: Iterable[str], place_of: Callable[[int], str]) -> None:
    """Raise a `ValueError` that names the first row whose path is an address that cannot be read, see
    [`check_address`]."""
    seen = set()
    for row, path in enumerate(paths):
        if "://" not in path or not is_address(path) or (protocol := protocol_of(path)) in seen:
            continue
        seen.add(protocol)
        try:
            check_address(path, is_row=True)
        except ValueError as error:
            raise ValueError(f"{place_of(row)}: {error}") from error


@cache
def _check_package(protocol: str) -> None:
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        hint = str(error) if extra is None else f"pip install modeling-cover[{extra}]"
        raise ValueError(f"{protocol}:// needs a package that is not installed: {hint}") from error


@contextmanager
def local_copy(address: str) -> Iterator[str]:
    """The path of a copy of a remote file on the local disk, which stays there until the end of the context.

    Raises:
        RemoteError: if the file cannot be fetched, or not in time, or is larger than the cache may be.
        ValueError: see [`check_address`].
        CacheError: if the cache cannot be used.
    """
    check_address(address, is_row=True)
    if protocol_of(address) in _LOCAL:
        yield address.partition("://")[2]
        return
    suffix = os.path.splitext(base_name(address))[1]
    suffix = suffix if re.fullmatch(r"\.\w{1,8}", suffix, re.ASCII) else ""
    copies = file_cache()
    with copies.copy(address, suffix, partial(_fetch, address, max_bytes=copies.max_bytes)) as path:
        yield path


def file_cache() -> FileCache:
    """The cache that the environment describes, whose numbers must be above 0."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = os.environ.get(CACHE_FOLDER) or os.path.join(home, "modeling_cover", "remote")
    return FileCache(Path(folder).expanduser(), int(_number(CACHE_GIGABYTES, _DEFAULT_GIGABYTES) * 1e9))


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    try:
        number = default if not text else float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ValueError(f"the environment's {variable}: expected a number above 0, got {text!r}")
    return number


def open_binary(path: str | os.PathLike) -> BinaryIO:
    """A file here or elsewhere, as it is now: a remote one is fetched again, into a file without a name."""
    if not isinstance(path, str) or not is_address(path):
        return open(path, "rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    try:
        _fetch(path, file, file_cache().max_bytes)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def open_text(path: str | os.PathLike, newline: str | None = None) -> TextIO:
    """The same of a text in UTF-8, with or without a byte order mark."""
    return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline=newline)


class RemoteFile(io.RawIOBase):
    """A remote file that is read in parts, each fetched when it is asked for.

    Where the server has just whole files to give, it is fetched as a whole at the first need, and read from the cache.
    """

    def __init__(self, address: str):
        super().__init__()
        self.address = address
        self._position = 0
        self._size: int | None = None
        self._copy: BinaryIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    @property
    def size(self) -> int:
        if self._size is None:
            self._size = size_of(self.address)
        if self._size is None:
            self._size = os.fstat(self._whole().fileno()).st_size
        return self._size

    def read_at(self, offset: int, size: int) -> bytes:
        """Bytes from an offset on; fewer at the end. It moves nothing: processes and threads may share the file."""
        if self._copy is None:
            try:
                return _read_range(self.address, offset, size)
            except _NoRangesError:
                self._whole()
        return os.pread(self._copy.fileno(), size, offset)

    def _whole(self) -> BinaryIO:
        if self._copy is None:
            with local_copy(self.address) as path:
                self._copy = open(path, "rb")  # noqa: SIM115 (closed with this file)
        return self._copy

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (self.size if start is None else start)
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self.size - self._position))
        content = self.read_at(self._position, size) if size else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        if self._copy is not None:
            self._copy.close()
        super().close()


def open_for_parts(path: str) -> BinaryIO:
    """A file here or elsewhere, of which little will be read."""
    return io.BufferedReader(RemoteFile(path), _BUFFER) if is_address(path) else open(path, "rb", buffering=0)


def size_of(address: str) -> int | None:
    """The bytes of a remote file; None if the server does not say."""
    return _info(address).get("size")


def version_of(address: str) -> str:
    """What changes when a remote file does, as far as the server says."""
    info = _info(address)
    keys = ("size", "ETag", "etag", "Last-Modified", "LastModified", "mtime", "md5Hash", "blob_id", "created")
    return str([str(info[key]) for key in keys if key in info])


def exists(address: str) -> bool:
    """Whether there is a remote file, which the recipe does not name.

    Raises:
        RemoteError: if the server does not say. One that hides what there is says no.
    """
    try:
        size_of(address)
    except RemoteError as error:
        if not error.is_missing and error.status not in (401, 403):
            raise
        return False
    return True


def find_remote(place: str, suffixes: tuple[str, ...], deep: bool = False) -> list[str]:
    """A remote file, if `place` ends in one of `suffixes`; the files that match a pattern, if it has an asterisk or a
    bracket, sorted; or those of a folder with such a suffix, sorted, and with `deep` those of its folders.

    Of the web, what is in a folder are the links on its page.
    """
    is_pattern = re.search(r"[*\[]", place) is not None
    if not is_pattern and base_name(place).endswith(suffixes):
        return [place]

    def attempt() -> list[str]:
        filesystem, path = _filesystem(place)
        filesystem.invalidate_cache()
        found = filesystem.glob(path) if is_pattern else filesystem.find(path, maxdepth=None if deep else 1)
        return sorted(filesystem.unstrip_protocol(name) for name in found)

    found = _tried(place, attempt, _deadline())
    return found if is_pattern else [address for address in found if base_name(address).endswith(suffixes)]


def _info(address: str) -> dict[str, Any]:
    def attempt() -> dict[str, Any]:
        filesystem, path = _filesystem(address)
        return filesystem.info(path)

    return _tried(address, attempt, _deadline())


def _deadline() -> float:
    return time.monotonic() + _number(FETCH_SECONDS, _DEFAULT_SECONDS)


def _filesystem(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec keeps one of each kind for a process, and makes another after a fork.

    The first is kept after a fork, too. A worker that let it go would close its connections, which are the main
    process's: that one would wait for an answer that it is no longer told of.
    """
    options = {}
    protocol = protocol_of(address.rpartition("::")[2])
    if protocol in ("s3", "s3a"):
        # Its library would try again, too, and so for minutes. The rest is as the user has it.
        given = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        options = {"config_kwargs": {"retries": {"max_attempts": 0}, **given}}
    elif protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        # A little beyond what a file may take, whose error says so.
        total = _number(FETCH_SECONDS, _DEFAULT_SECONDS) + 10
        timeout = ClientTimeout(total=total, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True}, "encoded": True}
        archives, mark, last = address.rpartition("::")
        address = archives + mark + quote(last, safe=_UNQUOTED)
    filesystem, path = url_to_fs(address, **({protocol: options} if "::" in address else options))
    if filesystem.async_impl:
        _KEPT[id(filesystem)] = filesystem
    return filesystem, path


def _fetch(address: str, file: BinaryIO, max_bytes: int) -> None:
    """Write a remote file into an empty one."""
    deadline = _deadline()
    _tried(address, lambda: _fetch_once(address, file, max_bytes, deadline), deadline)


def _fetch_once(address: str, file: BinaryIO, max_bytes: int, deadline: float) -> None:
    file.seek(0)
    file.truncate()
    filesystem, path = _filesystem(address)
    size = 0
    with filesystem.open(path, "rb", **_whole_file_options(address)) as remote:
        while piece := remote.read(_PIECE):
            size += len(piece)
            if size > max_bytes:
                reason = f"it has more than {max_bytes} bytes, which {CACHE_GIGABYTES} allows for all copies"
                raise RemoteError(f"{public_name(address)} cannot be fetched: {reason}")
            if time.monotonic() > deadline:
                reason = f"it takes longer than the {_number(FETCH_SECONDS, _DEFAULT_SECONDS):g} s of {FETCH_SECONDS}"
                raise RemoteError(f"{public_name(address)} cannot be fetched: {reason}")
            try:
                file.write(piece)
            except OSError as error:
                raise CacheError(f"{public_name(address)} cannot be written to the disk: {error}") from error


def _whole_file_options(address: str) -> dict[str, Any]:
    if "::" in address:
        return {}
    if is_web(address):
        # A stream of one request. It does not need the size, but without one it would be asked for.
        return {"block_size": 0, "size": 1}
    return {"block_size": 0} if protocol_of(address) == "hf" else {"cache_type": "none"}


def _read_range(address: str, offset: int, size: int) -> bytes:
    if size <= 0:
        return b""

    def attempt() -> bytes:
        filesystem, path = _filesystem(address)
        if not is_web(address):
            return filesystem.cat_file(path, start=offset, end=offset + size)
        # Its `cat_file` would take a whole file for the part of it.
        options = {"block_size": size, "size": offset + size, "cache_type": "none"}
        with filesystem.open(path, "rb", **options) as file:
            file.seek(offset)
            try:
                return file.read(size)
            except ValueError as error:
                raise _NoRangesError from error

    return _tried(address, attempt, _deadline())


def _tried(address: str, attempt: Callable[[], Result], deadline: float) -> Result:
    """What `attempt` returns, in the end; whatever its library raises is a RemoteError."""
    try:
        return attempt() if protocol_of(address) in _PATIENT else retried(attempt, deadline)
    except (RemoteError, CacheError, _NoRangesError):
        raise
    except Exception as error:
        status = status_of(error)
        # fsspec takes any failure to ask the web about a file for its absence.
        is_absent = isinstance(error, FileNotFoundError) and status is None and not is_transient(error)
        is_missing = status == 404 or is_absent
        reason = "there is no such file" if is_missing else reason_of(error)
        # The error's own message, and those of its causes, have the whole address.
        raise RemoteError(f"{public_name(address)} cannot be fetched: {reason}", status, is_missing) from None
