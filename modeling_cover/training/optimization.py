# SPDX-License-Identifier: Apache-2.0
"""Which parameters are trained, at which learning rate, which of them decay, and how the learning rate drops."""

import re
from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..model.configuration_cover import CoverConfig
from ..model.modeling_cover import CoverForVideoClassification
from .adapters import plain_name
from .arguments import CoverTrainingArguments, last_layers


# Of all clips alike, and small: decay would pull them to zero.
_EMBEDDINGS = ("cls_token", "position_embeddings", "time_embeddings", "query")


# Of an encoder of transformers, which has them under `cover.encoder`.
_PRETRAINED = "cover.encoder."

WHOLE_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# Where the CPU runs ahead, and would have to wait so as to decide something.
ASYNCHRONOUS = ("cuda",)
_WITH_FOUND_INF = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


def is_of_heads(name: str) -> bool:
    """Whether a parameter is a head's, or of the pooler that an encoder of transformers is given: both see its
    tokens."""
    return plain_name(name).startswith(("classifiers.", "cover.pooler."))


def is_new(name: str) -> bool:
    """Whether an image checkpoint does not bring a parameter: those of temporal attention and of heads."""
    name = plain_name(name)
    is_temporal = ".temporal_" in name or name.endswith(".time_embeddings")
    return is_of_heads(name) or (is_temporal and not name.startswith(_PRETRAINED))


def gradient_norm(accelerator: Accelerator, model: nn.Module, clipped: torch.Tensor | None) -> torch.Tensor | None:
    """The norm of all gradients: that which clipping has found, or where nothing is clipped that which clipping at
    infinity would find, but it multiplies each gradient by one. None where they are in parts: Trainer knows how."""
    if clipped is not None or accelerator.distributed_type not in WHOLE_GRADIENTS:
        return clipped
    accelerator.unscale_gradients()
    return nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])


def skips_on_device(accelerator: Accelerator, optimizer: AcceleratedOptimizer) -> bool:
    """Whether an optimizer may be told by a number on the device to skip a step.

    A fused optimizer of torch leaves weights and state alone where `found_inf` is 1, as torch's gradient scaler sets
    it; but not before its first step, where SGD would have for momentum what lay in memory.
    """
    return (
        accelerator.device.type in ASYNCHRONOUS
        and accelerator.distributed_type in WHOLE_GRADIENTS
        and accelerator.scaler is None
        and isinstance(optimizer.optimizer, _WITH_FOUND_INF)
        and all(group.get("fused") for group in optimizer.param_groups)
        and len(optimizer.state) > 0
    )


def freeze_all_but(model: CoverForVideoClassification, part: str) -> None:
    """Leave only a part of the model to be trained, see `CoverTrainingArguments`; what is frozen already stays so.

    Raises:
        ValueError: for temporal attention of an encoder that has none apart, or for more layers than there are.
    """
    layers = model.config.num_hidden_layers
    if (last := last_layers(part)) is not None and last > layers:
        raise ValueError(f"trained_part: {part!r} of a model that has {layers} layers")
    if part == "temporal_and_heads" and model.config.encoder is not None:
        raise ValueError(
            f"trained_part: the temporal attention of a {model.config.encoder.model_type} is not apart: train 'all' or "
            "'heads'"
        )
    depth_of = depths((name for name, _ in model.named_parameters()), model.config.layer_lists)
    for name, parameter in model.named_parameters():
        if last is not None:
            trained = depth_of[name] > layers - last
        else:
            trained = {"all": True, "heads": is_of_heads(name), "temporal_and_heads": is_new(name)}[part]
        parameter.requires_grad_(parameter.requires_grad and trained)


def depths(names: Iterable[str], layer_lists: Sequence[str]) -> dict[str, int]:
    """How far from the input each parameter is: 0 for embeddings, then 1 for the first layer; what follows the last
    layer comes after it. `layer_lists` is `config.layer_lists`."""
    names, found, before = list(names), {}, 0
    for layers in layer_lists:
        start = f"{layers}."
        of_list = {
            name: int(plain[len(start) :].split(".")[0])
            for name in names
            if (plain := plain_name(name)).startswith(start)
        }
        found |= {name: 1 + before + index for name, index in of_list.items()}
        before += 1 + max(of_list.values(), default=-1)
    is_embedding = re.compile(r"(\.|_)embeddings?\.").search
    others = (name for name in names if name not in found)
    return {**found, **{name: 0 if is_embedding(plain_name(name)) else before + 1 for name in others}}


def learning_rate(name: str, depth: int, deepest: int, args: CoverTrainingArguments) -> float:
    """Of one parameter, at the peak of the schedule.

    Layer-wise decay is for what was trained before: it leaves parameters with a learning rate of their own alone.
    """
    if is_new(name) and args.new_parameters_learning_rate is not None:
        return args.new_parameters_learning_rate
    return args.learning_rate * args.layer_decay ** (deepest - depth)


def parameter_groups(
    model: nn.Module,
    config: CoverConfig,
    args: CoverTrainingArguments,
    decaying: Container[str],
    trained_heads: Container[str],
) -> list[dict[str, Any]]:
    """The groups that an optimizer takes, one for each learning rate and weight decay.

    Of the parameters named in `decaying`, embeddings do not decay, nor do heads that are not trained: their gradient
    is of zeros, and decay would eat their weights all the same.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    depth_of = depths((name for name, _ in model.named_parameters()), config.layer_lists)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        head = plain_name(name).removeprefix("classifiers.").split(".")[0]
        is_idle_head = plain_name(name).startswith("classifiers.") and head not in trained_heads
        decays = name in decaying and name.split(".")[-1] not in _EMBEDDINGS and not is_idle_head
        key = (
            learning_rate(name, depth_of[name], config.num_hidden_layers + 1, args),
            args.weight_decay if decays else 0.0,
        )
        groups.setdefault(key, []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def drop_schedule(
    optimizer: torch.optim.Optimizer, args: CoverTrainingArguments, num_training_steps: int, steps_per_epoch: int
) -> LambdaLR:
    """A schedule that multiplies the learning rate by `learning_rate_drop_factor` from each of
    `learning_rate_drop_epochs` on, after a linear warm-up."""
    warmup_steps, drop_factor = args.get_warmup_steps(num_training_steps), args.learning_rate_drop_factor
    drop_steps = [round(epoch * steps_per_epoch) for epoch in args.learning_rate_drop_epochs]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return drop_factor ** sum(step >= drop for drop in drop_steps)

    return LambdaLR(optimizer, factor)
