# SPDX-License-Identifier: Apache-2.0
"""What a run writes into its record: what is trained on what, how, and how well.

Nothing of it is private. Of the recipe and of the training arguments only what decides the outcome is written down,
and every path is replaced by the word PATH.
"""

import csv
import importlib.metadata
import json
import math
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, metadata_load, try_to_load_from_cache
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import CONFIG_NAME
from yaml import YAMLError

from ..hub.run_record import RANDOM_WEIGHTS
from ..recipe.dataset_recipe import DatasetRecipe
from ..recipe.recipe import STARTING_POINTS, Recipe
from .arguments import BEST_METRIC, CoverTrainingArguments
from .launching import ON_CPUS


EMISSIONS_NAME = "emissions.csv"  # codecarbon's, by way of transformers' callback
PATH = "PATH"

# The arguments that decide what is learnt. Others name folders, users or tokens.
ARGUMENTS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "optim_args",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "learning_rate_drop_epochs",
    "learning_rate_drop_factor",
    "layer_decay",
    "new_parameters_learning_rate",
    "trained_part",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "loss_reduction",
    "label_smoothing_factor",
    "ema_decay",
    "bf16",
    "fp16",
    "tf32",
    "load_best_model_at_end",
    "metric_for_best_model",
    "seed",
    "data_seed",
)

_PACKAGES = ("modeling-cover", "torch", "torchvision", "transformers", "accelerate", "datasets", "av")
_METRICS = ("top1", "top5", "map", "loss")


def hub_id(place: str | None) -> str | None:
    """`place` if it is an id of the Hub; None for a folder or a file of this machine."""
    if place is None or os.path.exists(place):
        return None
    try:
        validate_repo_id(place)
    except HFValidationError:
        return None
    return place


def starting_point(recipe: Recipe) -> dict[str, str | None]:
    """What kind of checkpoint a recipe starts from, its id and the commit that was loaded if it is on the Hub, and the
    license that its own card names."""
    kind = next((key for key in STARTING_POINTS if key in recipe.model), None)
    given = None if kind is None else recipe.model[kind]
    place = hub_id(given)
    commit = _loaded_commit(place, CONFIG_NAME, recipe.model.get("revision"), "model")
    return {
        "kind": kind or RANDOM_WEIGHTS,
        "hub_id": place,
        "commit": commit,
        "license": None if given is None else _license_of_checkpoint(given, place, commit),
    }


def _license_of_checkpoint(given: str, place: str | None, commit: str | None) -> str | None:
    """That in the card of a folder, or of a commit that was loaded from the Hub; None where there is none, or it
    cannot be read."""
    try:
        if place is None:
            card = os.path.join(given, REPOCARD_NAME)
        elif commit is not None:
            card = hf_hub_download(place, REPOCARD_NAME, revision=commit)
        else:
            return None
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):  # huggingface_hub's are OSError, without a network, too
        return None
    name = metadata.get("license_name") if metadata.get("license") == "other" else None
    license = name or metadata.get("license")
    return ", ".join(map(str, license)) if isinstance(license, list) else license and str(license)


def _loaded_commit(place: str | None, file: str, revision: str | None, repo_type: str) -> str | None:
    """The commit that a revision was when a file of it was loaded, as huggingface_hub's cache has it; None if
    unknown."""
    found = None if place is None else try_to_load_from_cache(place, file, revision=revision, repo_type=repo_type)
    return Path(found).parent.name if isinstance(found, str) else None


def dataset_origin(dataset: DatasetRecipe | None) -> dict[str, str | None]:
    """How a dataset is stored and licensed, and where it is on the Hub and the commit that was loaded, if it is; None
    where nothing says so."""
    if dataset is None:
        return dict.fromkeys(("format", "license", "hub_id", "commit", "config_name", "validation_split"))
    place = hub_id(dataset.path)
    return {
        "format": dataset.format,
        "license": dataset.license,
        "hub_id": place,
        "commit": _loaded_commit(place, REPOCARD_NAME, dataset.revision, "dataset"),
        "config_name": None if place is None else dataset.config_name,
        "validation_split": None if place is None else _validation_split(dataset),
    }


def _validation_split(dataset: DatasetRecipe) -> str | None:
    """The split's own name; of one that is held out, what it is a part of, since it is not the published one."""
    if dataset.validation is None:
        return dataset.splits.get("validation")
    return f"{dataset.validation:.3g} of {dataset.splits['train']}"


# ---- The recipe, and the command ----


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as YAML has it, with PATH in place of paths, and of the training arguments those of `ARGUMENTS`."""
    sections = {
        "model": {key: _id_or_path(value) if key in STARTING_POINTS else value for key, value in recipe.model.items()},
        "clips": asdict(recipe.clips),
        "mixture": _given(recipe.mixture),
        "bad_files": _given(recipe.bad_files),
        "augmentation": dict(recipe.augmentation),
        "datasets": [_public_dataset(dataset) for dataset in recipe.datasets],
        "training": {key: _plain(value) for key, value in recipe.training.items() if key in ARGUMENTS},
    }
    return {name: section for name, section in sections.items() if section}


def _public_dataset(dataset: DatasetRecipe) -> dict[str, Any]:
    entry = _given(dataset)
    if not dataset.layout.has_named_splits:
        entry["splits"] = dict.fromkeys(dataset.splits, PATH)
    for key in ("media_root", "synsets", "labels"):
        if key in entry:
            entry[key] = PATH
    if dataset.path is not None:
        entry["path"] = _id_or_path(dataset.path)
    return entry


def _id_or_path(place: str) -> str:
    return hub_id(place) or PATH


def _given(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults."""
    default = {field.name: field.default for field in fields(record)}
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    kept = {name: value for name, value in values.items() if value != default[name] and value != {}}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def training_arguments(args: CoverTrainingArguments) -> dict[str, Any]:
    """Those of `ARGUMENTS` that have a value."""
    values = {name: _plain(getattr(args, name)) for name in ARGUMENTS}
    return {name: value for name, value in values.items() if value is not None}


def launch_command(recipe: Recipe, args: CoverTrainingArguments, processes: int = 1) -> str:
    """The command of a run on a recipe: with it, the arguments that are neither the recipe's nor at their defaults."""
    launcher = ON_CPUS if args.device.type == "cpu" else ("accelerate", "launch", "--num_processes")
    command = [*launcher, str(processes)] if processes > 1 else ["accelerate", "launch"]
    command += ["examples/cotrain.py", "RECIPE.yaml"]
    expected = {field.name: field.default for field in fields(args)} | dict(recipe.training)
    if expected["metric_for_best_model"] is None:
        expected["metric_for_best_model"] = BEST_METRIC  # see CoverTrainingArguments
    for name, value in training_arguments(args).items():
        if str(value) != str(_plain(expected[name])):
            command += [f"--{name}", *_as_arguments(value)]
    return shlex.join(command)


def _as_arguments(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [json.dumps(value)]
    return [str(entry) for entry in (value if isinstance(value, list) else [value])]


# ---- What came out of it ----


def last_evaluations(
    log_history: Sequence[Mapping[str, Any]], rows: Mapping[str, int | None], step: int
) -> dict[str, dict[str, Any]]:
    """The last evaluation of each dataset up to an optimizer step, with what is finite of it; `rows` are those of each
    dataset that is evaluated, unreadable ones among them, None where it is not known."""
    found = {}
    for name, count in rows.items():
        prefix = f"eval_{name}_"
        entries = [entry for entry in log_history if f"{prefix}loss" in entry and entry["step"] <= step]
        if entries:
            values = {key: entries[-1].get(f"{prefix}{key}") for key in _METRICS}
            measured = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
            unreadable = entries[-1].get(f"{prefix}unreadable", 0)
            of_rows = {"rows": None if count is None else count - unreadable, "unreadable": unreadable}
            found[name] = {"step": entries[-1]["step"], **measured, **of_rows}
    return found


def hardware(device: torch.device, processes: int) -> dict[str, Any]:
    if device.type == "cpu":
        return {"processes": processes, "device": "CPU", "cores": os.cpu_count()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"processes": processes, "device": name}


def software() -> dict[str, str]:
    """The versions of what a run depends on; of this package only where it is installed."""
    installed = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **{name: version for name, version in installed.items() if version}}


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def measured_emissions(folder: str | os.PathLike) -> float | None:
    """Kilograms of CO2 equivalents that codecarbon has written down in the output folder of a run, of all of its
    sessions; None if it was not asked."""
    path = Path(folder) / EMISSIONS_NAME
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        return sum(_kilograms(row) for row in csv.DictReader(file))


def _kilograms(row: Mapping[str, str | None]) -> float:
    """Of a line of codecarbon's; 0 of what a session that was killed has left of one."""
    try:
        return float(row["emissions"])
    except (KeyError, TypeError, ValueError):
        return 0.0
