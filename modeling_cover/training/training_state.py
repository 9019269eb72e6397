# SPDX-License-Identifier: Apache-2.0
"""All that a run has in memory besides the weights, as what a checkpoint can hold: tensors by name, and JSON.

Weights and optimizer state are keyed by the names of parameters, each whole, so that a run may go on with its parameters
sharded over processes that were not, and the other way round.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR


_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)

# What the training arguments say of a group of parameters. The rest of a group is an optimizer's own business.
_CHOSEN = ("lr", "initial_lr", "weight_decay", "betas", "eps")


class WholeState:
    """Weights and optimizer state of a model in training, each tensor whole, whether or not it is sharded (FSDP2).

    Every process must call its methods; of what they return, only the first gets all, and on the CPU.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.model = model
        self.optimizer = optimizer

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the weights, by name."""
        whole = get_model_state_dict(self.model, options=_GATHERED)
        return {name: weight.clone() for name, weight in whole.items()}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        set_model_state_dict(self.model, dict(weights), options=StateDictOptions(full_state_dict=True, strict=True))

    def optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors of the optimizer's state, `<parameter>:<name>`, and the rest, JSON-able."""
        whole = get_optimizer_state_dict(self.model, self.optimizer, options=_GATHERED)
        entries = {
            f"{parameter}:{name}": value
            for parameter, state in whole.get("state", {}).items()
            for name, value in state.items()
        }
        tensors = {key: value for key, value in entries.items() if isinstance(value, torch.Tensor)}
        values = {key: value for key, value in entries.items() if key not in tensors}
        return tensors, {"values": values, "param_groups": whole.get("param_groups", [])}

    def load_optimizer_state(self, tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> None:
        """Take what [`optimizer_state`] returned; groups, rates, betas and decay stay those of the optimizer as it is."""
        state, stored = grouped_by_parameter(tensors, rest), parameter_groups_of(rest)
        options = {name: group for group in stored for name in group["params"]}
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        groups = [
            {**options[names[group["params"][0]]], **chosen(group), "params": [names[one] for one in group["params"]]}
            for group in self.optimizer.param_groups
        ]
        whole = {"state": state, "param_groups": groups}
        set_optimizer_state_dict(self.model, self.optimizer, whole, options=_GATHERED)

    def local_weights(self) -> list[torch.Tensor]:
        """The memory of this process's part of the weights that are trained."""
        trained = [parameter.detach() for parameter in self.model.parameters() if parameter.requires_grad]
        return [weight.to_local() if hasattr(weight, "to_local") else weight for weight in trained]

    def local_weights_have_changed(self) -> None:
        """To be called where something else than the optimizer has written into `local_weights`."""


def grouped_by_parameter(
    tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]
) -> dict[str, dict[str, torch.Tensor | Any]]:
    """What [`WholeState.optimizer_state`] returned, by name of the parameter."""
    state = defaultdict(dict)
    for key, value in {**tensors, **rest["values"]}.items():
        parameter, name = key.rsplit(":", 1)
        state[parameter][name] = value
    return dict(state)


def parameter_groups_of(rest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The optimizer's groups, with the names of parameters. JSON knows no tuples, and optimizers have some: betas."""
    return [
        {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()}
        for group in rest["param_groups"]
    ]


def chosen(group: Mapping[str, Any]) -> dict[str, Any]:
    """What the training arguments say of a group of an optimizer's parameters."""
    return {key: group[key] for key in _CHOSEN if key in group}


def load_schedule(schedule: Any, state: Mapping[str, Any]) -> None:
    """Go to the step that `schedule.state_dict()` was taken at, at the rates of `schedule`, which may be others.

    A schedule that goes by what was measured, whose rates are in its state, takes all of that.
    """
    schedule = getattr(schedule, "scheduler", schedule)  # accelerate wraps it
    if not isinstance(schedule, LambdaLR):
        schedule.load_state_dict(dict(state))
        return
    step = state["last_epoch"]
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    own = {"base_lrs": schedule.base_lrs, "_last_lr": rates, "lr_lambdas": [None] * len(rates)}
    schedule.load_state_dict({**state, **own})
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


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
