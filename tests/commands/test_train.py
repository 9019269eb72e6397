# SPDX-License-Identifier: Apache-2.0
"""What `cover train` says, and what it leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from killed_runs import write_data
from modeling_cover import CoverTrainer
from modeling_cover.commands import train
from modeling_cover.hub.publishing import files_to_publish
from modeling_cover.training.run_log import LOG_NAME
from python_server import python
from tiny import ENCODER, TRAINING
from transformers import ViTConfig, ViTForImageClassification


VIDEOS = {"name": "videos", "format": "class_folders", "modality": "video"}
IMAGES = {"name": "images", "format": "parquet", "modality": "image", "splits": {"train": "images"}}
MOST_BYTES = 2500


@pytest.fixture
def recipe(tmp_path) -> Path:
    write_data(tmp_path)
    content = {
        "data_root": str(tmp_path),
        "model": ENCODER,
        "clips": {"num_frames": 2, "image_size": 16},
        "bad_files": {"max_share": 0.5},
        "datasets": [{**VIDEOS, "splits": {"train": "videos", "validation": "videos"}}, IMAGES],
        "training": {**TRAINING, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def run(recipe, tmp_path, monkeypatch, capsys):
    """Trains, and returns what was printed."""

    def run(*arguments: str):
        monkeypatch.setattr(
            sys, "argv", ["cover train", str(recipe), "--output_dir", str(tmp_path / "run"), *arguments]
        )
        assert train.main() == 0
        return capsys.readouterr()

    return run


def test_of_a_vit_with_a_classifier_it_says_what_becomes_of_its_weights_once(recipe, tmp_path):
    vit = ViTForImageClassification(ViTConfig(**ENCODER, image_size=16, num_labels=5))
    vit.save_pretrained(tmp_path / "vit")  # without a pooler
    content = yaml.safe_load(recipe.read_text()) | {"model": {"from_image_checkpoint": str(tmp_path / "vit")}}
    content["training"] |= {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    recipe.write_text(yaml.safe_dump(content))
    command = [python(), "-m", "modeling_cover.commands.train", recipe.name, "--output_dir", "run"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("in the checkpoint and not used: classifier.bias, classifier.weight") == 1
    assert "LOAD REPORT" not in finished.stderr and "pooler" not in finished.stderr


@pytest.mark.parametrize("bars", ["True", "False"])
def test_all_that_a_run_says_is_short_and_about_it(recipe, tmp_path, bars):
    command = [python(), "-m", "modeling_cover.commands.train", recipe.name, "--output_dir", "run"]
    command += ["--disable_tqdm", bars]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    for said in (finished.stdout, finished.stderr):
        assert "Traceback" not in said and "{" not in said and "[WARNING]" not in said and "[transformers]" not in said
    assert len(finished.stdout.encode()) < MOST_BYTES, finished.stdout
    told = [line for line in finished.stderr.splitlines() if "\r" not in line and "it/s" not in line and line.strip()]
    if bars == "True":  # so that there are none
        assert len(told) <= 3, finished.stderr
    assert finished.stdout.count("dataset  ") == 1
    assert finished.stdout.rstrip().endswith("Checkpoint: run")


class TestTheLog:
    def test_it_has_all_that_is_printed_and_the_warnings(self, run, tmp_path):
        printed = run()
        log = (tmp_path / "run" / LOG_NAME).read_text()
        assert printed.out.strip() in log.replace("Training in 1 process, on cpu\n", "")
        assert "Training in 1 process, on cpu\n" in log
        assert "it/s" not in log

    def test_a_resumed_run_goes_on_with_it(self, run, tmp_path):
        run()
        first = (tmp_path / "run" / LOG_NAME).read_text()
        run("--max_steps", "6")
        log = (tmp_path / "run" / LOG_NAME).read_text()
        assert log.startswith(first)
        assert "starts from random weights" in first
        assert "resumes from checkpoint-4 of 6 steps" in log.removeprefix(first)
        assert log.count("cover train") == 2

    def test_it_ends_with_the_error(self, recipe, tmp_path, monkeypatch):
        recipe.write_text(recipe.read_text().replace("format: parquet", "format: class_folders"))
        monkeypatch.setattr(sys, "argv", ["cover train", str(recipe), "--output_dir", str(tmp_path / "run")])
        assert train.main() == 2
        assert (tmp_path / "run" / LOG_NAME).read_text().splitlines()[-1].startswith("error: dataset 'images'")

    def test_it_is_not_published(self, run, tmp_path):
        run()
        assert (tmp_path / "run" / LOG_NAME).is_file()
        assert LOG_NAME not in files_to_publish(tmp_path / "run", "org/name")


class TestTheLastEvaluation:
    @pytest.fixture
    def evaluations(self, monkeypatch) -> list[int]:
        """The steps at which all datasets were evaluated."""
        steps, evaluate = [], CoverTrainer.evaluate

        def counted(trainer, eval_dataset=None, *args, **kwargs):
            steps.extend([trainer.state.global_step] * (eval_dataset is None))
            return evaluate(trainer, eval_dataset, *args, **kwargs)

        monkeypatch.setattr(CoverTrainer, "evaluate", counted)
        return steps

    def test_it_is_not_repeated(self, run, evaluations, tmp_path):
        run()
        assert evaluations == [2, 4]
        written = json.loads((tmp_path / "run" / "eval_results.json").read_text())
        (last,) = [
            entry
            for entry in json.loads((tmp_path / "run/checkpoint-4/trainer_state.json").read_text())["log_history"]
            if entry["step"] == 4 and "eval_videos_loss" in entry
        ]
        assert written["eval_videos_loss"] == last["eval_videos_loss"]

    def test_nor_with_an_average_which_is_what_is_evaluated_both_times(self, run, evaluations, tmp_path, monkeypatch):
        run("--ema_decay", "0.5")
        assert evaluations == [2, 4]
        once = json.loads((tmp_path / "run" / "eval_results.json").read_text())
        monkeypatch.setattr(train.LastEvaluation, "is_of", lambda self, trainer: False)
        run("--ema_decay", "0.5")
        assert len(evaluations) > 2
        again = json.loads((tmp_path / "run" / "eval_results.json").read_text())
        assert again["eval_videos_loss"] == pytest.approx(once["eval_videos_loss"], rel=1e-6)

    def test_it_is_done_where_there_was_none_after_the_last_step(self, run, evaluations):
        run("--eval_steps", "3")
        assert evaluations == [3, 4]

    def test_it_is_done_where_the_best_checkpoint_is_another(self, run, evaluations):
        run(
            "--load_best_model_at_end", "True", "--metric_for_best_model", "eval_videos_loss", "--learning_rate", "0.3"
        )
        assert evaluations[:2] == [2, 4]
        assert evaluations[2:] in ([], [4])
