# SPDX-License-Identifier: Apache-2.0
"""Datasets that are given as objects: what is wrong with one, or with a row, and what to call."""

from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    Video,
    interleave_datasets,
)
from datasets.distributed import split_dataset_by_node
from given_datasets import Rows
from given_rows import CLASSES, LABELS, evaluated, labelled, numbered
from modeling_cover import VideoDecodingError, collate_clips
from modeling_cover.data.sources import to_source
from modeling_cover.data.sources.given import RowSource


def table_of(**columns: Any) -> Dataset:
    """One row; each column a feature and its value."""
    features = Features({name: feature for name, (feature, _) in columns.items()})
    return Dataset.from_dict({name: [value] for name, (_, value) in columns.items()}, features=features)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from ()


FILE = {"path": "a.mp4", "bytes": None}
A_VIDEO, A_LABEL = (Video(decode=False), FILE), (CLASSES, 0)

REFUSED = {
    "two media columns": (
        lambda: table_of(video=A_VIDEO, thumbnail=(Image(decode=False), FILE), label=A_LABEL),
        r"the columns 'video' and 'thumbnail' all hold videos or images: \.remove_columns",
    ),
    "no media column": (
        lambda: table_of(caption=(Value("string"), "a dog"), label=A_LABEL),
        r'no column holds videos or images: \.rename_column\(COLUMN, "video"\) or "image" says which of',
    ),
    "no label column": (
        lambda: table_of(video=A_VIDEO, target=(Value("int64"), 0)),
        r'no column holds labels: \.rename_column\(COLUMN, "label"\)',
    ),
    "a media column of a telling name beside another": (
        lambda: table_of(video=(Value("string"), "a.mp4"), thumbnail=(Image(decode=False), FILE), label=A_LABEL),
        "the columns 'thumbnail' and 'video' all hold videos or images",
    ),
    "a label column beside a ClassLabel": (
        lambda: table_of(video=A_VIDEO, label=(Value("int64"), 0), camera=A_LABEL),
        "the columns 'camera' and 'label' all hold labels",
    ),
    "0 and 1 for each class": (
        lambda: table_of(video=A_VIDEO, labels=(List(CLASSES), [0, 0])),
        "column 'labels': expected the classes of each row, each once",
    ),
    "a stream of one process's rows": (
        lambda: split_dataset_by_node(numbered(12), 0, 2),
        r"leave split_dataset_by_node\(\.\.\.\) out",
    ),
    "an empty DatasetDict": (datasets.DatasetDict, r'pass data\["train"\]'),
    "two label columns": (
        lambda: table_of(video=A_VIDEO, verb=A_LABEL, noun=A_LABEL),
        r"the columns 'verb' and 'noun' all hold labels",
    ),
    "labels as strings": (
        lambda: table_of(video=A_VIDEO, label=(Value("string"), "up")),
        r"column 'label' has names, .*\.class_encode_column\('label'\) of a Dataset",
    ),
    "lists of strings": (
        lambda: table_of(video=A_VIDEO, labels=(List(Value("string")), ["up"])),
        r"column 'labels' has names, .*\.cast_column\(\"labels\", List\(ClassLabel\(names=\[\.\.\.\]\)\)\)",
    ),
    "labels as floats": (
        lambda: table_of(video=A_VIDEO, label=(Value("float32"), 0.5)),
        r"column 'label': expected classes, found Value\('float32'\)",
    ),
    "a label without a class": (
        lambda: table_of(video=A_VIDEO, label=(CLASSES, -1)),
        r"column 'label', row 0.*the label -1 is none of the 2 classes' indices",
    ),
    "an empty dataset": (lambda: table_of(video=A_VIDEO, label=A_LABEL).select([]), "it has no rows"),
    "an empty map-style dataset": (lambda: Rows([], LABELS), "it has no rows"),
    "all splits": (
        lambda: datasets.DatasetDict(train=table_of(video=A_VIDEO, label=A_LABEL)),
        r'expected one split, got those of DatasetDict: pass data\["train"\]',
    ),
    "no dataset": (lambda: 3, "expected a datasets.Dataset, .*, got int"),
    "rows that are tuples": (lambda: Rows([("a.mp4", 0)], LABELS), "expected rows that are a mapping .*, got tuple"),
    "a stream of PyTorch": (
        lambda: Endless(),
        "Endless can neither say how many rows it has nor resume .*IterableDataset.from_generator",
    ),
    "a shuffled stream": (lambda: numbered(12).shuffle(seed=0, buffer_size=4), r"leave \.shuffle\(\.\.\.\) out"),
    "a stream without a size": (lambda: numbered(12), "nothing says how many rows a pass over it has: give sizes="),
    "a stream of no rows": (lambda: IterableDataset.from_generator(lambda: iter(())), "it has no rows"),
    "a source of another name": (
        lambda: to_source("other", table_of(video=A_VIDEO, label=A_LABEL)),
        "the source was made for the dataset 'other'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_a_dataset_is_told_with_its_name_and_what_to_call(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"^dataset 'given': .*{message}"):
        to_source("given", make())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table_of(video=A_VIDEO, label=(Value("int64"), 0)), r'\.cast_column\("label", ClassLabel\(names='),
        (lambda: table_of(video=A_VIDEO, label=(List(Value("int64")), [0])), r'"label", List\(ClassLabel\(names='),
        (lambda: Rows([{"video": "a.mp4", "label": 0}]), "an attribute `classes`"),
    ],
)
def test_indices_that_nothing_names_are_refused_unless_a_head_does(make, message):
    with pytest.raises(ValueError, match=f"^dataset 'given': column 'label': nothing names the classes .*{message}"):
        to_source("given", make())
    assert to_source("given", make(), labels=LABELS).labels == LABELS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": np.zeros((4, 32, 32, 3), np.float32), "label": 0}, 'got floats: .* belongs under "pixel_values"'),
        ({"video": np.zeros((32, 32, 3), np.uint8), "label": 0}, r"expected frames, .*got shape \(32, 32, 3\)"),
        ({"image": np.zeros((4, 32, 32, 3), np.uint8), "label": 0}, "expected one image, got shape"),
        ({"video": object(), "label": 0}, r"got object: \.cast_column\(COLUMN, Video\(decode=False\)\)"),
        ({"video": [], "label": 0}, "expected a file's path or bytes, .*got list"),
        ({"video": np.zeros((4, 32, 32, 3), np.uint8), "label": 2}, "'label': the label 2 is none of the 2 classes"),
        ({"video": np.zeros((4, 32, 32, 3), np.uint8), "label": "left"}, "class 'left' is not among the labels"),
        ({"image": PIL.Image.new("RGB", (8, 8)), "label": 0.5}, "a label must be a name or an index, got 0.5"),
        ({"pixel_values": torch.zeros(4, 1, 32, 32), "label": 0}, r"expected a clip \(T, 3, H, W\)"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_with_its_number(row, message):
    with pytest.raises(ValueError, match=f"row 0.*{message}"):
        evaluated(Rows([row], LABELS))


def test_a_dataset_whose_length_or_rows_change_is_told(clips):
    data = Rows([{"video": clips[0], "label": 0}] * 2, LABELS)
    source = to_source("given", data)
    data.rows[1] = {"clip": clips[0], "label": 0}
    with pytest.raises(ValueError, match="dataset 'given': row 1 has no video, but 'clip', 'label'"):
        source.example(1)
    data.rows.append(data.rows[0])
    with pytest.raises(ValueError, match="dataset 'given': it had 2 rows at first, and has 3 now"):
        source.example(0)


class Broken(Rows):
    """Its first row cannot be decoded, as torchvision and torchcodec say it."""

    def __getitem__(self, row):
        if row == 0:
            raise RuntimeError("could not push packet to decoder")
        return super().__getitem__(row)


def test_a_row_that_cannot_be_read_is_a_bad_file(clips):
    source = to_source("given", Broken([{"video": clip, "label": 0} for clip in clips], LABELS))
    with pytest.raises(VideoDecodingError, match="row 0 cannot be read: RuntimeError: could not push packet"):
        source.example(0)
    assert source.example(1).media.content == clips[1]
    with pytest.raises(ValueError, match="dataset 'given': none of its first 1 rows can be read: row 0 cannot"):
        to_source("given", Broken([{}]))


def test_floats_of_another_size_are_refused():
    data = Rows([{"pixel_values": torch.zeros(5, 3, 32, 32), "label": 0}], LABELS)
    with pytest.raises(
        ValueError, match=r"dataset 'given': pixel_values of \(5, 3, 32, 32\), expected \(4, 3, 32, 32\)"
    ):
        evaluated(data)


def test_floats_and_bytes_are_no_group():
    clips = [torch.full((4, 3, 32, 32), 200, dtype=torch.uint8), torch.zeros(4, 3, 32, 32)]
    rows = [{"pixel_values": clip, "labels": 0, "head_ids": 0, "dataset": "a"} for clip in clips]
    assert [group.dtype for group in collate_clips(rows)["pixel_values"]] == [torch.uint8, torch.float32]
    rows = [{"pixel_values": clip, "labels": 0, "head": "a"} for clip in clips]
    with pytest.raises(ValueError, match="dataset 'a': some rows are floats for the model, others bytes"):
        collate_clips(rows)
    unreadable = {**rows[0], "pixel_values": torch.zeros(4, 3, 32, 32, dtype=torch.uint8)}
    assert collate_clips([unreadable, rows[1]])["pixel_values"].dtype == torch.float32


def test_a_damaged_file_is_a_decoding_error(clips):
    for data in (labelled([b"no video"], Value("binary")), Rows([{"video": b"no video", "label": 0}], LABELS)):
        with pytest.raises(VideoDecodingError, match="row 0"):
            evaluated(data)


@pytest.mark.skipif(datasets.config.TORCHCODEC_AVAILABLE, reason="torchcodec is installed")
@pytest.mark.parametrize("kind", ["with_transform", "stream"])
def test_a_decoder_that_is_not_installed_is_named_with_how_to_go_without(clips, kind):
    table = labelled(clips, Video())
    stream = table.to_iterable_dataset().map(lambda row: row)
    data, size = {"with_transform": (table.with_transform(lambda rows: rows), None), "stream": (stream, 3)}[kind]
    with pytest.raises(ValueError, match=r"dataset 'given': .*torchcodec.*\.cast_column\(COLUMN, Video\(decode="):
        to_source("given", data, labels=LABELS, size=size)


def test_the_private_members_of_datasets_that_are_read_are_there():
    """No public one says in what order rows are, or what a stream is made of: a version without them fails here."""
    table = Dataset.from_dict({"a": [0, 1, 2]})
    assert table._indices is None
    assert table.select([2, 0])._indices.column(0).to_pylist() == [2, 0]
    stream = table.to_iterable_dataset()
    assert stream._distributed is stream._formatting is None
    assert split_dataset_by_node(stream, 0, 2)._distributed is not None
    assert stream.with_format("numpy")._formatting is not None
    filtered = stream.filter(lambda row: True)._ex_iterable
    assert not filtered.with_indices
    assert not filtered.batched
    assert type(filtered).__name__ == "FilteredExamplesIterable"
    assert filtered.ex_iterable is not None
    both = interleave_datasets([numbered(1), numbered(1)])._ex_iterable
    assert len(both.ex_iterables) == 2
    assert isinstance(to_source("given", Rows([{"video": "a.mp4", "label": 0}], LABELS)), RowSource)
