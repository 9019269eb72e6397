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
"""A page to drop a video on, and see what every head of a checkpoint makes of it, and where it looked.

    python examples/demo.py --model outputs/quickstart [--port 7860]

Needs `pip install modeling-cover[demo]`. It runs on a CPU, and takes files from strangers: their size, length and kind are limited,
what is wrong with one is said on the page, and nothing of the server is shown. `examples/publish.py --space` makes a Space of it.
"""

import argparse
import base64
import io
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import modeling_cover as modeling_cover
import numpy as np
import torch
from modeling_cover.configuration_cover import PIPELINE_TASK
from modeling_cover.image_reading_cover import read_image
from modeling_cover.pictures import enlarged, overlay, shown_frames
from modeling_cover.rollout import attention_rollout
from modeling_cover.text import printable
from modeling_cover.video_decoding_cover import VideoDecodingError
from modeling_cover.video_index_cover import scan_packets
from modeling_cover.video_opening_cover import open_video, reading, time_limit
from PIL import Image
from transformers import pipeline


try:
    import gradio
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
except ImportError as error:
    raise ImportError("gradio is not installed, it comes with `pip install modeling-cover[demo]`") from error


logger = logging.getLogger("demo")

# Of a visitor's file.
MAX_BYTES = 200 * 2**20
MAX_SECONDS = 600
MAX_FRAMES = 60_000  # ten minutes of 100 a second
MAX_PIXELS = 4 * 10**10  # of all frames together: ten minutes of 1920 x 1080
MAX_READING_SECONDS = 180.0  # a slow codec takes minutes for a fraction of these

MOST_WINDOWS, SHORTEST_WINDOW = 24, 2.0  # seconds; a longer video than two windows has a timeline
TOP_K = 5

STYLE = """
.cover h3 {margin: 0.8em 0 0.3em}
.cover .row {display: grid; grid-template-columns: minmax(6em, 38%) 1fr 3.6em; gap: 0.5em; align-items: center; margin: 0.2em 0}
.cover .label {overflow-wrap: anywhere}
.cover .score {text-align: right; font-variant-numeric: tabular-nums}
.cover .track {background: rgba(128, 128, 128, 0.18); border-radius: 3px}
.cover .bar {background: #3b6ea5; border-radius: 3px; height: 1.1em; min-width: 2px}
.cover .frames {display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 6px; max-width: 1100px}
.cover figure {margin: 0}
.cover figure img {width: 100%; border-radius: 3px; display: block}
.cover figcaption {font-size: 0.8em; opacity: 0.7}
.cover .strip {display: flex; height: 1.1em; border-radius: 3px; overflow: hidden; margin: 0.4em 0}
.cover table {border-collapse: collapse; width: 100%; max-width: 40em; table-layout: fixed}
.cover table, .cover tr, .cover td {border: none !important}
.cover td {padding: 0.15em 0.8em 0.15em 0; overflow-wrap: anywhere}
.cover td:first-child {width: 8.5em}
.cover td:last-child {width: 3.5em}
.cover .swatch {display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin-right: 0.4em}
.cover [role=alert] {border-left: 4px solid #b00020; padding: 0.6em 1em; background: rgba(176, 0, 32, 0.08)}
"""
# Told apart by people who do not see all colours (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#777777")


class RefusedError(ValueError):
    """A visitor's file or wish that the page does not take; the message is for the visitor."""


# ---- What is asked ----


def check_video(path: Path) -> float:
    """The seconds of a video that is not too large for the page.

    Raises:
        VideoDecodingError: it cannot be read.
        RefusedError: it is too long, or has too many pixels.
    """
    with reading(path), open_video(path, num_threads=1) as (container, stream):
        index = scan_packets(container, stream)
        width, height = stream.codec_context.width, stream.codec_context.height
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


def what_is_wrong(error: ValueError, path: Path) -> str:
    """For a visitor, who knows the name of the file and not where the server has put it."""
    if isinstance(error, RefusedError):
        return str(error)
    return f"This file cannot be used. {str(error).replace(str(path), path.name)}"


def where_else(path: Path, is_image: bool) -> str:
    """Of a file that cannot be used: where it could be."""
    try:
        if is_image:
            check_video(path)
        else:
            read_image(path)
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

    def answer_video(self, path: str | None, heads: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        yield from self._answer(path, heads, is_image=False)

    def answer_image(self, path: str | None, heads: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        yield from self._answer(path, heads, is_image=True)

    def _answer(self, path: str | None, heads: Sequence[str], is_image: bool) -> Iterator[tuple[str, str, str]]:
        """The three parts of the page as HTML, as they come: the answer, the timeline, and where the model looked."""
        if path is None:
            yield alert("Choose a file first, please."), "", ""
            return
        file = Path(path)  # not a string, which might be a URL
        try:
            if not heads:
                raise RefusedError("Choose at least one head, please.")
            yield from self._parts(file, list(dict.fromkeys(heads)), is_image)
        except VideoDecodingError as error:
            yield alert(what_is_wrong(error, file) + where_else(file, is_image)), "", ""
        except ValueError as error:
            yield alert(what_is_wrong(error, file)), "", ""
        except Exception:
            logger.exception("a visitor's file could not be answered")
            yield (
                alert("Something went wrong on the server; it has been written down. Try another file, please."),
                "",
                "",
            )

    def _parts(self, file: Path, heads: list[str], is_image: bool) -> Iterator[tuple[str, str, str]]:
        if file.stat().st_size > MAX_BYTES:
            raise RefusedError(f"This file has more than {MAX_BYTES // 2**20} MB: make it smaller, please.")
        until = time.monotonic() + MAX_READING_SECONDS
        views = {"num_clips": 1, "num_spatial_crops": 1, "return_metadata": True, "return_tensors": "pt"}
        with time_limit(until - time.monotonic()):
            seconds = 0.0 if is_image else check_video(file)
            inputs = self.processor(read_image(file) if is_image else file, **views)
        clip = inputs["pixel_values"].to(self.model.device)
        (output,) = self.classify.forward([{"pixel_values": clip}])
        predictions = self.classify.postprocess(output, head=heads, top_k=TOP_K)
        times = None if is_image else inputs["video_metadata"][0].timestamps
        frames = shown_frames(self.processor, clip[0])
        answer = bars(predictions) + titled("What the model looked at", pictures(enlarged(frames), times))
        yield answer, "", ""
        timeline = ""
        if seconds > 2 * SHORTEST_WINDOW:
            window = max(SHORTEST_WINDOW, seconds / MOST_WINDOWS)
            with time_limit(until - time.monotonic()):
                timeline = timelines(self.classify(file, head=heads, window=window), seconds)
            yield answer, timeline, ""
        head = self.model.config.default_head if self.model.config.default_head in heads else heads[0]
        label = predictions[head][0]["label"]
        relevance = attention_rollout(self.model, clip, head, label)
        where = titled(f"Where it looked for {head}: {label}", pictures(overlay(frames, relevance[0].cpu()), times))
        yield answer, timeline, where


# ---- How it is shown ----


def shown(text: str) -> str:
    """As it is on the page, whatever is in it."""
    return escape(printable(text))


def alert(message: str) -> str:
    return f'<div class="cover"><div role="alert">{shown(" ".join(message.split()))}</div></div>'


def titled(title: str, body: str) -> str:
    return f'<div class="cover"><h3>{shown(title)}</h3>{body}</div>'


def bars(predictions: dict[str, list[dict[str, Any]]]) -> str:
    def row(entry: dict[str, Any]) -> str:
        share = f"{entry['score']:.1%}"
        return (
            f'<div class="row"><span class="label">{shown(entry["label"])}</span>'
            f'<div class="track"><div class="bar" style="width: {share}"></div></div>'
            f'<span class="score">{share}</span></div>'
        )

    return "".join(titled(head, "".join(map(row, entries))) for head, entries in predictions.items())


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


def timelines(predictions: dict[str, list[dict[str, Any]]], seconds: float) -> str:
    """Of each head a strip of colours, and windows that follow one another with the same label as one line."""
    return "".join(titled(f"{head}, over time", timeline(entries, seconds)) for head, entries in predictions.items())


def timeline(entries: list[dict[str, Any]], seconds: float) -> str:
    labels = list(dict.fromkeys(entry["label"] for entry in entries))
    colours = {label: COLOURS[min(index, len(COLOURS) - 1)] for index, label in enumerate(labels)}
    spans: list[dict[str, Any]] = []
    for entry in entries:
        if spans and spans[-1]["label"] == entry["label"]:
            spans[-1] |= {"end": entry["end"], "scores": [*spans[-1]["scores"], entry["score"]]}
        else:
            spans.append({**entry, "scores": [entry["score"]]})
    strip = "".join(
        f'<div title="{shown(span["label"])}" style="flex: {span["end"] - span["start"]:.3f}; '
        f'background: {colours[span["label"]]}"></div>'
        for span in spans
    )
    rows = "".join(
        f'<tr><td>{span["start"]:.1f} to {span["end"]:.1f} s</td><td><span class="swatch" style="background: '
        f'{colours[span["label"]]}"></span>{shown(span["label"])}</td><td>{np.mean(span["scores"]):.0%}</td></tr>'
        for span in spans
    )
    return f'<div class="strip" style="max-width: {100 * entries[-1]["end"] / max(seconds, 1e-6):.0f}%">{strip}</div><table>{rows}</table>'


def own_files_only(component: gradio.components.Component) -> gradio.components.Component:
    """A component that takes what its visitor uploads. Gradio's would also fetch a URL for them, of any size."""
    move = component.async_move_resource_to_block_cache

    async def move_own(place: str | Path | None) -> str | None:
        if isinstance(place, str) and "://" in place:
            raise gradio.Error("Upload a file, please: the page fetches none.")
        return await move(place)

    # A subclass would have Gradio write a stub beside this file.
    component.async_move_resource_to_block_cache = move_own
    return component


class NoRelay:
    """Refuses addresses in place of the server's files, which Gradio would fetch and pass on."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_relay = scope["type"] == "http" and "://" in scope["path"]
        app = PlainTextResponse("the page fetches nothing", 403) if is_relay else self.app
        await app(scope, receive, send)


def build_page(demo: Demo, title: str) -> gradio.Blocks:
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(
            f"# {title}\nOne video transformer with a head for each data set it was trained on. Drop a video, record one, or "
            f"drop a picture. Up to {MAX_BYTES // 2**20} MB and {clock(MAX_SECONDS)}; files are deleted within two hours."
        )
        heads = gradio.CheckboxGroup(demo.heads, value=demo.heads, label="Heads")
        with gradio.Tab("Video"):
            video = own_files_only(gradio.Video(sources=["upload", "webcam"], label="Video", height=280))
            of_video = gradio.Button("What is it?", variant="primary", elem_id="ask-video")
        with gradio.Tab("Picture"):
            image = own_files_only(gradio.File(label="Picture", height=120))
            of_image = gradio.Button("What is it?", variant="primary", elem_id="ask-picture")
        parts = [gradio.HTML(elem_id=name) for name in ("answer", "timeline", "where")]
        # A model answers one after the other; who waits too long had better come again.
        one_by_one = {"concurrency_id": "model", "concurrency_limit": 1}
        of_video.click(demo.answer_video, [video, heads], parts, api_name="video", **one_by_one)
        of_image.click(demo.answer_image, [image, heads], parts, api_name="picture", **one_by_one)
    return page.queue(max_size=20, api_open=False)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--revision", help="of a Hub id: a branch, a tag or a commit")
    parser.add_argument("--title", default="CoVeR: what is going on here?")
    parser.add_argument("--host", default=None, help="the address to listen at; default: of this machine alone")
    parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860 on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    page = build_page(Demo(options.model, options.device, options.revision), options.title)
    page.launch(
        server_name=options.host,
        server_port=options.port,
        share=False,
        app_kwargs={"middleware": [Middleware(NoRelay)]},
        ssr_mode=False,
        max_file_size=MAX_BYTES,
        run_history=False,
        footer_links=["api", "gradio"],
        css=STYLE,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )


if __name__ == "__main__":
    sys.exit(main())
