# SPDX-License-Identifier: Apache-2.0
"""The demo's page in a real browser, and what it answers to strangers' files."""

import io
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from html import unescape
from importlib.metadata import PackageNotFoundError
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import modeling_cover as modeling_cover
import numpy as np
import pytest
import torch
from checkpoints import QUICKSTART_LABELS, save_quickstart
from clips import indexed_frames, write_clip
from demo_visitors import expected_answers, visit
from encoders import model_of
from hub_server import HubServer
from huggingface_hub import SpaceCard
from huggingface_hub.utils import httpx
from lazy import lazily
from modeling_cover.commands import space
from modeling_cover.commands.demo_uploads import Uploads
from modeling_cover.model.frame_sampling_cover import uniform_frame_indices
from packaging.requirements import Requirement
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from python_server import python
from tiny import tiny_processor
from transformers import pipeline


demo, gradio, gradio_client = map(lazily, ("modeling_cover.commands.demo", "gradio", "gradio_client"))

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "outputs" / "demo_screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Chromium asks for addresses of its makers', and waits where there is no network.
ALONE = ("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync")
HEADS = sorted(QUICKSTART_LABELS)
# The labels of one head are what a page could take for something else than a text.
LABELS = {**QUICKSTART_LABELS, "shapes": ["<b>circle</b>", '" onclick="star', "${1 + 1} {{走る}}"]}


def write_video(path: Path, num_frames: int, fps: int | Fraction, size: tuple[int, int] = (64, 48)) -> Path:
    rng = np.random.default_rng(0)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(num_frames):
            frame = np.full((size[1], size[0], 3), 40 + 150 * index // num_frames, dtype=np.uint8)
            frame[: size[1] // 2] = rng.integers(0, 256, 3, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_repeated(path: Path, num_frames: int, fps: int) -> Path:
    """The same picture again and again."""
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    with av.open(path, "w") as container:
        stream = container.add_stream("mjpeg", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for index in range(num_frames):
            packet = av.Packet(content.getvalue())
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, fps), index, index
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint; a clip of ten seconds and a picture; and what strangers send."""
    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    save_quickstart(folder / "model", LABELS)
    write_video(folder / "clip.mp4", num_frames=100, fps=10)
    write_video(folder / "film.mp4", num_frames=720, fps=Fraction(1, 10))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(
        folder / "picture.png"
    )
    (folder / "unreadable.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:300])
    shutil.copy(os.path.realpath(sys.executable), folder / "program.mp4")
    (folder / "secret.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{folder}/secret.mp4\n#EXT-X-ENDLIST\n"
    (folder / "playlist.mp4").write_text(playlist)
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile {folder}/secret.mp4\n")
    (folder / "nothing.mp4").write_bytes(b"")
    write_repeated(folder / "many.avi", num_frames=60_001, fps=120)
    Image.open(folder / "picture.png").save(folder / "no suffix", "JPEG")
    solid = Image.new("1", (15_000, 15_000))
    solid.save(folder / "giant.png")
    return folder


@contextmanager
def serving(script: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """The address of a page that is served by another process."""
    command = [sys.executable, str(script), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()
    seen = []
    try:
        while "Running on local URL:" not in (line := lines.get(timeout=600)):
            seen.append(line)
        yield line.split()[-1].replace("0.0.0.0", "127.0.0.1")
    except queue.Empty:
        pytest.fail("the page was not served: " + "".join(seen))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    temporary = {"GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "1"}
    with serving(ROOT / "examples" / "demo.py", "--model", str(folder / "model"), **temporary) as address:
        yield address


@pytest.fixture(scope="module")
def client(url, folder) -> "gradio_client.Client":
    return gradio_client.Client(url, verbose=False, download_files=str(folder / "downloads"))


@pytest.fixture(scope="module")
def classify(folder):
    return pipeline("cover-video-classification", model=str(folder / "model"), device="cpu")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and "CI" not in os.environ:
        pytest.skip("needs Chromium: install your system's package")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--no-first-run", *ALONE]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.mark.slow
class TestInABrowser:
    def ask(self, browser: Browser, url: str, file: Path, width: int) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(url)
        page.set_input_files("input[type=file] >> nth=0", file)
        page.wait_for_selector("video")
        page.click("#ask-video")
        return page

    @pytest.mark.parametrize(("width", "name"), [(1280, "desktop"), (390, "phone")])
    def test_a_clip_is_answered_with_bars_a_timeline_and_where_the_model_looked(
        self, browser, url, folder, classify, width, name
    ):
        page = self.ask(browser, url, folder / "clip.mp4", width)
        page.wait_for_selector("#where img")
        expected = classify(str(folder / "clip.mp4"), head="all")
        shown = page.locator("#answer dt").all_inner_texts()
        assert shown == [entry["label"] for head in HEADS for entry in expected[head]]
        scores = page.locator("#answer dd").all_inner_texts()
        assert scores == [f"{100 * entry['score']:.0f}%" for head in HEADS for entry in expected[head]]
        assert page.locator("#frames img").count() == page.locator("#where img").count() == 8
        windows = classify(str(folder / "clip.mp4"), head=HEADS, window=2.0)
        spans = page.locator("#timeline .label").all_inner_texts()
        assert spans == [label for head in HEADS for label, _ in groupby(entry["label"] for entry in windows[head])]
        assert page.locator("#answer b, #timeline b, [onclick]").count() == 0
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
        # Nothing is beside the screen, and text is large enough to read.
        assert page.evaluate("document.documentElement.scrollWidth") == width
        sizes = page.evaluate(
            "[...document.querySelectorAll('#answer dt, #answer dd, #timeline .label, .cover h3')].map(e => parseFloat(getComputedStyle(e).fontSize))"
        )
        assert min(sizes) >= 13
        page.close()

    def test_a_file_that_is_none_is_said_on_the_page(self, browser, url, folder):
        page = self.ask(browser, url, folder / "film.mp4", 390)
        page.wait_for_selector("#alert [role=alert]")
        assert "lasts 2:00:00 h" in page.inner_text("#alert")
        page.screenshot(path=SCREENSHOTS / "refused.png", full_page=True)
        page.close()


class TestStrangers:
    def values(
        self, client: "gradio_client.Client", file: Path, heads: list[str] = HEADS, api_name: str = "/video"
    ) -> list:
        return client.predict(gradio_client.handle_file(file), heads, api_name=api_name)

    def alert(self, *question: Any) -> str:
        """Why there is no answer."""
        alert, *rest = self.values(*question)
        assert 'role="alert"' in alert
        assert not any(rest)
        return unescape(alert)

    def scores(self, *question: Any) -> dict[str, dict[str, float]]:
        """What is answered, by head."""
        alert, *rest = self.values(*question)
        assert alert == ""
        return {
            head: {entry["label"]: entry["confidence"] for entry in label["confidences"]}
            for head, label in zip(HEADS, rest, strict=False)
            if label
        }

    def assert_lives(self, client: "gradio_client.Client", folder: Path) -> None:
        scores = self.scores(client, folder / "clip.mp4", HEADS[:1])
        assert {head: len(classes) for head, classes in scores.items()} == {HEADS[0]: 3}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("unreadable.mp4", "unreadable.mp4 cannot be read as a video"),
            ("film.mp4", "This video lasts 2:00:00 h. The page takes up to 10:00 min"),
            ("program.mp4", "program.mp4 cannot be read as a video"),
            ("playlist.mp4", "playlist.mp4 cannot be read as a video"),
            ("list.mp4", "list.mp4 cannot be read as a video"),
            ("nothing.mp4", "nothing.mp4 cannot be read as a video"),
            ("many.avi", "This video has 60001 frames of 16 x 16 pixels, more than the page can look at"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_named_without_a_path_and_the_server_lives_on(
        self, client, folder, name, message
    ):
        answer = self.alert(client, folder / name)
        assert message in answer
        assert str(folder) not in answer
        assert "uploads" not in answer
        self.assert_lives(client, folder)

    def test_a_picture_is_answered_and_a_film_is_none(self, client, folder, classify):
        scores = self.scores(client, folder / "picture.png", ["textures"], "/picture")
        expected = classify(str(folder / "picture.png"), head="textures")
        assert scores["textures"] == pytest.approx({entry["label"]: entry["score"] for entry in expected})
        assert self.scores(client, folder / "no suffix", ["textures"], "/picture")["textures"]
        shutil.copy(folder / "film.mp4", folder / "film.png")
        refused = self.alert(client, folder / "film.png", ["textures"], "/picture")
        assert "film.png cannot be read as an image: its content is none of BMP, GIF" in refused
        giant = self.alert(client, folder / "giant.png", ["textures"], "/picture")
        assert "giant.png cannot be read as an image: it has too many pixels" in giant

    def test_what_belongs_on_the_other_tab_is_sent_there(self, client, folder):
        picture = self.alert(client, folder / "no suffix")
        assert "cannot be read as a video" in picture
        assert "it is a picture: choose it under “Picture”" in picture
        video = self.alert(client, folder / "clip.mp4", HEADS, "/picture")
        assert "cannot be read as an image" in video
        assert "it is a video: choose it under “Video”" in video
        assert "But it is" not in self.alert(client, folder / "program.mp4")

    def test_an_unknown_head_is_refused(self, client, folder):
        assert "There is no head ssv2: choose of motions" in self.alert(client, folder / "clip.mp4", ["ssv2"])
        self.assert_lives(client, folder)

    def test_nothing_sent_and_no_head_chosen_are_asked_for(self, client, folder):
        assert "Choose a file first" in client.predict(None, HEADS, api_name="/video")[0]
        assert "Choose at least one head" in self.alert(client, folder / "clip.mp4", [])

    def test_a_manifest_whose_name_is_a_videos_shows_no_other_file(self, client, url, folder):
        manifest = (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
            f'mimeType="video/mp4"><Representation id="0"><BaseURL>{folder}/secret.mp4</BaseURL></Representation>'
            "</AdaptationSet></Period></MPD>"
        )
        (folder / "a.mp4").write_text(manifest)
        assert "a.mp4 cannot be read as a video" in self.alert(client, folder / "a.mp4")
        with open(folder / "a.mp4", "rb") as file:
            answer = httpx.post(f"{url}/gradio_api/process_recording", files={"video": file})
        assert (answer.status_code, answer.text) == (404, "There is nothing here.")

    def test_nothing_of_a_file_is_left_under_a_name(self, client, folder):
        self.assert_lives(client, folder)
        self.scores(client, folder / "picture.png", ["textures"], "/picture")
        assert [path for path in (folder / "uploads").rglob("*") if path.is_file()] == []

    def test_a_crowd_of_visitors_some_of_them_hostile_is_answered_right(self, url, folder):
        """A small sample of what `python tests/helpers/demo_visitors.py` does."""
        clips = folder / "crowd"
        clips.mkdir()
        expected = expected_answers(folder / "model", clips, 2)
        assert expected[0][2] != expected[1][2]
        done = visit(url, folder / "secret.mp4", expected, num_honest=4, megabytes=8)
        assert len(done) == 10
        assert [path for path in (folder / "uploads").rglob("*") if path.is_file()] == []


class TestAnswers:
    def test_the_first_is_there_after_two_seconds_of_work_at_most(self, folder):
        page = demo.Demo(str(folder / "model"))
        next(page.answer_video(str(folder / "clip.mp4"), HEADS))  # what torch loads when it is first used
        started = time.process_time()  # which does not count what others do on a busy machine
        answer = next(page.answer_video(str(folder / "clip.mp4"), HEADS))
        assert list(answer.predictions) == HEADS
        assert time.process_time() - started < 2  # some 0.1

    def test_one_is_given_after_the_other_on_whichever_tab_they_are_asked_for(self, folder):
        page = demo.build_page(demo.Demo(str(folder / "model")), "title", Uploads())
        limits = {
            function.api_name: (function.concurrency_id, function.concurrency_limit) for function in page.fns.values()
        }
        assert limits["video"] == limits["picture"] == ("model", 1)

    def test_the_times_under_the_frames_are_those_of_the_file(self, folder, tmp_path):
        times = [index**2 * 10 for index in range(24)]  # milliseconds; ever slower
        clip = write_clip(tmp_path / "slowing.mp4", indexed_frames(24), timestamps=times)
        answer = list(demo.Demo(str(folder / "model")).answer_video(clip, HEADS))[-1]
        captions = re.findall(r"<figcaption>([\d.]+) s<", answer.frames)
        assert captions == [f"{times[index] / 1000:.1f}" for index in uniform_frame_indices(24, 8)]

    @pytest.mark.parametrize("name", ["clip.mp4", "clip.ts"])
    def test_a_video_that_takes_too_long_is_given_up(self, folder, tmp_path, monkeypatch, name):
        clip = write_clip(tmp_path / name, indexed_frames(24))
        monkeypatch.setattr(demo, "MAX_READING_SECONDS", 0.0)
        (answer,) = demo.Demo(str(folder / "model")).answer_video(clip, HEADS)
        assert f"This file cannot be used. {name} cannot be read as a video: it takes too long to read" in answer.alert

    @pytest.mark.parametrize("kind", ["vjepa2", "siglip2_vision_model"])
    def test_another_encoder_has_a_map_of_where_it_looked_too(self, folder, tmp_path, kind):
        model_of(kind).save_pretrained(tmp_path)
        tiny_processor().save_pretrained(tmp_path)
        page = demo.Demo(str(tmp_path))
        for answers, frames in (
            (page.answer_video(str(folder / "clip.mp4"), ["actions"]), 4),
            (page.answer_image(str(folder / "picture.png"), ["actions"]), 1),
        ):
            answer = list(answers)[-1]
            assert answer.where.count("<img") == frames
            assert "Where it looked for actions: " in answer.where

    def test_signs_that_nobody_sees_are_spelled_out(self):
        entries = [{"label": "a\tb\u202egnp", "score": 0.5, "start": 0.0, "end": 2.0}]
        assert demo.scores(entries) == {r"a\tb\u202egnp": 0.5}
        assert demo.timeline({"clips": entries})[1] == ("0.0 to 2.0 s, 50%", r"a\tb\u202egnp")
        assert r"<h3>&lt;a\u202e&gt;</h3>" in demo.titled("<a\u202e>", "")


def test_without_gradio_a_space_is_refused_and_the_extra_named(tmp_path, monkeypatch):
    def none(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(space, "version", none)
    with pytest.raises(ImportError, match=r"modeling-cover\[demo\]"):
        space.check_space(tmp_path / "space")


@pytest.mark.slow
def test_the_folder_of_a_space_answers_without_the_repository(folder, tmp_path):
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home")
        publish = [
            python(),
            ROOT / "examples" / "publish.py",
            folder / "model",
            "org/name",
            "--space",
            tmp_path / "space",
            "--revision",
            "next",
        ]
        for options in (["--dry_run"], []):  # as the pages have it: look first
            command = list(map(str, [*publish, *options]))
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
        assert "model.safetensors" not in hub.files("org/name")  # but on the branch, which the Space loads
        # Of the package, the copy in the folder: in front of the one that is installed.
        folder_of_space = tmp_path / "space"
        assert "modeling_cover" in {path.name for path in folder_of_space.iterdir()}
        needs = {Requirement(line).name for line in (folder_of_space / "requirements.txt").read_text().splitlines()}
        assert {"av", "torch", "transformers"} <= needs
        assert (
            not {"gradio", "pytest", "onnx", "deepspeed"} & needs
        )  # the Space's settings have gradio; extras are not needed
        settings = SpaceCard.load(folder_of_space / "README.md").data
        assert (settings.sdk, settings.sdk_version, settings.app_file) == ("gradio", gradio.__version__, "app.py")
        assert settings.models == ["org/name"]
        used = {**environment, "GRADIO_SERVER_PORT": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder_of_space)}
        used = {name: value for name, value in used.items() if value}
        with serving(folder_of_space / "app.py", **used) as address:
            client = gradio_client.Client(address, verbose=False)
            _, label, *_ = client.predict(gradio_client.handle_file(folder / "clip.mp4"), HEADS[:1], api_name="/video")
    assert len(label["confidences"]) == 3
