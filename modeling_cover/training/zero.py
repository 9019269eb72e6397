# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO: weights and optimizer state that it has spread over processes, whole, and what is asked of its
options.

DeepSpeed's own checkpoints are pickles, and of one stage and number of processes. Ours are the same as without it, so
a run may resume with it or without.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.integrations import deepspeed as integration

from .run_state import WholeState, chosen, grouped_by_parameter, parameter_groups_of


def check_options(config: Mapping[str, Any], max_grad_norm: float) -> None:
    """Raise a `ValueError` unless a run with this DeepSpeed configuration is what its other arguments say."""
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise ValueError(f"deepspeed: zero_optimization.stage must be 1, 2 or 3, got {zero.get('stage')!r}")
    for part in ("optimizer", "scheduler"):
        if part in config:
            raise ValueError(f"deepspeed: the {part} is CoverTrainingArguments' business, leave it out")
    for part in ("offload_optimizer", "offload_param"):
        if zero.get(part, {}).get("device", "none") not in ("none", None):
            raise ValueError(
                f"deepspeed: zero_optimization.{part} is not supported: use a higher stage or smaller batches"
            )
    for half in ("bf16", "fp16"):
        if config.get(half, {}).get("enabled") is True:
            raise ValueError(
                f"deepspeed: its {half} keeps weights in {half}. Leave it False, and let DeepSpeed's configuration have "
                '"torch_autocast": {"enabled": true, "dtype": "bfloat16"}, with which they stay in fp32'
            )
    if (clipped := config.get("gradient_clipping", 0.0)) != max_grad_norm:
        raise ValueError(
            f"deepspeed: gradient_clipping is {clipped} and max_grad_norm {max_grad_norm}: set it to auto"
        )


def visible_to_zero(loss: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient is NaN where it is not finite: DeepSpeed's optimizer steps inside of `backward`, and looks
    at gradients alone."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


@contextmanager
def whole_parameters() -> Iterator[None]:
    """Inside, `from_pretrained` loads parameters whole, as adding heads and converting do need, where ZeRO-3 has it
    shard them: the Trainer shards the model once it is made."""
    reference = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = reference


def _kept(tensor: torch.Tensor) -> torch.Tensor | None:
    """A copy on the CPU, of the first process alone: those of all would fill the memory of the machine."""
    return tensor.detach().cpu().clone() if torch.distributed.get_rank() == 0 else None


def _without_none(tensors: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


class ZeroState(WholeState):
    """[`WholeState`] of a model under ZeRO, stages 1 to 3; `optimizer` is DeepSpeed's.

    A process has, for each group of parameters, a part of them all laid end to end: in fp32, with its optimizer state.
    """

    @property
    def _groups(self) -> list[tuple[nn.Parameter, list[nn.Parameter], int]]:
        """This process's part of a group, the parameters of the group, and which of the optimizer's groups it is
        in."""
        zero = self.optimizer
        if hasattr(zero, "fp32_partitioned_groups_flat"):  # stage 3
            groups = [zero.sub_group_to_group_id[index] for index in range(len(zero.fp16_groups))]
            return list(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, groups, strict=True))
        parts = zero.single_partition_of_fp32_groups
        return list(zip(parts, zero.bit16_groups, range(len(parts)), strict=True))

    @property
    def _names(self) -> dict[nn.Parameter, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}

    def weights(self) -> dict[str, torch.Tensor]:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {name: _kept(buffer) for name, buffer in self.model.named_buffers()}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                weights[name] = _kept(safe_get_full_fp32_param(parameter))
            else:
                with GatheredParameters([parameter]):
                    weights[name] = _kept(parameter)
        return _without_none(weights)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        own = {name for name, _ in [*self.model.named_parameters(), *self.model.named_buffers()]}
        if own != set(weights):
            raise ValueError(f"weights of another model: {sorted(own ^ set(weights))[0]} is in one of them alone")
        for name, buffer in self.model.named_buffers():
            buffer.copy_(weights[name])
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self._set_whole(parameter, weights[name])
            else:
                with GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                    parameter.copy_(weights[name])
        self.local_weights_have_changed()

    def _set_whole(self, parameter: nn.Parameter, value: torch.Tensor, key: str | None = None) -> None:
        """Take this process's part of a parameter's weights or, with `key`, of its optimizer state."""
        value = value.to(parameter.device)
        if not hasattr(parameter, "ds_id"):
            parameter.set_full_hp_param(value, key)
            return
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
        part = value.new_zeros(size)  # of the last processes, the end is padding
        own = value.flatten()[rank * size : (rank + 1) * size]
        part[: own.numel()] = own
        if key is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, key)

    def optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        names, base, tensors = self._names, self.optimizer.optimizer, {}
        of_group = defaultdict(list)
        for part, parameters, group in self._groups:
            of_group[group] += [names[parameter] for parameter in parameters]
            for key, value in base.state[part].items():
                for parameter in parameters:
                    is_spread = value.shape == part.shape
                    whole = safe_get_full_optimizer_state(parameter, key) if is_spread else value
                    tensors[f"{names[parameter]}:{key}"] = _kept(whole)
        groups = [
            {**{key: value for key, value in group.items() if key != "params"}, "params": of_group[index]}
            for index, group in enumerate(base.param_groups)
        ]
        return _without_none(tensors), {"values": {}, "param_groups": groups}

    def load_optimizer_state(self, tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> None:
        names, base = self._names, self.optimizer.optimizer
        stored = grouped_by_parameter(tensors, rest)
        options = {name: group for group in parameter_groups_of(rest) for name in group["params"]}
        for part, parameters, group in self._groups:
            values = stored[names[parameters[0]]]
            shape = getattr(parameters[0], "ds_shape", parameters[0].shape)
            spread = [key for key, value in values.items() if value.shape == shape]
            # DeepSpeed makes the state in the first step.
            base.state[part] = {
                key: torch.zeros_like(part, requires_grad=False) if key in spread else value.clone()
                for key, value in values.items()
            }
            if base.param_groups[group].get("fused"):
                base.state[part]["step"] = base.state[part]["step"].to(part.device)
            own = chosen(base.param_groups[group])
            same = {key: value for key, value in options[names[parameters[0]]].items() if key != "params"}
            base.param_groups[group].update({**same, **own})
        if hasattr(self.optimizer, "_lazy_init_hp_params_optimizer_state"):  # stages 1 and 2
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for parameter, name in names.items():
            for key, value in stored.get(name, {}).items():
                if value.shape == getattr(parameter, "ds_shape", parameter.shape):
                    self._set_whole(parameter, value, key)

    def local_weights(self) -> list[torch.Tensor]:
        return [part.detach() for part, _, _ in self._groups]

    def local_weights_have_changed(self) -> None:
        zero = self.optimizer
        if hasattr(zero, "update_lp_params"):
            zero.update_lp_params()
            return
        zero._partition_all_parameters()
        for index in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
