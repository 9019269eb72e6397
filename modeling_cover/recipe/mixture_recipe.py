# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say of the mixture of datasets (section 4.1 of the paper)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .checks import check_choice, check_positive


SAMPLINGS = ("proportional", "equal", "temperature", "shares")
WHEN_EXHAUSTED = ("repeat", "stop")
WEIGHTS = ("fixed", "equal_updates")


@dataclass(frozen=True, kw_only=True)
class MixtureRecipe:
    """How often each dataset is drawn.

    Attributes:
        sampling: "proportional" to the datasets' sizes, as the paper does; "equal"; "temperature": proportional to
            size ** (1 / temperature); or "shares": those that the datasets list, relative to their sum.
        temperature: 1 is proportional, infinity would be equal.
        when_exhausted: a dataset that is drawn more often than it has rows is by default gone through again,
            reshuffled ("repeat"). With "stop", an epoch ends where the first dataset would be exhausted, each being
            drawn a whole number of times: of a dataset of three rows, that may be far from its share.
        weights: of the datasets' losses: "fixed", those that the datasets list, as the paper has it; or
            "equal_updates": they adapt, so that each dataset has its share of the encoder's update.
        update_shares: of each dataset, relative to their sum; by default its share of the rows.
    """

    sampling: str = "proportional"
    temperature: float = 1.0
    when_exhausted: str = "repeat"
    weights: str = "fixed"
    update_shares: Mapping[str, float] | None = None

    def __post_init__(self):
        check_choice("mixture: sampling", self.sampling, SAMPLINGS)
        check_choice("mixture: when_exhausted", self.when_exhausted, WHEN_EXHAUSTED)
        check_positive("mixture: temperature", self.temperature)
        if self.temperature != 1 and self.sampling != "temperature":
            raise ValueError(f"mixture: temperature {self.temperature} has no effect with sampling '{self.sampling}'")
        check_choice("mixture: weights", self.weights, WEIGHTS)
        if self.update_shares is None:
            return
        if self.weights != "equal_updates":
            raise ValueError("mixture: update_shares have no effect without `weights: equal_updates`")
        if not isinstance(self.update_shares, Mapping):
            raise ValueError(f"mixture: update_shares: expected one for each dataset, got {self.update_shares!r}")
        for name, share in self.update_shares.items():
            check_positive(f"mixture: update_shares: {name}", share)

    def shares(self, sizes: Mapping[str, int], listed: Mapping[str, float | None]) -> dict[str, float]:
        """The share of each dataset, adding up to 1, by its rows and the share that it lists, if it does.

        Raises:
            ValueError: if shares are listed and not asked for, or some are missing.
        """
        given = [name for name in sizes if listed.get(name) is not None]
        if given and self.sampling != "shares":
            raise ValueError(f"mixture: {', '.join(given)} list a share: set `sampling: shares`")
        if self.sampling == "shares" and (missing := [name for name in sizes if name not in given]):
            raise ValueError(
                f"mixture: `sampling: shares` needs a share of each dataset, missing: {', '.join(missing)}"
            )
        if self.sampling == "shares":
            weights = {name: listed[name] for name in sizes}
        else:
            exponent = {"proportional": 1, "equal": 0, "temperature": 1 / self.temperature}[self.sampling]
            weights = {name: size**exponent for name, size in sizes.items()}
        total = math.fsum(weights.values())
        return {name: weight / total for name, weight in weights.items()}
