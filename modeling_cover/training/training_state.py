# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""All that a run has in memory besides the weights, as what a checkpoint can hold: tensors by name, and JSON.

Optimizer state is keyed by the names of parameters, each whole, so that a run may go on with its parameters sharded over
processes (FSDP2) that were not, and the other way round.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)


_OPTIONS = {"full_state_dict": True, "cpu_offload": True}


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of an optimizer's state, `<parameter>:<name>`, and the rest, JSON-able.

    Every process must call it; only the first gets all.
    """
    whole = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**_OPTIONS))
    entries = {
        f"{parameter}:{name}": value
        for parameter, state in whole.get("state", {}).items()
        for name, value in state.items()
    }
    tensors = {key: value for key, value in entries.items() if isinstance(value, torch.Tensor)}
    values = {key: value for key, value in entries.items() if key not in tensors}
    return tensors, {"values": values, "param_groups": whole.get("param_groups", [])}


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]
) -> None:
    """Every process must call it, with the whole state."""
    state = defaultdict(dict)
    for key, value in {**tensors, **rest["values"]}.items():
        parameter, name = key.rsplit(":", 1)
        state[parameter][name] = value
    # JSON knows no tuples, and optimizers have some: betas.
    groups = [
        {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()}
        for group in rest["param_groups"]
    ]
    whole = {"state": dict(state), "param_groups": groups}
    set_optimizer_state_dict(model, optimizer, whole, options=StateDictOptions(**_OPTIONS))


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


def joined_rng_states(states: Sequence[Mapping[str, Any]]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The tensors of all processes, `<process>.<name>`, and the rest of each."""
    tensors = {
        f"{process}.{name}": tensor
        for process, state in enumerate(states)
        for name, tensor in state["tensors"].items()
    }
    return tensors, [state["rest"] for state in states]


def rng_state_of(
    process: int, tensors: Mapping[str, torch.Tensor], rest: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """One process's part of [`joined_rng_states`]; None if it had none."""
    if process >= len(rest):
        return None
    prefix = f"{process}."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {"tensors": own, "rest": rest[process]}
