# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Hub on this machine, for tests to publish to and load from, and to fail in the ways networks do.

    with HubServer() as hub:
        subprocess.run([sys.executable, "-c", code], env=hub.environment(tmp_path), check=True)
        assert "config.json" in hub.files("org/model")

The client is huggingface_hub as installed, unchanged; `environment` points a process at this server. In this process,
`HfApi(endpoint=hub.url, token=hub.token)` does, with `huggingface_hub.constants.HF_HUB_DISABLE_XET` set: a client with
hf_xet uploads large files by xet whatever the server says, and only that setting makes it use LFS, as this server
does.
"""

import contextlib
import os
import random
import socketserver
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any, NamedTuple, Self

from hub_repository import MAIN, Commit, Refusal
from hub_routes import Answer, HubRoutes, Request, as_answer


# Below the ports that systems lend to outgoing connections, so that nobody takes the port while the server is away.
PORTS = range(20000, 30000)
MAX_BODY = 256 * 2**20  # bytes

UNAVAILABLE = "unavailable"  # 503, with a page of HTML as gateways send it; nothing is done
DROPPED = "dropped"  # the connection is closed without an answer; nothing is done
CUT = "cut"  # the request is carried out, and the connection closed within the answer
FAULTS = (UNAVAILABLE, DROPPED, CUT)


class LoggedRequest(NamedTuple):
    method: str
    path: str  # with its query
    status: int | None  # None: the connection was closed instead, or within the answer


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = False
    request_queue_size = 128

    def __init__(self, port: int, hub: "HubServer"):
        self.hub = hub
        self._connections: set[socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without HTTPServer's look-up of the host's name

    def process_request(self, request: socket, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: socket, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed is no error of the server
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Refuse new connections, and close those there are."""
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # its client has closed it
                connection.shutdown(SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def _serve(self) -> None:
        hub = self.server.hub
        try:
            request = Request(self.command, self.path, self.headers, self._read_body())
        except Refusal as refusal:
            self.close_connection = True
            self._send(as_answer(refusal))
            return
        fault = hub._next_fault(self.path)
        if fault == UNAVAILABLE:
            answer = Answer(503, b"<html>503 Service Unavailable</html>", {"Content-Type": "text/html"})
        elif fault == DROPPED:
            answer = None
        else:
            answer = hub._routes.answer(request)
        lost = fault in (DROPPED, CUT)
        hub._log.append(LoggedRequest(self.command, self.path, None if lost else answer.status))
        self.close_connection = self.close_connection or lost
        if answer is not None:
            self._send(answer, cut=fault == CUT)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_body(self) -> bytes:
        """The whole body; a client that dies within it is a ConnectionError, so that no half of a request is done."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0] or b"0", 16):
            body += self._read(size, already=len(body))
            self.rfile.readline()
        if self.rfile.readline() not in (b"\r\n", b"\n"):
            raise ConnectionError("the client went away within its request")
        return body

    def _read(self, size: int, already: int = 0) -> bytes:
        if already + size > MAX_BODY:
            raise Refusal(413, f"this server takes {MAX_BODY} bytes a request, got {already + size}")
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionError("the client went away within its request")
        return content

    def _send(self, answer: Answer, cut: bool = False) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        if cut and not body:
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: `HubServer.requests` has them."""


class HubServer:
    """The server, its contents and its faults; on 127.0.0.1 alone, all in memory, in daemon threads.

    Args:
        token: the one valid token
        user: the user whose token it is
        organizations: where this user may write too
        part_bytes: LFS objects of more bytes are uploaded in parts of this size
    """

    def __init__(
        self,
        token: str = "hf_test",
        user: str = "somebody",
        organizations: Sequence[str] = ("org",),
        part_bytes: int = 4 * 2**20,
    ):
        self.token = token
        self._routes = HubRoutes(token, user, organizations, part_bytes)
        self._log: list[LoggedRequest] = []
        self._fault_lock = threading.Lock()
        self._presence_lock = threading.Lock()
        self.recover()
        self._port: int | None = None
        self._listener: _Listener | None = None
        self._return: threading.Timer | None = None

    def __enter__(self) -> Self:
        for port in random.sample(PORTS, k=100):
            with contextlib.suppress(OSError):  # taken
                self._listener = _Listener(port, self)
                self._port = port
                return self
        raise OSError(f"no free port among 100 tried in {PORTS}")

    def __exit__(self, *_: object) -> None:
        if self._return is not None:
            self._return.cancel()
        self._leave()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self, home: str | Path) -> dict[str, str]:
        """A whole environment for a client process: this one's, with this Hub, its token, and HF_HOME in `home`."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(foreign) and not name.upper().endswith("_PROXY")
        }
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    # What is there, and what was asked

    def commits(self, name: str, revision: str = MAIN, repo_type: str = "model") -> list[Commit]:
        """Newest first; the last is the Hub's own first commit. `files` of each: path to `StoredFile`.

        Raises:
            ValueError: there is no such repository, or no such revision of it.
        """
        with self._routes.lock:
            repository = self._routes.repositories.get((repo_type, name))
            if repository is None:
                raise ValueError(f"no {repo_type} {name} here, but {sorted(self._routes.repositories)}")
            try:
                return list(repository.history(repository.resolve(revision)))
            except Refusal as refusal:
                known = [*repository.branches, *repository.tags]
                raise ValueError(f"{name} has no revision {revision}, but {known} and commit ids") from refusal

    def files(self, name: str, revision: str = MAIN, repo_type: str = "model") -> dict[str, bytes]:
        return {path: file.content for path, file in self.commits(name, revision, repo_type)[0].files.items()}

    @property
    def requests(self) -> list[LoggedRequest]:
        return list(self._log)

    # Faults

    def fail_every(self, n: int, faults: Sequence[str] = (UNAVAILABLE, DROPPED), only: str = "") -> None:
        """Every n-th request from now on fails, by each of `faults` in turn; `only` those whose path contains this."""
        if n < 1 or not faults or not set(faults) <= set(FAULTS):
            raise ValueError(f"n must be at least 1 and faults some of {FAULTS}, got {n} and {faults}")
        with self._fault_lock:
            self._fail_every, self._faults, self._failing_path, self._counted = n, tuple(faults), only, 0

    def recover(self) -> None:
        """Let no more requests fail."""
        self._routes.refused_with = None
        with self._fault_lock:
            self._fail_every, self._faults, self._failing_path, self._counted = 0, (), "", 0

    def _next_fault(self, path: str) -> str | None:
        with self._fault_lock:
            if self._fail_every == 0 or self._failing_path not in path:
                return None
            self._counted += 1
            failures, other = divmod(self._counted, self._fail_every)
            return None if other else self._faults[(failures - 1) % len(self._faults)]

    def go_away(self, seconds: float) -> None:
        """Close the port and every connection, and come back on the same port after some time."""
        self._leave()
        self._return = threading.Timer(seconds, self._come_back)
        self._return.daemon = True
        self._return.start()

    def come_back(self) -> None:
        """Come back before the time `go_away` was told."""
        if self._return is not None:
            self._return.cancel()
        self._come_back()

    def _leave(self) -> None:
        with self._presence_lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _come_back(self) -> None:
        with self._presence_lock:
            if self._listener is None:
                self._listener = _Listener(self._port, self)

    def refuse_token(self, status: int = 401) -> None:
        """Refuse the token from now on: altogether with 401, for writing with 403."""
        self._routes.refused_with = status
