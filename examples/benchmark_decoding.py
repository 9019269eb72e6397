# SPDX-License-Identifier: Apache-2.0
"""Compare the speed of decoding with torchcodec, decord2 and transformers' own reader, in one run on the same files.

    pip install torchcodec==0.13.0 decord2==3.4.0    # for this comparison only; torchcodec needs FFmpeg's libraries
    python examples/benchmark_decoding.py [--rounds 7] [--row_seconds 8] [--seconds 10]
        [--folder outputs/benchmark_decoding]

Each cell of the table has the CPU time in ms (and the wall-clock time). The cells of the other readers also have the
ratio of their time to ours, and how far their pixels are from ours: at most and on average, of 255.

Draws clips and encodes them into `folder`, where existing files are used again. Takes 16 uniform frames of each clip
with each reader, and then one input for the model with the video processor, all on one CPU core. The readers take
turns, in another order each round, for `rounds` rounds or `row_seconds`, whichever is more. The times, and their
ratios to ours in the same round, are medians over these rounds. Prints a Markdown table, which says if a reader is not
installed or fails. About 10 minutes on 2 CPU cores.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import av
import modeling_cover  # noqa: F401 (before torchvision: see modeling_cover/_torchvision.py)
import numpy as np
import PIL.Image
import torch
from modeling_cover import CoverVideoProcessor, read_video
from modeling_cover.model.frame_sampling_cover import uniform_frame_indices
from torchvision.transforms.v2 import functional as tvF
from tqdm import tqdm
from transformers.video_utils import load_video


NUM_FRAMES = 16
FPS = 30
SIZES = {"720p": (720, 1280), "256p": (256, 340)}
X265_QUIET = "log-level=none"
# name: (suffix, encoder, its options)
CODECS = {
    "H.264, a keyframe in 250": ("mp4", "libx264", {"preset": "fast", "g": "250"}),
    "H.264, a keyframe in 12": ("mp4", "libx264", {"preset": "fast", "g": "12"}),
    "H.265, a keyframe in 250": ("mp4", "libx265", {"preset": "fast", "x265-params": X265_QUIET}),
    "VP9, a keyframe in 128": ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "6", "b": "2M", "g": "128"}),
    "MPEG-4, a keyframe in 12": ("avi", "mpeg4", {"b": "3M", "g": "12"}),
}
# As UCF101 and HMDB51 come, with and without B-frames, and with B-frames in the packets of the frames behind them.
AVI_SIZE = (240, 320)
AVI = {
    "MPEG-4 in AVI, a keyframe in 12": ("avi", "mpeg4", {"b": "800k", "g": "12"}),
    "MPEG-4 in AVI, a keyframe in 250": ("avi", "mpeg4", {"b": "800k", "g": "250"}),
    "MPEG-4 in AVI, B-frames, a keyframe in 12": ("avi", "mpeg4", {"b": "800k", "g": "12", "bf": "2"}),
    "MPEG-4 in AVI, B-frames, a keyframe in 250": ("avi", "mpeg4", {"b": "800k", "g": "250", "bf": "2"}),
    "MPEG-4 in AVI, packed B-frames, a keyframe in 12": ("packed.avi", "mpeg4", {"b": "800k", "g": "12", "bf": "2"}),
    "MPEG-4 in AVI, packed B-frames, a keyframe in 250": ("packed.avi", "mpeg4", {"b": "800k", "g": "250", "bf": "2"}),
    "H.264 in AVI, a keyframe in 12": ("avi", "libx264", {"preset": "fast", "g": "12"}),
}

Reader = Callable[[str], np.ndarray]


class Timing(NamedTuple):
    """Medians over the rounds."""

    cpu: float  # milliseconds
    wall: float
    times_ours: float  # of CPU time, in the same round


def draw_clip(num_frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Frames (H, W, 3): a camera that pans over a texture, a disc in front of it that moves otherwise, and noise."""
    rng = np.random.default_rng(0)
    texture = _draw_texture(rng, 2 * height, 2 * width)
    noise = rng.integers(-5, 6, (height, width, 3), dtype=np.int16)
    rows, columns = np.mgrid[:height, :width]
    for index in range(num_frames):
        turn = index / 40
        top, left = int(height * (0.5 + 0.4 * np.sin(turn))), int(width * (0.5 + 0.4 * np.cos(0.7 * turn)))
        image = texture[top : top + height, left : left + width].copy()
        centre = height * (0.5 + 0.3 * np.sin(2 * turn)), width * (0.5 + 0.3 * np.cos(1.3 * turn))
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (height / 5) ** 2
        image[disc] = texture[:height, :width][disc]
        yield np.clip(image + np.roll(noise, 37 * index, axis=1), 0, 255).astype(np.uint8)


def _draw_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """int16 (H, W, 3): smooth noise of several scales, the finer the fainter."""
    texture = np.zeros((height, width, 3))
    for cell, weight in ((128, 0.5), (32, 0.3), (8, 0.2)):
        cells = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        texture += weight * np.asarray(
            PIL.Image.fromarray(cells).resize((width, height), PIL.Image.Resampling.BICUBIC)
        )
    return texture.astype(np.int16)


def write_file(path: Path, encoder: str, options: dict[str, str], height: int, width: int, num_frames: int) -> None:
    unfinished = path.with_name(f"unfinished_{path.name}")
    with av.open(str(unfinished), "w", format=path.suffix[1:]) as container:
        stream = container.add_stream(encoder, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for image in draw_clip(num_frames, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    if path.name.endswith(".packed.avi"):
        pack(unfinished)
    unfinished.rename(path)


def pack(path: Path) -> None:
    """Rewrites MPEG-4 in AVI as DivX and XviD do: of the B-frames that follow another frame (P1 B1 B2 P2) the first
    comes in its packet, each other in place of the one before, and a frame that is not coded in place of the last
    (P1+B1 B2 - P2)."""
    start, sign = b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p"
    bits = f"0101{'0' * (FPS - 1).bit_length()}1001111111"  # P, its time, "not coded", and ones up to the last byte
    not_coded = start + int(bits[:16], 2).to_bytes(2, "big")
    with av.open(str(path)) as container:
        source = container.streams.video[0]
        height, width = source.height, source.width
        coded = [(bytes(packet), packet.is_keyframe) for packet in container.demux(source) if packet.size]
    packed, is_waiting = [], False
    for data, is_key in coded:
        is_b = data[data.index(start) + 4] >> 6 == 2
        if is_b and not is_waiting:
            packed[-1][0] += data
        else:
            if is_waiting and not is_b:
                packed.append([not_coded, False])
            packed.append([data if is_b else data.replace(start, sign + start), is_key])
        is_waiting = is_b
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, (data, is_key) in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, FPS)
            packet.pts = packet.dts = number
            packet.is_keyframe = is_key
            container.mux(packet)


def write_files(folder: Path, num_frames: int) -> dict[str, str]:
    """Paths by what the files are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    kinds = [(size, CODECS) for size in SIZES] + [("240p", AVI)]
    for size, codecs in kinds:
        height, width = SIZES.get(size, AVI_SIZE)
        for name, (suffix, encoder, options) in tqdm(codecs.items(), desc=f"encoding {size}", leave=False):
            b_frames = f"_bf{options['bf']}" if "bf" in options else ""
            path = folder / f"{size}_{encoder}_{options.get('g', 250)}{b_frames}_{num_frames}.{suffix}"
            if not path.exists():
                write_file(path, encoder, options, height, width, num_frames)
            paths[f"{name}, {size}"] = str(path)
    return paths


def by_ours(path: str) -> np.ndarray:
    return read_video(
        path, lambda metadata: uniform_frame_indices(metadata.total_num_frames, NUM_FRAMES), num_threads=1
    )[0]


def by_torchcodec(path: str) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(uniform_frame_indices(len(decoder), NUM_FRAMES)).data.numpy()


def by_decord(path: str) -> np.ndarray:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(uniform_frame_indices(len(reader), NUM_FRAMES)).asnumpy()


def by_transformers(path: str) -> np.ndarray:
    def sample(metadata, **kwargs):
        return uniform_frame_indices(metadata.total_num_frames, NUM_FRAMES)

    return load_video(path, backend="pyav", sample_indices_fn=sample)[0]


def input_by_ours(processor: CoverVideoProcessor) -> Reader:
    return lambda path: processor(path, return_tensors="pt")["pixel_values"][0].numpy()


def input_by_torchcodec(processor: CoverVideoProcessor) -> Reader:
    side, crop = processor.size["shortest_edge"], [processor.crop_size["height"], processor.crop_size["width"]]

    def read(path: str) -> np.ndarray:
        frames = torch.from_numpy(by_torchcodec(path)).permute(0, 3, 1, 2)
        frames = tvF.center_crop(tvF.resize(frames, [side], antialias=True), crop)
        return tvF.normalize(frames.float() / 255, list(processor.image_mean), list(processor.image_std)).numpy()

    return read


def take_turns(readers: dict[str, Reader], path: str, rounds: int, seconds: float) -> dict[str, Timing]:
    """The times of readers, the first of which is ours."""
    spent, begin = {name: [] for name in readers}, time.perf_counter()
    names = list(readers)
    while len(spent[names[-1]]) < rounds or time.perf_counter() < begin + seconds:
        turn = len(spent[names[-1]]) % len(names)
        for name in names[turn:] + names[:turn]:
            wall, cpu = time.perf_counter(), time.process_time()
            readers[name](path)
            spent[name].append((1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)))
    ours = spent[names[0]]
    return {
        name: Timing(
            statistics.median(cpu for cpu, _ in turns),
            statistics.median(wall for _, wall in turns),
            statistics.median(turn[0] / our_turn[0] for turn, our_turn in zip(turns, ours, strict=True)),
        )
        for name, turns in spent.items()
    }


def first_images(readers: dict[str, Reader | None], path: str) -> dict[str, np.ndarray | str]:
    """What each reader makes of a file, which warms it up, too; or why it makes nothing of it."""
    images = {}
    for name, read in readers.items():
        try:
            images[name] = "not installed" if read is None else read(path)
        except Exception as error:  # whatever another project's reader raises is a result, not a fault of this script
            images[name] = f"fails: {type(error).__name__}"
    return images


def table_row(
    name: str, readers: dict[str, Reader | None], path: str, rounds: int, seconds: float, scale: float
) -> list[str]:
    """A file's times by each reader, ours first, and how far their pixels are from ours, of 0 to 255."""
    images = first_images(readers, path)
    able = {reader: readers[reader] for reader in images if not isinstance(images[reader], str)}
    times = take_turns(able, path, rounds, seconds)
    cells = [name]
    for reader, image in images.items():
        if isinstance(image, str):
            cells.append(image)
            continue
        cell = f"{times[reader].cpu:.0f} ({times[reader].wall:.0f})"
        if reader != "ours":
            difference = np.abs(image.astype(np.float32) - images["ours"]) * scale
            cell += f", {times[reader].times_ours:.2f}x; {difference.max():.0f}, {difference.mean():.2g}"
        cells.append(cell)
    return cells


def optional(package: str, read: Reader) -> Reader | None:
    return read if find_spec(package) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--row_seconds", type=float, default=8, help="the least time for which a file is read again and again"
    )
    parser.add_argument("--seconds", type=float, default=10, help="length of the clips")
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark_decoding"))
    args = parser.parse_args()
    if args.seconds * FPS < NUM_FRAMES:
        parser.error(f"--seconds must make at least {NUM_FRAMES} frames at {FPS} a second")
    paths = write_files(args.folder, round(args.seconds * FPS))
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # some of the readers have no option for it
    readers = {
        "ours": by_ours,
        "torchcodec": optional("torchcodec", by_torchcodec),
        "decord2": optional("decord", by_decord),
        "transformers": by_transformers,
    }
    processor = CoverVideoProcessor(num_frames=NUM_FRAMES)
    inputs = {
        "ours": input_by_ours(processor),
        "torchcodec": optional("torchcodec", input_by_torchcodec(processor)),
    }
    header = ["file", *readers]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for name, path in paths.items():
        print(
            "| " + " | ".join(table_row(name, readers, path, args.rounds, args.row_seconds, scale=1)) + " |",
            flush=True,
        )
    scale = 255 * statistics.mean(processor.image_std)
    for name, path in paths.items():
        row = table_row(f"to the model's input: {name}", inputs, path, args.rounds, args.row_seconds, scale)
        print("| " + " | ".join([*row, *[""] * (len(header) - len(row))]) + " |", flush=True)


if __name__ == "__main__":
    main()
