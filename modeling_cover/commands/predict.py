# SPDX-License-Identifier: Apache-2.0
"""Predict the classes of videos (or images) with every head of a checkpoint.

    cover predict VIDEO... --model outputs/quickstart [--head k400 ...] [--top_k 5] [--json]
    cover predict FILM --model outputs/quickstart --window 4 [--stride 2]

Prints a table for each file, or with `--json` one JSON list of `{"file": ..., "heads": {head: [{"label": ..., "score":
...}, ...]}}`. With `--window`, each entry has its "start" and "end" in seconds. Heads that the checkpoint's last run
did not train, while it trained the encoder, are marked as stale (with `--json` as `"stale": [head, ...]`). A file that
cannot be read is reported (with `--json` as `{"file": ..., "error": ...}`). The other files are still predicted, and
the exit code is 1.
"""

import argparse
import json
import sys
from collections.abc import Collection

import torch
from transformers import pipeline

from .. import VideoDecodingError
from ..files import finite
from ..hub.run_record import stale_heads_note, stale_heads_of
from ..model.configuration_cover import PIPELINE_TASK
from ..text import make_printable, padded, printable
from .failing import command_parser, told


Predictions = dict[str, list[dict[str, str | float]]]


def print_table(file: str, predictions: Predictions, stale: Collection[str] = ()) -> None:
    print(printable(file))
    for head, entries in predictions.items():
        name, shown = f"{head} (stale)" if head in stale else head, None
        for entry in entries:
            window = f"{entry['start']:6.1f} to {entry['end']:.1f} s" if "start" in entry else None
            time = "" if window is None else f"{window if window != shown else '':<18}"
            print(f"  {padded(name, 16)} {time}{100 * entry['score']:5.1f}%  {printable(entry['label'])}")
            name, shown = "", window


def parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="VIDEO", help="a video or image: a path or an http(s) URL")
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--revision", help="a branch, tag or commit of the model on the Hub")
    parser.add_argument("--head", nargs="+", help="the heads to answer; default: all")
    parser.add_argument("--top_k", type=int, help="number of classes per head; default: 5, or 1 per window")
    parser.add_argument("--threshold", type=float, help="only classes with at least this score, from 0 to 1")
    parser.add_argument(
        "--views", type=int, choices=(1, 3), help="spatial crops to average over; 3: the paper's views"
    )
    parser.add_argument("--num_clips", type=int, help="temporal clips to average over")
    parser.add_argument("--window", type=float, help="seconds: classify windows of the video, one after the other")
    parser.add_argument("--stride", type=float, help="seconds from one window to the next; default: --window")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the model, by default as it is stored; bfloat16 is faster on a GPU, or a CPU with instructions for it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON rather than tables")
    return parser.parse_args()


@told
def main() -> int:
    make_printable()
    arguments = parse_arguments()
    source = {"model": arguments.model, "revision": arguments.revision}
    classify = pipeline(PIPELINE_TASK, **source, device=arguments.device, dtype=arguments.dtype)
    names = ("top_k", "threshold", "views", "num_clips", "window", "stride")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    heads = arguments.head or classify.model.config.head_names
    stale = [head for head in stale_heads_of(**source, config=classify.model.config) if head in heads]
    if stale:
        print(stale_heads_note(stale), file=sys.stderr)
    results, failed = [], False
    for file in arguments.files:
        try:
            predictions = classify(file, head=heads, **options)
        except VideoDecodingError as error:
            failed = True
            results.append({"file": file, "error": str(error)})
            print(error, file=sys.stderr)
            continue
        results.append({"file": file, "heads": predictions, **({"stale": stale} if stale else {})})
        if not arguments.json:
            print_table(file, predictions, stale)
    if arguments.json:
        # What the terminal's encoding lacks is escaped as JSON has it.
        is_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
        print(json.dumps(finite(results), indent=2, ensure_ascii=not is_unicode, allow_nan=False))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
