# SPDX-License-Identifier: Apache-2.0
"""Labels: which predictions hit them, and label smoothing.

Axes: R rows of a batch, L labels of a head.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ..model.configuration_cover import CoverConfig
from ..recipe.dataset_recipe import SINGLE_LABEL


Labels = torch.Tensor | Mapping[str, torch.Tensor]


def hits_of_heads(
    config: CoverConfig, head_logits: Mapping[str, torch.Tensor], labels: Labels, head_ids: torch.Tensor
) -> torch.Tensor:
    """(heads,), the rows of each head whose label has the largest logit; of mixed samples, the label that is most of
    it.

    Only a single-label head has any. Nothing waits for the device to learn a shape.

    Args:
        head_logits: (R, L) of each head, for all rows.
        labels, head_ids: as [`~modeling_cover.collate_clips`] makes them.
    """
    hits = []
    for index, name in enumerate(config.head_names):
        mask = head_ids == index
        own = labels.get(name) if isinstance(labels, Mapping) else labels
        if own is None or config.heads[name]["problem_type"] != SINGLE_LABEL:
            hits.append(torch.zeros_like(head_ids[:1]).sum())
            continue
        if isinstance(labels, Mapping):
            own = own.argmax(dim=-1) if own.ndim == 2 else own
            own = torch.full_like(head_ids, -1).masked_scatter(mask, own)
        hits.append(((head_logits[name].argmax(dim=-1) == own) & mask).sum())
    return torch.stack(hits)


def smoothed_labels(config: CoverConfig, labels: Labels, head_ids: torch.Tensor, factor: float) -> dict:
    """Each head's labels, of a single-label head as probabilities of which `factor` is spread over all of its labels.

    It is what `label_smoothing` of [`torch.nn.functional.cross_entropy`] means. Labels of other heads stay as they
    are.
    """
    smoothed = {}
    for index, name in enumerate(config.head_names):
        if isinstance(labels, Mapping):
            if name not in labels:
                continue
            own = labels[name]
        else:
            own = labels[head_ids == index]
        if config.heads[name]["problem_type"] != SINGLE_LABEL:
            smoothed[name] = own
            continue
        num_labels = len(config.heads[name]["labels"])
        if own.ndim == 1:
            own = nn.functional.one_hot(own, num_labels)
        smoothed[name] = own.float() * (1 - factor) + factor / num_labels
    return smoothed
