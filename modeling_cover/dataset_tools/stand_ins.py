# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for datasets: a few clips or images that are made up, in files that are called and listed as those that
are published. With them one can try a recipe before anything is downloaded.

Axes: T frames, H height, W width.
"""

import colorsys
import csv
import io
import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ..model.file_access_cover import is_address, public_name
from ..recipe.dataset_recipe import DatasetRecipe
from .prepared_rows import encode_video


NUM_CLASSES = 10
ROWS_OF_A_CLASS = {"train": 5, "validation": 2}

_FRAMES, _SECONDS = 16, 2.0
_HEIGHT, _WIDTH = 96, 128

# The first classes of each dataset, as its files have them.
_KINETICS = (
    "abseiling",
    "air drumming",
    "answering questions",
    "applauding",
    "applying cream",
    "archery",
    "arm wrestling",
    "arranging flowers",
    "assembling computer",
    "auctioning",
)
_SOMETHING_SOMETHING = (
    "Approaching [something] with your camera",
    "Attaching [something] to [something]",
    "Bending [something] so that it deforms",
    "Bending [something] until it breaks",
    "Burying [something] in [something]",
    "Closing [something]",
    "Covering [something] with [something]",
    "Digging [something] out of [something]",
    "Dropping [something] behind [something]",
    "Dropping [something] in front of [something]",
)
_MOMENTS_IN_TIME = (
    "adult+female+singing",
    "adult+female+speaking",
    "adult+male+singing",
    "adult+male+speaking",
    "aiming",
    "applauding",
    "applying",
    "arresting",
    "ascending",
    "asking",
)
_IMAGENET = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n01484850": "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    "n01491361": "tiger shark, Galeocerdo cuvieri",
    "n01494475": "hammerhead, hammerhead shark",
    "n01496331": "electric ray, crampfish, numbfish, torpedo",
    "n01498041": "stingray",
    "n01514668": "cock",
    "n01514859": "hen",
    "n01518878": "ostrich, Struthio camelus",
}


def moved(dataset: DatasetRecipe, folder: Path) -> DatasetRecipe:
    """The same dataset with all of its files in a folder: what data/k400 was is then FOLDER/data/k400.

    Raises:
        ValueError: if a path is an address, which nothing can be written to.
    """

    def inside(key: str, place: str) -> str:
        if is_address(place):
            raise ValueError(
                f"dataset '{dataset.name}': {key}: {public_name(place)} is remote, and stand-ins are files"
            )
        path = Path(place)
        return str(folder.joinpath(*(part for part in path.parts if part not in (path.anchor, ".."))))

    changes = {"splits": {split: inside(f"splits: {split}", place) for split, place in dataset.splits.items()}}
    for key in ("media_root", "synsets", "labels"):
        if isinstance(place := getattr(dataset, key), str):
            changes[key] = inside(key, place)
    return replace(dataset, **changes)


def write_stand_ins(dataset: DatasetRecipe) -> dict[str, int]:
    """Write the files of a dataset where its recipe has them, the same each time: of each of ten classes five rows to
    train on, and two to validate on.

    Returns:
        the number of rows of each split.

    Raises:
        ValueError: if there are no stand-ins for the format.
    """
    write = _WRITERS.get(dataset.format)
    if write is None:
        known = ", ".join(_WRITERS)
        raise ValueError(f"dataset '{dataset.name}': no stand-ins for the format '{dataset.format}', but for {known}")
    for split in dataset.splits:
        write(dataset, split)
    return {split: ROWS_OF_A_CLASS[split] * len(_classes(dataset)) for split in dataset.splits}


@dataclass(frozen=True)
class _Row:
    """A clip or an image: the index of its class, and its number in its split."""

    label: int
    number: int
    split: str

    def digits(self, count: int) -> str:
        """That tell it from all other rows of its dataset."""
        return f"{(self.number + 1) * 2 + (self.split == 'validation'):0{count}d}"


def _rows(dataset: DatasetRecipe, split: str) -> list[_Row]:
    """In turn of each class."""
    classes = len(_classes(dataset))
    return [_Row(number % classes, number, split) for number in range(classes * ROWS_OF_A_CLASS[split])]


def _classes(dataset: DatasetRecipe) -> Sequence[str]:
    published = {
        "kinetics": _KINETICS,
        "something_something": _SOMETHING_SOMETHING,
        "moments_in_time": _MOMENTS_IN_TIME,
        "imagenet": tuple(_IMAGENET),
    }
    if dataset.format in published:
        return published[dataset.format]
    if isinstance(dataset.labels, list):
        return dataset.labels[:NUM_CLASSES]
    return [f"class_{number}" for number in range(NUM_CLASSES)]


# ---- What the files show ----


def _frames(row: _Row, num_frames: int) -> np.ndarray:
    """uint8 (T, H, W, 3): a square in the colour of its class, which goes the way of its class, before a pattern."""
    rng = np.random.default_rng([row.label, row.number, row.split == "train"])
    pattern = rng.integers(0, 96, (_HEIGHT // 8, _WIDTH // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    frames = np.broadcast_to(pattern, (num_frames, *pattern.shape)).copy()
    angle, side = 2 * np.pi * row.label / NUM_CLASSES, 24
    centre = np.array([_HEIGHT, _WIDTH]) / 2 + rng.uniform(-12, 12, 2)
    colour = np.array(colorsys.hsv_to_rgb(row.label / NUM_CLASSES, 1, 1)) * 255
    for index, frame in enumerate(frames):
        way = 24 * (index / max(num_frames - 1, 1) - 0.5)
        top, left = (centre + way * np.array([np.sin(angle), np.cos(angle)]) - side / 2).astype(int)
        frame[max(top, 0) : top + side, max(left, 0) : left + side] = colour
    return frames


def _write_media(path: Path, row: _Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".jpeg", ".png"):
        Image.fromarray(_frames(row, 1)[0]).save(path)
    elif path.suffix == ".webm":
        path.write_bytes(_as_webm(_frames(row, _FRAMES)))
    else:
        path.write_bytes(encode_video(_frames(row, _FRAMES), "h264", 23, _SECONDS))


def _as_webm(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    options = {"deadline": "realtime", "cpu-used": "8", "threads": "1"}
    # A WebM file has a random number of its own unless it is asked to be the same each time.
    with av.open(file, "w", format="webm", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=round(len(frames) / _SECONDS), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


# ---- Where they lie, and how they are listed ----


def _write_text(path: str | Path, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def _write_table(path: str | Path, rows: Sequence[Sequence[object]], delimiter: str = ",") -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    _write_text(path, text.getvalue())


def _write_kinetics(dataset: DatasetRecipe, split: str) -> None:
    name = {"train": "train", "validation": "val"}[split]
    listed = [("label", "youtube_id", "time_start", "time_end", "split")]
    for row in _rows(dataset, split):
        rng = np.random.default_rng([row.number, row.split == "train"])
        clip = "".join(rng.choice([*string.ascii_letters, *string.digits, "-", "_"], 11))
        start = row.number % 200
        listed.append((_KINETICS[row.label], clip, start, start + 10, name))
        _write_media(Path(dataset.media_root, name, f"{clip}_{start:06d}_{start + 10:06d}.mp4"), row)
    _write_table(dataset.splits[split], listed)
    _write_class_list(dataset, _KINETICS)


def _write_something_something(dataset: DatasetRecipe, split: str) -> None:
    listed = []
    for row in _rows(dataset, split):
        template, clip = _SOMETHING_SOMETHING[row.label], row.digits(1)
        things = ["a square"] * template.count("[something]")
        label = template.replace("[something]", "a square")
        listed.append({"id": clip, "label": label.lower(), "template": template, "placeholders": things})
        _write_media(Path(dataset.media_root, f"{clip}.webm"), row)
    _write_text(dataset.splits[split], json.dumps(listed, indent=1))
    names = [template.replace("[", "").replace("]", "") for template in _SOMETHING_SOMETHING]
    if isinstance(dataset.labels, str):
        _write_text(dataset.labels, json.dumps({name: str(index) for index, name in enumerate(names)}, indent=1))


def _write_moments_in_time(dataset: DatasetRecipe, split: str) -> None:
    folder = {"train": "training", "validation": "validation"}[split]
    listed = []
    for row in _rows(dataset, split):
        name = _MOMENTS_IN_TIME[row.label]
        path = f"{name}/flickr-{'-'.join(row.digits(10))}_1.mp4"
        listed.append((path, name, 3, 0))
        _write_media(Path(dataset.media_root, folder, path), row)
    _write_table(dataset.splits[split], listed)
    if isinstance(dataset.labels, str):
        _write_table(dataset.labels, [(name, index) for index, name in enumerate(_MOMENTS_IN_TIME)])


def _write_imagenet(dataset: DatasetRecipe, split: str) -> None:
    place, synsets = Path(dataset.splits[split]), tuple(_IMAGENET)
    if place.suffix == ".txt":
        raise ValueError(f"dataset '{dataset.name}': {place}: there is no stand-in for the numbers of meta.mat")
    listed = [("ImageId", "PredictionString")]
    for row in _rows(dataset, split):
        synset = synsets[row.label]
        if place.suffix == ".csv":
            image = f"ILSVRC2012_val_{row.number + 1:08d}"
            listed.append((image, f"{synset} 20 20 60 60 "))
            _write_media(Path(dataset.media_root, f"{image}.JPEG"), row)
        else:
            _write_media(place / synset / f"{synset}_{row.digits(1)}.JPEG", row)
    if place.suffix == ".csv":
        _write_table(place, listed)
    if dataset.synsets is not None:
        _write_text(dataset.synsets, "".join(f"{synset} {name}\n" for synset, name in _IMAGENET.items()))
    _write_class_list(dataset, synsets if dataset.synsets is None else tuple(_IMAGENET.values()))


def _write_class_folders(dataset: DatasetRecipe, split: str) -> None:
    suffix = {"image": "png", "video": "mp4"}[dataset.modality]
    for row in _rows(dataset, split):
        path = Path(dataset.splits[split], _classes(dataset)[row.label], f"{split}_{row.number:05d}.{suffix}")
        _write_media(path, row)
    _write_class_list(dataset, _classes(dataset))


def _write_manifest(dataset: DatasetRecipe, split: str) -> None:
    suffix = {"image": "png", "video": "mp4"}[dataset.modality]
    place = Path(dataset.splits[split])
    listed, columns = [], ("path", "label", "start", "end")
    for row in _rows(dataset, split):
        path, label = f"{split}_{row.number:05d}.{suffix}", _classes(dataset)[row.label]
        values = (path, [label] if dataset.is_multi_label else label, 0.0, _SECONDS)
        named = zip(columns, values, strict=True)
        listed.append({dataset.column(key): value for key, value in named if dataset.column(key) is not None})
        _write_media(Path(dataset.media_root or place.parent, path), row)
    if place.suffix.lower() == ".json":
        _write_text(place, json.dumps(listed))
    elif place.suffix.lower() == ".jsonl":
        _write_text(place, "".join(json.dumps(row) + "\n" for row in listed))
    else:
        cells = [[value[0] if isinstance(value, list) else value for value in row.values()] for row in listed]
        _write_table(place, [list(listed[0]), *cells], "\t" if place.suffix.lower() == ".tsv" else ",")
    _write_class_list(dataset, _classes(dataset))


def _write_class_list(dataset: DatasetRecipe, classes: Sequence[str]) -> None:
    if isinstance(dataset.labels, str):
        names = list(classes)
        is_json = dataset.labels.lower().endswith(".json")
        _write_text(dataset.labels, json.dumps(names) if is_json else "".join(f"{name}\n" for name in names))


_WRITERS: dict[str, Callable[[DatasetRecipe, str], None]] = {
    "kinetics": _write_kinetics,
    "something_something": _write_something_something,
    "moments_in_time": _write_moments_in_time,
    "imagenet": _write_imagenet,
    "class_folders": _write_class_folders,
    "manifest": _write_manifest,
}
