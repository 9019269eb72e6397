# SPDX-License-Identifier: Apache-2.0
"""Compare speed and memory with transformers' TimeSformer, in one run.

    cover benchmark [--rounds 3] [--preset base|tiny] [--device cpu|cuda]

Both models have the same architecture (Base) and random weights. Times are medians over rounds in which the models
take turns. On the CPU they run in fp32 with a batch of 1, and on a GPU in bf16 with a batch of 8, where ours also runs
compiled into one graph. Peak memory is that of one forward pass at high resolution in a process of its own. It counts
all tensors, weights included (on the CPU, the growth of the process's resident memory since before the model was
made). About 5 minutes on 2 CPU cores.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._inductor.config
from torch import nn
from transformers import TimesformerConfig, TimesformerForVideoClassification
from transformers.utils import logging

from .. import CoverConfig, CoverForVideoClassification
from .benchmarking import forward, median_times, report


PRESETS = {
    "base": {"standard": (8, 224), "high": (16, 448), "config": {}},
    "tiny": {
        "standard": (4, 32),
        "high": (8, 64),
        "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    },
}
NUM_LABELS = 400
MIB = 2**20


def build(name: str, preset: str, input_setting: str, device: str) -> tuple[nn.Module, torch.Tensor]:
    """A model, in bf16 on a GPU, and clips (B, T, 3, H, W) for it."""
    num_frames, image_size = PRESETS[preset][input_setting]
    fields = {
        **PRESETS[preset]["config"],
        "num_frames": num_frames,
        "image_size": image_size,
        "num_labels": NUM_LABELS,
    }
    if name == "transformers TimeSformer":
        model = TimesformerForVideoClassification(TimesformerConfig(**fields))
    else:
        model = CoverForVideoClassification(CoverConfig(**fields))
    batch_size = 8 if device == "cuda" and input_setting == "standard" else 1
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    pixel_values = torch.randn(batch_size, num_frames, 3, image_size, image_size, device=device, dtype=dtype)
    return model.to(device, dtype).eval(), pixel_values


def training_step(model: nn.Module, pixel_values: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.zeros(len(pixel_values), dtype=torch.long, device=pixel_values.device)

    def run() -> None:
        model(pixel_values, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def resident_memory(key: str) -> int:
    """Bytes of this process's memory, by a key of /proc/self/status: VmRSS (now) or VmHWM (the peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def peak_memory(name: str, preset: str, device: str) -> float:
    """MiB of one forward pass at high resolution, weights included; run in a process of its own."""
    before = resident_memory("VmRSS")
    model, pixel_values = build(name, preset, "high", device)
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    forward(model, pixel_values)()
    return (torch.cuda.max_memory_allocated() if device == "cuda" else resident_memory("VmHWM") - before) / MIB


def measure_peak_memory(name: str, preset: str, device: str) -> float:
    command = [
        sys.executable,
        "-m",
        "modeling_cover.commands.benchmark",
        "--peak_memory_of",
        name,
        "--preset",
        preset,
        "--device",
        device,
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="base")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak_memory_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    preset, device = arguments.preset, arguments.device
    theirs, ours = "transformers TimeSformer", "CoVeR"
    if arguments.peak_memory_of:
        print(json.dumps(peak_memory(arguments.peak_memory_of, preset, device)))
        return

    torch.manual_seed(0)
    models = {name: build(name, preset, "standard", device) for name in (theirs, ours)}
    (num_frames, image_size), (high_frames, high_size) = PRESETS[preset]["standard"], PRESETS[preset]["high"]
    processor = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{preset}, {processor}, {next(models[ours][0].parameters()).dtype}, batch of {len(models[ours][1])}")

    runs = {name: forward(*pair) for name, pair in models.items()}
    model, pixel_values = models[ours]
    if device == "cuda":
        # Inductor's analysis of torch 2.11 to 2.13 fails with an assertion otherwise.
        torch._inductor.config.triton.coalesce_tiling_analysis = False
        runs["CoVeR, compiled"] = forward(torch.compile(model, fullgraph=True), pixel_values)
    runs["CoVeR, images"] = forward(model, pixel_values[:, :1])
    times = median_times(runs, arguments.rounds)
    report(f"Forward, {num_frames}x{image_size}x{image_size}", times, "s", theirs)
    share = times["CoVeR, images"] / times[ours]
    print(f"  an image takes {share:.1%} of a clip's time; 1/T is {1 / num_frames:.1%}")

    runs = {name: training_step(*pair) for name, pair in models.items()}
    times = median_times(runs, arguments.rounds)
    report(f"Training step, {num_frames}x{image_size}x{image_size}", times, "s", theirs)

    peaks = {name: measure_peak_memory(name, preset, device) for name in (theirs, ours)}
    report(f"Peak memory of a forward pass, {high_frames}x{high_size}x{high_size}", peaks, "MiB", theirs)


if __name__ == "__main__":
    main()
