# SPDX-License-Identifier: Apache-2.0
"""Weights of the datasets' losses by which each has the share of the encoder's update that is asked for.

The paper's weights are fixed (section 4.1). What a weight of 1 means depends on the gradient: AdamW's update, and one
that is clipped, has one size however many losses are summed, and a dataset with a small gradient has little of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


_DECAY = 0.9  # of the mean of the logarithms of measured norms, once there are some


@dataclass(frozen=True)
class EqualUpdates:
    """In place of fixed weights: have each dataset take a share of the update.

    Attributes:
        update_shares: by dataset, relative to their sum; by default those that the datasets have of the rows.
    """

    update_shares: Mapping[str, float] | None = None

    def __post_init__(self):
        for name, share in (self.update_shares or {}).items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
                raise ValueError(f"update_shares: that of '{name}' must be a positive number, got {share!r}")

    def targets(self, shares_of_rows: Mapping[str, float]) -> dict[str, float]:
        """The share of each dataset, adding up to 1.

        Raises:
            ValueError: if the shares asked for are not those of the datasets that are trained on.
        """
        asked = shares_of_rows if self.update_shares is None else self.update_shares
        if set(asked) != set(shares_of_rows):
            raise ValueError(f"update_shares: expected one for each of {sorted(shares_of_rows)}, got {sorted(asked)}")
        total = math.fsum(asked.values())
        return {name: asked[name] / total for name in shares_of_rows}


class AdaptedWeights:
    """The weights of a run with [`EqualUpdates`], after the norms that were measured so far.

    A dataset's weight is its share over the mean norm of its updates, times one number for all, so that they add up to
    as many as there are datasets. The mean is the geometric one: norms of all datasets fall together by orders of
    magnitude, and what matters is how they compare. Before anything is measured each weight is 1.

    Args:
        targets: the share of each dataset, adding up to 1.
        presence: the share of the steps that have rows of each dataset; in the others it moves nothing.
    """

    def __init__(self, targets: Mapping[str, float], presence: Mapping[str, float]):
        self._targets = targets
        self._presence = presence
        self._log_norms: dict[str, float] = {}
        self._seen: dict[str, int] = {}

    def see(self, norms: Mapping[str, float]) -> None:
        """Take in the norms that the datasets of a step have in the update with a weight of 1."""
        for name, norm in norms.items():
            if norm > 0:
                seen = self._seen.get(name, 0)
                # The first ones count little later on: heads are still random.
                decay = min(_DECAY, seen / (seen + 2))
                self._log_norms[name] = decay * self._log_norms.get(name, 0.0) + (1 - decay) * math.log(norm)
                self._seen[name] = seen + 1

    def weights(self) -> dict[str, float]:
        if set(self._log_norms) != set(self._targets):
            return dict.fromkeys(self._targets, 1.0)
        largest = max(self._log_norms.values())
        raw = {
            name: share / (math.exp(self._log_norms[name] - largest) * self._presence[name])
            for name, share in self._targets.items()
        }
        scale = len(raw) / math.fsum(raw.values())
        return {name: weight * scale for name, weight in raw.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"log_norms": dict(self._log_norms), "seen": dict(self._seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._log_norms, self._seen = dict(state["log_norms"]), dict(state["seen"])


def presence_in_steps(shares_of_rows: Mapping[str, float], rows_per_step: int) -> dict[str, float]:
    """The share of steps in which a dataset has a row, by its share of the rows, as if each were drawn by itself."""
    return {name: 1 - (1 - share) ** rows_per_step for name, share in shares_of_rows.items()}
