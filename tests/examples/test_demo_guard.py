# SPDX-License-Identifier: Apache-2.0
"""Which routes the demo has, and how much of what its visitors may send."""

import asyncio
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock

import modeling_cover as modeling_cover
import pytest
import uvicorn
from huggingface_hub.utils import httpx
from lazy import lazily
from modeling_cover.commands.demo_uploads import Room, Uploads


demo, demo_guard = map(lazily, ("modeling_cover.commands.demo", "modeling_cover.commands.demo_guard"))

ROOM = {"file_bytes": 100_000, "visitor_bytes": 250_000, "all_bytes": 400_000, "visitor_files": 4, "all_files": 6}
HEADS = ["motions", "shapes"]


class Answers:
    """Instead of a model: how many bytes a file has."""

    heads = HEADS
    stale_heads = ()

    def answer_video(self, file, heads):
        yield demo.Answer("none" if file is None else f"{len(file.read())} bytes of {file.name} for {heads}")

    answer_image = answer_video


def app_of(limits: "demo_guard.Limits | None" = None, **room: float) -> "demo_guard.Guard":
    uploads = Uploads(Room(**{**ROOM, **room}))
    guard = demo.build_app(demo.build_page(Answers(), "title", uploads), uploads)
    guard.limits = limits or guard.limits
    return guard


@contextmanager
def serving(guard: "demo_guard.Guard") -> Iterator[str]:
    """Its address, while another thread serves it."""
    with demo.listen("127.0.0.1", 0) as place:
        server = uvicorn.Server(uvicorn.Config(guard, http=demo_guard.Connection, log_level="critical"))
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(600)


@pytest.fixture(scope="module")
def guard() -> "demo_guard.Guard":
    return app_of()


@pytest.fixture(scope="module")
def url(guard) -> Iterator[str]:
    with serving(guard) as address:
        yield address


def send(url: str, content: bytes, name: str = "clip.mp4", visitor: str = "192.0.2.1", **options) -> httpx.Response:
    """Of a visitor whose address a proxy on this machine tells."""
    headers = {"x-forwarded-for": visitor}
    return httpx.post(
        f"{url}/gradio_api/upload", files={"files": (name, content)}, headers=headers, timeout=600, **options
    )


def ask(
    url: str, path: str | None, session: str = "abc", visitor: str = "192.0.2.1", heads: object = HEADS
) -> httpx.Response:
    file = (
        None if path is None else {"path": path, "meta": {"_type": "gradio.FileData"}, "url": "http://example.org/a"}
    )
    question = {"data": [file, heads], "fn_index": 0, "session_hash": session, "event_data": None}
    return httpx.post(f"{url}/gradio_api/queue/join", json=question, headers={"x-forwarded-for": visitor}, timeout=600)


def hear(url: str, session: str = "abc", visitor: str = "192.0.2.1") -> str:
    """What the page is told until the last answer is there."""
    options = {"headers": {"x-forwarded-for": visitor}, "timeout": 600}
    return httpx.get(f"{url}/gradio_api/queue/data?session_hash={session}", **options).text


def waited_for(condition, seconds: float = 600) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


class TestRoutes:
    # Of all that Gradio registers. Before you add one: does the page ask for it, and what does it do with a stranger's
    # file?
    ANSWERED = {
        "GET /",
        "HEAD /",
        "GET /config",
        "GET /favicon.ico",
        "GET /theme.css",
        "GET /static/{path:path}",
        "GET /assets/{path:path}",
        "GET /gradio_api/info",
        "GET /gradio_api/file={path_or_url:path}",
        "HEAD /gradio_api/file={path_or_url:path}",
        "GET /gradio_api/queue/data",
        "GET /gradio_api/upload_progress",
        "POST /gradio_api/queue/join",
        "POST /gradio_api/upload",
    }

    def routes(self, routes, seen=None) -> Iterator[tuple[str, str]]:
        for route in routes:
            if hasattr(route, "original_router"):
                yield from self.routes(route.original_router.routes)
            elif hasattr(route, "methods"):
                yield from ((method, route.path) for method in (route.methods or ["GET", "POST"]))
            elif hasattr(route, "routes"):
                yield from self.routes(route.routes)
            else:
                yield "GET", route.path

    def is_refused(self, answer: httpx.Response) -> bool:
        """By the guard, and not by Gradio for want of a file, say."""
        told = (answer.headers.get("connection"), answer.headers.get("content-length"))
        return answer.status_code == 404 and told == ("close", str(len("There is nothing here.")))

    def test_those_that_the_page_needs_are_answered_and_no_others(self, guard, url):
        registered = sorted(set(self.routes(guard.app.routes)))
        assert len(registered) > 70  # or they are found in another way
        assert ("POST", "/gradio_api/process_recording") in registered
        (upload,) = send(url, b"x").json()
        values = {"path": "a/b.js", "path_or_url": upload, "url_path": "https://a.hf.space/b", "size": "16"}
        answered = set()
        with httpx.Client(base_url=url, timeout=600) as client:
            for method, path in registered:
                filled = re.sub(r"{(\w+)[^}]*}", lambda match: values.get(match[1], "x"), path)
                for address in (filled, f"{filled}?deep_link=x&session_hash=x"):
                    if not self.is_refused(client.request(method, address)):
                        answered.add(f"{method} {path}")
        assert answered == self.ANSWERED

    def test_a_route_that_a_new_version_brings_is_refused(self, guard, url):
        (mount,) = (route for route in guard.app.routes if hasattr(route, "app"))
        paths = ["/new", "/gradio_api/new", "/gradio_api/queue/new", "/gradio_api/upload/new", "/theme.css/new"]
        for path in paths:
            mount.app.add_api_route(path, lambda: "new", methods=["GET", "POST"])
        for path in paths:
            for method in ("GET", "POST"):
                assert self.is_refused(httpx.request(method, url + path))

    @pytest.mark.parametrize(
        "address",
        [
            "/gradio_api/file=/etc/passwd",
            "/gradio_api/file=uploads/x/../../../etc/passwd",
            "/gradio_api/file=http://example.org/clip.mp4",
            "/gradio_api/file/http:%2F%2Fexample.org/clip.mp4",
            "/gradio_api/proxy=http://example.org/clip.mp4",
            "/assets/..%2f..%2f..%2f..%2fconfig.py",
            "/static/%2e%2e/%2e%2e/routes.py",
            "//gradio_api/process_recording",
            "/gradio_api/process_recording/",
            "/gradio_api/%70rocess_recording",
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT"])
    def test_no_spelling_leads_anywhere_else(self, url, method, address):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=600) as plain:  # httpx would tidy it up
            plain.sendall(f"{method} {address} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode())
            assert plain.recv(1000).split()[1] == b"404"

    def test_without_the_guard_a_recording_would_be_taken(self, guard):
        transport = httpx.ASGITransport(guard.app)

        async def post() -> int:
            async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
                return (
                    await client.post("/gradio_api/process_recording", files={"video": ("a.mp4", b"x")})
                ).status_code

        assert asyncio.run(post()) == 200


class TestQuestions:
    def test_a_question_about_an_upload_is_answered(self, url):
        (path,) = send(url, b"x" * 5000, "clip é.mp4").json()
        assert ask(url, path).status_code == 200
        assert "5000 bytes of clip é.mp4 for ['motions', 'shapes']" in hear(url)
        assert ask(url, None).status_code == 200
        assert "none" in hear(url)

    @pytest.mark.parametrize("path", ["/etc/passwd", "uploads/x/clip.mp4", "http://example.org/clip.mp4", ""])
    def test_what_was_not_uploaded_is_not_read(self, url, path):
        assert ask(url, path).status_code == 200
        assert "This file is no longer here: send it again" in hear(url)

    @pytest.mark.parametrize(
        "question",
        [
            b"",
            b"[",
            b"[" * 100_000,
            b"null",
            b"{}",
            b'{"data": [null, []], "fn_index": 7, "session_hash": "a"}',
            b'{"data": [null, []], "fn_index": true, "session_hash": "a"}',
            b'{"data": [null, []], "fn_index": 0, "session_hash": "a/b"}',
            b'{"data": [null, []], "fn_index": 0, "session_hash": "' + b"a" * 65 + b'"}',
            b'{"data": [null, [1]], "fn_index": 0, "session_hash": "a"}',
            b'{"data": [{"path": 1}, []], "fn_index": 0, "session_hash": "a"}',
            b'{"data": [null], "fn_index": 0, "session_hash": "a"}',
        ],
    )
    def test_what_is_no_question_is_refused(self, url, question):
        assert httpx.post(f"{url}/gradio_api/queue/join", content=question, timeout=600).status_code == 400

    @pytest.mark.parametrize("is_told", [True, False])
    def test_a_long_one_is_not_waited_for(self, url, is_told):
        """Whether its length is announced or not: what comes is counted."""
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            for _ in range(10_000):
                sent += 2**14
                yield b" " * 2**14

        headers = {"content-length": str(10_000 * 2**14)} if is_told else {}
        try:
            answer = httpx.post(f"{url}/gradio_api/queue/join", content=endless(), headers=headers, timeout=600)
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the connection was closed before the answer was read
        assert sent < 2**26

    def test_one_that_comes_slowly_is_not_waited_for(self):
        with serving(app_of(demo_guard.Limits(message_seconds=0.3))) as url:
            host, port = url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=600) as slow:
                slow.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
                assert slow.recv(1000).split()[1] == b"408"

    def test_of_one_visitor_few_wait(self):
        guard = app_of(demo_guard.Limits(questions=2))
        hold = threading.Event()

        def slowly(upload, heads):
            hold.wait(600)
            yield demo.Answer("none").values(Answers.heads)

        guard.page.fns[0].fn = slowly
        with serving(guard) as url:
            codes = [ask(url, None, f"s{number}").status_code for number in range(4)]
            assert codes == [200, 200, 429, 429]
            assert ask(url, None, "other", visitor="192.0.2.2").status_code == 200
            assert ask(url, None, "s0", visitor="192.0.2.3").status_code == 400  # another visitor's
            hold.set()
            for name, visitor in (("s0", "192.0.2.1"), ("s1", "192.0.2.1"), ("other", "192.0.2.2")):
                assert "process_completed" in hear(url, name, visitor)
            assert waited_for(lambda: not guard.page._queue.event_ids_to_events)
            assert ask(url, None, "s3").status_code == 200

    def test_a_file_is_kept_while_a_question_about_it_waits(self):
        guard = app_of(demo_guard.Limits(sweep_seconds=0.05))
        hold, original = threading.Event(), guard.page.fns[0].fn

        def slowly(upload, heads):
            hold.wait(600)
            yield from original(upload, heads)

        guard.page.fns[0].fn = slowly
        with serving(guard) as url:
            (path,) = send(url, b"x" * 5000).json()
            (other,) = send(url, b"x").json()
            assert ask(url, path).status_code == 200
            guard.uploads.room = Room(**ROOM, kept_seconds=0.5)
            assert waited_for(lambda: guard.uploads.size(other) is None)
            time.sleep(1)
            hold.set()
            assert "5000 bytes of clip.mp4" in hear(url)
            assert waited_for(lambda: guard.uploads.size(path) is None)

    def test_what_gradio_keeps_of_a_page_that_has_gone_is_dropped(self):
        guard = app_of(demo_guard.Limits(sweep_seconds=0.1))
        queue, states = guard.page._queue, guard.page.state_holder
        with serving(guard) as url:
            assert ask(url, None, "heard").status_code == 200
            assert "process_completed" in hear(url, "heard")
            assert ask(url, None, "unheard").status_code == 200
            guard.limits = demo_guard.Limits(sweep_seconds=0.1, unheard_seconds=0)
            assert waited_for(lambda: not guard.sessions)
        kept = (queue.pending_messages_per_session, queue.pending_event_ids_session, queue.event_ids_to_events)
        assert all(not of_pages for of_pages in (*kept, states.session_data, states.time_last_used))

    def test_a_page_that_has_gone_is_kept_while_its_question_is_answered(self):
        """Gradio writes into what it keeps of a page when the answer is there."""
        guard = app_of(demo_guard.Limits(sweep_seconds=0.01, unheard_seconds=0))
        events, sweeps = guard.page._queue.event_ids_to_events, Mock(wraps=guard.uploads.drop_old)
        guard.uploads.drop_old = sweeps
        events["answered"] = SimpleNamespace(session_hash="gone", data=SimpleNamespace(data=[None]))
        with serving(guard):
            guard.sessions["gone"] = demo_guard._Session("192.0.2.1")
            before = sweeps.call_count
            assert waited_for(lambda: sweeps.call_count > before + 3)
            assert "gone" in guard.sessions
            del events["answered"]
            assert waited_for(lambda: not guard.sessions)

    def test_nobody_listens_to_what_was_not_asked(self, url):
        answer = httpx.get(f"{url}/gradio_api/queue/data?session_hash=nobody")
        assert (answer.status_code, answer.text) == (404, "Nothing has been asked.")


class TestUploads:
    def test_a_video_is_given_back_whole_and_in_parts(self, url):
        content = bytes(range(256)) * 300
        (path,) = send(url, content).json()
        address = f"{url}/gradio_api/file={path}"
        whole = httpx.get(address)
        assert (whole.content, whole.headers["content-type"]) == (content, "video/mp4")
        assert httpx.head(address).headers["content-length"] == str(len(content))
        for asked, part in (
            ("bytes=5-9", content[5:10]),
            ("bytes=70000-", content[70000:]),
            ("bytes=0-999999", content),
        ):
            answer = httpx.get(address, headers={"range": asked})
            assert (answer.status_code, answer.content) == (206, part)
        assert httpx.get(address, headers={"range": "bytes=999999-"}).status_code == 416

    @pytest.mark.parametrize("name", ["page.html", "drawing.svg", "clip.js", "x"])
    def test_what_is_no_video_is_not_shown_by_a_browser(self, url, name):
        (path,) = send(url, b"<script>", name).json()
        headers = httpx.get(f"{url}/gradio_api/file={path}").headers
        assert (headers["content-type"], headers["content-disposition"]) == ("application/octet-stream", "attachment")
        assert (headers["x-content-type-options"], headers["content-security-policy"]) == ("nosniff", "sandbox")

    @pytest.mark.parametrize("name", ["../../a.mp4", "..\\a.mp4", "/etc/a.mp4", "C:\\x\\a.mp4", "a.mp4"])
    def test_a_name_has_no_folder(self, url, name):
        (path,) = send(url, b"x", name).json()
        assert re.fullmatch(r"uploads/[\w-]{20,}/a\.mp4", path)

    def test_nothing_lies_under_a_name(self, url, guard, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        (path,) = send(url, b"x" * 50_000).json()
        assert not list(tmp_path.iterdir())
        with guard.uploads.held(path) as file:
            assert len(file.read()) == 50_000

    def test_one_too_large_is_refused(self, url, guard):
        before = guard.uploads.num_bytes
        try:
            answer = send(url, b"x" * 200_000)
            assert (answer.status_code, answer.text) == (413, "A file has at most 0 MB: make it smaller, please.")
        except httpx.TransportError:
            pass  # the connection was closed before the answer was read
        assert guard.uploads.num_bytes <= before

    @pytest.mark.parametrize(
        ("headers", "content"),
        [
            ({}, b"x"),
            ({"content-type": "application/x-www-form-urlencoded"}, b"files=x"),
            ({"content-type": "multipart/form-data"}, b"x"),
            ({"content-type": "multipart/form-data; boundary=a"}, b"--a\r\n\r\nx"),
            (
                {"content-type": "multipart/form-data; boundary=a"},
                b'--a\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + b"x" * 5000 + b"\r\n--a--\r\n",
            ),
        ],
    )
    def test_what_is_no_upload_is_refused(self, url, headers, content):
        assert httpx.post(f"{url}/gradio_api/upload", content=content, headers=headers).status_code == 400

    def test_several_at_once_are_refused(self, url):
        files = [("files", (f"{number}.mp4", b"x")) for number in range(3)]
        assert httpx.post(f"{url}/gradio_api/upload", files=files).status_code == 400

    def test_of_an_upload_that_breaks_off_nothing_is_left(self, url, guard):
        before = len(guard.uploads)
        host, port = url.removeprefix("http://").split(":")
        head = b"POST /gradio_api/upload?upload_id=broken HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n"
        head += b"Content-Type: multipart/form-data; boundary=a\r\n\r\n"
        head += b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        with socket.create_connection((host, int(port)), timeout=600) as broken:
            broken.sendall(head + b"x" * 10_000)
            assert waited_for(lambda: len(guard.uploads) == before + 1)
        assert waited_for(lambda: len(guard.uploads) == before)

    def test_one_that_pauses_is_not_waited_for(self):
        with serving(app_of(demo_guard.Limits(silent_seconds=0.3))) as url:
            host, port = url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=600) as slow:
                slow.sendall(
                    b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n"
                    b"Content-Type: multipart/form-data; boundary=a\r\n\r\n--a"
                )
                assert slow.recv(1000).split()[1] == b"408"

    def test_the_page_is_told_how_much_has_come(self, url):
        assert send(url, b"x" * 1000, params={"upload_id": "u"}).status_code == 200
        told = httpx.get(f"{url}/gradio_api/upload_progress?upload_id=u", timeout=600).text
        assert told.endswith('data: {"msg": "done"}\n\n')


class TestConnections:
    def connect(self, url: str) -> socket.socket:
        host, port = url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=600)

    def is_closed(self, connection: socket.socket) -> bool:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True

    @pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX: ", b"GET /new HTTP/1.1\r\nHost: a\r\n\r\nGET"])
    def test_one_without_a_request_ends(self, url, monkeypatch, sent):
        monkeypatch.setattr(demo_guard.Connection, "request_seconds", 0.3)
        with self.connect(url) as idle:
            idle.sendall(sent)
            while not self.is_closed(idle):
                pass

    def test_of_too_many_the_oldest_ends_and_new_visitors_are_answered(self, url, monkeypatch):
        monkeypatch.setattr(demo_guard.Connection, "most", 8)
        monkeypatch.setattr(demo_guard.Connection, "request_seconds", 600)  # which is not what ends them
        idle = [self.connect(url) for _ in range(12)]
        assert all(self.is_closed(connection) for connection in idle[:4])
        assert httpx.get(f"{url}/theme.css", timeout=600).status_code == 200
        for connection in idle:
            connection.close()
