# SPDX-License-Identifier: Apache-2.0
"""The example scripts and the recipes that come with them."""

import functools
import json
import sys
from pathlib import Path

import benchmark_scaling
import forked_runs
import numpy as np
import pytest
import torch
import yaml
from clips import write_clip
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor, load_recipe
from modeling_cover.commands import benchmark, predict
from modeling_cover.commands import train as cotrain
from PIL import Image
from tiny import save_tiny


EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted((EXAMPLES / "recipes").glob("*.yaml"))


HEADS = {
    "motions": {"labels": ["left", "right", "up"]},
    "tags": {"labels": ["bright", "dark"], "problem_type": "multi_label_classification"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with a single-label and a multi-label head, a clip, an image and two broken files."""
    folder = tmp_path_factory.mktemp("examples")
    save_tiny(folder / "model", HEADS)
    rng = np.random.default_rng(0)
    write_clip(folder / "clip.mp4", rng.integers(0, 256, (6, 48, 64, 3), dtype=np.uint8))
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "image.png")
    (folder / "broken.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:200])
    return folder


class TestPredict:
    def run(self, monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        code = predict.main()
        return code, *capsys.readouterr()

    def test_it_answers_for_every_head_of_videos_and_images(self, folder, monkeypatch, capsys):
        files = [str(folder / "clip.mp4"), str(folder / "image.png")]
        code, out, _ = self.run(monkeypatch, capsys, *files, "--model", folder / "model", "--json")
        results = json.loads(out)
        assert code == 0
        assert [result["file"] for result in results] == files
        for result in results:
            assert set(result["heads"]) == {"motions", "tags"}
            motions = result["heads"]["motions"]
            assert {entry["label"] for entry in motions} == {"left", "right", "up"}
            assert sum(entry["score"] for entry in motions) == pytest.approx(1)
            assert motions == sorted(motions, key=lambda entry: -entry["score"])

    def test_the_scores_are_the_models(self, folder, monkeypatch, capsys):
        _, out, _ = self.run(monkeypatch, capsys, folder / "clip.mp4", "--model", folder / "model", "--json")
        heads = json.loads(out)[0]["heads"]
        model = CoverForVideoClassification.from_pretrained(folder / "model").eval()
        processor = CoverVideoProcessor.from_pretrained(folder / "model")
        with torch.no_grad():
            logits = model(**processor(str(folder / "clip.mp4"), return_tensors="pt")).head_logits
        best = logits["motions"][0].argmax().item()
        assert heads["motions"][0]["label"] == HEADS["motions"]["labels"][best]
        assert heads["motions"][0]["score"] == pytest.approx(logits["motions"].softmax(-1).max().item())
        assert heads["tags"][0]["score"] == pytest.approx(logits["tags"].sigmoid().max().item())

    def test_in_bf16_they_are_so_to_its_precision(self, folder, monkeypatch, capsys):
        options = [folder / "clip.mp4", "--model", folder / "model", "--head", "motions", "--json"]
        exact, near = (
            {entry["label"]: entry["score"] for entry in json.loads(out)[0]["heads"]["motions"]}
            for _, out, _ in (
                self.run(monkeypatch, capsys, *options, "--dtype", dtype) for dtype in ("auto", "bfloat16")
            )
        )
        assert near == pytest.approx(exact, abs=0.02)
        assert near != exact

    def test_three_crops_are_averaged(self, folder, monkeypatch, capsys):
        arguments = (folder / "clip.mp4", "--model", folder / "model", "--views", 3, "--json")
        _, out, _ = self.run(monkeypatch, capsys, *arguments)
        model = CoverForVideoClassification.from_pretrained(folder / "model").eval()
        processor = CoverVideoProcessor.from_pretrained(folder / "model")
        clips = processor(str(folder / "clip.mp4"), num_spatial_crops=3, return_tensors="pt")
        assert len(clips["pixel_values"]) == 3
        with torch.no_grad():
            expected = model(**clips).logits.softmax(-1).mean(0).max().item()
        assert json.loads(out)[0]["heads"]["motions"][0]["score"] == pytest.approx(expected)

    def test_a_broken_file_is_reported_and_the_others_are_predicted(self, folder, monkeypatch, capsys):
        files = (folder / "broken.mp4", folder / "clip.mp4", folder / "missing.mp4")
        code, out, err = self.run(monkeypatch, capsys, *files, "--model", folder / "model")
        assert code == 1
        assert "clip.mp4" in out
        assert "motions" in out
        assert "broken.mp4" in err
        assert "missing.mp4" in err
        assert "broken.mp4" not in out

    def test_a_table_has_the_best_classes_of_the_heads_asked_for(self, folder, monkeypatch, capsys):
        arguments = (folder / "clip.mp4", "--model", folder / "model", "--head", "motions", "--top_k", 2)
        _, out, _ = self.run(monkeypatch, capsys, *arguments)
        lines = out.strip().splitlines()
        assert len(lines) == 3
        assert lines[1].split()[0] == "motions"

    def test_an_unknown_head_is_named_with_those_there_are(self, folder, monkeypatch, capsys):
        options = ("--model", folder / "model", "--head", "k400")
        code, _, err = self.run(monkeypatch, capsys, folder / "clip.mp4", *options)
        assert code == 2
        assert err.endswith("\nerror: unknown head 'k400': expected one of ['motions', 'tags']\n")


class TestRecipes:
    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
    def test_it_loads_and_its_training_arguments_are_some(self, path, tmp_path):
        recipe = load_recipe(path)
        args = cotrain.parse_training_arguments(recipe, ["--use_cpu", "true", "--output_dir", str(tmp_path)])
        for name, value in recipe.training.items():
            if name not in ("output_dir", "report_to"):  # overridden; "none" becomes an empty list
                assert getattr(args, name) == value, name

    @pytest.mark.parametrize(
        "path", [path for path in RECIPES if "mit_imagenet" in path.stem], ids=lambda path: path.stem
    )
    def test_it_is_the_papers_run(self, path):
        """Section 4.1 and Table 6 of the paper; supplement B for the standard input of Base."""
        recipe = load_recipe(path)
        datasets = {dataset.name: dataset for dataset in recipe.datasets}
        assert [datasets[name].modality for name in ("ssv2", "mit", "imagenet")] == ["video", "video", "image"]
        assert [name for name, dataset in datasets.items() if not dataset.horizontal_flip] == ["ssv2"]
        assert datasets["imagenet"].weight == 0.5
        training = recipe.training
        assert (training["num_train_epochs"], training["learning_rate"]) == (20, 5e-3)
        assert (training["optim"], training["optim_args"]) == ("sgd", "momentum=0.9")
        assert (training["lr_scheduler_type"], training["learning_rate_drop_epochs"]) == ("constant", [11, 15])
        size = (16, 448) if "large" in path.stem else (8, 224)
        assert (recipe.clips.num_frames, recipe.clips.image_size) == size
        assert recipe.model["default_head"] == path.stem.split("_")[0]

    def test_the_command_line_overrides_the_recipe(self, tmp_path):
        recipe = load_recipe(EXAMPLES / "recipes" / "quickstart.yaml")
        args = cotrain.parse_training_arguments(
            recipe, ["--use_cpu", "true", "--output_dir", str(tmp_path), "--learning_rate", "0.5", "--seed", "7"]
        )
        assert (args.learning_rate, args.seed, args.output_dir) == (0.5, 7, str(tmp_path))
        assert args.per_device_train_batch_size == recipe.training["per_device_train_batch_size"]

    def test_an_unknown_training_argument_in_a_recipe_is_named(self, tmp_path):
        content = yaml.safe_load((EXAMPLES / "recipes" / "quickstart.yaml").read_text())
        content["training"]["learning_rat"] = 0.1
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(ValueError, match="learning_rat are not training arguments"):
            cotrain.parse_training_arguments(load_recipe(tmp_path / "recipe.yaml"), [])


@pytest.mark.slow
def test_the_benchmark_prints_both_models_side_by_side(monkeypatch, capsys):
    command = ["benchmark.py", "--preset", "tiny", "--rounds", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    out = capsys.readouterr().out
    setting = benchmark.Setting(preset="tiny", device="cpu", rows=8)
    forward = ["clips", "images", "half of each"] if setting.has_bf16 else []
    for title, in_bf16 in (("Forward, 4x32x32", forward), ("Training step, 4x32x32", [])):
        header, _, *rows = out.split(f"{title}; ceiling, ")[1].split("\n\n")[1].splitlines()
        assert header == "| model | input | ms | x | clips/s | TFLOP/s | ceiling | operators |"
        names = [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in rows]
        assert names == [
            ("CoVeR", "clips"),
            ("CoVeR", "images"),
            ("CoVeR", "half of each"),
            *(("CoVeR, bf16", what) for what in in_bf16),
            ("transformers TimeSformer", "clips"),
            ("transformers VideoMAE", "clips"),
            ("transformers ViViT", "clips"),
        ]
    assert "CoVeR: an image takes" in out
    peaks = out.split("Peak memory of a forward pass of one clip, 8x64x64")[1]
    assert "| CoVeR |" in peaks and "| transformers TimeSformer |" in peaks


@pytest.mark.slow
def test_what_many_gpus_take_is_predicted_from_what_is_measured(tmp_path, monkeypatch, capsys):
    forked_runs.ensure_server()
    fork = functools.partial(torch.multiprocessing.start_processes, start_method="forkserver")
    monkeypatch.setattr(torch.multiprocessing, "spawn", fork)
    monkeypatch.chdir(tmp_path)
    found = tmp_path / "found.json"
    threads = torch.get_num_threads()
    try:
        benchmark_scaling.measure(found, "tiny", rounds=1)
    finally:
        torch.set_num_threads(threads)
    counts = json.loads(found.read_text())["communication"]
    assert counts == {"ddp": {"reduced": 1.0}, "fsdp": {"gathered": 4.0, "scattered": 1.0}}
    capsys.readouterr()
    benchmark_scaling.predict(EXAMPLES.parent / "docs" / "scaling.json")
    page = (EXAMPLES.parent / "docs" / "scaling.md").read_text()
    for line in capsys.readouterr().out.splitlines():
        assert line in page.splitlines()
