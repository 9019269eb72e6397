# SPDX-License-Identifier: Apache-2.0
"""How many clips fit on a GPU in a training step: measured on a GPU, predicted where there is none.

    python examples/benchmark_memory.py [--presets base large] [--device cpu|cuda]

A step is forward, backward, and SGD with momentum, with weights in fp32 under autocast to bf16, all clips in one pass.
The tensors that there are at most are counted with few clips, each time in a process of its own: so many bytes for the
model and so many for each clip. On a GPU the model is whole. On a CPU it has two layers and four, from which those of
all layers are told. There layers are compiled for the CPU, and attention over time is not the GPU's kernel, so that is
a prediction.

Without activation checkpointing, what the backward pass needs is kept. Compiled layers keep less, and a budget has
the compiler choose a part to compute again; checkpointing keeps the inputs of layers alone.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate, product

import torch
import transformers
from modeling_cover import CoverConfig, CoverForVideoClassification, CoverModel
from modeling_cover.commands.benchmark import NUM_LABELS, PRESETS
from modeling_cover.commands.benchmarking import print_table
from modeling_cover.training.compiling import prepare_compiler
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm


# MiB of memory, as nvidia-smi has it of an RTX 4090, an RTX A6000, an H100 and an H200.
GPUS = {"24 GB": 24_564, "48 GB": 49_140, "80 GB": 81_559, "141 GB": 143_771}
# The rest is of the driver, of libraries, and lost between tensors.
USABLE = 0.92
MIB = 2**20
COMPILED = {"eager": None, "compiled": 1.0, "compiled, budget 0.5": 0.5}
CHECKPOINTED = "eager, activation checkpointing"
MODES = (*COMPILED, CHECKPOINTED)


def build(preset: str, num_layers: int, mode: str, device: str) -> nn.Module:
    num_frames, size = PRESETS[preset]["standard"]
    fields = {**PRESETS[preset]["config"], "num_hidden_layers": num_layers}
    config = CoverConfig(**fields, num_frames=num_frames, image_size=size, num_labels=NUM_LABELS)
    model = CoverForVideoClassification(config).to(device).train()
    if mode == CHECKPOINTED:
        model.activation_checkpointing_enable()
    elif COMPILED[mode] is not None:
        prepare_compiler(COMPILED[mode])
        for layer in model.cover.layers:
            layer.compile()
    return model


def peak_bytes(preset: str, num_layers: int, rows: int, mode: str, device: str) -> int:
    """Bytes of tensors in a training step at most, with weights, momentum and input."""
    CoverModel.packing_devices = (device,)
    model = build(preset, num_layers, mode, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    num_frames, size = PRESETS[preset]["standard"]
    pixel_values = torch.randn(rows, num_frames, 3, size, size, device=device)
    labels = torch.zeros(rows, dtype=torch.long, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = model([pixel_values], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # which compiles, and makes the momentum
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    kept = (*model.parameters(), *model.buffers(), *momentum, pixel_values, labels)
    return sum(tensor.nbytes for tensor in kept) + growth(step)


def growth(run: Callable[[], None]) -> int:
    """Bytes by which a call makes the tensors of the CPU more, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # Not `profiler.events()`, which has what an operator takes and gives back as one.
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def measure(*what: str | int) -> int:
    """[`peak_bytes`] of a process of its own."""
    command = [sys.executable, __file__, "--peak_of", json.dumps(what)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def of_model_and_clip(peaks: dict[tuple[int, int], int], num_layers: int) -> tuple[float, float]:
    """Bytes of a model of so many layers, and of each clip.

    Args:
        peaks: of two numbers of layers and two numbers of rows.
    """
    (few, more), (less, most) = (sorted({key[axis] for key in peaks}) for axis in (0, 1))

    def at_depth(low: float, high: float) -> float:
        return low + (high - low) * (num_layers - few) / (more - few)

    clips = [(peaks[layers, most] - peaks[layers, less]) / (most - less) for layers in (few, more)]
    fixed = [peaks[layers, less] - less * clip for layers, clip in zip((few, more), clips, strict=True)]
    return at_depth(*fixed), at_depth(*clips)


def clips_that_fit(fixed: float, clip: float) -> dict[str, int]:
    return {name: max(0, int((USABLE * memory * MIB - fixed) / clip)) for name, memory in GPUS.items()}


def table(preset: str, device: str) -> None:
    num_frames, size = PRESETS[preset]["standard"]
    depth = CoverConfig(**PRESETS[preset]["config"]).num_hidden_layers
    layers = (depth // 2, depth) if device == "cuda" else (2, 4)
    # The smaller the clips, the more of them, so that they are most of what is measured: of few, the gradients at the
    # end of the backward pass are more.
    few = max(1, 8 * 448**2 // (num_frames * size**2))
    lines = []
    for mode in tqdm(MODES, desc=preset, leave=False):
        peaks = {
            (depth, rows): measure(preset, depth, rows, mode, device)
            for depth, rows in product(layers, (few, 2 * few))
        }
        fixed, clip = of_model_and_clip(peaks, depth)
        fitting = clips_that_fit(fixed, clip).values()
        lines.append([mode, f"{fixed / 1e9:.1f}", f"{clip / 1e9:.2f}", *map(str, fitting)])
    how = "measured" if device == "cuda" else "predicted"
    print_table(["", "GB, model", "GB a clip", *GPUS], lines, f"{preset}, {num_frames}x{size}x{size}, {how}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=["base", "large"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak_of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak_of is not None:
        print(peak_bytes(*options.peak_of))
        return 0
    name = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    for preset in options.presets:
        table(preset, options.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
