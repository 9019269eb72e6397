# SPDX-License-Identifier: Apache-2.0
"""Small datasets of the `datasets` library to be given as objects, and what is decoded of them."""

from typing import Any

import numpy as np
import torch
from clips import plain_frames
from datasets import (
    ClassLabel,
    Dataset,
    Features,
    IterableDataset,
    Value,
)
from modeling_cover import EvaluationDataset
from modeling_cover.data.sources import to_source
from tiny import tiny_processor


LABELS = ["down", "up"]
CLASSES = ClassLabel(names=LABELS)


def labelled(values: list, feature: Any = None, name: str = "video") -> Dataset:
    rows = {name: values, "label": [index % 2 for index in range(len(values))]}
    return Dataset.from_dict(rows, features=Features({name: feature, "label": CLASSES}))


def frames_of(paths: list[str]) -> list[np.ndarray]:
    """(T, H, W, 3) of each file, all frames."""
    return [plain_frames(path) for path in paths]


def evaluated(data: Any, labels: list[str] | None = None) -> list[tuple[torch.Tensor, Any]]:
    """The clips (T, 3, H, W) and labels of a dataset, as the model takes them."""
    processor = tiny_processor()
    dataset = EvaluationDataset(to_source("given", data, labels=labels), processor)
    samples = [dataset[row] for row in range(len(data))]
    clips = [sample["pixel_values"] for sample in samples]
    clips = [clip if clip.is_floating_point() else processor.normalize_pixels(clip) for clip in clips]
    return list(zip(clips, (sample["labels"] for sample in samples), strict=True))


def numbered(count: int, shards: int = 1, start: int = 0) -> IterableDataset:
    """Rows of which each has its number as the file's content."""
    rows = {"image": [str(row).encode() for row in range(start, start + count)], "label": [0] * count}
    features = Features({"image": Value("binary"), "label": CLASSES})
    return Dataset.from_dict(rows, features=features).to_iterable_dataset(num_shards=shards)
