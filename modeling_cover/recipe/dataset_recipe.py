# SPDX-License-Identifier: Apache-2.0
"""One entry under `datasets` in a recipe: a dataset, in which layout it comes, and how it is trained on."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..layouts import LAYOUTS, Layout
from ..model.configuration_cover import HEAD_NAME, MODALITIES, MULTI_LABEL, SINGLE_LABEL, check_head_kind
from ..model.file_access_cover import is_address, joined, protocol_of
from .checks import check_choice, check_flag, check_known, check_number, check_positive, check_whole_number, is_text


MISSING_FILES = ("error", "skip")
SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class DatasetRecipe:
    """One dataset of the mixture.

    Attributes:
        name: of the dataset, of its head and of its metrics.
        format: the layout of its files, one of `LAYOUTS`; see [`~modeling_cover.data.sources.read_sources`] for each.
        modality: "video" or "image".
        splits: where "train" and, if there is one, "validation" are: a folder, a file, a pattern or a split's name. Of
            a manifest and of lists, shards and Parquet files, they may be addresses such as s3://bucket/train.csv.
        validation: the share, between 0 and 1, of the train split that is held out as the validation split, where
            there is no other; see [`~modeling_cover.data.sources.held_out.held_out`].
        license: of its files, an identifier of the Hub such as "cc-by-4.0" or a name; written into the model card.
        weight: w in the paper's loss (section 3.3).
        share: of the samples, where the mixture's shares are explicit.
        horizontal_flip: false where left and right are different classes.
        augmentation: of its training samples; not checked here.
        head: of the model for it, such as {type: mlp, hidden_size: 512}; default: linear, or that of a checkpoint.
        problem_type: "single_label_classification" or "multi_label_classification".
        columns: names of the columns, or of the keys of a JSON object: `label`; `start` and `end` of a segment, in
            seconds; `path` in a manifest, `media` in Parquet files and datasets.
        label_separator: between the labels of a multi-label cell of text.
        media_root: the folder that paths start from, here or elsewhere; default: the manifest's.
        synsets: of `imagenet`, the file of the names of its synsets: LOC_synset_mapping.txt or meta.mat.
        labels: the classes in order, or a file of them; default: the source's own, or the train split's, sorted.
        missing_files: "error", or "skip" to leave out the rows whose file is absent. Remote files are not looked for
            at the start: one that is absent is a bad file when it is read.
        path: of a `dataset`, a folder or a Hub id.
        config_name: of a `dataset`.
        revision: of a `dataset` on the Hub: a branch, a tag or a commit; default: the newest.
        streaming: whether the train split is read in order instead of by index.
        sizes: rows of the train split, needed where it is streamed and does not say how many it has.
        shuffle_buffer: rows of the blocks in which a streamed split is shuffled.

    Raises:
        ValueError: if a value is not what its key takes, or the format has no use for the key.
    """

    name: str
    format: str
    modality: str
    splits: Mapping[str, str]
    validation: float | None = None
    license: str | None = None
    weight: float = 1.0
    share: float | None = None
    horizontal_flip: bool = True
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    problem_type: str = SINGLE_LABEL
    columns: Mapping[str, str] = field(default_factory=dict)
    label_separator: str = "|"
    media_root: str | None = None
    synsets: str | None = None
    labels: str | list[str] | None = None
    missing_files: str = "error"
    path: str | None = None
    config_name: str | None = None
    revision: str | None = None
    streaming: bool = False
    sizes: Mapping[str, int] | None = None
    shuffle_buffer: int = 100

    def __post_init__(self):
        if not isinstance(self.name, str) or not HEAD_NAME.fullmatch(self.name):
            raise ValueError(f"dataset name {self.name!r}: expected letters, digits, '_' and '-' (not at the start)")
        if self.name == "mean":
            raise ValueError("dataset name 'mean': the mean over datasets is logged under that name")
        try:
            self._check_values()
            self._check_splits()
            self._check_options()
            self._check_columns()
        except ValueError as error:
            raise ValueError(f"dataset '{self.name}': {error}") from error

    def _check_values(self) -> None:
        check_known("format", self.format, LAYOUTS, "register_layout")
        check_choice("modality", self.modality, MODALITIES)
        check_choice("problem_type", self.problem_type, (SINGLE_LABEL, MULTI_LABEL))
        check_choice("missing_files", self.missing_files, MISSING_FILES)
        check_number("weight", self.weight)
        if self.share is not None:
            check_positive("share", self.share)
        for key in ("horizontal_flip", "streaming"):
            check_flag(key, getattr(self, key))
        if not isinstance(self.augmentation, Mapping):
            raise ValueError(f"augmentation: expected keys and values, got {self.augmentation!r}")
        if self.head != {}:
            check_head_kind(self.head)
        if not isinstance(self.columns, Mapping) or not all(is_text(column) for column in self.columns.values()):
            raise ValueError(f"columns: expected names of columns, got {self.columns!r}")
        for key in ("media_root", "synsets", "path", "config_name", "revision"):
            if getattr(self, key) is not None and not is_text(getattr(self, key)):
                expected = {"config_name": "a name", "revision": "a branch, a tag or a commit"}.get(key, "a path")
                raise ValueError(f"{key} must be {expected}, got {getattr(self, key)!r}")
        if self.license is not None and (not is_text(self.license) or not self.license.isprintable()):
            raise ValueError(f"license must be a name on one line, such as cc-by-4.0, got {self.license!r}")
        if not is_text(self.label_separator):
            raise ValueError(f"label_separator must be a string, got {self.label_separator!r}")
        check_whole_number("shuffle_buffer", self.shuffle_buffer)
        labels = self.labels if isinstance(self.labels, list) else [self.labels]
        if self.labels is not None and not all(is_text(label) for label in labels):
            raise ValueError(f"labels must be a list of strings or a file, got {self.labels!r}")

    def _check_splits(self) -> None:
        if not isinstance(self.splits, Mapping) or "train" not in self.splits:
            raise ValueError(f"splits must name at least the 'train' split, got {self.splits!r}")
        if unknown := set(self.splits) - set(SPLITS):
            raise ValueError(f"unknown splits {sorted(unknown, key=str)}, expected train and validation")
        if not all(is_text(place) for place in self.splits.values()):
            message = f"splits: expected a path for each, got {self.splits!r}"
            if isinstance(self.splits.get("validation"), float):
                message += ": a share of train that is held out is `validation` of the dataset, beside `splits`"
            raise ValueError(message)
        if self.validation is not None:
            self._check_validation()
        if self.sizes is not None:
            if not isinstance(self.sizes, Mapping) or set(self.sizes) != {"train"}:
                raise ValueError(f"sizes: expected the number of rows of the train split, got {self.sizes!r}")
            check_whole_number("sizes: train", self.sizes["train"])

    def _check_validation(self) -> None:
        check_positive("validation", self.validation)
        if self.validation >= 1:
            raise ValueError(f"validation must be a share of the train split, below 1, got {self.validation!r}")
        if "validation" in self.splits:
            raise ValueError("validation: `splits` names a validation split already, leave one of the two out")
        if self.streaming:
            raise ValueError("validation: of a streamed train split no rows can be held out, name a validation split")

    def _check_options(self) -> None:
        """Raise a `ValueError` for a key that has no effect, or that the format needs and is missing."""
        for key in frozenset().union(*(layout.options for layout in LAYOUTS.values())) - self.layout.options:
            if self._is_given(key):
                raise ValueError(f"{key} does not apply to the format '{self.format}'")
        if self._is_given("label_separator") and self.problem_type != MULTI_LABEL:
            raise ValueError(f"label_separator is of use to {MULTI_LABEL} only")
        if not self.streaming and (unused := [key for key in ("sizes", "shuffle_buffer") if self._is_given(key)]):
            raise ValueError(f"{' and '.join(unused)}: of use with streaming only")
        layout = self.layout
        if layout.required is not None and getattr(self, layout.required) is None:
            raise ValueError(f"the format '{self.format}' needs {layout.required}")
        if layout.modality not in (None, self.modality):
            expected = f"of {layout.modality}s, got the modality '{self.modality}'"
            raise ValueError(f"the format '{self.format}' is {expected}")

    def _check_columns(self) -> None:
        known = self.layout.columns
        if unknown := sorted(set(self.columns) - set(known), key=str):
            raise ValueError(f"columns: unknown {unknown}, expected some of {', '.join(known)}")

    def _is_given(self, key: str) -> bool:
        (of_key,) = [field for field in fields(self) if field.name == key]
        return getattr(self, key) != (of_key.default_factory() if of_key.default is MISSING else of_key.default)

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.format]

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == MULTI_LABEL

    @property
    def split_names(self) -> tuple[str, ...]:
        """Those of `splits`, and of one that is held out."""
        return (*self.splits, "validation") if self.validation is not None else tuple(self.splits)

    def column(self, key: str) -> str | None:
        """The name of a column; None for `start` and `end` of whole files."""
        default = {"path": "path", "media": self.modality, "label": "label"}
        return self.columns.get(key, default.get(key))

    def resolved(self, data_root: str | os.PathLike) -> "DatasetRecipe":
        """The same with paths that start from `data_root`, a folder or an address; addresses stay as they are.

        The splits of a `dataset` are names, and so is its `path` where there is no such folder: an id on the Hub.
        """
        changes = {}
        if not self.layout.has_named_splits:
            changes["splits"] = {split: _located(data_root, place) for split, place in self.splits.items()}
        for key in ("media_root", "synsets"):
            if getattr(self, key) is not None:
                changes[key] = _located(data_root, getattr(self, key))
        if isinstance(self.labels, str):
            changes["labels"] = _located(data_root, self.labels)
        if self.path is not None and os.path.exists(path := _located(data_root, self.path)):
            changes["path"] = path
        return replace(self, **changes)


def _located(root: str | os.PathLike, place: str) -> str:
    """Where a place is, which starts from `root` unless it is absolute; both may be addresses."""
    if protocol_of(place) in ("file", "local") and is_address(place):
        place = place.partition("://")[2]
    if is_address(place):
        return place
    path = Path(place).expanduser()
    if is_address(os.fspath(root)) and not path.is_absolute():
        return joined(os.fspath(root), place)
    return str(Path(root) / path)
