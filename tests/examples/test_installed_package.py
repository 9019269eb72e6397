# SPDX-License-Identifier: Apache-2.0
"""`pip install .`, and the repository left behind: what is installed trains, writes its model card, and predicts, in
Python and by its commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip


ROOT = Path(__file__).resolve().parents[2]

RECIPE = """
clips: {num_frames: 2, image_size: 16, short_side: 20}
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64, patch_size: 8}
datasets:
  - {name: clips, format: class_folders, modality: video, splits: {train: clips, validation: clips}}
training: {per_device_train_batch_size: 4, max_steps: 2, report_to: none, use_cpu: true, disable_tqdm: true}
"""

CODE = """
import json
from pathlib import Path

import modeling_cover
from modeling_cover import CoverTrainer, CoverTrainingArguments, load_recipe, prepare_cotraining
from transformers import pipeline

recipe = load_recipe("recipe.yaml")
args = CoverTrainingArguments("run", **recipe.training)
cotraining = prepare_cotraining(recipe, args.seed, args.output_dir)
trainer = CoverTrainer(args=args, **cotraining.trainer_kwargs)
trainer.train()
trainer.save_model()
trainer.create_model_card()
(best, *_) = pipeline("video-classification", "run", trust_remote_code=True)("clips/one/0.mp4")
answer = [str(Path(modeling_cover.__file__).parent), trainer.state.global_step, best["label"]]
Path("answer.json").write_text(json.dumps(answer))
"""


@pytest.mark.slow
class TestTheInstalledPackage:
    @pytest.fixture(scope="class")
    @staticmethod
    def site(tmp_path_factory) -> Path:
        """A folder that pip has installed the package into, out of a wheel that it has built."""
        site = tmp_path_factory.mktemp("site")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(ROOT)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return site

    def test_it_has_no_file_of_the_repository_but_the_package(self, site):
        found = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
        assert found == {"modeling_cover", "bin"}
        assert [path.name for path in (site / "bin").iterdir()] == ["cover"]

    def test_it_trains_writes_a_model_card_and_predicts(self, site, tmp_path):
        for label in ("one", "two"):
            for index in range(2):
                path = tmp_path / "clips" / label / f"{index}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_clip(path, np.full((4, 24, 24, 3), 60 * index + 40, dtype=np.uint8))
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        run = subprocess.run(
            [sys.executable, "-c", CODE],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "HF_MODULES_CACHE": str(tmp_path / "modules")},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        place, step, label = json.loads((tmp_path / "answer.json").read_text())
        assert Path(place) == site / "modeling_cover"
        assert step == 2
        assert label in ("one", "two")
        card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
        assert "library_name: transformers" in card
        for command in (
            ["accelerate.commands.launch", "--cpu", "-m", "modeling_cover.commands.train", "recipe.yaml"],
            ["modeling_cover.commands.predict", "clips/one/0.mp4", "--model", "run"],
        ):
            more = ["--output_dir", "by_command"] * ("recipe.yaml" in command)
            finished = subprocess.run(
                [sys.executable, "-m", *command, *more],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(site), "HF_MODULES_CACHE": str(tmp_path / "modules")},
                capture_output=True,
                text=True,
            )
            assert finished.returncode == 0, finished.stderr
        assert (tmp_path / "by_command" / "model.safetensors").is_file()
