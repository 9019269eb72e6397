# SPDX-License-Identifier: Apache-2.0
"""Scores and features of every row of a dataset, by any number of processes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..bars import bar
from ..data.collation import collate_clips
from ..model.modeling_cover import CoverForVideoClassification
from ..model.pipeline_cover import head_scores
from ..recipe.checks import check_whole_number
from ..recipe.dataset_recipe import MULTI_LABEL
from .views import ViewsDataset


@dataclass(frozen=True)
class RowOutputs:
    """Of all rows of a dataset, in order; targets are `UNREADABLE` where a file could not be decoded."""

    outputs: np.ndarray  # (rows, ...), what was asked for
    targets: np.ndarray  # (rows,) or, with several labels a row, (rows, classes)
    seconds: float  # that it took, decoding included


def score_rows(
    model: CoverForVideoClassification,
    dataset: ViewsDataset,
    head: str | None = None,
    accelerator: Accelerator | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
) -> RowOutputs:
    """The probabilities of the classes (rows, classes), the mean over the views of each row as in section 4.1 of the
    paper.

    Each row is scored once, by one of the processes, in a batch of the same rows however many processes there are.

    Args:
        model: in evaluation mode, on the device of the accelerator.
        dataset: of the head's label space.
        head: by default the one that is called as the dataset.
        accelerator: of all processes, which must all call this and get the same; by default of this one alone.
        batch_size: rows of a batch, whose views go through the model at once.
        num_workers: processes that decode, of each process.
    """
    head = head or dataset.source.name
    description = model.config.get_head(head)

    def scores(clips: torch.Tensor, num_views: int) -> torch.Tensor:
        return head_scores(description, model(clips, head=head).logits.unflatten(0, (-1, num_views)))

    return _of_rows(scores, (len(description["labels"]),), dataset, accelerator, batch_size, num_workers)


def extract_features(
    model: CoverForVideoClassification,
    dataset: ViewsDataset,
    accelerator: Accelerator | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
) -> RowOutputs:
    """The features (rows, hidden_size) that heads see, the mean over the views of each row; arguments are as in
    [`score_rows`], and the dataset's classes may be any."""

    def features(clips: torch.Tensor, num_views: int) -> torch.Tensor:
        return model.cover(clips).pooler_output.float().unflatten(0, (-1, num_views)).mean(dim=1)

    return _of_rows(features, (model.config.hidden_size,), dataset, accelerator, batch_size, num_workers)


@torch.inference_mode()
def _of_rows(
    compute: Callable[[torch.Tensor, int], torch.Tensor],
    shape: tuple[int, ...],
    dataset: ViewsDataset,
    accelerator: Accelerator | None,
    batch_size: int,
    num_workers: int,
) -> RowOutputs:
    """What `compute` makes (rows, *shape) of the clips (rows * views, T, 3, H, W) of each batch, and the number of
    views."""
    check_whole_number("batch_size", batch_size)
    accelerator, num_rows = accelerator or Accelerator(), len(dataset)
    starts = range(0, num_rows, batch_size)[accelerator.process_index :: accelerator.num_processes]
    batches = [range(start, min(start + batch_size, num_rows)) for start in starts]
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate_clips,
        generator=torch.Generator(),  # or its workers' seed would be drawn from the one that a training run goes by
    )
    outputs = torch.zeros(num_rows, *shape, device=accelerator.device)
    if dataset.source.problem_type == MULTI_LABEL:
        targets = torch.zeros(num_rows, len(dataset.source.labels), device=accelerator.device)
    else:
        targets = torch.zeros(num_rows, dtype=torch.int64, device=accelerator.device)
    started = time.perf_counter()
    progress = bar(loader, desc=dataset.source.name, unit="batch", disable=not accelerator.is_main_process)
    for rows, batch in zip(batches, progress, strict=True):
        views = batch["pixel_values"].to(accelerator.device)
        clips = dataset.processor.normalize_pixels(views.flatten(0, 1))
        with accelerator.autocast():
            outputs[rows.start : rows.stop] = compute(clips, views.shape[1])
        targets[rows.start : rows.stop] = batch["labels"].to(accelerator.device)
    seconds = torch.tensor([time.perf_counter() - started], device=accelerator.device)
    # Where another process has a row, this one has zeros.
    outputs, targets = (accelerator.reduce(tensor, reduction="sum") for tensor in (outputs, targets))
    longest = accelerator.gather(seconds).max().item()
    return RowOutputs(outputs.cpu().numpy(), targets.cpu().numpy(), longest)
