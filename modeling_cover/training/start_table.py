# SPDX-License-Identifier: Apache-2.0
"""What a run says before its first step: what it is about to train on what, in a table and some lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..recipe.augmentation_recipe import Augmentation
from ..recipe.recipe import STARTING_POINTS, Recipe
from ..text import counted, table


if TYPE_CHECKING:
    from .trainer import CoverTrainer


_KINDS_OF_MIXING = {"mixup_alpha": "mixup", "cutmix_alpha": "CutMix"}
_SHORT = {"color_jitter": "colour jitter", "rand_augment": "RandAugment", "random_erasing": "erasing"}


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """A dataset of a run.

    Attributes:
        rows: of the training split; None where nobody knows.
        share: of the samples, up to 1.
        weight: of its loss; None where it adapts, so that each dataset has its share of the update.
        augmentation: in short.
    """

    name: str
    rows: int | None
    classes: int
    share: float
    weight: float | None
    augmentation: str


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as a whole.

    Attributes:
        parameters, trained: of the model, and of these the ones that are trained.
        steps: optimizer steps, of all sessions.
        rows_per_step: of all processes and accumulation steps together.
        starting_point: in words.
        checkpoint: the name of the one that it resumes from.
    """

    parameters: int
    trained: int
    steps: int
    epochs: float
    rows_per_step: int
    processes: int
    device: str
    starting_point: str
    checkpoint: str | None = None


def start_text(datasets: Sequence[DatasetFacts], run: RunFacts) -> str:
    """The table of the datasets, and lines about the run."""
    rows = [["dataset", "rows", "classes", "share", "loss weight", "augmentation"]]
    for dataset in datasets:
        size = "unknown" if dataset.rows is None else f"{dataset.rows:,}"
        weight = "adapts" if dataset.weight is None else f"{dataset.weight:.3g}"
        rows.append([dataset.name, size, str(dataset.classes), f"{dataset.share:.1%}", weight, dataset.augmentation])
    trained = "all trained" if run.trained == run.parameters else f"{run.trained:,} of them trained"
    steps = f"{run.steps:,} step{'' if run.steps == 1 else 's'}"
    places = f"{counted(run.processes, 'process', 'processes')} on {run.device}"
    begins = f"starts from {run.starting_point}"
    if run.checkpoint is not None:
        begins = f"resumes from {run.checkpoint} of {steps}"
    return "\n".join(
        [
            table(rows),
            f"{run.parameters:,} parameters, {trained}",
            f"{steps} of {counted(run.rows_per_step, 'row')}, {run.epochs:.3g} epochs, in {places}",
            begins,
        ]
    )


def augmentation_text(augmentation: Augmentation) -> str:
    """What is random about the samples of a dataset, in a few words."""
    words = ["crop" if augmentation.random_resized_crop is None else "resized crop"]
    words += ["flip"] if augmentation.horizontal_flip else []
    words += ["short side"] if augmentation.short_side_range is not None else []
    words += [word for name, word in _SHORT.items() if getattr(augmentation, name) is not None]
    if augmentation.mixes:
        words += [word for name, word in _KINDS_OF_MIXING.items() if getattr(augmentation, name) > 0]
    words += [augmentation.transform_name] if augmentation.transform is not None else []
    return ", ".join(words)


def starting_point_text(recipe: Recipe) -> str:
    kind = next((kind for kind in STARTING_POINTS if kind in recipe.model), None)
    return "random weights" if kind is None else str(recipe.model[kind])


def start_of(trainer: "CoverTrainer", recipe: Recipe) -> str:
    """The text of a trainer that is about to take its first step."""
    data, schedule, heads = trainer.train_dataset, trainer.train_sampler.schedule, trainer.model.config.heads
    adapts = trainer.gradient_watch.update_shares is not None
    datasets = [
        DatasetFacts(
            name=name,
            rows=data.sizes[name],
            classes=len(heads[name]["labels"]),
            share=schedule.quotas[name] / schedule.round_size,
            weight=None if adapts else trainer.loss_weights[name],
            augmentation=augmentation_text(data.augmentations[name]),
        )
        for name in sorted(data.sources)
    ]
    # As ZeRO has cut them into parts, their sizes are elsewhere.
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in trainer.model.parameters()]
    run = RunFacts(
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, is_trained in sizes if is_trained),
        steps=trainer.state.max_steps,
        epochs=trainer.state.max_steps / trainer.train_sampler.steps_per_epoch,
        rows_per_step=trainer.args.rows_per_step,
        processes=trainer.args.world_size,
        device=trainer.args.device.type,
        starting_point=starting_point_text(recipe),
        checkpoint=None if trainer.resumed_from is None else Path(trainer.resumed_from).name,
    )
    return start_text(datasets, run)
