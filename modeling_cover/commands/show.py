# SPDX-License-Identifier: Apache-2.0
"""Draw what the model is fed: a row for each training sample, with its frames as they go into the model.

    cover show RECIPE.yaml [--rows 16] [--position 0] [--seed SEED] [--output batch.png]

Wrong preprocessing is a silent fault: swapped colours, a crop that cuts off the action, "left" mirrored into "right",
a label of another row. The frames are those after augmentation, before they are normalised. The rows are those that a
run of that seed draws from that position on. No weights are loaded, and it takes some seconds.
"""

import argparse
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from .. import CoTrainingDataset, CoverTrainingArguments, Recipe, VideoDecodingError, load_recipe
from ..data.mixture import MixtureSampler, SampleReference
from ..data.quarantine import Quarantine
from ..data.sources import Source, StreamedSource
from ..fonts import plain_text
from ..text import display_width, make_printable, printable
from ..training.from_recipe import build_processor, read_recipe_sources, schedule_of
from .failing import command_parser, told


FRAMES_A_LINE, LINE_WIDTH = 16, 1000  # at most, of a row; its width in pixels
LARGEST_FRAME, SMALLEST_FRAME = 112, 56  # on the sheet, in pixels
TEXT_WIDTH, MARGIN, GAP = 300, 16, 4
MOST_LINES = 6  # of a row's labels
DPI = 100
LETTER_WIDTH = 0.62  # of a letter of DejaVu Sans, as a rule, at a size of 1
INK, GREY, RED, RULE = "#1a1a1a", "#6b6b6b", "#b00020", "#dddddd"
DATASET_COLOURS = ("#0b5cad", "#a04000", "#1e7d32", "#7b1fa2", "#00796b", "#5d4037", "#c2185b", "#455a64")


Line = tuple[str, int, str]  # of text: with its size in pixels, and its colour


class Row(NamedTuple):
    """A sample as it is drawn: its frames (T, H, W, 3), uint8, and what is written beside them."""

    position: int
    dataset: str
    modality: str
    labels: list[str]
    file: str
    frames: np.ndarray
    replaced: str | None = None


def seed_of(recipe: Recipe) -> int:
    """What a run of the recipe draws its samples with, unless its command line says otherwise."""
    defaults = {field.name: field.default for field in fields(CoverTrainingArguments)}
    data_seed = recipe.training.get("data_seed")
    return recipe.training.get("seed", defaults["seed"]) if data_seed is None else data_seed


def read_rows(recipe: Recipe, start: int, count: int, seed: int) -> Iterator[Row]:
    """The samples that a run draws from position `start` on. A file that cannot be decoded is replaced, as in
    training.

    Raises:
        ValueError: if data cannot be read as the recipe says.
    """
    sources = {name: splits["train"] for name, splits in read_recipe_sources(recipe).items()}
    processor, schedule = build_processor(recipe), schedule_of(recipe, sources, seed)
    with tempfile.TemporaryDirectory() as folder:
        quarantine = Quarantine(Path(folder) / "quarantine.jsonl", max_share=1.0)
        dataset = CoTrainingDataset(
            list(sources.values()),
            sorted(sources),
            processor,
            seed,
            clip_sampling=recipe.clips.sampling,
            augmentations=recipe.augmentations,
            quarantine=quarantine,
        )
        sampler = MixtureSampler(schedule, streams=dataset.open_streams(), mixed=dataset.mixed)
        for reference in islice(sampler.references(start), count):
            yield read_row(dataset, reference)


def read_row(dataset: CoTrainingDataset, reference: SampleReference) -> Row:
    """One sample of training."""
    sample, source = dataset[reference], dataset.sources[reference.dataset]
    file = file_name(source, reference)
    return Row(
        position=reference.position,
        dataset=source.name,
        modality=source.modality,
        labels=label_texts(sample["labels"], source.labels),
        file=file,
        frames=sample["pixel_values"].permute(0, 2, 3, 1).numpy(),
        replaced=dataset.quarantine.reason(source.name, file),
    )


def file_name(source: Source | StreamedSource, reference: SampleReference) -> str:
    """What the file of a sample is called, as it is in the quarantine if it is bad."""
    row = reference.stored or reference.row
    try:
        return source.example(row).media.key
    except (VideoDecodingError, OSError):
        return source.place(row)


def label_texts(target: int | torch.Tensor, labels: Sequence[str]) -> list[str]:
    """The classes that a sample is trained towards; with their shares where it is mixed of two."""
    if not isinstance(target, torch.Tensor) or target.ndim == 0:
        return [labels[int(target)]]
    shares = {labels[index]: float(target[index]) for index in target.nonzero().flatten().tolist()}
    if all(share > 0.9999 for share in shares.values()):
        return list(shares) or ["no label"]
    return [f"{share:.0%} {label}" for label, share in sorted(shares.items(), key=lambda item: -item[1])]


def draw_sheet(rows: Sequence[Row], title: str) -> Figure:
    """A row for each sample: dataset, labels and file on the left, frames on the right in order of time."""
    columns = min(max(len(row.frames) for row in rows), FRAMES_A_LINE)
    native = rows[0].frames.shape[1]
    side = shown_side(native, columns)
    names = sorted({row.dataset for row in rows})
    width = TEXT_WIDTH + max(columns * (side + GAP), LINE_WIDTH // 2)
    scale = "as they are" if side == native else f"drawn at {side} x {side}"
    note = (
        f"Each row is a sample as it goes into the model: its pixel_values, {native} x {native} pixels ({scale}), after "
        "augmentation; all that is left to do is to normalise them. Time runs from left to right."
    )
    head = [(line, 22, INK) for line in wrapped(title, 22, width)] + [
        (line, 14, GREY) for line in wrapped(note, 14, width)
    ]
    texts = [row_lines(row, DATASET_COLOURS[names.index(row.dataset) % len(DATASET_COLOURS)]) for row in rows]
    frames_of = [-(-len(row.frames) // columns) * (side + GAP) for row in rows]
    heights = [max(height_of(lines), frames) + 2 * GAP for lines, frames in zip(texts, frames_of, strict=True)]
    height = height_of(head) + 2 * GAP + sum(heights) + 2 * MARGIN
    figure = Figure(figsize=((width + 2 * MARGIN) / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    top = height - MARGIN
    draw_lines(figure, head, MARGIN, top)
    top -= height_of(head) + 2 * GAP
    for row, lines, row_height in zip(rows, texts, heights, strict=True):
        figure.add_artist(Rectangle((MARGIN, top), width, 1, color=RULE, transform=None))
        figure.add_artist(
            Rectangle((MARGIN, top - row_height + GAP), 5, row_height - 2 * GAP, color=lines[0][2], transform=None)
        )
        draw_lines(figure, lines, 2 * MARGIN, top - GAP)
        draw_frames(figure, row.frames, side, columns, MARGIN + TEXT_WIDTH, top - GAP)
        top -= row_height
    return figure


def shown_side(native: int, columns: int) -> int:
    """How large a frame is drawn: small ones a whole number of times as large, large ones as large as the line
    allows."""
    allowed = min(LARGEST_FRAME, max(SMALLEST_FRAME, LINE_WIDTH // columns - GAP))
    return native * (allowed // native) if native <= allowed else allowed


def draw_frames(figure: Figure, frames: np.ndarray, side: int, columns: int, left: int, top: int) -> None:
    """The frames (T, H, W, 3), in lines of `columns`, each pixel as it is or a whole number of times as large."""
    for index, frame in enumerate(frames):
        line, column = divmod(index, columns)
        resampling = Image.Resampling.NEAREST if side >= frame.shape[0] else Image.Resampling.BOX
        tile = np.asarray(Image.fromarray(frame).resize((side, side), resampling))
        figure.figimage(tile, left + column * (side + GAP), top - line * (side + GAP) - side, origin="upper")


def row_lines(row: Row, colour: str) -> list[Line]:
    """What is written beside a sample."""
    width = TEXT_WIDTH - 2 * MARGIN
    labels = [line for label in row.labels for line in wrapped(label, 18, width)]
    if len(labels) > MOST_LINES:
        labels = [*labels[: MOST_LINES - 1], f"and more, {len(row.labels)} labels in all"]
    lines = [(f"{row.dataset} ({row.modality})", 14, colour), *((label, 18, INK) for label in labels)]
    if row.replaced is None:
        lines.append((clipped(row.file, 12, width), 12, GREY))
    else:
        lines.append(("stands in for a file that cannot be decoded:", 12, RED))
        lines.append((clipped(row.file, 12, width), 12, RED))
    return [*lines, (f"sample {row.position}", 12, GREY)]


def height_of(lines: Sequence[Line]) -> int:
    return sum(round(1.3 * size) for _, size, _ in lines)


def draw_lines(figure: Figure, lines: Sequence[Line], left: int, top: int) -> None:
    for text, size, colour in lines:
        # Sizes in pixels, matplotlib's in points of an inch's 72nd.
        figure.add_artist(Text(left, top, text, color=colour, fontsize=size * 72 / DPI, va="top", transform=None))
        top -= round(1.3 * size)


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of about `width` pixels at most."""
    return textwrap.wrap(printable(text), letters_in(text, size, width))


def clipped(text: str, size: int, width: int) -> str:
    """The end of `text`, where a path tells the most, as far as it fits into about `width` pixels."""
    text, letters = printable(text), letters_in(text, size, width)
    return text if len(text) <= letters else f"…{text[1 - letters :]}"


def letters_in(text: str, size: int, width: int) -> int:
    """How many letters of `size` pixels, of the widths that those of `text` have, are as wide as that."""
    return max(2, int(width / (LETTER_WIDTH * size) * len(text) / max(1, display_width(text))))


def parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("--output", default="batch.png", help="the picture")
    parser.add_argument("--rows", type=int, default=16, help="number of samples, one row each")
    parser.add_argument(
        "--position", type=int, default=0, help="the position of the first sample, counted from the run's start"
    )
    parser.add_argument("--seed", type=int, help="the run's seed; default: the recipe's")
    arguments = parser.parse_args()
    if arguments.rows < 1 or arguments.position < 0 or (arguments.seed or 0) < 0:
        parser.error("--rows must be at least 1, --position and --seed at least 0")
    return arguments


@told
def main() -> int:
    make_printable()
    arguments = parse_arguments()
    recipe = load_recipe(arguments.recipe)
    seed = seed_of(recipe) if arguments.seed is None else arguments.seed
    rows = list(read_rows(recipe, arguments.position, arguments.rows, seed))
    last = arguments.position + arguments.rows - 1
    span = f"sample {last}" if arguments.rows == 1 else f"samples {arguments.position} to {last}"
    title = f"What the model is fed: {Path(arguments.recipe).name}, {span} of training, seed {seed}"
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    with plain_text([title, *(name for row in rows for name in (row.dataset, *row.labels, row.file))]):
        draw_sheet(rows, title).savefig(arguments.output, format="png")
    replaced = sum(row.replaced is not None for row in rows)
    print(f"{arguments.output}: {len(rows)} samples, {replaced} of them in place of files that cannot be decoded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
