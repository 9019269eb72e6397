# SPDX-License-Identifier: Apache-2.0
"""What became of a split that was prepared: as JSON, as text, and its classes as a picture."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..fonts import draw_text, find_fonts, text_width
from ..text import display_width, padded, printable, shortened


_MOST_CLASSES_IN_TEXT = 40
_MOST_CLASSES_IN_PICTURE = 1000
_MOST_REASONS = 5
_BAR_LENGTH, _LONGEST_NAME = 40, 30  # columns of a terminal

# Of the picture, in pixels.
_CELL_WIDTH, _CELL_HEIGHT, _MARGIN, _TITLE_HEIGHT, _FONT_SIZE = 230, 17, 10, 30, 12
_MOST_COLUMNS, _MOST_ROWS_OF_ONE_COLUMN = 8, 25
_BAR, _WITHOUT_ROWS, _PAPER, _INK = "#a9cdea", "#f3b3ab", "#ffffff", "#202020"


def summarise_split(shards: Sequence[Path], labels: Sequence[str]) -> dict[str, Any]:
    """What the shards of a split hold together, from the summaries beside them.

    Returns:
        `rows` and `shards`; `seconds` of video that the frames come from; `bytes_before` of the files (one of which
        several segments are rows counts as often) and `bytes_after` of the shards; `class_counts`, the rows of each
        class; and `failures`, what was left out: shard, row, path and reason of each.
    """
    parts = [json.loads(shard.with_suffix(".json").read_text(encoding="utf-8")) for shard in shards]
    counts = Counter()
    for part in parts:
        counts.update(part["class_counts"])
    return {
        "shards": len(shards),
        **{key: sum(part[key] for part in parts) for key in ("rows", "seconds", "bytes_before", "bytes_after")},
        "class_counts": {label: counts[label] for label in labels},
        "failures": [failure for part in parts for failure in part["failures"]],
    }


def report_text(title: str, summary: Mapping[str, Any]) -> str:
    """What `summarise_split` found, for a terminal."""
    rows, failures, counts = summary["rows"], summary["failures"], summary["class_counts"]
    share = f" ({summary['bytes_after'] / summary['bytes_before']:.2f} x)" if summary["bytes_before"] else ""
    lines = [
        f"{title}: {_counted(rows, 'row')} in {_counted(summary['shards'], 'shard')}, {len(failures)} left out",
        *(f"  {count} x {printable(reason)}" for reason, count in _reasons(failures).most_common(_MOST_REASONS)),
        f"  {_size(summary['bytes_before'])} of files became {_size(summary['bytes_after'])}{share}",
    ]
    if summary["seconds"]:
        lines.append(f"  they last {_duration(summary['seconds'])}")
    lines.append(f"  {_classes_line(counts)}")
    width = min(_LONGEST_NAME, max(display_width(printable(label)) for label in counts))
    most = max(1, *counts.values())
    for label, count in _shown(counts, _MOST_CLASSES_IN_TEXT):
        bar = "#" * round(_BAR_LENGTH * count / most)
        name = None if label is None else padded(shortened(label, width), width)
        lines.append("    ..." if name is None else f"    {name} {count:>8} {bar}".rstrip())
    return "\n".join(lines)


def _reasons(failures: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """How many files were left out for each reason, whatever their names."""
    # Reasons begin with the name as a rule; anywhere else in one, a short name may be part of a word.
    return Counter(re.sub(f"^{re.escape(failure['path'])}", "a file", failure["reason"]) for failure in failures)


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _classes_line(counts: Mapping[str, int]) -> str:
    fewest, most, empty = min(counts.values()), max(counts.values()), sum(count == 0 for count in counts.values())
    rows = _counted(most, "row") if fewest == most else f"{fewest} to {most} rows"
    return f"{_counted(len(counts), 'class', 'classes')} of {rows}" + (f", {empty} without any" if empty else "")


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _shown(counts: Mapping[str, int], most: int) -> list[tuple[str | None, int]]:
    """Classes and their rows, the largest first; None stands for those left out in between."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    if len(ordered) <= most:
        return ordered
    return [*ordered[: most // 2], (None, 0), *ordered[-(most // 2) :]]


def draw_class_histogram(title: str, counts: Mapping[str, int]) -> Image.Image:
    """The rows of each class, the largest first, in columns; classes without rows in red."""
    shown = _shown(counts, _MOST_CLASSES_IN_PICTURE)
    num_columns = min(_MOST_COLUMNS, -(-len(shown) // _MOST_ROWS_OF_ONE_COLUMN))
    num_rows = -(-len(shown) // num_columns)
    heading = f"{title}: {_classes_line(counts)}"
    find_fonts(label for label, _ in shown if label is not None)
    width = max(num_columns * (_CELL_WIDTH + _MARGIN), int(text_width(heading, _FONT_SIZE)) + _MARGIN) + _MARGIN
    picture = Image.new("RGB", (width, _TITLE_HEIGHT + num_rows * _CELL_HEIGHT + _MARGIN), _PAPER)
    canvas = ImageDraw.Draw(picture)
    draw_text(canvas, (_MARGIN, _TITLE_HEIGHT // 2), heading, _INK, _FONT_SIZE, "lm")
    most = max(1, *counts.values())
    for index, (label, count) in enumerate(shown):
        left = _MARGIN + index // num_rows * (_CELL_WIDTH + _MARGIN)
        top = _TITLE_HEIGHT + index % num_rows * _CELL_HEIGHT
        _draw_cell(canvas, left, top, label, count, count / most)
    # A palette, which PNG packs well.
    return picture.quantize(64, dither=Image.Dither.NONE)


def _draw_cell(canvas: ImageDraw.ImageDraw, left: int, top: int, label: str | None, count: int, share: float) -> None:
    """A class's name and its rows, on its bar."""
    right, bottom, middle = left + _CELL_WIDTH, top + _CELL_HEIGHT - 2, top + _CELL_HEIGHT // 2 - 1
    if label is None:
        draw_text(canvas, (left + 3, middle), "...", _INK, _FONT_SIZE, "lm")
        return
    bar = (left, top, right, bottom) if count == 0 else (left, top, left + max(1, round(_CELL_WIDTH * share)), bottom)
    canvas.rectangle(bar, fill=_WITHOUT_ROWS if count == 0 else _BAR)
    number = str(count)
    space = _CELL_WIDTH - text_width(number, _FONT_SIZE) - 16
    draw_text(canvas, (left + 3, middle), _fitting(printable(label), space), _INK, _FONT_SIZE, "lm")
    draw_text(canvas, (right - 3, middle), number, _INK, _FONT_SIZE, "rm")


def _fitting(text: str, space: float) -> str:
    if text_width(text, _FONT_SIZE) <= space:
        return text
    while text and text_width(text + "..", _FONT_SIZE) > space:
        text = text[:-1]
    return text + ".."
