# SPDX-License-Identifier: Apache-2.0
"""The layer between the page of `cover demo` and strangers.

Gradio has about eighty routes, and its own way of handling uploads. It writes any number of them, of any total size,
under a name that all visitors share, and runs FFmpeg on some. Here, only the routes that the page asks for are
answered. A question is rebuilt from its known parts. Uploads lie in files without names (`demo_uploads.py`).

A visitor is an address. Behind a proxy, set uvicorn's FORWARDED_ALLOW_IPS to the proxy's address. The proxy then tells
the addresses of its visitors.
"""

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio
from fastapi import FastAPI
from starlette.concurrency import iterate_in_threadpool
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..model.video_opening_cover import MACHINE_ERRORS
from .demo_uploads import TooMuchError, Uploads


logger = logging.getLogger("demo")

_API = "/gradio_api"
# What Gradio answers itself: the page, its parts, a question, and what comes of it. Its clients ask for the two in the
# third line.
PAGE_ROUTES = re.compile(
    rf"GET (?:/|/theme\.css|/favicon\.ico|/(?:assets|static)/[\w./-]+|{_API}/queue/data)|HEAD /|POST {_API}/queue/join"
    rf"|GET (?:/config|{_API}/info)"
)
UPLOAD_ROUTES = re.compile(
    rf"POST {_API}/upload|GET {_API}/upload_progress|(?:GET|HEAD) {_API}/file=[^/]+/[^/]+/[^/]+"
)
_SESSION = re.compile(r"[\w-]{1,64}")

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of what strangers do at once; those of files are in `demo_uploads.py`."""

    message_bytes: int = 2**17  # of a question
    message_seconds: float = 20
    upload_seconds: float = 600
    silent_seconds: float = 30  # between two pieces of an upload
    response_seconds: float = 600  # until a part of the page is taken
    waiting_seconds: float = 3600  # until a question is answered
    uploads: int = 3  # at once, of a visitor
    streams: int = 8
    questions: int = 3
    all_questions: int = 80
    unheard_seconds: float = 30  # until a question is dropped whose answer nobody listens for
    sweep_seconds: float = 5


class RefusedRequest(Exception):
    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass
class _Session:
    visitor: str
    listeners: int = 0
    heard: float = field(default_factory=time.monotonic)


class Guard:
    """The app that answers instead of Gradio's, or asks it.

    Args:
        page: which is mounted in `app`.
        app: Gradio's.
        uploads: where visitors' files are.
        limits: of what they do at once.
    """

    def __init__(self, page: gradio.Blocks, app: FastAPI, uploads: Uploads, limits: Limits | None = None):
        self.page, self.app, self.uploads, self.limits = page, app, uploads, limits or Limits()
        self.sessions: dict[str, _Session] = {}
        self._at_once: Counter[tuple[str, str]] = Counter()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            sweeper = asyncio.create_task(self._sweep())
            try:
                await self.app(scope, receive, send)
            finally:
                sweeper.cancel()
                self.uploads.close()
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        has_started = False

        async def noting(message: dict[str, Any]) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._answer(scope, receive, noting)
            return
        except RefusedRequest as error:
            response = _refusal(error.status, str(error))
        except (TimeoutError, ClientDisconnect):
            response = _refusal(408, "This takes too long.")
        if not has_started:
            await response(scope, receive, send)

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        visitor = (scope["client"] or ("",))[0]
        asked = f"{scope['method']} {scope['path']}"
        if UPLOAD_ROUTES.fullmatch(asked):
            await self._answer_upload(Request(scope, receive, send), visitor, receive, send)
            return
        if not PAGE_ROUTES.fullmatch(asked) or ".." in scope["path"]:
            raise RefusedRequest(404, "There is nothing here.")
        if asked.endswith("/queue/join"):
            body = await self._message(receive)
            question = self._question(body, visitor)
            await self.app(*_with_body(scope, json.dumps(question).encode(), receive), send)
        elif asked.endswith("/queue/data"):
            session = Request(scope).query_params.get("session_hash", "")
            with self._counted("streams", visitor), self._listening(session):
                async with asyncio.timeout(self.limits.waiting_seconds):
                    await self.app(scope, receive, send)
        else:
            # What Gradio does with a query: it shows the state that a link names, say.
            async with asyncio.timeout(self.limits.response_seconds):
                await self.app({**scope, "query_string": b""}, receive, send)

    # ---- Questions ----

    async def _message(self, receive: Receive) -> bytes:
        body = b""
        async with asyncio.timeout(self.limits.message_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > self.limits.message_bytes:
                    raise RefusedRequest(413, f"A question has at most {self.limits.message_bytes} bytes.")
                if not message.get("more_body", False):
                    return body

    def _question(self, body: bytes, visitor: str) -> dict[str, Any]:
        """What Gradio is asked: of all that a message may hold, a function, an upload, heads, and who listens."""
        try:
            message = json.loads(body)
            (upload, heads), session, function = message["data"], message["session_hash"], message["fn_index"]
            path = None if upload is None else upload["path"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise RefusedRequest(400, "This is no question of the page's.") from None
        is_known = (
            isinstance(session, str)
            and _SESSION.fullmatch(session)
            and type(function) is int
            and function in self.page.fns
            and (path is None or isinstance(path, str))
            and isinstance(heads, list)
            and all(isinstance(head, str) for head in heads)
        )
        if not is_known:
            raise RefusedRequest(400, "This is no question of the page's.")
        waiting = self.page._queue.event_ids_to_events.values()
        own = sum(self._is_of(event.session_hash, visitor) for event in list(waiting))
        if own >= self.limits.questions:
            raise RefusedRequest(429, f"You have asked {own} questions: wait for their answers, please.")
        if self.sessions.setdefault(session, _Session(visitor)).visitor != visitor:
            raise RefusedRequest(400, "This is another visitor's page.")
        self.sessions[session].heard = time.monotonic()
        file = None if path is None else {"path": path, "meta": {"_type": "gradio.FileData"}}
        return {"data": [file, heads], "session_hash": session, "fn_index": function}

    def _is_of(self, session: str, visitor: str) -> bool:
        return session in self.sessions and self.sessions[session].visitor == visitor

    @contextmanager
    def _listening(self, name: str) -> Iterator[None]:
        session = self.sessions.get(name)
        if session is None:
            raise RefusedRequest(404, "Nothing has been asked.")
        session.listeners += 1
        try:
            yield
        finally:
            session.listeners -= 1
            session.heard = time.monotonic()

    @contextmanager
    def _counted(self, kind: str, visitor: str) -> Iterator[None]:
        key = (kind, visitor)
        if self._at_once[key] >= getattr(self.limits, kind):
            raise RefusedRequest(429, f"You have {self._at_once[key]} {kind} already: wait for their end, please.")
        self._at_once[key] += 1
        try:
            yield
        finally:
            self._at_once[key] -= 1
            if not self._at_once[key]:
                del self._at_once[key]

    async def _sweep(self) -> None:
        """Drops, now and then, the files that nobody has used for long, and what Gradio keeps for who has gone.

        It keeps answers of 2000 pages, ten thousand pages' states, and a set of each for ever.
        """
        while True:
            await asyncio.sleep(self.limits.sweep_seconds)
            for event in list(self.page._queue.event_ids_to_events.values()):
                if (file := event.data.data[0]) is not None:
                    self.uploads.touch(file["path"])
            self.uploads.drop_old()
            late = time.monotonic() - self.limits.unheard_seconds
            for name in [name for name, of in self.sessions.items() if not of.listeners and of.heard < late]:
                queue, states = self.page._queue, self.page.state_holder
                await queue.clean_events(session_hash=name)
                # While its question is being answered Gradio would keep more of it; or somebody listens by now.
                is_answered = any(event.session_hash == name for event in queue.event_ids_to_events.values())
                if is_answered or self.sessions[name].listeners:
                    continue
                queue.pending_messages_per_session.pop(name, None)
                queue.pending_event_ids_session.pop(name, None)
                states.session_data.pop(name, None)
                states.time_last_used.pop(name, None)
                del self.sessions[name]

    # ---- Uploads ----

    async def _answer_upload(self, request: Request, visitor: str, receive: Receive, send: Send) -> None:
        if request.method == "POST":
            with self._counted("uploads", visitor):
                response: Response = JSONResponse([await self._take(request, visitor)])
        elif "/file=" in request.scope["path"]:
            response = self._give_back(request)
        else:
            with self._counted("streams", visitor):
                progress = self._progress(request.query_params.get("upload_id", ""))
                response = StreamingResponse(progress, media_type="text/event-stream")
                async with asyncio.timeout(self.limits.upload_seconds):
                    await response(request.scope, receive, send)
            return
        async with asyncio.timeout(self.limits.response_seconds):
            await response(request.scope, receive, send)

    async def _take(self, request: Request, visitor: str) -> str:
        """The path of the file that a visitor sends, which only this server understands."""
        with self.uploads.arriving(visitor, request.query_params.get("upload_id", "")) as arriving:

            async def counting() -> dict[str, Any]:
                async with asyncio.timeout(self.limits.silent_seconds):
                    message = await request.receive()
                arriving.grow(len(message.get("body", b"")))
                return message

            try:
                stream = Request(request.scope, counting).stream()
                parser = MultiPartParser(request.headers, stream, max_files=1, max_fields=1, max_part_size=2**10)
                async with asyncio.timeout(self.limits.upload_seconds):
                    form = await parser.parse()
                found = form.getlist("files")
                if len(found) != 1 or isinstance(found[0], str):
                    await form.close()
                    raise RefusedRequest(400, "Send one file, please.")
                return arriving.keep(found[0].file, found[0].filename or "file")
            except TooMuchError as error:
                raise RefusedRequest(413, str(error)) from None
            except OSError as error:
                if error.errno not in MACHINE_ERRORS:
                    raise
                logger.exception("a visitor's file could not be written")
                raise RefusedRequest(507, "There is no room for files now: come again later, please.") from None
            except (MultiPartException, KeyError):  # KeyError: it has no content type
                raise RefusedRequest(400, "This is no upload of the page's.") from None

    async def _progress(self, upload_id: str) -> AsyncIterator[str]:
        """What Gradio's page shows while it sends a file."""
        deadline, seen = time.monotonic() + 3, 0
        while (upload := self.uploads.on_its_way(upload_id)) is not None or (not seen and time.monotonic() < deadline):
            if upload is not None and upload.size > seen:
                event = {"msg": "update", "orig_name": upload.name, "chunk_size": upload.size - seen}
                yield f"data: {json.dumps(event)}\n\n"
                seen = upload.size
            await asyncio.sleep(0.2)
        yield f"data: {json.dumps({'msg': 'done'})}\n\n"

    def _give_back(self, request: Request) -> Response:
        """A visitor's own video, or a part of it, to play it."""
        path = request.scope["path"].partition("/file=")[2]
        size = self.uploads.size(path)
        if size is None:
            raise RefusedRequest(404, "There is nothing here.")
        first, last = 0, size - 1
        wanted = re.fullmatch(r"bytes=(\d{1,15})-(\d{0,15})", request.headers.get("range", ""))
        if wanted is not None:
            first, last = int(wanted[1]), min(last, int(wanted[2] or last))
            if first > last:
                return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
        headers = {
            "accept-ranges": "bytes",
            "cache-control": "private, no-store",
            "content-length": str(last + 1 - first),
            "content-security-policy": "sandbox",
            "x-content-type-options": "nosniff",
        }
        if wanted is not None:
            headers["content-range"] = f"bytes {first}-{last}/{size}"
        kind = self.uploads.media_type(path)
        if kind is None:
            headers["content-disposition"] = "attachment"
        status = 200 if wanted is None else 206
        media_type = kind or "application/octet-stream"
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type=media_type)
        pieces = iterate_in_threadpool(self.uploads.pieces(path, first, last + 1))
        return StreamingResponse(pieces, status, headers, media_type)


def _refusal(status: int, reason: str) -> Response:
    """In words, for Gradio's page as JSON. The rest of what is being sent is not waited for."""
    headers = {"connection": "close"}
    if status in (400, 429):
        return JSONResponse({"detail": reason}, status, headers)
    return PlainTextResponse(reason, status, headers)


def _with_body(scope: dict[str, Any], body: bytes, receive: Receive) -> tuple[dict[str, Any], Receive]:
    """A request of this JSON instead of its own."""
    replaced = {b"content-length", b"content-type", b"transfer-encoding", b"content-encoding"}
    headers = [(name, value) for name, value in scope["headers"] if name not in replaced]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    is_sent = False

    async def receive_body() -> dict[str, Any]:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return {**scope, "headers": headers, "query_string": b""}, receive_body


class Connection(H11Protocol):
    """A connection that ends when no request comes in time; of too many, the oldest of who has the most.

    uvicorn waits for ever for a request that has not come, or not wholly, as many connections as there are file
    descriptors.
    """

    most, request_seconds = 512, 15

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.since = time.monotonic()
        self._idle_after: Any = self  # which is no request
        self._watch()
        # Of several that come at once, each ends another: one that is ended stays in `connections` for a while.
        connections = [other for other in self.connections if not other.transport.is_closing()]
        if len(connections) > self.most:
            addresses = Counter(other.client and other.client[0] for other in connections)
            ((most, _),) = addresses.most_common(1)
            of_one = [other for other in connections if (other.client and other.client[0]) == most]
            min(of_one, key=lambda other: other.since).transport.abort()

    def _watch(self) -> None:
        if self.transport.is_closing():
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._idle_after is self.cycle:
            self.transport.abort()
            return
        self._idle_after = self.cycle if is_idle else self
        self.loop.call_later(self.request_seconds, self._watch)
