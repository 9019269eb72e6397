# SPDX-License-Identifier: Apache-2.0
"""A clock of training that goes on only where a test says so, whatever else the machine does."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from modeling_cover.training import step_metrics


def take(monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[type, str], float]) -> None:
    """Each call of a method takes so long by the clock that steps are measured with, and all else takes no time."""
    now = [0.0]

    def slowly(method: Callable, duration: float) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            now[0] += duration
            return method(*args, **kwargs)

        return call

    for (owner, name), duration in seconds.items():
        monkeypatch.setattr(owner, name, slowly(getattr(owner, name), duration))
    monkeypatch.setattr(step_metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
