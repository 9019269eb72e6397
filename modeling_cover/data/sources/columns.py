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
LISTS = (datasets.List, datasets.LargeList)


@dataclass(frozen=True)
class FoundColumns:
    """The columns that matter, and what they say of the dataset."""

    media: str
    label: str
    modality: str
    problem_type: str


def columns_of_features(
    features: datasets.Features, first_row: Callable[[], Mapping[str, Any] | None], has_names: bool = False
) -> FoundColumns:
    """The columns by their features.

    Args:
        features: of the dataset.
        first_row: reads it, its files undecoded; called only where paths must be looked at.
        has_names: whether the classes are known from elsewhere.

    Raises:
        ValueError: names the columns that there are and what to call.
    """
    by_feature = [name for name, feature in features.items() if _kind_of(feature) is not None]
    media = list(dict.fromkeys([*by_feature, *(name for name in _MEDIA if name in features)]))
    if not media:
        media = _media_keys(dict.fromkeys(features) | dict(first_row() or {}))
    column = _only_media(media, features)
    modality = _kind_of(features[column]) or _modality(column, first_row)
    classes = [name for name, feature in features.items() if isinstance(item_of(feature), datasets.ClassLabel)]
    named = [name for name in _LABELS if name in features]
    both = [name for name in named if name in classes]
    label = _only_label(both if len(both) == 1 else list(dict.fromkeys([*classes, *named])), features)
    is_list = isinstance(features[label], LISTS)
    if label not in classes:
        _check_labels(label, item_of(features[label]), is_list, has_names)
    return FoundColumns(column, label, modality, MULTI_LABEL if is_list else SINGLE_LABEL)


def columns_of_row(row: Any) -> FoundColumns:
    """The columns by the first row, where there are no features.

    Raises:
        ValueError: names the columns that there are and what to call.
    """
    if not isinstance(row, Mapping):
        expected = 'a mapping with "video", "image" or "pixel_values", and "label"'
        raise ValueError(f"expected rows that are {expected}, got {type(row).__name__}")
    media = _only_media(_media_keys(row), row)
    label = _only_label([name for name in _LABELS if name in row], row)
    is_list = isinstance(row[label], list | tuple) or getattr(row[label], "ndim", 0) == 1
    return FoundColumns(media, label, _modality(media, lambda: row), MULTI_LABEL if is_list else SINGLE_LABEL)


def item_of(feature: Any) -> Any:
    return feature.feature if isinstance(feature, LISTS) else feature


def _kind_of(feature: Any) -> str | None:
    """The modality that a feature tells: a list of images is a video."""
    if isinstance(feature, datasets.Video):
        return "video"
    if isinstance(item_of(feature), datasets.Image):
        return "video" if isinstance(feature, LISTS) else "image"
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


def _only_media(found: list[str], columns: Mapping[str, Any]) -> str:
    if not found:
        raise ValueError(
            'no column holds videos or images: .rename_column(COLUMN, "video") or "image" says which of '
            f"{list(columns)} does"
        )
    return _only(found, "videos or images")


def _only_label(found: list[str], columns: Mapping[str, Any]) -> str:
    if not found:
        raise ValueError(f'no column holds labels: .rename_column(COLUMN, "label") says which of {list(columns)} does')
    return _only(found, "labels")


def _only(found: list[str], what: str) -> str:
    if len(found) > 1:
        names = " and ".join(map(repr, found))
        raise ValueError(f"the columns {names} all hold {what}: .remove_columns(...) leaves the one to train on")
    return found[0]


def _check_labels(column: str, feature: Any, is_list: bool, has_names: bool) -> None:
    """Raise a `ValueError` unless labels that are no `ClassLabel` are whole numbers, or names of known classes."""
    dtype = str(getattr(feature, "dtype", None))
    is_value = isinstance(feature, datasets.Value)
    kind = "List(ClassLabel(names=[...]))" if is_list else "ClassLabel(names=[...])"
    if is_value and dtype in ("string", "large_string"):
        if not has_names:
            encode = "" if is_list else f".class_encode_column({column!r}) of a Dataset, or "
            raise ValueError(
                f"column '{column}' has names, and nothing lists the classes in order: {encode}"
                f'.cast_column("{column}", {kind}), makes classes of them'
            )
    elif not is_value or not dtype.startswith(("int", "uint")):
        raise ValueError(f"column '{column}': expected classes, found {feature}: .cast_column(\"{column}\", {kind})")
