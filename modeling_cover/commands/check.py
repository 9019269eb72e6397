# SPDX-License-Identifier: Apache-2.0
"""Look for faults in the datasets of a recipe, before training does.

    cover check RECIPE.yaml [--full] [--near_duplicates] [--output outputs/check_dataset.jsonl]

Reads every row once, on all cores, as training would (docs/compact_data.md has the numbers). Prints tables and
examples of what it finds, and writes all findings as JSON lines. The exit code is 1 if there are problems (notes do
not count), and 2 if there is nothing to check: a mistake in the recipe, or no data.
"""

import argparse
import sys

from .. import load_recipe
from ..dataset_tools.check_report import Report
from ..dataset_tools.checking import check_datasets
from ..dataset_tools.row_pool import usable_cores
from ..files import replacing
from ..recipe.checks import check_whole_number
from ..text import make_printable
from ..training.from_recipe import build_processor, read_recipe_sources, training_refusals
from .failing import command_parser, told


def parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("--num_workers", type=int, default=usable_cores(), help="processes; default: all cores")
    parser.add_argument("--full", action="store_true", help="decode every frame of a video")
    parser.add_argument(
        "--near_duplicates", action="store_true", help="also find copies that were encoded again or scaled"
    )
    parser.add_argument("--output", default="outputs/check_dataset.jsonl", help="the findings, as JSON lines")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> Report:
    """Check the datasets and write the findings.

    Raises:
        ValueError: for a mistake in the recipe, or data that cannot be read as it says.
        OSError: if a dataset vanishes, or the findings cannot be written.
    """
    check_whole_number("--num_workers", arguments.num_workers)
    recipe = load_recipe(arguments.recipe)
    sources, processor = read_recipe_sources(recipe), build_processor(recipe)
    with replacing(arguments.output) as file:
        report = check_datasets(
            sources,
            processor,
            arguments.num_workers,
            arguments.full,
            arguments.near_duplicates,
            training_refusals(recipe, sources),
        )
        file.writelines(finding.to_json() for finding in report.findings)
    return report


@told
def main() -> int:
    make_printable()
    arguments = parse_arguments()
    try:
        report = check(arguments)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{arguments.output} is not written") from None
    print(f"\n{report.summary()}; all of them are in {arguments.output}")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
