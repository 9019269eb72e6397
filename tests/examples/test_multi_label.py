# SPDX-License-Identifier: Apache-2.0
"""Datasets of several labels a row through the scripts: trained, the best chosen, evaluated, carded, checked."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from clips import write_clip
from modeling_cover import CoverTrainer, CoverTrainingArguments, load_recipe, prepare_cotraining
from modeling_cover.commands import check as check_dataset
from modeling_cover.commands import evaluate as evaluate_checkpoint
from modeling_cover.commands import train as cotrain
from tiny import ENCODER, TRAINING


LISTS = {
    "train": "path,label\n0.mp4,run|jump\n1.mp4,\n2.mp4,jump\n3.mp4,sit\n",
    "validation": "path,label\n4.mp4,run|sit\n5.mp4,jump\n",
    "none": "path,label\n0.mp4,\n1.mp4,\n",
    "classes": "path,label\n0.mp4,run\n1.mp4,walk\n2.mp4,walk\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("tags"), np.random.default_rng(0)
    for number in range(6):
        write_clip(folder / f"{number}.mp4", rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    for name, text in LISTS.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def tags(validation: str | None = "validation", train: str = "train", **options) -> dict:
    splits = {"train": f"{train}.csv"} | ({} if validation is None else {"validation": f"{validation}.csv"})
    entry = {"name": "tags", "format": "manifest", "modality": "video", "splits": splits}
    return entry | {"problem_type": "multi_label_classification"} | options


CLASSES = {
    "name": "classes",
    "format": "manifest",
    "modality": "video",
    "splits": {"train": "classes.csv", "validation": "classes.csv"},
}


def write_recipe(folder: Path, path: Path, *datasets: dict) -> Path:
    content = {
        "data_root": str(folder),
        "clips": {"num_frames": 2, "image_size": 16, "short_side": 16},
        "model": ENCODER,
        "datasets": list(datasets),
        "training": {**TRAINING, "save_steps": 1, "logging_steps": 1},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


CHOOSE_BEST = ("--eval_strategy", "steps", "--eval_steps", "1", "--load_best_model_at_end", "true")


def run(monkeypatch, recipe: Path, output_dir: Path, *options: str) -> dict[str, float]:
    """The last evaluation of a run of cotrain.py."""
    monkeypatch.setattr(sys, "argv", ["cotrain.py", str(recipe), "--output_dir", str(output_dir), *options])
    assert cotrain.main() == 0
    return read_json(output_dir / "eval_results.json")


def read_json(path: Path) -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"{path} is no valid JSON: it has {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


class TestCotrain:
    def test_a_run_ends_with_a_table_of_map_and_a_card(self, folder, tmp_path, monkeypatch, capsys):
        recipe = write_recipe(folder, tmp_path / "recipe.yaml", tags())
        metrics = run(monkeypatch, recipe, tmp_path / "run")
        lines = capsys.readouterr().out.splitlines()
        header = next(index for index, line in enumerate(lines) if line.startswith("head"))
        assert lines[header].split() == ["head", "classes", "training", "rows", "mAP"]
        assert lines[header + 1].split() == ["tags", "3", "4", f"{metrics['eval_tags_map']:.1%}"]
        card = (tmp_path / "run" / "README.md").read_text()
        assert f"| `tags` | - | - | {metrics['eval_tags_map']:.1%} |" in card

    def test_beside_one_label_a_row_each_head_has_its_own_metric(self, folder, tmp_path, monkeypatch, capsys):
        recipe = write_recipe(folder, tmp_path / "recipe.yaml", tags(), CLASSES)
        metrics = run(monkeypatch, recipe, tmp_path / "run", *CHOOSE_BEST)
        top1, mean_precision = metrics["eval_classes_top1"], metrics["eval_tags_map"]
        assert metrics["eval_mean_score"] == pytest.approx((top1 + mean_precision) / 2)
        assert (metrics["eval_mean_top1"], metrics["eval_mean_map"]) == (top1, mean_precision)
        rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
        assert rows["classes"] == ["classes", "2", "3", f"{top1:.1%}", "100.0%", "-"]
        assert rows["tags"] == ["tags", "3", "4", "-", "-", f"{mean_precision:.1%}"]

    def test_the_best_checkpoint_is_chosen_by_map(self, folder, tmp_path, monkeypatch):
        recipe = write_recipe(folder, tmp_path / "recipe.yaml", tags())
        run(monkeypatch, recipe, tmp_path / "run", *CHOOSE_BEST)
        state = read_json(tmp_path / "run" / "checkpoint-2" / "trainer_state.json")
        found = {entry["step"]: entry["eval_tags_map"] for entry in state["log_history"] if "eval_tags_map" in entry}
        assert state["best_metric"] == max(found.values())
        assert state["best_global_step"] == max(found, key=lambda step: (found[step], -step))

    def test_no_label_to_train_on_is_a_sentence(self, folder, tmp_path, monkeypatch, capsys):
        recipe = write_recipe(folder, tmp_path / "recipe.yaml", tags(train="none", validation=None))
        monkeypatch.setattr(sys, "argv", ["cotrain.py", str(recipe), "--output_dir", str(tmp_path / "run")])
        assert cotrain.main() == 2
        said = r"^error: dataset 'tags': no row of the train split \(.*none.csv\) has a label"
        assert re.search(said, capsys.readouterr().err, re.MULTILINE)
        arguments = ["check_dataset.py", str(recipe), "--output", str(tmp_path / "found.jsonl"), "--num_workers", "1"]
        monkeypatch.setattr(sys, "argv", arguments)
        assert check_dataset.main() == 2
        assert "no row of the train split" in capsys.readouterr().err

    def test_no_label_to_evaluate_is_said_and_the_run_ends(self, folder, tmp_path, monkeypatch, capsys, caplog):
        recipe = write_recipe(folder, tmp_path / "recipe.yaml", tags(validation="none"), CLASSES)
        metrics = run(monkeypatch, recipe, tmp_path / "run", *CHOOSE_BEST)
        assert "dataset 'tags': no row of its validation split has a label" in caplog.text
        assert "eval_tags_map" not in metrics
        assert metrics["eval_mean_score"] == metrics["eval_classes_top1"]
        assert "tags     3        4              -" in capsys.readouterr().out
        assert (tmp_path / "run" / "README.md").is_file()
        read_json(tmp_path / "run" / "checkpoint-2" / "trainer_state.json")
        read_json(tmp_path / "run" / "training_summary.json")


class TestEvaluate:
    def test_what_nothing_can_be_measured_of_loses_nothing(self, folder, tmp_path, monkeypatch, capsys):
        recipe = write_recipe(folder, tmp_path / "recipe.yaml", tags(validation="none"), CLASSES)
        run(monkeypatch, recipe, tmp_path / "run")
        arguments = ["--model", str(tmp_path / "run"), "--recipe", str(recipe), "--output", str(tmp_path / "found")]
        assert evaluate_checkpoint.main([*arguments, "--num_workers", "0"]) == 0
        found = read_json(tmp_path / "found" / "evaluation.json")["datasets"]
        assert "map" not in found["tags"]
        assert [entry["average_precision"] for entry in found["tags"]["classes"]] == [None] * 3
        assert 0 <= found["classes"]["top1"] <= 1


class TestBestMetric:
    def make(self, folder, tmp_path, *datasets: dict, **options) -> CoverTrainer:
        recipe = load_recipe(write_recipe(folder, tmp_path / "recipe.yaml", *datasets))
        options = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True} | options
        args = CoverTrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True, max_steps=1, **options)
        return CoverTrainer(args=args, **prepare_cotraining(recipe).trainer_kwargs)

    @pytest.mark.parametrize("metric", ["eval_tags_top1", "tags_top5", "eval_loss"])
    def test_a_metric_that_no_evaluation_has_is_named_before_anything_is_trained(self, folder, tmp_path, metric):
        there = "eval_tags_loss, eval_tags_map, eval_mean_map, eval_mean_score"
        with pytest.raises(ValueError, match=f"no 'eval_{metric.removeprefix('eval_')}', its metrics are {there}"):
            self.make(folder, tmp_path, tags(), metric_for_best_model=metric)

    @pytest.mark.parametrize("metric", ["eval_tags_map", "mean_map", "eval_tags_loss"])
    def test_one_that_there_is_may_be_chosen(self, folder, tmp_path, metric):
        trainer = self.make(folder, tmp_path, tags(), metric_for_best_model=metric)
        trainer.train()
        assert trainer.state.best_global_step == 1

    def test_where_nothing_can_be_measured_nothing_can_be_the_best(self, folder, tmp_path):
        with pytest.raises(ValueError, match="no 'eval_mean_score', its metrics are eval_tags_loss"):
            self.make(folder, tmp_path, tags(validation="none"))

    def test_no_row_of_an_evaluation_is_dropped(self, folder, tmp_path):
        trainer = self.make(folder, tmp_path, CLASSES, dataloader_drop_last=True, per_device_eval_batch_size=2)
        output = trainer.predict(trainer.eval_dataset["classes"])
        assert len(output.label_ids) == 3
