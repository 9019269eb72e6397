# SPDX-License-Identifier: Apache-2.0
"""Clips to make compact datasets of, and what has become of them."""

from pathlib import Path

import numpy as np
from clips import indexed_frames, write_clip
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.dataset_tools.prepared_rows import PreparationSettings
from modeling_cover.model.frame_sampling_cover import uniform_frame_indices
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


# More frames than are wanted, as many, and fewer.
LENGTHS = [30, 9, 4, 3, 1, 12, 17]


def settings(modality: str = "video", **options) -> PreparationSettings:
    small = {"num_frames": 4} if modality == "video" else {}
    return PreparationSettings(modality=modality, **{"short_side": 32, "shard_size": 3, **small, **options})


def entry(folder: Path, format: str = "class_folders", modality: str = "video", **options) -> DatasetRecipe:
    splits = options.pop("splits", {"train": str(folder / "train"), "validation": str(folder / "validation")})
    return DatasetRecipe(name="acts", format=format, modality=modality, splits=splits, **options)


def patterned_frames(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that carry their number and a soft pattern, so that both time and place can be told."""
    slope = np.linspace(-20, 20, width)[None, :] + np.linspace(-10, 10, height)[:, None]
    frames = 30 + indexed_frames(num_frames, height, width) * 0.75 + slope[..., None] * [1.0, 0.5, -0.5]
    return frames.clip(0, 255).astype(np.uint8)


def write_clips(folder: Path) -> Path:
    """Seven clips of two classes to train on, two to validate."""
    for split, lengths in {"train": LENGTHS, "validation": LENGTHS[:2]}.items():
        for number, length in enumerate(lengths):
            path = folder / split / ("wave", "point")[number % 2] / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path, patterned_frames(length), g="250")
    return folder


def compact(output: Path, **options) -> Source:
    """The train split of a compact dataset, read as any other."""
    return read_sources(entry(output, "webdataset", **{"splits": {"train": str(output / "train")}} | options))["train"]


def rows_of(source: Source) -> dict[int, tuple[bytes, str]]:
    """The encoded file and the label of each row of the original."""
    return {
        int(media.name.rpartition("/")[2].partition(".")[0]): (media.content, source.labels[source.target(row)])
        for row, media in enumerate(source.media)
    }


def files_of(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def sample(num_frames: int):
    return lambda metadata: uniform_frame_indices(metadata.total_num_frames, num_frames)
