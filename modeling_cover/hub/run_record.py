# SPDX-License-Identifier: Apache-2.0
"""The record of a training run, `training_summary.json` beside the weights, of which model cards are made."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import finite, write_json
from .checkpoint_files import SUMMARY_NAME


RANDOM_WEIGHTS = "random_weights"  # what a run starts from without a checkpoint

_VERSION = 1


def read_summary(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The record of the run that has written a checkpoint's folder; None if there is none.

    Raises:
        ValueError: if it is damaged, or of a version of this package that is not known.
    """
    path = Path(folder) / SUMMARY_NAME
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(summary, dict) or summary.get("version") != _VERSION:
        raise ValueError(f"{path}: expected version {_VERSION} of a training summary")
    # Earlier records have no parts, nor commits, the license of what a run started from, or shares of the update.
    summary.setdefault("parts", [])
    for origin in (summary.get("starting_point"), *summary.get("datasets", ())):
        if origin is not None:
            origin.setdefault("commit", None)
            origin.setdefault("license", None)
    for dataset in summary.get("datasets", ()):
        dataset.setdefault("update_share", None)
    return summary


def write_summary(summary: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Write a record; numbers that JSON does not know become their names, such as "inf"."""
    write_json(Path(folder) / SUMMARY_NAME, finite({"version": _VERSION, **summary}, str), indent=2)
