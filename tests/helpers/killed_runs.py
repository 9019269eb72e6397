# SPDX-License-Identifier: Apache-2.0
"""Runs killed at random moments by SIGKILL, and started again by the same command until they end.

    python tests/helpers/killed_runs.py [--runs 20] [--seed 0] [--processes 1]

Each run trains a small model on a folder of clips and a stream of images, with dropout, drop path, an average of its
weights, and evaluations within epochs and at their ends, and is killed some times: after a random time, inside the
writing of a checkpoint, inside an evaluation; or told to stop by SIGTERM. Then its newest checkpoint is damaged, where
there is one before it. It must end with the very weights and averages of a run that was not stopped, train on the same
samples at each step, and log and evaluate the same. `test_resuming.py` runs a few.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from clips import write_clip
from modeling_cover import CoverTrainer, CoverTrainingArguments, collate_clips, prepare_cotraining
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from modeling_cover.recipe.recipe import BadFilesRecipe, ClipRecipe, Recipe
from modeling_cover.training.checkpoints import checkpoints_in
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import ENCODER
from tqdm import tqdm
from transformers import set_seed


STEPS, STEPS_PER_CHECKPOINT = 24, 3
TIME_LIMIT = 600.0  # seconds a run may take that is not killed, which is for one that hangs

# Of the script's runs, in turn. An epoch has 5 steps: evaluations come with checkpoints, between them, and, at the end
# of the third epoch, just after one.
OPTIONS = (
    {"ema_decay": 0.9, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 5},
    {"ema_decay": 0.9, "eval_strategy": "epoch", "logging_strategy": "epoch"},
)

# What a log says of the machine; which bad files have been found depends on how far the workers have read ahead.
_OF_THE_MACHINE = ("_runtime", "_per_second", "data_wait", "model_tflops", "_bad_files")


def write_data(folder: Path) -> None:
    """Six clips in two classes, and twelve images in two Parquet files."""
    rng = np.random.default_rng(0)
    for index in range(6):
        path = folder / "videos" / f"class{index % 2}" / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    (folder / "videos" / "class0" / "2.mp4").write_bytes(b"no video")
    (folder / "images").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for shard in range(2):
        images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(6)]
        table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2] * 2}, features=features)
        table.to_parquet(folder / "images" / f"{shard}.parquet")


def build_recipe(folder: Path) -> Recipe:
    return Recipe(
        datasets=(
            DatasetRecipe(
                name="videos",
                format="class_folders",
                modality="video",
                splits=dict.fromkeys(("train", "validation"), str(folder / "videos")),
            ),
            DatasetRecipe(
                name="images",
                format="parquet",
                modality="image",
                splits={"train": str(folder / "images")},
                streaming=True,
                sizes={"train": 12},
                shuffle_buffer=4,
            ),
        ),
        clips=ClipRecipe(num_frames=2, image_size=16, short_side=20),
        bad_files=BadFilesRecipe(max_share=0.5),
        model={**ENCODER, "num_hidden_layers": 2, "hidden_dropout_prob": 0.1, "drop_path_rate": 0.1},
    )


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * math.inf


class RecordingTrainer(CoverTrainer):
    """Writes down a digest of every batch it trains on.

    At the `step` of `poisoned`, its `process` has a loss of NaN; at its `gradient_step`, an infinite gradient of a
    finite loss.
    """

    poisoned: dict[str, int] | None = None
    stalled: dict[str, int] | None = None  # where a process goes to sleep

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        here = {"step": self.state.global_step, "process": self.args.process_index}
        if self.stalled == here:
            time.sleep(1000)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.poisoned is not None and self.poisoned["process"] == here["process"]:
            if self.poisoned["step"] == here["step"]:
                return loss * math.nan
            if self.poisoned.get("gradient_step") == here["step"]:
                return InfiniteGradient.apply(loss)
        return loss

    def prediction_step(self, *args, **kwargs):
        with open(Path(self.args.output_dir) / f"evaluated-{self.args.process_index}", "a") as file:
            file.write(".")
        return super().prediction_step(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        pixels = [hashlib.sha256(group.numpy().tobytes()).hexdigest()[:16] for group in inputs["pixel_values"]]
        line = {"step": self.state.global_step, "pixels": pixels, "labels": inputs["labels"].tolist()}
        with open(Path(self.args.output_dir) / f"trained-{self.args.process_index}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        return super().training_step(model, inputs, num_items_in_batch)


def collate_mixed_sizes(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """In training, clips and images of one label are twice as high and wide as the others."""
    if "head" in samples[0]:
        return collate_clips(samples)
    factors = [2 if sample["labels"] == 1 else 1 for sample in samples]
    enlarged = [
        sample["pixel_values"].repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
        for sample, factor in zip(samples, factors, strict=True)
    ]
    return collate_clips([{**sample, "pixel_values": clip} for sample, clip in zip(samples, enlarged, strict=True)])


def shard_on_cpu(args: CoverTrainingArguments) -> None:
    """Accelerate trains with DDP where it is told to use FSDP on CPUs, without a word: so it must not know."""
    if args.device.type != "cpu":
        raise RuntimeError("this is for a CPU")
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def leave_out_compiled_collectives() -> None:
    """DeepSpeed would compile its own for CPUs, which takes a minute and a compiler; torch's do the same."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def build_trainer(
    folder: Path,
    output_dir: Path,
    model: dict[str, Any] | None = None,
    clips: dict[str, Any] | None = None,
    mixed_sizes: bool = False,
    given: bool = False,
    **options,
) -> RecordingTrainer:
    """A trainer on the recipe's datasets, or on such as are `given`, see [`given_datasets`]."""
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": 0.01,
        "optim": "adamw_torch",
        "logging_steps": 4,
        "save_steps": STEPS_PER_CHECKPOINT,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if given:
        import given_datasets  # which imports this module

        datasets = given_datasets.interleaved(folder)
        return given_datasets.given_trainer(folder, output_dir, datasets, RecordingTrainer, **(defaults | options))
    args = CoverTrainingArguments(output_dir=str(output_dir), **(defaults | options))
    if args.fsdp:
        shard_on_cpu(args)
    if args.deepspeed:
        leave_out_compiled_collectives()
    set_seed(args.seed)
    recipe = build_recipe(folder)
    clips = recipe.clips if clips is None else ClipRecipe(**clips)
    recipe = dataclasses.replace(recipe, model={**recipe.model, **(model or {})}, clips=clips)
    cotraining = prepare_cotraining(recipe, args.seed, args.output_dir)
    kwargs = {"data_collator": collate_mixed_sizes} if mixed_sizes else {}
    trainer = RecordingTrainer(args=args, **cotraining.trainer_kwargs, **kwargs)
    sharded = trainer.accelerator.is_fsdp2, trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
    if (bool(args.fsdp), bool(args.deepspeed)) != sharded:
        raise RuntimeError(f"fsdp {args.fsdp}, deepspeed {args.deepspeed}: got {trainer.accelerator.distributed_type}")
    return trainer


def train(
    folder: Path,
    output_dir: Path,
    poisoned: dict[str, int] | None = None,
    stalled: dict[str, int] | None = None,
    evaluated: bool = False,
    **options,
) -> RecordingTrainer:
    """Train, or go on with training, as examples/cotrain.py does, and evaluate; `options` as in [`build_trainer`]."""
    trainer = build_trainer(folder, output_dir, **options)
    args = trainer.args
    trainer.poisoned, trainer.stalled = poisoned, stalled
    (output_dir / f"{args.process_index}.pid").write_text(str(os.getpid()))
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model(str(output_dir / "final"))
    if evaluated:
        trainer.evaluate()
    trainer.save_state()
    if trainer.accelerator.distributed_type == DistributedType.MULTI_CPU:
        save_file(trainer.model.state_dict(), output_dir / f"final-{args.process_index}.safetensors")
    trainer.end()
    return trainer


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes")


def start(
    folder: Path, output_dir: Path, processes: int = 1, launched_by: tuple[str, ...] = TORCHRUN, **options
) -> subprocess.Popen:
    launcher = ["-m", *launched_by, str(processes)]
    command = [*(launcher if processes > 1 else []), __file__, "--child", str(folder), str(output_dir)]
    # Told by accelerate's variable to use CPUs, it would train with DDP.
    on_cpu = {"DS_ACCELERATOR": "cpu"} if options.get("deepspeed") else {"ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, *command, json.dumps(options)],
        env={**os.environ, **on_cpu, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=open(output_dir.with_suffix(".log"), "ab"),
        start_new_session=True,
    )


def wait_for(condition, process: subprocess.Popen, limit: float = TIME_LIMIT) -> bool:
    """Whether a condition came true before the process ended."""
    end = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.001)
    return condition()


def kill(process: subprocess.Popen) -> None:
    """All of its processes at once, as a machine that loses its power."""
    # Workers of torchrun are in sessions of their own.
    children = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout.split()
    parents = dict(zip(map(int, children[::2]), map(int, children[1::2]), strict=True))
    doomed = {process.pid} if isinstance(process, subprocess.Popen) else {*process.pids}
    while grown := {pid for pid, parent in parents.items() if parent in doomed} - doomed:
        doomed |= grown
    for pid in doomed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def stop_at_random(process: subprocess.Popen, output_dir: Path, rng: random.Random) -> str:
    """Kill a run, or tell it to stop, at a random moment; returns what it was doing."""
    trained, evaluated = output_dir / "trained-0.jsonl", output_dir / "evaluated-0"
    before = {path: path.stat().st_size for path in (trained, evaluated) if path.exists()}

    def has_grown(path: Path) -> bool:
        return path.exists() and path.stat().st_size > before.get(path, 0)

    def is_writing() -> bool:
        return any(path.name.startswith(".incomplete-checkpoint") for path in output_dir.glob(".incomplete-*"))

    moment = rng.choice(["training", "training", "writing", "starting", "evaluating", "told to stop"])
    if moment == "starting":
        time.sleep(rng.uniform(0, 5))
    elif moment == "writing":
        wait_for(is_writing, process)
        time.sleep(rng.uniform(0, 0.02))
    elif moment == "evaluating":
        wait_for(lambda: has_grown(evaluated), process)
    elif wait_for(lambda: has_grown(trained), process):
        time.sleep(rng.uniform(0, 1.0))
    if process.poll() is not None:
        return "at its end"
    if moment == "told to stop":
        os.kill(int((output_dir / "0.pid").read_text()), signal.SIGTERM)
        process.wait(TIME_LIMIT)
        return moment
    moment = "writing a checkpoint" if is_writing() else moment
    kill(process)
    return moment


def trained_batches(output_dir: Path, processes: int = 1) -> dict[tuple[int, int], set[str]]:
    """What each process trained on at each step, in all attempts: one batch, if it was always the same."""
    found = {}
    for process in range(processes):
        for line in (output_dir / f"trained-{process}.jsonl").read_text().splitlines():
            if line.endswith("}"):  # the last line of an attempt may be cut
                found.setdefault((process, json.loads(line)["step"]), set()).add(line)
    return found


def logged(output_dir: Path) -> list[dict[str, Any]]:
    """The losses, accuracies and evaluations of a run. What its end says of the session is left out."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [
        {key: value for key, value in entry.items() if not key.endswith(_OF_THE_MACHINE)}
        for entry in history
        if "train_runtime" not in entry
    ]


def faults_of(output_dir: Path, whole: Path, processes: int = 1) -> list[str]:
    """How a run differs from the one that was not stopped."""
    faults = []
    for path in sorted([*whole.glob("final/*.safetensors"), *whole.glob(f"checkpoint-{STEPS}/**/*.safetensors")]):
        name = path.relative_to(whole)
        tensors, expected = load_file(output_dir / name), load_file(path)
        if different := [key for key in expected if not torch.equal(tensors[key], expected[key])]:
            faults.append(f"{name}: {len(different)} tensors differ, the first is {different[0]}")
    logs = itertools.zip_longest(logged(output_dir), logged(whole))
    faults += [f"logged {found}, expected {expected}" for found, expected in logs if found != expected]
    batches, expected = trained_batches(output_dir, processes), trained_batches(whole, processes)
    return faults + [
        f"process, step {key}: trained on {batches.get(key)}, expected {expected.get(key)}"
        for key in sorted({*batches, *expected})
        if batches.get(key) != expected.get(key)
    ]


def damage(output_dir: Path, rng: random.Random) -> str | None:
    """Change a byte of a file of the newest checkpoint, where there is one before it; returns which."""
    checkpoints = checkpoints_in(output_dir)
    if len(checkpoints) < 2:
        return None
    file = rng.choice(sorted(path for path in checkpoints[0].rglob("*.*") if path.stat().st_size))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1
    file.write_bytes(content)
    return f"{file.name} damaged"


def run_killed(
    folder: Path,
    output_dir: Path,
    kills: int,
    rng: random.Random,
    processes: int = 1,
    damages: bool = False,
    launch=start,
    workers: tuple[int, ...] = (2, 0),
    **options,
) -> list[str]:
    """Start a run, kill it some times, and let it end; returns what it was doing when it was killed, and what was
    damaged. It has so many workers in turn, and none in the end, which changes nothing."""
    output_dir.mkdir()
    moments = []
    for _, num_workers in zip(range(kills), itertools.cycle(workers)):
        process = launch(folder, output_dir, processes, dataloader_num_workers=num_workers, **options)
        moments.append(stop_at_random(process, output_dir, rng))
        if process.returncode == 0:
            return moments
        if damages and (damaged := damage(output_dir, rng)) is not None:
            moments.append(damaged)
    finish(launch(folder, output_dir, processes, **options), output_dir)
    return moments


def finish(process: subprocess.Popen, output_dir: Path) -> None:
    if process.wait(TIME_LIMIT) != 0:
        raise RuntimeError(f"exit code {process.returncode}\n{output_dir.with_suffix('.log').read_text()[-3000:]}")


def run_whole(folder: Path, output_dir: Path, processes: int = 1, launch=start, **options) -> Path:
    """The run that is not stopped."""
    output_dir.mkdir()
    finish(launch(folder, output_dir, processes, **options), output_dir)
    return output_dir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    # Which imports this module.
    import forked_runs

    processes, launch = arguments.processes, forked_runs.start
    folder, failed, kills, damaged = Path(tempfile.mkdtemp()), 0, 0, 0
    try:
        write_data(folder)
        whole = [
            run_whole(folder, folder / f"whole{number}", processes, launch, **options)
            for number, options in enumerate(OPTIONS)
        ]
        for number in tqdm(range(arguments.runs)):
            rng, which = random.Random(f"{arguments.seed} {number}"), number % len(OPTIONS)
            output_dir, options = folder / f"run{number}", OPTIONS[which]
            # Without workers, which a process that was forked itself cannot fork.
            how = {"damages": True, "launch": launch, "workers": (0,)}
            moments = run_killed(folder, output_dir, rng.choice([1, 2, 3]), rng, processes, **how, **options)
            faults = faults_of(output_dir, whole[which], processes)
            failed += bool(faults)
            damaged += sum(moment.endswith("damaged") for moment in moments)
            kills += sum(not moment.endswith("damaged") for moment in moments)
            tqdm.write(f"run {number}: {', '.join(moments)}: {'; '.join(faults) or 'identical'}")
    finally:
        shutil.rmtree(folder)
    print(f"{arguments.runs - failed} of {arguments.runs} runs of {processes} process(es) ended as one not stopped:")
    print(f"stopped {kills} times, {damaged} of them with the newest checkpoint damaged as well")
    sys.exit(failed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        train(Path(sys.argv[2]), Path(sys.argv[3]), **json.loads(sys.argv[4]))
    else:
        main()
