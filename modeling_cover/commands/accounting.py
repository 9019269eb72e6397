# SPDX-License-Identifier: Apache-2.0
"""What one call does, beside the time it takes: its operations, its launches, its graphs, its memory; and how fast the
device multiplies matrices at best."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch._dynamo.utils import counters
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..bars import bar


aten = torch.ops.aten
# torch registers formulas for the attention of a GPU alone; on a CPU the products are the same.
ATTENTION_ON_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *args, **kwargs: sdpa_flop_count(query, key, value)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *args, **kwargs: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}
CEILING_ROUNDS = 5
# Launching a product takes as long as a small one, and waiting for it too: a GPU is given several at once.
PRODUCTS_OF_A_ROUND = {"cpu": 1, "cuda": 10}


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one call does.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention, see [`count_flops`].
        launches: kernels on a GPU, operators on a CPU; `None` where they cannot be counted.
        graphs: those that torch.compile made for it; `None` if nothing is compiled.
        peak_bytes: memory of the GPU at most; `None` on a CPU.
    """

    flops: int
    launches: int | None
    graphs: int | None
    peak_bytes: int | None


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that compute or copy something: views do not, and operators made of others count as these.

    `count` is their number so far.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # In inference mode, `linear` and others come whole; in training, autograd has taken them apart.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        # `_unsafe_view` is a view that autograd is not told of.
        if not func.is_view and func.namespace != "prim" and func is not aten._unsafe_view.default:
            self.count += 1
        return func(*args, **kwargs)


def count_flops(run: Callable[[], None]) -> int:
    """Floating-point operations of a call; a multiplication and an addition are two.

    They are those of matrix products, convolutions and attention, in the backward pass with what attention computes a
    second time. Sums, norms and activations are not counted, and neither are custom operators, whose products torch
    does not know: without those of attention over time, less than 1% of all would be missing. A compiled model
    is counted as it runs uncompiled, as its kernels hide their products.
    """
    with (
        torch.compiler.set_stance("force_eager"),
        FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter,
    ):
        run()
    return counter.get_total_flops()


def count_operators(run: Callable[[], None]) -> int:
    """Operators of a call that is not compiled, views apart."""
    with OperatorCounter() as counter:
        run()
    return counter.count


def count_kernels(run: Callable[[], None]) -> int:
    """Kernels that a call launches on the GPU; copies and fills by the driver are none."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(
        event.device_type == DeviceType.CUDA
        and not event.is_user_annotation
        and not event.name.startswith(("Memcpy", "Memset"))
        for event in profiler.events()
    )


def count_graphs(run: Callable[[], None]) -> int:
    """Graphs that torch.compile makes in a call."""
    before = counters["stats"]["unique_graphs"]
    run()
    return counters["stats"]["unique_graphs"] - before


def peak_bytes(run: Callable[[], None], own: Iterable[torch.Tensor]) -> int:
    """Memory of the GPU at most during a call, with its `own` tensors and without those of others that are there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before + sum(tensor.nbytes for tensor in own)


def account(
    run: Callable[[], None], own: Callable[[], Iterable[torch.Tensor]], device: str, compiled: bool
) -> Account:
    """Account for one of a candidate's calls.

    Args:
        own: gives the tensors that the candidate keeps between calls, once it has been called.
        compiled: whether some of what it calls is.
    """
    # The first call compiles, makes the optimizer's state, and has libraries choose their algorithms.
    graphs = count_graphs(run) if compiled else None
    flops, launches, peak = count_flops(run), None, None
    if device == "cuda":
        launches, peak = count_kernels(run), peak_bytes(run, own())
    elif not compiled:  # what Inductor writes for a CPU is one call to who counts operators
        launches = count_operators(run)
    return Account(flops=flops, launches=launches, graphs=graphs, peak_bytes=peak)


def matrix_ceiling(shapes: Iterable[tuple[int, int, int]], dtype: torch.dtype, device: str) -> float:
    """Operations in a second of the fastest matrix product among `shapes` (m, k, n): of (m, k) with (k, n)."""
    best, count = 0.0, PRODUCTS_OF_A_ROUND[device]
    for m, k, n in bar(list(shapes), desc="matrix products", leave=False):
        left, right = (torch.randn(*shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
        product = torch.mm(left, right)
        for _ in range(CEILING_ROUNDS):
            _synchronize(device)
            start = time.perf_counter()
            for _ in range(count):
                torch.mm(left, right, out=product)
            _synchronize(device)
            best = max(best, 2 * m * k * n * count / (time.perf_counter() - start))
    return best


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
