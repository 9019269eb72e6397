# SPDX-License-Identifier: Apache-2.0
"""What parameters that are sharded over processes (FSDP2, ZeRO-3) ask for.

Each pass through the encoder gathers every layer's parameters from all processes, so all must make as many passes. A
batch is as many as it has groups of clips of one shape, or on a GPU sizes of frames, and one process may have videos
where another has videos and images. Those with fewer make a pass with a clip as small as can be, whose row counts for
nothing.
"""

import dataclasses
from itertools import count, islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from ..model.configuration_cover import CoverConfig
from ..model.head_losses_cover import NO_HEAD
from ..model.modeling_cover import CoverForVideoClassification
from ..model.packed_frames_cover import num_passes
from .adapters import AdapterState, has_adapter
from .batches import layers_of
from .run_state import WholeState
from .zero import ZeroState, check_options, whole_parameters


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether parameters are gathered from all processes as they are used."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.state.deepspeed_plugin.zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP


def is_in_parts(accelerator: Accelerator, model: nn.Module) -> bool:
    """Whether the weights in training are not those of the whole model, by their names: a process may have but a part
    of them, or an adapter is apart from what it adapts."""
    return has_adapter(model) or accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def configure_sharding(accelerator: Accelerator, model: nn.Module, max_grad_norm: float) -> None:
    """Shard layer by layer unless the configuration says otherwise, and reduce gradients in fp32, as DDP does.

    By default accelerate takes all of `_no_split_modules`, and shards the patch embeddings a second time, which fails;
    and with bf16 it rounds gradients before they are added up.

    Raises:
        ValueError: for what a DeepSpeed configuration must not say, see [`check_options`]; for an adapter.
    """
    kind = accelerator.distributed_type
    if has_adapter(model) and kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"{kind.value}: an adapter is trained on one GPU, or by DDP on several: what it adapts is frozen"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        check_options(accelerator.state.deepspeed_plugin.deepspeed_config, max_grad_norm)
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers_of(model)})
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


def with_equal_passes(
    batches: list[dict[str, Any]], accelerator: Accelerator, model: CoverForVideoClassification
) -> list[dict[str, Any]]:
    """The batches of an optimizer step, where parameters are sharded each with as many passes through the encoder as
    that of any other process."""
    if not is_sharded(accelerator):
        return batches
    passes = [_num_passes(model, batch["pixel_values"]) for batch in batches]
    most = accelerator.gather(torch.tensor([passes], device=accelerator.device)).amax(dim=0).tolist()
    missing = [number - own for number, own in zip(most, passes, strict=True)]
    return [padded(batch, number, model.config) for batch, number in zip(batches, missing, strict=True)]


def _num_passes(model: CoverForVideoClassification, groups: list[torch.Tensor]) -> int:
    return num_passes(model.cover, groups) if model.config.encoder is None else len(groups)


def padded(batch: dict[str, Any], missing: int, config: CoverConfig) -> dict[str, Any]:
    """The batch with blank clips at its end, each of which is a pass of its own: for our own encoder, which may take
    all frames of one size together, of sizes that nothing else has."""
    clips = batch["pixel_values"]
    if missing == 0:
        return batch
    num_frames, height, width = config.smallest_clip
    heights = [height] * missing
    if config.encoder is None:
        taken = {group.shape[3] for group in clips}
        heights = list(islice((h for h in count(height, height) if h not in taken), missing))
    blanks = [clips[0].new_zeros(1, num_frames, clips[0].shape[2], height, width) for height in heights]
    nothing = batch["head_ids"].new_full((missing,), NO_HEAD)
    labels = batch["labels"]
    if isinstance(labels, torch.Tensor):
        labels = torch.cat([labels, labels.new_zeros(missing)])
    return {
        **batch,
        "pixel_values": [*clips, *blanks],
        "head_ids": torch.cat([batch["head_ids"], nothing]),
        "labels": labels,
    }


def state_in_training(model: nn.Module, optimizer: Any, engine: object | None) -> WholeState:
    """Weights and optimizer state of what is trained, however it is spread over processes; `engine` is DeepSpeed's."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if has_adapter(model):
        return AdapterState(model, optimizer)
    return (WholeState if engine is None else ZeroState)(model, optimizer)


def whole_model(config: CoverConfig) -> CoverForVideoClassification:
    """A model without memory, to write whole weights with. A sharded one is of a class of torch's, whose source would
    be written as the model's, or its parameters are empty."""
    with torch.device("meta"), whole_parameters():
        return CoverForVideoClassification(config)
