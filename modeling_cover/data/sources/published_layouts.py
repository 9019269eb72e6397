# SPDX-License-Identifier: Apache-2.0
"""Kinetics, Something-Something v2 and Moments in Time, in the files that their authors publish.

Kinetics              train.csv       label,youtube_id,time_start,time_end,split       {id}_{start:06d}_{end:06d}.mp4
Something-Something   train.json      [{"id": ..., "template": "Holding [something]"}]                      {id}.webm
Moments in Time       trainingSet.csv no header; path,label,votes for,votes against        training/{path}
"""

import os
from array import array
from collections.abc import Sequence

from ...recipe.dataset_recipe import DatasetRecipe
from .label_lists import LabelColumnBuilder
from .manifests import MissingColumnError, Records, SplitRows, existing_rows
from .media import VIDEO_SUFFIXES, file_names
from .spelling import PathForms


# What the published files call a split. The test split serves as validation where a file has just that.
_KINETICS_SPLITS = {"train": (("train",),), "validation": (("val", "validate", "validation"), ("test",))}
_KINETICS_NAMES = ("train", "val", "validate", "validation", "test")
_KINETICS_FOLDERS = {"train": ("train",), "validation": ("val", "validate", "validation", "test")}
_MOMENTS_FOLDERS = {"train": "training", "validation": "validation"}


def read_kinetics(dataset: DatasetRecipe, split: str, place: str) -> SplitRows:
    """The clips of a published Kinetics list.

    They lie under `media_root`, or a folder of it named after the split ("train", "val"), all together or in a folder
    for each class, the spaces in whose name may be underscores.
    """
    columns = ["label", "youtube_id", "time_start", "time_end", "split"]
    rows = []
    records = Records(place, columns)
    try:
        for label, clip, start, end, part in records:
            for value in (label, clip, part):
                if not isinstance(value, str) or not value:
                    raise ValueError(
                        f"{records.place()}: expected text for label, youtube_id and split, got {(label, clip, part)}"
                    )
            if part not in _KINETICS_NAMES:
                raise ValueError(f"{records.place()}: split must be one of {_KINETICS_NAMES}, got {part!r}")
            if not (str(start).isdecimal() and str(end).isdecimal()):
                expected = "time_start and time_end must be whole seconds"
                raise ValueError(f"{records.place()}: {expected}, got {start!r} and {end!r}")
            rows.append((part, label, f"{clip}_{int(start):06d}_{int(end):06d}", records.number))
    except MissingColumnError as error:
        hint = ": the list of a test split without labels" if error.columns == ["label"] else ""
        raise ValueError(f"{error}{hint}") from error
    parts = {part for part, *_ in rows}
    wanted = next((names for names in _KINETICS_SPLITS[split] if parts & set(names)), ())
    if not wanted:
        raise ValueError(f"{place}: no rows of the {split} split, but of {', '.join(sorted(parts))}")
    kept = [row for row in rows if row[0] in wanted]
    files = _FileFinder(dataset.media_root, ["", *_KINETICS_FOLDERS[split]], ".mp4")
    return _found_rows(dataset, split, records, files, [row[1:] for row in kept], label_folders=True)


def read_something_something(dataset: DatasetRecipe, split: str, place: str) -> SplitRows:
    """The clips of a published Something-Something list; the label is the template without its brackets."""
    rows = []
    records = Records(place, ["id", "template"])
    try:
        for clip, template in records:
            if not isinstance(clip, str | int) or not isinstance(template, str) or not template:
                raise ValueError(f"{records.place()}: expected an id and a template, got {clip!r} and {template!r}")
            rows.append((template.replace("[", "").replace("]", ""), str(clip), records.number))
    except MissingColumnError as error:
        hint = ": the list of a test split, which has no labels" if error.columns == ["template"] else ""
        raise ValueError(f"{error}{hint}") from error
    files = _FileFinder(dataset.media_root, [""], ".webm")
    return _found_rows(dataset, split, records, files, rows, label_folders=False)


def read_moments_in_time(dataset: DatasetRecipe, split: str, place: str) -> SplitRows:
    """The clips of a published list of Moments in Time, in the folder "training" or "validation" of `media_root`."""
    root = os.path.join(dataset.media_root, _MOMENTS_FOLDERS[split])
    if not os.path.isdir(root):
        raise ValueError(f"{root} is not a folder")
    paths, numbers, labels = [], array("q"), LabelColumnBuilder(multi_label=False)
    records = Records(place, ["path", "label"], header=["path", "label"])
    for path, label in records:
        if not path or not label or not isinstance(path, str):
            raise ValueError(f"{records.place()}: expected a path and a label, got {path!r} and {label!r}")
        paths.append(path)
        numbers.append(records.number)
        labels.append(label)
    return existing_rows(dataset, split, root, paths, labels.build(), lambda row: records.place(numbers[row]))


class _FileFinder:
    """Finds videos by their names without the suffix, in folders of `root`, "" for itself; of several, that of
    `suffix`."""

    def __init__(self, root: str, folders: Sequence[str], suffix: str):
        if not os.path.isdir(root):
            raise ValueError(f"media_root: {root} is not a folder")
        self.root = root
        self.suffix = suffix
        self._folders = [folder for folder in folders if os.path.isdir(os.path.join(root, folder))]
        self._listings: dict[str, dict[str, str]] = {}
        self._forms = PathForms()

    def find(self, stem: str, subfolders: Sequence[str]) -> str | None:
        """Its path from `root`, if it is in one of the folders or in one of their subfolders."""
        for folder in self._folders:
            for subfolder in subfolders:
                path = f"{folder}/{subfolder}".strip("/")
                listing = self._listings.get(path)
                if listing is None:
                    listing = self._listings[path] = self._listing(path)
                if (found := listing.get(stem)) is not None:
                    return found
        return None

    def _listing(self, folder: str) -> dict[str, str]:
        """The videos of a folder: by their names without the suffix, their paths from the root."""
        path = os.path.join(self.root, folder)
        path = self._forms.find(path) or path
        # The preferred suffix last, so that it wins; the others in an order that every process agrees on.
        names = sorted(file_names(path), key=lambda name: (name.endswith(self.suffix), name))
        parts = (os.path.splitext(name) for name in names)
        return {
            stem: os.path.relpath(os.path.join(path, stem + suffix), self.root)
            for stem, suffix in parts
            if suffix.lower() in VIDEO_SUFFIXES
        }


def _found_rows(
    dataset: DatasetRecipe,
    split: str,
    records: Records,
    files: _FileFinder,
    rows: Sequence[tuple[str, str, int]],
    label_folders: bool,
) -> SplitRows:
    """Of (label, name of the file without its suffix, number of the record)."""
    paths, absent, labels = [], [], LabelColumnBuilder(multi_label=False)
    for row, (label, stem, _) in enumerate(rows):
        path = files.find(stem, ("", label, label.replace(" ", "_")) if label_folders else ("",))
        if path is None:
            absent.append(row)
        paths.append(stem + files.suffix if path is None else path)
        labels.append(label)
    return existing_rows(
        dataset, split, files.root, paths, labels.build(), lambda row: records.place(rows[row][2]), absent=absent
    )
