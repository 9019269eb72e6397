# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A recipe: the data sets of a co-training run, the model it starts from, and training arguments, as a YAML file.

data_root: data                       # what relative paths start from; default: the current directory
model:
  from_image_checkpoint: ID_OR_FOLDER # or from_timesformer, or from_pretrained; none of them: random weights
  default_head: k400                  # a data set's name; default: the first data set
  drop_path_rate: 0.1                 # any other field of CoverConfig
clips:
  num_frames: 16                      # frames sampled uniformly over a whole video
  image_size: 448                     # side of the square crop, in pixels
  short_side: 512                     # of a frame before cropping, in pixels; default: 8 / 7 of image_size
datasets:
  - name: k400                        # of the data set, of its head and of its metrics
    format: class_folders             # split/class/file; or manifest: a CSV file with a header line
    modality: video                   # or image
    splits: {train: k400/train, validation: k400/val}
    weight: 1.0                       # w in the paper's loss (section 3.3)
    horizontal_flip: true             # false where left and right are different classes
  - name: ssv2
    format: manifest
    modality: video
    splits: {train: ssv2/train.csv, validation: ssv2/validation.csv}
    columns: {path: video, label: label}
    media_root: ssv2/videos           # what the manifest's paths start from; default: the manifest's folder
    labels: ssv2/labels.txt           # one a line, or a list; default: those of the train split, sorted
    horizontal_flip: false
training:
  learning_rate: 5.0e-3               # any field of CoverTrainingArguments
"""

import difflib
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from .configuration_cover import HEAD_NAME, MODALITIES


FORMATS = ("class_folders", "manifest")
STARTING_POINTS = ("from_image_checkpoint", "from_timesformer", "from_pretrained")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the second of two equal keys win, made to refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if nested := [key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)]:
            raise ValueError(f"line {nested[0].start_mark.line + 1}: a key must be a name")
        keys = Counter(key.value for key, _ in node.value)
        if repeated := [key for key, count in keys.items() if count > 1]:
            raise ValueError(f"line {node.start_mark.line + 1}: keys given more than once: {', '.join(repeated)}")
        return super().construct_mapping(node, deep)


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """What the model is fed: frames of a clip, side of the crop and short side before cropping, in pixels."""

    num_frames: int = 8
    image_size: int = 224
    short_side: int | None = None

    def __post_init__(self):
        for name in ("num_frames", "image_size", "short_side"):
            value = getattr(self, name)
            if name == "short_side" and value is None:
                value = round(self.image_size * 8 / 7)
                object.__setattr__(self, name, value)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"clips: {name} must be a positive whole number, got {value!r}")
        if self.short_side < self.image_size:
            raise ValueError(f"clips: short_side ({self.short_side}) is below image_size ({self.image_size})")


@dataclass(frozen=True, kw_only=True)
class DatasetRecipe:
    """One data set of the mixture; see the module's example for each key."""

    name: str
    format: str
    modality: str
    splits: Mapping[str, str]
    weight: float = 1.0
    horizontal_flip: bool = True
    columns: Mapping[str, str] = field(default_factory=lambda: {"path": "path", "label": "label"})
    media_root: str | None = None
    labels: str | list[str] | None = None

    def __post_init__(self):
        where = f"dataset '{self.name}'"
        if not isinstance(self.name, str) or not HEAD_NAME.fullmatch(self.name):
            raise ValueError(f"dataset name {self.name!r}: expected letters, digits, '_' and '-' (not at the start)")
        if self.name == "mean":
            raise ValueError("dataset name 'mean': the mean over data sets is logged under that name")
        if self.format not in FORMATS:
            raise ValueError(f"{where}: format must be one of {FORMATS}, got {self.format!r}")
        if self.modality not in MODALITIES:
            raise ValueError(f"{where}: modality must be one of {MODALITIES}, got {self.modality!r}")
        if (
            not isinstance(self.weight, int | float)
            or isinstance(self.weight, bool)
            or not 0 <= self.weight < math.inf
        ):
            raise ValueError(f"{where}: weight must be a finite number, at least 0, got {self.weight!r}")
        if not isinstance(self.horizontal_flip, bool):
            raise ValueError(f"{where}: horizontal_flip must be true or false, got {self.horizontal_flip!r}")
        if not isinstance(self.splits, Mapping) or "train" not in self.splits:
            raise ValueError(f"{where}: splits must name at least the 'train' split, got {self.splits!r}")
        if unknown := set(self.splits) - {"train", "validation"}:
            raise ValueError(f"{where}: unknown splits {sorted(unknown)}, expected train and validation")
        if not all(_is_text(place) for place in self.splits.values()):
            raise ValueError(f"{where}: splits: expected a path for each, got {self.splits!r}")
        if (
            not isinstance(self.columns, Mapping)
            or set(self.columns) != {"path", "label"}
            or not all(_is_text(column) for column in self.columns.values())
        ):
            raise ValueError(f"{where}: columns must name the columns of path and label, got {self.columns!r}")
        if self.media_root is not None and not _is_text(self.media_root):
            raise ValueError(f"{where}: media_root must be a path, got {self.media_root!r}")
        labels = self.labels if isinstance(self.labels, list) else [self.labels]
        if self.labels is not None and not all(_is_text(label) for label in labels):
            raise ValueError(f"{where}: labels must be a list of strings or a file, got {self.labels!r}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe, paths resolved.

    Attributes:
        model: the starting point, `default_head` and fields of `CoverConfig`.
        clips: what the model is fed.
        datasets: the mixture.
        training: fields of `CoverTrainingArguments`.
    """

    datasets: tuple[DatasetRecipe, ...]
    clips: ClipRecipe = field(default_factory=ClipRecipe)
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        names = [dataset.name for dataset in self.datasets]
        if not names:
            raise ValueError("datasets: expected at least one")
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"datasets: {', '.join(repeated)} given more than once")
        if all(dataset.weight == 0 for dataset in self.datasets):
            raise ValueError("datasets: every weight is 0, there is nothing to train")
        if len(starts := [key for key in STARTING_POINTS if key in self.model]) > 1:
            raise ValueError(f"model: expected one starting point, got {' and '.join(starts)}")
        for key in starts:
            if not _is_text(self.model[key]):
                raise ValueError(f"model: {key} must be a folder, a file or a Hub id, got {self.model[key]!r}")
        if "default_head" in self.model and not isinstance(self.model["default_head"], str):
            raise ValueError(f"model: default_head must be a data set's name, got {self.model['default_head']!r}")


def load_recipe(path: str | os.PathLike) -> Recipe:
    """Read and check a recipe.

    Raises:
        ValueError: if the file is missing or not YAML, a key is unknown, missing or given twice, or a value is not
            what the key takes; the message names the file and the culprit.
    """
    try:
        return _build_recipe(_Loader(Path(path).read_text(encoding="utf-8")).get_single_data())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"recipe {os.fspath(path)}: {error}") from error


def _build_recipe(content: Any) -> Recipe:
    content = checked_keys("the recipe", content, {"data_root", "model", "clips", "datasets", "training"})
    data_root = content.get("data_root", ".")
    if not _is_text(data_root):
        raise ValueError(f"data_root: expected a path, got {data_root!r}")
    data_root = Path(data_root).expanduser()
    entries = content.get("datasets")
    if not isinstance(entries, list):
        raise ValueError(f"datasets: expected a list of data sets, got {entries!r}")
    sections = {key: checked_keys(key, _section(content, key), None) for key in ("model", "training")}
    clips = checked_keys("clips", _section(content, "clips"), {field.name for field in fields(ClipRecipe)})
    return Recipe(
        datasets=tuple(_build_dataset(entry, index, data_root) for index, entry in enumerate(entries)),
        clips=ClipRecipe(**clips),
        **sections,
    )


def _build_dataset(entry: Any, index: int, data_root: Path) -> DatasetRecipe:
    known = {field.name for field in fields(DatasetRecipe)}
    name = entry.get("name", f"number {index + 1}") if isinstance(entry, Mapping) else f"number {index + 1}"
    entry = checked_keys(f"dataset '{name}'", entry, known)
    required = [field.name for field in fields(DatasetRecipe) if _is_required(field)]
    if missing := [key for key in required if key not in entry]:
        raise ValueError(f"dataset '{name}': missing {', '.join(missing)}")
    if isinstance(entry["splits"], Mapping):
        entry["splits"] = {split: _resolved(data_root, place) for split, place in entry["splits"].items()}
    if entry.get("media_root") is not None:
        entry["media_root"] = _resolved(data_root, entry["media_root"])
    if isinstance(entry.get("labels"), str):
        entry["labels"] = _resolved(data_root, entry["labels"])
    return DatasetRecipe(**entry)


def _section(content: Mapping[str, Any], key: str) -> Any:
    return {} if content.get(key) is None else content[key]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _resolved(root: Path, place: Any) -> Any:
    # What is no path is left for DatasetRecipe to refuse.
    return str(root / Path(place).expanduser()) if _is_text(place) else place


def _is_required(dataclass_field: Any) -> bool:
    return dataclass_field.default is MISSING and dataclass_field.default_factory is MISSING


def checked_keys(where: str, content: Any, known: set[str] | None) -> dict[str, Any]:
    """A copy of the mapping `content`; a `ValueError` that says `where` for a key that is not `known`, if that is given."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected keys and values, got {content!r}")
    for key in content:
        if known is not None and key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown key '{key}', {hint}")
    return dict(content)
