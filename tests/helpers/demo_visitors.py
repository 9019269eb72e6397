# SPDX-License-Identifier: Apache-2.0
"""Fifty visitors of the demo at once, ten of them hostile: what the honest ones are answered, and what the server
takes.

    python tests/helpers/demo_visitors.py [--honest 40] [--megabytes 300]

Serves the page of demo.py with a small model in a process of its own. Hostile visitors go on until the honest ones are
answered. Takes some minutes on 2 cores; `test_demo.py` has a small sample of it.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import queue
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import modeling_cover as modeling_cover
import numpy as np
import psutil
import torch
from checkpoints import QUICKSTART_LABELS, save_quickstart
from huggingface_hub.utils import httpx
from PIL import Image
from transformers import pipeline


ROOT = Path(__file__).parents[2]
HEADS = sorted(QUICKSTART_LABELS)
KEPT_SECONDS = 20
Clip = tuple[bytes, str, list[tuple[str, float]]]  # the content, the name, and the scores of all heads' labels
_SERVE = """
import sys
from functools import partial

sys.path.insert(0, {examples!r})
from modeling_cover.commands import demo
from modeling_cover.commands.demo_uploads import Room, Uploads

demo.Uploads = partial(Uploads, Room(kept_seconds={kept_seconds}))
demo.main({arguments!r})
"""


class Visitor:
    """Who asks from an address of their own, as a proxy tells it."""

    def __init__(self, url: str, address: str):
        self.client = httpx.Client(base_url=url, headers={"x-forwarded-for": address}, timeout=600)
        self.session = address.replace(".", "-")

    def send(self, content: bytes, name: str) -> httpx.Response:
        return self.client.post("/gradio_api/upload", files={"files": (name, content)})

    def ask(self, path: str | None, function: int = 0) -> httpx.Response:
        file = None if path is None else {"path": path, "meta": {"_type": "gradio.FileData"}}
        question = {"data": [file, HEADS], "fn_index": function, "session_hash": self.session}
        return self.client.post("/gradio_api/queue/join", json=question)

    def hear(self) -> str | None:
        """The first answer, as JSON: scores and frames, or what is wrong. None if nobody has listened in time."""
        with self.client.stream("GET", f"/gradio_api/queue/data?session_hash={self.session}") as events:
            if events.status_code == 404:
                return None
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line else {}
                is_answer = event.get("msg") in ("process_generating", "process_completed")
                if is_answer and any(data := event["output"].get("data") or []):
                    return json.dumps(data)
        return "[]"

    def answer(self, content: bytes, name: str, function: int = 0) -> str:
        """Asked again until there is room, as a patient visitor would."""
        self.client.get("/")
        while True:
            sent = self.send(content, name)
            is_asked = sent.status_code == 200 and self.ask(sent.json()[0], function).status_code == 200
            if is_asked and (heard := self.hear()) is not None:
                return heard
            time.sleep(1)


# ---- Hostile visitors ----


def manifest(path: str) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
        f'mimeType="video/mp4"><Representation id="0"><BaseURL>{path}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    ).encode()


def slow_bmp(side: int) -> bytes:
    """Runs of one pixel, each of which PIL reads by itself."""
    runs = (b"\1\5" * side + b"\0\0") * side
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + header + bytes(1024) + runs


def giant_png() -> bytes:
    file = io.BytesIO()
    Image.new("1", (15_000, 15_000)).save(file, "PNG")
    return file.getvalue()


class Crowd:
    """Hostile visitors, each of a kind.

    Args:
        url: of the page.
        secret: a video of the server's.
        megabytes: that the large ones send at once.
    """

    def __init__(self, url: str, secret: Path, megabytes: int):
        self.url, self.secret, self.megabytes = url, secret, megabytes
        host, port = url.removeprefix("http://").split(":")
        self.place = (host, int(port))
        self.told: list[str] = []  # what they got to see

    def kinds(self) -> list[Callable[[Visitor], None]]:
        return [
            self.huge_questions,
            self.huge_uploads,
            self.many_uploads,
            self.many_files,
            self.manifests,
            self.bombs,
            self.silent_connections,
            self.slow_uploads,
            self.unheard_questions,
            self.other_routes,
        ]

    def pieces(self) -> Iterator[bytes]:
        return itertools.repeat(b" " * 2**16, self.megabytes * 16)

    def huge_questions(self, visitor: Visitor) -> None:
        visitor.client.post("/gradio_api/queue/join", content=self.pieces())

    def huge_uploads(self, visitor: Visitor) -> None:
        head = b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        headers = {"content-type": "multipart/form-data; boundary=a"}
        visitor.client.post("/gradio_api/upload", content=itertools.chain([head], self.pieces()), headers=headers)

    def many_uploads(self, visitor: Visitor) -> None:
        for _ in range(20):
            visitor.send(bytes(self.megabytes * 2**16), "a.mp4")

    def many_files(self, visitor: Visitor) -> None:
        visitor.client.post("/gradio_api/upload", files=[("files", (f"{number}.mp4", b"x")) for number in range(900)])

    def manifests(self, visitor: Visitor) -> None:
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{self.secret}\n#EXT-X-ENDLIST\n".encode()
        for content in (manifest(str(self.secret)), playlist):
            self.told.append(visitor.answer(content, "a.mp4"))
            answer = visitor.client.post("/gradio_api/process_recording", files={"video": ("a.mp4", content)})
            self.told.append(answer.text)

    def bombs(self, visitor: Visitor) -> None:
        self.told.append(visitor.answer(giant_png(), "giant.png", 1))
        visitor.answer(slow_bmp(self.megabytes * 4), "slow.bmp", 1)  # which takes its time and is answered

    def silent_connections(self, visitor: Visitor) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                # From an address of their own: if there are too many, those of the address that has most are ended.
                connection = socket.create_connection(self.place, timeout=600, source_address=("127.0.0.2", 0))
                stack.enter_context(connection)
                connection.sendall(b"GET / HTTP/1.1\r\nX: ")
            time.sleep(2)

    def slow_uploads(self, visitor: Visitor) -> None:
        head = b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        headers = {"content-type": "multipart/form-data; boundary=a"}

        def drops() -> Iterator[bytes]:
            yield head
            for _ in range(10):
                time.sleep(0.2)
                yield b"x"

        visitor.client.post("/gradio_api/upload", content=drops(), headers=headers)

    def unheard_questions(self, visitor: Visitor) -> None:
        own = visitor.session
        for number in range(20):
            visitor.session = f"{own}-{time.monotonic_ns()}-{number}"
            visitor.ask(None)

    def other_routes(self, visitor: Visitor) -> None:
        for path in (
            "/gradio_api/file=" + str(self.secret),
            "/gradio_api/proxy=http://example.org/",
            "/monitoring",
            "/gradio_api/vibe-code",
        ):
            answer = visitor.client.get(path)
            self.told.append(answer.text)
            assert answer.status_code == 404, path

    def harass(self, number: int, kind: Callable[[Visitor], None], is_over: threading.Event) -> int:
        """How often it was done until it is over."""
        visitor, done = Visitor(self.url, f"203.0.113.{number + 1}"), 0
        while not is_over.is_set():
            # Connections are closed on them, which is what they are worth.
            with contextlib.suppress(httpx.TransportError, OSError):
                kind(visitor)
                done += 1
        return done


def visit(url: str, secret: Path, expected: list[Clip], num_honest: int, megabytes: int) -> dict[str, int]:
    """Honest visitors, each of whom must be told what is expected, among ten hostile ones.

    Args:
        url: of the page.
        secret: a video of the server's that nobody may see.
        expected: clips, and the right answer to each.
        num_honest: visitors.
        megabytes: see [`Crowd`].

    Returns:
        How often each kind of hostility was done.
    """
    crowd, is_over = Crowd(url, secret, megabytes), threading.Event()
    with ThreadPoolExecutor(num_honest + 10) as pool:
        hostile = {
            kind.__name__: pool.submit(crowd.harass, number, kind, is_over)
            for number, kind in enumerate(crowd.kinds())
        }

        def honest(number: int) -> None:
            content, name, scores = expected[number % len(expected)]
            answer = Visitor(url, f"192.0.2.{number + 1}").answer(content, name)
            entries = [entry for part in json.loads(answer) if isinstance(part, dict) for entry in part["confidences"]]
            assert [entry["label"] for entry in entries] == [label for label, _ in scores], answer[:500]
            np.testing.assert_allclose(
                [entry["confidence"] for entry in entries], [score for _, score in scores], 1e-4
            )

        try:
            for answered in [pool.submit(honest, number) for number in range(num_honest)]:
                answered.result()
        finally:
            is_over.set()
        done = {name: future.result() for name, future in hostile.items()}
    for told in crowd.told:  # neither an answer about the server's video nor the video
        assert '"confidences"' not in told, told[:500]
        assert "ftyp" not in told, told[:500]
    return done


def write_clip(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        colours = rng.integers(0, 256, (2, 3))
        for index in range(30):
            frame = np.empty((48, 64, 3), dtype=np.uint8)
            frame[:], frame[:, : 2 * index] = colours
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def expected_answers(model: Path, folder: Path, number: int) -> list[Clip]:
    """Some clips, and what the pipeline answers."""
    classify = pipeline("cover-video-classification", model=str(model), device="cpu")
    expected = []
    for seed in range(number):
        clip = write_clip(folder / f"clip{seed}.mp4", seed)
        entries = itertools.chain.from_iterable(classify(str(clip), head="all").values())
        scores = [(entry["label"], entry["score"]) for entry in entries]
        expected.append((clip.read_bytes(), clip.name, scores))
    return expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--honest", type=int, default=40)
    parser.add_argument("--megabytes", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        save_quickstart(folder / "model")
        expected = expected_answers(folder / "model", folder, 4)
        temporary = folder / "temporary"
        temporary.mkdir()
        script = _SERVE.format(
            examples=str(ROOT / "examples"),
            kept_seconds=KEPT_SECONDS,
            arguments=["--model", str(folder / "model"), "--device", "cpu"],
        )
        environment = {**os.environ, "TMPDIR": str(temporary), "GRADIO_TEMP_DIR": str(temporary / "gradio")}
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
        try:
            url = next(line.split()[-1] for line in process.stdout if "Running on local URL" in line)
            threading.Thread(target=process.stdout.read, daemon=True).start()
            server, peak, is_over = psutil.Process(process.pid), queue.Queue(), threading.Event()
            Visitor(url, "192.0.2.250").answer(*expected[0][:2])
            before = server.memory_info().rss

            def watch() -> None:
                most_memory = most_files = 0
                while not is_over.wait(0.05):
                    most_memory = max(most_memory, server.memory_info().rss)
                    most_files = max(most_files, server.num_fds())
                peak.put((most_memory, most_files))

            threading.Thread(target=watch).start()
            started = time.perf_counter()
            try:
                done = visit(url, folder / "clip0.mp4", expected, arguments.honest, arguments.megabytes)
            finally:
                is_over.set()
            seconds = time.perf_counter() - started
            most_memory, most_files = peak.get()
            print(
                f"{arguments.honest} honest visitors were answered right in {seconds:.0f} s, among ten hostile ones:"
            )
            print(", ".join(f"{name.replace('_', ' ')} {times}" for name, times in done.items()))
            print(
                f"the server's memory: {before / 2**20:.0f} MB before, at most {most_memory / 2**20:.0f}; {most_files} open files"
            )
            time.sleep(KEPT_SECONDS + 10)
            left = [path for path in temporary.rglob("*") if path.is_file()]
            held = [
                link for link in Path(f"/proc/{process.pid}/fd").iterdir() if re.search("deleted", os.readlink(link))
            ]
            print(f"{len(left)} files left under a name, {len(held)} without, {KEPT_SECONDS + 10} s later")
            print(f"{server.memory_info().rss / 2**20:.0f} MB and {server.num_fds()} open files then")
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
