# SPDX-License-Identifier: Apache-2.0
"""How far the features of two datasets lie among each other."""

import torch
from torch.nn.functional import normalize


NEIGHBOURS = 5


def feature_overlap(first: torch.Tensor, second: torch.Tensor, neighbours: int = NEIGHBOURS) -> float | None:
    """How often the nearest neighbours of a row are of the other dataset, relative to what they would be if both were
    drawn from one: 0 where the two lie apart, about 1 where nothing tells them apart.

    A row is no neighbour of its own. Neighbours are those of the largest cosine. The mean is over the rows of each
    dataset, and then of both: it does not matter which has more rows.

    Args:
        first, second: (rows, size) each.
        neighbours: of each row, at most.

    Returns:
        None where one has fewer than two rows.
    """
    sizes = torch.tensor([len(first), len(second)])
    if sizes.min() < 2:
        return None
    features = normalize(torch.cat([first, second]).double(), dim=-1)
    similarity = features @ features.T
    similarity.fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(neighbours, len(features) - 1), dim=1).indices
    side = torch.arange(2).repeat_interleave(sizes)
    of_rows = (side[nearest] != side[:, None]).double().mean(dim=1)
    means = torch.stack([of_rows[side == index].mean() for index in (0, 1)])
    return (means / (sizes.flip(0) / (len(features) - 1))).mean().item()
