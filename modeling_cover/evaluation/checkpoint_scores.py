# SPDX-License-Identifier: Apache-2.0
"""What the scripts that evaluate checkpoints share: a checkpoint, the datasets of a recipe, and a table of scores."""

from collections.abc import Sequence
from typing import Any

import torch

from ..data.sources import Source, read_sources
from ..model.modeling_cover import CoverForVideoClassification
from ..model.video_processing_cover import CoverVideoProcessor
from ..recipe.dataset_recipe import DatasetRecipe
from ..recipe.recipe import Recipe
from ..text import table


_SHOWN = {
    "rows": "rows",
    "unreadable": "unreadable",
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean of classes",
    "map": "mAP",
    "ece": "ECE",
    "rows_per_second": "rows/s",
}


def chosen_datasets(recipe: Recipe, names: Sequence[str] | None, split: str) -> list[DatasetRecipe]:
    """Those that are asked for; by default all that have the split.

    Raises:
        ValueError: if the recipe has no such dataset, or none has the split.
    """
    there = {dataset.name: dataset for dataset in recipe.datasets}
    if unknown := [name for name in names or () if name not in there]:
        raise ValueError(f"the recipe has no dataset '{unknown[0]}', but {', '.join(there)}")
    chosen = [there[name] for name in dict.fromkeys(names)] if names else list(there.values())
    if not names:
        chosen = [dataset for dataset in chosen if split in dataset.split_names]
    if not chosen:
        raise ValueError(f"no dataset of the recipe has a split '{split}'")
    return chosen


def load_checkpoint(place: str, device: torch.device) -> tuple[CoverForVideoClassification, CoverVideoProcessor]:
    """A model in evaluation mode and its processor, of a folder or Hub id.

    Raises:
        ValueError: if there is none, or of another architecture.
    """
    try:
        model = CoverForVideoClassification.from_pretrained(place).eval().to(device)
        return model, CoverVideoProcessor.from_pretrained(place)
    except OSError as error:  # transformers' for one that is not there
        raise ValueError(f"{place} cannot be loaded: {error}") from error


def source_of_head(model: CoverForVideoClassification, dataset: DatasetRecipe, head: str, split: str) -> Source:
    """The split of a dataset, with the labels of the head.

    Raises:
        ValueError: if there is no such split or head, the head is of another kind, or the dataset has other classes.
    """
    if head not in model.config.heads:
        raise ValueError(
            f"dataset '{dataset.name}': the model has no head '{head}', but {', '.join(model.config.head_names)}"
        )
    description = model.config.get_head(head)
    if description["problem_type"] != dataset.problem_type:
        raise ValueError(
            f"dataset '{dataset.name}' is of {dataset.problem_type}, and the head '{head}' of {description['problem_type']}"
        )
    source = read_sources(dataset, head_labels=description["labels"], splits=[split])[split]
    if not isinstance(source, Source):
        raise ValueError(f"dataset '{dataset.name}': its {split} split is streamed, and cannot be evaluated in order")
    return source


def table_of_scores(evaluations: dict[str, dict[str, Any]], of: str = "dataset") -> str:
    """A line for each evaluation, with a column for each score that one of them has."""
    keys = [key for key in _SHOWN if any(key in scores for scores in evaluations.values())]
    lines = [[of, *(_SHOWN[key] for key in keys)]]
    lines += [[name, *(_cell(scores, key) for key in keys)] for name, scores in evaluations.items()]
    return table(lines)


def _cell(scores: dict[str, Any], key: str) -> str:
    value = scores.get(key)
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    if key == "rows_per_second":
        return f"{value:.3g}"
    interval = scores["intervals"].get(key)
    between = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{value:.3f}" if key == "ece" else f"{value:.1%}{between}"
