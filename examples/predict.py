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
"""Predict the classes of videos (or images) with every head of a checkpoint.

    python examples/predict.py VIDEO... --model outputs/quickstart [--head k400 ...] [--top_k 5] [--json]

Prints a table for each file, or with `--json` one JSON list of `{"file": ..., "heads": {head: [{"label": ..., "score":
...}, ...]}}`. A file that cannot be read is reported (with `--json` as `{"file": ..., "error": ...}`), the others are
predicted all the same, and the exit code is 1.
"""

import argparse
import json
import sys

import torch
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor, VideoDecodingError
from transformers import AutoModelForVideoClassification, AutoVideoProcessor


Predictions = dict[str, list[dict[str, str | float]]]


def head_scores(model: CoverForVideoClassification, head: str, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities (labels,) from the logits (views, labels) of one file's views, averaged over the views."""
    multi_label = model.config.heads[head]["problem_type"] == "multi_label_classification"
    return (logits.sigmoid() if multi_label else logits.softmax(dim=-1)).mean(dim=0)


@torch.inference_mode()
def predict(
    model: CoverForVideoClassification,
    processor: CoverVideoProcessor,
    file: str,
    heads: list[str],
    top_k: int = 5,
    num_spatial_crops: int = 1,
) -> Predictions:
    """The `top_k` most probable labels of `file` for each of `heads`.

    Raises:
        VideoDecodingError: if the file cannot be read.
    """
    clips = processor(file, num_spatial_crops=num_spatial_crops, return_tensors="pt")["pixel_values"]
    logits = model(clips.to(model.device)).head_logits
    predictions = {}
    for head in heads:
        scores = head_scores(model, head, logits[head].float())
        best = scores.topk(min(top_k, len(scores)))
        labels = model.config.heads[head]["labels"]
        predictions[head] = [
            {"label": labels[index], "score": score}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    return predictions


def print_table(file: str, predictions: Predictions) -> None:
    print(file)
    for head, classes in predictions.items():
        for rank, entry in enumerate(classes):
            print(f"  {head if rank == 0 else '':<16} {100 * entry['score']:5.1f}%  {entry['label']}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="VIDEO", help="a video or image: a path or an http(s) URL")
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--head", nargs="+", help="the heads to answer; default: all")
    parser.add_argument("--top_k", type=int, default=5, help="classes for each head")
    parser.add_argument("--num_spatial_crops", type=int, default=1, choices=(1, 3), help="3: the paper's views")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print JSON rather than tables")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    model = AutoModelForVideoClassification.from_pretrained(arguments.model).eval().to(arguments.device)
    processor = AutoVideoProcessor.from_pretrained(arguments.model)
    heads = arguments.head or model.config.head_names
    for head in heads:
        model.config.get_head(head)
    results, failed = [], False
    for file in arguments.files:
        try:
            predictions = predict(model, processor, file, heads, arguments.top_k, arguments.num_spatial_crops)
        except VideoDecodingError as error:
            failed = True
            results.append({"file": file, "error": str(error)})
            print(error, file=sys.stderr)
            continue
        results.append({"file": file, "heads": predictions})
        if not arguments.json:
            print_table(file, predictions)
    if arguments.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
