# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the benchmarks: times of candidates that take turns, clips to measure with, and tables."""

import io
import math
import statistics
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import torch
from PIL import Image
from torch import nn

from ..bars import bar
from ..recipe.checks import check_whole_number
from ..recipe.dataset_recipe import DatasetRecipe


FPS = 30
K = TypeVar("K")


def forward(model: nn.Module, pixel_values: torch.Tensor | list[torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            model(pixel_values)

    return run


def median_times(
    runs: dict[K, Callable[[], None]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    description: str | None = None,
) -> dict[K, float]:
    """Seconds of each, the median of `rounds` in which they take turns, after one to warm up.

    Args:
        description: of the progress bar; their names by default.

    Raises:
        ValueError: if there is not one round.
    """
    check_whole_number("rounds", rounds)
    times = {name: [] for name in runs}
    for index in bar(range(rounds + 1), desc=description or ", ".join(map(str, runs)), leave=False):
        for name, run in runs.items():
            start = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, values: dict[str, float], unit: str, reference: str) -> None:
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name:<32} {value:10.4g} {unit:<4} {value / values[reference]:6.2f} x")


def print_table(header: list[str], rows: list[list[str]], title: str | None = None) -> None:
    """As Markdown."""
    if title is not None:
        print(f"\n{title}")
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def texture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A picture whose detail falls with its frequency as that of photographs does."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width)) ** 1.2
    phases = rng.uniform(0, 2 * np.pi, (4, *amplitude.shape))
    common, *channels = np.fft.irfft2(amplitude * np.exp(1j * phases), (height, width))
    picture = 0.75 * common[..., None] + 0.35 * np.stack(channels, axis=-1)
    return Image.fromarray((128 + 48 * (picture - picture.mean()) / picture.std()).clip(0, 255).astype(np.uint8))


def draw_frames(rng: np.random.Generator, width: int, height: int, num_frames: int) -> Iterable[np.ndarray]:
    """Frames (H, W, 3) of a camera that pans and zooms over a scene in which three things move and turn."""
    scene = texture(rng, 2 * height, 2 * width)
    things = [(texture(rng, height // 2, height // 2), rng.uniform(0.1, 0.3), *rng.uniform(0, 6, 3)) for _ in range(3)]
    for index in range(num_frames):
        t = index / FPS
        zoom = 1 + 0.25 * math.sin(0.5 * t)
        x, y = width * (1 + 0.35 * math.sin(0.31 * t + 1)), height * (1 + 0.3 * math.cos(0.23 * t))
        box = (x - width / 2 * zoom, y - height / 2 * zoom, x + width / 2 * zoom, y + height / 2 * zoom)
        frame = scene.resize((width, height), Image.Resampling.BILINEAR, box=box)
        for picture, size, phase, speed, turn in things:
            side = int(height * size * (1.2 + 0.3 * math.sin(t + phase)))
            angle = 60 * math.sin(t + turn)
            x = int(width / 2 + 0.4 * width * math.sin((0.4 + speed / 5) * t + phase) - side / 2)
            y = int(height / 2 + 0.4 * height * math.cos((0.3 + speed / 5) * t + turn) - side / 2)
            mask = Image.new("L", (side, side), 255).rotate(angle)
            frame.paste(picture.resize((side, side)).rotate(angle), (x, y), mask)
        noise = rng.integers(-2, 3, (height, width, 1))
        yield (np.asarray(frame) + noise).clip(0, 255).astype(np.uint8)


def encode(
    file: str | io.BytesIO,
    frames: Iterable[np.ndarray],
    encoder: str,
    rate: Fraction | int,
    container: str = "mp4",
    **options: str,
) -> None:
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(encoder, rate=rate, options=options)
        for index, image in enumerate(frames):
            if not index:
                stream.height, stream.width = (side // 2 * 2 for side in image.shape[:2])
                stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
            image = np.ascontiguousarray(image[: stream.height, : stream.width])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())


def entry(format: str, folder: Path, modality: str = "video") -> DatasetRecipe:
    return DatasetRecipe(name="clips", format=format, modality=modality, splits={"train": str(folder)})
