# SPDX-License-Identifier: Apache-2.0
"""Training adapters of the peft library, LoRA say, in place of the encoder's weights.

A checkpoint of such a run is one of the whole model, the adapter merged into it, which loads without peft. Beside it
lie the adapter as peft has it, in `adapter/`, and in `training_state/` what is trained. From that the run resumes:
merged weights are rounded, and do not tell an adapter from what it adapts.
"""

import copy
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ..model.encoders_cover import encoder_adapter
from ..model.modeling_cover import CoverForVideoClassification
from .checkpoints import CheckpointError
from .run_state import WholeState


ADAPTER_FOLDER = "adapter"

_AROUND = re.compile(r"\.(?:base_layer|original_module|(?:modules_to_save|lora_\w+)\.\w+)(?=\.|$)")
_TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def import_peft() -> Any:
    """The peft library.

    Raises:
        ValueError: names the extra that installs it.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError('lora: peft is not installed: pip install "modeling-cover[peft]"') from error
    return peft


def with_lora(model: CoverForVideoClassification, options: Mapping[str, Any]) -> nn.Module:
    """The model with an adapter to be trained; `options` are fields of peft's `LoraConfig`.

    Raises:
        ValueError: if peft is not installed, or does not know an option, or finds nothing to adapt.
    """
    peft = import_peft()
    try:
        return peft.get_peft_model(model, peft.LoraConfig(**{**_defaults(model), **options}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"lora: {error}") from error


def _defaults(model: CoverForVideoClassification) -> dict[str, Any]:
    """The heads are trained as a whole, with what pools for them, and with them the attention of each layer."""
    if (encoder := model.config.encoder) is None:
        return {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifiers"]}
    pooler = ["cover.pooler"] * any(True for _ in model.cover.pooler.parameters())
    # Not those of the pooler, which may be called the same.
    names = "|".join(encoder_adapter(encoder).attention)
    return {"target_modules": rf"cover\.encoder\..*\.({names})", "modules_to_save": ["classifiers", *pooler]}


def has_adapter(model: nn.Module) -> bool:
    """Whether it is a model of peft's around one of ours."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def plain_name(name: str) -> str:
    """A parameter's name without what peft has put around it."""
    return _AROUND.sub("", name.removeprefix("base_model.model."))


class AdapterState(WholeState):
    """[`WholeState`] of a model of peft's: of the weights, what is trained is loaded, and the whole is returned."""

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the whole model's weights, the adapter merged into them, by their names in a model without."""
        return merged_weights(self.model)

    def adapter(self) -> dict[str, torch.Tensor]:
        whole = get_model_state_dict(self.model, options=_TRAINED)
        return {name: weight.clone() for name, weight in whole.items()}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take what [`adapter`] returned.

        Raises:
            CheckpointError: if that was of another adapter.
        """
        own = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        found = {name: tuple(weight.shape) for name, weight in weights.items()}
        if found != {name: tuple(weight.shape) for name, weight in own.items()}:
            different = sorted(found.items() ^ {(name, tuple(weight.shape)) for name, weight in own.items()})
            raise CheckpointError(f"the checkpoint is of another adapter: {plain_name(different[0][0])} differs")
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(weights[name])


def merged_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model of peft's as one without adapters has them, on the CPU; the model stays as it is.

    Raises:
        ValueError: for an adapter that cannot be merged.
    """
    try:
        merged = copy.deepcopy(model).merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ValueError(f"an adapter that is no change of weights cannot be merged into them: {error}") from error
    return {name: weight.detach().cpu() for name, weight in merged.state_dict().items()}


def save_adapter(
    model: nn.Module, folder: str | os.PathLike, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write the adapter of a model, if it has one, as peft has it; `weights` are what [`AdapterState.adapter`]
    returned, by default the model's."""
    if has_adapter(model):
        model.save_pretrained(
            os.path.join(folder, ADAPTER_FOLDER), state_dict=None if weights is None else dict(weights)
        )
