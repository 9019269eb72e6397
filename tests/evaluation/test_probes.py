# SPDX-License-Identifier: Apache-2.0
"""Features that are computed once, and what simple classifiers make of them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_quickstart
from clips import write_clip
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor
from modeling_cover.commands import probe
from modeling_cover.data.samples import UNREADABLE
from modeling_cover.data.sources import read_sources
from modeling_cover.evaluation.feature_cache import cached_features, features_identity, without_unreadable
from modeling_cover.evaluation.probes import choose_l2, fit_linear, nearest_neighbour_scores
from modeling_cover.evaluation.running import RowOutputs, extract_features
from modeling_cover.evaluation.views import Views, ViewsDataset
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from python_server import python
from safetensors.numpy import load_file


ROOT = Path(__file__).parents[2]


LABELS = ["bright", "dark", "even"]
RECIPE = """
data_root: {folder}
bad_files: {{max_share: 0.5}}
datasets:
  - {{name: light, format: class_folders, modality: video, splits: {{train: train, validation: val}}}}
  - {{name: alone, format: class_folders, modality: video, splits: {{train: train}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, and clips whose class is how bright they are."""
    folder = tmp_path_factory.mktemp("probed")
    torch.manual_seed(0)
    save_quickstart(folder / "model")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for label, level in zip(LABELS, (190, 10, 100), strict=True):
            for index in range(count):
                path = folder / split / label / f"{index}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_clip(path, rng.integers(level, level + 50, (8, 48, 64, 3), dtype=np.uint8))
    (folder / "train" / "dark" / "broken.mp4").write_text("no video")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def model(folder) -> CoverForVideoClassification:
    return CoverForVideoClassification.from_pretrained(folder / "model").eval()


@pytest.fixture(scope="module")
def dataset(folder) -> ViewsDataset:
    places = {"train": str(folder / "val")}
    recipe = DatasetRecipe(name="light", format="class_folders", modality="video", splits=places)
    processor = CoverVideoProcessor.from_pretrained(folder / "model")
    return ViewsDataset(read_sources(recipe)["train"], processor, views=Views(1, 3))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class TestFeatures:
    def test_they_are_the_mean_of_what_heads_see_of_each_view(self, model, dataset):
        drawn = torch.get_rng_state()
        extracted = extract_features(model, dataset, batch_size=4)
        assert torch.equal(torch.get_rng_state(), drawn)  # a run that is probed as it trains goes on as it would have
        for row, features in enumerate(extracted.outputs):
            path = dataset.source.media[row].content
            views = dataset.processor(path, num_spatial_crops=3, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                expected = model(views).pooler_output.mean(dim=0).numpy()
            assert np.abs(features - expected).max() < 1e-5
        assert extracted.targets.tolist() == dataset.source.classes.tolist()

    def test_a_cache_is_used_for_the_same_alone(self, model, dataset, tmp_path, caplog, folder):
        def never() -> RowOutputs:
            raise AssertionError("computed once more")

        path = tmp_path / "features.safetensors"
        identity = features_identity(model, dataset)
        first = cached_features(path, identity, lambda: extract_features(model, dataset))
        again = cached_features(path, features_identity(model, dataset), never)
        assert np.array_equal(first.outputs, again.outputs)
        assert np.array_equal(first.targets, again.targets)

        other = CoverForVideoClassification.from_pretrained(folder / "model").eval()
        with torch.no_grad():
            other.cover.layernorm.bias[0] += 1
        single = ViewsDataset(dataset.source, dataset.processor)
        unnormalized = CoverVideoProcessor.from_pretrained(folder / "model", do_normalize=False)
        for changed, what in (
            (features_identity(model, ViewsDataset(dataset.source, unnormalized, views=dataset.views)), "processor"),
            (features_identity(other, dataset), "encoder"),
            (features_identity(model, single), "views"),
        ):
            with pytest.raises(AssertionError, match="computed once more"):
                cached_features(path, changed, never)
            assert f"has features of another {what}," in caplog.text

    def test_a_cache_knows_other_files_of_the_same_folder_and_labels(self, model, dataset, tmp_path, folder):
        label = sorted(path for path in (folder / "val").iterdir() if path.is_dir())[0]
        identities = []
        for name in sorted(path.name for path in label.iterdir())[:2]:
            (tmp_path / "list.csv").write_text(f"path,label\n{label.name}/{name},{label.name}\n")
            recipe = DatasetRecipe(
                name="light",
                format="manifest",
                modality="video",
                splits={"train": str(tmp_path / "list.csv")},
                media_root=str(folder / "val"),
                labels=dataset.source.labels,
            )
            identities.append(features_identity(model, ViewsDataset(read_sources(recipe)["train"], dataset.processor)))
        assert identities[0] != identities[1]

    @pytest.mark.parametrize("content", [b"", b"half a file", b"\x10\0\0\0\0\0\0\0{}              "])
    def test_a_damaged_cache_is_made_anew(self, content, tmp_path, caplog):
        path = tmp_path / "features.safetensors"
        path.write_bytes(content)
        outputs = RowOutputs(np.ones((2, 3), np.float32), np.array([0, 1]), 1.5)
        cached_features(path, {"encoder": "x"}, lambda: outputs)
        assert "is no file of features" in caplog.text
        assert cached_features(path, {"encoder": "x"}, None).seconds == 1.5
        assert [file.name for file in tmp_path.iterdir()] == ["features.safetensors"]

    def test_rows_that_could_not_be_read_are_left_out(self):
        outputs = RowOutputs(np.arange(6.0).reshape(3, 2), np.array([1, UNREADABLE, 0]), 0.0)
        features, targets = without_unreadable(outputs)
        assert (features.tolist(), targets.tolist()) == ([[0, 1], [4, 5]], [1, 0])


class TestLinear:
    @pytest.mark.parametrize("several", [False, True])
    @pytest.mark.parametrize("l2", [1.0, 1e-3])
    def test_the_objective_has_no_slope_where_it_ends(self, rng, several, l2):
        features = torch.from_numpy(rng.normal(3, [1.0, 50.0, 0.01, 0.0, 2.0], (60, 5))).float()  # one is constant
        targets = torch.from_numpy(rng.integers(0, 2, (60, 3)) if several else rng.integers(0, 3, 60))
        drawn = torch.get_rng_state()
        classifier = fit_linear(features, targets, 3, l2)
        assert torch.equal(torch.get_rng_state(), drawn)
        deviation = features.std(dim=0, correction=0)
        kept = deviation > 0.001
        standard = ((features - features.mean(dim=0)) / deviation)[:, kept].double()
        weight = (classifier.weight * deviation)[:, kept].double().requires_grad_()
        bias = (classifier.bias + classifier.weight @ features.mean(dim=0)).double().detach().requires_grad_()
        logits = standard @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, targets) if not several else None
        if several:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.double())
        (loss + l2 / 2 * weight.square().sum()).backward()
        assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-3
        assert (classifier.weight[:, ~kept] == 0).all()
        assert (classifier(features) - logits).abs().max() < 1e-2

    def test_noise_is_given_a_strong_penalty_and_what_is_there_a_weak_one(self, rng):
        targets = torch.from_numpy(rng.permutation(np.arange(200) % 2))
        noise = torch.from_numpy(rng.normal(0, 1, (200, 100))).float()
        clear = noise.clone()
        clear[:, 0] += 12 * targets
        assert choose_l2(noise, targets, 2) >= 0.1
        assert choose_l2(clear, targets, 2) <= 0.01

    def test_no_penalty_and_too_few_rows_are_refused(self):
        with pytest.raises(ValueError, match="l2 must be greater than 0, got 0"):
            fit_linear(torch.ones(3, 2), torch.zeros(3, dtype=torch.long), 2, 0)
        with pytest.raises(ValueError, match="at least 5 training rows, got 3"):
            choose_l2(torch.ones(3, 2), torch.zeros(3, dtype=torch.long), 2)


class TestNearestNeighbours:
    @pytest.mark.parametrize("several", [False, True])
    def test_they_are_those_of_a_loop(self, rng, several):
        known, asked = rng.normal(size=(30, 4)), rng.normal(size=(7, 4))
        targets = rng.integers(0, 2, (30, 3)) if several else rng.integers(0, 3, 30)
        scores = nearest_neighbour_scores(*map(torch.from_numpy, (known, targets, asked)), 3, 5, 0.1)
        for row, feature in enumerate(asked):
            cosines = known @ feature / np.linalg.norm(known, axis=1) / np.linalg.norm(feature)
            nearest = np.argsort(-cosines)[:5]
            weights = np.exp(cosines[nearest] / 0.1)
            expected = np.zeros(3)
            for weight, index in zip(weights / weights.sum(), nearest, strict=True):
                expected += weight * (targets[index] if several else np.eye(3)[targets[index]])
            assert scores[row].tolist() == pytest.approx(expected.tolist())

    def test_of_few_rows_all_vote(self):
        scores = nearest_neighbour_scores(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), 2)
        assert scores.argmax(dim=1).tolist() == [0, 1]


class TestTheCommand:
    def run(self, folder: Path, output: Path, capsys, *arguments: str) -> tuple[int, str, str]:
        given = ["--model", folder / "model", "--recipe", folder / "recipe.yaml", "--output", output, *arguments]
        code = probe.main(list(map(str, given)))
        return code, *capsys.readouterr()

    def test_a_probe_is_a_head_of_the_checkpoint_that_is_saved(self, folder, model, tmp_path, capsys):
        save = ("--dataset", "light", "--save", tmp_path / "saved")
        code, out, _ = self.run(folder, tmp_path / "out", capsys, *save)
        assert code == 0
        figures = json.loads((tmp_path / "out" / "probe_light.json").read_text())
        assert figures["linear"]["top1"] == figures["nearest neighbours"]["top1"] == 1.0
        assert [line.split()[0] for line in out.splitlines()] == ["probe", "nearest", "linear", "features"]
        saved = CoverForVideoClassification.from_pretrained(tmp_path / "saved").eval()
        processor = CoverVideoProcessor.from_pretrained(tmp_path / "saved")
        for label in LABELS:
            inputs = processor(str(folder / "val" / label / "0.mp4"), return_tensors="pt")
            with torch.no_grad():
                outputs = saved(**inputs)
            assert saved.config.heads["light"]["labels"][outputs.head_logits["light"].argmax()] == label
        assert torch.equal(saved.classifiers["motions"].weight, model.classifiers["motions"].weight)
        (bad,) = (tmp_path / "out" / "quarantine_light_train.jsonl").read_text().splitlines()
        assert "broken.mp4" in bad

        code, _, err = self.run(folder, tmp_path / "out", capsys, *save, "--model", tmp_path / "saved")
        assert code == 2
        assert "the model has a head 'light' already, give another name by --head" in err

    def test_a_file_that_is_mended_is_read_when_features_are_computed_anew(self, folder, tmp_path, capsys):
        shutil.copytree(folder / "train", tmp_path / "train")
        shutil.copytree(folder / "val", tmp_path / "val")
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
        broken = tmp_path / "train" / "dark" / "broken.mp4"
        rows = []
        for views in ("1x1", "1x3"):
            arguments = ("--dataset", "light", "--recipe", tmp_path / "recipe.yaml", "--views", views)
            assert self.run(folder, tmp_path / "out", capsys, *arguments)[0] == 0
            targets = load_file(tmp_path / "out" / "features_light_train.safetensors")["targets"]
            rows.append((targets != UNREADABLE).sum())
            shutil.copy(tmp_path / "train" / "dark" / "0.mp4", broken)
        assert rows == [18, 19]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--dataset", "kinetics"], "the recipe has no dataset 'kinetics', but light, alone"),
            (["--dataset", "alone"], "dataset 'alone': a probe needs a validation split, there is train"),
            (["--dataset", "light", "--views", "9x1"], "has 8 frames, too few for 9 temporal views that differ"),
        ],
    )
    def test_what_is_wrong_is_said_on_a_line(self, folder, tmp_path, capsys, arguments, message):
        code, out, err = self.run(folder, tmp_path, capsys, *arguments)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert message in err


@pytest.mark.slow
def test_the_benchmark_trains_the_same_head_both_ways(folder, tmp_path):
    recipe = (folder / "recipe.yaml").read_text().replace("train: train", "train: val")
    (tmp_path / "recipe.yaml").write_text(recipe)
    command = [python(), ROOT / "examples" / "benchmark_probe.py", "--model", folder / "model"]
    command += ["--recipe", tmp_path / "recipe.yaml", "--dataset", "light", "--steps", "40"]
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    slow, fast = re.findall(r"ms a step.*top-1 (.*)", finished.stdout)
    assert slow == fast  # one pass through the data after the other, the same rows: the same head
    assert "times as fast" in finished.stdout
