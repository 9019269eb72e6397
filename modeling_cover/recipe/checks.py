# SPDX-License-Identifier: Apache-2.0
"""Checks of what a recipe says: each error names the culprit and what was expected."""

import difflib
import math
import sys
from collections.abc import Mapping
from typing import Any

from ..model.configuration_cover import HEAD_NAME


def checked_keys(where: str, content: Any, known: set[str] | None) -> dict[str, Any]:
    """A copy of the mapping `content`; a `ValueError` that says `where` for a key that is not `known`, if that is
    given."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected keys and values, got {content!r}")
    for key in content:
        if known is not None and key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown key '{key}', {hint}")
    return dict(content)


def check_flag(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def check_number(name: str, value: Any, at_most: float = math.inf) -> None:
    """Raise a `ValueError` unless `value` is a finite number from 0 to `at_most`."""
    # A whole number of hundreds of digits is one to Python, and too large for a float.
    if not _is_number(value) or not 0 <= value <= min(at_most, sys.float_info.max):
        bounds = "at least 0" if at_most == math.inf else f"from 0 to {at_most:g}"
        raise ValueError(f"{name} must be a finite number, {bounds}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a finite number above 0."""
    if not _is_number(value) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_whole_number(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a whole number, at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def check_range(name: str, value: Any, at_most: float = math.inf) -> None:
    """Raise a `ValueError` unless `value` is a tuple of two finite numbers above 0, the smaller one first."""
    if not isinstance(value, tuple) or len(value) != 2 or not all(_is_number(bound) for bound in value):
        raise ValueError(f"{name} must be a list of two finite numbers, got {value!r}")
    if not 0 < value[0] <= value[1] <= at_most:
        bounds = "above 0" if at_most == math.inf else f"above 0 and at most {at_most:g}"
        raise ValueError(f"{name} must be {bounds}, the smaller number first, got {value!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def check_known(name: str, value: Any, known: Mapping[str, Any], register: str) -> None:
    """Raise a `ValueError`, which says what adds to what is `known`, unless `value` is a name among it."""
    if not isinstance(value, str) or value not in known:
        listed = f"one of {tuple(known)}" if known else "a registered name, and there is none"
        raise ValueError(f"{name} must be {listed}, got {value!r}; in Python, `modeling_cover.{register}` adds others")


def check_new_name(kind: str, name: Any) -> None:
    """Raise a `ValueError` unless `name` is one that something of a `kind` may be registered under."""
    if not isinstance(name, str) or not HEAD_NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r}: expected letters, digits, '_' and '-' (not at the start)")


def is_text(value: Any) -> bool:
    """Whether `value` is a string that is not empty."""
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
