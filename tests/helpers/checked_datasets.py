# SPDX-License-Identifier: Apache-2.0
"""Datasets of scenes that are told from one another, and what a check says of them."""

import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from clips import write_clip
from modeling_cover import CoverVideoProcessor, load_recipe
from modeling_cover.data.sources import read_sources
from modeling_cover.dataset_tools.check_report import Finding, Report
from modeling_cover.dataset_tools.checking import check_datasets
from PIL import Image


PROCESSOR = CoverVideoProcessor(num_frames=4, size={"shortest_edge": 48}, crop_size={"height": 32, "width": 32})


def scene(seed: int, num_frames: int = 12, height: int = 108, width: int = 144) -> np.ndarray:
    """uint8 (T, H, W, 3): clouds, others for each seed, which drift to one side and fade. As of photographs, what is
    twice as small is half as strong."""
    rng = np.random.default_rng(seed)
    clouds = torch.full((3, height, width), 128.0)
    for octave in range(5):
        blobs = torch.from_numpy(rng.normal(0, 50 / 2**octave, (1, 3, 3 * 2**octave, 4 * 2**octave))).float()
        clouds += torch.nn.functional.interpolate(blobs, (height, width), mode="bicubic")[0]
    clouds = clouds.clamp(0, 255).permute(1, 2, 0).numpy()
    return np.stack([np.roll(clouds, 3 * t, axis=1) * (1 - t / 40) for t in range(num_frames)]).astype(np.uint8)


def write_scene(path: Path, seed: int, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, scene(seed), **options)
    return path


def write_picture(path: Path, seed: int, side: int = 192, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(seed, num_frames=1, height=192)[0]).resize((side, side)).save(path, **options)
    return path


def copy(source: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)
    return path


def truncate(path: Path) -> None:
    """Cut a file in half whose header is at its front."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def entry(folder: Path, modality: str = "video", **keys) -> dict:
    """Of a dataset of class folders."""
    splits = {split: str(folder / split) for split in ("train", "validation") if (folder / split).exists()}
    return {"name": folder.name, "format": "class_folders", "modality": modality, "splits": splits, **keys}


def write_recipe(path: Path, *entries: dict) -> Path:
    path.write_text(yaml.safe_dump({"datasets": list(entries), "clips": {"num_frames": 4, "image_size": 32}}))
    return path


def check(tmp_path: Path, *entries: dict, **options) -> Report:
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", *entries))
    return check_datasets({dataset.name: read_sources(dataset) for dataset in recipe.datasets}, PROCESSOR, **options)


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def only(report: Report, kind: str) -> Finding:
    assert kinds(report) == [kind]
    return report.findings[0]


def write_clean(folder: Path) -> Path:
    """Two datasets of videos, `a` and `b`, of two classes with two training rows and one validation row each."""
    for number, dataset in enumerate(("a", "b")):
        for index, label in enumerate(("left", "right")):
            seed = 100 * number + 10 * index
            write_scene(folder / dataset / "train" / label / "0.mp4", seed)
            write_scene(folder / dataset / "train" / label / "1.mp4", seed + 1)
            write_scene(folder / dataset / "validation" / label / "2.mp4", seed + 2)
    return folder
