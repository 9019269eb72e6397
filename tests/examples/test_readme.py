# SPDX-License-Identifier: Apache-2.0
"""Every snippet of the README runs, as a reader would run it, on small stand-ins for what it names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_quickstart
from clips import write_clip
from packageless import run_without_package
from PIL import Image
from published_datasets import write_published
from python_server import python
from tiny import ENCODER
from transformers import TimesformerConfig, TimesformerForVideoClassification, ViTConfig, ViTModel


ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def without_comments(code: str) -> set[str]:
    """The lines of a block of commands."""
    return {line.partition(" #")[0].strip() for line in code.splitlines()}


IN_DOCS = {
    line
    for page in (ROOT / "docs").glob("*.md")
    for code in re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in without_comments(code)
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with all that the README names: checkpoints by their Hub ids, the quickstart's, and one's own files."""
    folder, rng = tmp_path_factory.mktemp("readme"), np.random.default_rng(0)
    (folder / "examples").symlink_to(ROOT / "examples")

    save_quickstart(folder / "outputs" / "quickstart")
    # Of few patches, which are cheap.
    vit = ViTModel(ViTConfig(**{**ENCODER, "patch_size": 56}, image_size=224))
    vit.save_pretrained(folder / "google" / "vit-base-patch16-224-in21k")
    write_published(folder / "org")
    timesformer = TimesformerForVideoClassification(TimesformerConfig(**ENCODER, image_size=32, num_labels=400))
    timesformer.save_pretrained(folder / "facebook" / "timesformer-base-finetuned-k400")

    def clip(path: str) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_clip(folder / path, rng.integers(0, 256, (8, 48, 64, 3), dtype=np.uint8))

    clip("data/quickstart/motions/videos/00000.mp4")
    clip("data/quickstart/shapes/val/ring/0.mp4")
    (folder / "data" / "quickstart" / "motions" / "val.csv").write_text("video,label\nvideos/00000.mp4,growing\n")
    (folder / "data" / "quickstart" / "images" / "val" / "dots").mkdir(parents=True)
    picture = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    picture.save(folder / "data" / "quickstart" / "images" / "val" / "dots" / "0.png")
    for split in ("train", "val"):
        for name in ("wave", "point"):
            clip(f"my_videos/{split}/{name}.mp4")
            (folder / "my_images" / split / name).mkdir(parents=True)
            picture = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            picture.save(folder / "my_images" / split / name / "0.jpg")
        (folder / "my_videos" / f"{split}.csv").write_text(
            f"video,label\n{split}/wave.mp4,wave\n{split}/point.mp4,point\n"
        )
    for language, code in BLOCKS:
        if language == "yaml":
            (folder / re.match(r"# (\S+)\n", code)[1]).write_text(code)
    return folder


def test_there_are_snippets():
    assert [language for language, _ in BLOCKS].count("python") >= 5


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_a_python_snippet_runs_in_a_fresh_interpreter(workspace, code):
    finished = subprocess.run([python(), "-c", code], cwd=workspace, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_the_pipelines_run_without_the_package_as_the_text_says(workspace):
    (code,) = (code for language, code in BLOCKS if language == "python" and "pipeline(" in code)
    first, _, rest = code.partition("\n")
    assert first.startswith("import modeling_cover ")
    stranger = rest.replace('model="outputs/quickstart"', 'model="outputs/quickstart", trust_remote_code=True')
    finished = run_without_package(stranger, workspace)
    assert finished.returncode == 0, finished.stderr[-3000:]


# What the README's datasets are in a recipe, and how its run is compared.
BY_RECIPE = """
import dataclasses
from modeling_cover import Recipe, prepare_cotraining
from modeling_cover.recipe.recipe import ClipRecipe, DatasetRecipe

def dataset(name, modality="video", streaming=False, **splits):
    place = {"format": "dataset", "path": f"org/{name}", "splits": {"train": "train", **splits}}
    return DatasetRecipe(name=name, modality=modality, streaming=streaming, **place)

recipe = Recipe(
    datasets=(
        dataset("gestures", validation="validation"), dataset("sports", streaming=True), dataset("objects", "image")
    ),
    clips=ClipRecipe(num_frames=8, image_size=224),
    model={"from_image_checkpoint": vit, "default_head": "gestures"},
)
torch.manual_seed(0)
args = dataclasses.replace(args, output_dir="outputs/by_recipe")
by_recipe = CoverTrainer(args=args, **prepare_cotraining(recipe, args.seed, args.output_dir).trainer_kwargs)
by_recipe.train()
weights = trainer.model.state_dict()
assert all(torch.equal(weight, weights[name]) for name, weight in by_recipe.model.state_dict().items())
assert by_recipe.evaluate()["eval_gestures_loss"] == trainer.evaluate()["eval_gestures_loss"]
print("the same")
"""


def test_datasets_in_python_end_with_the_weights_of_their_recipe(workspace):
    (code,) = (code for language, code in BLOCKS if language == "python" and "load_dataset" in code)
    code = f"import torch\ntorch.manual_seed(0)\n{code.replace('outputs/three', 'outputs/compared')}\n{BY_RECIPE}"
    finished = subprocess.run([python(), "-c", code], cwd=workspace, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.endswith("the same\n")


# The two commands with `make` are run by .ci/run, those with pip by test_installed_package.py, and those that a page
# has as well by test_docs.py.
@pytest.mark.parametrize(
    "code",
    [
        code
        for language, code in BLOCKS
        if language == "bash" and not code.startswith(("make ", "pip ")) and not without_comments(code) <= IN_DOCS
    ],
)
def test_a_command_runs(workspace, code):
    path = os.pathsep.join([str(Path(python()).parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(
        ["bash", "-euc", code], cwd=workspace, env=environment, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_every_file_that_the_readme_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert len(local) >= 4
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_no_placeholder_is_left(path):
    assert re.findall(r"\b(?:BENCH|TODO|TBD|FIXME|XXX|QUICKSTART_\w+)\b", path.read_text(encoding="utf-8")) == []
