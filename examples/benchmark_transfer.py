# SPDX-License-Identifier: Apache-2.0
"""Measure ways to fine-tune a checkpoint on another dataset: all of it, its head alone, or an adapter (LoRA).

    make quickstart
    python examples/benchmark_transfer.py --model outputs/quickstart [--dataset shapes] [--steps 225]

Each way trains a new head on a dataset of the quickstart, on the same rows, in a process of its own, one after the
other. Prints the top-1 on the validation split, the parameters that are trained, the memory that training took beyond
what there was before it (on a GPU what torch allocated at most), the size of a checkpoint's training state, and the
time of a step.
"""

import argparse
import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from modeling_cover import CoverTrainer, CoverTrainingArguments, load_recipe, prepare_cotraining
from modeling_cover.text import table
from modeling_cover.training.checkpoints import checkpoints_in
from transformers import set_seed


# What is trained, and at which rate: as each way is commonly used, not tuned.
WAYS = {
    "all": {"learning_rate": 1e-3},
    "heads": {"learning_rate": 1e-2, "trained_part": "heads"},
    "LoRA": {"learning_rate": 1e-2, "lora": {"r": 8}},
}


def peak_memory() -> float:
    """The most that this process has had so far, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(way: str, model: str, recipe_file: str, dataset: str, steps: int) -> list[str]:
    """A row of the table; to be called in a process of its own."""
    torch.set_num_threads(1)  # the loader's worker has the second core
    options = dict(WAYS[way])
    lora = {"lora": options.pop("lora")} if "lora" in options else {}
    recipe = load_recipe(recipe_file)
    (entry,) = [entry for entry in recipe.datasets if entry.name == dataset]
    start = {"from_pretrained": model, "default_head": "new", **lora}
    recipe = dataclasses.replace(
        recipe,
        datasets=(dataclasses.replace(entry, name="new", share=None),),
        mixture=type(recipe.mixture)(),
        model=start,
    )
    with tempfile.TemporaryDirectory() as folder:
        args = CoverTrainingArguments(
            folder,
            max_steps=steps,
            save_steps=steps,
            per_device_train_batch_size=16,
            dataloader_num_workers=1,
            report_to="none",
            **options,
        )
        set_seed(args.seed)
        cotraining = prepare_cotraining(recipe, args.seed, folder)
        trainer = CoverTrainer(args=args, **cotraining.trainer_kwargs)
        trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
        before, began = peak_memory(), time.perf_counter()
        trainer.train()
        seconds, memory = time.perf_counter() - began, peak_memory() - before
        state = sum(file.stat().st_size for file in (checkpoints_in(folder)[0] / "training_state").iterdir())
        top1 = trainer.evaluate()["eval_new_top1"]
    return [
        way,
        f"{top1:.1%}",
        f"{trained:,}",
        f"{memory / 2**20:.0f} MiB",
        f"{state / 2**20:.2f} MiB",
        f"{1000 * seconds / steps:.1f} ms",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/quickstart")
    parser.add_argument("--recipe", default="examples/recipes/quickstart.yaml")
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--steps", type=int, default=225, help="number of steps, of 16 rows each")
    options = parser.parse_args()
    context, rows = multiprocessing.get_context("spawn"), []
    for way in WAYS:
        with ProcessPoolExecutor(1, context) as process:  # which ends with it: memory is the process's
            arguments = way, options.model, options.recipe, options.dataset, options.steps
            rows.append(process.submit(measure, *arguments).result())
    head = ["trained", "top-1", "parameters", "memory", "state in a checkpoint", "a step"]
    print(table([head, *rows]))


if __name__ == "__main__":
    main()
