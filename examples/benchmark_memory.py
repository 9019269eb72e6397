# SPDX-License-Identifier: Apache-2.0
"""How many clips fit on a GPU in a training step: measured on a GPU, predicted where there is none.

    python examples/benchmark_memory.py [--presets base large] [--device cpu|cuda]

A step is forward, backward, and SGD with momentum, with weights in fp32 under autocast to bf16, all clips in one pass.
Its peak memory is measured with few clips, each time in a process of its own, and is so much for the model and so much
for each clip. On a GPU the model is whole, and what is counted are tensors. On a CPU it has one layer and two, from
which those of all layers are told, and what is counted is by how much the process's resident memory has grown; layers
are compiled by Inductor for the CPU, and attention over time is not the GPU's kernel. So that is a prediction.

Without activation checkpointing, what the backward pass needs is kept. Compiled layers keep less, and a budget has
the compiler choose a part to compute again; checkpointing keeps the inputs of layers alone.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
import transformers
from modeling_cover import CoverConfig, CoverForVideoClassification, CoverModel
from modeling_cover.commands.benchmark import NUM_LABELS, PRESETS, resident_memory
from modeling_cover.commands.benchmarking import print_table
from modeling_cover.training.compiling import prepare_compiler
from torch import nn
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
        model.gradient_checkpointing_enable()
    elif COMPILED[mode] is not None:
        prepare_compiler(COMPILED[mode])
        for layer in model.cover.layers:
            layer.compile()
    return model


def peak_bytes(preset: str, num_layers: int, rows: int, mode: str, device: str) -> int:
    """Memory of a training step at most, with weights, momentum and input."""
    CoverModel.packing_devices = (device,)
    before = resident_memory("VmRSS")
    model = build(preset, num_layers, mode, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    num_frames, size = PRESETS[preset]["standard"]
    pixel_values = torch.randn(rows, num_frames, 3, size, size, device=device)
    labels = torch.zeros(rows, dtype=torch.long, device=device)
    for step in range(2):  # the first compiles, and makes the momentum
        if step == 1 and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif step == 1:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        with torch.autocast(device, torch.bfloat16):
            loss = model([pixel_values], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident_memory("VmHWM") - before


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
    layers = (depth // 2, depth) if device == "cuda" else (1, 2)
    # The smaller the clips, the more of them, so that they are most of what is measured.
    few = max(1, 16 * 448**2 // (num_frames * size**2))
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
