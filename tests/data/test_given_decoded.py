# SPDX-License-Identifier: Apache-2.0
"""Datasets that are given as objects: rows that are decoded already, in each form."""

from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import (
    Array3D,
    Array4D,
    Dataset,
    Image,
    List,
    Value,
    concatenate_datasets,
)
from given_datasets import Rows
from given_rows import LABELS, evaluated, frames_of, labelled
from modeling_cover.data.samples import load_frames
from modeling_cover.data.sources import to_source
from tiny import pixels, tiny_processor


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


def test_arrays_keep_their_type(clips):
    assert to_source("given", VIDEO_FORMS["Array4D"](clips)).example(0).media.content.dtype == np.uint8


@pytest.mark.parametrize("form", ["Array4D", "List(Image)"])
def test_nothing_is_copied_to_the_disk(clips, tmp_path, form):
    """`datasets` would write what it casts or maps beside a dataset that is on the disk."""
    VIDEO_FORMS[form](clips).save_to_disk(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    table = datasets.load_from_disk(str(tmp_path))
    evaluated(table)
    evaluated(concatenate_datasets([table, table]).shuffle(seed=0, keep_in_memory=True))
    assert sorted(tmp_path.rglob("*")) == before
    table.map(lambda row: {"label": 1 - row["label"]})
    assert sorted(tmp_path.rglob("*")) != before


def test_only_the_frames_that_are_wanted_are_decoded(clips, monkeypatch):
    from modeling_cover.data.sources import decoded

    read, original = [], decoded.read_image_tensor
    monkeypatch.setattr(decoded, "read_image_tensor", lambda content: read.append(1) or original(content))
    evaluated(VIDEO_FORMS["List(Image)"](clips))
    assert len(read) == 3 * 4
