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
"""Paths and addresses of files. A stranger may have chosen a path, so only regular files are opened. Addresses are
told from paths, and shown; some failures to fetch a remote file pass.

A user's name and password, and the query of an address of the web, may be the right to read the file: they are shown
nowhere.
"""

import errno
import http
import os
import posixpath
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote


_ADDRESS = re.compile(r"(\w+::)*[A-Za-z][A-Za-z0-9+.\-]*://", re.ASCII)
_USER = re.compile(r"\b([A-Za-z][A-Za-z0-9+.\-]*://)[^/?#\s'\"]*@")
_QUERY = re.compile(r"\b(https?://[^\s?#'\"<>]+)[?#][^\s'\"<>]*", re.IGNORECASE)
_WEB = ("http", "https")

# Seconds between two attempts.
RETRY_WAITS = (0.5, 1.0, 2.0, 4.0)
_LONGEST_WAIT = 30.0

# Beside those of 500 and above: time-out, too early, too many requests.
_TRANSIENT_STATUS = (408, 425, 429)
_TRANSIENT_ERRNO = tuple(
    getattr(errno, name)
    for name in ("EAGAIN", "EBUSY", "EREMOTEIO", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "EHOSTUNREACH", "EPIPE")
    if hasattr(errno, name)
)
# The errors of a network that fails, by library. One that was never imported has raised none.
_NETWORK_ERRORS = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "httpx": ("TransportError",),
    "botocore.exceptions": ("HTTPClientError", "ConnectionError"),
    "requests": ("ConnectionError", "Timeout"),
}

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Lest what took the place of a file in between, a pipe, is waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

Result = TypeVar("Result")


def is_address(path: str) -> bool:
    """Whether it is the address of a file, such as "s3://bucket/a.mp4", and not a path."""
    return _ADDRESS.match(path) is not None


def protocol_of(address: str) -> str:
    return address.partition("://")[0].lower()


def is_web(address: str) -> bool:
    return protocol_of(address) in _WEB


def joined(folder: str, name: str) -> str:
    """The address of what is in a remote folder; of a folder whose address ends in a query, with the same query."""
    path, query = _split(folder)
    return path if name in ("", ".") else f"{path.rstrip('/')}/{name}{query}"


def joined_file(folder: str, path: str) -> str:
    """The same of a file's path, which may have any characters."""
    return joined(folder, quote(path) if is_web(folder) else path)


def parent(address: str) -> str:
    """The address of the folder that a file is in, with its query."""
    path, query = _split(address)
    return posixpath.dirname(path) + query


def base_name(address: str) -> str:
    return posixpath.basename(_split(address)[0])


def _split(address: str) -> tuple[str, str]:
    """Up to the query, and the query."""
    if not is_web(address):
        return address, ""
    path, mark, query = address.partition("?")
    return path, mark + query


def public_name(address: str) -> str:
    """An address without what may be the right to read it. A path stays as it is."""
    if not is_address(address):
        return address
    hops = []
    for hop in address.split("::"):
        hop = _USER.sub(r"\1", hop, count=1)
        hops.append(re.split(r"[?#]", hop, maxsplit=1)[0] if is_web(hop) else hop)
    return "::".join(hops)


def without_secrets(text: str) -> str:
    """The same of a text with addresses in it."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def status_of(error: BaseException) -> int | None:
    """What a server has answered, by whichever library; None if it has not."""
    for cause in causes_of(error):
        if isinstance(cause, _network_errors()):
            return None  # aiohttp explains one by what a server would have answered to it
        response: Any = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore's
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        elif response is not None:
            status = getattr(response, "status_code", None)
        else:
            status = cause.status if hasattr(cause, "status") else getattr(cause, "code", None)
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed: the network fails, or the server for a while."""
    if (status := status_of(error)) is not None:
        return status >= 500 or status in _TRANSIENT_STATUS
    kinds = (TimeoutError, ConnectionError, *_network_errors())
    return any(
        isinstance(cause, kinds) or (isinstance(cause, OSError) and cause.errno in _TRANSIENT_ERRNO)
        for cause in causes_of(error)
    )


def _network_errors() -> tuple[type[BaseException], ...]:
    return tuple(
        getattr(sys.modules[module], name)
        for module, names in _NETWORK_ERRORS.items()
        if module in sys.modules
        for name in names
    )


def reason_of(error: BaseException) -> str:
    """Why a file cannot be fetched, on one line and without secrets."""
    if (status := status_of(error)) is not None:
        known = status in {known.value for known in http.HTTPStatus}
        return f"the server answers {status}" + (f" ({http.HTTPStatus(status).phrase})" if known else "")
    texts = [str(cause) for cause in causes_of(error) if not isinstance(cause, FileNotFoundError)]
    reason = next((text for text in reversed(texts) if text), type(error).__name__)
    return " ".join(without_secrets(reason).split())


def retried(attempt: Callable[[], Result], deadline: float) -> Result:
    """What `attempt` returns. After a failure that may pass it is tried again, until a `deadline` by
    time.monotonic()."""
    for wait in RETRY_WAITS:
        try:
            return attempt()
        except Exception as error:
            wait = max(wait, _asked_wait(error))
            if not is_transient(error) or time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
    return attempt()


def _asked_wait(error: BaseException) -> float:
    """The seconds that a server asks to wait."""
    for cause in causes_of(error):
        headers = getattr(cause, "headers", None) or getattr(getattr(cause, "response", None), "headers", None) or {}
        asked = headers.get("Retry-After", "")
        if asked.isdecimal():
            return min(float(asked), _LONGEST_WAIT)
    return 0.0


def check_is_regular(path: str | os.PathLike) -> None:
    """Raise an error unless there is a regular file, or a link to one. It is not opened: a pipe would be waited for,
    and a device may do what it does.

    Raises:
        ValueError: it is something else, or the path has a zero in it.
        OSError: there is none, or it cannot be looked at.
    """
    _check_mode(os.stat(path).st_mode)


def open_regular(path: str | os.PathLike, buffering: int = -1) -> BinaryIO:
    """A regular file, opened to be read; errors are those of `check_is_regular`."""
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
