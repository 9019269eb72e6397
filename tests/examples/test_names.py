# SPDX-License-Identifier: Apache-2.0
"""Labels that other programs would read as markup, or have no letters for, through the scripts: nothing of a run is
lost."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from clips import write_clip
from modeling_cover.commands import check as check_dataset
from modeling_cover.commands import evaluate as evaluate_checkpoint
from modeling_cover.commands import explain, predict, probe
from modeling_cover.commands import prepare as prepare_dataset
from modeling_cover.commands import show as show_batch
from modeling_cover.commands import train as cotrain
from modeling_cover.hub.model_card import escape_markdown
from modeling_cover.text import printable
from PIL import Image
from tiny import ENCODER, TRAINING


EXAMPLES = Path(__file__).parents[2] / "examples"
LABELS = ["cash $$", "pay $5 or $10", "walk", "_hidden", "走る", "दौड़", "ركض", "<b>x</b>", "a\tb", "\x1b[31mred\u202e"]
PICTURES = ("confusion_clips.png", "per_class_accuracy_clips.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two clips of each label, and a recipe."""
    folder, rng = tmp_path_factory.mktemp("names"), np.random.default_rng(0)
    rows = [(f"{number}.mp4", LABELS[number % len(LABELS)]) for number in range(2 * len(LABELS))]
    for name, _ in rows:
        write_clip(folder / name, rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    for split, part in (("train", rows[: len(LABELS)]), ("validation", rows[len(LABELS) :])):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label"), *part])
    splits = {"train": "train.csv", "validation": "validation.csv"}
    recipe = {
        "data_root": str(folder),
        "clips": {"num_frames": 2, "image_size": 16, "short_side": 16},
        "model": ENCODER,
        "datasets": [{"name": "clips", "format": "manifest", "modality": "video", "splits": splits}],
        "training": TRAINING,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def model(folder) -> Path:
    """What cotrain.py leaves, in the place of whose curves something else is."""
    (folder / "model" / "training_curves.png").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        run(patch, cotrain, folder / "recipe.yaml", "--output_dir", folder / "model")
    return folder / "model"


def run(monkeypatch, script, *arguments: str | Path) -> int | None:
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    return script.main()


def run_evaluation(folder: Path, model: Path, output: Path) -> int:
    arguments = ["--model", model, "--recipe", folder / "recipe.yaml", "--output", output, "--num_workers", "0"]
    return evaluate_checkpoint.main(list(map(str, arguments)))


def test_a_run_whose_curves_cannot_be_drawn_ends_with_all_else(model):
    assert (model / "training_curves.png").is_dir()
    assert (model / "model.safetensors").is_file()
    assert 0 <= json.loads((model / "eval_results.json").read_text())["eval_clips_top1"] <= 1
    card = (model / "README.md").read_text(encoding="utf-8")
    assert ", ".join(map(escape_markdown, sorted(LABELS)[:3])) in card


def test_an_evaluation_has_the_labels_as_they_are(folder, model, tmp_path, capsys):
    assert run_evaluation(folder, model, tmp_path) == 0
    written = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert sorted(entry["label"] for entry in written["datasets"]["clips"]["classes"]) == sorted(LABELS)
    for name in PICTURES:
        with Image.open(tmp_path / name) as picture:
            picture.load()
    assert "clips" in capsys.readouterr().out


def test_pictures_that_cannot_be_written_lose_no_figures(folder, model, tmp_path, caplog, capsys):
    for name in PICTURES:
        (tmp_path / name).mkdir()
    assert run_evaluation(folder, model, tmp_path) == 0
    written = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert written["datasets"]["clips"]["rows"] == len(LABELS)
    assert [caplog.text.count(f"{name} is not drawn: ") for name in PICTURES] == [1, 1]
    assert f"pictures and evaluation.json in {tmp_path}" in capsys.readouterr().out


def test_a_preparation_whose_picture_cannot_be_written_reports_all_the_same(
    folder, tmp_path, monkeypatch, caplog, capsys
):
    (tmp_path / "train" / "class_histogram.png").mkdir(parents=True)
    arguments = ["--dataset", "clips", "--output", tmp_path, "--num_workers", "1"]
    assert run(monkeypatch, prepare_dataset, folder / "recipe.yaml", *arguments) == 0
    for split in ("train", "validation"):
        report = json.loads((tmp_path / split / "report.json").read_text(encoding="utf-8"))
        assert report["class_counts"] == dict.fromkeys(sorted(LABELS), 1)
    assert caplog.text.count("class_histogram.png is not drawn: ") == 1
    out = capsys.readouterr().out
    assert all(f"    {printable(label)}" in out for label in LABELS)
    assert not {"\t", "\x1b", "\u202e"} & set(out)


def test_a_check_prints_names_and_writes_them(folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "findings.jsonl"
    run(monkeypatch, check_dataset, folder / "recipe.yaml", "--num_workers", "1", "--output", output)
    assert not {"\t", "\x1b", "\u202e"} & set(capsys.readouterr().out)
    assert all(json.loads(line)["dataset"] == "clips" for line in output.read_text(encoding="utf-8").splitlines())


def test_a_probe_writes_the_labels(folder, model, tmp_path):
    arguments = ["--model", model, "--recipe", folder / "recipe.yaml", "--dataset", "clips", "--output", tmp_path]
    assert probe.main([*map(str, arguments), "--num_workers", "0"]) == 0
    written = json.loads((tmp_path / "probe_clips.json").read_text(encoding="utf-8"))
    assert sorted(entry["label"] for entry in written["linear"]["classes"]) == sorted(LABELS)


@pytest.mark.parametrize("label", LABELS)
def test_any_label_is_explained(folder, model, tmp_path, monkeypatch, label):
    arguments = [folder / "0.mp4", "--model", model, "--label", label, "--output", tmp_path]
    assert run(monkeypatch, explain, *arguments) == 0
    with Image.open(tmp_path / "0.png") as sheet:
        sheet.load()


def test_a_batch_is_drawn(folder, tmp_path, monkeypatch):
    assert run(monkeypatch, show_batch, folder / "recipe.yaml", "--output", tmp_path / "batch.png") == 0
    with Image.open(tmp_path / "batch.png") as sheet:
        sheet.load()


class TestAsciiTerminal:
    def shown(self, printed: bytes) -> set[str]:
        return {line.partition("%  ")[2] for line in printed.decode("ascii").splitlines()[1:]}

    @pytest.fixture
    def expected(self) -> set[str]:
        return {printable(label).encode("ascii", "backslashreplace").decode() for label in LABELS}

    def test_predictions_are_printed(self, folder, model, expected, monkeypatch):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(monkeypatch, predict, folder / "0.mp4", "--model", model, "--top_k", "10") == 0
        stream.flush()
        assert self.shown(stream.buffer.getvalue()) == expected

    @pytest.mark.slow
    def test_so_they_are_where_all_of_the_process_knows_nothing_else(self, folder, model, expected):
        unset = {
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "LANG": "C",
            "LC_ALL": "C",
            "PYTHONIOENCODING": "ascii",
        }
        command = [sys.executable, EXAMPLES / "predict.py", folder / "0.mp4", "--model", model, "--top_k", "10"]
        finished = subprocess.run(command, env={**os.environ, **unset}, capture_output=True)
        assert finished.returncode == 0, finished.stderr.decode()
        assert self.shown(finished.stdout) == expected

    def test_json_is_json(self, folder, model, monkeypatch):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        os.link(folder / "0.mp4", folder / "café\U0001f3ac.mp4")
        arguments = [folder / "café\U0001f3ac.mp4", "--model", model, "--top_k", "10", "--json"]
        assert run(monkeypatch, predict, *arguments) == 0
        stream.flush()
        (result,) = json.loads(stream.buffer.getvalue())
        assert result["file"] == str(folder / "café\U0001f3ac.mp4")
        assert {entry["label"] for entry in result["heads"]["clips"]} == set(LABELS)

    def test_the_name_of_a_file_that_is_not_utf8_is_said(self, folder, model, monkeypatch, capsys):
        missing = folder / os.fsdecode(b"caf\xe9.mp4")
        assert run(monkeypatch, predict, missing, folder / "1.mp4", "--model", model) == 1
        captured = capsys.readouterr()
        assert r"caf\udce9.mp4" in captured.err and "1.mp4" in captured.out
