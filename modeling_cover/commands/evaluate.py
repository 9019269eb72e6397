# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint on all datasets of a recipe, or on some of them, as the paper does: by the mean of 1x3 views.

    cover evaluate --model outputs/quickstart --recipe RECIPE
    cover evaluate --model ORG/NAME --recipe RECIPE --views 4x3 --reverse_frames

The recipe says where the data are. Each dataset is evaluated with the head of its name. Prints a table, and writes
evaluation.json, confusion_<dataset>.png and per_class_accuracy_<dataset>.png into `--output`. With several labels per
row, it writes per_class_average_precision_<dataset>.png and no confusion matrix. A plot that cannot be drawn is named
on stderr with the reason. The metrics are written before, and the exit code depends on them alone. Brackets are 95%
bootstrap intervals. Files that cannot be decoded are listed in quarantine.jsonl there, and count neither for nor
against the model. It stops if there are more of them than the recipe's `bad_files` allows.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from .. import load_recipe
from ..data.quarantine import Quarantine
from ..evaluation.checkpoint_scores import (
    chosen_datasets,
    load_checkpoint,
    source_of_head,
    table_of_scores,
)
from ..evaluation.plots import draw_confusion_matrix, draw_scores_of_classes
from ..evaluation.running import score_rows
from ..evaluation.scores import evaluate_scores
from ..evaluation.views import Views, ViewsDataset, resized_processor
from ..files import write_json
from ..fonts import told_if_not_drawn
from ..text import make_printable
from ..training.launching import check_processes
from .failing import command_parser, told


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--recipe", type=Path, required=True, help="where the data are")
    parser.add_argument(
        "--dataset", action="append", help="a dataset of the recipe, may be repeated; default: all that have the split"
    )
    parser.add_argument("--head", help="the head for one --dataset; default: the head of its name")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--views", default="1x3", help="temporal x spatial views of a row; default: the paper's 1x3")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--reverse_frames", action="store_true", help="play each clip backwards (Table 2 of the paper)")
    order.add_argument("--shuffle_frames", action="store_true", help="show the frames of each clip in a random order")
    parser.add_argument("--num_frames", type=int, help="frames of a clip; default: as in training")
    parser.add_argument("--image_size", type=int, help="side of the crop, in pixels; default: as in training")
    parser.add_argument("--output", type=Path, default=Path("outputs/evaluation"), help="the folder for the results")
    parser.add_argument(
        "--batch_size", type=int, default=8, help="rows that go through the model at once, per process"
    )
    parser.add_argument("--num_workers", type=int, default=1, help="decoding processes, per process")
    parser.add_argument("--num_resamples", type=int, default=1000, help="number of bootstrap resamples")
    parser.add_argument("--seed", type=int, default=0, help="the seed of shuffled frames and of the bootstrap")
    options = parser.parse_args(arguments)
    options.frame_order = "reversed" if options.reverse_frames else "shuffled" if options.shuffle_frames else "forward"
    return options


def draw(metrics: dict[str, Any], name: str, output: Path) -> None:
    """The pictures of one dataset."""
    classes = metrics["classes"]
    labels, rows = [entry["label"] for entry in classes], np.array([entry["rows"] for entry in classes])
    measure = "accuracy" if "confusion" in metrics else "average_precision"
    if "confusion" in metrics:
        title = f"{name}: top-1 {metrics['top1']:.1%} of {rows.sum()}"
        path = output / f"confusion_{name}.png"
        with told_if_not_drawn(path):
            draw_confusion_matrix(np.array(metrics["confusion"]), labels, title, path)
    if not rows.any():  # of several labels a row, none may have one
        return
    values = np.array([entry[measure] or 0.0 for entry in classes])
    path = output / f"per_class_{measure}_{name}.png"
    with told_if_not_drawn(path):
        draw_scores_of_classes(values, rows, labels, name, measure.replace("_", " "), path)


def evaluate(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """Evaluate each dataset, on all processes; the main one writes evaluation.json, draws the pictures and returns its
    content."""
    check_processes(accelerator.num_processes)
    views, output = Views.parse(options.views), options.output
    recipe = load_recipe(options.recipe)
    datasets = chosen_datasets(recipe, options.dataset, options.split)
    if options.head is not None and len(datasets) != 1:
        raise ValueError(f"--head is of one --dataset, got {', '.join(dataset.name for dataset in datasets)}")
    model, processor = load_checkpoint(options.model, accelerator.device)
    processor = resized_processor(processor, options.num_frames, options.image_size)
    heads = {dataset.name: options.head or dataset.name for dataset in datasets}
    sources = [source_of_head(model, dataset, heads[dataset.name], options.split) for dataset in datasets]
    quarantine = Quarantine(output / "quarantine.jsonl", recipe.bad_files.max_share)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        quarantine.clear(options.split)
    accelerator.wait_for_everyone()
    how = views, options.frame_order, options.seed, options.split
    evaluated = [ViewsDataset(source, processor, quarantine, *how) for source in sources]
    scored = [
        score_rows(model, dataset, heads[dataset.source.name], accelerator, options.batch_size, options.num_workers)
        for dataset in evaluated
    ]
    if not accelerator.is_main_process:
        return {}
    evaluations = {}
    # Now that no process waits for this one any more: the bootstrap of many labels takes minutes.
    for dataset, rows in zip(evaluated, scored, strict=True):
        name, labels = dataset.source.name, dataset.source.labels
        metrics = evaluate_scores(rows.outputs, rows.targets, labels, options.num_resamples, options.seed)
        about = {"head": heads[name], "views": str(dataset.views), "rows_per_second": len(dataset) / rows.seconds}
        evaluations[name] = about | metrics
    written = {
        "model": options.model,
        "split": options.split,
        "frame_order": options.frame_order,
        "num_frames": processor.num_frames,
        "image_size": processor.crop_size["height"],
        "processes": accelerator.num_processes,
        "seed": options.seed,
        "datasets": evaluations,
    }
    write_json(output / "evaluation.json", written, indent=1)
    for name, metrics in evaluations.items():
        draw(metrics, name, output)
    return written


@told
def main(arguments: Sequence[str] | None = None) -> int:
    make_printable()
    options, accelerator = parse_arguments(arguments), Accelerator()
    written = evaluate(options, accelerator)
    if accelerator.is_main_process:
        print(table_of_scores(written["datasets"]), f"pictures and evaluation.json in {options.output}", sep="\n")
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main())
