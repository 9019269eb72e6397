# SPDX-License-Identifier: Apache-2.0
"""Compare the speed of exported programs with the model's, in one run.

    python examples/benchmark_export.py [--rounds 5] [--model outputs/quickstart]

Without `--model`, it uses the Base architecture with random weights. Times are medians over rounds in which the
programs take turns, on the CPU in fp32. torch and onnxruntime each use their usual threads. The inputs are a clip and
an image of the usual size. About 3 minutes on 2 CPU cores.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from modeling_cover import CoverConfig, CoverForVideoClassification, CoverVideoProcessor
from modeling_cover.commands.benchmarking import forward, median_times, report
from modeling_cover.hub.exporting import onnx_runner, save_program


NUM_LABELS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="a folder or Hub id of a CoVeR checkpoint")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.model is None:
        model = CoverForVideoClassification(CoverConfig(num_labels=NUM_LABELS)).eval()
    else:
        model = CoverForVideoClassification.from_pretrained(arguments.model, dtype=torch.float32).eval()
    config = model.config
    height, width = (
        grid * patch
        for grid, patch in zip(model.cover.embeddings.grid, model.cover.embeddings.patch_size, strict=True)
    )
    print(
        f"CPU, {torch.get_num_threads()} threads, fp32, {sum(map(torch.numel, model.parameters())) / 1e6:.1f} M parameters"
    )
    with tempfile.TemporaryDirectory() as folder:
        differences = {}
        for suffix in (".pt2", ".onnx"):
            differences[suffix] = save_program(Path(folder) / f"program{suffix}", model, CoverVideoProcessor())
        programs = {
            "the model": model,
            "torch.export": torch.export.load(Path(folder) / "program.pt2").module(),
            "onnxruntime": onnx_runner(Path(folder) / "program.onnx"),
        }
        for num_frames in (config.num_frames, 1):
            clip = torch.randn(1, num_frames, config.num_channels, height, width)
            runs = {name: forward(program, clip) for name, program in programs.items()}
            times = median_times(runs, arguments.rounds)
            report(f"{num_frames}x{height}x{width}", times, "s", "the model")
    print(
        "\nlargest difference of an output:", ", ".join(f"{value:.1e} ({name})" for name, value in differences.items())
    )


if __name__ == "__main__":
    main()
