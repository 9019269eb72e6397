# SPDX-License-Identifier: Apache-2.0
"""Compare encoders that are co-trained on the same mixture with the same budget of operations.

    python examples/compare_encoders.py [--kinds vjepa2 vit] [--tera_operations 0.15]
    python examples/compare_encoders.py --preset real                 # on a GPU: encoders as large as published ones
    python examples/compare_encoders.py --preset real --pretrained    # from their weights on the Hub

Each encoder is trained on the quickstart's datasets together, and on each alone, where a dataset has as many rows in
as many steps as in the mixture. So the three runs alone cost together what the one costs. A step of a cheaper encoder
costs less, so it takes more of them. The first command takes 7 minutes on 2 CPU cores, and prints the table of
docs/encoders.md: parameters, operations of a forward pass of a clip and of an image, steps, the time and memory that
training together took beyond what there was before it (on a GPU what torch allocated at most), and the top-1 of each
head on its validation split, alone and together. It shows that each encoder trains, and what it costs. It says nothing
about which one is best on real video.
"""

import argparse
import io
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from encoder_sizes import OURS, PUBLISHED, TINY, TINY_FRAMES, operations, published_config, tiny_config, tiny_encoder
from modeling_cover import (
    CoverConfig,
    CoverForVideoClassification,
    CoverTrainer,
    CoverTrainingArguments,
    CoverVideoProcessor,
    load_recipe,
)
from modeling_cover.commands.benchmarking import print_table
from modeling_cover.data.sources import read_sources
from modeling_cover.model.image_reading_cover import read_image
from modeling_cover.model.video_decoding_cover import read_video
from modeling_cover.recipe.augmentation_recipe import Augmentation
from quickstart_data import QUICKSTART, QUICKSTART_DATA, draw_quickstart
from tqdm import tqdm
from transformers import set_seed


# Rows of a step, for each dataset of the quickstart's recipe: motion is the hardest to learn.
SHARES = {"shapes": 1, "motions": 2, "textures": 1}
NOT_MIRRORED = ("motions",)


@dataclass(frozen=True)
class Preset:
    """How all encoders of a comparison are trained.

    Attributes:
        rows: of a step on the mixture.
        num_frames: of a clip.
        learning_rate: at the peak.
        learning_rates: of kinds of encoders that want another one.
        tera_operations: of training on the mixture, forward and backward pass, in units of 1e12.
        bf16: whether in that precision.
    """

    rows: int
    num_frames: int
    learning_rate: float
    tera_operations: float
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    bf16: bool = False


PRESETS = {
    "tiny": Preset(
        rows=128,
        num_frames=TINY_FRAMES,
        learning_rate=4e-3,
        learning_rates={"videoprism_vision_model": 2e-3},
        tera_operations=0.15,
    ),
    "real": Preset(rows=32, num_frames=16, learning_rate=1e-4, tera_operations=4000, bf16=True),
}


class Rows(torch.utils.data.Dataset):
    """Decoded clips (T, H, W, 3) or images (H, W, 3) and their labels, as a `CoverTrainer` takes them."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]):
        self.pixels, self.labels, self.classes = pixels, labels, [str(name) for name in classes]
        self.column = "image" if pixels.ndim == 4 else "video"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict:
        return {self.column: self.pixels[row], "label": int(self.labels[row])}


Data = Mapping[str, Mapping[str, Rows]]  # of each dataset, "train" and "validation"


def read_data(folder: Path, scale: float = 1.0) -> Data:
    """The quickstart's datasets, drawn if they are not there, and decoded once, as all runs use them."""
    draw_quickstart(folder, scale=scale)
    data = {}
    for dataset in load_recipe(QUICKSTART).datasets:
        splits = {name: str(folder / Path(path).relative_to(QUICKSTART_DATA)) for name, path in dataset.splits.items()}
        sources = read_sources(replace(dataset, splits=splits))
        read = _read_clip if dataset.modality == "video" else _read_image
        data[dataset.name] = {
            split: Rows(
                np.stack([read(media.content) for media in tqdm(source.media, desc=f"{dataset.name}, {split}")]),
                np.array([source.target(row) for row in range(len(source.media))]),
                source.labels,
            )
            for split, source in sources.items()
        }
    return data


def save_data(file: str, data: Data) -> None:
    """As arrays, which the processes that train read."""
    arrays = {
        f"{name}/{split}/{part}": np.asarray(getattr(rows, part))
        for name, splits in data.items()
        for split, rows in splits.items()
        for part in ("pixels", "labels", "classes")
    }
    np.savez(file, **arrays)


def load_data(file: str) -> Data:
    with np.load(file) as arrays:
        names = dict.fromkeys(key.split("/")[0] for key in arrays)
        return {
            name: {
                split: Rows(*(arrays[f"{name}/{split}/{part}"] for part in ("pixels", "labels", "classes")))
                for split in ("train", "validation")
            }
            for name in names
        }


def _read_clip(path: str) -> np.ndarray:
    return read_video(path, lambda metadata: range(metadata.total_num_frames), num_threads=1)[0]


def _read_image(path: str) -> np.ndarray:
    return np.asarray(read_image(path))


def kinds_of(preset: str) -> list[str]:
    return [OURS, *TINY] if preset == "tiny" else list(PUBLISHED)


def heads_of_data(data: Data) -> dict[str, dict]:
    return {
        name: {"labels": splits["train"].classes, "modality": splits["train"].column} for name, splits in data.items()
    }


def config_of(kind: str, preset: str, heads: Mapping[str, Mapping]) -> CoverConfig:
    """An encoder with random weights and these heads, for clips of the preset's frames."""
    fields = {"heads": dict(heads), "default_head": next(iter(heads)), "num_frames": PRESETS[preset].num_frames}
    if preset == "tiny":
        return tiny_config(kind, **fields)
    return published_config(kind, **fields)


def build_model(
    kind: str, preset: str, heads: Mapping[str, Mapping], pretrained: bool = False
) -> CoverForVideoClassification:
    """A model of an encoder with random weights, or with those on the Hub."""
    config = config_of(kind, preset, heads)
    fields = {"heads": config.heads, "default_head": config.default_head, "num_frames": config.num_frames}
    if preset == "tiny":
        return tiny_encoder(kind, **fields)
    if not pretrained:
        return CoverForVideoClassification(config)
    return CoverForVideoClassification.from_encoder(kind, **fields)


def steps_of(kind: str, preset: str, heads: Mapping[str, Mapping], tera_operations: float) -> int:
    """Of training on the mixture with this budget; a backward pass costs as much as two forward passes."""
    config = config_of(kind, preset, heads)
    clip, image = operations(config, config.num_frames, _side(config))
    of_rows = sum(
        rows * (image if heads[name]["modality"] == "image" else clip) for name, rows in rows_of(preset).items()
    )
    return max(1, round(tera_operations * 1e12 / (3 * of_rows)))


def rows_of(preset: str) -> dict[str, int]:
    """Rows of a step on the mixture, of each dataset."""
    return {name: PRESETS[preset].rows * share // sum(SHARES.values()) for name, share in SHARES.items()}


def _side(config: CoverConfig) -> int:
    return config.image_size if isinstance(config.image_size, int) else config.image_size[0]


def trainer_of(
    model: CoverForVideoClassification, preset: str, data: Data, steps: int, folder: str, seed: int = 1
) -> CoverTrainer:
    """A trainer on the datasets that are given, of which each has its rows in each step."""
    settings, rows, side = PRESETS[preset], rows_of(preset), _side(model.config)
    kind = OURS if model.config.encoder is None else model.config.encoder.model_type
    args = CoverTrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=sum(rows[name] for name in data),
        per_device_eval_batch_size=settings.rows,
        optim="adamw_torch_fused",
        learning_rate=settings.learning_rates.get(kind, settings.learning_rate),
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=min(10, steps // 2),
        bf16=settings.bf16,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=preset == "tiny",
        seed=seed,
    )
    processor = CoverVideoProcessor(
        num_frames=settings.num_frames,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
    )
    return CoverTrainer(
        model,
        args,
        train_dataset={name: splits["train"] for name, splits in data.items()},
        eval_dataset={name: splits["validation"] for name, splits in data.items()},
        processing_class=processor,
        mixture={name: rows[name] for name in data} if len(data) > 1 else "proportional",
        augmentations={name: Augmentation(horizontal_flip=name not in NOT_MIRRORED) for name in data},
    )


def cost_of(trainer: CoverTrainer) -> tuple[float, float]:
    """Of training: seconds, and the most bytes beyond what there was before. On a GPU they are what torch allocates,
    else those of the process, looked at every few milliseconds."""
    began, done, seen = time.perf_counter(), threading.Event(), []

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(psutil.Process().memory_info().rss)

    before, watcher = psutil.Process().memory_info().rss, threading.Thread(target=watch)
    if on_gpu := trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    watcher.start()
    try:
        trainer.train()
    finally:
        done.set()
        watcher.join()
    most = torch.cuda.max_memory_allocated() if on_gpu else max(seen, default=before)
    return time.perf_counter() - began, most - before


def compare(kind: str, preset: str, file: str, tera_operations: float, pretrained: bool) -> list[str]:
    """A row of the table; to be called in a process of its own."""
    torch.set_num_threads(1)
    data = load_data(file)
    heads = heads_of_data(data)
    steps = steps_of(kind, preset, heads, tera_operations)
    config = config_of(kind, preset, heads)
    clip, image = operations(config, config.num_frames, _side(config))
    scores: dict[str, list[float]] = {name: [] for name in data}
    costs = []
    for names in (list(data), *([name] for name in data)):
        set_seed(1)
        model = build_model(kind, preset, {name: heads[name] for name in names}, pretrained)
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):  # where the log goes
            trainer = trainer_of(model, preset, {name: data[name] for name in names}, steps, folder)
            costs.append(cost_of(trainer))
            metrics = trainer.evaluate()
        for name in names:
            scores[name].append(metrics[f"eval_{name}_top1"])
    parameters = sum(parameter.numel() for parameter in model.cover.parameters())
    seconds, memory = costs[0]
    return [
        f"`{kind}`",
        _in_units(parameters),
        _in_units(clip),
        _in_units(image),
        f"{steps}",
        f"{seconds:.0f} s",
        f"{memory / 2**20:.0f} MiB",
        *(f"{alone:.0%} / {together:.0%}" for together, alone in scores.values()),
    ]


def _in_units(count: float) -> str:
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:g}"


def rows_of_table(options: argparse.Namespace, file: str) -> Iterator[tuple[str, list[str]]]:
    """Each kind and its row, as soon as it is there."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes: two threads that share a core wait for one another
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, max_tasks_per_child=1) as pool:  # each has its own memory
        arguments = options.preset, file, options.tera_operations, options.pretrained
        futures = {pool.submit(compare, kind, *arguments): kind for kind in options.kinds}
        for future in as_completed(futures):
            yield futures[future], future.result()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--kinds", nargs="+", help="default: all; of the real ones, ids on the Hub")
    parser.add_argument("--tera_operations", type=float, help="of training on the mixture; default: the preset's")
    parser.add_argument("--pretrained", action="store_true", help="of the real ones: start from the Hub's weights")
    parser.add_argument(
        "--data", type=Path, default=QUICKSTART_DATA, help="the quickstart's, drawn if it is not there"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the data, see make_quickstart_data.py")
    parser.add_argument("--processes", type=int, help="that train at once; default: one per CPU core, or one on a GPU")
    options = parser.parse_args(arguments)
    known = kinds_of(options.preset)
    options.kinds = options.kinds or known
    if unknown := sorted(set(options.kinds) - set(known)):
        parser.error(f"--kinds: expected some of {known}, got {unknown}")
    if options.pretrained and options.preset == "tiny":
        parser.error("--pretrained: there are no weights of tiny encoders, expected --preset real")
    if options.preset == "real" and not torch.cuda.is_available():
        parser.error("--preset real needs a GPU")
    options.tera_operations = options.tera_operations or PRESETS[options.preset].tera_operations
    options.processes = options.processes or (os.cpu_count() if options.preset == "tiny" else 1)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options, began = parse_arguments(arguments), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "data.npz")
        data = read_data(options.data, options.scale)
        save_data(file, data)
        rows = dict(tqdm(rows_of_table(options, file), total=len(options.kinds), unit="encoder"))
    header = ["encoder", "parameters", "a clip", "an image", "steps", "time", "memory"]
    print_table([*header, *(f"{name}, alone / together" for name in data)], [rows[kind] for kind in options.kinds])
    where = torch.cuda.get_device_name() if options.preset == "real" else f"{options.processes} processes of one core"
    took = time.perf_counter() - began
    print(
        f"\n{options.tera_operations:g}e12 operations on the mixture, {where}, torch {torch.__version__}, {took:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
