# SPDX-License-Identifier: Apache-2.0
"""The recipes that come with the package, each trained for a step on stand-ins for its files and its starting
point."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from checkpoints import save_quickstart
from encoder_sizes import published_config
from encoders import CONFIGS, save_encoder
from modeling_cover import CoverTrainer, load_recipe, prepare_cotraining
from modeling_cover.commands import train as cotrain
from modeling_cover.dataset_tools.stand_ins import write_stand_ins
from modeling_cover.recipe.recipe import ClipRecipe, Recipe
from modeling_cover.training.optimization import is_new, is_of_heads
from tiny import ENCODER
from transformers import TimesformerConfig, TimesformerForVideoClassification, ViTConfig, ViTModel


EXAMPLES = Path(__file__).parents[2] / "examples"


RECIPES = sorted((EXAMPLES / "recipes").rglob("*.yaml"))
PAPER = [path for path in RECIPES if path.parent.name == "paper"]
OF_ENCODERS = [path for path in RECIPES if path.parent.name == "encoders"]
BASELINES = [path for path in RECIPES if path.parent.name == "baselines"]
TRANSFERS = [path for path in RECIPES if path.stem.startswith("transfer_")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder for all recipes, as they agree on what is where."""
    return tmp_path_factory.mktemp("recipes")


def small(recipe: Recipe, folder: Path) -> Recipe:
    """The same with a model and clips of a size to be tested, from a starting point that is here."""
    model = {key: value for key, value in recipe.model.items() if key not in ENCODER}
    if "from_image_checkpoint" in model:
        ViTModel(ViTConfig(**ENCODER, image_size=16)).save_pretrained(folder / "vit")
        model["from_image_checkpoint"] = str(folder / "vit")
    elif "from_pretrained" in model:
        save_quickstart(folder / "cover")
        model["from_pretrained"] = str(folder / "cover")
    elif "from_encoder" not in model:
        model |= ENCODER
    clips = ClipRecipe(num_frames=2, image_size=16, short_side=20, sampling=recipe.clips.sampling)
    if "from_encoder" in model:
        clips = _small_encoder(model, clips, folder)
    augmentation = {key: value for key, value in recipe.augmentation.items() if key != "short_side_range"}
    return dataclasses.replace(recipe, model=model, clips=clips, augmentation=augmentation)


def _small_encoder(model: dict, clips: ClipRecipe, folder: Path) -> ClipRecipe:
    """Save a tiny encoder of the kind that the recipe starts from, and name it; returns clips that it takes."""
    encoder = published_config(model["from_encoder"]).encoder
    model["from_encoder"] = str(folder / "encoder")
    if encoder is None:
        config = TimesformerConfig(**ENCODER, image_size=16, num_frames=2)
        TimesformerForVideoClassification(config).save_pretrained(folder / "encoder")
        return clips
    save_encoder(folder / "encoder", encoder.model_type)
    config = CONFIGS[encoder.model_type]
    side = getattr(config, "crop_size", None) or getattr(config, "image_size", 32)
    return dataclasses.replace(clips, num_frames=4, image_size=side, short_side=side)


def taken(path: Path) -> object:
    """Those of Kinetics-600 and 700 differ from Kinetics-400's in their folder alone."""
    marks = [pytest.mark.slow] * path.stem.startswith(("k600_", "k700_"))
    return pytest.param(path, id=path.stem, marks=marks)


# Of an encoder's recipe the one on two datasets, which extends that on four.
@pytest.mark.parametrize("path", [taken(p) for p in RECIPES if p not in OF_ENCODERS or "_k400_" not in p.stem])
def test_it_takes_its_first_step(path, workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    recipe = load_recipe(path)
    for dataset in recipe.datasets:
        if not Path(dataset.splits["train"]).exists():
            write_stand_ins(dataset)
    overrides = {"max_steps": 1, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, "bf16": False}
    overrides |= {
        "warmup_steps": 0,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
    }
    command = [text for name, value in overrides.items() for text in (f"--{name}", str(value))]
    args = cotrain.parse_training_arguments(recipe, command)
    cotraining = prepare_cotraining(small(recipe, tmp_path), args.seed, args.output_dir)
    before = {name: weight.clone() for name, weight in cotraining.model.state_dict().items()}
    trainer = CoverTrainer(args=args, **cotraining.trainer_kwargs)
    trainer.train()
    assert trainer.state.global_step == 1
    (logged,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert math.isfinite(logged["loss"])
    names = {dataset.name for dataset in recipe.datasets}
    assert {name for name in names if f"{name}_loss" in logged} == names
    changed = {name for name, weight in trainer.model.state_dict().items() if not torch.equal(weight, before[name])}
    heads = {name for name in changed if is_of_heads(name)}
    assert {name.split(".")[1] for name in heads if name.startswith("classifiers.")} == names
    part = recipe.training.get("trained_part", "all")
    if part == "heads":
        assert changed == heads
    elif part == "temporal_and_heads":
        assert all(is_new(name) for name in changed)
        assert changed > heads
    else:
        assert any("att" in name and not is_new(name) for name in changed)


@pytest.mark.parametrize("path", OF_ENCODERS, ids=lambda path: path.stem)
def test_one_of_an_encoder_is_called_by_its_datasets_and_made_for_the_clips_that_the_encoder_takes(path):
    recipe, text = load_recipe(path), path.read_text()
    names = [dataset.name for dataset in recipe.datasets]
    assert path.stem.endswith("_".join(["base" if "_base_" in path.stem else "large", *names]))
    assert recipe.model["default_head"] == names[0]
    sizes = {"num_frames": recipe.clips.num_frames, "image_size": recipe.clips.image_size}
    pooling = recipe.model.get("encoder_pooling")
    # Refuses other clips than the encoder takes.
    config = published_config(recipe.model["from_encoder"], encoder_pooling=pooling, **sizes)
    assert config.image_size == recipe.clips.image_size
    assert f"examples/recipes/encoders/{path.name} " in text
    assert "authors" in text or f"are those of {path.stem.split('_')[0]}" in text
    assert f"`{path.stem}`" in (EXAMPLES.parent / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("path", TRANSFERS, ids=lambda path: path.stem)
def test_a_transfer_is_called_by_its_target_and_by_what_it_trains(path):
    recipe = load_recipe(path)
    (dataset,) = recipe.datasets
    target, part = path.stem.removeprefix("transfer_").split("_", maxsplit=1)
    assert (dataset.name, recipe.model["default_head"], recipe.training["trained_part"]) == (target, target, part)
    assert dataset.horizontal_flip == (target != "ssv2")
    assert f"examples/recipes/{path.name} " in path.read_text()


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_run_of_the_paper_is_called_by_its_datasets_and_its_table_is_on_the_page(path):
    recipe, text = load_recipe(path), path.read_text()
    names = [dataset.name for dataset in recipe.datasets]
    assert path.stem.split("_")[: len(names)] == names
    variant = path.stem.removeprefix("_".join(names)).removeprefix("_")
    assert recipe.model["default_head"] == names[0]
    assert (recipe.clips.num_frames, recipe.clips.image_size) == ((8, 224) if "8x224" in variant else (16, 448))
    weights = {dataset.name: dataset.weight for dataset in recipe.datasets}
    assert weights.get("imagenet", 0.5) == (0.75 if variant == "weight_0.75" else 0.5)
    start = (
        f"jft-{variant.removeprefix('jft')}"
        if "jft" in variant
        else "base"
        if "base" in variant
        else "large-patch16-224-in21k"
    )
    assert start in recipe.model["from_image_checkpoint"]
    assert f"examples/recipes/paper/{path.name} " in text
    assert "To expect: " in text
    assert f"`{path.stem}`" in (EXAMPLES.parent / "docs" / "paper.md").read_text()


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_a_baseline_is_called_by_its_method_and_datasets_and_is_on_the_page(path):
    recipe = load_recipe(path)
    method, *names = path.stem.split("_")
    assert [dataset.name for dataset in recipe.datasets] == names
    assert recipe.model["default_head"] == names[0]
    assert ("from_pretrained" in recipe.model) == (method == "omnisource")  # the second stage
    assert f"examples/recipes/baselines/{path.name} " in path.read_text()
    assert f"`{path.stem}`" in (EXAMPLES.parent / "docs" / "paper.md").read_text()
