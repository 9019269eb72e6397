# SPDX-License-Identifier: Apache-2.0
"""Every snippet of the pages under docs runs on small stand-ins for what it names."""

import itertools
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
import torch
from checkpoints import save_quickstart
from clips import indexed_frames, write_clip
from encoders import save_encoder, torchvisions_video_swin
from fashion_mnist import write_fashion_mnist
from hub_server import HubServer
from modeling_cover import load_recipe
from modeling_cover.data.sources import read_sources
from modeling_cover.dataset_tools.stand_ins import moved, write_stand_ins
from packageless import run_without_package
from PIL import Image
from published_datasets import write_published
from python_server import python
from remote_servers import s3_server
from tiny import ENCODER
from transformers import ViTConfig, ViTModel, ViTMSNConfig, ViTMSNModel


ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = [
    (page.stem, language, code)
    for page in PAGES
    for language, code in re.findall(
        r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
]

# Snippets that are a file, which a command of their page runs, by page and name.
SCRIPTS = {
    (page, found[1]): code
    for page, language, code in BLOCKS
    if language == "python" and (found := re.match(r"# (\S+\.py)\n", code))
}

# Each of its snippets exports a model; test_exporting.py has smaller ones.
SLOW_PAGE = "exporting"


def blocks(*languages: str) -> list:
    return [
        pytest.param(code, id=f"{page}: {code.splitlines()[0][:60]}", marks=[pytest.mark.slow] * (page == SLOW_PAGE))
        for page, language, code in BLOCKS
        if language in languages
    ]


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def store():
    with s3_server():
        yield fsspec.filesystem("s3")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, hub, store) -> Path:
    """A folder with the examples, a small quickstart, published as org/quickstart, and a dataset of each layout."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples").symlink_to(ROOT / "examples")
    for _, language, code in BLOCKS:
        if language == "yaml":
            (folder / re.match(r"# (\S+)\n", code)[1]).write_text(code)
    for (_, name), code in SCRIPTS.items():
        (folder / name).write_text(code)
    _write_quickstart(folder / "data" / "quickstart")
    save_quickstart(folder / "outputs" / "quickstart")
    write_published(folder / "org")
    ViTModel(ViTConfig(**ENCODER, image_size=32)).save_pretrained(folder / "google" / "vit-base-patch16-224-in21k")
    save_encoder(folder / "facebook" / "vjepa2-vitl-fpc64-256", "vjepa2")
    save_encoder(folder / "MCG-NJU" / "videomae-base", "videomae")
    torch.save(torchvisions_video_swin(400).state_dict(), folder / "swin3d_t-7615ae03.pth")
    options = {**ENCODER, "num_hidden_layers": 1, "image_size": 32}
    ViTMSNModel(ViTMSNConfig(**options)).save_pretrained(folder / "facebook" / "vit-msn-small")
    _write_layouts(folder / "my_data")
    for code in (code for page, language, code in BLOCKS if (page, language) == ("published_datasets", "yaml")):
        for dataset in load_recipe(folder / re.match(r"# (\S+)\n", code)[1]).datasets:
            write_stand_ins(moved(dataset, folder))
    _write_remote(store, folder / "my_data")
    write_fashion_mnist(folder / "data" / "fashion-mnist")
    run(hub, folder, python(), "examples/publish.py", "outputs/quickstart", "org/quickstart", "--private")
    return folder


def _clip(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named after its content, so that no two files are alike.
    rng = np.random.default_rng(list(str(path).encode()))
    noise = rng.integers(0, 4, (16, 48, 64, 3), dtype=np.uint8)
    write_clip(path, indexed_frames(16) + noise + rng.integers(0, 64, 3, dtype=np.uint8))


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)


def _write_quickstart(folder: Path) -> None:
    for split in ("train", "val"):
        for label in ("ring", "star"):
            for index in range(3):
                _clip(folder / "shapes" / split / label / f"{index:03d}.mp4")
        for label in ("dots", "plain"):
            for index in range(8):
                _image(folder / "images" / split / label / f"{index:03d}.png")
        lines = ["video,label"]
        for index, label in enumerate(["growing", "moving down", "moving left", "growing"]):
            name = f"videos/{index if split == 'train' else 100 + index:05d}.mp4"
            _clip(folder / "motions" / name)
            lines.append(f"{name},{label}")
        (folder / "motions" / f"{split}.csv").write_text("\n".join(lines))
    _clip(folder / "motions" / "videos" / "01440.mp4")


def _write_layouts(folder: Path) -> None:
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            _image(folder / "folders" / split / label / "0.png")
    for split, label, index in itertools.product(("train", "val"), ("wave", "clap"), range(2)):
        _clip(folder / "named" / split / f"{label}_{index}.mp4")
    _clip(folder / "table" / "videos" / "long.mp4")
    (folder / "table" / "train.tsv").write_text(
        "file\taction\tfrom\tto\nlong.mp4\trun\t0\t0.1\nlong.mp4\twalk\t0.1\t\n"
    )
    _image(folder / "tags" / "0.png")
    (folder / "tags" / "train.csv").write_text("path,label\n0.png,red|blue\n")
    header = "label,youtube_id,time_start,time_end,split\n"
    (folder / "k400").mkdir()
    (folder / "k400" / "train.csv").write_text(f"{header}run,abc,1,11,train\nrun,gone,2,12,train\n")
    _clip(folder / "k400" / "clips" / "abc_000001_000011.mp4")
    template = {"id": "1", "label": "lifting a cup", "template": "Lifting [something]", "placeholders": ["a cup"]}
    _clip(folder / "ssv2" / "1.mp4")
    (folder / "ssv2" / "20bn-something-something-v2").mkdir()
    (folder / "ssv2" / "1.mp4").rename(folder / "ssv2" / "20bn-something-something-v2" / "1.webm")
    (folder / "ssv2" / "something-something-v2-train.json").write_text(json.dumps([template]))
    (folder / "ssv2" / "something-something-v2-labels.json").write_text(json.dumps({"Lifting something": "0"}))
    _clip(folder / "mit" / "training" / "running" / "0.mp4")
    (folder / "mit" / "trainingSet.csv").write_text("running/0.mp4,running,3,1\n")
    (folder / "mit" / "moments_categories.txt").write_text("running,0\n")
    _write_shard(folder / "shards" / "train-000.tar")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [{"path": None, "bytes": (folder / "tags" / "0.png").read_bytes()}] * 6
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features=features)
    (folder / "parquet" / "train").mkdir(parents=True)
    table.to_parquet(folder / "parquet" / "train" / "0.parquet")
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "saved")


def _write_remote(store: fsspec.AbstractFileSystem, folder: Path) -> None:
    store.mkdir("my-bucket")
    for name in ("train-000", "train-001"):
        store.put(str(folder / "shards" / "train-000.tar"), f"my-bucket/data/shards/{name}.tar")
    store.pipe("my-bucket/data/train.csv", b"path,label\nclips/0.mp4,up\n")


def _write_shard(path: Path) -> None:
    path.parent.mkdir(parents=True)
    _clip(path.parent / "0.mp4")
    with tarfile.open(path, "w") as shard:
        for key, index in (("a", "0"), ("b", "1")):
            shard.add(path.parent / "0.mp4", f"{key}.mp4")
            (path.parent / "label").write_text(index)
            shard.add(path.parent / "label", f"{key}.cls")


@pytest.mark.parametrize("code", blocks("yaml"))
def test_a_recipe_reads_its_data(workspace, code, monkeypatch):
    monkeypatch.chdir(workspace)
    for page, name in SCRIPTS:
        if (page, "yaml", code) in BLOCKS:
            runpy.run_path(name)  # which registers what the recipe names
    for dataset in load_recipe(re.match(r"# (\S+)\n", code)[1]).datasets:
        assert len(read_sources(dataset)["train"]) >= 1


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page == SLOW_PAGE))
        for page in sorted({page for page, language, _ in BLOCKS if language == "python"})
    ],
)
def test_the_python_snippets_of_a_page_run(hub, workspace, page):
    snippets = [code for name, language, code in BLOCKS if (name, language) == (page, "python")]
    for code in snippets:
        if code in SCRIPTS.values():
            continue
        if _is_of_a_stranger(code):
            finished = run_without_package(code, workspace, hub.environment(workspace / "stranger"))
            assert finished.returncode == 0, finished.stderr[-3000:]
        else:
            run(hub, workspace, python(), "-c", code)  # each in an interpreter of its own, as a reader pastes it


def _is_of_a_stranger(code: str) -> bool:
    """Whether a snippet is for who has not installed the package."""
    return "trust_remote_code" in code


# Benchmarks take minutes, a page is served until it is stopped: test_demo.py asks it something; and test_miniature.py
# looks at what its study has made.
@pytest.mark.parametrize(
    "code",
    [
        block
        for block in blocks("bash")
        if not re.match(r".*(benchmark|/compare_encoders\.py|/demo\.py|/paper_in_miniature\.py)", block.values[0])
    ],
)
def test_a_command_runs(hub, workspace, code):
    run(hub, workspace, "bash", "-euc", code)


def run(hub: HubServer, workspace: Path, *command: str) -> None:
    path = os.pathsep.join([str(Path(python()).parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**hub.environment(workspace / "home"), "PATH": path, "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []
