# SPDX-License-Identifier: Apache-2.0
"""See what an encoder knows about a dataset without training it: nearest neighbours and a linear classifier on its
features.

    cover probe --model outputs/quickstart --recipe RECIPE --dataset gestures [--save OUTPUT]

Features of both splits are computed once and kept in `--output`, so the next probe of the same encoder takes seconds.
The linear classifier is the solution of a convex problem. A fifth of the training rows chooses its L2 strength, and
the validation split chooses nothing. `--save` writes a checkpoint that has the classifier as a head. It also runs
under `accelerate launch`, on as many processes as there are.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from .. import CoverForVideoClassification, CoverVideoProcessor, load_recipe
from ..data.quarantine import Quarantine
from ..data.sources import Source, read_sources
from ..evaluation.checkpoint_scores import (
    chosen_datasets,
    load_checkpoint,
    table_of_scores,
)
from ..evaluation.feature_cache import cached_features, features_identity, without_unreadable
from ..evaluation.probes import choose_l2, fit_linear, nearest_neighbour_scores
from ..evaluation.running import RowOutputs, extract_features
from ..evaluation.scores import evaluate_scores
from ..evaluation.views import Views, ViewsDataset
from ..files import write_json
from ..text import make_printable
from .failing import command_parser, told


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--recipe", type=Path, required=True, help="where the data are")
    parser.add_argument(
        "--dataset", required=True, help="a dataset of the recipe, with a train and a validation split"
    )
    parser.add_argument(
        "--views", default="1x1", help="views whose features are averaged, temporal x spatial; default: 1x1"
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="write the checkpoint with the linear classifier as a head"
    )
    parser.add_argument("--head", help="the name of that head; default: the dataset's")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/probe"), help="the folder for features and metrics"
    )
    parser.add_argument(
        "--batch_size", type=int, default=8, help="rows that go through the encoder at once, per process"
    )
    parser.add_argument("--num_workers", type=int, default=1, help="decoding processes, per process")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the held-out rows and of the bootstrap")
    return parser.parse_args(arguments)


def read_both_splits(options: argparse.Namespace) -> tuple[dict[str, Source], float]:
    """The train and the validation split, and the share of bad files that the recipe allows.

    Raises:
        ValueError: if there is no such dataset, it lacks a split, or is streamed.
    """
    recipe = load_recipe(options.recipe)
    (dataset,) = chosen_datasets(recipe, [options.dataset], "validation")
    sources = read_sources(dataset)
    for split in ("train", "validation"):
        if split not in sources:
            raise ValueError(f"dataset '{dataset.name}': a probe needs a {split} split, there is {', '.join(sources)}")
        if not isinstance(sources[split], Source):
            raise ValueError(f"dataset '{dataset.name}': its {split} split is streamed, and cannot be read in order")
    return sources, recipe.bad_files.max_share


def probe(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, dict]:
    """The metrics of each probe, on the main process; and the checkpoint, if it is asked for."""
    views, head = Views.parse(options.views), options.head or options.dataset
    sources, max_share = read_both_splits(options)
    model, processor = load_checkpoint(options.model, accelerator.device)
    if options.save is not None and head in model.config.heads:
        raise ValueError(f"--save: the model has a head '{head}' already, give another name by --head")
    split_features = {}
    for split, source in sources.items():
        # Of a split its own, since a row may be of both.
        quarantine = Quarantine(options.output / f"quarantine_{source.name}_{split}.jsonl", max_share)
        dataset = ViewsDataset(source, processor, quarantine, views, split=split)
        compute = partial(computed_features, model, dataset, accelerator, options)
        path = options.output / f"features_{source.name}_{split}.safetensors"
        split_features[split] = cached_features(path, features_identity(model, dataset), compute, accelerator)
    if not accelerator.is_main_process:
        return {}
    metrics, classifier = fit_and_score(split_features, sources["train"].labels, accelerator.device, options.seed)
    written = {"model": options.model, "views": str(views), **metrics}
    write_json(options.output / f"probe_{options.dataset}.json", written, indent=1)
    if options.save is not None:
        save_with_head(model, processor, head, sources["train"], classifier, options.save)
    return metrics


def computed_features(
    model: CoverForVideoClassification, dataset: ViewsDataset, accelerator: Accelerator, options: argparse.Namespace
) -> RowOutputs:
    """Features of files that may have been mended since the last time."""
    if accelerator.is_main_process:
        dataset.quarantine.clear()
    accelerator.wait_for_everyone()
    return extract_features(model, dataset, accelerator, options.batch_size, options.num_workers)


def fit_and_score(
    split_features: dict[str, RowOutputs], labels: list[str], device: torch.device, seed: int
) -> tuple[dict[str, dict], torch.nn.Linear]:
    features, targets = (torch.from_numpy(part).to(device) for part in without_unreadable(split_features["train"]))
    evaluated = split_features["validation"]
    validation = torch.from_numpy(evaluated.outputs).to(device)
    l2 = choose_l2(features, targets, len(labels), seed=seed)
    classifier = fit_linear(features, targets, len(labels), l2)
    logits = classifier(validation)
    scores = {
        "nearest neighbours": nearest_neighbour_scores(features, targets, validation, len(labels)),
        "linear": logits.softmax(dim=-1) if targets.ndim == 1 else logits.sigmoid(),
    }
    metrics = {
        name: evaluate_scores(of_rows.cpu().numpy(), evaluated.targets, labels, seed=seed)
        for name, of_rows in scores.items()
    }
    metrics["linear"]["l2"] = l2
    return metrics, classifier


def save_with_head(
    model: CoverForVideoClassification,
    processor: CoverVideoProcessor,
    head: str,
    source: Source,
    classifier: torch.nn.Linear,
    folder: Path,
) -> None:
    model.add_head(head, labels=source.labels, modality=source.modality, problem_type=source.problem_type)
    model.classifiers[head].load_state_dict(classifier.state_dict())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@told
def main(arguments: Sequence[str] | None = None) -> int:
    make_printable()
    options, accelerator = parse_arguments(arguments), Accelerator()
    metrics = probe(options, accelerator)
    if accelerator.is_main_process:
        print(
            table_of_scores(metrics, "probe"),
            f"features and probe_{options.dataset}.json in {options.output}",
            sep="\n",
        )
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main())
