# SPDX-License-Identifier: Apache-2.0
"""Batches: from clips to groups of one shape."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def collate_clips(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch that `CoverForVideoClassification` takes.

    Training samples become groups of clips of one shape and type, in order of first appearance, with the `labels` and
    `head_ids` of all rows in the order of the groups; `labels` is a dict by head where some are vectors (of a
    multi-label head, or of mixed samples). Samples of an evaluation, all of one head, become one tensor.

    Raises:
        ValueError: if samples of an evaluation are of several heads.
    """
    if "head" in samples[0]:
        heads = {sample["head"] for sample in samples}
        if len(heads) > 1:
            raise ValueError(f"a batch for evaluation is of one head, got {sorted(heads)}")
        clips = [sample["pixel_values"] for sample in samples]
        # What cannot be read is of bytes, all 0.
        is_mixed = len({clip.dtype for clip in clips}) > 1
        if is_mixed and any(clip.any() for clip in clips if not clip.is_floating_point()):
            raise ValueError(f"dataset '{samples[0]['head']}': some rows are floats for the model, others bytes")
        return {
            "pixel_values": torch.stack(clips),
            "labels": _stacked_labels(samples),
            "head": samples[0]["head"],
        }
    groups = defaultdict(list)
    for sample in samples:
        clip = sample["pixel_values"]
        groups[clip.shape, clip.dtype].append(sample)
    rows = [sample for group in groups.values() for sample in group]
    return {
        "pixel_values": [torch.stack([sample["pixel_values"] for sample in group]) for group in groups.values()],
        "labels": _mixed_labels(rows),
        "head_ids": torch.tensor([sample["head_ids"] for sample in rows]),
    }


def _mixed_labels(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor | dict[str, torch.Tensor]:
    if not any(isinstance(sample["labels"], torch.Tensor) for sample in rows):
        return _stacked_labels(rows)
    rows_of = defaultdict(list)
    for sample in rows:
        rows_of[sample["dataset"]].append(sample)
    return {name: _stacked_labels(samples) for name, samples in rows_of.items()}


def _stacked_labels(samples: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(sample["labels"]) for sample in samples])
