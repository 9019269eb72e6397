# SPDX-License-Identifier: Apache-2.0
"""Turn a dataset into a compact one, which holds only the frames that training samples: see docs/compact_data.md.

    cover prepare RECIPE.yaml --dataset NAME --output DIR [--num_frames 16] [--short_side 256]
    torchrun --nproc-per-node 1 --nnodes 4 ... -m modeling_cover.commands.prepare RECIPE.yaml --dataset ...

It runs on all cores, and docs/compact_data.md has the numbers. If it is killed, the same command continues where it
was. Under a launcher, each process takes its part of the shards. A file that cannot be read is left out and listed in
failures.jsonl. It ends with a report, and with the recipe entry that reads the result. The exit code is 1 if too many
files cannot be read, and 2 for a mistake in the recipe or a dataset that is not there.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from .. import Recipe, load_recipe
from ..dataset_tools.preparation import check_bad_share, prepare_dataset
from ..dataset_tools.preparation_report import report_text
from ..dataset_tools.prepared_rows import CODECS, PreparationSettings
from ..dataset_tools.row_pool import usable_cores
from ..recipe.checks import check_number
from ..recipe.dataset_recipe import DatasetRecipe
from ..text import make_printable
from .failing import command_parser, told


def parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("recipe", help="the YAML file with the dataset's entry")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="the entry's name")
    parser.add_argument("--output", required=True, metavar="DIR", help="where to write it")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="some of the entry's splits; default: all")
    parser.add_argument(
        "--num_frames", type=int, help="frames of a video; default: the recipe's. Recipes may read as many, or fewer"
    )
    parser.add_argument(
        "--short_side",
        type=int,
        help="short side in pixels; default: the recipe's, at its largest. Smaller files are not enlarged",
    )
    parser.add_argument("--codec", choices=CODECS, help="default: mjpeg for videos, jpeg for images")
    scales = ", ".join(f"{name} {codec.lowest} to {codec.highest} ({codec.default})" for name, codec in CODECS.items())
    parser.add_argument("--quality", type=int, help=f"on the codec's own scale (and its default): {scales}")
    parser.add_argument("--shard_size", type=int, default=1000, help="rows per shard")
    parser.add_argument("--num_workers", type=int, help="processes; default: one for each core")
    parser.add_argument("--max_bad_share", type=float, default=0.05, help="the share of files that may be left out")
    return parser.parse_args()


def number_from_launcher(name: str, default: int) -> int:
    """What torchrun and `accelerate launch` tell each process by an environment variable."""
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ValueError(f"the environment variable {name} must be a number, got {value!r}")
    return int(value)


def entry_of(recipe: Recipe, name: str) -> DatasetRecipe:
    datasets = {dataset.name: dataset for dataset in recipe.datasets}
    if name not in datasets:
        raise ValueError(f"--dataset: the recipe has {', '.join(datasets)}, not {name!r}")
    return datasets[name]


def settings_of(recipe: Recipe, dataset: DatasetRecipe, arguments: argparse.Namespace) -> PreparationSettings:
    """What the command line says, and for the rest what the recipe trains on."""
    names = ("num_frames", "short_side", "codec", "quality", "shard_size")
    given = {name: getattr(arguments, name) for name in names}
    if given["num_frames"] is None and dataset.modality == "video":
        given["num_frames"] = recipe.clips.num_frames
    if given["short_side"] is None:
        sides = recipe.augmentations[dataset.name].short_side_range or ()
        given["short_side"] = max([recipe.clips.short_side, *sides])
    return PreparationSettings(modality=dataset.modality, **given)


def entry_to_read(dataset: DatasetRecipe, folders: dict[str, str]) -> dict[str, Any]:
    """The entry of a recipe that reads the compact dataset, trained on as the original was."""
    entry = {"name": dataset.name, "format": "webdataset", "modality": dataset.modality, "splits": folders}
    defaults = DatasetRecipe(**entry)
    for key in ("weight", "share", "horizontal_flip", "augmentation", "problem_type", "head", "license"):
        if getattr(dataset, key) != getattr(defaults, key):
            entry[key] = getattr(dataset, key)
    return entry


def prepare(arguments: argparse.Namespace) -> None:
    check_number("--max_bad_share", arguments.max_bad_share, at_most=1)
    recipe = load_recipe(arguments.recipe)
    dataset = entry_of(recipe, arguments.dataset)
    settings = settings_of(recipe, dataset, arguments)
    workers = max(1, usable_cores() // max(1, number_from_launcher("LOCAL_WORLD_SIZE", 1)))
    summaries = prepare_dataset(
        dataset,
        arguments.output,
        settings,
        splits=arguments.splits,
        num_workers=workers if arguments.num_workers is None else arguments.num_workers,
        rank=number_from_launcher("RANK", 0),
        world_size=number_from_launcher("WORLD_SIZE", 1),
    )
    if summaries is None:
        print("This process is done. Others still write; the last of them reports, or this command once more.")
        return
    for split, summary in summaries.items():
        print(report_text(f"{dataset.name}, {split}", summary))
    folders = {split: str(Path(arguments.output, split)) for split in summaries}
    if "train" in folders:
        entry = yaml.safe_dump([entry_to_read(dataset, folders)], sort_keys=False, allow_unicode=True)
        print(f"\nThe entry of a recipe without `data_root` that reads it:\n\n{entry}")
    check_bad_share(summaries, arguments.max_bad_share)


@told
def main() -> int:
    make_printable()
    arguments = parse_arguments()
    try:
        prepare(arguments)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues from here") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
