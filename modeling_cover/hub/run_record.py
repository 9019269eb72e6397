# SPDX-License-Identifier: Apache-2.0
"""The record of a training run, `training_summary.json` beside the weights, of which model cards are made."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers.utils import logging

from ..files import finite, write_json
from ..model.configuration_cover import CoverConfig
from .checkpoint_files import SUMMARY_NAME


logger = logging.get_logger(__name__)

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
    if summary.get("starting_point") is not None:
        summary["starting_point"].setdefault("stale_heads", [])
    for dataset in summary.get("datasets", ()):
        dataset.setdefault("update_share", None)
    return summary


def stale_heads(summary: Mapping[str, Any] | None, config: CoverConfig) -> list[str]:
    """The heads that the run of a record had no data for, while it trained what they classify: those that came with
    the checkpoint that it started from. Where it trained nothing but heads, those that were stale before. None without
    a record."""
    if summary is None:
        return []
    trained = {dataset["name"] for dataset in summary["datasets"]}
    has_adapter = "lora" in ((summary["recipe"] or {}).get("model") or {})
    # Of another encoder the heads share a pooler, which is trained with them.
    if summary["training"].get("trained_part") == "heads" and not has_adapter and config.encoder is None:
        before = (summary["starting_point"] or {}).get("stale_heads", [])
        return [name for name in config.head_names if name in before and name not in trained]
    return [name for name in config.head_names if name not in trained]


def stale_heads_of(model: str | os.PathLike, config: CoverConfig, revision: str | None = None) -> list[str]:
    """[`stale_heads`] of a checkpoint's folder or Hub id; none, with a warning, where its record cannot be read."""
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(hf_hub_download(os.fspath(model), SUMMARY_NAME, revision=revision)).parent
        except OSError:  # there is no such file, or no network to ask
            return []
    try:
        return stale_heads(read_summary(folder), config)
    except ValueError as error:
        logger.warning(f"Which heads were trained last is not known: {error}")
        return []


def stale_heads_note(names: Sequence[str]) -> str:
    """What to tell who is shown the scores of such heads."""
    return (
        f"not trained in the last run, which trained the encoder on other data: {', '.join(names)}. Their scores may be "
        "worse than they were"
    )


def write_summary(summary: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Write a record; numbers that JSON does not know become their names, such as "inf"."""
    write_json(Path(folder) / SUMMARY_NAME, finite({"version": _VERSION, **summary}, str), indent=2)
