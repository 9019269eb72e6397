# SPDX-License-Identifier: Apache-2.0
"""The quickstart's three small datasets, drawn as real files, in the layouts that real datasets come in.

What is drawn (by `make_quickstart_data.py`, or where something needs it that is not there):

    data/quickstart/
        shapes/train/circle/000.mp4 ...     appearance: six shapes, a folder a class, as Kinetics comes
        shapes/val/...
        motions/train.csv, val.csv          motion: six motions, a manifest `video,label`, as Something-Something comes
        motions/videos/00000.mp4 ...
        images/train/checker/000.png ...    images: six textures, a folder a class, as ImageNet comes
        images/val/...
        quickstart.json                     written last: seed, scale and number of files; says that all is there

Everything shows one bright textured shape on a dim noisy background. Each dataset names one thing about it and leaves
the others to chance, so that no head can stand in for another:

- `shapes` names what is seen. How it moves says nothing.
- `motions` names how it moves: left or right, up or down, growing or shrinking. What is seen says nothing. A clip
  "moving left" is a clip "moving right" played backwards, so only the order of the frames tells the two apart, and a
  frame drawn at random from a clip is distributed alike for all six, so no single frame tells anything. Flipping
  a clip from left to right changes its label: train without.
- `images` names the texture of a still shape.

In `shapes` and `images` colour helps, as it does with real objects: two classes share a family of hues. In `motions`
any hue goes with any label.

Every file is a function of (seed, dataset, split, label, number) alone: neither the scale nor the number of processes
changes it. The same seed and the same versions of NumPy, PyAV and Pillow give the same bytes.
"""

import colorsys
import csv
import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageDraw
from tqdm import tqdm


QUICKSTART = Path(__file__).parent / "recipes" / "quickstart.yaml"
QUICKSTART_DATA = Path("data/quickstart")  # where the recipe looks for them

SIZE = 40  # pixels, height and width: room for random crops of 32
NUM_FRAMES = 16
FPS = 8
SUPERSAMPLING = 2  # points per pixel and axis, for smooth outlines

Region = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (x, y) -> bool, in units of the shape's radius, y downwards


def _half_planes(x: np.ndarray, y: np.ndarray, sides: int, distance: float) -> np.ndarray:
    """How many of the half-planes that bound a regular polygon, point upwards, contain each point."""
    angles = math.pi / 2 + 2 * math.pi * np.arange(sides) / sides
    return sum((math.cos(a) * x + math.sin(a) * y < distance).astype(np.int8) for a in angles)


SHAPES: dict[str, Region] = {
    "circle": lambda x, y: x**2 + y**2 < 0.9**2,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.32) & (np.maximum(abs(x), abs(y)) < 1),
    "ring": lambda x, y: abs(x**2 + y**2 - 0.65) < 0.35,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    "star": lambda x, y: _half_planes(x, y, sides=5, distance=0.36) >= 4,
    "triangle": lambda x, y: _half_planes(x, y, sides=3, distance=0.55) == 3,
}
TEXTURES: dict[str, Region] = {  # True where the shape is light; all look alike in a mirror
    "checker": lambda x, y: np.sin(5 * x) * np.sin(5 * y) > 0,
    "concentric": lambda x, y: np.sin(9 * np.hypot(x, y)) > 0,
    "dots": lambda x, y: np.cos(8 * x) + np.cos(8 * y) > -0.7,
    "horizontal_stripes": lambda x, y: np.sin(8 * y) > 0,
    "plain": lambda x, y: np.ones_like(x, dtype=bool),
    "vertical_stripes": lambda x, y: np.sin(8 * x) > 0,
}
# Families of hues, on a circle of length 1: two classes to each.
HUES = {
    **{"circle": 0 / 3, "cross": 0 / 3, "ring": 1 / 3, "triangle": 1 / 3, "square": 2 / 3, "star": 2 / 3},
    **{"checker": 0 / 3, "plain": 0 / 3, "dots": 1 / 3, "concentric": 1 / 3},
    **{"horizontal_stripes": 2 / 3, "vertical_stripes": 2 / 3},
}
MOTIONS = {  # which of (x, y, radius) changes, and whether the frames are then played backwards
    "growing": (2, False),
    "moving down": (1, False),
    "moving left": (0, True),
    "moving right": (0, False),
    "moving up": (1, True),
    "shrinking": (2, True),
}

SPLITS = ("train", "val")
LABELS = {"shapes": tuple(SHAPES), "motions": tuple(MOTIONS), "images": tuple(TEXTURES)}
FILES_PER_LABEL = {
    "shapes": {"train": 240, "val": 20},
    "motions": {"train": 240, "val": 20},
    "images": {"train": 240, "val": 20},
}

MARKER = "quickstart.json"
PARTIAL_MARKER = MARKER + ".partial"  # there while the files are being drawn, then renamed


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file to draw. `path` is relative to the output folder; `number` counts within the split and label."""

    dataset: str
    split: str
    label: str
    number: int
    path: Path


def draw_colour(rng: np.random.Generator, label: str | None) -> np.ndarray:
    """A bright colour, RGB of 0 to 255, of the label's family of hues, or of any hue for None."""
    hue = rng.random() if label is None else HUES[label] + rng.uniform(-0.1, 0.1)
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.4, 0.8), rng.uniform(0.8, 1.0)))


def render(
    rng: np.random.Generator, shape: str, texture: str, shade: float, colour: np.ndarray, track: np.ndarray
) -> np.ndarray:
    """Draws a bright shape on a dim background of blotches and grain.

    `shade` is the brightness of the texture's dark parts, relative to the light ones; `colour` is RGB of 0 to 255;
    `track` (3, T) holds the shape's x, y and radius in pixels. Returns uint8 RGB (T, SIZE, SIZE, 3).
    """
    points = (np.arange(SIZE * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING
    x, y, radius = track.astype(np.float32)[:, :, None, None]
    dx, dy = (points[None, None, :] - x) / radius, (points[None, :, None] - y) / radius
    tilt = rng.uniform(-0.2, 0.2)
    u, v = math.cos(tilt) * dx + math.sin(tilt) * dy, math.cos(tilt) * dy - math.sin(tilt) * dx
    inside = SHAPES[shape](u, v)
    paint = inside * np.where(TEXTURES[texture](u, v), np.float32(1), np.float32(shade))

    blocks = (-1, SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING)
    cover, paint = (v.reshape(blocks).mean(axis=(2, 4), dtype=np.float32)[..., None] for v in (inside, paint))
    blotches = rng.uniform(5, 55, (SIZE // 5, SIZE // 5, 3)).repeat(5, axis=0).repeat(5, axis=1)
    frames = (1 - cover) * blotches + paint * colour + rng.normal(0, 4, (len(x), SIZE, SIZE, 1))
    return frames.clip(0, 255).round().astype(np.uint8)


def draw_clip(rng: np.random.Generator, motion: str, shape: str, texture: str, colour: np.ndarray) -> np.ndarray:
    """Draws a clip, uint8 RGB (NUM_FRAMES, SIZE, SIZE, 3).

    x, y and radius each have a range. The motion runs through one of the ranges at even speed while the other two stay
    at a random point of theirs, so that one frame at random is a random point of all three whatever the motion.
    """
    axis, backwards = MOTIONS[motion]
    track = rng.random((3, 1)).repeat(NUM_FRAMES, axis=1)
    track[axis] = (np.arange(NUM_FRAMES) + rng.random()) / NUM_FRAMES
    travel, largest = rng.uniform(13, 16), rng.uniform(11, 12.5)
    track[:2] = SIZE / 2 + travel * (track[:2] - 0.5)
    track[2] = largest * (0.6 + 0.4 * track[2])
    frames = render(rng, shape, texture, 0.8, colour, track)
    return frames[::-1] if backwards else frames


def draw_image(rng: np.random.Generator, texture: str, shape: str, colour: np.ndarray) -> np.ndarray:
    """Draws a still shape, uint8 RGB (SIZE, SIZE, 3), larger than those of the clips and with more contrast."""
    x, y = SIZE / 2 + rng.uniform(-3, 3, 2)
    return render(rng, shape, texture, 0.25, colour, np.array([[x], [y], [rng.uniform(12, 15)]]))[0]


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Encodes frames (T, H, W, 3) as H.264, so that the bytes are always the same: on one thread, and with one
    quantizer. To choose several, x264 looks ahead (its macroblock tree), and on processors with AVX-512 it then makes
    use of memory that nothing was written to."""
    to_yuv = VideoReformatter()
    options = {"preset": "veryfast", "qp": "26", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(to_yuv.reformat(rgb, format="yuv420p", threads=1)))
        container.mux(stream.encode())


def draw_sample(sample: Sample, output: Path, seed: int) -> None:
    """Draws one file and writes it under `output`, whose folders exist."""
    labels = LABELS[sample.dataset]
    key = (list(LABELS).index(sample.dataset), SPLITS.index(sample.split), labels.index(sample.label), sample.number)
    rng = np.random.default_rng(np.random.SeedSequence((seed, *key)))
    motion, shape, texture = (str(rng.choice(names)) for names in (list(MOTIONS), list(SHAPES), list(TEXTURES)))
    colour = draw_colour(rng, None if sample.dataset == "motions" else sample.label)
    path = output / sample.path
    if sample.dataset == "shapes":
        write_clip(path, draw_clip(rng, motion, sample.label, texture, colour))
    elif sample.dataset == "motions":
        write_clip(path, draw_clip(rng, sample.label, shape, texture, colour))
    else:
        Image.fromarray(draw_image(rng, sample.label, shape, colour)).save(path)


def plan_samples(scale: float) -> list[Sample]:
    """Every file to draw, labels in turn, with `scale` times the default number of files per label (at least 2)."""
    samples = []
    for dataset, files_per_split in FILES_PER_LABEL.items():
        videos = 0  # the manifests of both splits share one folder of numbered videos
        for split in SPLITS:
            for number in range(max(2, round(files_per_split[split] * scale))):
                for label in LABELS[dataset]:
                    if dataset == "motions":
                        path = Path(dataset, "videos", f"{videos:05d}.mp4")
                        videos += 1
                    else:
                        suffix = "png" if dataset == "images" else "mp4"
                        path = Path(dataset, split, label, f"{number:03d}.{suffix}")
                    samples.append(Sample(dataset=dataset, split=split, label=label, number=number, path=path))
    return samples


def write_manifests(samples: list[Sample], folder: Path) -> None:
    """Writes `train.csv` and `val.csv` of the motions: a path relative to `folder` and a label for each video."""
    for split in SPLITS:
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("video", "label"))
            rows.writerows(
                (sample.path.relative_to("motions").as_posix(), sample.label)
                for sample in samples
                if sample.dataset == "motions" and sample.split == split
            )


def _is_complete(output: Path, marker: dict, samples: list[Sample]) -> bool:
    """Whether `output` holds every one of the samples, drawn with what the marker says."""
    path = output / MARKER
    if not path.exists() or json.loads(path.read_text(encoding="utf-8")) != marker:
        return False
    manifests = (Path("motions", f"{split}.csv") for split in SPLITS)
    return all((output / path).exists() for path in (*manifests, *(sample.path for sample in samples)))


def _start_over(output: Path, marker: dict) -> None:
    """Removes what an earlier run drew in `output`, touching nothing else, and marks the folder as being drawn."""
    ours = not output.exists() or (output / MARKER).exists() or (output / PARTIAL_MARKER).exists()
    if not ours and any(output.iterdir()):
        raise ValueError(f"{output} holds files that this script did not draw: name another or an empty folder")
    output.mkdir(parents=True, exist_ok=True)
    (output / PARTIAL_MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    (output / MARKER).unlink(missing_ok=True)
    for dataset in LABELS:
        if (output / dataset).exists():
            shutil.rmtree(output / dataset)


def draw_quickstart(output: str | Path, seed: int = 0, scale: float = 1.0) -> int:
    """Draws the three datasets under `output` and returns the number of clips and images drawn.

    Returns 0, and touches nothing, where all of it is there already with this seed and scale. What an interrupted run,
    or one with another seed or scale, left behind is drawn again. Raises ValueError for a negative seed, a scale that
    is not positive, and a folder that holds something else.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive, got {scale}")
    output = Path(output)
    samples = plan_samples(scale)
    files = {dataset: dict.fromkeys(SPLITS, 0) for dataset in LABELS}
    for sample in samples:
        files[sample.dataset][sample.split] += 1
    marker = {"seed": seed, "scale": scale, "files": files}
    if _is_complete(output, marker, samples):
        return 0

    _start_over(output, marker)
    for folder in {sample.path.parent for sample in samples}:
        (output / folder).mkdir(parents=True)
    draw = functools.partial(draw_sample, output=output, seed=seed)
    with ProcessPoolExecutor() as pool:
        done = pool.map(draw, samples, chunksize=16)
        for _ in tqdm(done, total=len(samples), desc=f"drawing {output}", unit="file", disable=None):
            pass
    write_manifests(samples, output / "motions")
    (output / PARTIAL_MARKER).rename(output / MARKER)
    return len(samples)


def read_clip(path: Path) -> np.ndarray:
    """Decodes all frames of a clip, uint8 RGB (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def draw_preview(output: str | Path, scale: float, columns: int = 8) -> Image.Image:
    """A contact sheet of the files under `output`: a clip's frames, or several images, of each label in a row."""
    rows = {}
    for sample in plan_samples(scale):
        pictures = rows.setdefault(f"{sample.dataset}: {sample.label}", [])
        path = Path(output) / sample.path
        if sample.dataset == "images":
            if len(pictures) < columns:
                pictures.append(np.asarray(Image.open(path)))
        elif not pictures:
            pictures.extend(read_clip(path)[:: NUM_FRAMES // columns])

    return contact_sheet(rows, columns)


def contact_sheet(rows: Mapping[str, Sequence[np.ndarray]], columns: int) -> Image.Image:
    """Pictures (SIZE, SIZE, 3) in rows, enlarged, with a text at the left of each."""
    tile, margin, text_width = 2 * SIZE, 4, 190
    step = tile + margin
    sheet = Image.new("RGB", (text_width + columns * step, margin + len(rows) * step), "white")
    canvas = ImageDraw.Draw(sheet)
    for row, (text, pictures) in enumerate(rows.items()):
        top = margin + row * step
        canvas.text((margin, top + tile // 2), text, fill="black", anchor="lm")
        for column, picture in enumerate(pictures):
            enlarged = Image.fromarray(picture).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (text_width + column * step, top))
    return sheet
