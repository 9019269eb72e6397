# SPDX-License-Identifier: Apache-2.0
"""ImageNet (ILSVRC 2012), in the files that are published: images of a class in a folder named after its synset, a
folder of validation images without classes, and a file that says what these show.

                 train images                  validation images               their synsets           names of synsets
image-net.org    n01440764/n01440764_18.JPEG   ILSVRC2012_val_00000001.JPEG    ..._ground_truth.txt    meta.mat
Kaggle           the same                      the same                        LOC_val_solution.csv    LOC_synset_
                                                                                                       mapping.txt
"""

import importlib.util
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from ...recipe.dataset_recipe import DatasetRecipe
from ...text import some
from .label_lists import LabelColumnBuilder
from .manifests import Records, SplitRows, existing_rows, read_class_folders
from .spelling import normal_name


_SYNSET = re.compile(r"n\d{8}")


def read_imagenet(dataset: DatasetRecipe, split: str, place: str) -> SplitRows:
    """Images in folders named after their synsets; or, where `place` is a file of ground truth, those that lie
    together in `media_root`.

    The classes are the synsets' names ("tench, Tinca tinca"), in the order of their ids, where `synsets` is given; a
    name that two synsets have gets the id behind it. Without it, they are the ids.

    Raises:
        ValueError: if a file is missing or not what its name says, or has a synset that `synsets` lacks.
    """
    synsets = None if dataset.synsets is None else _Synsets(dataset.synsets)
    if os.path.isdir(place):
        return _in_folders(dataset, split, place, synsets)
    if dataset.media_root is None:
        raise ValueError(f"{place} is a list: media_root must name the folder of its images")
    if Path(place).suffix.lower() == ".csv":
        return _in_solution(dataset, split, place, synsets)
    return _in_ground_truth(dataset, split, place, synsets)


def _in_folders(dataset: DatasetRecipe, split: str, place: str, synsets: "_Synsets | None") -> SplitRows:
    rows = read_class_folders(dataset, split, place)
    if synsets is None:
        return rows
    ids = rows.labels.values
    labels = replace(rows.labels, values=[synsets.name(synset, os.path.join(place, synset)) for synset in ids])
    # Those that are there: some train on 100 of the classes.
    return replace(rows, labels=labels, names=[synsets.names[synset] for synset in sorted(ids)])


def _in_solution(dataset: DatasetRecipe, split: str, place: str, synsets: "_Synsets | None") -> SplitRows:
    """Those of Kaggle's list, in which a synset and its box follow one another, all of one synset."""
    paths, numbers, labels = [], [], LabelColumnBuilder(multi_label=False)
    records = Records(place, ["ImageId", "PredictionString"])
    for image, boxes in records:
        synset = next(iter(boxes.split()), "")
        if not image or not _SYNSET.fullmatch(synset):
            expected = "expected an image and a synset such as n01440764"
            raise ValueError(f"{records.place()}: {expected}, got {image!r} and {boxes!r}")
        paths.append(f"{image}.JPEG")
        numbers.append(records.number)
        labels.append(synset if synsets is None else synsets.name(synset, records.place()))
    root = dataset.media_root
    return existing_rows(dataset, split, root, paths, labels.build(), lambda row: records.place(numbers[row]))


def _in_ground_truth(dataset: DatasetRecipe, split: str, place: str, synsets: "_Synsets | None") -> SplitRows:
    """Those of the development kit's list: on line i, the number in meta.mat of what the i-th image shows."""
    if synsets is None or not synsets.of_number:
        raise ValueError(f"{place} has numbers of synsets: `synsets` must name the meta.mat that lies beside it")
    paths, labels = [], LabelColumnBuilder(multi_label=False)
    for number, line in enumerate(Path(place).read_text(encoding="utf-8").split(), start=1):
        synset = synsets.of_number.get(int(line)) if line.isdecimal() else None
        if synset is None:
            raise ValueError(f"{place}, line {number}: expected the number of a synset in meta.mat, got {line!r}")
        paths.append(f"ILSVRC2012_val_{number:08d}.JPEG")
        labels.append(synsets.names[synset])
    if not paths:
        raise ValueError(f"{place}: no lines")
    return existing_rows(
        dataset, split, dataset.media_root, paths, labels.build(), lambda row: f"{place}, line {row + 1}"
    )


class _Synsets:
    """The names of synsets by their ids, `names`; and their ids by their numbers in meta.mat, `of_number`."""

    def __init__(self, path: str):
        if not os.path.isfile(path):
            raise ValueError(f"synsets: {path} is not a file")
        self._path = path
        self.of_number: dict[int, str] = {}
        found = self._in_matlab() if path.endswith(".mat") else self._in_text()
        words = {synset: normal_name(name) for synset, name in found.items()}
        repeated = {name for name, count in Counter(words.values()).items() if count > 1}  # two are called "crane"
        self.names = {synset: f"{name} ({synset})" if name in repeated else name for synset, name in words.items()}

    def name(self, synset: str, place: str) -> str:
        """Raises a `ValueError` that names the place of a synset that is not in the file."""
        if synset not in self.names:
            raise ValueError(f"{place}: {synset} is not among the synsets of {self._path} ({some(list(self.names))})")
        return self.names[synset]

    def _in_text(self) -> dict[str, str]:
        """Of lines such as "n01440764 tench, Tinca tinca"."""
        words = {}
        for number, line in enumerate(Path(self._path).read_text(encoding="utf-8").splitlines(), start=1):
            synset, _, name = line.strip().partition(" ")
            if not _SYNSET.fullmatch(synset) or not name.strip():
                expected = "expected a synset and its name, such as n01440764 tench, Tinca tinca"
                raise ValueError(f"synsets: {self._path}, line {number}: {expected}, got {line!r}")
            words[synset] = name.strip()
        if not words:
            raise ValueError(f"synsets: {self._path}: no lines")
        return words

    def _in_matlab(self) -> dict[str, str]:
        """Of the development kit's meta.mat, a record for each synset; those that others belong to are left out."""
        if importlib.util.find_spec("scipy") is None:
            raise ValueError(f"synsets: {self._path} is read by scipy: pip install modeling-cover[imagenet]")
        from scipy.io import loadmat

        fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
        try:
            records = loadmat(self._path, squeeze_me=True, variable_names=["synsets"])["synsets"]
            rows = list(zip(*(records[field].tolist() for field in fields), strict=True))
        except (KeyError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise ValueError(f"synsets: {self._path} is not the meta.mat of ILSVRC 2012: {error}") from error
        leaves = [(int(number), str(synset), str(name)) for number, synset, name, children in rows if not children]
        self.of_number = {number: synset for number, synset, _ in leaves}
        return {synset: name for _, synset, name in leaves}
