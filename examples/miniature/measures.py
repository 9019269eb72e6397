# SPDX-License-Identifier: Apache-2.0
"""What is measured of predictions beside top-1: what of a label is right, and which labels."""

from collections.abc import Callable

import numpy as np
from miniature.data import LABELS, MOMENT_LABELS, OVERLAP_OF, SHARED_MOVES


def accuracies(dataset: str, predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """By measure, from 0 to 1, of the classes (rows,) that were predicted and that are right.

    "top1"; of `moments`, "kind" and "motion", right whatever the other one is; of `moves`, "shared" and "others", the
    top-1 of the clips whose motion `moments_half` has, too, and of the other half of them.
    """
    right = predicted == targets
    found = {"top1": right}
    labels = LABELS[dataset]
    if dataset in OVERLAP_OF:
        parts: dict[str, Callable] = {"kind": lambda label: MOMENT_LABELS[label][0]}
        parts["motion"] = lambda label: MOMENT_LABELS[label][1]
        for measure, part in parts.items():
            # Numbers of parts, by class.
            names = list(map(part, labels))
            numbers = np.array([names.index(name) for name in names])
            found[measure] = numbers[predicted] == numbers[targets]
    elif dataset == "moves":
        is_shared = np.array([label in SHARED_MOVES for label in labels])[targets]
        found |= {"shared": right[is_shared], "others": right[~is_shared]}
    return {measure: float(hits.mean()) for measure, hits in found.items()}
