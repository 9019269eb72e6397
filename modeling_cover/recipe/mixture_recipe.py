# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say of the mixture of datasets (section 4.1 of the paper)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real

from .checks import check_choice, check_known, check_new_name, check_positive


Rule = Callable[[Mapping[str, int]], Mapping[str, float]]

# Shares of datasets, relative to their sum, by their sizes and what a recipe says beside that.
_BUILT_IN = {
    "proportional": lambda sizes, recipe, listed: dict(sizes),
    "equal": lambda sizes, recipe, listed: dict.fromkeys(sizes, 1),
    "temperature": lambda sizes, recipe, listed: {
        name: size ** (1 / recipe.temperature) for name, size in sizes.items()
    },
    "shares": lambda sizes, recipe, listed: {name: listed[name] for name in sizes},
}
SAMPLINGS = dict(_BUILT_IN)
WHEN_EXHAUSTED = ("repeat", "stop")
WEIGHTS = ("fixed", "equal_updates")


def register_sampling(name: str, rule: Rule) -> None:
    """Make `sampling: name` a rule of the mixture that recipes may name, in this process.

    Args:
        name: letters, digits, "_" and "-".
        rule: see [`MixtureRecipe`].

    Raises:
        ValueError: if the name is no name or that of one of the package's own rules, or `rule` cannot be called.
    """
    check_new_name("sampling", name)
    if name in _BUILT_IN:
        raise ValueError(f"sampling '{name}' is one of the package's own, choose another name")
    if not callable(rule):
        raise ValueError(f"sampling '{name}': expected a function of the sizes, got {rule!r}")
    SAMPLINGS[name] = lambda sizes, recipe, listed: shares_by(f"sampling '{name}'", rule, sizes)


def shares_by(what: str, rule: Rule, sizes: Mapping[str, int]) -> dict[str, float]:
    """What a user's rule makes of the rows of each dataset; a `ValueError` that says `what` unless it is a number
    above 0 for each."""
    found = rule(dict(sizes))
    if not isinstance(found, Mapping) or set(found) != set(sizes):
        got = sorted(found, key=str) if isinstance(found, Mapping) else found
        raise ValueError(f"{what}: expected a share of each of {sorted(sizes)}, got {got!r}")
    shares = {}
    for name in sizes:
        # Whatever numbers it computes with, such as numpy's.
        is_real = isinstance(found[name], Real) and not isinstance(found[name], bool)
        shares[name] = float(found[name]) if is_real else found[name]
        check_positive(f"{what}: the share of {name}", shares[name])
    return shares


@dataclass(frozen=True, kw_only=True)
class MixtureRecipe:
    """How often each dataset is drawn.

    Attributes:
        sampling: "proportional" to the datasets' sizes, as the paper does; "equal"; "temperature": proportional to
            size ** (1 / temperature); "shares": those that the datasets list, relative to their sum; or the user's own
            rule, by the name that it is registered under: a function of the rows of each dataset, by name, that
            returns the share of each, relative to their sum.
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
        check_known("mixture: sampling", self.sampling, SAMPLINGS, "register_sampling")
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
            ValueError: if shares are listed and not asked for, or some are missing; or a rule of a user's returns
                anything but a number above 0 for each dataset.
        """
        given = [name for name in sizes if listed.get(name) is not None]
        if given and self.sampling != "shares":
            raise ValueError(f"mixture: {', '.join(given)} list a share: set `sampling: shares`")
        if self.sampling == "shares" and (missing := [name for name in sizes if name not in given]):
            raise ValueError(
                f"mixture: `sampling: shares` needs a share of each dataset, missing: {', '.join(missing)}"
            )
        weights = SAMPLINGS[self.sampling](sizes, self, listed)
        total = math.fsum(weights.values())
        return {name: weight / total for name, weight in weights.items()}
