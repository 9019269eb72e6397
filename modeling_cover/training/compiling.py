# SPDX-License-Identifier: Apache-2.0
"""Compilation layer by layer: all layers share their graphs, whatever clips and images a batch has."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend
from torch import nn

from .arguments import CoverTrainingArguments
from .batches import layers_of
from .sharding import configure_sharding


def shard_and_compile(
    accelerator: Accelerator, model: nn.Module, args: CoverTrainingArguments
) -> Callable[[Callable], Callable]:
    """Settle how accelerate is to shard a model, and have its layers compiled, before it does.

    Returns:
        What compiles a function, if the layers are compiled, else leaves it as it is.
    """
    configure_sharding(accelerator, model, args.max_grad_norm)
    options = compile_layers(accelerator, model, args)
    return (lambda function: function) if options is None else partial(torch.compile, **options)


def compile_layers(accelerator: Accelerator, model: nn.Module, args: CoverTrainingArguments) -> dict[str, Any] | None:
    """Have each layer compiled, in place, where `torch_compile` or accelerate's launcher asks for compilation.

    Accelerate would compile the model as a whole: once for each mixture of clips and images, all layers each time, and
    after eight of them no more. Hooks of the layers, as of FSDP2, stay out of the graphs.

    Returns:
        The options of torch.compile, if it is asked for.

    Raises:
        ValueError: with DeepSpeed; or if there is a budget for activations and nothing is compiled.
    """
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend != DynamoBackend.NO:
        options, plugin.backend = plugin.to_kwargs(), DynamoBackend.NO
    elif args.torch_compile:  # of a second trainer with the same arguments
        options = {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode}
    elif args.activation_memory_budget < 1:
        raise ValueError("activation_memory_budget needs torch_compile: it is the compiler that chooses")
    else:
        return None
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "torch_compile: DeepSpeed adds up gradients in the order in which they come, and those of compiled layers "
            "come in one order from clips and in another from images; take DDP or FSDP2"
        )
    prepare_compiler(args.activation_memory_budget)
    for layer in layers_of(model):
        layer.compile(**options)
    return options


def prepare_compiler(activation_memory_budget: float = 1.0) -> None:
    """Set of torch.compile what has no argument of its own. It holds for all that the process compiles from now on."""
    import torch._dynamo.config
    import torch._functorch.config  # which takes a while
    import torch._inductor.config

    torch._functorch.config.activation_memory_budget = activation_memory_budget
    # An analysis that fails on a GPU with an assertion, about a token behind the class token.
    torch._inductor.config.triton.coalesce_tiling_analysis = False
    # Weights and biases are cast to the type of the products one by one otherwise, each by a kernel of its own.
    torch._inductor.config.combo_kernels = True
    # Each size of frames has programs of its own, and so has evaluation. Dynamo would give up after eight.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
