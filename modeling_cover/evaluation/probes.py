# SPDX-License-Identifier: Apache-2.0
"""Simple classifiers of features, to see what an encoder knows without training it: nearest neighbours, and a linear
one."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, one_hot
from torch.nn.utils import skip_init

from ..bars import bar


NEIGHBOURS, TEMPERATURE = 20, 0.07  # as Caron et al. 2021 (DINO) have them, after Wu et al. 2018
L2_STRENGTHS = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
_HELD_OUT = 5  # one row in so many chooses the strength
_ROWS_AT_A_TIME = 1024


def nearest_neighbour_scores(
    train_features: torch.Tensor,
    train_targets: torch.Tensor,
    features: torch.Tensor,
    num_classes: int,
    num_neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Scores (rows, classes) by the classes of the nearest training rows, each with a weight of exp(cosine /
    temperature).

    Args:
        train_features: (training rows, D).
        train_targets: their classes (training rows,), or 0 and 1 (training rows, classes).
        features: (rows, D).
        num_classes: of the scores, which sum to 1 where a row has one class.
        num_neighbours: that vote; all training rows if there are fewer.
        temperature: the smaller, the more the nearest count.
    """
    votes = (one_hot(train_targets, num_classes) if train_targets.ndim == 1 else train_targets).float()
    known, num_neighbours = normalize(train_features, dim=-1), min(num_neighbours, len(train_features))
    scores = []
    for part in normalize(features, dim=-1).split(_ROWS_AT_A_TIME):
        similarity, nearest = (part @ known.T).topk(num_neighbours)
        weights = (similarity / temperature).softmax(dim=-1)
        scores.append((weights[..., None] * votes[nearest]).sum(dim=1))
    return torch.cat(scores)


def fit_linear(features: torch.Tensor, targets: torch.Tensor, num_classes: int, l2: float) -> torch.nn.Linear:
    """The linear classifier with the least mean loss plus l2 / 2 times its squared weights, for standardised features.

    The problem is convex: nothing is random, and L-BFGS finds the one solution. What is returned takes features as
    they are.

    Args:
        features: (rows, D).
        targets: classes (rows,), whose loss is the cross-entropy; or 0 and 1 (rows, classes): binary cross-entropy.
        num_classes: of its output.
        l2: greater than 0.

    Raises:
        ValueError: if `l2` is not greater than 0, with which there may be no solution.
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be greater than 0, got {l2}")
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    deviation = torch.where(
        deviation > 1e-6 * deviation.max().clamp(min=1e-12), deviation, torch.inf
    )  # what is constant
    standard = (features - mean) / deviation
    weight = torch.zeros(num_classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = _loss(standard @ weight.T + bias, targets) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    # Without the random weights that it begins with: a training run goes by the generator that they would be drawn
    # from.
    classifier = skip_init(torch.nn.Linear, features.shape[1], num_classes, device=features.device)
    with torch.no_grad():
        classifier.weight.copy_(weight / deviation)
        classifier.bias.copy_(bias - classifier.weight @ mean)
    return classifier.requires_grad_(False)


def choose_l2(
    features: torch.Tensor,
    targets: torch.Tensor,
    num_classes: int,
    strengths: Sequence[float] = L2_STRENGTHS,
    seed: int = 0,
) -> float:
    """The strength whose classifier, fitted to four fifths of the training rows, has the least loss on the other
    fifth.

    Raises:
        ValueError: if there are fewer than five rows.
    """
    if len(features) < _HELD_OUT:
        raise ValueError(f"expected at least {_HELD_OUT} training rows, got {len(features)}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(features))).to(features.device)
    held_out, fitted = order[: len(order) // _HELD_OUT], order[len(order) // _HELD_OUT :]
    losses = {}
    for l2 in bar(strengths, desc="strength of L2", leave=False):
        classifier = fit_linear(features[fitted], targets[fitted], num_classes, l2)
        losses[l2] = _loss(classifier(features[held_out]), targets[held_out]).item()
    return min(losses, key=losses.get)


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if targets.ndim == 1:
        return cross_entropy(logits, targets)
    return binary_cross_entropy_with_logits(logits, targets.float())
