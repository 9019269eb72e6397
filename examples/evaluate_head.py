# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Evaluate one head of a checkpoint on its data set, and draw which classes it takes for which.

    python examples/evaluate_head.py --model outputs/quickstart --recipe examples/recipes/quickstart.yaml --head motions

Writes into `--output`: confusion_<head>.png, per_class_accuracy_<head>.png, and evaluation_<head>.json with top-1, top-5, and the
accuracy and rows of each class; of a head with several labels a row, per_class_average_precision_<head>.png and no confusion matrix.
Files that cannot be decoded are listed in quarantine.jsonl there, and count neither for nor against the model.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from modeling_cover import (
    CoverForVideoClassification,
    CoverVideoProcessor,
    EvaluationDataset,
    collate_clips,
    load_recipe,
)
from modeling_cover.evaluation.metrics import average_precision, compute_metrics, metric_inputs, readable_rows
from modeling_cover.evaluation.pictures import confusion_matrix, draw_confusion_matrix, draw_scores_of_classes
from modeling_cover.quarantine import Quarantine
from modeling_cover.recipe import Recipe
from modeling_cover.sources import Source, read_sources
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForVideoClassification, AutoVideoProcessor, EvalPrediction


def source_of_head(recipe: Recipe, model: CoverForVideoClassification, head: str, split: str) -> Source:
    """The split of the data set that the head is of, with the head's labels.

    Raises:
        ValueError: if the model has no such head, the recipe no such data set, or that no such split.
    """
    labels = model.config.get_head(head)["labels"]
    dataset = next((dataset for dataset in recipe.datasets if dataset.name == head), None)
    if dataset is None:
        raise ValueError(f"the recipe has no data set '{head}', but {[dataset.name for dataset in recipe.datasets]}")
    splits = read_sources(dataset, head_labels=labels)
    if split not in splits:
        raise ValueError(f"dataset '{head}' has no split '{split}', but {sorted(splits)}")
    return splits[split]


@torch.inference_mode()
def logits_and_targets(
    model: CoverForVideoClassification,
    processor: CoverVideoProcessor,
    dataset: EvaluationDataset,
    batch_size: int,
    num_workers: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, labels) and targets, (rows,) or (rows, labels), of a data set in order."""
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=collate_clips)
    logits, targets = [], []
    for batch in tqdm(loader, desc=dataset.source.name, unit="batch"):
        clips = processor.normalize_pixels(batch["pixel_values"].to(model.device))
        logits.append(model(clips, head=batch["head"]).logits.float().cpu())
        targets.append(batch["labels"])
    return torch.cat(logits).numpy(), torch.cat(targets).numpy()


def write_evaluation(logits: np.ndarray, targets: np.ndarray, labels: list[str], head: str, output: Path) -> dict:
    """Draw the pictures, write the figures, and return them."""
    inputs = metric_inputs(torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
    figures = {"head": head, "rows": len(targets), **compute_metrics(EvalPrediction(inputs, targets))}
    readable = readable_rows(targets)
    logits, targets = logits[readable], targets[readable]
    if targets.ndim == 2:
        measure, has_label = "average precision", targets > 0.5
        rows = has_label.sum(axis=0)
        scores = np.array(
            [
                average_precision(logits[:, label], has_label[:, label]) if count else 0.0
                for label, count in enumerate(rows)
            ]
        )
    else:
        measure = "accuracy"
        counts = confusion_matrix(targets, logits.argmax(axis=1), len(labels))
        rows = counts.sum(axis=1)
        scores = counts.diagonal() / np.maximum(rows, 1)
        title = f"{head}: top-1 {figures['top1']:.1%} of {len(targets)}"
        draw_confusion_matrix(counts, labels, title, output / f"confusion_{head}.png")
        figures["confusion"] = counts.tolist()
    name = measure.replace(" ", "_")
    draw_scores_of_classes(scores, rows, labels, head, measure, output / f"per_class_{name}_{head}.png")
    figures["classes"] = [
        {"label": label, name: float(score) if count else None, "rows": int(count)}
        for label, score, count in zip(labels, scores, rows, strict=True)
    ]
    (output / f"evaluation_{head}.json").write_text(
        json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    return figures


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--recipe", type=Path, required=True, help="where the data are")
    parser.add_argument("--head", required=True, help="which is also the data set's name in the recipe")
    parser.add_argument("--split", default="validation")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/evaluation"), help="the folder of what is written"
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=1, help="processes that decode")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    head, output = arguments.head, arguments.output
    model = AutoModelForVideoClassification.from_pretrained(arguments.model).eval().to(arguments.device)
    processor = AutoVideoProcessor.from_pretrained(arguments.model)
    try:
        recipe = load_recipe(arguments.recipe)
        source = source_of_head(recipe, model, head, arguments.split)
        output.mkdir(parents=True, exist_ok=True)
        quarantine = Quarantine(output / "quarantine.jsonl", recipe.bad_files.max_share)
        dataset = EvaluationDataset(source, processor, quarantine)
        logits, targets = logits_and_targets(model, processor, dataset, arguments.batch_size, arguments.num_workers)
        figures = write_evaluation(logits, targets, model.config.heads[head]["labels"], head, output)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    shown = {key: figures[key] for key in ("rows", "unreadable", "top1", "top5", "map") if key in figures}
    print(*(f"{key} {value:.4g}" for key, value in shown.items()), f"pictures in {output}", sep=", ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
