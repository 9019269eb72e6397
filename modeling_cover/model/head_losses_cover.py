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
"""The loss of each head: cross-entropy (section 3.3 of the paper), binary cross-entropy for a multi-label head, or the
mean squared error of a regression.

Axes: R rows of a batch, L labels of a head.
"""

from collections.abc import Mapping

import torch
from torch import nn
from transformers.utils import is_torchdynamo_compiling

from .configuration_cover import MULTI_LABEL, REGRESSION, SINGLE_LABEL, CoverConfig


# The label or the head of a row that counts for nothing, as all over torch.
IGNORED = NO_HEAD = -100


def head_loss(
    config: CoverConfig, name: str, logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Mean loss of rows that all belong to the head `name`.

    Args:
        logits: (R, L).
        labels: (R,), where -100 counts for nothing, or (R, L) of probabilities that add up to 1, as mixing two samples
            makes them; for a multi-label head (R, L), 0 or 1 for each label, or between; for a regression (R, L), or
            (R,) of a single number.
        reduction: as in torch's losses: with "none" each entry's, (R,) or (R, L).

    Raises:
        ValueError: if the labels have another shape, or are out of the head's range.
    """
    if isinstance(labels, Mapping):
        raise ValueError("labels: a dict of labels needs head_ids, which say whose row is whose")
    what, problem_type = f"labels of head '{name}'", config.heads[name]["problem_type"]
    if problem_type == REGRESSION and labels.ndim == 1 and logits.shape[-1] == 1:
        labels = labels[:, None]
    probabilities = problem_type == SINGLE_LABEL and labels.is_floating_point() and labels.ndim == 2
    expected = (logits.shape[0],) if problem_type == SINGLE_LABEL and not probabilities else tuple(logits.shape)
    if tuple(labels.shape) != expected:
        raise ValueError(f"{what}: expected shape {expected}, got {tuple(labels.shape)}")
    if problem_type == REGRESSION:
        return nn.functional.mse_loss(logits.float(), labels.float(), reduction=reduction)
    if problem_type == MULTI_LABEL:
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction=reduction)
    if probabilities:
        _check_probabilities(what, labels)
    else:
        _check_integers(what, labels)
        _check_range(what, labels.masked_fill(labels == IGNORED, 0), logits.shape[-1])
    return nn.functional.cross_entropy(logits.float(), labels, reduction=reduction)


def mixed_head_losses(
    config: CoverConfig,
    head_logits: Mapping[str, torch.Tensor],
    labels: torch.Tensor | Mapping[str, torch.Tensor],
    head_ids: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Each head's mean loss over its rows; a head without rows has loss 0, with a gradient (of zeros).

    Args:
        head_logits: (R, L) of each head, for all rows.
        labels: (R,), or a dict {head: labels of its rows, in order}.
        head_ids: (R,), the head of each row as an index into `config.head_names`; -100 for a row that counts for
            nothing.

    Raises:
        ValueError: if shapes, head ids, names or labels do not fit.
    """
    names = config.head_names
    num_rows = head_logits[names[0]].shape[0]
    if tuple(head_ids.shape) != (num_rows,):
        raise ValueError(f"head_ids: expected shape ({num_rows},), one for each row, got {tuple(head_ids.shape)}")
    _check_integers("head_ids", head_ids)
    _check_range("head_ids", head_ids.masked_fill(head_ids == NO_HEAD, 0), len(names))
    masks = {name: head_ids == index for index, name in enumerate(names)}
    if isinstance(labels, Mapping):
        for name in labels:
            config.get_head(name)
        return {name: _rows_loss(config, name, head_logits[name], masks[name], labels.get(name)) for name in names}
    if tuple(labels.shape) != (num_rows,):
        raise ValueError(f"labels: expected shape ({num_rows},), one for each row, got {tuple(labels.shape)}")
    _check_integers("labels", labels)
    return {name: _masked_loss(config, name, head_logits[name], labels, masks[name]) for name in names}


def _masked_loss(
    config: CoverConfig, name: str, logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of the rows in `mask`; no shape depends on their number, so it compiles into one graph."""
    if (problem_type := config.heads[name]["problem_type"]) != SINGLE_LABEL:
        if not is_torchdynamo_compiling() and mask.any():
            raise ValueError(
                f"head '{name}' is of {problem_type}: with head_ids, give labels as a dict {{head: labels}}"
            )
        return logits[:0].float().sum()
    targets = labels.masked_fill(~mask, IGNORED)
    counts = targets != IGNORED
    _check_range(f"labels of head '{name}'", targets.masked_fill(~counts, 0), logits.shape[-1])
    total = nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / counts.sum().clamp(min=1)


def _rows_loss(
    config: CoverConfig, name: str, logits: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None
) -> torch.Tensor:
    """Mean loss of the rows in `mask`, whose labels are given apart."""
    logits = logits[mask]
    num_labels = 0 if labels is None else labels.shape[0]
    if logits.shape[0] != num_labels:
        raise ValueError(f"labels of head '{name}': {num_labels} given for its {logits.shape[0]} rows of head_ids")
    return head_loss(config, name, logits, labels) if num_labels else logits.float().sum()


def _check_range(what: str, ids: torch.Tensor, size: int) -> None:
    if is_torchdynamo_compiling():
        return
    if ids.is_cuda:
        torch._assert_async(((ids >= 0) & (ids < size)).all(), f"{what} are not in the range 0 to {size - 1}")
    if ids.device.type != "cpu":  # the check below would make every step wait for the device
        return
    outside = ids[(ids < 0) | (ids >= size)]
    if len(outside):
        raise ValueError(f"{what}: {outside.tolist()} are not in the range 0 to {size - 1}")


def _check_probabilities(what: str, labels: torch.Tensor) -> None:
    if is_torchdynamo_compiling():
        return
    right = (labels >= 0).all() & ((labels.float().sum(dim=-1) - 1).abs() < 0.01).all()  # bf16 has 3 digits
    if labels.is_cuda:
        torch._assert_async(right, f"{what} are no probabilities")
    if labels.device.type == "cpu" and not right:
        raise ValueError(
            f"{what}: expected integers, or probabilities that add up to 1 in each row: several labels a row are of a "
            f"head of the problem_type {MULTI_LABEL!r}"
        )


def _check_integers(what: str, ids: torch.Tensor) -> None:
    if ids.dtype != torch.long:
        raise ValueError(f"{what}: expected int64, got {ids.dtype}")
