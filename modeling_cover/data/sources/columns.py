# SPDX-License-Identifier: Apache-2.0
"""Which columns of a dataset hold its media and its labels, where nobody has said it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import PIL.Image

from ...recipe.dataset_recipe import MULTI_LABEL, SINGLE_LABEL
from .media import PIXEL_VALUES, SUFFIXES


_MEDIA = ("video", "image", PIXEL_VALUES)
_LABELS = ("label", "labels")
_LISTS = (datasets.List, datasets.LargeList)


@dataclass(frozen=True)
class FoundColumns:
    """The columns that matter, and what they say of the dataset."""

    media: str
    label: str
    modality: str
    problem_type: str


def columns_of_features(
    features: datasets.Features, first_row: Callable[[], Mapping[str, Any] | None]
) -> FoundColumns:
    """The columns by their features; `first_row` is read, its files undecoded, only where paths must be looked at.

    Raises:
        ValueError: names the columns that there are and what to call.
    """
    media = [name for name, feature in features.items() if _kind_of(feature) is not None]
    if not media:
        row = {} if any(name in features for name in _MEDIA) else first_row() or {}
        media = _media_keys(dict.fromkeys(features) | dict(row))
    column = _only(media, features, "videos or images", "video")
    modality = _kind_of(features[column])
    if modality is None:
        modality = _modality(column, first_row)
    classes = [name for name, feature in features.items() if isinstance(_item(feature), datasets.ClassLabel)]
    named = [name for name in _LABELS if name in features]
    label = _only((len(classes) > 1 and [name for name in classes if name in named]) or classes or named, features)
    item = _item(features[label])
    if not isinstance(item, datasets.ClassLabel):
        _check_indices(label, item, isinstance(features[label], _LISTS))
    return FoundColumns(column, label, modality, MULTI_LABEL if isinstance(features[label], _LISTS) else SINGLE_LABEL)


def columns_of_row(row: Any) -> FoundColumns:
    """The columns by the first row, where there are no features.

    Raises:
        ValueError: names the columns that there are and what to call.
    """
    if not isinstance(row, Mapping):
        expected = 'a mapping with "video", "image" or "pixel_values", and "label"'
        raise ValueError(f"expected rows that are {expected}, got {type(row).__name__}")
    media = _only(_media_keys(row), row, "videos or images", "video")
    label = _only([name for name in _LABELS if name in row], row)
    is_list = isinstance(row[label], list | tuple) or getattr(row[label], "ndim", 0) == 1
    return FoundColumns(media, label, _modality(media, lambda: row), MULTI_LABEL if is_list else SINGLE_LABEL)


def _item(feature: Any) -> Any:
    return feature.feature if isinstance(feature, _LISTS) else feature


def _kind_of(feature: Any) -> str | None:
    """The modality that a feature tells: a list of images is a video."""
    if isinstance(feature, datasets.Video):
        return "video"
    if isinstance(_item(feature), datasets.Image):
        return "video" if isinstance(feature, _LISTS) else "image"
    return None


def _media_keys(row: Mapping[str, Any]) -> list[str]:
    """Those with the names of media; without one, those that hold an image or the path of a file."""
    named = [name for name in _MEDIA if name in row]
    return named or [name for name, value in row.items() if name not in _LABELS and _modality_of(value) is not None]


def _modality_of(value: Any) -> str | None:
    """What a value is, if it is an image or its suffix tells it; a GIF may be either."""
    if isinstance(value, PIL.Image.Image):
        return "image"
    path = value.get("path") if isinstance(value, Mapping) else value
    suffix = os.path.splitext(path)[1].lower() if isinstance(path, str) else ""
    found = [modality for modality, suffixes in SUFFIXES.items() if suffix in suffixes]
    return found[0] if len(found) == 1 else None


def _modality(column: str, first_row: Callable[[], Mapping[str, Any] | None]) -> str:
    if column in ("video", "image"):
        return column
    value = (first_row() or {}).get(column)
    if column != PIXEL_VALUES:
        return _modality_of(value)
    shape = np.shape(value)
    if len(shape) not in (3, 4):
        raise ValueError(
            f"column '{PIXEL_VALUES}': expected clips (T, 3, H, W) or images (3, H, W), got shape {shape}"
        )
    return "video" if len(shape) == 4 and shape[0] > 1 else "image"


def _only(found: list[str], columns: Mapping[str, Any], what: str = "labels", name: str = "label") -> str:
    """The one column that was found; a `ValueError` if it is none or several."""
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"the columns {' and '.join(map(repr, found))} all hold {what}: .remove_columns(...) leaves the one to "
            "train on"
        )
    also = "" if what == "labels" else ' or "image"'
    raise ValueError(
        f'no column holds {what}: .rename_column(COLUMN, "{name}"){also} says which of {list(columns)} does'
    )


def _check_indices(column: str, feature: Any, is_list: bool) -> None:
    """Raise a `ValueError` unless labels that are no `ClassLabel` are whole numbers."""
    dtype = getattr(feature, "dtype", None)
    if isinstance(feature, datasets.Value) and dtype in ("string", "large_string"):
        listed = f'.cast_column("{column}", List(ClassLabel(names=[...])))'
        raise ValueError(
            f"column '{column}' has names, and nothing lists the classes in order: "
            f"{listed if is_list else f'.class_encode_column({column!r}) makes a ClassLabel of it'}"
        )
    if not isinstance(feature, datasets.Value) or not str(dtype).startswith(("int", "uint")):
        raise ValueError(
            f"column '{column}': expected classes, found {feature}: .cast_column(\"{column}\", ClassLabel(names=[...]))"
        )
