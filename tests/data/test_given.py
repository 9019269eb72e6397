# SPDX-License-Identifier: Apache-2.0
"""Datasets that are given as objects: their columns, their labels, and what is decoded of them."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from clips import indexed_frames, plain_frames, write_clip
from datasets import (
    Array3D,
    Array4D,
    ClassLabel,
    Dataset,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    Video,
    concatenate_datasets,
    interleave_datasets,
)
from datasets.distributed import split_dataset_by_node
from given_datasets import Rows
from modeling_cover import EvaluationDataset, VideoDecodingError, collate_clips, heads_of
from modeling_cover.data.samples import load_frames
from modeling_cover.data.sources import Source, StreamedSource, to_source
from modeling_cover.data.sources.given import RowSource
from modeling_cover.data.sources.tables import row_order
from tiny import pixels, tiny_processor


LABELS = ["down", "up"]
CLASSES = ClassLabel(names=LABELS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """The paths of three videos of 9 frames."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{index}.mp4", indexed_frames(9)[index:]) for index in range(3)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(3)]
    for path in paths:
        PIL.Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return list(map(str, paths))


def labelled(values: list, feature: Any = None, name: str = "video") -> Dataset:
    rows = {name: values, "label": [index % 2 for index in range(len(values))]}
    return Dataset.from_dict(rows, features=Features({name: feature, "label": CLASSES}))


def frames_of(paths: list[str]) -> list[np.ndarray]:
    """(T, H, W, 3) of each file, all frames."""
    return [plain_frames(path) for path in paths]


def evaluated(data: Any, labels: list[str] | None = None) -> list[tuple[torch.Tensor, Any]]:
    """The clips (T, 3, H, W) and labels of a dataset, as the model takes them."""
    processor = tiny_processor()
    dataset = EvaluationDataset(to_source("given", data, labels=labels), processor)
    samples = [dataset[row] for row in range(len(data))]
    clips = [sample["pixel_values"] for sample in samples]
    clips = [clip if clip.is_floating_point() else processor.normalize_pixels(clip) for clip in clips]
    return list(zip(clips, (sample["labels"] for sample in samples), strict=True))


# ---- What is decoded ----

VIDEO_FORMS = {
    "arrays": lambda paths: Rows(
        [{"video": frames, "label": row % 2} for row, frames in enumerate(frames_of(paths))], LABELS
    ),
    "tensors, channels first": lambda paths: Rows(
        [
            {"video": torch.from_numpy(frames).permute(0, 3, 1, 2), "label": torch.tensor(row % 2)}
            for row, frames in enumerate(frames_of(paths))
        ],
        LABELS,
    ),
    "lists of PIL images": lambda paths: Rows(
        [
            {"video": [PIL.Image.fromarray(frame) for frame in frames], "label": np.int64(row % 2)}
            for row, frames in enumerate(frames_of(paths))
        ],
        LABELS,
    ),
    "lists of arrays": lambda paths: Rows(
        [{"video": list(frames), "label": LABELS[row % 2]} for row, frames in enumerate(frames_of(paths))], LABELS
    ),
    "Array4D": lambda paths: labelled(frames_of(paths), Array4D((None, 48, 64, 3), "uint8")),
    "List(Image)": lambda paths: labelled(
        [[PIL.Image.fromarray(frame) for frame in frames] for frames in frames_of(paths)], List(Image())
    ),
    "bytes of pixel_values": lambda paths: Rows(
        [
            {"pixel_values": torch.from_numpy(frames).permute(0, 3, 1, 2), "label": row % 2}
            for row, frames in enumerate(frames_of(paths))
        ],
        LABELS,
    ),
    "with_transform": lambda paths: Dataset.from_dict({"path": paths, "label": [0, 1, 0]}).with_transform(
        lambda rows: {"video": frames_of(rows["path"]), "label": rows["label"]}
    ),
}


@pytest.mark.parametrize("form", VIDEO_FORMS)
def test_frames_that_are_decoded_are_what_the_processor_makes_of_them(clips, form):
    found = evaluated(VIDEO_FORMS[form](clips), LABELS)
    assert [label for _, label in found] == [0, 1, 0]
    for (clip, _), frames in zip(found, frames_of(clips), strict=True):
        torch.testing.assert_close(clip, pixels(tiny_processor(), frames)[0], rtol=0, atol=0)


def test_frames_may_be_nested_lists_of_numbers():
    frames = np.random.default_rng(0).integers(0, 256, (5, 12, 16, 3))
    table = labelled([frames.tolist()], List(List(List(List(Value("uint8"))))))
    ((clip, _),) = evaluated(table)
    torch.testing.assert_close(clip, pixels(tiny_processor(), frames.astype(np.uint8))[0], rtol=0, atol=0)


IMAGE_FORMS = {
    "Image": lambda paths: labelled(paths, Image(), "image"),
    "paths": lambda paths: labelled(paths, Value("string"), "image"),
    "paths of another name": lambda paths: labelled(paths, Value("string"), "photograph"),
    "bytes": lambda paths: labelled([Path(path).read_bytes() for path in paths], Value("binary"), "image"),
    "Array3D": lambda paths: labelled(
        [np.asarray(PIL.Image.open(path)) for path in paths], Array3D((40, 48, 3), "uint8"), "image"
    ),
    "nested lists": lambda paths: Rows(
        [{"image": np.asarray(PIL.Image.open(path)).tolist(), "label": row % 2} for row, path in enumerate(paths)],
        LABELS,
    ),
    "PIL images": lambda paths: Rows(
        [{"image": PIL.Image.open(path), "label": row % 2} for row, path in enumerate(paths)], LABELS
    ),
    "PIL images under another name": lambda paths: Rows(
        [{"picture": PIL.Image.open(path), "label": row % 2} for row, path in enumerate(paths)], LABELS
    ),
}


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_images_are_clips_of_one_frame_however_they_are_given(images, form):
    data = IMAGE_FORMS[form](images)
    assert to_source("given", data, labels=LABELS).modality == "image"
    for (clip, _), path in zip(evaluated(data), images, strict=True):
        torch.testing.assert_close(clip, pixels(tiny_processor(), PIL.Image.open(path))[0], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (3, 32, 32)])
def test_floats_under_pixel_values_are_what_the_model_takes(shape):
    clip = torch.randn(shape)
    data = Rows([{"pixel_values": clip, "label": 1}], LABELS)
    assert to_source("given", data).modality == ("video" if len(shape) == 4 else "image")
    ((found, label),) = evaluated(data)
    assert torch.equal(found, clip.reshape(-1, 3, 32, 32))
    assert label == 1


@pytest.mark.parametrize("feature", [Array3D((40, 48, 3), "uint8"), Image(), List(List(List(Value("uint8"))))])
def test_streams_of_decoded_images_are_read(images, feature):
    arrays = [np.asarray(PIL.Image.open(path)) for path in images]
    values = images if isinstance(feature, Image) else [array.tolist() for array in arrays]
    stream = labelled(values, feature, "image").to_iterable_dataset()
    source = to_source("given", stream, size=3)
    processor = tiny_processor()
    read = [
        load_frames(source.example(row).media, "image", processor, processor.sample_frames) for row in source.rows()
    ]
    for clip, array in zip(read, arrays, strict=True):
        np.testing.assert_array_equal(clip[0].permute(1, 2, 0), array)


def test_arrays_keep_their_type_and_nothing_is_written(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    table = VIDEO_FORMS["Array4D"](clips)
    assert to_source("given", table).example(0).media.content.dtype == np.uint8
    frames = VIDEO_FORMS["List(Image)"](clips).shuffle(seed=0)
    before = {**frames.cache_files[0]} if frames.cache_files else {}
    evaluated(frames)
    assert row_order(frames) is not None
    assert list(tmp_path.rglob("*.arrow")) == []
    assert before == {}


def test_only_the_frames_that_are_wanted_are_decoded(clips, monkeypatch):
    from modeling_cover.data.sources import decoded

    read, original = [], decoded.read_image_tensor
    monkeypatch.setattr(decoded, "read_image_tensor", lambda content: read.append(1) or original(content))
    evaluated(VIDEO_FORMS["List(Image)"](clips))
    assert len(read) == 3 * 4


# ---- Rows and labels ----


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


# ---- Streams ----


def numbered(count: int, shards: int = 1, start: int = 0) -> IterableDataset:
    """Rows of which each has its number as the file's content."""
    rows = {"image": [str(row).encode() for row in range(start, start + count)], "label": [0] * count}
    features = Features({"image": Value("binary"), "label": CLASSES})
    return Dataset.from_dict(rows, features=features).to_iterable_dataset(num_shards=shards)


STREAMS = {
    "sharded": lambda: (numbered(12, 3), range(12)),
    "mapped": lambda: (numbered(12, 3).map(lambda row: {"label": 1}, features=numbered(1).features), range(12)),
    "mapped without features": lambda: (numbered(12, 3).map(lambda row: {"label": 1}), range(12)),
    "mapped in batches": lambda: (
        numbered(12, 2).map(lambda rows: {key: rows[key] * 2 for key in rows}, batched=True, batch_size=4),
        [row for row in range(12) for _ in range(2)],
    ),
    "filtered": lambda: (numbered(12, 3).filter(lambda row: int(row["image"]) % 2 == 0), range(0, 12, 2)),
    "concatenated": lambda: (concatenate_datasets([numbered(5, 2), numbered(4, 1, 5)]), range(9)),
    "interleaved": lambda: (interleave_datasets([numbered(4, 2), numbered(6, 2, 4)]), [0, 4, 1, 5, 2, 6, 3]),
    "interleaved until all are exhausted": lambda: (
        interleave_datasets([numbered(2), numbered(3, 1, 2)], stopping_strategy="all_exhausted_without_replacement"),
        range(5),
    ),
    "some are taken": lambda: (numbered(12, 3).skip(2).take(5), range(2, 7)),
    "repeated": lambda: (numbered(3).repeat(2), [0, 1, 2, 0, 1, 2]),
    "mapped with indices": lambda: (
        numbered(12, 3).filter(lambda row, index: index < 5, with_indices=True),
        range(5),
    ),
    "a column added": lambda: (numbered(12, 3).add_column("other", list(range(12))), range(12)),
    "the last batch dropped": lambda: (
        numbered(12, 3).map(lambda rows: rows, batched=True, batch_size=5, drop_last_batch=True),
        range(10),
    ),
    "torch's format": lambda: (numbered(12, 3).with_format("torch"), range(12)),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_has_the_rows_of_a_pass_and_resumes_at_any_of_them(kind):
    stream, expected = STREAMS[kind]()
    source = to_source("given", stream, labels=LABELS, size=len(list(expected)), shuffle_buffer=3)
    assert isinstance(source, StreamedSource)
    numbers = lambda opened, draws: [int(source.example(opened.row(draw)).media.content) for draw in draws]  # noqa: E731
    size = len(source)
    whole = numbers(source.open(seed=5), range(3 * size))
    for start in range(0, 3 * size, size):
        assert sorted(whole[start : start + size]) == sorted(expected)
    assert whole[:size] != whole[size : 2 * size]
    for draw in range(1, 2 * size, 2):
        before = source.open(seed=5)
        numbers(before, range(draw))
        after = to_source("given", STREAMS[kind]()[0], labels=LABELS, size=size, shuffle_buffer=3).open(seed=5)
        after.load_state_dict(before.state_dict(draw))
        assert numbers(after, range(draw, 3 * size)) == whole[draw:]


def test_what_a_stream_is_interleaved_of_is_not_read_piece_by_piece():
    """Each piece would end with the first of its parts that does."""
    stream = interleave_datasets([numbered(4, 2), numbered(6, 2, 4)])
    assert to_source("given", stream, size=7).stream.rows.num_shards == 1
    assert to_source("given", numbered(12, 3), size=12).stream.rows.num_shards == 3


def test_two_streams_of_one_do_not_disturb_one_another():
    """`datasets` has one place where their common part is read."""
    common = numbered(400).map(lambda row: row, features=numbered(1).features)
    opened = [
        to_source("given", stream, size=200, shuffle_buffer=10).open(seed=0)
        for stream in (common.take(200), common.skip(200))
    ]
    numbers = [[int(row["image"]) for row in (stream.row(draw).content for draw in range(200))] for stream in opened]
    assert sorted(numbers[0]) == list(range(200))
    again = [
        to_source("given", stream, size=200, shuffle_buffer=10).open(seed=0)
        for stream in (common.take(200), common.skip(200))
    ]
    for draw in range(150):
        for stream in again:
            stream.row(draw)
    for stream, expected in zip(again, numbers, strict=True):
        stream.sample_pool()
        resumed = to_source(
            "given", common.take(200) if stream is again[0] else common.skip(200), size=200, shuffle_buffer=10
        ).open(0)
        resumed.load_state_dict(stream.state_dict(150))
        assert [int(resumed.row(draw).content["image"]) for draw in range(150, 200)] == expected[150:]


def published(stream: IterableDataset, rows: int) -> IterableDataset:
    """As of the Hub, whose card says how many rows there are."""
    stream.info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=rows)})
    stream._split = datasets.Split.TRAIN
    return stream


def test_the_size_of_a_stream_is_what_its_card_says_unless_rows_were_left_out():
    assert len(to_source("given", published(numbered(12, 3), 12))) == 12
    assert len(to_source("given", published(numbered(12, 3), 12).map(dict), labels=LABELS)) == 12
    filtered = published(numbered(12, 3), 12).filter(lambda row: True)
    with pytest.raises(ValueError, match=r"dataset 'given': nothing says how many rows .*sizes=\{\"given\": \.\.\.\}"):
        to_source("given", filtered)
    assert len(to_source("given", filtered, size=12)) == 12
    doubled = published(numbered(12, 3), 12).map(lambda rows: {key: rows[key] * 2 for key in rows}, batched=True)
    with pytest.raises(ValueError, match="nothing says how many rows"):
        to_source("given", doubled, labels=LABELS)


# ---- What is no such dataset ----


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
