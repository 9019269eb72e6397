# SPDX-License-Identifier: Apache-2.0
"""Compare the speed of the data path: compact with raw clips, datasets that are given as objects with those of a
recipe, and the mixture schedule with `datasets.interleave_datasets`.

    python examples/benchmark_data.py [--rounds 7] [--seconds 10]

Draws clips with camera motion, moving objects and sensor noise, and encodes them as x264 does by default (constant
rate factor 23, a keyframe every 250 frames). Makes compact clips from them, and reads both through the code that
training uses, on one thread. Times are medians of the process's own CPU time, over rounds in which the candidates take
turns: what one core does in a second. Prints the tables of docs/compact_data.md and docs/python.md. About 3 minutes on
2 CPU cores.
"""

import argparse
import dataclasses
import io
import math
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset, interleave_datasets
from datasets.utils import logging as datasets_logging
from modeling_cover import CoTrainingDataset, CoverVideoProcessor, read_video
from modeling_cover.commands.benchmarking import FPS, draw_frames, encode, entry, median_times, print_table
from modeling_cover.data.mixture import MixtureSchedule, SampleReference
from modeling_cover.data.samples import load_frames
from modeling_cover.data.sources import Source, SplitOfDataset, read_sources, to_source
from modeling_cover.data.sources.media import Media
from modeling_cover.dataset_tools.preparation import prepare_dataset
from modeling_cover.dataset_tools.prepared_rows import PreparationSettings, encode_video, prepare_row
from PIL import Image


SIZES = {"340 x 256": (340, 256), "640 x 360": (640, 360)}
CLIPS_OF_A_SIZE, IMAGES = 2, 200
NUM_FRAMES, SHORT_SIDE, CROP = 16, 256, 224  # the first two as they are prepared by default

# Rows of the paper's largest mixture.
ROWS = {"k700": 545_317, "ssv2": 168_913, "mit": 791_297, "imagenet": 1_281_167}
RESUMED_AT = 50_000_000

cpu_times = partial(median_times, clock=time.process_time)


def write_raw_clips(folder: Path, seconds: float) -> None:
    """`CLIPS_OF_A_SIZE` clips of each size: folder/size/train/clip/number.mp4."""
    for size, (width, height) in SIZES.items():
        for number in range(CLIPS_OF_A_SIZE):
            path = folder / size / "train" / "clip" / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            frames = draw_frames(np.random.default_rng(number), width, height, round(seconds * FPS))
            encode(str(path), frames, "libx264", FPS)


def prepare(folder: Path, size: str, rounds: int) -> list[str]:
    """Make compact clips of the raw ones. Sizes of a clip, and how many are prepared in a second."""
    dataset, settings = entry("class_folders", folder / "train"), PreparationSettings(modality="video")
    summary = prepare_dataset(dataset, folder / "compact", settings)["train"]
    source = read_sources(dataset)["train"]
    times = cpu_times({"prepare": lambda: [prepare_row(source, row, settings) for row in range(len(source))]}, rounds)
    sizes = [f"{summary[key] / CLIPS_OF_A_SIZE / 1e3:.0f} kB" for key in ("bytes_before", "bytes_after")]
    return [size, *sizes, f"{CLIPS_OF_A_SIZE / times['prepare']:.1f}"]


def compare_raw_and_compact(folder: Path, rounds: int) -> None:
    processor = CoverVideoProcessor(
        num_frames=NUM_FRAMES, size={"shortest_edge": SHORT_SIDE}, crop_size={"height": CROP, "width": CROP}
    )

    def decode(source: Source) -> None:
        """What reading costs."""
        for media in source.media:
            load_frames(media, "video", processor, processor.sample_frames, SHORT_SIDE)

    def load(source: Source, finish: Callable[[torch.Tensor], torch.Tensor] = lambda clip: clip) -> None:
        """The same, and cropping and mirroring: what a worker does, and sends as bytes."""
        samples = CoTrainingDataset([source], ["clips"], processor, seed=0)
        for row in range(len(source)):
            finish(samples[SampleReference("clips", row, row, row)]["pixel_values"])

    rows = []
    for size in SIZES:
        raw = read_sources(entry("class_folders", folder / size / "train"))["train"]
        compact = read_sources(entry("webdataset", folder / size / "compact" / "train"))["train"]
        steps = {"decoded": decode, "as a worker sends it": load}
        steps["and normalised on the CPU"] = partial(load, finish=processor.normalize_pixels)
        for what, run in steps.items():
            times = cpu_times({"raw": partial(run, raw), "compact": partial(run, compact)}, rounds)
            speeds = [CLIPS_OF_A_SIZE / times[name] for name in ("raw", "compact")]
            rows.append([size, what, *(f"{speed:.1f}" for speed in speeds), f"{speeds[1] / speeds[0]:.1f} x"])
    title = f"Samples a second on one core, {NUM_FRAMES} frames, short side {SHORT_SIDE}"
    print_table(["raw clips", "samples", "raw", "compact", ""], rows, title)


def psnr(frames: np.ndarray, others: np.ndarray) -> float:
    """Of two clips (T, H, W, 3), as large as both of them are, in decibels."""
    height, width = (min(sides) for sides in zip(frames.shape[1:3], others.shape[1:3], strict=True))
    error = frames[:, :height, :width].astype(float) - others[:, :height, :width]
    return 20 * math.log10(255 / math.sqrt((error**2).mean()))


def compare_codecs(clip: Path, rounds: int) -> None:
    """All at the PSNR of the default, or the least above."""
    processor = CoverVideoProcessor(num_frames=NUM_FRAMES)
    frames, metadata = read_video(clip, processor.sample_frames, SHORT_SIDE)
    rate = Fraction(NUM_FRAMES / metadata.duration).limit_denominator(1000)
    one_keyframe = {"g": f"{NUM_FRAMES}"}

    def decode(content: bytes) -> torch.Tensor:
        return load_frames(Media(content, ""), "video", processor, processor.sample_frames, SHORT_SIDE)

    def encoded(encoder: str, container: str = "mp4", **options: str) -> bytes:
        file = io.BytesIO()
        encode(file, frames, encoder, rate, container, threads="1", **options)
        return file.getvalue()

    def quality(content: bytes) -> float:
        return psnr(frames, decode(content).permute(0, 2, 3, 1).numpy())

    default = encode_video(frames, "mjpeg", 3, metadata.duration)
    contents = {"Motion JPEG in MP4 (`mjpeg`)": default}
    contents |= {f"in {name}": encoded("mjpeg", name, qmin="3", qmax="3") for name in ("matroska", "avi", "nut")}
    wanted = quality(default)
    for name, options in {
        "H.264, one keyframe, quick to decode (`h264`)": None,
        "H.264, one keyframe": one_keyframe,
        "H.264, keyframes only": {"g": "1"},
        "H.264, keyframes only, quick to decode": {"g": "1", "tune": "fastdecode"},
    }.items():
        for crf in range(32, 10, -1):
            content = (
                encode_video(frames, "h264", crf, metadata.duration)
                if options is None
                else encoded("libx264", crf=f"{crf}", **options)
            )
            if quality(content) >= wanted:
                contents[f"{name}, factor {crf}"] = content
                break
    times = cpu_times({name: partial(decode, content) for name, content in contents.items()}, rounds)
    rows = [
        [name, f"{quality(content):.1f} dB", f"{len(content) / 1e3:.0f} kB", f"{1e3 * times[name]:.1f} ms"]
        for name, content in contents.items()
    ]
    print_table(["", "PSNR", "size", "decoded in"], rows, f"Codecs and containers, one clip of {clip.parts[-4]}")


def compare_given(folder: Path, rounds: int) -> None:
    """An epoch of the same files by a recipe and as objects: its order, reading, decoding, cropping."""
    processor = CoverVideoProcessor(size={"shortest_edge": SHORT_SIDE}, crop_size={"height": CROP, "width": CROP})
    images = folder / "images" / "train" / "image"
    images.mkdir(parents=True)
    for number, frame in enumerate(draw_frames(np.random.default_rng(0), 340, 256, IMAGES)):
        Image.fromarray(frame).save(images / f"{number:03}.jpg")

    def epoch(source: SplitOfDataset) -> None:
        samples = CoTrainingDataset([source], ["clips"], processor, seed=0)
        for reference in samples.sampler(MixtureSchedule(samples.sizes, seed=0), 1, 1):
            samples[reference]

    rows = []
    for modality, feature, root in (
        ("video", datasets.Video(decode=False), folder / next(iter(SIZES)) / "train"),
        ("image", datasets.Image(decode=False), images.parent),
    ):
        paths = sorted(str(path) for path in root.glob("*/*"))
        labels = datasets.ClassLabel(names=[paths[0].split("/")[-2]])
        features = datasets.Features({modality: feature, "label": labels})
        table = Dataset.from_dict({modality: paths, "label": [0] * len(paths)}, features=features)
        saved = folder / f"{modality}s"
        table.save_to_disk(saved)
        stored = dataclasses.replace(entry("class_folders", root, modality), format="dataset", path=str(saved))
        streamed = dataclasses.replace(stored, splits={"train": "train"}, streaming=True)
        stream = datasets.load_from_disk(saved).to_iterable_dataset(num_shards=min(64, len(paths)))  # as a recipe does
        pairs = {
            "by index": (
                read_sources(entry("class_folders", root, modality))["train"],
                to_source("clips", table.shuffle(seed=0)),
            ),
            "streamed": (read_sources(streamed)["train"], to_source("clips", stream, size=len(paths))),
        }
        for how, (by_recipe, given) in pairs.items():
            times = cpu_times({"recipe": partial(epoch, by_recipe), "object": partial(epoch, given)}, 2 * rounds)
            speeds = [f"{len(paths) / seconds:.1f}" for seconds in times.values()]
            rows.append([f"{modality}s", how, *speeds, f"{times['recipe'] / times['object']:.2f}"])
    header = ["files", "read", "by a recipe", "as an object", ""]
    print_table(header, rows, "Samples a second on one core, of datasets given as objects")


def measure_schedule(rounds: int) -> None:
    num_rows = 100_000
    schedule = MixtureSchedule(ROWS, seed=0)

    def draw() -> None:
        references = schedule.references()
        for _ in range(num_rows):
            next(references)

    def resume() -> None:
        next(MixtureSchedule(ROWS, seed=0).references(RESUMED_AT))

    datasets_logging.disable_progress_bar()
    parts = [Dataset.from_dict({"row": range(20_000)}).to_iterable_dataset().shuffle(seed=0) for _ in ROWS]
    shares = [count / sum(ROWS.values()) for count in ROWS.values()]
    interleaved = interleave_datasets(parts, probabilities=shares, seed=0, stopping_strategy="all_exhausted")

    def iterate() -> None:
        for _ in interleaved.take(num_rows // 10):
            pass

    times = cpu_times({"draw": draw, "resume": resume, "iterate": iterate}, min(rounds, 3))
    skipping = RESUMED_AT * times["iterate"] / (num_rows // 10) / 3600
    rows = [
        [
            "`MixtureSchedule`",
            f"{1e6 * times['draw'] / num_rows:.1f} µs",
            f"{num_rows / times['draw']:,.0f}",
            f"{1e3 * times['resume']:.0f} ms",
        ],
        [
            "`datasets.interleave_datasets`",
            f"{1e6 * times['iterate'] / (num_rows // 10):.1f} µs",
            f"{num_rows // 10 / times['iterate']:,.0f}",
            f"{skipping:.1f} hours by skipping",
        ],
    ]
    header = ["four datasets, 2.8 million rows", "a row", "rows a second", f"to row {RESUMED_AT:,}"]
    print_table(header, rows, "The mixture's order")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clips")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_raw_clips(folder, arguments.seconds)
        print_table(
            ["raw clips", "raw", "compact", "prepared in a second on one core"],
            [prepare(folder / size, size, arguments.rounds) for size in SIZES],
            f"Clips of {arguments.seconds:g} s, prepared with the default settings",
        )
        compare_raw_and_compact(folder, arguments.rounds)
        compare_codecs(folder / next(iter(SIZES)) / "train" / "clip" / "0.mp4", arguments.rounds)
        compare_given(folder, arguments.rounds)
    measure_schedule(arguments.rounds)


if __name__ == "__main__":
    main()
