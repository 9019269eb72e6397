# SPDX-License-Identifier: Apache-2.0
"""Datasets that are given as objects: their rows, their labels and the heads that they need."""

import PIL.Image
import pytest
import torch
from datasets import (
    Dataset,
    Features,
    Image,
    List,
    Value,
    Video,
    concatenate_datasets,
)
from given_datasets import Rows
from given_rows import CLASSES, LABELS, evaluated, labelled
from modeling_cover import heads_of
from modeling_cover.data.sources import Source, to_source
from modeling_cover.data.sources.tables import row_order


def test_rows_are_in_the_order_that_an_indices_mapping_gives_them(clips):
    table = labelled(clips, Video(decode=False))
    mapped = concatenate_datasets([table, table]).shuffle(seed=3).select([5, 0, 2, 1])
    assert row_order(mapped) is not None
    source = to_source("given", mapped)
    assert isinstance(source, Source)
    expected = [(row["video"]["path"], row["label"]) for row in mapped]
    assert [(source.example(row).media.name, source.target(row)) for row in range(4)] == expected
    assert source.row_hashes() != to_source("given", mapped.select([0, 1, 3, 2])).row_hashes()
    assert source.row_hashes() == to_source("given", mapped.select([0, 1, 2, 3])).row_hashes()


def test_an_address_in_a_row_that_was_filtered_out_is_no_matter():
    table = Dataset.from_dict(
        {"video": [{"path": "ftp://nowhere/a.mp4", "bytes": None}, {"path": "b.mp4", "bytes": None}], "label": [0, 1]},
        features=Features({"video": Video(decode=False), "label": CLASSES}),
    )
    with pytest.raises(ValueError, match=r"dataset 'given': .*ftp"):
        to_source("given", table)
    assert len(to_source("given", table.filter(lambda row: row["label"] == 1))) == 1


def test_files_that_are_all_embedded_have_paths_without_a_type():
    """As `datasets` infers it of None alone."""
    table = Dataset.from_dict(
        {"video": [{"bytes": b"0", "path": None}, {"bytes": b"1", "path": None}], "label": [1, 0]}
    )
    source = to_source("given", table, labels=LABELS)
    assert [source.example(row).media.content for row in source.rows()] == [b"0", b"1"]


@pytest.mark.parametrize("kind", ["table", "rows", "stream"])
def test_a_list_of_classes_is_multi_label(images, kind):
    rows = {"image": images, "labels": [[0, 1], [], [1]]}
    table = Dataset.from_dict(rows, features=Features({"image": Image(), "labels": List(CLASSES)}))
    data = {"table": table, "rows": Rows(list(table.cast_column("image", Image(decode=False))), LABELS)}
    data["stream"] = table.to_iterable_dataset()
    source = to_source("given", data[kind], size=3 if kind == "stream" else None)
    assert source.problem_type == "multi_label_classification"
    targets = [source.example(row).target.tolist() for row in source.rows()]
    assert targets == [[1, 1], [0, 0], [0, 1]]


def test_names_of_a_head_make_classes_of_strings(clips):
    table = (
        labelled(clips, Value("string"))
        .cast_column("label", Value("string"))
        .map(lambda row: {"label": LABELS[int(row["label"])]})
    )
    assert [label for _, label in evaluated(table, LABELS)] == [0, 1, 0]
    with pytest.raises(ValueError, match=r"classes 'up' are not among the labels"):
        to_source("given", table, labels=["down", "left"])


def test_names_are_found_behind_a_transform_and_a_subset(clips):
    table = labelled(clips, Video(decode=False)).with_transform(lambda rows: rows)
    assert heads_of({"given": table})["given"]["labels"] == LABELS
    assert heads_of({"given": torch.utils.data.Subset(table, [0])})["given"]["labels"] == LABELS
    with pytest.raises(ValueError, match="labels: dataset 'given' names its own classes, 'down', 'up'"):
        heads_of({"given": table}, labels={"given": ["up", "down"]})


def test_a_list_of_a_fixed_length_is_multi_label(images):
    features = Features({"image": Image(decode=False), "labels": List(CLASSES, length=2)})
    table = Dataset.from_dict({"image": [{"path": images[0], "bytes": None}], "labels": [[1, 0]]}, features=features)
    assert to_source("given", table).target(0).tolist() == [1, 1]


def test_heads_are_described_by_the_datasets(clips, images):
    stream = labelled(images, Image(), "image").to_iterable_dataset()
    unnamed = Rows([{"video": clips[0], "label": 0}])
    found = heads_of({"a": labelled(clips, Video()), "b": stream, "c": unnamed}, labels={"c": ["x", "y"]})
    assert found == {
        "a": {"labels": LABELS, "modality": "video", "problem_type": "single_label_classification"},
        "b": {"labels": LABELS, "modality": "image", "problem_type": "single_label_classification"},
        "c": {"labels": ["x", "y"], "modality": "video", "problem_type": "single_label_classification"},
    }


def test_torchvision_names_the_classes(tmp_path, images):
    from torchvision.datasets import ImageFolder

    for index, path in enumerate(images[:2]):
        (tmp_path / LABELS[index]).mkdir()
        PIL.Image.open(path).save(tmp_path / LABELS[index] / "0.png")
    folder = ImageFolder(tmp_path)
    rows = Rows([{"image": image, "label": label} for image, label in folder], folder.classes)
    assert heads_of({"given": rows})["given"]["labels"] == LABELS
