# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as a program that runs without this package, for onnxruntime (.onnx) or from torch.export (.pt2).

    cover export --model outputs/quickstart --output outputs/quickstart.onnx [--head motions]

Batch, frames, height and width stay free, as far as the encoder has them free. The file is compared with the model on
images and clips of other shapes. If an output differs by more than 1e-4, there is no file. An .onnx needs `pip install
modeling-cover[onnx]`. How to use the file: docs/exporting.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import CoverForVideoClassification, CoverVideoProcessor
from ..hub.exporting import file_size, save_program
from ..text import make_printable
from .failing import command_parser, told


@told
def main(arguments: Sequence[str] | None = None) -> int:
    make_printable()
    parser = command_parser(__doc__)
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--output", required=True, type=Path, help="the file: .onnx or .pt2")
    parser.add_argument(
        "--head", action="append", help="a head to output logits for, may be repeated; default: all heads"
    )
    options = parser.parse_args(arguments)
    model = CoverForVideoClassification.from_pretrained(options.model, dtype=torch.float32).eval()
    processor = CoverVideoProcessor.from_pretrained(options.model)
    difference = save_program(options.output, model, processor, options.head)
    size = file_size(options.output) / 1e6
    print(f"{options.output}: {size:.1f} MB, differs from the model by {difference:.1e} at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
