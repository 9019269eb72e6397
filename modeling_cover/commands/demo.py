# SPDX-License-Identifier: Apache-2.0
"""Serve a page to drop a video on. It shows what every head of a checkpoint predicts, and where the model looked.

    cover demo --model outputs/quickstart [--port 7860]

Needs `pip install modeling-cover[demo]`. It runs on a CPU, and takes files from strangers. The size, length and kind
of the files are limited. The page says what is wrong with a file, and shows nothing of the server.
`cover publish --space` makes a Space of it.
"""

import argparse
import base64
import errno
import io
import itertools
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

from ..evaluation.heat_maps import enlarged, overlay, shown_frames
from ..evaluation.relevance import label_relevance
from ..hub.run_record import stale_heads_note, stale_heads_of
from ..model.configuration_cover import PIPELINE_TASK
from ..model.image_reading_cover import read_image
from ..model.video_decoding_cover import VideoDecodingError, outline_of
from ..model.video_opening_cover import VideoSource, name_of, open_video, reading, time_limit
from ..text import printable
from .failing import command_parser, told


try:
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from .demo_guard import Connection, Guard, Limits
    from .demo_uploads import GoneError, Uploads
except ImportError as error:
    raise ImportError("gradio is not installed, it comes with `pip install modeling-cover[demo]`") from error


logger = logging.getLogger("demo")

# Of a visitor's file.
MAX_SECONDS = 600
MAX_FRAMES = 60_000  # ten minutes of 100 a second
MAX_PIXELS = 4 * 10**10  # of all frames together: ten minutes of 1920 x 1080
MAX_READING_SECONDS = 180.0  # a slow codec takes minutes for a fraction of these

MOST_WINDOWS, SHORTEST_WINDOW = 24, 2.0  # seconds; a longer video than two windows has a timeline
TOP_K = 5

STYLE = """
.cover h3 {margin: 0.8em 0 0.3em}
.cover .frames {display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 6px; max-width: 1100px}
.cover figure {margin: 0}
.cover figure img {width: 100%; border-radius: 3px; display: block}
.cover figcaption {font-size: 0.8em; opacity: 0.7}
#timeline .label {text-transform: none; font-size: 0.85rem}
#timeline .empty {min-height: 6rem}
.cover [role=alert] {border-left: 4px solid #b00020; padding: 0.6em 1em; background: rgba(176, 0, 32, 0.08)}
"""


@dataclass(frozen=True)
class Answer:
    """What the page says of a file, or has said so far.

    Attributes:
        alert: why there is no answer, as HTML.
        predictions: by head, the scores of the best classes.
        frames: those that the model looked at, as HTML.
        timeline: texts, and the class that each is coloured by; None for the name of a head.
        where: the frames with heat maps, as HTML.
    """

    alert: str = ""
    predictions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    frames: str = ""
    timeline: Sequence[tuple[str, str | None]] = ()
    where: str = ""

    def values(self, heads: Sequence[str]) -> list[Any]:
        """Those of the page's components, see [`build_page`]."""
        labels = [self.predictions.get(head) for head in heads]
        return [self.alert, *labels, self.frames, list(self.timeline) or None, self.where]


class RefusedError(ValueError):
    """A visitor's file or wish that the page does not take; the message is for the visitor."""


# ---- What is asked ----


def check_video(path: VideoSource) -> float:
    """The seconds of a video that is not too large for the page.

    Raises:
        VideoDecodingError: it cannot be read.
        RefusedError: it is too long, or has too many pixels.
    """
    with reading(path), open_video(path, num_threads=1) as (container, stream):
        outline = outline_of(path, container, stream, short_side=None)
        index, width, height = outline.index, outline.width, outline.height
        seconds = index.duration(0, index.num_frames) or 0.0
    if seconds > MAX_SECONDS:
        raise RefusedError(
            f"This video lasts {clock(seconds)}. The page takes up to {clock(MAX_SECONDS)}: cut it, please."
        )
    if index.num_frames > MAX_FRAMES or index.num_frames * width * height > MAX_PIXELS:
        raise RefusedError(
            f"This video has {index.num_frames} frames of {width} x {height} pixels, more than the page can look at: "
            "make it smaller or shorter, please."
        )
    return seconds


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def what_is_wrong(error: ValueError, file: VideoSource) -> str:
    """For a visitor, who knows the name of the file and not where it lies."""
    if isinstance(error, RefusedError):
        return str(error)
    return f"This file cannot be used. {str(error).replace(name_of(file), PurePath(name_of(file)).name)}"


def where_else(file: VideoSource, is_image: bool, until: float) -> str:
    """Of a file that cannot be used: where it could be."""
    try:
        with time_limit(until - time.monotonic()):
            if is_image:
                check_video(file)
            else:
                read_image(file)
    except ValueError:
        return ""
    return f". But it is a {'video' if is_image else 'picture'}: choose it under “{'Video' if is_image else 'Picture'}”, please."


class Demo:
    """What the page does with a checkpoint.

    Args:
        model: a folder or Hub id.
        device: where it runs.
        revision: of a Hub id: a branch, a tag or a commit.
    """

    def __init__(self, model: str, device: str = "cpu", revision: str | None = None):
        self.classify = pipeline(PIPELINE_TASK, model=model, device=device, revision=revision)
        self.model, self.processor = self.classify.model, self.classify.video_processor
        self.heads = self.model.config.head_names
        self.stale_heads = stale_heads_of(model, self.model.config, revision)

    def answer_video(self, file: VideoSource | None, heads: Sequence[str]) -> Iterator[Answer]:
        yield from self._answer(file, heads, is_image=False)

    def answer_image(self, file: VideoSource | None, heads: Sequence[str]) -> Iterator[Answer]:
        yield from self._answer(file, heads, is_image=True)

    def _answer(self, file: VideoSource | None, heads: Sequence[str], is_image: bool) -> Iterator[Answer]:
        """The answer, longer each time."""
        if file is None:
            yield alert("Choose a file first, please.")
            return
        until = time.monotonic() + MAX_READING_SECONDS
        try:
            if not heads:
                raise RefusedError("Choose at least one head, please.")
            if unknown := set(heads) - set(self.heads):
                raise RefusedError(f"There is no head {min(unknown)}: choose of {', '.join(self.heads)}, please.")
            yield from self._answers(file, list(dict.fromkeys(heads)), is_image, until)
        except VideoDecodingError as error:
            yield alert(what_is_wrong(error, file) + where_else(file, is_image, until))
        except ValueError as error:
            yield alert(what_is_wrong(error, file))
        except Exception:
            logger.exception("a visitor's file could not be answered")
            yield alert("Something went wrong on the server; it has been written down. Try another file, please.")

    def _answers(self, file: VideoSource, heads: list[str], is_image: bool, until: float) -> Iterator[Answer]:
        views = {"num_clips": 1, "num_spatial_crops": 1, "return_metadata": True, "return_tensors": "pt"}
        with time_limit(until - time.monotonic()):
            seconds = 0.0 if is_image else check_video(file)
            inputs = self.processor(read_image(file) if is_image else file, **views)
        clip = inputs["pixel_values"].to(self.model.device)
        (output,) = self.classify.forward([{"pixel_values": clip}])
        predictions = self.classify.postprocess(output, head=heads, top_k=TOP_K)
        times = None if is_image else inputs["video_metadata"][0].timestamps
        frames = shown_frames(self.processor, clip[0])
        answer = Answer(
            predictions={head: scores(entries) for head, entries in predictions.items()},
            frames=titled("What the model looked at", pictures(enlarged(frames), times)),
        )
        yield answer
        if seconds > 2 * SHORTEST_WINDOW:
            window = max(SHORTEST_WINDOW, seconds / MOST_WINDOWS)
            with time_limit(until - time.monotonic()):
                answer = replace(answer, timeline=timeline(self.classify(file, head=heads, window=window)))
            yield answer
        head = self.model.config.default_head if self.model.config.default_head in heads else heads[0]
        label = predictions[head][0]["label"]
        relevance = label_relevance(self.model, clip, head, label)
        where = titled(f"Where it looked for {head}: {label}", pictures(overlay(frames, relevance[0].cpu()), times))
        yield replace(answer, where=where)


# ---- How it is shown ----


def alert(message: str) -> Answer:
    text = escape(printable(" ".join(message.split())))
    return Answer(f'<div class="cover"><div role="alert">{text}</div></div>')


def titled(title: str, body: str) -> str:
    return f'<div class="cover"><h3>{escape(printable(title))}</h3>{body}</div>'


def scores(entries: list[dict[str, Any]]) -> dict[str, float]:
    return {printable(entry["label"]): entry["score"] for entry in entries}


def pictures(frames: np.ndarray, times: Sequence[float] | None) -> str:
    """Frames (T, H, W, 3) inside of the page, so that no file of them is on the server."""
    figures = []
    for index, frame in enumerate(frames):
        content = io.BytesIO()
        Image.fromarray(frame).save(content, "JPEG", quality=88)
        data = base64.b64encode(content.getvalue()).decode()
        caption = "" if times is None else f"<figcaption>{times[index]:.1f} s</figcaption>"
        figures.append(f'<figure><img alt="frame {index + 1}" src="data:image/jpeg;base64,{data}">{caption}</figure>')
    return f'<div class="frames">{"".join(figures)}</div>'


def timeline(predictions: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str | None]]:
    """See [`Answer`]; windows that follow one another with the same label are one text."""
    texts: list[tuple[str, str | None]] = []
    for head, entries in predictions.items():
        texts.append((f"{printable(head)}\n", None))
        for label, group in itertools.groupby(entries, key=lambda entry: entry["label"]):
            windows = list(group)
            mean = np.mean([window["score"] for window in windows])
            texts.append((f"{windows[0]['start']:.1f} to {windows[-1]['end']:.1f} s, {mean:.0%}", printable(label)))
        texts.append(("\n", None))
    return texts


def left_alone(component: gradio.components.Component) -> gradio.components.Component:
    """A component whose files stay where they are: Gradio would copy each, or fetch it."""

    async def stay(place: str) -> str:
        return place

    # A subclass would have Gradio write a stub beside this file.
    component.async_move_resource_to_block_cache = stay
    return component


def build_page(demo: Demo, title: str, uploads: Uploads) -> gradio.Blocks:
    def of_upload(answers: Callable[..., Iterator[Answer]]) -> Callable[..., Iterator[list]]:
        def answer_upload(upload: dict[str, Any] | None, heads: list[str]) -> Iterator[list]:
            held = nullcontext() if upload is None else uploads.held(upload["path"])
            try:
                with held as file:
                    for answer in answers(file, heads):
                        yield answer.values(demo.heads)
            except GoneError as error:
                yield alert(str(error)).values(demo.heads)

        return answer_upload

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(
            f"# {title}\nOne video transformer with a head for each dataset it was trained on. Drop a video, record one, or "
            f"drop a picture. Up to {uploads.room.file_bytes // 2**20} MB and {clock(MAX_SECONDS)}; files are deleted "
            f"{clock(uploads.room.kept_seconds)} after they were last used."
        )
        if demo.stale_heads:
            gradio.Markdown(f"Heads that were {stale_heads_note(demo.stale_heads)}.")
        heads = gradio.CheckboxGroup(demo.heads, value=demo.heads, label="Heads")
        with gradio.Tab("Video"):
            video = left_alone(gradio.Video(sources=["upload", "webcam"], label="Video", height=280))
            of_video = gradio.Button("What is it?", variant="primary", elem_id="ask-video")
        with gradio.Tab("Picture"):
            image = left_alone(gradio.File(label="Picture", height=120))
            of_image = gradio.Button("What is it?", variant="primary", elem_id="ask-picture")
        alert_of_file = gradio.HTML(elem_id="alert")
        with gradio.Row(elem_id="answer"):
            labels = [gradio.Label(label=head, num_top_classes=TOP_K, min_width=260) for head in demo.heads]
        frames = gradio.HTML(elem_id="frames")
        over_time = gradio.HighlightedText(label="Over time", elem_id="timeline")
        where = gradio.HTML(elem_id="where")
        parts = [alert_of_file, *labels, frames, over_time, where]
        # A model answers one after the other; who waits too long had better come again. Gradio's components do nothing
        # with a file: they have some converted by FFmpeg.
        options = {"concurrency_id": "model", "concurrency_limit": 1, "preprocess": False}
        of_video.click(of_upload(demo.answer_video), [video, heads], parts, api_name="video", **options)
        of_image.click(of_upload(demo.answer_image), [image, heads], parts, api_name="picture", **options)
    return page.queue(max_size=Limits.all_questions, api_open=False)


def build_app(page: gradio.Blocks, uploads: Uploads) -> Guard:
    app = FastAPI(openapi_url=None)
    look = {
        "footer_links": ["gradio"],
        "css": STYLE,
        "theme": gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    }
    options = {"show_error": False, "ssr_mode": False, "run_history": False, "mcp_server": False, "pwa": False}
    most = uploads.room.file_bytes  # which the page looks at before it sends
    return Guard(page, gradio.mount_gradio_app(app, page, "/", max_file_size=most, **look, **options), uploads)


def listen(host: str, port: int | None) -> socket.socket:
    """At a port, or at the first that is free from 7860 on.

    Raises:
        OSError: it is not free, or none is.
    """
    for number in [port] if port is not None else range(7860, 7960):
        try:
            return socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            if port is not None or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "the ports 7860 to 7959 are taken: name one with --port")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--revision", help="a branch, tag or commit of the model on the Hub")
    parser.add_argument("--title", default="CoVeR: what is going on here?")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; default: this machine only")
    parser.add_argument("--port", type=int, default=None, help="the port; default: the first free one from 7860 on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


@told
def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    uploads = Uploads()
    page = build_page(Demo(options.model, options.device, options.revision), options.title, uploads)
    server = uvicorn.Server(
        uvicorn.Config(build_app(page, uploads), http=Connection, ws="none", lifespan="on", log_level="warning")
    )
    with listen(options.host, options.port) as place:
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"* Running on local URL:  http://{host}:{place.getsockname()[1]}", flush=True)
        server.run([place])


if __name__ == "__main__":
    sys.exit(main())
