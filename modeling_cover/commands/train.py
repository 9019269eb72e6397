# SPDX-License-Identifier: Apache-2.0
"""Co-train one model on the datasets of a recipe.

    cover train RECIPE.yaml [--any_training_argument value]

    accelerate launch -m modeling_cover.commands.train RECIPE.yaml          on many processes

Training arguments are those of `CoverTrainingArguments`, and the command line overrides the recipe. If it is killed
at any moment, the same command resumes from the newest checkpoint, as if nothing had happened. SIGTERM and SIGUSR1
write a checkpoint first, and end it with exit code 75.

With `--push_to_hub --hub_model_id org/name`, each save is published during training, and the end with its model card.

It leaves a checkpoint with a head for each dataset in `output_dir`, and prints a table of each head's accuracy. All
that it says but bars is in `log.txt` there.
"""

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from transformers import TrainerCallback, set_seed

from .. import CoverTrainer, CoverTrainingArguments, Recipe, load_recipe, prepare_cotraining
from ..hub.publishing import PublishingError
from ..text import make_printable, table
from ..training.arguments import parse_training_arguments
from ..training.run_log import LOG_NAME, RunLog, follow
from ..training.start_table import start_of
from .failing import one_line, told, without_debug


METRICS = {"top1": "top-1", "top5": "top-5", "map": "mAP"}


def metrics_table(trainer: CoverTrainer, metrics: dict[str, float]) -> str:
    """A line for each head that was evaluated, and their mean, with a column for each metric that one of them has."""
    heads, sizes = trainer.model.config.heads, trainer.train_dataset.sizes
    shown = {key: title for key, title in METRICS.items() if f"eval_mean_{key}" in metrics}

    def row(name: str, classes: str = "", size: str = "") -> list[str]:
        values = [metrics.get(f"eval_{name}_{key}") for key in shown]
        return [name, classes, size, *("-" if value is None else f"{value:.1%}" for value in values)]

    rows = [row(name, str(len(heads[name]["labels"])), str(sizes[name])) for name in sorted(trainer.eval_dataset)]
    return table([["head", "classes", "training rows", *shown.values()], *rows, row("mean")])


class LastEvaluation(TrainerCallback):
    """Keeps what the last evaluation of all datasets in training has found: that after it would find the same."""

    def __init__(self):
        self.step, self.metrics = None, {}

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if "eval_mean_score" in metrics:  # of one dataset after the other there is none
            self.step, self.metrics = state.global_step, metrics

    def is_of(self, trainer: CoverTrainer) -> bool:
        """Whether the weights are still those: neither a step nor a best checkpoint has come after it. An average of
        the weights is what is evaluated in training, too."""
        return self.step == trainer.state.global_step and trainer.record.best_step in (None, self.step)


def publish_end(trainer: CoverTrainer, log: RunLog) -> None:
    try:
        commit = trainer.push_to_hub()
    except PublishingError as error:
        log.write(str(error))
        print(error, file=sys.stderr)
        return
    if trainer.is_world_process_zero():
        log.say(f"Published: {commit.commit_url}")


@told
def main(default_recipe: Path | None = None, draw: Callable[[], object] | None = None) -> None:
    """Train on the recipe that the command line names.

    Args:
        default_recipe: which is trained on where it names none.
        draw: draws the data of that.
    """
    make_printable()
    arguments, _ = without_debug(sys.argv[1:])
    if {"-h", "--help"} & {*arguments}:
        print(__doc__.strip())
        return
    recipe_path = arguments.pop(0) if arguments and not arguments[0].startswith("-") else default_recipe
    if recipe_path is None:
        raise ValueError("name a recipe, a YAML file, such as `cover train RECIPE.yaml`")
    recipe = load_recipe(recipe_path)
    args = parse_training_arguments(recipe, arguments)
    if draw is not None and Path(recipe_path).resolve() == default_recipe.resolve():
        with args.main_process_first(desc="drawing the data"):
            draw()
    log = RunLog(Path(args.output_dir, LOG_NAME) if args.process_index == 0 else None)
    log.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')}, cover train {recipe_path}")
    with log.warnings_kept():
        try:
            train(recipe, args, log)
        except Exception as error:
            log.write(f"error: {one_line(error)}")
            raise


def train(recipe: Recipe, args: CoverTrainingArguments, log: RunLog) -> None:
    """Train, evaluate, and publish where that is asked for."""
    set_seed(args.seed)  # of the weights that are new
    seed = args.seed if args.data_seed is None else args.data_seed
    cotraining = prepare_cotraining(recipe, seed, args.output_dir)
    trainer, evaluation = CoverTrainer(args=args, **cotraining.trainer_kwargs), LastEvaluation()
    trainer.add_callback(evaluation)
    follow(trainer, log, lambda: start_of(trainer, recipe))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or "auto")
    trainer.save_model(_internal_call=True)  # published below, with what the evaluation finds
    if trainer.eval_dataset:
        metrics = evaluation.metrics if evaluation.is_of(trainer) else trainer.evaluate()
        trainer.save_metrics("eval", metrics, combined=False)
        log.say(f"\n{metrics_table(trainer, metrics)}")
    log.say(f"\nCheckpoint: {args.output_dir}")
    trainer.create_model_card()
    if args.push_to_hub:
        publish_end(trainer, log)
    trainer.end()


if __name__ == "__main__":
    sys.exit(main())
