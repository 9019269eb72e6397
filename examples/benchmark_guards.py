# SPDX-License-Identifier: Apache-2.0
"""Measure what guards and logs cost, as a share of the time of training the quickstart's model.

    python examples/benchmark_guards.py [--steps 200]

Trains the quickstart's model on its data (drawn first if need be), on one thread. Times what is done in addition to
the step itself: deciding whether the step is finite and whether to stop, counting losses and accuracies of each
dataset, and writing the log every tenth step. About 40 seconds on 2 CPU cores.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from modeling_cover import CoverTrainer, CoverTrainingArguments, load_recipe, prepare_cotraining
from modeling_cover.training import loss as loss_module
from quickstart_data import QUICKSTART, QUICKSTART_DATA, draw_quickstart


# The outermost methods of the trainer and of its collaborators: those that they call are in their time.
GUARDS = {
    "step_guard": ("begin_step", "see", "decide"),
    "step_metrics": ("begin_step", "add", "add_loss", "take_step"),
    "watch": ("note",),
}


def timed(function: Callable, name: str, seconds: Counter) -> Callable:
    """`function`, whose time is added up under `name`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - started

    return wrapper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw_quickstart(QUICKSTART_DATA)
    recipe, seconds = load_recipe(QUICKSTART), Counter()
    with tempfile.TemporaryDirectory() as folder:
        args = CoverTrainingArguments(
            folder,
            per_device_train_batch_size=recipe.training["per_device_train_batch_size"],
            max_steps=arguments.steps,
            logging_steps=10,
            dataloader_num_workers=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        trainer = CoverTrainer(args=args, **prepare_cotraining(recipe, args.seed, folder).trainer_kwargs)
        for collaborator, names in GUARDS.items():
            owner = getattr(trainer, collaborator)
            for name in names:
                setattr(owner, name, timed(getattr(owner, name), "guards", seconds))
        trainer.log = timed(trainer.log, "log", seconds)
        hits = loss_module.hits_of_heads
        loss_module.hits_of_heads = timed(hits, "hits_of_heads", seconds)
        try:
            total = trainer.train().metrics["train_runtime"]
        finally:
            loss_module.hits_of_heads = hits
    print("\n| | part of the time |\n|---|---|")
    print(f"| deciding before each step, and summing up | {seconds['guards'] / total:.2%} |")
    print(f"| accuracies of each dataset | {seconds['hits_of_heads'] / total:.2%} |")
    print(f"| the log, every 10 steps | {seconds['log'] / total:.2%} |")
    print(f"| all | {sum(seconds.values()) / total:.2%} |")
    print(f"\n{arguments.steps} steps in {total:.1f} s")


if __name__ == "__main__":
    main()
