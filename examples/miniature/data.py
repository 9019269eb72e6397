# SPDX-License-Identifier: Apache-2.0
"""Draws the data of examples/paper_in_miniature.py: pictures of clothes from Fashion-MNIST, moved about, as real H.264
and PNG files.

Each dataset has a train, a validation and a test split:

- `outfits`, videos, the miniature's Kinetics: what is seen. Two garments drift about, each its own way. The class is
  the pair, of three tops and three shoes. How they move says nothing, and backwards they move alike.
- `moves`, videos, the miniature's Something-Something, and the small one: what happens. A garment of any kind moves
  before another one that stands still. The class is one of eight motions: "right, then still".
- `moments_all`, `moments_half` and `moments_none`, videos, the miniature's Moments in Time, the large one: what does
  what. The class is one of three kinds of garment and one of eight motions, under other names: "coat, east then
  rests". All, half or none of its motions are those of `moves`: the one thing in which the three differ. They have the
  same number of clips, of classes, and of clips of each class; and a class that two of them have has the same clips in
  both. `moments_all_few` and `moments_none_few` have the first quarter of the training clips of each class.
- `garments`, images, the miniature's ImageNet: a garment, of ten kinds. `wardrobe`, the miniature's ImageNet-21k, has
  more of them, for pre-training.

There are sixteen motions of two legs. Those of `moves` go right, left or nowhere in each, and somewhere at least once.
The other eight are the same with x and y exchanged, and so about as hard: down, up or nowhere. No leg that goes
somewhere is in both. (In a pilot both eights had turns, so the same legs in another order. With none of its motions
shared, `moves` gained three quarters of what it gained with all: legs were shared.)

All are on a slowly moving background cut from other garments, enlarged and dimmed, in random tints, with noise, and
compressed. The pictures of the train splits are from Fashion-MNIST's train split, those of validation and test from
disjoint halves of its test split, so no garment of a test clip was ever trained on.

Fashion-MNIST (Xiao et al. 2017, MIT licence) is read from its four published files, which Debian has as the package
dataset-fashion-mnist.
"""

import colorsys
import functools
import gzip
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from quickstart_data import SIZE, Sample, contact_sheet, write_clip
from tqdm import tqdm


NUM_FRAMES = 8
SPLITS = ("train", "validation", "test")

# As the published labels count them.
KINDS = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
TOPS, SHOES = ("T-shirt", "dress", "coat"), ("sandal", "sneaker", "ankle boot")
OUTFITS = {f"{top} and {shoe}": (top, shoe) for top in TOPS for shoe in SHOES}

# In x, and in y downwards.
LEGS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1), "still": (0, 0)}
OTHER_NAMES = {"right": "east", "left": "west", "down": "south", "up": "north", "still": "rests"}
Motion = tuple[str, str]  # two legs


def _motions(*legs: str) -> tuple[Motion, ...]:
    """Two of these or "still", but for no motion at all."""
    both = ((first, second) for first in (*legs, "still") for second in (*legs, "still"))
    return tuple(motion for motion in both if motion != ("still", "still"))


def _transposed(motion: Motion) -> Motion:
    """The motion with x and y exchanged."""
    names = {"right": "down", "left": "up", "still": "still"}
    return names[motion[0]], names[motion[1]]


OF_MOVES = _motions("right", "left")
MOTIONS = (*OF_MOVES, *map(_transposed, OF_MOVES))
# One straight on, one there and back, one that stops and one that starts.
_HALF_OF_MOVES = (("right", "right"), ("left", "right"), ("left", "still"), ("still", "left"))
OVERLAPS: dict[str, tuple[Motion, ...]] = {  # what share of the motions of `moves` each `moments` has -> its motions
    "none": tuple(map(_transposed, OF_MOVES)),
    "half": (*_HALF_OF_MOVES, *map(_transposed, _HALF_OF_MOVES)),
    "all": OF_MOVES,
}
MOMENTS = {overlap: f"moments_{overlap}" for overlap in OVERLAPS}
FEW_MOMENTS = {overlap: f"moments_{overlap}_few" for overlap in ("none", "all")}
OVERLAP_OF = {name: overlap for names in (MOMENTS, FEW_MOMENTS) for overlap, name in names.items()}
MOVING_KINDS = ("coat", "dress", "sandal")
MOVES = {f"{first}, then {second}": (first, second) for first, second in OF_MOVES}
# Those that even `moments_half` has.
SHARED_MOVES = tuple(label for label, motion in MOVES.items() if motion in _HALF_OF_MOVES)
MOMENT_LABELS = {
    f"{kind}, {OTHER_NAMES[first]} then {OTHER_NAMES[second]}": (kind, (first, second))
    for kind in MOVING_KINDS
    for first, second in MOTIONS
}
LABELS = {
    "outfits": tuple(OUTFITS),
    "moves": tuple(MOVES),
    **{
        name: tuple(label for label, (_, motion) in MOMENT_LABELS.items() if motion in OVERLAPS[overlap])
        for name, overlap in OVERLAP_OF.items()
    },
    "garments": KINDS,
    "wardrobe": KINDS,
}
IMAGE_DATASETS = ("garments", "wardrobe")
# Mirrored, these would be of another class.
DIRECTED_DATASETS = ("moves", *OVERLAP_OF)
MARKER = "miniature.json"

FilesPerLabel = Mapping[str, Mapping[str, int]]  # dataset -> split -> files of each class


class FashionMNIST:
    """The grey pictures (28, 28) of each kind of garment, apart for each split.

    Raises:
        ValueError: if `folder` lacks one of the four files, or one is not what it should be.
    """

    def __init__(self, folder: str | os.PathLike):
        parts = {}
        for published in ("train", "t10k"):
            images = _read_idx(Path(folder, f"{published}-images-idx3-ubyte.gz"), 3)
            labels = _read_idx(Path(folder, f"{published}-labels-idx1-ubyte.gz"), 1)
            if images.shape[1:] != (28, 28) or len(images) != len(labels) or labels.max(initial=0) >= len(KINDS):
                raise ValueError(f"{folder}: its {published} files are not those of Fashion-MNIST")
            parts[published] = images, labels
        images, labels = parts["t10k"]
        halves = {
            "train": parts["train"],
            "validation": (images[::2], labels[::2]),
            "test": (images[1::2], labels[1::2]),
        }
        self._pictures = {
            (split, kind): images[labels == index]
            for split, (images, labels) in halves.items()
            for index, kind in enumerate(KINDS)
        }
        if missing := [
            f"{kind} of {split}" for (split, kind), pictures in self._pictures.items() if not len(pictures)
        ]:
            raise ValueError(f"{folder}: there is no {missing[0]}")

    def draw(self, rng: np.random.Generator, split: str, kind: str) -> np.ndarray:
        """A picture at random, (28, 28) uint8, or its mirror image."""
        pictures = self._pictures[split, kind]
        picture = pictures[rng.integers(len(pictures))]
        return picture[:, ::-1] if rng.random() < 0.5 else picture


def _read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Numbers of one byte in the format of MNIST: 0, 0, 8, the number of axes, their lengths, and the numbers."""
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: install Debian's package dataset-fashion-mnist, or download Fashion-MNIST's four "
            "files, and "
            "name their folder by --fashion_mnist"
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error):
        content = b""
    lengths = np.frombuffer(content, ">u4", num_axes, 4) if len(content) >= 4 + 4 * num_axes else np.zeros(1)
    if content[:4] != bytes((0, 0, 8, num_axes)) or len(content) != 4 + 4 * num_axes + math.prod(lengths.tolist()):
        raise ValueError(f"{path} is not a file of MNIST's format with {num_axes} axes of bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(lengths.tolist())


def _tint(rng: np.random.Generator, darkest: float, brightest: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.5), rng.uniform(darkest, brightest)))


def _placed(picture: np.ndarray, x: float, y: float, size: float) -> np.ndarray:
    """A picture (28, 28) on the canvas (SIZE, SIZE), from 0 to 1; centre and side in pixels."""
    scale = 28 / size
    corner = 14 - scale * np.array([x, y])
    affine = (scale, 0, corner[0], 0, scale, corner[1])
    image = Image.fromarray(picture).transform((SIZE, SIZE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32) / 255


class _Garment:
    """A tinted picture on its way through a clip; `track` (3, T) has its centre and its side, in pixels."""

    def __init__(self, rng: np.random.Generator, picture: np.ndarray, track: np.ndarray, brightness: float = 1.0):
        self.picture = picture
        self.track = track
        self.colour = _tint(rng, 0.8 * brightness, brightness)

    def paint(self, canvas: np.ndarray, frame: int) -> np.ndarray:
        grey = _placed(self.picture, *self.track[:, frame])[..., None]
        cover = np.clip(4 * grey, 0, 1)
        return (1 - cover) * canvas + cover * (0.15 + 0.85 * grey) * self.colour


def _backgrounds(rng: np.random.Generator, picture: np.ndarray, num_frames: int) -> Iterator[np.ndarray]:
    """A picture larger than the canvas, of which each frame shows a place a little further on."""
    size, colour = rng.uniform(70, 110), _tint(rng, 0.1, 0.4)
    start, pan = rng.uniform(-8, 8, 2) + SIZE / 2, rng.uniform(-5, 5, 2)
    for time in np.linspace(-0.5, 0.5, num_frames):  # about the middle, so that it is alike backwards
        yield _placed(picture, *(start + time * pan), size)[..., None] * colour


def _still(rng: np.random.Generator, x: float, y: float, size: float, spread: float) -> np.ndarray:
    """A place near the given one, for all frames."""
    return np.array([x, y, size]) + rng.uniform(-1, 1, 3) * np.array([spread, spread, 2])


def _drifting(rng: np.random.Generator, place: np.ndarray, num_frames: int) -> np.ndarray:
    """A track (3, T) that passes the place, changing in every respect."""
    change = rng.uniform(-1, 1, 3) * np.array([8, 5, 4])
    return place[:, None] + change[:, None] * np.linspace(-0.5, 0.5, num_frames)


def _outfit(rng: np.random.Generator, garment: Callable[[str], np.ndarray], label: str) -> list[_Garment]:
    places = (_still(rng, SIZE / 2, 13, 20, 3), _still(rng, SIZE / 2, 29, 17, 3))
    return [
        _Garment(rng, garment(kind), _drifting(rng, place, NUM_FRAMES))
        for kind, place in zip(OUTFITS[label], places, strict=True)
    ]


def _way(motion: Motion, progress: np.ndarray) -> np.ndarray:
    """(2, T): where two legs of length 1 have led, about the middle of the box that they take."""
    first, second = (np.array(LEGS[leg])[:, None] for leg in motion)
    corners = np.hstack([np.zeros((2, 1)), first, first + second])
    way = first * np.clip(2 * progress, 0, 1) + second * np.clip(2 * progress - 1, 0, 1)
    return way - (corners.min(axis=1) + corners.max(axis=1))[:, None] / 2


def _moving(
    rng: np.random.Generator, garment: Callable[[str], np.ndarray], kind: str, motion: Motion
) -> list[_Garment]:
    """One in the background that stands still, and one that moves in a part of the clip."""
    start, end = rng.uniform(0, 0.15), rng.uniform(0.85, 1)
    progress = np.clip((np.linspace(0, 1, NUM_FRAMES) - start) / (end - start), 0, 1)
    track = _still(rng, SIZE / 2, SIZE / 2, 17, 3)[:, None].repeat(NUM_FRAMES, axis=1)
    track += rng.uniform(-1.5, 1.5, (3, 1)) * np.linspace(-0.5, 0.5, NUM_FRAMES)
    track[:2] += rng.uniform(7, 11) * _way(motion, progress)
    moving, standing = garment(kind), garment(str(rng.choice(KINDS)))
    other = _still(rng, SIZE / 2, SIZE / 2, 16, 12)[:, None].repeat(NUM_FRAMES, axis=1)
    return [_Garment(rng, standing, other, brightness=0.6), _Garment(rng, moving, track)]


def _move(rng: np.random.Generator, garment: Callable[[str], np.ndarray], label: str) -> list[_Garment]:
    return _moving(rng, garment, str(rng.choice(KINDS)), MOVES[label])


def _moment(rng: np.random.Generator, garment: Callable[[str], np.ndarray], label: str) -> list[_Garment]:
    return _moving(rng, garment, *MOMENT_LABELS[label])


def _image(rng: np.random.Generator, garment: Callable[[str], np.ndarray], label: str) -> list[_Garment]:
    return [_Garment(rng, garment(label), _still(rng, SIZE / 2, SIZE / 2, rng.uniform(17, 25), 6)[:, None])]


SCENES = {
    "outfits": _outfit,
    "moves": _move,
    **dict.fromkeys(OVERLAP_OF, _moment),
    "garments": _image,
    "wardrobe": _image,
}
# What random numbers go by: `moments` of each overlap and size draw the same clips of a class.
_DRAWN_AS = {**{name: name for name in LABELS}, **dict.fromkeys(OVERLAP_OF, "moments")}
_NUMBERS = {name: number for number, name in enumerate(dict.fromkeys(_DRAWN_AS.values()))}


def plan_sample(dataset: str, split: str, label: str, number: int) -> Sample:
    """The file of the `number`-th of a class of a split."""
    suffix = "png" if dataset in IMAGE_DATASETS else "mp4"
    path = Path(dataset, split, label, f"{number:04d}.{suffix}")
    return Sample(dataset=dataset, split=split, label=label, number=number, path=path)


def render(sample: Sample, pictures: FashionMNIST, seed: int) -> np.ndarray:
    """The frames (T, SIZE, SIZE, 3) of a sample, uint8 RGB, a function of the sample and the seed alone."""
    drawn_as = _DRAWN_AS[sample.dataset]
    labels = tuple(MOMENT_LABELS) if drawn_as == "moments" else LABELS[sample.dataset]
    key = (_NUMBERS[drawn_as], SPLITS.index(sample.split), labels.index(sample.label), sample.number)
    rng = np.random.default_rng((seed, *key))
    scene = SCENES[sample.dataset](rng, functools.partial(pictures.draw, rng, sample.split), sample.label)
    num_frames = scene[0].track.shape[1]
    behind = pictures.draw(rng, sample.split, str(rng.choice(KINDS)))
    frames = []
    for frame, canvas in enumerate(_backgrounds(rng, behind, num_frames)):
        for garment in scene:
            canvas = garment.paint(canvas, frame)
        frames.append(canvas)
    noisy = 255 * np.stack(frames) + rng.normal(0, 6, (num_frames, SIZE, SIZE, 1))
    return noisy.clip(0, 255).round().astype(np.uint8)


@functools.cache  # of a process: sent with each of its tasks, pictures take longer than drawing does
def _pictures_in(folder: Path) -> FashionMNIST:
    return FashionMNIST(folder)


def _draw(samples: list[Sample], fashion_mnist: Path, output: Path, seed: int) -> int:
    pictures = _pictures_in(fashion_mnist)
    for sample in samples:
        frames = render(sample, pictures, seed)
        if sample.dataset in IMAGE_DATASETS:
            Image.fromarray(frames[0]).save(output / sample.path)
        else:
            write_clip(output / sample.path, frames)
    return len(samples)


def draw_miniature(
    output: str | os.PathLike, fashion_mnist: str | os.PathLike, files_per_label: FilesPerLabel, seed: int
) -> int:
    """Draws the datasets under `output`, and returns the number of files drawn: 0 where all is there already.

    What an interrupted run left behind, or one of other numbers, is drawn again.

    Raises:
        ValueError: if Fashion-MNIST is not in its folder, or `output` holds something else.
    """
    output = Path(output)
    marker = json.dumps(
        {"seed": seed, "files_per_label": {key: dict(value) for key, value in files_per_label.items()}}
    )
    if (output / MARKER).exists() and (output / MARKER).read_text(encoding="utf-8") == marker:
        return 0
    if output.exists():
        if foreign := sorted({path.name for path in output.iterdir()} - {*LABELS, MARKER}):
            raise ValueError(f"{output} holds {foreign[0]}, which this script did not draw: name another folder")
        shutil.rmtree(output)
    _pictures_in(Path(fashion_mnist))  # raises before a process is started
    samples = [
        plan_sample(dataset, split, label, number)
        for dataset, numbers in files_per_label.items()
        for split in numbers
        for label in LABELS[dataset]
        for number in range(numbers[split])
    ]
    for folder in {sample.path.parent for sample in samples}:
        (output / folder).mkdir(parents=True)
    chunks = [samples[start : start + 50] for start in range(0, len(samples), 50)]
    draw = functools.partial(_draw, fashion_mnist=Path(fashion_mnist), output=output, seed=seed)
    with ProcessPoolExecutor() as pool, tqdm(total=len(samples), desc=f"drawing {output}", unit="file") as progress:
        for drawn in pool.map(draw, chunks):
            progress.update(drawn)
    (output / MARKER).write_text(marker, encoding="utf-8")
    return len(samples)


def draw_preview(pictures: FashionMNIST, seed: int, columns: int = NUM_FRAMES) -> Image.Image:
    """Frames of the first training clip of some classes, one in a row, and an image of each of some kinds of
    garment."""

    def first(dataset: str, label: str) -> np.ndarray:
        return render(plan_sample(dataset, "train", label, 0), pictures, seed)

    rows = {f"outfits: {label}": first("outfits", label) for label in list(OUTFITS)[::4]}
    rows |= {f"moves: {label}": first("moves", label) for label in list(MOVES)[::3]}
    for name in (MOMENTS["all"], MOMENTS["none"]):
        label = LABELS[name][1]
        rows[f"{name}: {label}"] = first(name, label)
    rows["garments: T-shirt, trouser, ..."] = [first("garments", kind)[0] for kind in KINDS[:columns]]
    return contact_sheet(rows, columns)
