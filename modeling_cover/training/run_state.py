# SPDX-License-Identifier: Apache-2.0
"""All that a run has in memory, as what a checkpoint can hold: tensors by name, and JSON.

Weights and optimizer state are keyed by the names of parameters, each whole, so that a run may resume with its
parameters sharded over processes that were not, and the other way round.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR
from transformers.utils import logging

from ..data.mixture import MixtureSampler
from ..files import finite
from .checkpoints import ADAPTER, TRAINED_WEIGHTS, evaluated_weights, read_state, read_tensors, trained_weights
from .generators import load_rng_state, rng_state
from .step_guard import StepGuard
from .step_metrics import StepMetrics
from .weight_average import WeightAverage


if TYPE_CHECKING:
    from .gradient_watch import GradientWatch


logger = logging.get_logger(__name__)

Tensors = dict[str, torch.Tensor]

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

    def adapter(self) -> dict[str, torch.Tensor]:
        """A copy of what is trained, by name, of a model with an adapter; nothing of others, whose weights say all."""
        return {}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take what [`weights`] returned, or where there is one [`adapter`]."""
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
        """Take what [`optimizer_state`] returned; groups, rates, betas and decay stay those of the optimizer as it
        is."""
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


def load_process_rng_state(checkpoint: str | os.PathLike, process: int, seed: int) -> None:
    """Set this process's random number generators to where they were when a checkpoint was written.

    A process that the run did not have seeds its own. Which samples are drawn, and how they are augmented, does not
    depend on these generators.
    """
    state = read_state(checkpoint)
    stored = rng_state_of(process, read_tensors(checkpoint, "rng"), state["rng"])
    if stored is not None:
        load_rng_state(stored)
        return
    logger.warning(f"{checkpoint} was written by {len(state['rng'])} processes: process {process} seeds its own")
    torch.manual_seed(seed + state["step"] + process)


@dataclass(frozen=True)
class RunState:
    """What a run has in memory, gathered from all processes, and loaded into them."""

    whole: WholeState
    schedule: Any  # of the learning rate
    scaler: torch.amp.GradScaler | None  # of fp16's gradients
    sampler: MixtureSampler
    metrics: StepMetrics
    guard: StepGuard
    watch: "GradientWatch"
    average: WeightAverage | None

    def gathered(self, step: int) -> tuple[Tensors, dict[str, Any], dict[str, Tensors]]:
        """The weights to evaluate; what state.json holds; and the other tensors, by name of their file.

        Every process must call it, after `step` optimizer steps.
        """
        # First the weights: FSDP2 gathers them, and leaves parameters as the optimizer knows them.
        weights, adapter = self.whole.weights(), self.whole.adapter()
        optimizer_tensors, optimizer_rest = self.whole.optimizer_state()
        rng_tensors, rng_rest = joined_rng_states(gather_object([rng_state()]))
        position = step * self.sampler.step_size
        draws = self.sampler.schedule.draws_before(position)
        state = {
            "step": step,
            "position": position,
            "optimizer": optimizer_rest,
            "learning_rate_schedule": self.schedule.state_dict(),
            "gradient_scaler": None if self.scaler is None else self.scaler.state_dict(),
            "streams": {name: stream.state_dict(draws[name]) for name, stream in self.sampler.streams.items()},
            "rng": rng_rest,
            "unlogged": {
                **self.metrics.counts(),
                "skipped_in_a_row": self.guard.skipped_in_a_row,
                "last_step": finite({name: _number(value) for name, value in self.metrics.last_step.items()}),
                "sums": gather_object([self.metrics.process_sums()]),
            },
            "gradient_watch": self.watch.state_dict(),
        }
        tensors = {"optimizer": optimizer_tensors, "rng": rng_tensors}
        if self.average is not None:
            state["average_updates"] = self.average.updates
            tensors[TRAINED_WEIGHTS] = adapter or weights
            with self.average.in_place():
                weights, adapter = self.whole.weights(), self.whole.adapter()
        if adapter:
            tensors[ADAPTER] = adapter
        return weights, state, tensors

    def load(self, checkpoint: str | os.PathLike) -> None:
        """Load what [`gathered`] returned, but for the average, and what [`load_unlogged`] loads once training
        begins."""
        state = read_state(checkpoint)
        self.whole.load_weights(trained_weights(checkpoint))
        self.whole.load_optimizer_state(read_tensors(checkpoint, "optimizer"), state["optimizer"])
        load_schedule(self.schedule, state["learning_rate_schedule"])
        if state["gradient_scaler"] is not None and self.scaler is not None:  # which only fp16 has
            self.scaler.load_state_dict(state["gradient_scaler"])
        for name, stream in state["streams"].items():
            self.sampler.streams[name].load_state_dict(stream)
        self.watch.load_state_dict(state.get("gradient_watch"))


def average_of_run(
    checkpoint: str | os.PathLike | None, whole: WholeState, decay: float | None
) -> WeightAverage | None:
    """The average of a run's weights: of those that it starts with or, in a run that resumes, as the checkpoint has
    it. A run without `decay` has none."""
    if decay is None:
        return None
    updates = 0
    if checkpoint is not None:
        whole.load_weights(evaluated_weights(checkpoint))
        updates = read_state(checkpoint).get("average_updates", 0)
    return WeightAverage(whole, decay, updates)


def load_unlogged(checkpoint: str | os.PathLike, metrics: StepMetrics, guard: StepGuard, process: int) -> None:
    """Load what a run had counted since its last log."""
    stored = read_state(checkpoint)["unlogged"]
    metrics.load(stored, stored["sums"], process)
    metrics.last_step = stored["last_step"]
    guard.skipped_in_a_row = stored["skipped_in_a_row"]


def _number(value: torch.Tensor | float | None) -> float | None:
    if isinstance(value, torch.Tensor):
        return (value.full_tensor() if hasattr(value, "full_tensor") else value).item()  # of sharded parameters
    return value
