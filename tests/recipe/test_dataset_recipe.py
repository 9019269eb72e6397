# SPDX-License-Identifier: Apache-2.0

import dataclasses

import pytest
from modeling_cover.layouts import LAYOUTS
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


SPLITS = {"train": "train", "validation": "val"}
NEEDED = {"kinetics": "media_root", "something_something": "media_root", "moments_in_time": "media_root"} | {
    "dataset": "path"
}


def recipe(format: str = "class_folders", **options) -> DatasetRecipe:
    needed = {NEEDED[format]: "somewhere"} if format in NEEDED else {}
    modality = "image" if format == "imagenet" else "video"
    return DatasetRecipe(
        **{"name": "k400", "format": format, "modality": modality, "splits": SPLITS, **needed, **options}
    )


@pytest.mark.parametrize("format", LAYOUTS)
def test_beyond_what_a_format_needs_everything_has_a_default(format):
    dataset = recipe(format)
    assert (dataset.weight, dataset.share, dataset.horizontal_flip, dataset.labels) == (1, None, True, None)
    assert (dataset.streaming, dataset.shuffle_buffer, dataset.missing_files) == (False, 100, "error")
    assert not dataset.is_multi_label


def test_a_license_is_a_name_on_one_line():
    assert recipe(license="cc-by-4.0").license == "cc-by-4.0"
    assert recipe().license is None
    for wrong in ("", "one\ntwo", 4, ["mit"]):
        with pytest.raises(ValueError, match="dataset 'k400': license must be a name on one line"):
            recipe(license=wrong)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe().weight = 2


class TestOptionsThatAFormatHasNoUseFor:
    @pytest.mark.parametrize(
        ("format", "options"),
        [
            ("class_folders", {"columns": {"path": "video"}}),
            ("class_folders", {"media_root": "videos"}),
            ("class_folders", {"streaming": True}),
            ("class_folders", {"missing_files": "skip"}),
            ("class_folders", {"problem_type": "multi_label_classification"}),
            ("manifest", {"streaming": True}),
            ("manifest", {"path": "somewhere"}),
            ("kinetics", {"columns": {"label": "class"}}),
            ("something_something", {"problem_type": "multi_label_classification"}),
            ("webdataset", {"media_root": "videos"}),
            ("parquet", {"config_name": "full"}),
            ("parquet", {"label_separator": ","}),
        ],
    )
    def test_they_are_refused_by_name(self, format, options):
        (key,) = options
        with pytest.raises(ValueError, match=f"dataset 'k400': {key} does not apply to the format '{format}'"):
            recipe(format, **options)

    @pytest.mark.parametrize("options", [{"sizes": {"train": 5}}, {"shuffle_buffer": 7}])
    def test_those_of_streaming_need_streaming(self, options):
        (key,) = options
        with pytest.raises(ValueError, match=f"dataset 'k400': {key}: of use with streaming only"):
            recipe("parquet", **options)
        assert recipe("parquet", streaming=True, **options).streaming

    def test_a_separator_of_labels_is_for_several_labels(self):
        with pytest.raises(ValueError, match="label_separator is of use to multi_label_classification only"):
            recipe("manifest", label_separator=",")
        assert recipe("manifest", label_separator=",", problem_type="multi_label_classification").is_multi_label

    @pytest.mark.parametrize(
        ("format", "columns", "known"),
        [
            ("manifest", {"media": "video"}, "path, label, start, end"),
            ("webdataset", {"path": "video"}, "label, start, end"),
            ("dataset", {"path": "video"}, "media, label, start, end"),
        ],
    )
    def test_columns_are_those_of_the_format(self, format, columns, known):
        with pytest.raises(ValueError, match=rf"columns: unknown \['\w+'\], expected some of {known}"):
            recipe(format, columns=columns)


class TestWhatAFormatNeeds:
    @pytest.mark.parametrize("format", NEEDED)
    def test_it_is_named(self, format):
        with pytest.raises(ValueError, match=f"dataset 'k400': the format '{format}' needs {NEEDED[format]}"):
            recipe(format, **{NEEDED[format]: None})

    def test_kinetics_is_of_videos(self):
        with pytest.raises(ValueError, match="the format 'kinetics' is of videos, got the modality 'image'"):
            recipe("kinetics", modality="image")


class TestColumns:
    def test_each_has_a_default_but_those_of_segments(self):
        assert [recipe("manifest").column(key) for key in ("path", "label", "start", "end")] == [
            "path",
            "label",
            None,
            None,
        ]
        assert recipe("parquet").column("media") == "video"
        assert recipe("parquet", modality="image").column("media") == "image"

    def test_some_may_be_named(self):
        dataset = recipe("manifest", columns={"path": "file", "end": "to"})
        assert [dataset.column(key) for key in ("path", "label", "start", "end")] == ["file", "label", None, "to"]


class TestPaths:
    def test_relative_ones_start_from_the_data_root(self):
        dataset = recipe("manifest", media_root="videos", labels="labels.txt").resolved("/data")
        assert dataset.splits == {"train": "/data/train", "validation": "/data/val"}
        assert (dataset.media_root, dataset.labels) == ("/data/videos", "/data/labels.txt")

    def test_absolute_ones_stay_and_a_tilde_is_the_home_folder(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/somebody")
        dataset = recipe(splits={"train": "/k400/train", "validation": "~/val"}).resolved("/data")
        assert dataset.splits == {"train": "/k400/train", "validation": "/home/somebody/val"}

    def test_a_list_of_labels_is_no_path(self):
        assert recipe(labels=["push", "pull"]).resolved("/data").labels == ["push", "pull"]

    def test_the_splits_of_a_library_dataset_are_names(self, tmp_path):
        assert recipe("dataset").resolved(tmp_path).splits == SPLITS

    def test_the_path_of_a_library_dataset_is_a_folder_if_there_is_one_and_an_id_otherwise(self, tmp_path):
        dataset = recipe("dataset", path="someone/k400")
        assert dataset.resolved(tmp_path).path == "someone/k400"
        (tmp_path / "someone/k400").mkdir(parents=True)
        assert dataset.resolved(tmp_path).path == str(tmp_path / "someone/k400")

    @pytest.mark.parametrize(
        ("root", "place", "expected"),
        [
            ("/data", "s3://bucket/train.csv", "s3://bucket/train.csv"),
            ("s3://bucket/data/", "train/*.tar", "s3://bucket/data/train/*.tar"),
            ("s3://bucket/data", ".", "s3://bucket/data"),
            ("https://host/data?sig=1", "train.csv", "https://host/data/train.csv?sig=1"),
            ("s3://bucket/data", "/train.csv", "/train.csv"),
            ("s3://bucket/data", "file:///train.csv", "/train.csv"),
        ],
    )
    def test_places_may_be_addresses_and_so_may_what_they_start_from(self, root, place, expected):
        dataset = recipe("manifest", splits={"train": place}, media_root=place, labels=place).resolved(root)
        assert (dataset.splits["train"], dataset.media_root, dataset.labels) == (expected,) * 3


class TestBadValues:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"format": "avi"}, r"format must be one of \('class_folders', .*got 'avi'"),
            ({"modality": "audio"}, r"modality must be one of \('video', 'image'\), got 'audio'"),
            ({"problem_type": "regression"}, r"problem_type must be one of .*got 'regression'"),
            ({"missing_files": "ignore"}, r"missing_files must be one of \('error', 'skip'\), got 'ignore'"),
            ({"weight": -1}, "weight must be a finite number, at least 0, got -1"),
            ({"weight": float("nan")}, "weight must be a finite number"),
            ({"weight": True}, "weight must be a finite number"),
            ({"share": 0}, "share must be a finite number above 0, got 0"),
            ({"share": float("inf")}, "share must be a finite number above 0, got inf"),
            ({"horizontal_flip": "never"}, "horizontal_flip must be true or false, got 'never'"),
            ({"streaming": 1}, "streaming must be true or false, got 1"),
            ({"augmentation": ["flip"]}, r"augmentation: expected keys and values, got \['flip'\]"),
            ({"media_root": 5}, "media_root must be a path, got 5"),
            ({"path": ""}, "path must be a path, got ''"),
            ({"config_name": 5}, "config_name must be a name, got 5"),
            ({"label_separator": ""}, "label_separator must be a string, got ''"),
            ({"shuffle_buffer": 0}, "shuffle_buffer must be a positive whole number, got 0"),
            ({"shuffle_buffer": 2.5}, "shuffle_buffer must be a positive whole number, got 2.5"),
            ({"labels": [True]}, r"labels must be a list of strings or a file, got \[True\]"),
            ({"splits": "train"}, "splits must name at least the 'train' split, got 'train'"),
            ({"splits": {"validation": "v"}}, "splits must name at least the 'train' split"),
            ({"splits": {"train": "t", "test": "t"}}, r"unknown splits \['test'\], expected train and validation"),
            ({"splits": {"train": 5}}, "splits: expected a path for each, got {'train': 5}"),
            (
                {"splits": {"train": "a", "validation": 0.2}},
                "splits: expected a path for each, .*: a share of train that is held out is `validation` of the dataset",
            ),
            ({"sizes": {"train": 0}}, "sizes: train must be a positive whole number, got 0"),
            ({"sizes": {"validation": 5}}, "sizes: expected the number of rows of the train split"),
            ({"columns": {"label": 5}}, "columns: expected names of columns, got {'label': 5}"),
            ({"columns": "label"}, "columns: expected names of columns, got 'label'"),
        ],
    )
    def test_one_is_named_with_its_dataset_and_what_was_expected(self, options, message):
        with pytest.raises(ValueError, match=f"dataset 'k400': {message}"):
            recipe(**options)

    @pytest.mark.parametrize("name", ["k.400", "k 400", "", 400, None, "mean"])
    def test_a_name_is_one_that_a_head_can_have(self, name):
        with pytest.raises(ValueError, match=f"dataset name {name!r}"):
            recipe(name=name)
