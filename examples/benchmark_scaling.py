# SPDX-License-Identifier: Apache-2.0
"""Measure what training Large takes on one GPU, and predict from it what training takes on many.

    python examples/benchmark_scaling.py measure docs/scaling.json
    python examples/benchmark_scaling.py predict docs/scaling.json
    python examples/benchmark_scaling.py encoders docs/scaling.json examples/recipes/encoders/*.yaml
    python examples/benchmark_scaling.py paper docs/scaling.json examples/recipes/*_imagenet_*.yaml \
        examples/recipes/transfer_*_all.yaml examples/recipes/paper/*.yaml

`measure` times the parts of a step of the paper's largest run (16 frames of 448 x 448 pixels, bf16), the writing of a
checkpoint, and the making of samples on one core. It also counts what two processes send to one another. It takes
about 3 minutes on an H200. `predict` prints the tables of docs/scaling.md, which has the formulas. `encoders` predicts
recipes on other encoders, by their operations, and `paper` those of the paper's runs.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paper_scaling
import torch
import torch.distributed as dist
from encoder_scaling import Measured, predictions
from modeling_cover import CoTrainingDataset, CoverConfig, CoverForVideoClassification, CoverVideoProcessor
from modeling_cover.commands.benchmarking import draw_frames, encode, entry, print_table, texture
from modeling_cover.data.mixture import MixtureSchedule, SampleReference, dealt_out
from modeling_cover.data.sources import read_sources
from modeling_cover.dataset_tools.preparation import prepare_dataset
from modeling_cover.dataset_tools.prepared_rows import PreparationSettings
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from modeling_cover.training.checkpoints import RunCheckpoints
from modeling_cover.training.run_state import WholeState
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm


# Rows of an epoch: what the paper says of its datasets (section 4.1), and the training splits of ImageNet-1k and of
# Kinetics.
ROWS = {"k400": 240_000, "ssv2": 168_000, "mit": 791_000, "imagenet": 1_281_167}
OTHER_KINETICS = {"k600": 392_000, "k700": 545_000}
NUM_LABELS = {"k400": 400, "ssv2": 174, "mit": 305, "imagenet": 1000}
IMAGES = "imagenet"
FRAMES_OF_A_CLIP = 16
# Of the rows of a GPU, how many are clips, where steps are timed; between them, times are interpolated.
MEASURED_CLIPS = {2: (0, 1, 2), 4: (0, 2, 4), 16: (0, 4, 8, 12, 16)}
# GPUs, rows of each in a pass, and passes of an optimizer step: the paper's 128 rows a step first, then what keeps
# GPUs busy.
SETTINGS = ((1, 16, 8), (8, 16, 1), (64, 2, 1), (64, 16, 1), (512, 4, 1), (512, 16, 1))
PRESETS = {
    "large": {
        "num_frames": 16,
        "image_size": 448,
        "config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    },
    "tiny": {
        "num_frames": 4,
        "image_size": 32,
        "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    },
}
GB = 1e9
# All-reduce bus bandwidths, in GB/s, as NVIDIA's nccl-tests report them.
BUS_BANDWIDTHS = (300.0, 40.0, 10.0)
FP32, BF16 = 4, 2  # bytes
DDP_BUCKET = 25 * 2**20
SIMULATED_STEPS = 50


def build_model(preset: str) -> CoverForVideoClassification:
    fields = PRESETS[preset]
    heads = {
        name: {"labels": [str(label) for label in range(count)], "modality": "image" if name == IMAGES else "video"}
        for name, count in NUM_LABELS.items()
    }
    sizes = {"num_frames": fields["num_frames"], "image_size": fields["image_size"]}
    return CoverForVideoClassification(CoverConfig(heads=heads, default_head="k400", **sizes, **fields["config"]))


def batch_of(preset: str, num_clips: int, num_images: int, device: str) -> dict[str, Any]:
    """A batch of clips and images, as the Trainer has it."""
    frames, size = PRESETS[preset]["num_frames"], PRESETS[preset]["image_size"]
    shapes = [(count, length) for count, length in ((num_clips, frames), (num_images, 1)) if count]
    names = sorted(NUM_LABELS)
    ids = [names.index("k400")] * num_clips + [names.index(IMAGES)] * num_images
    return {
        "pixel_values": [torch.randn(count, length, 3, size, size, device=device) for count, length in shapes],
        "head_ids": torch.tensor(ids, device=device),
        "labels": torch.zeros(len(ids), dtype=torch.long, device=device),
    }


def seconds_of(run: Callable[[], Any], rounds: int, device: str) -> float:
    """The median of `rounds`, after two to warm up."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


# ---- Measuring ----


def measure_steps(preset: str, device: str, rounds: int) -> dict[str, Any]:
    """Seconds of forward and backward pass of each mixture of clips and images, and of the optimizer's step."""
    model = build_model(preset).to(device).train()
    model.activation_checkpointing_enable()
    found: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}

    def run(batch: dict[str, Any], backward: bool = True) -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = model(**batch).loss
        if backward:
            loss.backward()

    found["step"], found["forward"], found["peak_memory"] = {}, {}, {}
    for rows, measured in MEASURED_CLIPS.items():
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found["step"][rows] = {}
        for clips in tqdm(measured, desc=f"{rows} rows, of which clips"):
            batch = batch_of(preset, clips, rows - clips, device)
            found["step"][rows][clips] = seconds_of(lambda batch=batch: run(batch), rounds, device)
        # Of clips alone.
        found["forward"][rows] = seconds_of(lambda batch=batch: run(batch, backward=False), rounds, device)
        if device == "cuda":
            found["peak_memory"][rows] = torch.cuda.max_memory_allocated()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=device == "cuda")
    found["optimizer"] = seconds_of(optimizer.step, rounds, device)
    del optimizer
    found["checkpoint"] = measure_checkpoint(model)
    return found


def measure_checkpoint(model: CoverForVideoClassification) -> dict[str, float]:
    """Seconds and bytes of a checkpoint with AdamW's two moments, flushed to the disk."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=next(model.parameters()).is_cuda)
    optimizer.step()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        started = time.perf_counter()
        state = WholeState(model, optimizer)
        weights, (tensors, rest) = state.weights(), state.optimizer_state()
        gathered = time.perf_counter()
        writer = RunCheckpoints(name)
        with writer.writing(1) as folder:
            model.save_pretrained(folder, state_dict=weights)
            writer.write_state(folder, {"optimizer": rest}, {"optimizer": tensors})
        written = time.perf_counter()
        size = sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file())
    return {"gather": gathered - started, "write": written - gathered, "bytes": size}


def count_communication(kind: str) -> dict[str, float]:
    """What a process sends and receives in a step with clips and images, in elements for each parameter."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_count_communication, (kind, folder), nprocs=2)
        return json.loads((Path(folder) / "counts.json").read_text())


def _count_communication(rank: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, counts = build_model("tiny").train(), Counter()
    model.activation_checkpointing_enable()
    layer = sum(parameter.numel() for parameter in model.cover.layers[0].parameters())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if kind == "ddp":
        model = DistributedDataParallel(model)

        def reduce(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            counts["reduced"] += bucket.buffer().numel()
            work = dist.all_reduce(bucket.buffer(), async_op=True)
            return work.get_future().then(lambda future: future.value()[0] / 2)

        model.register_comm_hook(None, reduce)
    else:
        # Of layers alone, which have 99% of Large's parameters and 30% of this model's.
        parameters = layer * len(model.cover.layers)
        for module in model.cover.layers:
            fully_shard(module)
        fully_shard(model)
        for name in ("all_gather_single", "all_gather_into_tensor", "reduce_scatter_single", "reduce_scatter_tensor"):
            if hasattr(dist, name):  # torch has renamed them
                which = "gathered" if name.startswith("all_gather") else "scattered"
                setattr(dist, name, _counting(getattr(dist, name), counts, which, layer))
    model(**batch_of("tiny", 2, 2, "cpu")).loss.backward()
    if rank == 0:
        found = {name: count / parameters for name, count in counts.items()}
        (Path(folder) / "counts.json").write_text(json.dumps(found))
    dist.barrier()  # neither may leave while the other still communicates
    # Before the group: of DDP's reducer, the last to hold it would wait for the group's threads with Python's lock,
    # which they need to release the hook's futures.
    del model
    dist.destroy_process_group()


def _counting(function: Callable, counts: Counter, which: str, layer: int) -> Callable:
    """A collective that counts its elements if it is one of a layer, which has `layer` parameters."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        size = max(tensor.numel() for tensor in [*args, *kwargs.values()] if isinstance(tensor, torch.Tensor))
        counts[which] += size if size == layer else 0
        return function(*args, **kwargs)

    return counted


def measure_samples(preset: str, rounds: int) -> dict[str, float]:
    """Seconds of one core for a sample: of a clip (10 s, 640 x 360, H.264), raw and compact, and of an image."""
    torch.set_num_threads(1)
    frames, size = PRESETS[preset]["num_frames"], PRESETS[preset]["image_size"]
    short_side = size * 8 // 7
    processor = CoverVideoProcessor(
        num_frames=frames, size={"shortest_edge": short_side}, crop_size={"height": size, "width": size}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in (folder / "raw" / "train" / "clip" / "0.mp4", folder / "image" / "train" / "picture" / "0.jpeg"):
            path.parent.mkdir(parents=True)
        encode(
            str(folder / "raw/train/clip/0.mp4"), draw_frames(np.random.default_rng(0), 640, 360, 300), "libx264", 30
        )
        texture(np.random.default_rng(0), 375, 500).save(folder / "image/train/picture/0.jpeg", quality=95)
        raw = entry("class_folders", folder / "raw" / "train")
        prepare_dataset(raw, folder / "compact", PreparationSettings(modality="video", short_side=short_side))
        images = DatasetRecipe(
            name="clips", format="class_folders", modality="image", splits={"train": str(folder / "image" / "train")}
        )
        datasets = {
            "raw clip": raw,
            "compact clip": entry("webdataset", folder / "compact" / "train"),
            "image": images,
        }
        found = {}
        for what, dataset in datasets.items():
            samples = CoTrainingDataset([read_sources(dataset)["train"]], ["clips"], processor, seed=0)
            positions = itertools.count()
            found[what] = seconds_of(
                lambda samples=samples, positions=positions: samples[
                    SampleReference("clips", 0, position := next(positions), position)
                ],
                rounds,
                "cpu",
            )
    return found


def measure(path: Path, preset: str, rounds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if preset == "large" and device == "cpu":
        raise SystemExit("large needs a GPU; tiny, which shows that the script works, does not")
    # The samples come first: measuring them is for one core, and so are its threads.
    threads = torch.get_num_threads()
    found: dict[str, Any] = {"preset": preset, "torch": torch.__version__}
    found["device"] = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} threads"
    found["samples"] = measure_samples(preset, rounds)
    torch.set_num_threads(threads)
    found["communication"] = {kind: count_communication(kind) for kind in ("ddp", "fsdp")}
    found |= measure_steps(preset, device, rounds)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path.read_text())


# ---- Predicting ----


def compute_seconds(steps: dict[str, float], gpus: int, rows: int, passes: int) -> tuple[float, float]:
    """Forward and backward passes of an optimizer step: until the last process is done, and if all took equally long.

    `steps` are the seconds for numbers of clips among the `rows` of a GPU.
    """
    references = MixtureSchedule(ROWS, seed=0).references()
    measured, times = [int(clips) for clips in steps], list(steps.values())
    slowest = mean = 0.0
    for _ in range(SIMULATED_STEPS):
        drawn = list(itertools.islice(references, rows * gpus * passes))
        # What the sampler deals out by: the number of frames.
        dealt = dealt_out(drawn, [1 if row.dataset == IMAGES else FRAMES_OF_A_CLIP for row in drawn], rows)
        clips = np.array([row.dataset != IMAGES for row in dealt]).reshape(passes, gpus, rows).sum(axis=2)
        seconds = np.interp(clips, measured, times)
        slowest += seconds.max(axis=1).sum()
        mean += seconds.mean(axis=1).sum()
    return slowest / SIMULATED_STEPS, mean / SIMULATED_STEPS


def exposed_seconds(
    found: dict[str, Any], gpus: int, rows: int, computing: float, bandwidth: float
) -> dict[str, float]:
    """Communication that a step waits for: what does not fit beside the `computing` of its last pass."""
    parameters, share, counts = found["parameters"], (gpus - 1) / gpus, found["communication"]
    clips_alone = found["step"][f"{rows}"][f"{rows}"]
    backward = computing * (1 - found["forward"][f"{rows}"] / clips_alone)
    reduced = 2 * share * counts["ddp"]["reduced"] * parameters * FP32 / (bandwidth * GB)
    last_bucket = 2 * share * DDP_BUCKET / (bandwidth * GB)
    elements = counts["fsdp"]["gathered"] * BF16 + counts["fsdp"]["scattered"] * FP32
    sharded = share * elements * parameters / (bandwidth * GB)
    return {"ddp": max(last_bucket, reduced - backward), "fsdp": max(0.0, sharded - computing)}


def print_measurements(found: dict[str, Any]) -> None:
    parameters, checkpoint, counts = found["parameters"], found["checkpoint"], found["communication"]
    print(f"{found['device']}, torch {found['torch']}, {parameters / 1e6:.0f} million parameters")
    rows = [
        [
            rows,
            *(f"{1e3 * steps[f'{clips}']:.0f} ms" for clips in (0, int(rows) // 2, int(rows))),
            f"{1e3 * found['forward'][rows]:.0f} ms",
            f"{found['peak_memory'].get(rows, 0) / GB:.1f} GB",
        ]
        for rows, steps in found["step"].items()
    ]
    header = ["rows", "no clips", "half of them clips", "all of them clips", "of which forward", "peak memory"]
    print_table(header, rows)
    print_table(
        ["", ""],
        [
            ["optimizer's step (SGD with momentum)", f"{1e3 * found['optimizer']:.1f} ms"],
            ["DDP: gradients reduced in a step, fp32", f"{counts['ddp']['reduced'] * parameters * FP32 / GB:.2f} GB"],
            ["FSDP2: gathered, bf16", f"{counts['fsdp']['gathered'] * parameters * BF16 / GB:.2f} GB"],
            ["FSDP2: reduced and scattered, fp32", f"{counts['fsdp']['scattered'] * parameters * FP32 / GB:.2f} GB"],
            ["checkpoint, with AdamW's moments", f"{checkpoint['bytes'] / GB:.2f} GB"],
            ["copied to the CPU", f"{checkpoint['gather']:.1f} s"],
            ["written and flushed", f"{checkpoint['write']:.1f} s"],
            *([f"{what}, one core", f"{1e3 * seconds:.0f} ms"] for what, seconds in found["samples"].items()),
        ],
    )


def predict(path: Path) -> None:
    found = json.loads(path.read_text())
    print_measurements(found)
    samples, clip_share = found["samples"], 1 - ROWS[IMAGES] / sum(ROWS.values())
    raw, compact = (
        clip_share * samples[f"{kind} clip"] + (1 - clip_share) * samples["image"] for kind in ("raw", "compact")
    )
    checkpoint = found["checkpoint"]["gather"] + found["checkpoint"]["write"]
    epochs, waits, alone = [], [], None
    for gpus, rows, passes in SETTINGS:
        num_steps = -(-sum(ROWS.values()) // (rows * gpus * passes))
        slowest, mean = compute_seconds(found["step"][f"{rows}"], gpus, rows, passes)
        waiting = [exposed_seconds(found, gpus, rows, slowest / passes, bandwidth) for bandwidth in BUS_BANDWIDTHS]
        hours = [(num_steps * (slowest + wait["ddp"] + found["optimizer"]) + checkpoint) / 3600 for wait in waiting]
        alone = alone or hours[0]  # of one GPU, which comes first
        name = [f"{gpus}", f"{rows}" if passes == 1 else f"{rows} x {passes}"]
        epochs.append(
            [
                *name,
                f"{rows * gpus * passes}",
                f"{num_steps:,}",
                f"{slowest:.2f} s",
                f"{mean / slowest:.0%}",
                *(f"{value:.3g} h" for value in hours),
                f"{alone / gpus / hours[0]:.0%}",
                " / ".join(f"{rows * passes * seconds / slowest:.1f}" for seconds in (raw, compact)),
            ]
        )
        waits.append([*name, *(f"{1e3 * wait['ddp']:.0f} / {1e3 * wait['fsdp']:.0f}" for wait in waiting)])
    header = ["GPUs", "rows of each"]
    print_table(
        header
        + ["rows a step", "steps", "computing", "balance"]
        + [f"epoch, {bandwidth:g} GB/s" for bandwidth in BUS_BANDWIDTHS]
        + ["of linear", "cores a GPU, raw / compact"],
        epochs,
    )
    print_table(header + [f"waiting, {bandwidth:g} GB/s, ms, DDP / FSDP2" for bandwidth in BUS_BANDWIDTHS], waits)


def predict_encoders(path: Path, recipes: list[Path]) -> None:
    """Of recipes on encoders of transformers, from what was measured of ours."""
    found = json.loads(path.read_text())
    with torch.device("meta"):
        config = build_model(found["preset"]).config
    measured = Measured.of(found, config)
    print(f"{found['device']}, {measured.rate / 1e12:.0f}e12 operations in a second")
    print_table(*predictions(recipes, ROWS, measured))


def predict_paper(path: Path, recipes: list[Path]) -> None:
    """Of the paper's runs, from what was measured of the largest."""
    found = json.loads(path.read_text())
    print(f"{found['device']}, torch {found['torch']}")
    print_table(*paper_scaling.predictions(recipes, {**ROWS, **OTHER_KINETICS}, found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("measure", "predict", "encoders", "paper"))
    parser.add_argument("path", type=Path, help="the measurements, JSON")
    parser.add_argument("recipes", type=Path, nargs="*", help="to be predicted by `encoders` or `paper`")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="large")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.action == "measure":
        measure(arguments.path, arguments.preset, arguments.rounds)
    elif arguments.action == "encoders":
        predict_encoders(arguments.path, arguments.recipes)
    elif arguments.action == "paper":
        predict_paper(arguments.path, arguments.recipes)
    else:
        predict(arguments.path)


if __name__ == "__main__":
    main()
