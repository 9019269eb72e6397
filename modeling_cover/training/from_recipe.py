# SPDX-License-Identifier: Apache-2.0
"""From a recipe to what a `CoverTrainer` takes: model, processor, training and evaluation data, loss weights."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import AutoConfig
from transformers.utils import logging

from ..data.mixture import MixtureSchedule
from ..data.samples import CoTrainingDataset, EvaluationDataset
from ..data.sources import SplitOfDataset, heads_of_sources, read_sources
from ..model.configuration_cover import CoverConfig, check_head_kind
from ..model.conversion_cover import is_original_release
from ..model.modeling_cover import CoverForVideoClassification
from ..model.video_processing_cover import CoverVideoProcessor
from ..recipe.dataset_recipe import DatasetRecipe
from ..recipe.recipe import STARTING_POINTS, Recipe, checked_keys
from .adapters import with_lora
from .equal_updates import EqualUpdates
from .run_data import DataMaker, build_schedule, quarantine_of
from .zero import whole_parameters


logger = logging.get_logger(__name__)

# Fields of CoverConfig that a recipe sets elsewhere: under `clips` and `datasets`.
_SET_ELSEWHERE = {"heads": "datasets", "image_size": "clips", "num_frames": "clips"}

# What a recipe's `model` has beside fields of CoverConfig.
_OF_NO_CONFIG = {*STARTING_POINTS, "revision", "head", "default_head", "keep_heads", "lora"}

_WITH_A_CLASSIFIER = ("from_timesformer", "from_encoder")

# Fields that a starting point decides.
SHAPES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
    "encoder",
    "encoder_normalisation",
)


@dataclass(frozen=True, kw_only=True)
class CoTraining:
    """What a recipe describes; `trainer_kwargs` are the arguments that `CoverTrainer` takes of it."""

    recipe: Recipe
    model: CoverForVideoClassification
    processor: CoverVideoProcessor
    train_dataset: CoTrainingDataset
    schedule: MixtureSchedule
    eval_datasets: dict[str, EvaluationDataset]
    loss_weights: dict[str, float] | EqualUpdates

    @property
    def trainer_kwargs(self) -> dict[str, Any]:
        names = {"processor": "processing_class", "eval_datasets": "eval_dataset"}
        return {names.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}


def prepare_cotraining(recipe: Recipe, seed: int = 0, output_dir: str | os.PathLike | None = None) -> CoTraining:
    """Read the datasets and build or load the model, with a head for each dataset.

    Args:
        recipe: what to train on what.
        seed: of all that is random about the data; give the run's.
        output_dir: of the run. Files that cannot be decoded are written down in its `quarantine.jsonl` and replaced;
            without an `output_dir` they are errors.

    Raises:
        ValueError: if the recipe names an unknown default head or field of the configuration, its data cannot be read,
            or classes differ from those of a head that a checkpoint brings.
    """
    sources = read_recipe_sources(recipe)
    train = {name: splits["train"] for name, splits in sources.items()}
    schedule = schedule_of(recipe, train, seed)
    with whole_parameters():
        model = _build_model(recipe, train, recipe.model.get("default_head", recipe.datasets[0].name))
        if "lora" in recipe.model:
            model = with_lora(model, checked_keys("model: lora", recipe.model["lora"], None))
    processor = build_processor(recipe)
    maker = DataMaker(
        head_names=model.config.head_names,
        processor=processor,
        seed=seed,
        clip_sampling=recipe.clips.sampling,
        augmentations=recipe.augmentations,
        quarantine=None if output_dir is None else quarantine_of(output_dir, recipe.bad_files),
    )
    return CoTraining(
        recipe=recipe,
        model=model,
        processor=processor,
        train_dataset=maker.training(train),
        schedule=schedule,
        eval_datasets=maker.evaluation(
            {name: splits["validation"] for name, splits in sources.items() if "validation" in splits}
        ),
        loss_weights=_loss_weights(recipe),
    )


def _loss_weights(recipe: Recipe) -> dict[str, float] | EqualUpdates:
    if recipe.mixture.weights == "equal_updates":
        return EqualUpdates(recipe.mixture.update_shares)
    return {dataset.name: dataset.weight for dataset in recipe.datasets}


def read_recipe_sources(recipe: Recipe) -> dict[str, dict[str, SplitOfDataset]]:
    """The splits of each dataset, with the label spaces of the heads that the starting point brings.

    Raises:
        ValueError: if the recipe names an unknown default head or field of the configuration, data cannot be read, or
            classes differ from those of a head.
    """
    _check_model_fields(recipe)
    existing = _existing_labels(recipe)
    return {dataset.name: read_sources(dataset, head_labels=existing.get(dataset.name)) for dataset in recipe.datasets}


def training_refusals(
    recipe: Recipe, sources: Mapping[str, Mapping[str, SplitOfDataset]], seed: int = 0
) -> list[tuple[str, str]]:
    """Why [`prepare_cotraining`] would refuse sources that could be read, each with the dataset that it is about."""
    train = {name: splits["train"] for name, splits in sources.items()}
    refusals = []
    for name, head in _heads(recipe, train).items():
        try:
            CoverConfig(heads={name: head}, default_head=name)
        except ValueError as error:  # huggingface_hub's for a field that is not what it should be
            refusals.append((name, f"{error.__cause__ or error}"))
    try:
        schedule_of(recipe, train, seed)
    except ValueError as error:
        refusals.append((recipe.datasets[0].name, str(error)))
    return refusals


def _heads(recipe: Recipe, sources: Mapping[str, SplitOfDataset]) -> dict[str, dict[str, Any]]:
    kinds = {dataset.name: {"head": dict(dataset.head)} for dataset in recipe.datasets if dataset.head}
    return {name: head | kinds.get(name, {}) for name, head in heads_of_sources(sources).items()}


def schedule_of(recipe: Recipe, sources: Mapping[str, SplitOfDataset], seed: int) -> MixtureSchedule:
    listed = {dataset.name: dataset.share for dataset in recipe.datasets}
    return build_schedule(sources, seed, recipe.mixture, listed)


def _check_model_fields(recipe: Recipe) -> None:
    names = [dataset.name for dataset in recipe.datasets]
    if (default_head := recipe.model.get("default_head", names[0])) not in names:
        raise ValueError(f"model: unknown default_head {default_head!r}, the datasets are {names}")
    # Its own fields: labels and problem type, which the base class has, are the datasets'.
    known = (set(CoverConfig.__annotations__) - set(_SET_ELSEWHERE)) | _OF_NO_CONFIG
    for key in recipe.model:
        if key in _SET_ELSEWHERE:
            raise ValueError(f"model: '{key}' is set under {_SET_ELSEWHERE[key]}")
    checked_keys("model", recipe.model, known)
    shapes = [key for key in SHAPES if key in recipe.model]
    if shapes and any(key in recipe.model for key in STARTING_POINTS):
        raise ValueError(f"model: {', '.join(shapes)}: the starting point has its own")
    if "head" in recipe.model and not any(key in recipe.model for key in _WITH_A_CLASSIFIER):
        raise ValueError("model: 'head' names the head of a classifier: it needs from_timesformer or from_encoder")


def _pinned(recipe: Recipe) -> dict[str, str]:
    """The revision of the starting point, if the recipe has one, as `from_pretrained` takes it."""
    revision = recipe.model.get("revision")
    return {} if revision is None else {"revision": revision}


def _stored_config(config_class: type, path: str, recipe: Recipe) -> Any:
    try:
        return config_class.from_pretrained(path, **_pinned(recipe))
    except OSError as error:  # transformers', where there is none, or no such revision
        raise ValueError(f"model: {path} cannot be loaded: {error}") from error


def _existing_labels(recipe: Recipe) -> dict[str, list[str]]:
    """The label spaces of the heads that the starting point brings."""
    if path := recipe.model.get("from_pretrained"):
        heads = _stored_config(CoverConfig, path, recipe).heads
        for dataset in recipe.datasets:
            if (head := heads.get(dataset.name)) is not None:
                _check_goes_on(dataset, head, path)
        return {name: head["labels"] for name, head in heads.items()}
    head = recipe.model.get("head")
    path = next((recipe.model[key] for key in _WITH_A_CLASSIFIER if key in recipe.model), None)
    names = [dataset.name for dataset in recipe.datasets]
    if head is not None and head not in names:
        raise ValueError(f"model: unknown head {head!r}, the datasets are {names}")
    if head is None:
        return {}
    if is_original_release(path):
        return _unnamed_labels(recipe, head, path)
    id2label = _stored_config(AutoConfig, path, recipe).id2label
    labels = [id2label[index] for index in sorted(id2label)]
    unnamed = labels == [f"LABEL_{index}" for index in range(len(labels))]
    return _unnamed_labels(recipe, head, path) if unnamed else {head: labels}


def _check_goes_on(dataset: DatasetRecipe, head: Mapping[str, Any], path: str) -> None:
    """Raise a `ValueError` if the head that a checkpoint brings is not what the recipe says of it."""
    where = f"dataset '{dataset.name}': its head in {path} is"
    if head["problem_type"] != dataset.problem_type:
        raise ValueError(f"{where} for {head['problem_type']}, and the recipe says {dataset.problem_type}")
    if dataset.head and check_head_kind(dataset.head) != head.get("head"):
        raise ValueError(f"{where} {head.get('head', 'linear')}, and the recipe says {dict(dataset.head)}")


def _unnamed_labels(recipe: Recipe, head: str, path: str) -> dict[str, list[str]]:
    """Where a classifier's labels have no names, the recipe must list them: an order found would be a guess."""
    dataset = next(dataset for dataset in recipe.datasets if dataset.name == head)
    if dataset.labels is None:
        raise ValueError(
            f"dataset '{head}': {path} does not name the labels of its classifier, so list `labels` in its order"
        )
    return {}


def _build_model(recipe: Recipe, sources: dict[str, SplitOfDataset], default_head: str) -> CoverForVideoClassification:
    heads = _heads(recipe, sources)
    sizes = {"image_size": recipe.clips.image_size, "num_frames": recipe.clips.num_frames}
    config_fields = {key: value for key, value in recipe.model.items() if key not in _OF_NO_CONFIG}
    if path := recipe.model.get("from_image_checkpoint"):
        return CoverForVideoClassification.from_image_checkpoint(
            path, heads=heads, default_head=default_head, **_pinned(recipe), **sizes, **config_fields
        )
    if path := recipe.model.get("from_timesformer"):
        head = recipe.model.get("head")
        options = {
            "labels": None if head is None else sources[head].labels,
            "heads": heads,
            "default_head": default_head,
        }
        return CoverForVideoClassification.from_timesformer(
            path, head, **options, **_pinned(recipe), **sizes, **config_fields
        )
    if path := recipe.model.get("from_encoder"):
        pooling = config_fields.pop("encoder_pooling", None)
        options = {"head": recipe.model.get("head"), "pooling": pooling, "heads": heads, "default_head": default_head}
        return CoverForVideoClassification.from_encoder(path, **options, **_pinned(recipe), **sizes, **config_fields)
    if path := recipe.model.get("from_pretrained"):
        model = CoverForVideoClassification.from_pretrained(path, **_pinned(recipe), **config_fields)
        model.resize_clips(**sizes)
        _add_missing_heads(model, heads, default_head)
        _settle_other_heads(model, heads, recipe.model.get("keep_heads", True))
        return model
    return CoverForVideoClassification(CoverConfig(heads=heads, default_head=default_head, **sizes, **config_fields))


def _add_missing_heads(model: CoverForVideoClassification, heads: dict[str, dict], default_head: str) -> None:
    new = {name: head for name, head in heads.items() if name not in model.config.heads}
    for name, head in new.items():
        model.add_head(name, **head)
    model.config.update_heads(model.config.heads, default_head)
    logger.warning(f"New heads, to be trained: {', '.join(sorted(new)) or 'none'}")


def _settle_other_heads(model: CoverForVideoClassification, heads: dict[str, dict], keep: bool) -> None:
    """Keep or drop the heads of a checkpoint that no dataset trains."""
    others = [name for name in model.config.head_names if name not in heads]
    if others and keep:
        logger.warning(
            f"Heads that are kept, and no dataset trains: {', '.join(others)}. They are stale once what they classify is "
            "trained; `model: {keep_heads: false}` drops them"
        )
    elif others:
        for name in others:
            model.remove_head(name)
        logger.warning(f"Heads that are dropped, as no dataset trains them: {', '.join(others)}")


def build_processor(recipe: Recipe) -> CoverVideoProcessor:
    """A processor for the recipe's clips, with the mean and deviation that the starting point was trained with."""
    clips = recipe.clips
    of_recipe = {
        "num_frames": clips.num_frames,
        "size": {"shortest_edge": clips.short_side},
        "crop_size": {"height": clips.image_size, "width": clips.image_size},
        # Of a file; in training, the dataset's clip_sampling says what is random about it.
        "frame_sampling": "dense" if clips.sampling == "dense" else "uniform",
        "frame_stride": clips.frame_stride,
    }
    path = next((recipe.model[key] for key in STARTING_POINTS if key in recipe.model), None)
    if path is None:
        return CoverVideoProcessor(**of_recipe)
    if "from_pretrained" in recipe.model:
        return CoverVideoProcessor.from_pretrained(path, **_pinned(recipe), **of_recipe)
    return CoverVideoProcessor.from_image_checkpoint(path, **_pinned(recipe), **of_recipe)
