# SPDX-License-Identifier: Apache-2.0
"""Servers of files on the loopback interface: HTTP with ranges, and with the faults of a network; and one that answers
as S3 does."""

import http.server
import os
import socket
import struct
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec


class FileServer:
    """Serves a folder over HTTP, with a page of links for each folder.

    Args:
        folder: what is served; links that go out of it are not followed.
        has_ranges: whether it sends parts of files, or always the whole.

    Attributes:
        faults: by path, what becomes of the next requests to it: a status, "reset" (after half of the content), "drip"
            (a byte at a time, without an end) or None (nothing is wrong).
        always: by path, what becomes of each of them.
        retry_after: what is said with a status.
        requests: method, path and wanted part of each.
        sent: bytes of the content, by path.
    """

    def __init__(self, folder: Path, has_ranges: bool = True):
        self.folder = folder
        self.has_ranges = has_ranges
        self.faults: dict[str, deque[int | str | None]] = defaultdict(deque)
        self.retry_after: str | None = None
        self.always: dict[str, int | str] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.sent: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._released = threading.Event()

    def __enter__(self) -> "FileServer":
        handler = type("Handler", (_Handler,), {"files": self})
        self._server = _QuietServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def count(self, path: str, method: str = "GET") -> int:
        """Requests so far."""
        with self._lock:
            return sum(request[:2] == (method, path) for request in self.requests)

    def note(self, method: str, path: str, part: str | None) -> int | str | None:
        """Write a request down; what shall become of it."""
        with self._lock:
            self.requests.append((method, path, part))
            return self.faults[path].popleft() if self.faults[path] else self.always.get(path)

    def has_ended(self, seconds: float) -> bool:
        return self._released.wait(seconds)


class _QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        pass  # clients hang up, above all those that end


class _Handler(http.server.BaseHTTPRequestHandler):
    files: FileServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the content waits up to 40 ms for the headers to be acknowledged

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, with_content: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.files.note(self.command, path, self.headers.get("Range"))
        file = self.files.folder / path.lstrip("/")
        if isinstance(fault, int):
            asked = {} if self.files.retry_after is None else {"Retry-After": self.files.retry_after}
            return self._send(fault, b"no", with_content, asked)
        if fault == "drip":
            return self._drip()
        if file.is_dir():
            links = [entry.name + "/" * entry.is_dir() for entry in sorted(file.iterdir())]
            page = "".join(f'<a href="{link}">{link}</a>' for link in links)
            return self._send(200, page.encode(), with_content, {"Content-Type": "text/html"})
        if not file.is_file():
            return self._send(404, b"nothing here", with_content)
        content = file.read_bytes()
        if not self.files.has_ranges or "Range" not in self.headers:
            return self._send(200, content, with_content, cut=fault == "reset")
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1 if last else len(content), len(content))
        if start >= len(content):
            return self._send(416, b"", with_content)
        part = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        return self._send(206, content[start:end], with_content, part, cut=fault == "reset")

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**9))
        self.end_headers()
        try:
            while not self.files.has_ended(0.01):
                self.wfile.write(b"x")
        except OSError:
            pass  # nobody listens any more
        self.close_connection = True

    def _send(
        self, status: int, content: bytes, with_content: bool, headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        if self.files.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not with_content:
            return
        content = content[: len(content) // 2] if cut else content
        self.files.sent[unquote(urlsplit(self.path).path)] += len(content)
        self.wfile.write(content)
        if cut:
            self.wfile.flush()
            # A reset, not an end: the connection is dropped with what is on its way.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """moto's stand-in for S3, and the environment in which s3fs talks to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    files = fsspec.get_filesystem_class("s3")
    files.clear_instance_cache()
    try:
        yield environment
    finally:
        files.clear_instance_cache()
        server.stop()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def closed_port() -> Iterator[int]:
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]
