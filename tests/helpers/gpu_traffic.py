# SPDX-License-Identifier: Apache-2.0
"""Bytes that a layer would move on a GPU beside matrix products and attention, eager and compiled. None is needed: the
tensors have shapes and no data, and the compiler plans kernels for a GPU and runs none.

    python tests/helpers/gpu_traffic.py

prints them as JSON, for a layer of CoVeR-Large and 16 clips of 16 frames of 448 x 448 pixels, in units of the bytes of
all tokens in bf16.
"""

import copy
import json
from types import SimpleNamespace

import modeling_cover  # noqa: F401  before what it loads lazily
import torch
from modeling_cover import CoverConfig
from modeling_cover.model.divided_attention_cover import CoverLayer
from modeling_cover.model.packed_frames_cover import packed_frames
from modeling_cover.training.compiling import prepare_compiler
from torch._dynamo import device_interface
from torch._inductor import compile_fx
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


NUM_CLIPS, NUM_FRAMES, NUM_PATCHES = 16, 16, 28 * 28
FIELDS = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "image_size": 448}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
UNMOVED = ("device", "empty", "_unsafe_view", "detach")


def bytes_of(tensor: torch.Tensor) -> int:
    """Those in memory: an axis that is expanded is there once."""
    number = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        number *= size if stride else 1
    return number


class EagerBytes(TorchDispatchMode):
    """Counts what each operator reads and writes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, name = func(*args, **(kwargs or {})), func.name().split("::")[1].split(".")[0]
        if not (func.is_view or name in PRODUCTS or name.startswith(UNMOVED) or "attention" in name):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.count += sum(map(bytes_of, tensors))
            if name == "native_layer_norm_backward":
                # On a GPU one kernel is for the input's gradient, and another, which reads both again, for the
                # weight's and the bias's.
                self.count += bytes_of(args[0]) + bytes_of(args[1])
            elif name in ("slice_backward", "select_backward"):  # zeros are filled in first, then the gradient copied
                self.count += bytes_of(args[0])
        return result


class CompiledBytes:
    """A backend of torch.compile that plans an H200's kernels, and runs the graph as it is."""

    def __init__(self):
        properties = {"multi_processor_count": 132, "major": 9, "minor": 0, "regs_per_multiprocessor": 65536}
        properties |= {"max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024, "warp_size": 32}
        given = {
            "get_device_properties": SimpleNamespace(**properties),
            "current_device": 0,
            "device_count": 1,
            "is_available": True,
            "get_compute_capability": 90,
            "is_triton_capable": True,
            "raise_if_triton_unavailable": None,
        }
        methods = {name: staticmethod(lambda device=None, value=value: value) for name, value in given.items()}
        methods["Worker"] = type("Worker", (), methods)
        device_interface.get_interface_for_device("cpu")  # the known ones would be registered after this one
        for name in ("cuda", "cuda:0"):
            interface = type("H200", (device_interface.CudaInterface,), methods)
            device_interface.register_interface_for_device(name, interface)
        self.count = self.num_kernels = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list) -> object:
        return compile_fx.compile_fx(module, inputs, inner_compile=self.plan)

    def plan(self, module: torch.fx.GraphModule, inputs: list, is_backward: bool = False, **kwargs) -> object:
        fake_mode = torch._dynamo.utils.detect_fake_mode(inputs)
        planned = copy.deepcopy(module)
        compile_fx.view_to_reshape(planned)
        compile_fx.record_original_output_strides(planned)
        compile_fx._recursive_post_grad_passes(planned, is_inference=False)
        inputs = self.on_gpu(planned, inputs, fake_mode)
        graph = GraphLowering(planned, inputs, shape_env=fake_mode.shape_env, is_backward=is_backward)
        with V.set_graph_handler(graph), V.set_fake_mode(fake_mode), DebugContext():
            graph.run(*inputs)
            graph.init_wrapper_code()
            graph._update_scheduler()
            kernels = [node for node in graph.scheduler.nodes if not isinstance(node, ExternKernelSchedulerNode)]
            self.count += sum(kernel.get_read_write_buffers_sizes() for kernel in kernels)
            self.num_kernels += sum(not kernel.is_template() and bool(kernel.get_nodes()) for kernel in kernels)

        def run(arguments: list) -> object:
            return module(*arguments)

        run._boxed_call = True
        return run

    def on_gpu(self, module: torch.fx.GraphModule, inputs: list, fake_mode: FakeTensorMode) -> list:
        device = torch.device("cuda", 0)
        with fake_mode:
            inputs = [
                torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
                if isinstance(value, torch.Tensor)
                else value
                for value in inputs
            ]
        for node in module.graph.nodes:
            if node.kwargs.get("device") is not None:
                node.kwargs = {**node.kwargs, "device": device}
        module.recompile()
        FakeTensorProp(module, fake_mode).propagate_dont_convert_inputs(*inputs)
        return inputs


def run_layer(layer, hidden_states: torch.Tensor, frames: object) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(hidden_states, frames)
    output.backward(torch.empty_like(output))


def main() -> None:
    config = CoverConfig(**FIELDS, num_hidden_layers=1, hidden_dropout_prob=0.0)
    config._attn_implementation = "sdpa"
    prepare_compiler()
    frames = packed_frames(
        [torch.empty(NUM_CLIPS, NUM_FRAMES, 3, 1, 1)], NUM_PATCHES, config.hidden_size // 16, torch.bfloat16
    )
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()) as fake_mode:
        layer = CoverLayer(config, 0)
        frames = type(frames)(
            *(fake_mode.from_tensor(part) if isinstance(part, torch.Tensor) else part for part in frames)
        )
        clips = torch.empty(NUM_CLIPS, 1 + NUM_FRAMES * NUM_PATCHES, config.hidden_size, requires_grad=True)
        with EagerBytes() as eager:
            run_layer(layer, clips, NUM_FRAMES)
        packed = torch.empty(NUM_CLIPS * NUM_FRAMES, 1 + NUM_PATCHES, config.hidden_size, requires_grad=True)
        compiled = CompiledBytes()
        run_layer(torch.compile(layer, backend=compiled), packed, frames)
        unit = 2 * packed.numel()
    traffic = {"eager": eager.count / unit, "compiled": compiled.count / unit, "kernels": compiled.num_kernels}
    print(json.dumps({**traffic, "compiled / eager": round(compiled.count / eager.count, 2)}))


if __name__ == "__main__":
    main()
