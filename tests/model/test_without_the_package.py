# SPDX-License-Identifier: Apache-2.0
"""A saved checkpoint works where this package is not installed: its code is beside its weights."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from encoders import CONFIGS, size_of
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor
from packageless import run_without_package
from tiny import tiny_model, tiny_processor
from transformers import pipeline


CODE = """
import json
import torch
import transformers

model = transformers.AutoModelForVideoClassification.from_pretrained("checkpoint", trust_remote_code=True).eval()
processor = transformers.AutoVideoProcessor.from_pretrained("checkpoint", trust_remote_code=True)
clip = processor("clip.mp4", return_tensors="pt")
with torch.no_grad():
    logits = {name: logits.tolist() for name, logits in model(**clip).head_logits.items()}
    features = transformers.AutoModel.from_pretrained("checkpoint", trust_remote_code=True).eval()(**clip).pooler_output
classify = transformers.pipeline("video-classification", model="checkpoint", trust_remote_code=True)
answers = {"stock": classify("clip.mp4", top_k=3)}
for folder in ("checkpoint", "saved_again"):
    classify = transformers.pipeline("cover-video-classification", model=folder, trust_remote_code=True)
    answers[folder] = classify("clip.mp4", head="all", window=0.25)
    model.save_pretrained("saved_again")
    processor.save_pretrained("saved_again")
classes = [type(model), type(processor), type(classify), type(classify.model.config)]
assert all(kind.__module__.startswith("transformers_modules.") for kind in classes), classes
print(json.dumps({"logits": logits, "features": features.tolist(), **answers}))
"""


HEADS = {
    "motions": {"labels": ["left", "right", "up"]},
    "images": {"labels": ["checker", "dots"], "modality": "image", "head": {"type": "mlp", "hidden_size": 12}},
    "tokens": {"labels": ["near", "far"], "head": {"type": "attentive", "num_heads": 2}},
}


def save(folder: Path, **options) -> None:
    tiny_model(HEADS, **options).save_pretrained(folder)
    tiny_processor(options.get("image_size", 32), image_std=[0.25] * 3).save_pretrained(folder)


def write_a_clip(folder: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), dtype=np.uint8)
    write_clip(folder / "clip.mp4", frames)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint and a clip."""
    folder = tmp_path_factory.mktemp("published")
    save(folder / "checkpoint", num_hidden_layers=2)
    write_a_clip(folder)
    return folder


def test_auto_classes_and_pipelines_give_what_the_package_gives_to_the_bit(folder):
    model = CoverForVideoClassification.from_pretrained(folder / "checkpoint").eval()
    processor = CoverVideoProcessor.from_pretrained(folder / "checkpoint")
    with torch.no_grad():
        output = model(**processor(str(folder / "clip.mp4"), return_tensors="pt"))
    classify = pipeline("cover-video-classification", model=str(folder / "checkpoint"), device="cpu")

    finished = run_without_package(CODE, folder)
    assert finished.returncode == 0, finished.stderr[-3000:]
    answer = json.loads(finished.stdout.splitlines()[-1])
    assert answer["logits"] == {name: logits.tolist() for name, logits in output.head_logits.items()}
    assert answer["features"] == output.pooler_output.tolist()
    assert answer["checkpoint"] == answer["saved_again"] == classify(str(folder / "clip.mp4"), head="all", window=0.25)
    scores, indices = output.logits[0].softmax(dim=-1).sort(descending=True)
    assert [entry["label"] for entry in answer["stock"]] == [
        model.config.id2label[index] for index in indices.tolist()
    ]
    assert [entry["score"] for entry in answer["stock"]] == pytest.approx(scores.tolist())


def test_the_code_beside_the_weights_imports_nothing_of_the_package(folder):
    files = sorted((folder / "checkpoint").glob("*.py"))
    assert "modeling_cover.py" in {file.name for file in files}
    for file in files:
        assert "import modeling_cover" not in file.read_text(), file.name
        assert "from modeling_cover" not in file.read_text().replace(">>> from modeling_cover", ""), file.name


def test_each_class_that_auto_map_names_is_in_the_code_beside_the_weights(folder):
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    processor = json.loads((folder / "checkpoint" / "video_preprocessor_config.json").read_text())
    named = {**config["auto_map"], **processor["auto_map"]}
    assert set(named) == {"AutoConfig", "AutoModel", "AutoModelForVideoClassification", "AutoVideoProcessor"}
    for reference in [*named.values(), *(task["impl"] for task in config["custom_pipelines"].values())]:
        module, name = reference.split(".")
        assert f"\nclass {name}(" in (folder / "checkpoint" / f"{module}.py").read_text()


EACH_KIND = """
import json
import torch
import transformers

answers = {}
for kind in KINDS:
    model = transformers.AutoModelForVideoClassification.from_pretrained(kind, trust_remote_code=True).eval()
    processor = transformers.AutoVideoProcessor.from_pretrained(kind, trust_remote_code=True)
    clip = processor("clip.mp4", return_tensors="pt")
    with torch.no_grad():
        logits = {name: logits.tolist() for name, logits in model(**clip).head_logits.items()}
        features = transformers.AutoModel.from_pretrained(kind, trust_remote_code=True).eval()(**clip).pooler_output
    stock = transformers.pipeline("video-classification", model=kind, trust_remote_code=True)("clip.mp4", top_k=3)
    classify = transformers.pipeline("cover-video-classification", model=kind, trust_remote_code=True)
    answers[kind] = [logits, features.tolist(), stock, classify("clip.mp4", head="all")]
    assert type(model.cover).__module__.startswith("transformers_modules."), type(model.cover)
print(json.dumps(answers))
"""


@pytest.mark.slow
class TestOtherEncoders:
    @pytest.fixture(scope="class")
    def published(self, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("published")
        for kind, config in CONFIGS.items():
            save(folder / kind, encoder=copy.deepcopy(config), image_size=size_of(kind))
        write_a_clip(folder)
        return folder

    @pytest.fixture(scope="class")
    def answers(self, published) -> dict:
        finished = run_without_package(f"KINDS = {list(CONFIGS)}{EACH_KIND}", published)
        assert finished.returncode == 0, finished.stderr[-3000:]
        return json.loads(finished.stdout.splitlines()[-1])

    @pytest.mark.parametrize("kind", CONFIGS)
    def test_each_gives_what_the_package_gives_to_the_bit(self, published, answers, kind):
        model = CoverForVideoClassification.from_pretrained(published / kind).eval()
        clip = CoverVideoProcessor.from_pretrained(published / kind)(str(published / "clip.mp4"), return_tensors="pt")
        with torch.no_grad():
            output = model(**clip)
        logits, features, stock, ours = answers[kind]
        assert logits == {name: logits.tolist() for name, logits in output.head_logits.items()}
        assert features == output.pooler_output.tolist()
        classify = pipeline("cover-video-classification", model=str(published / kind), device="cpu")
        assert ours == classify(str(published / "clip.mp4"), head="all")
        assert [entry["label"] for entry in stock] == [entry["label"] for entry in ours["motions"]]
