# SPDX-License-Identifier: Apache-2.0
"""The random number generators that all of a process shares: Python's, NumPy's, and torch's of each device.

Dropout and drop path draw from them, so the steps of training stay as they are only where nothing beside them does.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leaves the generators as they were, whatever is drawn inside: a data loader that begins draws a seed, for
    one."""
    state = rng_state()
    try:
        yield
    finally:
        load_rng_state(state)


def rng_state() -> dict[str, Any]:
    """The states of this process's random number generators, as tensors and JSON-able values."""
    version, words, next_gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "tensors": {
            "python": torch.tensor(words, dtype=torch.int64),
            "numpy": torch.from_numpy(keys.astype(np.int64)),
            "torch": torch.get_rng_state(),
            **{f"cuda.{index}": state for index, state in enumerate(devices)},
        },
        "rest": {"python": [version, next_gauss], "numpy": [name, *rest]},
    }


def load_rng_state(state: Mapping[str, Any]) -> None:
    """Go back to what [`rng_state`] returned; devices that are not here any more are left out."""
    tensors, rest = state["tensors"], state["rest"]
    version, next_gauss = rest["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), next_gauss))
    name, *others = rest["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), *others))
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)
