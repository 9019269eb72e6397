# SPDX-License-Identifier: Apache-2.0
"""Which run a checkpoint is of: what must not change if its schedule is to continue."""

import math
import os
from collections.abc import Mapping
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..data.mixture import MixtureSchedule
from ..data.samples import CoTrainingDataset
from ..model.configuration_cover import CoverConfig
from .arguments import CoverTrainingArguments
from .checkpoints import STATE_VERSION, CheckpointError, read_state
from .run_settings import Settings, cannot_change, changed_settings, describe_changes


logger = logging.get_logger(__name__)


def run_identity(schedule: MixtureSchedule, dataset: CoTrainingDataset, step_size: int) -> dict[str, Any]:
    """JSON-able; with the heads, which are in the configuration, it decides which sample is drawn at which step."""
    return {
        "datasets": {
            name: {"rows": dataset.sizes[name], "draws": draws, **dataset.row_hashes[name]}
            for name, draws in schedule.quotas.items()
        },
        "seed": schedule.seed,
        "rows_per_step": step_size,
    }


def stays_stopped(checkpoint: str | os.PathLike, args: CoverTrainingArguments) -> bool:
    """Whether the run of a checkpoint was stopped there before its last step, by early stopping, say, and is to stay
    so. Trainer forgets it, and would train on."""
    if not args.restore_callback_states_from_checkpoint:
        return False
    state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
    control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
    return control.get("should_training_stop", False) and state.global_step < state.max_steps


def has_no_step_left(checkpoint: str | os.PathLike, args: CoverTrainingArguments, steps_per_epoch: int) -> bool:
    """Whether the run of a checkpoint has come to its end, or was stopped early."""
    last = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    return read_state(checkpoint)["step"] >= last or stays_stopped(checkpoint, args)


def check_same_run(
    checkpoint: str | os.PathLike,
    config: CoverConfig,
    identity: Mapping[str, Any],
    settings: Settings,
    has_ended: bool,
    accept_changed_rows: bool = False,
) -> None:
    """Raise a [`CheckpointError`] that says what differs if a checkpoint is another run's; log what has changed.

    A run that `has_ended` takes no step any more: nothing that has changed would be used.
    """
    state = read_state(checkpoint)
    if state.get("version") != STATE_VERSION:
        raise CheckpointError(
            f"{os.fspath(checkpoint)} was written by another version of this package (its state is of version "
            f"{state.get('version')}, expected {STATE_VERSION}): take just its weights, with `restart_schedule`"
        )
    was = state["parts"][-1]["settings"]
    fixed, changed = cannot_change(was, settings), changed_settings(was, settings)
    found = [*_different_heads(CoverConfig.from_pretrained(checkpoint), config), *_different(state["run"], identity)]
    found += describe_changes(was, settings, fixed)
    if found:
        raise CheckpointError(
            f"{os.fspath(checkpoint)} is of another run, so its schedule cannot continue:\n{_listed(found)}\nMake them "
            "equal, or take just its weights and start a new schedule: `restart_schedule`, in an output_dir of its own"
        )
    if rows := _changed_rows(state["run"], identity):
        message = f"{os.fspath(checkpoint)} was written when datasets had other rows:\n{_listed(rows)}\n"
        if not accept_changed_rows:
            raise CheckpointError(
                f"{message}Make them equal, or resume with them as they are now: `accept_changed_rows`"
            )
        logger.warning(f"{message}The run resumes from step {state['step']} with them as they are now.")
    if changed and has_ended:
        raise CheckpointError(
            f"{os.fspath(checkpoint)} is the end of its run, which would train nothing with what is other now:\n"
            f"{_listed(describe_changes(was, settings, changed))}\nMake them equal, or choose another output_dir"
        )
    if changed:
        logger.warning(
            f"The run resumes from step {state['step']} with other settings, which its record tells apart:\n"
            f"{_listed(describe_changes(was, settings, changed))}"
        )


def _listed(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _different_heads(stored: CoverConfig, config: CoverConfig) -> list[str]:
    found = _in_one_alone("heads", stored.heads, config.heads)
    for name in sorted(stored.heads.keys() & config.heads.keys()):
        was, now = stored.heads[name], config.heads[name]
        if was["problem_type"] != now["problem_type"]:
            found.append(f"head '{name}': {was['problem_type']} in the checkpoint, {now['problem_type']} now")
        if was.get("head") != now.get("head"):
            kinds = [kind.get("head") or "linear" for kind in (was, now)]
            found.append(f"head '{name}': {kinds[0]} in the checkpoint, {kinds[1]} now")
        if (difference := _different_labels(was["labels"], now["labels"])) is not None:
            found.append(f"head '{name}': {difference}")
    return found


def _in_one_alone(what: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    missing = [f"{what}: '{name}' is only in the checkpoint" for name in sorted(was.keys() - now.keys())]
    return missing + [f"{what}: '{name}' is not in the checkpoint" for name in sorted(now.keys() - was.keys())]


def _different_labels(was: list[str], now: list[str]) -> str | None:
    if len(was) != len(now):
        return f"{len(was)} labels in the checkpoint, {len(now)} now"
    pairs = enumerate(zip(was, now, strict=True))
    return next((f"label {index} is {a!r} in the checkpoint, {b!r} now" for index, (a, b) in pairs if a != b), None)


def _changed_rows(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is other about the rows of datasets."""
    what = {"names": "files were renamed, moved or swapped", "labels": "rows have other labels"}
    return [
        f"dataset '{name}': {change}"
        for name, dataset in was["datasets"].items()
        for key, change in what.items()
        if key in dataset and dataset[key] != now["datasets"][name].get(key)
    ]


def _different(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = _in_one_alone("datasets", was["datasets"], now["datasets"])
    for name in sorted(was["datasets"].keys() & now["datasets"].keys()):
        for key, what in (("rows", "rows"), ("draws", "draws in a round of the mixture")):
            before, after = was["datasets"][name][key], now["datasets"][name][key]
            if before != after:
                found.append(f"dataset '{name}': {before} {what} in the checkpoint, {after} now")
    if was["seed"] != now["seed"]:
        found.append(f"seed: {was['seed']} in the checkpoint, {now['seed']} now")
    if was["rows_per_step"] != now["rows_per_step"]:
        found.append(
            f"rows of an optimizer step: {was['rows_per_step']} in the checkpoint, {now['rows_per_step']} now "
            "(per_device_train_batch_size x gradient_accumulation_steps x processes)"
        )
    return found
