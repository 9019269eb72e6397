# SPDX-License-Identifier: Apache-2.0
"""Features that are computed once, and kept in a file with what they are of."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers.utils import logging

from ..files import replacing
from ..model.modeling_cover import CoverForVideoClassification
from .metrics import readable_rows
from .running import RowOutputs
from .views import ViewsDataset


logger = logging.get_logger(__name__)

_KEY = "features_of"  # of the file's metadata


def cached_features(
    path: str | os.PathLike,
    identity: dict[str, Any],
    compute: Callable[[], RowOutputs],
    accelerator: Accelerator | None = None,
) -> RowOutputs:
    """The features in a safetensors file, if they are of what `identity` says, see [`features_identity`]; computed and
    written there if not.

    All processes of `accelerator` must call this and see the same files; by default there is one.
    """
    path, accelerator = Path(path), accelerator or Accelerator()
    stored = _read(path)
    accelerator.wait_for_everyone()  # until all of them have looked
    if stored is not None and stored[0] == identity:
        logger.info(f"{path}: features are there already")
        return stored[1]
    if stored is not None:
        different = [key for key in identity if stored[0].get(key) != identity[key]]
        logger.warning(f"{path} has features of another {' and '.join(different)}, they are computed again")
    outputs = compute()
    if accelerator.is_main_process:
        tensors = {"features": outputs.outputs, "targets": outputs.targets}
        metadata = {_KEY: json.dumps(identity, sort_keys=True), "seconds": str(outputs.seconds)}
        with replacing(path) as file:
            save_file(tensors, file.name, metadata)
    return outputs


def features_identity(model: CoverForVideoClassification, dataset: ViewsDataset) -> dict[str, Any]:
    """What features depend on. Of the files it has the names and not the content: remove the cache where the content
    changes."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.cover.state_dict().items()):
        weights.update(name.encode())
        weights.update(np.ascontiguousarray(tensor.float().cpu().numpy()))
    source = dataset.source
    identity = {
        "encoder": weights.hexdigest(),
        "dataset": [source.name, list(source.roots), len(source), source.row_hashes()],
        "classes": source.labels,
        "views": [str(dataset.views), dataset.frame_order, dataset.seed],
        "processor": dataset.processor.to_dict(),
    }
    return json.loads(json.dumps(identity))


def _read(path: Path) -> tuple[dict[str, Any], RowOutputs] | None:
    """What a file says it is of, and its features; None if there is none, or half of one."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            outputs = RowOutputs(file.get_tensor("features"), file.get_tensor("targets"), float(metadata["seconds"]))
            return json.loads(metadata[_KEY]), outputs
    except (SafetensorError, KeyError, ValueError) as error:
        logger.warning(f"{path} is no file of features, they are computed again: {error}")
        return None


def without_unreadable(outputs: RowOutputs) -> tuple[np.ndarray, np.ndarray]:
    """Features and targets of the rows that could be decoded."""
    readable = readable_rows(outputs.targets)
    return outputs.outputs[readable], outputs.targets[readable]
