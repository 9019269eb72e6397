# SPDX-License-Identifier: Apache-2.0
"""What the runs of a study have measured, and differences between runs.

All numbers are top-1 in percent. A difference is taken within each seed, whose data and order of training the runs
share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from miniature.data import OVERLAP_OF


Metrics = Mapping[str, Mapping[str, Any]]  # run -> what it measured
Term = tuple[int, str, str, str]  # sign, run, dataset and measure

EVERY, NO, SOME = "in every seed", "in no seed", "not the same in each seed"


def shown(dataset: str) -> str:
    """`moments` of whichever overlap and size are one column."""
    return "moments" if dataset in OVERLAP_OF else dataset


class Results:
    """What the runs of all seeds have measured; some runs are there for the first seeds only."""

    def __init__(self, seeds: Sequence[Metrics]):
        self.seeds = seeds

    def having(self, *runs: str) -> "Results":
        """Those of the seeds that have all these runs."""
        return Results([metrics for metrics in self.seeds if all(run in metrics for run in runs)])

    def top1(self, run: str, dataset: str, measure: str = "top1") -> np.ndarray:
        """Percent, of each seed that has the run (seeds,); `measure` is a key of its metrics."""
        return 100 * np.array([metrics[run][measure][dataset] for metrics in self.having(run).seeds])

    def row(self, run: str, measure: str = "top1") -> dict[str, np.ndarray]:
        """Of each dataset, as it is shown."""
        (metrics, *_) = self.having(run).seeds
        return {shown(dataset): self.top1(run, dataset, measure) for dataset in metrics[run][measure]}

    def difference(self, *terms: Term) -> np.ndarray:
        """The sum of the terms, in points, of each seed that has all their runs."""
        common = self.having(*(run for _, run, _, _ in terms))
        return sum(sign * common.top1(run, dataset, measure) for sign, run, dataset, measure in terms)


def gain(run: str, over: str, dataset: str, measure: str = "top1") -> tuple[Term, Term]:
    """The terms of what a dataset gains in one run over another."""
    return (1, run, dataset, measure), (-1, over, dataset, measure)


def agreement(values: np.ndarray, sign: float) -> str:
    """Whether the values of the seeds have a sign."""
    agree = np.sign(values) == np.sign(sign)
    return EVERY if agree.all() else SOME if agree.any() else NO


@dataclass(frozen=True)
class Claim:
    """A difference that the paper reports, in points of top-1, and those of each seed (seeds,)."""

    text: str
    paper: float
    miniature: np.ndarray

    @property
    def verdict(self) -> str:
        """Whether each seed has the paper's sign, or its opposite, or they are of two minds."""
        signs = np.sign(self.miniature) * np.sign(self.paper)
        if (signs > 0).all():
            return "agrees"
        if (signs < 0).all():
            return "disagrees"
        return "undecided"

    def __str__(self) -> str:
        return (
            f"**{self.verdict}**: {self.text}: {self.paper:+.1f} in the paper, {signed(self.miniature)} here "
            f"({listed(self.miniature)})"
        )


def spread(values: np.ndarray, sign: str = "") -> str:
    """The mean and, of several seeds, the standard deviation."""
    mean = f"{values.mean():{sign}z.1f}"  # z: no minus before a zero
    return f"{mean} ± {values.std(ddof=1):.1f}" if len(values) > 1 else mean


def signed(values: np.ndarray) -> str:
    return spread(values, sign="+")


def listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:+z.1f}" for value in values)
