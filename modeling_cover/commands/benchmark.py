# SPDX-License-Identifier: Apache-2.0
"""Compare speed and memory with transformers' TimeSformer, VideoMAE and ViViT, in one run.

    cover benchmark [--rounds 3] [--preset base|large|tiny] [--batch_size N] [--device cpu|cuda] [--compile]

All models have the same hidden size, layers, heads, frames, image size and classes, and random weights. VideoMAE and
ViViT make one token of two frames. Ours is given clips, images (clips of one frame) and half as many of each; with
`--compile`, the default on a GPU, another copy has each layer compiled. One table is of the forward pass in inference,
one of the training step (forward, backward, SGD with momentum). A third is of the peak memory of one forward pass at
high resolution.

On a CPU all is in fp32; where it has instructions for bf16, the first table has another copy of ours in bf16. On a GPU
the forward pass is in bf16, and the training step has weights in fp32 under autocast to bf16, as the Trainer has it.
With two rounds, 24 minutes on one CPU core.

columns:
  ms        median over rounds in which all candidates take turns
  x         the same, relative to TimeSformer
  clips/s   rows in a second, of which an image is one as well
  TFLOP/s   operations of matrix products, convolutions and attention, divided by the time. A multiplication and an
            addition are two. Custom operators are not counted; attention over time alone is less than 1%.
  ceiling   that as a share of the fastest matrix product on this device in this run, printed with the table
  GB        peak memory of a call, weights and optimizer included, on a GPU
  launches  kernels of a call on a GPU; on a CPU `operators` of torch, without views, if not compiled
  graphs    those that torch.compile made for it
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
)
from transformers.utils import logging

from .. import CoverConfig, CoverForVideoClassification
from ..bars import bar
from ..text import counted
from ..training.compiling import prepare_compiler
from .accounting import Account, account, matrix_ceiling
from .benchmarking import forward, median_times, print_table
from .failing import command_parser, told


PRESETS = {
    "base": {"standard": (8, 224), "high": (16, 448), "rows": {"cpu": 2, "cuda": 8}, "config": {}},
    "large": {
        "standard": (16, 448),
        "high": (16, 448),
        "rows": {"cpu": 2, "cuda": 2},
        "config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    },
    "tiny": {
        "standard": (4, 32),
        "high": (8, 64),
        "rows": {"cpu": 2, "cuda": 8},
        "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    },
}
OURS, COMPILED, IN_BF16 = "CoVeR", "CoVeR, layers compiled", "CoVeR, bf16"
TIMESFORMER = "transformers TimeSformer"
MODELS = {
    OURS: (CoverForVideoClassification, CoverConfig),
    COMPILED: (CoverForVideoClassification, CoverConfig),
    IN_BF16: (CoverForVideoClassification, CoverConfig),
    TIMESFORMER: (TimesformerForVideoClassification, TimesformerConfig),
    "transformers VideoMAE": (VideoMAEForVideoClassification, VideoMAEConfig),
    "transformers ViViT": (VivitForVideoClassification, VivitConfig),
}
NUM_LABELS = 400
# Instructions for products of bf16: without one of them, a CPU has to compute in fp32 all the same.
BF16_INSTRUCTIONS = {"amx_bf16", "avx512_bf16", "sve_bf16"}
MIB, GB, TERA = 2**20, 1e9, 1e12
# Products of square matrices of these sides are measured beside those of the MLP.
SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}

Pixels = torch.Tensor | list[torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all candidates of a run have in common.

    Attributes:
        rows: of a batch.
    """

    preset: str
    device: str
    rows: int
    compiles: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def has_bf16(self) -> bool:
        """Whether it is a CPU with instructions for bf16."""
        capabilities = torch.cpu.get_capabilities()
        return self.device == "cpu" and any(capabilities.get(name, False) for name in BF16_INSTRUCTIONS)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model and what it is given; with an optimizer its call is a training step, else a forward pass."""

    model: nn.Module
    pixel_values: Pixels
    optimizer: torch.optim.Optimizer | None
    compiled: bool

    def calls(self, setting: Setting) -> Callable[[], None]:
        if self.optimizer is None:
            return forward(self.model, self.pixel_values)
        return training_step(self.model, self.optimizer, self.pixel_values, setting)

    def tensors(self) -> Iterator[torch.Tensor]:
        """What it keeps between calls."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield from self.pixel_values if isinstance(self.pixel_values, list) else [self.pixel_values]
        if self.optimizer is not None:
            for state in self.optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def build(name: str, preset: str, input_setting: str, device: str, dtype: torch.dtype) -> nn.Module:
    num_frames, image_size = PRESETS[preset][input_setting]
    sizes = {"num_frames": num_frames, "image_size": image_size, "num_labels": NUM_LABELS}
    model_class, config_class = MODELS[name]
    model = model_class(config_class(**PRESETS[preset]["config"], **sizes)).to(device, dtype)
    if name == COMPILED:
        prepare_compiler()
        for layer in model.cover.layers:
            # Else the second shape would be compiled for all shapes, and would then serve the first one as well.
            layer.compile(dynamic=False)
    return model


def inputs_of(name: str, setting: Setting, dtype: torch.dtype) -> dict[str, Pixels]:
    """Clips (B, T, 3, H, W) for any model; for ours also images, and a group of clips with one of images."""
    num_frames, size = PRESETS[setting.preset]["standard"]

    def pixels(rows: int, frames: int) -> torch.Tensor:
        return torch.randn(rows, frames, 3, size, size, device=setting.device, dtype=dtype)

    rows, found = setting.rows, {"clips": pixels(setting.rows, num_frames)}
    if name in (OURS, COMPILED, IN_BF16):
        found["images"] = pixels(rows, 1)
        if rows > 1:
            found["half of each"] = [pixels(rows - rows // 2, num_frames), pixels(rows // 2, 1)]
    return found


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, pixel_values: Pixels, setting: Setting
) -> Callable[[], None]:
    labels = torch.zeros(setting.rows, dtype=torch.long, device=setting.device)

    def run() -> None:
        with torch.autocast(setting.device, setting.dtype, enabled=setting.dtype != torch.float32):
            loss = model(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def candidates(setting: Setting, training: bool) -> dict[tuple[str, str], Candidate]:
    """By the names of model and input. Those of one model share its weights and its optimizer."""
    found = {}
    for name in MODELS:
        if (name == COMPILED and not setting.compiles) or (name == IN_BF16 and (training or not setting.has_bf16)):
            continue
        dtype = torch.bfloat16 if name == IN_BF16 else torch.float32 if training else setting.dtype
        model = build(name, setting.preset, "standard", setting.device, dtype).train(training)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9) if training else None
        for what, pixel_values in inputs_of(name, setting, dtype).items():
            found[name, what] = Candidate(
                model=model, pixel_values=pixel_values, optimizer=optimizer, compiled=name == COMPILED
            )
    return found


def measure_ceiling(setting: Setting) -> float:
    """Operations in a second of the fastest of a few matrix products, those of this model's MLP among them."""
    num_frames, size = PRESETS[setting.preset]["standard"]
    config = CoverConfig(**PRESETS[setting.preset]["config"], num_frames=num_frames, image_size=size)
    tokens = setting.rows * (1 + num_frames * (size // config.patch_size) ** 2)
    width, wide = config.hidden_size, config.intermediate_size
    squares = [(side, side, side) for side in SQUARES[setting.device]]
    return matrix_ceiling([*squares, (tokens, width, wide), (tokens, wide, width)], setting.dtype, setting.device)


def compare(title: str, setting: Setting, training: bool, rounds: int) -> dict[tuple[str, str], float]:
    """Print the table of forward pass or training step, and what their ceiling is.

    Returns:
        The seconds of each candidate.
    """
    torch._dynamo.reset()  # the graphs of another table are none of this one's
    ceiling, accounts, runs = measure_ceiling(setting), {}, {}
    for names, candidate in bar(candidates(setting, training).items(), desc="accounting", leave=False):
        run = candidate.calls(setting)
        try:
            accounts[names] = account(run, candidate.tensors, setting.device, candidate.compiled)
        except torch.OutOfMemoryError:
            accounts[names] = None
            torch.cuda.empty_cache()
        else:
            runs[names] = run
    times = median_times(runs, rounds, description=title)
    # Before and after, as a device is not as fast at all times: what is warm is slower, and so is what others use.
    ceiling = max(ceiling, measure_ceiling(setting))
    reference = times.get((TIMESFORMER, "clips"))
    # What is in bf16 on a CPU has another ceiling.
    ceilings = {names: None if names[0] == IN_BF16 else ceiling for names in accounts}
    rows = [
        [*names, *cells(found, times.get(names), setting, ceilings[names], reference)]
        for names, found in accounts.items()
    ]
    title = f"{title}; ceiling, the fastest matrix product: {ceiling / TERA:.3g} TFLOP/s"
    print_table(["model", "input", *columns(setting)], rows, title)
    return times


def columns(setting: Setting) -> list[str]:
    """Of the cells of a row."""
    of_device = ["GB", "launches"] if setting.device == "cuda" else ["operators"]
    graphs = ["graphs"] if setting.compiles else []
    return ["ms", "x", "clips/s", "TFLOP/s", "ceiling", *of_device, *graphs]


def cells(
    found: Account | None, seconds: float | None, setting: Setting, ceiling: float | None, reference: float | None
) -> list[str]:
    """What the table has of a candidate behind its names.

    Args:
        found: `None` if it needs more memory than there is.
        seconds: of a call.
        ceiling: operations in a second of the fastest matrix product, if it is of the same precision.
        reference: seconds of what others are compared with.
    """
    if found is None:
        return ["out of memory", *[""] * (len(columns(setting)) - 1)]
    rate = found.flops / seconds
    row = {
        "ms": f"{1e3 * seconds:.0f}" if seconds >= 1 else f"{1e3 * seconds:.4g}",
        "x": "" if reference is None else f"{seconds / reference:.2f}",
        "clips/s": f"{setting.rows / seconds:.4g}",
        "TFLOP/s": f"{rate / TERA:.3g}",
        "ceiling": "" if ceiling is None else f"{rate / ceiling:.0%}",
        "GB": "" if found.peak_bytes is None else f"{found.peak_bytes / GB:.2f}",
        "launches": f"{found.launches}",
        "operators": "" if found.launches is None else f"{found.launches}",
        "graphs": "" if found.graphs is None else f"{found.graphs}",
    }
    return [row[column] for column in columns(setting)]


def print_image_share(times: dict[tuple[str, str], float], num_frames: int) -> None:
    """What an image costs of what a clip does, of each model that takes both."""
    for name in MODELS:
        if (name, "images") in times and (name, "clips") in times:
            share = times[name, "images"] / times[name, "clips"]
            print(f"\n{name}: an image takes {share:.1%} of a clip's time; 1/T is {1 / num_frames:.1%}.")


# ---- Peak memory of a process ----


def resident_memory(key: str) -> int:
    """Bytes of this process's memory, by a key of /proc/self/status: VmRSS (now) or VmHWM (the peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def peak_memory(name: str, preset: str, device: str) -> float:
    """MiB of a forward pass of one clip at high resolution, weights included; run in a process of its own.

    On a CPU it is by how much the process's resident memory has grown since before the model was made.
    """
    before = resident_memory("VmRSS")
    dtype = Setting(preset=preset, device=device, rows=1).dtype
    model = build(name, preset, "high", device, dtype).eval()
    num_frames, size = PRESETS[preset]["high"]
    pixel_values = torch.randn(1, num_frames, 3, size, size, device=device, dtype=dtype)
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


def compare_peak_memory(setting: Setting) -> None:
    num_frames, size = PRESETS[setting.preset]["high"]
    measure = partial(measure_peak_memory, preset=setting.preset, device=setting.device)
    peaks = {name: measure(name) for name in bar((OURS, TIMESFORMER), desc="peak memory", leave=False)}
    rows = [[name, f"{peak:.4g}", f"{peak / peaks[TIMESFORMER]:.2f}"] for name, peak in peaks.items()]
    print_table(["model", "MiB", "x"], rows, f"Peak memory of a forward pass of one clip, {num_frames}x{size}x{size}")


# ---- The command ----


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="base")
    parser.add_argument("--batch_size", type=int, help="rows; 2, and 8 on a GPU if the preset is not large")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="by default, on a GPU")
    parser.add_argument("--peak_memory_of", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.batch_size is None:
        parsed.batch_size = PRESETS[parsed.preset]["rows"][parsed.device]
    if parsed.compile is None:
        parsed.compile = parsed.device == "cuda"
    for name in ("rounds", "batch_size"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(parsed, name)}")
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    return parsed


@told
def main() -> None:
    arguments = parse_arguments()
    logging.set_verbosity_error()
    preset, device = arguments.preset, arguments.device
    if arguments.peak_memory_of:
        print(json.dumps(peak_memory(arguments.peak_memory_of, preset, device)))
        return

    torch.manual_seed(0)
    setting = Setting(preset=preset, device=device, rows=arguments.batch_size, compiles=arguments.compile)
    processor = (
        torch.cuda.get_device_name() if device == "cuda" else f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{preset}, {processor}, {setting.dtype}, batch of {setting.rows}, {versions}")

    num_frames, size = PRESETS[preset]["standard"]
    clip = f"{num_frames}x{size}x{size}"
    times = compare(f"Forward, {clip}", setting, False, arguments.rounds)
    print_image_share(times, num_frames)
    compare(f"Training step, {clip}", setting, True, arguments.rounds)
    compare_peak_memory(setting)


if __name__ == "__main__":
    sys.exit(main())
