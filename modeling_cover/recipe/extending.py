# SPDX-License-Identifier: Apache-2.0
"""Recipes that say only what they have of their own, and extend another one.

    extends: base.yaml                  # beside this file
    datasets: [k400, {name: imagenet, weight: 0.75}]
    training: {learning_rate: 1.0e-3}

Sections are laid over those of the base key by key. `datasets` chooses among its datasets and changes keys of those
that it chooses; a dataset that the base does not have is given whole. Without `datasets`, there are all of the base's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .checks import is_text


def laid_over(base: Mapping[str, Any], content: Mapping[str, Any], alternatives: Sequence[str]) -> dict[str, Any]:
    """The content of a recipe that extends another one; of `model`, one of the keys `alternatives` takes the place of
    another."""
    merged = {**base}
    for key, value in content.items():
        under = base.get(key)
        if key == "datasets":
            merged[key] = _chosen(under, value)
        elif isinstance(under, Mapping) and isinstance(value, Mapping):
            # A revision is of the starting point that it was written beside.
            is_another = key == "model" and any(name in value for name in alternatives)
            replaced = (*alternatives, "revision") if is_another else ()
            merged[key] = {name: kept for name, kept in under.items() if name not in replaced} | dict(value)
        elif value is not None:  # an empty section leaves the base's
            merged[key] = value
    return merged


def _chosen(base: Any, entries: Any) -> Any:
    if not isinstance(entries, list) or not isinstance(base, list):
        return base if entries is None else entries
    named = {entry["name"]: entry for entry in base if isinstance(entry, Mapping) and is_text(entry.get("name"))}
    chosen = []
    for entry in entries:
        if isinstance(entry, Mapping):
            kept = named.get(entry.get("name"), {}) if is_text(entry.get("name")) else {}
            chosen.append(
                {key: value for key, value in kept.items() if key != "revision" or "path" not in entry} | entry
            )
        elif is_text(entry) and entry in named:
            chosen.append(named[entry])
        else:
            raise ValueError(f"datasets: {entry!r} is none of the base's, which are {', '.join(named)}")
    return chosen
