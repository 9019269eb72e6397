# SPDX-License-Identifier: Apache-2.0
"""From training to a stranger's prediction: every step in a process of its own, against a Hub on this machine."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from hub_server import HubServer
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor
from modeling_cover.training.folder_lock import LOCK_NAME
from packageless import run_without_package
from PIL import Image
from python_server import python
from safetensors.torch import load_file


ROOT = Path(__file__).parents[2]
RECIPE = """
clips: {num_frames: 2, image_size: 16, short_side: 20}
model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, patch_size: 8}
datasets:
  - {name: motions, format: class_folders, modality: video, splits: {train: motions, validation: motions}}
  - {name: things, format: class_folders, modality: image, splits: {train: things}}
training:
  {per_device_train_batch_size: 4, max_steps: 9, save_steps: 3, logging_steps: 3, save_total_limit: 1, learning_rate: 0.01}
"""
STRANGER = """
import json
import torch
import transformers

model = transformers.AutoModelForVideoClassification.from_pretrained("org/name", trust_remote_code=True).eval()
processor = transformers.AutoVideoProcessor.from_pretrained("org/name", trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor("clip.mp4", return_tensors="pt")).head_logits
classify = transformers.pipeline("cover-video-classification", model="org/name", trust_remote_code=True)
stock = transformers.pipeline("video-classification", model="org/name", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
print(json.dumps({
    "logits": {name: of_head.tolist() for name, of_head in logits.items()},
    "pipeline": classify("clip.mp4", head="all"),
    "stock": stock("clip.mp4"),
}))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for label in ("left", "right", "up"):
        for name in ("0", "1"):
            (tmp_path / "motions" / label).mkdir(parents=True, exist_ok=True)
            write_clip(
                tmp_path / "motions" / label / f"{name}.mp4", rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
            )
            (tmp_path / "things" / label).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            picture.save(tmp_path / "things" / label / f"{name}.png")
    write_clip(tmp_path / "clip.mp4", rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def run(hub: HubServer, folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**hub.environment(folder / "home"), "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [python(), ROOT / "examples" / script, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def train(hub: HubServer, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    publishing = ("--push_to_hub", "--hub_model_id", "org/name", *arguments)
    return run(hub, folder, "cotrain.py", "recipe.yaml", "--output_dir", str(folder / "outputs"), *publishing)


def assert_is_published(hub: HubServer, folder: Path, revision: str = "main") -> None:
    published = hub.files("org/name", revision)
    local = {path.name: path.read_bytes() for path in (folder / "outputs").iterdir() if path.name in published}
    assert {"config.json", "model.safetensors", "modeling_cover.py", "training_curves.png", "README.md"} <= set(local)
    assert {name: published[name] for name in local} == local


def assert_trained_well(finished: subprocess.CompletedProcess, folder: Path) -> None:
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "top-1" in finished.stdout
    newest = folder / "outputs" / "checkpoint-9"
    weights = load_file(newest / "model.safetensors")
    assert all(torch.equal(weights[name], weight) for name, weight in last_weights(folder).items())
    assert [path.name for path in (folder / "outputs").glob(".*")] == [LOCK_NAME]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "outputs" / "model.safetensors")


@pytest.mark.slow
def test_what_is_published_while_training_gives_a_stranger_the_same_answers_to_the_bit(folder):
    with HubServer() as hub:
        finished = train(hub, folder, "--hub_always_push", "--hub_private_repo", "True")
        assert_trained_well(finished, folder)
        assert_is_published(hub, folder)
        messages = [commit.message for commit in hub.commits("org/name")]
        in_training = [f"Training in progress, step {step}" for step in (9, 6, 3)]
        assert messages == ["End of training", *in_training, "initial commit"]
        (folder / "stranger").mkdir()
        (folder / "clip.mp4").rename(folder / "stranger" / "clip.mp4")
        # The path of a home folder of its own, so that nothing is found in another's cache.
        environment = hub.environment(folder / "stranger" / "home")
        loaded = run_without_package(STRANGER, folder / "stranger", environment)
        assert loaded.returncode == 0, loaded.stderr[-3000:]
        predicted = run(hub, folder, "predict.py", "stranger/clip.mp4", "--model", "org/name", "--json")
        assert predicted.returncode == 0, predicted.stderr[-3000:]
        published = hub.files("org/name")
    # Once loaded, it is there without a network.
    again = run_without_package(STRANGER, folder / "stranger", {**environment, "HF_HUB_OFFLINE": "1"})
    assert again.returncode == 0, again.stderr[-3000:]

    model = CoverForVideoClassification.from_pretrained(folder / "outputs").eval()
    processor = CoverVideoProcessor.from_pretrained(folder / "outputs")
    with torch.no_grad():
        logits = model(**processor(str(folder / "stranger" / "clip.mp4"), return_tensors="pt")).head_logits
    answer = json.loads(loaded.stdout.splitlines()[-1])
    assert json.loads(again.stdout.splitlines()[-1]) == answer
    assert answer["logits"] == {name: of_head.tolist() for name, of_head in logits.items()}
    assert json.loads(predicted.stdout)[0]["heads"] == answer["pipeline"]
    assert answer["stock"] == answer["pipeline"]["motions"]
    assert_names_nothing_of_this_machine(published, folder)


def assert_names_nothing_of_this_machine(published: dict[str, bytes], folder: Path) -> None:
    private = [str(folder), str(ROOT), str(Path.home()) + "/", os.uname().nodename, sys.prefix, "hf_test"]
    for name, content in published.items():
        # The pixels of a picture have each pair of letters somewhere, and some machine is called "vm".
        is_text = not name.endswith((".png", ".safetensors"))
        found = [text for text in private if (is_text or len(text) > 5) and text.encode() in content]
        assert found == [], name
    endings = {name.rpartition(".")[2] for name in published}
    assert endings == {"gitattributes", "json", "md", "png", "py", "safetensors"}
    assert not any("optimizer" in name or "training_args" in name for name in published)


@pytest.mark.slow
def test_a_hub_that_fails_one_request_in_five_gets_it_all_the_same(folder):
    with HubServer() as hub:
        hub.fail_every(5)
        finished = train(hub, folder)
        hub.recover()
        assert_trained_well(finished, folder)
        assert_is_published(hub, folder)


@pytest.mark.slow
def test_training_does_not_wait_for_a_hub_that_is_away_and_its_end_is_published_when_it_is_back(folder):
    with HubServer() as hub:
        came_back = []

        def leave_at_the_first_commit():
            while not any("/commit/" in request.path for request in hub.requests):
                time.sleep(0.02)
            hub.go_away(3600)
            time.sleep(10)
            while not (folder / "outputs" / "checkpoint-9").exists():
                time.sleep(0.02)
            came_back.append(time.time())
            hub.come_back()

        leaving = threading.Thread(target=leave_at_the_first_commit, daemon=True)
        leaving.start()
        finished = train(hub, folder)
        leaving.join(600)
        assert_trained_well(finished, folder)
        assert_is_published(hub, folder)
    assert (folder / "outputs" / "checkpoint-9").stat().st_mtime < came_back[0]
    assert "the Hub cannot be reached" in finished.stderr
    assert "Published: http" in finished.stdout


@pytest.mark.slow
def test_a_token_that_is_refused_is_said_at_once_and_what_to_do_at_the_end(folder):
    with HubServer() as hub:
        hub.refuse_token()
        finished = train(hub, folder, "--hub_private_repo", "True", "--hub_revision", "next")
        assert_trained_well(finished, folder)
        first, then = (
            finished.stderr.index(f"push_to_hub: {what}") for what in ("org/name cannot", "checkpoint-3 is")
        )
        assert first < then
        assert "log in again with `hf auth login`" in finished.stderr
        command = re.findall(r"run: cover (publish .*)", finished.stderr)[-1]
        assert command == f"publish {folder}/outputs org/name --private --revision next"
        hub.recover()
        published = run(hub, folder, "publish.py", *shlex.split(command)[1:])
        assert published.returncode == 0, published.stderr[-3000:]
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.url, token=False).model_info("org/name")
        assert "model.safetensors" not in hub.files("org/name")
        assert_is_published(hub, folder, "next")
