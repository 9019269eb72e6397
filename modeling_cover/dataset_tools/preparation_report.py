# SPDX-License-Identifier: Apache-2.0
"""What became of a split that was prepared: as JSON, as text, and its classes as a plot."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure

from ..fonts import plain_text
from ..text import byte_size, counted, display_width, padded, printable, shortened


_MOST_CLASSES_IN_TEXT = 40
_MOST_CLASSES_IN_PLOT = 1000
_MOST_REASONS = 5
_BAR_LENGTH, _LONGEST_NAME = 40, 30  # columns of a terminal

# Of the plot.
_MOST_COLUMNS, _MOST_ROWS_OF_ONE_COLUMN, _LONGEST_NAME_IN_PLOT = 8, 25, 26
_BAR, _WITHOUT_ROWS = "#a9cdea", "#f3b3ab"


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
        f"{title}: {counted(rows, 'row')} in {counted(summary['shards'], 'shard')}, {len(failures)} left out",
        *(f"  {count} x {printable(reason)}" for reason, count in _reasons(failures).most_common(_MOST_REASONS)),
        f"  {byte_size(summary['bytes_before'])} of files became {byte_size(summary['bytes_after'])}{share}",
    ]
    if summary["seconds"]:
        lines.append(f"  they last {timedelta(seconds=round(summary['seconds']))}")
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


def _classes_line(counts: Mapping[str, int]) -> str:
    fewest, most, empty = min(counts.values()), max(counts.values()), sum(count == 0 for count in counts.values())
    rows = counted(most, "row") if fewest == most else f"{fewest} to {most} rows"
    return f"{counted(len(counts), 'class', 'classes')} of {rows}" + (f", {empty} without any" if empty else "")


def _shown(counts: Mapping[str, int], most: int) -> list[tuple[str | None, int]]:
    """Classes and their rows, the largest first; None stands for those left out in between."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    if len(ordered) <= most:
        return ordered
    return [*ordered[: most // 2], (None, 0), *ordered[-(most // 2) :]]


def draw_class_histogram(title: str, counts: Mapping[str, int], file: BinaryIO) -> None:
    """The rows of each class, the largest first, in columns of bars, as a PNG; classes without rows in red."""
    shown = _shown(counts, _MOST_CLASSES_IN_PLOT)
    num_columns = min(_MOST_COLUMNS, -(-len(shown) // _MOST_ROWS_OF_ONE_COLUMN))
    num_rows = -(-len(shown) // num_columns)
    most = max(1, *counts.values())
    with plain_text([title, *counts]):
        size = (max(2.4 * num_columns, 4.8), 0.17 * num_rows + 0.4)
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        figure.suptitle(f"{title}: {_classes_line(counts)}", fontsize="medium")
        for column, axis in enumerate(figure.subplots(1, num_columns, squeeze=False)[0]):
            part = shown[column * num_rows : (column + 1) * num_rows]
            lengths = [0 if label is None else count or most for label, count in part]
            axis.barh(range(len(part)), lengths, color=[_BAR if count else _WITHOUT_ROWS for _, count in part])
            axis.set(xlim=(0, most), ylim=(num_rows - 0.5, -0.5))
            axis.set_axis_off()
            for place, (label, count) in enumerate(part):
                name = "..." if label is None else shortened(label, _LONGEST_NAME_IN_PLOT)
                axis.text(0.01 * most, place, name, fontsize="small", va="center")
                if label is not None:
                    axis.text(0.99 * most, place, count, fontsize="small", va="center", ha="right")
        figure.savefig(file, format="png")
