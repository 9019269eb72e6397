# SPDX-License-Identifier: Apache-2.0
"""How far the features of two datasets lie among each other."""

import torch
from torch.nn.functional import normalize


NEIGHBOURS = 5


def feature_overlap(first: torch.Tensor, second: torch.Tensor, neighbours: int = NEIGHBOURS) -> float | None:
    """How often the nearest neighbours of a row are of the other dataset, relative to what they would be if both were
    drawn from one: 0 where the two lie apart, about 1 where nothing tells them apart.

    Of both as many rows are compared, and a row is no neighbour of its own. Neighbours are those of the largest
    cosine.

    Args:
        first, second: (rows, size) each.
        neighbours: of each row, at most.

    Returns:
        None where one has fewer than two rows.
    """
    rows = min(len(first), len(second))
    if rows < 2:
        return None
    features = normalize(torch.cat([first[:rows], second[:rows]]).double(), dim=-1)
    similarity = features @ features.T
    similarity.fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(neighbours, 2 * rows - 1), dim=1).indices
    is_second = torch.arange(2 * rows) >= rows
    is_other = is_second[nearest] != is_second[:, None]
    expected = rows / (2 * rows - 1)
    return (is_other.double().mean() / expected).item()
