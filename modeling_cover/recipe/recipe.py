# SPDX-License-Identifier: Apache-2.0
"""A recipe: the datasets of a co-training run, the model it starts from, and training arguments, as a YAML file.

data_root: data                       # what relative paths start from, a folder or an address (s3://bucket/data);
                                      # default: the current directory
# extends: base.yaml                  # another recipe, of which this one says what is different: see extending.py
model:
  from_image_checkpoint: ID_OR_FOLDER # or from_timesformer, from_encoder, from_pretrained; none: random weights
  revision: v1.0                      # of a Hub id: a branch, a tag or a commit; default: the newest
  default_head: k400                  # a dataset's name; default: the first dataset
  # keep_heads: false                 # of from_pretrained: drop the heads that no dataset trains; default: true
  lora: {r: 8}                        # train an adapter of peft's LoraConfig, and the heads; default: no adapter
  drop_path_rate: 0.1                 # any other field of CoverConfig
clips:
  num_frames: 16                      # frames of a clip
  image_size: 448                     # side of the square crop, in pixels
  short_side: 512                     # of a frame before cropping, in pixels; default: 8 / 7 of image_size
  sampling: uniform                   # over the whole video, as the paper does; dense: frame_stride apart, from a
                                      # random start; segments: a random frame of each of num_frames equal segments
  frame_stride: 1                     # of dense sampling
mixture:                              # see mixture_recipe.py
  sampling: proportional              # to the datasets' sizes; or equal, temperature, shares
  when_exhausted: repeat              # a dataset that is drawn more often than it has rows; or stop
  weights: fixed                      # each dataset's `weight`; equal_updates: they adapt, see equal_updates.py
bad_files:
  max_share: 0.05                     # of a dataset: with more files that cannot be decoded, training stops; a small
                                      # one may have as many as one of 200 rows, yet no more than half of its rows
augmentation: {}                      # of all datasets, see augmentation_recipe.py
class_lists:                          # given once, named by the `labels` of several datasets
  kinetics: labels/kinetics.txt
datasets:                             # see dataset_recipe.py for the keys of each format
  - name: k400                        # of the dataset, of its head and of its metrics
    format: class_folders             # split/class/file
    modality: video                   # or image
    splits: {train: k400/train, validation: k400/val}
    # validation: 0.2                   # the share of the train split that is held out where there is no other
    labels: kinetics                  # a class list, a file or a list; default: the classes of the train split, sorted
    license: cc-by-4.0                # of its files, for the model card
    weight: 1.0                       # w in the paper's loss (section 3.3)
    horizontal_flip: true             # false where left and right are different classes
  - name: ssv2
    format: manifest                  # CSV, TSV, JSON or JSON lines
    modality: video
    splits: {train: ssv2/train.csv, validation: ssv2/validation.csv}
    columns: {path: video, label: label}
    media_root: ssv2/videos           # what the manifest's paths start from; default: the manifest's folder
    horizontal_flip: false
    augmentation: {mixup_alpha: 0.8}  # on top of those of all datasets
training:
  learning_rate: 5.0e-3               # any field of CoverTrainingArguments
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..model.conversion_cover import check_revision
from ..model.file_access_cover import is_address
from .augmentation_recipe import Augmentation
from .checks import check_choice, check_flag, check_number, check_whole_number, checked_keys, is_text
from .dataset_recipe import DatasetRecipe
from .extending import laid_over
from .mixture_recipe import MixtureRecipe


STARTING_POINTS = ("from_image_checkpoint", "from_timesformer", "from_encoder", "from_pretrained")
CLIP_SAMPLINGS = ("uniform", "dense", "segments")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the second of two equal keys win, made to refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if nested := [key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)]:
            raise ValueError(f"line {nested[0].start_mark.line + 1}: a key must be a name")
        lines = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"line {line}: the key {key.value} was given in line {lines[key.value]} already")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


@dataclass(frozen=True, kw_only=True)
class BadFilesRecipe:
    """What to do about files that cannot be decoded.

    Attributes:
        max_share: of the rows of a split. With more bad ones than that among the rows tried so far (and among no fewer
            than 1000, or all it has), training stops. Of fewer than 200 rows as many may be bad as of 200, yet no more
            than half of them unless `max_share` is larger.
    """

    max_share: float = 0.05

    def __post_init__(self):
        check_number("bad_files: max_share", self.max_share, at_most=1)


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """What the model is fed: frames of a clip and how they are chosen, crop and short side before cropping, in
    pixels."""

    num_frames: int = 8
    image_size: int = 224
    short_side: int | None = None
    sampling: str = "uniform"
    frame_stride: int = 1

    def __post_init__(self):
        for name in ("num_frames", "image_size", "short_side", "frame_stride"):
            if name == "short_side" and self.short_side is None:
                object.__setattr__(self, name, round(self.image_size * 8 / 7))
            check_whole_number(f"clips: {name}", getattr(self, name))
        if self.short_side < self.image_size:
            raise ValueError(f"clips: short_side ({self.short_side}) is below image_size ({self.image_size})")
        check_choice("clips: sampling", self.sampling, CLIP_SAMPLINGS)
        if self.frame_stride != 1 and self.sampling != "dense":
            raise ValueError(f"clips: frame_stride has no effect with sampling '{self.sampling}'")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe, paths resolved."""

    datasets: tuple[DatasetRecipe, ...]
    clips: ClipRecipe = field(default_factory=ClipRecipe)
    mixture: MixtureRecipe = field(default_factory=MixtureRecipe)
    augmentation: Mapping[str, Any] = field(default_factory=dict)  # of all datasets, fields of `Augmentation`
    bad_files: BadFilesRecipe = field(default_factory=BadFilesRecipe)
    model: Mapping[str, Any] = field(default_factory=dict)  # starting point, `default_head`, fields of `CoverConfig`
    training: Mapping[str, Any] = field(default_factory=dict)  # fields of `CoverTrainingArguments`

    def __post_init__(self):
        names = [dataset.name for dataset in self.datasets]
        if not names:
            raise ValueError("datasets: expected at least one")
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(
                f"datasets: {', '.join(repeated)} given more than once, expected a name of its own for each"
            )
        if all(dataset.weight == 0 for dataset in self.datasets):
            raise ValueError("datasets: every weight is 0, there is nothing to train")
        self._check_weights(names)
        if len(starts := [key for key in STARTING_POINTS if key in self.model]) > 1:
            raise ValueError(f"model: expected one starting point, got {' and '.join(starts)}")
        for key in starts:
            if not is_text(self.model[key]):
                raise ValueError(f"model: {key} must be a folder, a file or a Hub id, got {self.model[key]!r}")
        if (revision := self.model.get("revision")) is not None:
            if not is_text(revision) or not starts:
                raise ValueError(f"model: revision must be that of a starting point on the Hub, got {revision!r}")
            check_revision(self.model[starts[0]], revision)
        if "default_head" in self.model and not isinstance(self.model["default_head"], str):
            raise ValueError(f"model: default_head must be a dataset's name, got {self.model['default_head']!r}")
        if "keep_heads" in self.model:
            check_flag("model: keep_heads", self.model["keep_heads"])
            if "from_pretrained" not in self.model:
                raise ValueError(
                    "model: keep_heads is about the heads that a from_pretrained brings, and there is none"
                )
        for augmentation in self.augmentations.values():
            augmentation.check(self.clips.image_size)

    def _check_weights(self, names: list[str]) -> None:
        if self.mixture.weights == "fixed":
            return
        if given := [dataset.name for dataset in self.datasets if dataset.weight != 1]:
            raise ValueError(
                f"dataset '{given[0]}': weight has no effect with `weights: equal_updates`, which sets it: ask for a share by "
                "the mixture's update_shares"
            )
        asked = self.mixture.update_shares
        if asked is not None and set(asked) != set(names):
            raise ValueError(f"mixture: update_shares: expected one for each of {names}, got {list(asked)}")

    @property
    def augmentations(self) -> dict[str, Augmentation]:
        """Of each dataset: what all have in common, and its own on top."""
        return {dataset.name: _build_augmentation(dataset, self.augmentation) for dataset in self.datasets}


def load_recipe(path: str | os.PathLike) -> Recipe:
    """Read and check a recipe.

    Raises:
        ValueError: if the file is missing or not YAML, a key is unknown, missing or given twice, or a value is not
            what the key takes; the message names the file and the culprit.
    """
    try:
        return _build_recipe(_read_content(Path(path), ()))
    # RuntimeError: "~somebody" without a home, and a file nested more deeply than Python can follow.
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RuntimeError) as error:
        raise ValueError(f"recipe {os.fspath(path)}: {error}") from error


def _read_content(path: Path, extended_by: tuple[Path, ...]) -> Any:
    """What a file says, over what the recipe says that it extends."""
    loader = _Loader(path.read_text(encoding="utf-8"))
    node = loader.get_single_node()
    content = None if node is None else loader.construct_document(node)
    _check_names(node)
    if not isinstance(content, Mapping) or content.get("extends") is None:
        return content
    content = dict(content)
    base = content.pop("extends")
    if not is_text(base):
        raise ValueError(f"extends: expected the file of another recipe, got {base!r}")
    base_path = path.parent / base
    if base_path.resolve() in (seen := (*extended_by, path.resolve())):
        raise ValueError(f"extends: {base} is extended by this recipe, and by itself")
    try:
        base_content = _read_content(base_path, seen)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"extends: {base}: {error}") from error
    if not isinstance(base_content, Mapping):
        raise ValueError(f"extends: {base}: expected keys and values, got {base_content!r}")
    return laid_over(base_content, content, STARTING_POINTS)


def _check_names(node: yaml.Node | None) -> None:
    """Raise a `ValueError` that names the lines if two datasets have one name."""
    lines = {}
    for entry in _items(_values(node).get("datasets")):
        name = _values(entry).get("name")
        if not isinstance(name, yaml.ScalarNode):
            continue
        line = name.start_mark.line + 1
        if name.value in lines:
            where = f"line {line}: datasets: '{name.value}' is the name of the one in line {lines[name.value]} already"
            raise ValueError(f"{where}, expected a name of its own for each")
        lines[name.value] = line


def _values(node: yaml.Node | None) -> dict[str, yaml.Node]:
    return {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _build_recipe(content: Any) -> Recipe:
    sections = {"data_root", "class_lists", *(field.name for field in fields(Recipe))}
    content = checked_keys("the recipe", content, sections)
    data_root = content.get("data_root", ".")
    if not is_text(data_root):
        raise ValueError(f"data_root: expected a path, got {data_root!r}")
    data_root = data_root if is_address(data_root) else Path(data_root).expanduser()
    entries = content.get("datasets")
    if not isinstance(entries, list):
        raise ValueError(f"datasets: expected a list of datasets, got {entries!r}")
    class_lists = _class_lists(_section(content, "class_lists"))
    datasets = tuple(_build_dataset(entry, index, data_root, class_lists) for index, entry in enumerate(entries))
    return Recipe(
        datasets=datasets,
        clips=_build_section(ClipRecipe, "clips", content),
        mixture=_build_section(MixtureRecipe, "mixture", content),
        bad_files=_build_section(BadFilesRecipe, "bad_files", content),
        **{key: checked_keys(key, _section(content, key), None) for key in ("augmentation", "model", "training")},
    )


def _build_section(recipe_class: type, key: str, content: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(recipe_class)}
    return recipe_class(**checked_keys(key, _section(content, key), known))


def _class_lists(content: Any) -> dict[str, str | list[str]]:
    class_lists = checked_keys("class_lists", content, None)
    for name, labels in class_lists.items():
        if not is_text(labels) and not isinstance(labels, list):
            raise ValueError(f"class_lists: {name}: expected a file or a list of labels, got {labels!r}")
    return class_lists


def _build_dataset(
    entry: Any, index: int, data_root: str | Path, class_lists: Mapping[str, str | list[str]]
) -> DatasetRecipe:
    known = {field.name for field in fields(DatasetRecipe)}
    name = entry.get("name", f"number {index + 1}") if isinstance(entry, Mapping) else f"number {index + 1}"
    entry = checked_keys(f"dataset '{name}'", entry, known)
    if missing := [key for key in ("name", "format", "modality", "splits") if key not in entry]:
        raise ValueError(f"dataset '{name}': missing {', '.join(missing)}")
    if isinstance(entry.get("labels"), str):
        entry["labels"] = class_lists.get(entry["labels"], entry["labels"])
    return DatasetRecipe(**entry).resolved(data_root)


def _build_augmentation(dataset: DatasetRecipe, common: Mapping[str, Any]) -> Augmentation:
    where = f"dataset '{dataset.name}': augmentation"
    content = {**common, **dataset.augmentation}
    if "horizontal_flip" in content:
        raise ValueError(f"{where}: horizontal_flip is a key of the dataset itself")
    return Augmentation.from_recipe(where, content, dataset.horizontal_flip)


def _section(content: Mapping[str, Any], key: str) -> Any:
    return {} if content.get(key) is None else content[key]
