# SPDX-License-Identifier: Apache-2.0
"""Datasets as they are on the Hub: Parquet files, and a card that says how many rows there are."""

import io
from pathlib import Path

import datasets
import numpy as np
from clips import write_clip
from huggingface_hub import DatasetCardData
from PIL import Image


def write_published(folder: Path) -> None:
    """org/gestures and org/sports of videos, org/objects of images, with 6 rows each; gestures are validated too."""
    rng = np.random.default_rng(0)

    def clip() -> dict:
        path = folder / "clip.mp4"
        write_clip(path, rng.integers(0, 256, (4, 32, 40, 3), dtype=np.uint8))
        content = path.read_bytes()
        path.unlink()
        return {"bytes": content, "path": None}

    def image() -> dict:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(buffer, "png")
        return {"bytes": buffer.getvalue(), "path": None}

    folder.mkdir()
    videos, images = ("video", clip, datasets.Video()), ("image", image, datasets.Image())
    for name, (column, make, feature), labels, splits in (
        ("gestures", videos, ["point", "wave"], ("train", "validation")),
        ("sports", videos, ["run", "swim", "throw"], ("train",)),
        ("objects", images, ["cup", "fork"], ("train",)),
    ):
        features = datasets.Features({column: feature, "label": datasets.ClassLabel(names=labels)})
        for split in splits:
            rows = {column: [make() for _ in range(6)], "label": [row % len(labels) for row in range(6)]}
            table = datasets.Dataset.from_dict(rows, features=features)
            (folder / name / "data").mkdir(parents=True, exist_ok=True)
            table.to_parquet(folder / name / "data" / f"{split}-00000-of-00001.parquet")
        counts = {split: datasets.SplitInfo(split, num_examples=6, dataset_name=name) for split in splits}
        info = datasets.DatasetInfo(features=features, splits=datasets.SplitDict(counts, dataset_name=name))
        card = DatasetCardData()
        datasets.info.DatasetInfosDict({"default": info}).to_dataset_card_data(card)
        (folder / name / "README.md").write_text(f"---\n{card}\n---\n")
