# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Scores of every row of a data set, by any number of processes."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data import collate_clips
from ..modeling_cover import CoverForVideoClassification
from ..pipeline_cover import head_scores
from .views import ViewsDataset


@dataclass(frozen=True)
class RowScores:
    """Of all rows of a data set, in order.

    Attributes:
        scores: (rows, classes), the mean over views of the probabilities.
        targets: (rows,) or, with several labels a row, (rows, classes).
        seconds: that it took, decoding included.
    """

    scores: np.ndarray
    targets: np.ndarray
    seconds: float


@torch.inference_mode()
def score_rows(
    model: CoverForVideoClassification,
    dataset: ViewsDataset,
    head: str | None = None,
    accelerator: Accelerator | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
) -> RowScores:
    """Average the probabilities of the views of each row, as section 4.1 of the paper does.

    Each row is scored once, by one of the processes, in a batch of the same rows however many processes there are.

    Args:
        model: in evaluation mode, on the device of the accelerator.
        dataset: of the head's label space.
        head: by default the one that is called as the data set.
        accelerator: of all processes, which must all call this; by default of this one alone.
        batch_size: rows of a batch, whose views go through the model at once.
        num_workers: processes that decode, of each process.

    Returns:
        The same on each process.
    """
    head = head or dataset.source.name
    description, num_rows = model.config.get_head(head), len(dataset)
    accelerator = accelerator or Accelerator()
    starts = range(0, num_rows, batch_size)[accelerator.process_index :: accelerator.num_processes]
    batches = [range(start, min(start + batch_size, num_rows)) for start in starts]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate_clips)
    num_classes = len(description["labels"])
    is_multi_label = description["problem_type"] == "multi_label_classification"
    scores = torch.zeros(num_rows, num_classes, device=accelerator.device)
    targets = torch.zeros(
        num_rows,
        *((num_classes,) if is_multi_label else ()),
        device=accelerator.device,
        dtype=torch.float32 if is_multi_label else torch.int64,
    )
    started = time.perf_counter()
    progress = tqdm(loader, desc=dataset.source.name, unit="batch", disable=not accelerator.is_main_process)
    for rows, batch in zip(batches, progress, strict=True):
        views = batch["pixel_values"].to(accelerator.device)
        clips = dataset.processor.normalize_pixels(views.flatten(0, 1))
        with accelerator.autocast():
            logits = model(clips, head=head).logits
        scores[rows.start : rows.stop] = head_scores(description, logits.unflatten(0, views.shape[:2]))
        targets[rows.start : rows.stop] = batch["labels"].to(accelerator.device)
    seconds = torch.tensor([time.perf_counter() - started], device=accelerator.device)
    # Where another process has scored a row, this one has zeros.
    scores, targets = (accelerator.reduce(tensor, reduction="sum") for tensor in (scores, targets))
    longest = accelerator.gather(seconds).max().item()
    return RowScores(scores.cpu().numpy(), targets.cpu().numpy(), longest)
