# SPDX-License-Identifier: Apache-2.0
"""A Trainer that keeps a record of its run beside the weights, and writes the model card out of it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import TrainOutput

from ..data.samples import EvaluationDataset
from ..hub.checkpoint_files import CURVES_NAME
from ..hub.model_card import write_model_card
from ..hub.run_record import read_summary, write_summary
from ..recipe.recipe import Recipe
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
from .run_settings import differing_parts
from .weight_average import AveragingTrainer


class RecordedTrainer(AveragingTrainer):
    """Writes `training_summary.json` into each folder that it saves to.

    What a run counts goes on where it was stopped: the record of a run that was killed differs from another only in the time.

    Args:
        recipe: of the run; without it, the record does not say how the data are stored and licensed, nor how to run it.
    """

    def __init__(self, *args: Any, recipe: Recipe | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self._recipe_start = None if recipe is None else starting_point(recipe)
        self._begin_record()

    def _begin_record(self) -> None:
        self._start = self._recipe_start
        # Seconds of the sessions before, None where one has left no record; and when the present one began.
        self._seconds_before: float | None = 0.0
        self._session_began: float | None = None
        self._skipped_steps = 0
        self._best_step: int | None = None  # whose weights the model has, where that is not the last step

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._begin_record()
        self._session_began = time.perf_counter()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._seconds_before, self._session_began = self._seconds, None

    @property
    def _seconds(self) -> float | None:
        if self._seconds_before is None or self._session_began is None:
            return self._seconds_before
        return self._seconds_before + time.perf_counter() - self._session_began

    def _take_weights(self, checkpoint: Path) -> None:
        super()._take_weights(checkpoint)
        self._start = {"kind": "restart_schedule", "hub_id": None}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        summary = read_summary(checkpoint)
        if summary is None:
            self._seconds_before = None
        else:
            self._start = summary["starting_point"]
            self._seconds_before = summary["time"]["seconds"]
            self._skipped_steps = summary["progress"]["skipped_steps"]

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._best_step = self.state.best_global_step

    def _note_skipped_step(self) -> None:
        self._skipped_steps += 1
        super()._note_skipped_step()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.train_dataset is not None:
            folder = self.args.output_dir if output_dir is None else output_dir
            write_summary(self.summary(folder), folder)

    def summary(self, folder: str) -> dict[str, Any]:
        """The record of the run as it is now, JSON-able, for the checkpoint in `folder`.

        Recipe, command and `training` are those of the last steps; where earlier ones were taken with other settings,
        `parts` tells which. `progress.step` is the step of the weights, `last_step` the one that training has come to; `time` is that of all
        sessions, evaluations and checkpoints included; `emissions` are in kilograms.
        """
        recipe, args, seconds = self.recipe, self.args, self._seconds
        step = self.state.global_step if self._best_step is None else self._best_step
        samples = self.state.global_step * self.rows_per_step
        distributed = self.accelerator.distributed_type.value
        return {
            "command": None if recipe is None else launch_command(recipe, args, args.world_size),
            "recipe": None if recipe is None else public_recipe(recipe),
            "starting_point": self._start,
            "datasets": self._dataset_records(),
            "training": {
                **training_arguments(args),
                "rows_per_step": self.rows_per_step,
                "precision": {"no": "fp32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision),
                "sharding": distributed if distributed in ("FSDP", "DEEPSPEED") else None,
            },
            "parts": differing_parts(self.parts),
            "progress": {
                "step": step,
                "last_step": self.state.global_step,
                "max_steps": self.state.max_steps,
                "epoch": self.state.epoch,
                "samples": samples,
                "skipped_steps": self._skipped_steps,
            },
            "evaluation": last_evaluations(self.state.log_history, self._evaluated_rows(), step),
            "hardware": hardware(args.device, args.world_size),
            "software": software(),
            "time": {"seconds": seconds, "samples_per_second": samples / seconds if seconds else None},
            "emissions": measured_emissions(args.output_dir),
            "curves": CURVES_NAME if (Path(folder) / CURVES_NAME).is_file() else None,
        }

    def _dataset_records(self) -> list[dict[str, Any]]:
        dataset, schedule = self.train_dataset, self.train_sampler.schedule
        bad_files = {} if dataset.quarantine is None else dataset.quarantine.counts()
        entries = {} if self.recipe is None else {entry.name: entry for entry in self.recipe.datasets}
        return [
            {
                "name": name,
                "modality": source.modality,
                "problem_type": source.problem_type,
                "rows": len(source),
                "classes": len(source.labels),
                "share": schedule.quotas[name] / schedule.round_size,
                "weight": round(self.loss_weights[self.head_names.index(name)].item(), 6),
                "bad_files": bad_files.get(name, 0),
                **dataset_origin(entries.get(name)),
            }
            for name, source in dataset.sources.items()
        ]

    def _evaluated_rows(self) -> dict[str, int | None]:
        if not isinstance(self.eval_dataset, Mapping):  # whose metrics do not say whose they are
            return {}
        return {
            name: len(data) if isinstance(data, EvaluationDataset) else None
            for name, data in self.eval_dataset.items()
        }

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset_tags: str | list[str] | None = None,
    ) -> None:
        """Write the model card into the output folder, out of the record of the run; see [`write_model_card`].

        Args:
            language, license: of the card's front matter.
            tags: beside those that every card has.
            model_name: what the results are listed under.
            finetuned_from: an id of the Hub; by default the starting point's, if it has one.
            dataset_tags: ids of the Hub; by default those of the datasets that come from there.
        """
        if not self.is_world_process_zero():
            return
        if self.train_dataset is not None:
            # With evaluations since the model was saved.
            write_summary(self.summary(self.args.output_dir), self.args.output_dir)
        given = {
            "language": language,
            "license": license,
            "tags": [tags] if isinstance(tags, str) else tags,
            "model_name": model_name,
            "base_model": finetuned_from,
            "datasets": [dataset_tags] if isinstance(dataset_tags, str) else dataset_tags,
        }
        overrides = {key: value for key, value in given.items() if value is not None}
        write_model_card(self.args.output_dir, self.args.hub_model_id, **overrides)
