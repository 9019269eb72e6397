# SPDX-License-Identifier: Apache-2.0
"""The data of `killed_runs.write_data` as objects of the `datasets` library and of PyTorch, and runs on them."""

from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import ClassLabel, Features, Image, Video
from killed_runs import build_recipe
from modeling_cover import CoverConfig, CoverForVideoClassification, CoverTrainer, CoverTrainingArguments, heads_of
from modeling_cover.training.from_recipe import build_processor


def video_paths(folder: Path) -> list[Path]:
    return sorted((folder / "videos").rglob("*.mp4"))


def video_rows(folder: Path, form: str = "path") -> dict[str, list]:
    """Paths, bytes, or both as `datasets` stores them."""
    forms = {
        "path": str,
        "bytes": Path.read_bytes,
        "both": lambda path: {"path": str(path), "bytes": None},
    }
    paths = video_paths(folder)
    return {"video": [forms[form](path) for path in paths], "label": [int(path.parent.name[-1]) for path in paths]}


def videos(folder: Path, form: str = "both") -> datasets.Dataset:
    """The clips, one of which is damaged, in order of their paths."""
    rows = video_rows(folder, form)
    media = {"both": Video(decode=False), "path": datasets.Value("string"), "bytes": datasets.Value("binary")}[form]
    features = Features({"video": media, "label": ClassLabel(names=["class0", "class1"])})
    return datasets.Dataset.from_dict(rows, features=features)


def image_stream(folder: Path) -> datasets.IterableDataset:
    """The images, streamed from two Parquet files."""
    files = sorted(map(str, (folder / "images").glob("*.parquet")))
    return datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)


def interleaved(folder: Path) -> dict[str, Any]:
    """The clips in another order, and a stream that is interleaved of two, mapped and filtered; it has 10 rows."""
    files = sorted(map(str, (folder / "images").glob("*.parquet")))
    parts = [datasets.Dataset.from_parquet(file, cache_dir=str(folder / "cache")) for file in files]
    parts = [part.to_iterable_dataset(num_shards=2).cast_column("image", Image(decode=False)) for part in parts]
    kept = parts[1].filter(lambda row: row["label"] < 2)
    swapped = kept.map(lambda row: {**row, "label": 1 - row["label"]}, features=parts[0].features)
    stream = datasets.interleave_datasets([parts[0], swapped], stopping_strategy="all_exhausted_without_replacement")
    return {"videos": videos(folder).shuffle(seed=1), "images": stream}


class Rows(torch.utils.data.Dataset):
    """A map-style dataset of PyTorch."""

    def __init__(self, rows: list[dict[str, Any]], classes: list[str] | None = None):
        self.rows = rows
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.rows[row]


def sizes_of(given: dict[str, Any]) -> dict[str, int]:
    """The rows of the streams among them."""
    streams = {name: data for name, data in given.items() if isinstance(data, datasets.IterableDataset)}
    return {name: sum(1 for _ in data) for name, data in streams.items()}


def given_trainer(
    folder: Path, output_dir: Path, given: dict[str, Any], trainer_class: type[CoverTrainer] = CoverTrainer, **options
) -> CoverTrainer:
    """A trainer of the model of `killed_runs.build_recipe` on datasets that are given; `options` are arguments of the
    run, and under `trainer` of the trainer."""
    for_trainer = options.pop("trainer", {})
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "save_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    args = CoverTrainingArguments(str(output_dir), **{**defaults, **options})
    recipe = build_recipe(folder)
    torch.manual_seed(0)
    sizes = {"num_frames": recipe.clips.num_frames, "image_size": recipe.clips.image_size}
    config = CoverConfig(
        heads=heads_of(given, {name: ["a", "b", "c"] for name in given if name == "images"}),
        default_head=next(iter(given)),
        **sizes,
        **recipe.model,
    )
    return trainer_class(
        CoverForVideoClassification(config),
        args,
        train_dataset=given,
        **{
            "processing_class": build_processor(recipe),
            "sizes": sizes_of(given),
            "shuffle_buffer": 4,
            "max_bad_share": 0.5,
            **for_trainer,
        },
    )
