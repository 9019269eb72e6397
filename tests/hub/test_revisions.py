# SPDX-License-Identifier: Apache-2.0
"""A recipe that pins what it starts from and what it trains on, and the record and card that name the commits."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import yaml
from checkpoints import save_vit
from hub_server import HubServer
from modeling_cover import CoverForVideoClassification
from modeling_cover.data.sources import read_sources
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from modeling_cover.recipe.recipe import load_recipe
from PIL import Image
from python_server import python


TRAIN = """
import sys
from modeling_cover import CoverTrainer, CoverTrainingArguments, load_recipe, prepare_cotraining
try:
    recipe = load_recipe(sys.argv[1])
    args = CoverTrainingArguments(sys.argv[2], max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = CoverTrainer(args=args, **prepare_cotraining(recipe, output_dir=args.output_dir).trainer_kwargs)
except ValueError as error:
    sys.exit(f"refused: {error}")
trainer.train()
trainer.save_model()
trainer.create_model_card()
"""


def write_images(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(rows)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * (rows // 2)}, features=features)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[HubServer]:
    """A ViT and a dataset, of which each has a newer version than the one that is tagged."""
    folder = tmp_path_factory.mktemp("uploaded")
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        api = huggingface_hub.HfApi(endpoint=server.url, token=server.token)
        for kind, name in (("model", "org/vit"), ("dataset", "org/images")):
            api.create_repo(name, repo_type=kind)
            for version in range(2):
                if kind == "model":
                    save_vit(folder / kind, num_hidden_layers=1 + version)
                    (folder / kind / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
                else:
                    write_images(folder / kind, 4 + 2 * version)
                commit = api.upload_folder(repo_id=name, folder_path=folder / kind, repo_type=kind)
                if version == 0:
                    api.create_tag(name, tag="v1", revision=commit.oid, repo_type=kind)
        yield server


def write_recipe(path: Path, model: str | None, dataset: str | None) -> Path:
    entry = {
        "name": "images",
        "format": "dataset",
        "path": "org/images",
        "modality": "image",
        "splits": {"train": "train"},
    }
    recipe = {
        "model": {"from_image_checkpoint": "org/vit"} | ({} if model is None else {"revision": model}),
        "clips": {"num_frames": 1, "image_size": 16, "short_side": 20},
        "datasets": [entry | ({} if dataset is None else {"revision": dataset})],
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory) -> dict[str, str]:
    """One for all, as the libraries are imported anew for each."""
    return hub.environment(tmp_path_factory.mktemp("home"))


def run(environment: dict[str, str], folder: Path, recipe: Path) -> subprocess.CompletedProcess:
    command = [python(), "-c", TRAIN, str(recipe), str(folder / "outputs")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_what_is_pinned_is_loaded_and_the_commits_are_in_record_and_card(hub, environment, tmp_path):
    finished = run(environment, tmp_path, write_recipe(tmp_path / "recipe.yaml", "v1", "v1"))
    assert finished.returncode == 0, finished.stderr[-3000:]
    summary = json.loads((tmp_path / "outputs" / "training_summary.json").read_text())
    model, dataset = (
        hub.commits(name, "v1", kind)[0].id for kind, name in (("model", "org/vit"), ("dataset", "org/images"))
    )
    start = {"kind": "from_image_checkpoint", "hub_id": "org/vit", "commit": model}
    start |= {"license": "cc-by-nc-4.0", "stale_heads": []}
    assert summary["starting_point"] == start
    (entry,) = summary["datasets"]
    assert (entry["hub_id"], entry["commit"], entry["rows"]) == ("org/images", dataset, 4)
    assert summary["recipe"]["model"]["revision"] == summary["recipe"]["datasets"][0]["revision"] == "v1"
    assert json.loads((tmp_path / "outputs" / "config.json").read_text())["num_hidden_layers"] == 1
    card = (tmp_path / "outputs" / "README.md").read_text()
    assert f"commit `{model}`" in card and f"commit `{dataset}`" in card
    assert "whose license is cc-by-nc-4.0: it does not allow commercial use" in card


@pytest.mark.parametrize(("model", "dataset", "named"), [("v9", None, "org/vit"), (None, "v9", "org/images")])
def test_a_revision_that_is_not_there_is_one_error(environment, tmp_path, model, dataset, named):
    finished = run(environment, tmp_path, write_recipe(tmp_path / "recipe.yaml", model, dataset))
    assert finished.returncode == 1
    last = finished.stderr[finished.stderr.index("refused: ") :]
    assert named in last and "v9" in last and "Traceback" not in last


class TestWithoutEffect:
    def test_to_a_folder_of_a_model(self, tmp_path):
        (tmp_path / "vit").mkdir()
        recipe = {
            "model": {"from_image_checkpoint": str(tmp_path / "vit"), "revision": "v1"},
            "datasets": [{"name": "a", "format": "class_folders", "modality": "image", "splits": {"train": "a"}}],
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(ValueError, match="vit: revision 'v1' has no effect, as it is no repository of the Hub"):
            load_recipe(tmp_path / "recipe.yaml")
        with pytest.raises(ValueError, match="revision 'v1' has no effect"):
            CoverForVideoClassification.from_timesformer("model.pyth", revision="v1")
        del recipe["model"]["from_image_checkpoint"]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(ValueError, match="model: revision must be that of a starting point on the Hub, got 'v1'"):
            load_recipe(tmp_path / "recipe.yaml")

    def test_to_a_folder_of_a_dataset_and_to_other_formats(self, tmp_path):
        entry = {"name": "a", "modality": "image", "splits": {"train": "train"}, "revision": "v1"}
        with pytest.raises(ValueError, match="revision 'v1' has no effect, as it is no dataset of the Hub"):
            read_sources(DatasetRecipe(**entry, format="dataset", path=str(tmp_path)))
        with pytest.raises(ValueError, match="revision does not apply to the format 'class_folders'"):
            DatasetRecipe(**entry, format="class_folders")

    def test_to_another_place_than_it_was_written_beside(self, tmp_path):
        write_recipe(tmp_path / "base.yaml", "v1", "v2")
        child = {"extends": "base.yaml", "model": {"from_pretrained": "org/other"}}
        child["datasets"] = [{"name": "images", "path": "org/other"}]
        (tmp_path / "child.yaml").write_text(yaml.safe_dump(child))
        recipe = load_recipe(tmp_path / "child.yaml")
        assert recipe.model == {"from_pretrained": "org/other"} and recipe.datasets[0].revision is None
        child = {"extends": "base.yaml", "model": {"revision": "v3"}, "datasets": ["images"]}
        (tmp_path / "child.yaml").write_text(yaml.safe_dump(child))
        recipe = load_recipe(tmp_path / "child.yaml")
        assert recipe.model == {"from_image_checkpoint": "org/vit", "revision": "v3"}
        assert recipe.datasets[0].revision == "v2"
