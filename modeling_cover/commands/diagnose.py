# SPDX-License-Identifier: Apache-2.0
"""Is it worth training these datasets together? Measured in the first steps of a recipe's run, before hours are spent.

    cover diagnose RECIPE.yaml [--steps 200] [--checkpoint FOLDER] [--output outputs/diagnosis] [--any_argument value]

    accelerate launch -m modeling_cover.commands.diagnose RECIPE.yaml       on many processes

It trains as the recipe says, at its peak learning rate, for a few steps, and every third step it measures:

- the share of each dataset in the encoder's gradient, by layer, and in what the optimizer makes of it;
- the cosine between the gradients of each pair of datasets, with its standard error over the steps;
- how much a step for one dataset lowers or raises the loss of another;
- how far their features lie among each other.

It prints tables and what they mean, and writes diagnosis.json and diagnosis.png. Nothing else is kept. It takes no
more time than as many training steps times the number of datasets.

--checkpoint starts from a trained model in place of the recipe's starting point. What is left of the command line are
training arguments, as of `cover train`.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from .. import CoverTrainer, load_recipe, prepare_cotraining
from ..evaluation.mixture_report import dataset_table, draw_diagnosis, pair_table, sentences
from ..files import write_json
from ..fonts import told_if_not_drawn
from ..recipe.recipe import Recipe
from ..text import counted, make_printable
from ..training.arguments import parse_training_arguments
from ..training.mixture_diagnosis import SHARE_OF_WARMUP, MixtureDiagnosis
from .failing import command_parser, parse_known, told


# Of a recipe's training arguments those that are about a whole run, or about what is left of it.
_OF_A_RUN = (
    "eval_on_start",
    "learning_rate_drop_epochs",
    "load_best_model_at_end",
    "push_to_hub",
    "ema_decay",
    "log_gradient_shares",
    "restart_schedule",
)
_SHORT = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": "none",
    "lr_scheduler_type": "constant_with_warmup",
}
MEANING = """
Shares are of norms: of the gradient, and of the update that the optimizer makes of it. A cosine is of the gradients of a
step's rows, or of what they have in common with those of other rows, which is without their noise; ± is its standard
error. "Do" is how much a step for the other dataset lowers the loss, in the measure of the dataset's own step: 100% is
as much, and less than 0 raises it."""


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = command_parser(__doc__, prog="cover diagnose")
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument(
        "--steps", type=int, default=200, help="optimizer steps, of which about one in four is measured"
    )
    parser.add_argument("--checkpoint", help="a trained model to start from: a folder or a Hub id")
    parser.add_argument("--output", type=Path, default=Path("outputs/diagnosis"), help="the folder of what is found")
    options, others = parse_known(parser, arguments)
    if options.steps < 2:
        parser.error(f"--steps must be at least 2, got {options.steps}")
    return options, others


def short_run(recipe: Recipe, steps: int, checkpoint: str | None, folder: str | Path) -> Recipe:
    """The recipe of the first steps of a run in a folder, at its peak rate after a short warm-up."""
    training = {name: value for name, value in recipe.training.items() if name not in _OF_A_RUN}
    training |= {**_SHORT, "max_steps": steps, "warmup_steps": steps // SHARE_OF_WARMUP, "logging_steps": steps}
    training |= {"output_dir": str(folder)}
    model = dict(recipe.model)
    if checkpoint is not None:
        default_head = {key: model[key] for key in ("default_head",) if key in model}
        model = {"from_pretrained": checkpoint, **default_head}
    return dataclasses.replace(recipe, model=model, training=training)


def diagnose(trainer: CoverTrainer) -> dict[str, Any]:
    """Train, and return what [`MixtureDiagnosis.summary`] does.

    Raises:
        ValueError: if there is one dataset alone, a frozen encoder, a dataset that no step had rows of, or what is not
            finite.
    """
    trainer.gradient_watch = diagnosis = MixtureDiagnosis(trainer)
    trainer.train()
    return diagnosis.summary()


@told
def main(arguments: Sequence[str] | None = None) -> int:
    make_printable()
    options, others = parse_arguments(arguments)
    # Each process has a folder of its own for what a run leaves, which nobody needs.
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(options, others, folder)
        found = diagnose(trainer)
        if trainer.is_world_process_zero():
            report(found, Path(options.recipe).name, options.output)
        trainer.end()
    return 0


def build_trainer(options: argparse.Namespace, others: Sequence[str], folder: str) -> CoverTrainer:
    """The trainer of what the command line asks for.

    Raises:
        ValueError: if it asks for what is no training argument, or the recipe cannot be trained.
        OSError: if figures cannot be written where they are to be.
    """
    if (
        given := next((argument for argument in others if argument.split("=")[0] == "--output_dir"), None)
    ) is not None:
        raise ValueError(f"{given}: nothing of the run is kept; --output is the folder of figures and picture")
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = short_run(load_recipe(options.recipe), options.steps, options.checkpoint, folder)
    args = parse_training_arguments(recipe, others)
    set_seed(args.seed)
    seed = args.seed if args.data_seed is None else args.data_seed
    cotraining = prepare_cotraining(recipe, seed, args.output_dir)
    return CoverTrainer(args=args, **{**cotraining.trainer_kwargs, "eval_dataset": None})


def report(found: dict[str, Any], name: str, output: Path) -> None:
    write_json(output / "diagnosis.json", found, indent=1)
    measured = counted(found["measured_steps"], "step")
    with told_if_not_drawn(output / "diagnosis.png"):
        draw_diagnosis(found, f"{name}, {measured} of {found['rows_per_step']} rows", output / "diagnosis.png")
    print(f"\n{dataset_table(found)}\n\n{pair_table(found)}\n{MEANING}\n")
    print("\n".join(f"- {sentence}" for sentence in sentences(found)))
    print(f"\nMeasured in {measured}; diagnosis.json and diagnosis.png in {output}")


if __name__ == "__main__":
    sys.exit(main())
