# SPDX-License-Identifier: Apache-2.0
"""Measure what cached features save: a head trained through the frozen encoder, and the same head on its features.

    make quickstart
    python examples/benchmark_probe.py --model outputs/quickstart [--dataset shapes] [--steps 450]

Both runs train a new head on the train split of a dataset of the quickstart, with the same initial weights, the same
AdamW, as many rows a step and as many steps. Both see the centre crop, so that the rows are the same. Prints the time
of a step of each, without and with its share of the one pass that computes the features. Also prints the top-1 of both
heads on the validation split, and that of probe.py's solution.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor, collate_clips, load_recipe
from modeling_cover.data.sources import read_sources
from modeling_cover.evaluation.probes import choose_l2, fit_linear
from modeling_cover.evaluation.running import extract_features
from modeling_cover.evaluation.views import ViewsDataset
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from tqdm import tqdm


LEARNING_RATE, ROWS = 1e-2, 16


def batches(num_rows: int, num_steps: int, seed: int) -> Iterator[list[int]]:
    """Rows of each step; each row once in an epoch."""
    rng, order = np.random.default_rng(seed), np.empty(0, dtype=np.int64)
    for _ in range(num_steps):
        if len(order) < ROWS:
            order = rng.permutation(num_rows)
        yield order[:ROWS].tolist()
        order = order[ROWS:]


def new_head(hidden_size: int, num_classes: int, seed: int) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(hidden_size, num_classes)


def train_through_encoder(
    model: CoverForVideoClassification, dataset: ViewsDataset, num_steps: int, seed: int
) -> tuple[torch.nn.Linear, float]:
    """The head, and the seconds of a step."""
    head = new_head(model.config.hidden_size, len(dataset.source.labels), seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE)
    rows = list(batches(len(dataset), num_steps, seed))
    loader = DataLoader(dataset, batch_sampler=rows, num_workers=1, collate_fn=collate_clips)
    started = time.perf_counter()
    for batch in tqdm(loader, desc="through the encoder", leave=False):
        clips = dataset.processor.normalize_pixels(batch["pixel_values"].flatten(0, 1))
        with torch.no_grad():
            features = model.cover(clips).pooler_output
        cross_entropy(head(features), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return head, (time.perf_counter() - started) / num_steps


def train_on_features(
    features: torch.Tensor, targets: torch.Tensor, num_classes: int, num_steps: int, seed: int
) -> tuple[torch.nn.Linear, float]:
    """The head, and the seconds of a step."""
    head = new_head(features.shape[1], num_classes, seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE)
    started = time.perf_counter()
    for rows in batches(len(features), num_steps, seed):
        cross_entropy(head(features[rows]), targets[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return head, (time.perf_counter() - started) / num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/quickstart")
    parser.add_argument("--recipe", type=Path, default=Path("examples/recipes/quickstart.yaml"))
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument(
        "--steps",
        type=int,
        default=450,
        help="number of steps, of 16 rows each; default: five epochs of the quickstart's",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the loader's worker has the second core
    model = CoverForVideoClassification.from_pretrained(options.model).eval()
    processor = CoverVideoProcessor.from_pretrained(options.model)
    (recipe,) = [dataset for dataset in load_recipe(options.recipe).datasets if dataset.name == options.dataset]
    splits = {name: ViewsDataset(source, processor) for name, source in read_sources(recipe).items()}
    num_classes = len(splits["train"].source.labels)

    extracted = {name: extract_features(model, split, num_workers=1) for name, split in splits.items()}
    (features, targets), (validation, expected) = (
        map(torch.from_numpy, (extracted[name].outputs, extracted[name].targets)) for name in ("train", "validation")
    )
    slow_head, slow = train_through_encoder(model, splits["train"], options.steps, options.seed)
    fast_head, fast = train_on_features(features, targets, num_classes, options.steps, options.seed)
    shared = fast + extracted["train"].seconds / options.steps
    started = time.perf_counter()
    probe = fit_linear(features, targets, num_classes, choose_l2(features, targets, num_classes))
    solved = time.perf_counter() - started

    def top1(head: torch.nn.Linear) -> str:
        return f"{(head(validation).argmax(dim=1) == expected).float().mean():.1%} of {len(expected)}"

    print(f"{options.steps} steps of {ROWS} rows, {len(features)} rows of {options.dataset}:")
    print(f"through the encoder: {1000 * slow:.2f} ms a step, top-1 {top1(slow_head)}")
    print(
        f"on cached features:  {1000 * fast:.2f} ms a step, {slow / fast:.0f} times as fast, top-1 {top1(fast_head)}"
    )
    print(
        f"                     {1000 * shared:.2f} ms with the pass over the data, {slow / shared:.1f} times as fast"
    )
    print(f"probe.py's solution: {solved:.1f} s in all, top-1 {top1(probe)}")


if __name__ == "__main__":
    main()
