# SPDX-License-Identifier: Apache-2.0
"""The layouts that datasets come in: what a recipe may say of each, and what reads it.

The package's own are registered like a user's. A recipe names a layout and never code: what it names was registered by
the Python that reads the recipe.
"""

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from .model.configuration_cover import MODALITIES
from .recipe.checks import check_new_name


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of the files of a dataset.

    Attributes:
        read: makes rows of an entry of a recipe, the name of a split and its place.
        stream: makes a stream of an entry and the place of its train split, where the layout can be read in order.
        options: the keys of an entry, beyond those of every dataset, that it has a use for.
        required: the one among them that it needs.
        columns: that a recipe may name.
        modality: "video" or "image" where it is of one only.
        on_disk: keys that must be folders on the disk, since they are searched.
        has_named_splits: the places of splits are names and no paths.
        is_built_in: it is the package's own.
    """

    read: Callable[..., Any]
    stream: Callable[..., Any] | None = None
    options: frozenset[str] = frozenset()
    required: str | None = None
    columns: tuple[str, ...] = ()
    modality: str | None = None
    on_disk: tuple[str, ...] = ()
    has_named_splits: bool = False
    is_built_in: bool = False


def register_layout(
    name: str, read: Callable[..., Any], modality: str | None = None, options: Collection[str] = ()
) -> None:
    """Make `format: name` a layout that recipes may name, in this process.

    Args:
        name: letters, digits, "_" and "-".
        read: called as `read(dataset, split, place)` with the [`DatasetRecipe`], "train" or "validation", and where
            that is; it returns what [`file_rows`] makes.
        modality: "video" or "image" if it is of one only.
        options: those of `columns`, `label_separator`, `media_root`, `missing_files` and `problem_type` that a recipe
            may give, which are fields of `dataset`.

    Raises:
        ValueError: if the name is no name or one of the package's own layouts, or another argument is not as above.
    """
    check_new_name("layout", name)
    if name in LAYOUTS and LAYOUTS[name].is_built_in:
        raise ValueError(f"layout '{name}' is one of the package's own, choose another name")
    if not callable(read):
        raise ValueError(f"layout '{name}': read must be a function of (dataset, split, place), got {read!r}")
    if modality not in (None, *MODALITIES):
        raise ValueError(f"layout '{name}': modality must be None or one of {MODALITIES}, got {modality!r}")
    if isinstance(options, str) or (unknown := sorted(set(options) - _MANIFEST, key=str)):
        got = options if isinstance(options, str) else unknown
        raise ValueError(f"layout '{name}': options must be some of {sorted(_MANIFEST)}, got {got!r}")
    columns = _OF_FILES if "columns" in options else ()
    LAYOUTS[name] = Layout(read=read, modality=modality, options=frozenset(options), columns=columns)


def _of_sources(name: str) -> Callable[..., Any]:
    """A function of data/sources, imported as it is called: who only reads a recipe need not have `datasets`."""
    module, function = name.split(".")

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(f".data.sources.{module}", __package__), function)(*args)

    return call


def _built_in(read: str, stream: str | None = None, **known: Any) -> Layout:
    return Layout(
        read=_of_sources(read), stream=None if stream is None else _of_sources(stream), is_built_in=True, **known
    )


_STREAMING = frozenset(["streaming", "sizes", "shuffle_buffer"])
_TABLE = _STREAMING | {"columns", "media_root", "missing_files", "problem_type"}
_MANIFEST = frozenset(["columns", "media_root", "missing_files", "label_separator", "problem_type"])
_OF_FILES = ("path", "label", "start", "end")
_OF_MEDIA = ("media", "label", "start", "end")
_FILES = frozenset(["media_root", "missing_files"])
_PUBLISHED = {"options": _FILES, "required": "media_root", "modality": "video", "on_disk": ("media_root",)}

LAYOUTS = {
    "class_folders": _built_in("manifests.read_class_folders", on_disk=("splits",)),
    "manifest": _built_in("manifests.read_manifest", options=_MANIFEST, columns=_OF_FILES),
    "kinetics": _built_in("published_layouts.read_kinetics", **_PUBLISHED),
    "something_something": _built_in("published_layouts.read_something_something", **_PUBLISHED),
    "moments_in_time": _built_in("published_layouts.read_moments_in_time", **_PUBLISHED),
    "imagenet": _built_in(
        "imagenet.read_imagenet", options=_FILES | {"synsets"}, modality="image", on_disk=("splits", "synsets")
    ),
    "webdataset": _built_in(
        "tar_shards.read_shards",
        "tar_shards.stream_shards",
        options=_STREAMING | {"columns", "missing_files", "label_separator", "problem_type"},
        columns=_OF_MEDIA[1:],
    ),
    "parquet": _built_in("tables.read_table", "tables.stream_table", options=_TABLE, columns=_OF_MEDIA),
    "dataset": _built_in(
        "tables.read_table",
        "tables.stream_table",
        options=_TABLE | {"path", "config_name", "revision"},
        required="path",
        columns=_OF_MEDIA,
        on_disk=("path",),
        has_named_splits=True,
    ),
}
