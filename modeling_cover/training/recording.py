# SPDX-License-Identifier: Apache-2.0
"""The record of a run, which lies beside the weights: what was trained on what, how, how well and how long."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerState

from ..data.mixture import MixtureSampler
from ..data.samples import CoTrainingDataset, EvaluationDataset
from ..hub.checkpoint_files import CURVES_NAME
from ..hub.run_record import read_summary, stale_heads_of, write_summary
from ..model.configuration_cover import CoverConfig
from ..recipe.recipe import Recipe
from .arguments import CoverTrainingArguments
from .checkpoints import read_state
from .run_facts import (
    dataset_origin,
    hardware,
    last_evaluations,
    launch_command,
    measured_emissions,
    public_recipe,
    software,
    starting_point,
    training_arguments,
)
from .run_identity import check_same_run, has_no_step_left, run_identity
from .run_settings import Settings, differing_parts, joined_parts, run_settings


def _start_of(recipe: Recipe, config: CoverConfig) -> dict[str, Any]:
    """What a run starts from, and which of the model's heads were stale in it."""
    given = recipe.model.get("from_pretrained")
    stale = [] if given is None else stale_heads_of(given, config, recipe.model.get("revision"))
    return {**starting_point(recipe), "stale_heads": stale}


class RunRecord:
    """What a run notes about itself.

    What it counts continues where the run was stopped: the record of a run that was killed differs from another only
    in the time.

    Args:
        args: the run's training arguments.
        config: the model's.
        dataset: the training samples.
        sampler: draws them.
        loss_weights: the weight of each dataset's loss.
        recipe: the run's; without it, the record does not say how the data are stored and licensed, nor how to run it.
        precision, distributed: accelerate's names for the mixed precision and the kind of distribution.
        update_shares: what each dataset is to have of the update, where its weight adapts to that.
    """

    def __init__(
        self,
        args: CoverTrainingArguments,
        config: CoverConfig,
        dataset: CoTrainingDataset,
        sampler: MixtureSampler,
        loss_weights: Mapping[str, float],
        recipe: Recipe | None = None,
        precision: str = "no",
        distributed: str = "NO",
        update_shares: Mapping[str, float] | None = None,
    ):
        self._args = args
        self._config = config
        self._dataset = dataset
        self._sampler = sampler
        self._loss_weights = loss_weights
        self._update_shares = update_shares
        self._recipe = recipe
        self._how = {
            "rows_per_step": sampler.step_size,
            "precision": {"no": "fp32"}.get(precision, precision),
            "sharding": distributed if distributed in ("FSDP", "DEEPSPEED") else None,
        }
        self._recipe_start = None if recipe is None else _start_of(recipe, config)
        self._begin()

    def _begin(self) -> None:
        self._start = self._recipe_start
        # Seconds of the sessions before, None where one has left no record; and when the present one began.
        self._seconds_before: float | None = 0.0
        self._session_began: float | None = None
        self._parts_before: Sequence[Mapping[str, Any]] = ()
        self.skipped_steps = 0
        self.best_step: int | None = None  # whose weights the model has, where that is not the last step

    @contextmanager
    def session(self) -> Iterator[None]:
        """Inside, a run begins or resumes, and the time that passes is its."""
        self._begin()
        self._session_began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds_before, self._session_began = self._seconds, None

    @property
    def _seconds(self) -> float | None:
        if self._seconds_before is None or self._session_began is None:
            return self._seconds_before
        return self._seconds_before + time.perf_counter() - self._session_began

    def start_from_another_run(self) -> None:
        """Note that the weights were another run's."""
        self._start = {"kind": "restart_schedule", "hub_id": None, "stale_heads": []}

    def resume(self, checkpoint: str | os.PathLike) -> None:
        """Continue the record that lies in a checkpoint."""
        self._parts_before = read_state(checkpoint)["parts"]
        summary = read_summary(checkpoint)
        if summary is None:
            self._seconds_before = None
            return
        self._start = summary["starting_point"]
        self._seconds_before = summary["time"]["seconds"]
        self.skipped_steps = summary["progress"]["skipped_steps"]

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change if the run is to resume, see [`run_identity`]."""
        return run_identity(self._sampler.schedule, self._dataset, self._sampler.step_size)

    @property
    def settings(self) -> Settings:
        """What decides what is learnt, see [`run_settings`]."""
        weights = self._loss_weights if self._update_shares is None else dict.fromkeys(self._loss_weights)
        settings = run_settings(self._args, self._config, self._dataset, weights)
        if self._update_shares is not None:
            settings |= {f"update share of '{name}'": share for name, share in self._update_shares.items()}
        return settings

    def check_resumes(self, checkpoint: Path) -> None:
        """Raise a [`CheckpointError`] that says what differs if a checkpoint is another run's, see
        [`check_same_run`]."""
        has_ended = has_no_step_left(checkpoint, self._args, self._sampler.steps_per_epoch)
        run = self._config, self.identity, self.settings
        check_same_run(checkpoint, *run, has_ended, self._args.accept_changed_rows)

    def parts(self, step: int) -> list[dict[str, Any]]:
        """With which settings the run has taken which steps, see [`joined_parts`]."""
        return joined_parts(self._parts_before, self.settings, step)

    def summary(
        self, state: TrainerState, evaluated_rows: Mapping[str, int | None], folder: str | os.PathLike
    ) -> dict[str, Any]:
        """The record as it is now, JSON-able, for the checkpoint in `folder`.

        Recipe, command and `training` are those of the last steps; where earlier ones were taken with other settings,
        `parts` tells which. `progress.step` is the step of the weights, `last_step` the one that training has come to;
        `time` is the sum of all sessions, evaluations and checkpoints included; `emissions` are in kilograms.

        Args:
            state: the Trainer's.
            evaluated_rows: what [`evaluated_rows`] returns.
            folder: may hold the plot of the training curves.
        """
        recipe, args, seconds = self._recipe, self._args, self._seconds
        step = state.global_step if self.best_step is None else self.best_step
        samples = state.global_step * self._sampler.step_size
        return {
            "command": None if recipe is None else launch_command(recipe, args, args.world_size),
            "recipe": None if recipe is None else public_recipe(recipe),
            "starting_point": self._start,
            "datasets": self._dataset_records(),
            "training": {**training_arguments(args), **self._how},
            "parts": differing_parts(self.parts(state.global_step)),
            "progress": {
                "step": step,
                "last_step": state.global_step,
                "max_steps": state.max_steps,
                "epoch": state.epoch,
                "samples": samples,
                "skipped_steps": self.skipped_steps,
            },
            "evaluation": last_evaluations(state.log_history, evaluated_rows, step),
            "hardware": hardware(args.device, args.world_size),
            "software": software(),
            "time": {"seconds": seconds, "samples_per_second": samples / seconds if seconds else None},
            "emissions": measured_emissions(args.output_dir),
            "curves": CURVES_NAME if (Path(folder) / CURVES_NAME).is_file() else None,
        }

    def write(self, folder: str | os.PathLike, state: TrainerState, eval_dataset: object) -> None:
        """Write the record beside the weights in `folder`."""
        write_summary(self.summary(state, evaluated_rows(eval_dataset), folder), folder)

    def _dataset_records(self) -> list[dict[str, Any]]:
        dataset, schedule = self._dataset, self._sampler.schedule
        bad_files = dataset.bad_files
        entries = {} if self._recipe is None else {entry.name: entry for entry in self._recipe.datasets}
        return [
            {
                "name": name,
                "modality": source.modality,
                "problem_type": source.problem_type,
                "rows": len(source),
                "classes": len(source.labels),
                "share": schedule.quotas[name] / schedule.round_size,
                "weight": round(self._loss_weights[name], 6),
                "update_share": None if self._update_shares is None else round(self._update_shares[name], 6),
                "bad_files": bad_files.get(name, 0),
                **dataset_origin(entries.get(name)),
            }
            for name, source in dataset.sources.items()
        ]


def evaluated_rows(eval_dataset: object) -> dict[str, int | None]:
    """The rows of each dataset that is evaluated; None if it is not ours. Metrics of one dataset do not say whose they
    are."""
    if not isinstance(eval_dataset, Mapping):
        return {}
    return {name: len(data) if isinstance(data, EvaluationDataset) else None for name, data in eval_dataset.items()}
