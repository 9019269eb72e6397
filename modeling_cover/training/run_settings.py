# SPDX-License-Identifier: Apache-2.0
"""The settings of a run: which of them may change when it resumes from a checkpoint, and with which it took which
steps."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from ..data.samples import CoTrainingDataset
from ..model.configuration_cover import CoverConfig
from .arguments import MEASURING_SCHEDULES, CoverTrainingArguments
from .from_recipe import SHAPES
from .run_facts import training_arguments


Settings = dict[str, Any]

# They decide, with the number of processes, the rows of a step, which are compared as a whole.
_BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps")

# What the state in a checkpoint is made for: an optimizer's moments, the best metric so far, weights of these shapes.
_FIXED = ("optim", "optim_args", "trained_part", "metric_for_best_model", "seed", "data_seed")
_FIXED_IN_MODEL = (*SHAPES, "encoder_pooling", "hidden_act", "layer_norm_eps", "image_size", "num_frames")
_FREE_IN_MODEL = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")

_OF_SCHEDULE = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "layer_decay",
    "new_parameters_learning_rate",
)


def run_settings(
    args: CoverTrainingArguments, config: CoverConfig, dataset: CoTrainingDataset, loss_weights: Mapping[str, float]
) -> Settings:
    """All that decides what is learnt of which samples, flat and JSON-able, by names that a person knows.

    Settings without a value are left out, and so are those that have no effect.
    """
    arguments = training_arguments(args)
    without_effect = [*_BATCHES, *(["num_train_epochs"] if args.max_steps > 0 else ["max_steps"])]
    if not args.load_best_model_at_end:
        without_effect.append("metric_for_best_model")
    processor = dataset.processor
    settings = {
        **{name: value for name, value in arguments.items() if name not in without_effect},
        **{name: getattr(config, name) for name in (*_FIXED_IN_MODEL, *_FREE_IN_MODEL)},
        "encoder": None if config.encoder is None else _own_fields(config.encoder),
        # Of a checkpoint from before there were any, no value.
        "encoder_temporal_layers": config.encoder_temporal_layers or None,
        "clip sampling": dataset.clip_sampling,
        "frame_stride": processor.frame_stride,
        "short_side": processor.size["shortest_edge"],
        "image_mean": processor.image_mean,
        "image_std": processor.image_std,
        **{f"weight of '{name}'": loss_weights[name] for name in dataset.sources},
        **{f"augmentation of '{name}'": value.settings() for name, value in dataset.augmentations.items()},
    }
    return json.loads(json.dumps(settings))  # as they come back from a checkpoint


def _own_fields(encoder: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a configuration, without what says how a model was loaded."""
    of_loading = {"_name_or_path", "architectures", "dtype", "transformers_version"}
    return {name: value for name, value in encoder.to_dict().items() if name not in of_loading}


def changed_settings(was: Settings, now: Settings) -> list[str]:
    """The names of the settings that differ, in the order of those of now, if by more than fp32 tells apart: earlier
    versions stored weights so."""
    return [name for name in {**now, **was} if not _is_same(was.get(name), now.get(name))]


def _is_same(was: Any, now: Any) -> bool:
    are_floats = isinstance(was, float) and isinstance(now, float)
    return math.isclose(was, now, rel_tol=1e-6) if are_floats else was == now


def describe_changes(was: Settings, now: Settings, names: Sequence[str]) -> list[str]:
    """A line for each, with both values."""
    return [f"{name}: {_value(was, name)} in the checkpoint, {_value(now, name)} now" for name in names]


def _value(settings: Settings, name: str) -> str:
    return str(settings[name]) if name in settings else "not set"


def cannot_change(was: Settings, now: Settings) -> list[str]:
    """Those of the changed settings that a run cannot resume with."""
    fixed = {*_FIXED, *_FIXED_IN_MODEL, "encoder_temporal_layers"}
    if {was.get("lr_scheduler_type"), now.get("lr_scheduler_type")} & set(MEASURING_SCHEDULES):
        fixed.update(_OF_SCHEDULE)
    changed = [name for name in changed_settings(was, now) if name in fixed]
    # By which metric the best is chosen may be said, or no longer matter, at any time.
    return [name for name in changed if name != "metric_for_best_model" or (name in was and name in now)]


# ---- Part by part ----


def joined_parts(before: Sequence[Mapping[str, Any]], settings: Settings, step: int) -> list[dict[str, Any]]:
    """The parts of a run up to `step`, each with its settings; `before` are those of the checkpoint.

    Returns:
        Dictionaries with `first_step`, `last_step` (counted from 1, both included) and `settings`, one for each
        change.
    """
    parts = [dict(part) for part in before]
    last = parts[-1]["last_step"] if parts else 0
    if step <= last:
        return parts
    if parts and not changed_settings(parts[-1]["settings"], settings):
        parts[-1]["last_step"] = step
    else:
        parts.append({"first_step": last + 1, "last_step": step, "settings": settings})
    return parts


def differing_parts(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The parts with just those settings that are not the same in all; none where nothing has changed."""
    differing = {name for part in parts for name in changed_settings(part["settings"], parts[-1]["settings"])}
    if not differing:
        return []
    return [{**part, "settings": {name: part["settings"].get(name) for name in sorted(differing)}} for part in parts]
