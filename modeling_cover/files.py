# SPDX-License-Identifier: Apache-2.0
"""Files that are what they say, whatever is written into them."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """A value for JSON, which has neither NaN nor infinity: None in their place, however deep they are."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, **options: Any) -> bytes:
    """JSON in UTF-8 that any reader takes; `options` as of `json.dumps`."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, **options)
    # A lone surrogate, which UTF-8 lacks, stands for a byte of a file's name that is not UTF-8: `\udc80`, as in JSON.
    return text.encode("utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: Any, **options: Any) -> None:
    """Write [`to_json`] and the end of the line."""
    Path(path).write_bytes(to_json(value, **options) + b"\n")
