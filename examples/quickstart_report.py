# SPDX-License-Identifier: Apache-2.0
"""Report what the quickstart's checkpoint has learnt: accuracy of each head, forwards and backwards, and one
prediction.

    python examples/quickstart_report.py

Takes seconds, after `accelerate launch examples/cotrain.py`. Played backwards, a clip of "moving left" is one of
"moving right". A model that sees motion is wrong on all of them. A model that sees only what is in the frames would
not notice (as in Table 2 of the paper, where SSv2 falls and K400 does not). Ends with an error if a head is not far
above chance, or if `motions` is not near chance backwards.
"""

import argparse
import sys

import transformers
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.evaluation.running import score_rows
from modeling_cover.evaluation.views import ViewsDataset
from modeling_cover.recipe.recipe import load_recipe
from modeling_cover.text import make_printable, printable, table
from quickstart_data import QUICKSTART


def top1(
    model: CoverForVideoClassification, source: Source, processor: CoverVideoProcessor, frame_order: str
) -> float:
    scored = score_rows(model, ViewsDataset(source, processor, frame_order=frame_order), batch_size=64)
    return float((scored.outputs.argmax(axis=1) == scored.targets).mean())


def main() -> None:
    make_printable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/quickstart")
    arguments = parser.parse_args()

    model = CoverForVideoClassification.from_pretrained(arguments.model).eval()
    processor = CoverVideoProcessor.from_pretrained(arguments.model)
    rows, failed = [["head", "classes", "chance", "top-1", "top-1, frames reversed"]], []
    for dataset in load_recipe(QUICKSTART).datasets:
        source = read_sources(dataset, model.config.heads[dataset.name]["labels"])["validation"]
        forwards, chance = top1(model, source, processor, "forward"), 1 / len(source.labels)
        backwards = top1(model, source, processor, "reversed") if source.modality == "video" else None
        if forwards < 4 * chance or (dataset.name == "motions" and backwards > 1.5 * chance):
            failed.append(dataset.name)
        cells = ["-" if share is None else f"{share:.1%}" for share in (chance, forwards, backwards)]
        rows.append([dataset.name, str(len(source.labels)), *cells])
        if dataset.name == model.config.default_head:
            example, label = source.media[0].content, source.labels[source.target(0)]
    print(table(rows))

    classify = transformers.pipeline("video-classification", model=arguments.model)
    print(f"\ntransformers' own pipeline on {printable(str(example))} ({printable(label)}):")
    for entry in classify(example, top_k=3):
        print(f"  {entry['score']:6.1%}  {printable(entry['label'])}")
    if failed:
        sys.exit(f"not learnt as it should be: {', '.join(failed)}")


if __name__ == "__main__":
    main()
