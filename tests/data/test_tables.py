# SPDX-License-Identifier: Apache-2.0

import os
import pickle
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, Video
from modeling_cover import VideoDecodingError
from modeling_cover.data.sources import read_sources
from modeling_cover.data.sources.tables import to_media
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


FILE = {"bytes": Value("binary"), "path": Value("string")}
CLASSES = ClassLabel(names=["push", "pull"])
MULTI = {"problem_type": "multi_label_classification"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """`datasets` keeps what it has read of Parquet files; not in the home folder of whoever runs the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def parquet(place, **options) -> DatasetRecipe:
    recipe = {"name": "table", "format": "parquet", "modality": "video", "splits": {"train": str(place)}}
    return DatasetRecipe(**recipe | options)


def library(path, split="train", **options) -> DatasetRecipe:
    recipe = {"name": "table", "format": "dataset", "modality": "video", "splits": {"train": split}}
    return DatasetRecipe(**recipe | {"path": str(path)} | options)


def embedded(*contents: bytes) -> list[dict]:
    return [{"bytes": content, "path": f"{index}.mp4"} for index, content in enumerate(contents)]


def table(kind=Video, label=CLASSES, labels=(1, 0, 1), **columns) -> Dataset:
    """Three rows, "A", "B" and "C"."""
    columns = {"video": embedded(b"A", b"B", b"C"), "label": list(labels), **columns}
    extra = {name: Value("float64") for name in columns if name not in ("video", "label")}
    return Dataset.from_dict(
        columns, Features({"video": kind() if kind in (Video, Image) else kind, "label": label} | extra)
    )


def rows(source) -> list[tuple[bytes | str, str]]:
    return [(media.content, source.labels[source.target(row)]) for row, media in enumerate(source.media)]


EXPECTED = [(b"A", "pull"), (b"B", "push"), (b"C", "pull")]


class TestParquet:
    @pytest.mark.parametrize("kind", [Video, FILE, Value("binary"), Value("large_binary")], ids=str)
    def test_files_are_embedded(self, tmp_path, kind):
        columns = {} if kind in (Video, FILE) else {"video": [b"A", b"B", b"C"]}
        table(kind, **columns).to_parquet(tmp_path / "x.parquet")
        source = read_sources(parquet(tmp_path / "x.parquet"))["train"]
        assert rows(source) == EXPECTED
        assert source.labels == ["push", "pull"]
        name = source.media[1].name
        assert name == f"{tmp_path}/x.parquet, row 1" + ("" if columns else " (1.mp4)")

    def test_images_are_the_encoded_files(self, tmp_path):
        table(Image).to_parquet(tmp_path / "x.parquet")
        columns = {"media": "video"}
        source = read_sources(parquet(tmp_path / "x.parquet", modality="image", columns=columns))["train"]
        assert rows(source) == EXPECTED

    @pytest.mark.parametrize("place", ["", "*.parquet", "**/*.parquet"])
    def test_a_folder_or_a_pattern_names_the_files(self, tmp_path, place):
        table().select([0, 1]).to_parquet(tmp_path / "0.parquet")
        table().select([2]).to_parquet(tmp_path / "1.parquet")
        source = read_sources(parquet(tmp_path / place))["train"]
        assert rows(source) == EXPECTED
        assert source.media[2].name == f"{tmp_path}/1.parquet, row 0 (2.mp4)"

    def test_a_name_with_signs_of_patterns_is_a_name(self, tmp_path):
        (tmp_path / "[a] {b} 100%").mkdir()
        table().to_parquet(tmp_path / "[a] {b} 100%/x?.parquet")
        table().to_parquet(tmp_path / "[a] {b} 100%/xy.parquet")
        assert rows(read_sources(parquet(tmp_path / "[a] {b} 100%"))["train"]) == EXPECTED * 2
        assert rows(read_sources(parquet(tmp_path / "[a] {b} 100%/xy.parquet"))["train"]) == EXPECTED

    def test_paths_start_from_the_files_folder_or_the_media_root(self, tmp_path):
        (tmp_path / "videos").mkdir()
        for name in "ab":
            (tmp_path / f"videos/{name}.mp4").touch()
        frame = pandas.DataFrame({"video": ["b.mp4", "a.mp4"], "label": ["push", "pull"]})
        frame.to_parquet(tmp_path / "x.parquet")
        frame.to_parquet(tmp_path / "videos/x.parquet")
        for dataset in (
            parquet(tmp_path / "x.parquet", media_root=str(tmp_path / "videos")),
            parquet(tmp_path / "videos/x.parquet"),
        ):
            source = read_sources(dataset)["train"]
            assert rows(source) == [(f"{tmp_path}/videos/b.mp4", "push"), (f"{tmp_path}/videos/a.mp4", "pull")]

    def test_a_cell_of_too_many_bytes_is_a_bad_row(self, tmp_path, monkeypatch):
        monkeypatch.setattr("modeling_cover.data.sources.media._MAX_CONTENT", 1000)
        pandas.DataFrame({"video": [bytes(2000), b"1"], "label": ["a", "b"]}).to_parquet(tmp_path / "x.parquet")
        media = read_sources(parquet(tmp_path / "x.parquet"))["train"].media
        with pytest.raises(VideoDecodingError, match=r"x\.parquet, row 0 has \d+ bytes, more than 1000"):
            media[0]
        assert media[1].content == b"1"

    def test_a_pipe_is_no_parquet_file(self, tmp_path):
        os.mkfifo(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"x\.parquet: it is no regular file, but a pipe"):
            read_sources(parquet(tmp_path))

    def test_a_path_without_a_file_is_named_or_skipped(self, tmp_path):
        (tmp_path / "a.mp4").touch()
        pandas.DataFrame({"video": ["b.mp4", "a.mp4"], "label": ["push", "pull"]}).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"dataset 'table': .*x\.parquet, row 0: .*/b\.mp4 does not exist"):
            read_sources(parquet(tmp_path / "x.parquet"))
        assert rows(read_sources(parquet(tmp_path / "x.parquet", missing_files="skip"))["train"]) == [
            (f"{tmp_path}/a.mp4", "pull")
        ]

    def test_columns_are_found_by_name_with_segments(self, tmp_path):
        columns = {"media": "video", "start": "from", "end": "to"}
        table(**{"from": [0.0, 1.5, None], "to": [1.5, None, None]}).to_parquet(tmp_path / "x.parquet")
        media = read_sources(parquet(tmp_path / "x.parquet", columns=columns))["train"].media
        assert [(item.start, item.end) for item in media] == [(0, 1.5), (1.5, None), (None, None)]

    def test_a_segment_that_is_none_is_named(self, tmp_path):
        table(**{"from": [0.0, -1.5, None]}).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"x\.parquet, row 1: start must be a number of seconds"):
            read_sources(parquet(tmp_path / "x.parquet", columns={"start": "from"}))

    def test_what_is_not_there_is_named(self, tmp_path):
        (tmp_path / "readme.md").touch()
        for place in (tmp_path, tmp_path / "x.parquet", tmp_path / "*.parquet"):
            with pytest.raises(ValueError, match=r"dataset 'table': no \.parquet files: .* is neither"):
                read_sources(parquet(place))

    def test_a_missing_column_is_named_with_those_there_are(self, tmp_path):
        table().to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"x\.parquet: no column \['class'\], found \['video', 'label'\]"):
            read_sources(parquet(tmp_path / "x.parquet", columns={"label": "class"}))

    def test_a_truncated_file_is_named(self, tmp_path):
        table().to_parquet(tmp_path / "x.parquet")
        table().to_parquet(tmp_path / "y.parquet")
        content = (tmp_path / "y.parquet").read_bytes()
        for length in (0, 3, len(content) // 2, len(content) - 1):
            (tmp_path / "y.parquet").write_bytes(content[:length])
            with pytest.raises(ValueError, match=r"dataset 'table': .*y\.parquet is truncated or no Parquet file"):
                read_sources(parquet(tmp_path))

    def test_one_without_rows_is_named(self, tmp_path):
        table().select([]).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"dataset 'table': .*x\.parquet: no rows"):
            read_sources(parquet(tmp_path / "x.parquet"))

    def test_it_can_be_sent_to_a_worker(self, tmp_path):
        table().to_parquet(tmp_path / "x.parquet")
        source = read_sources(parquet(tmp_path / "x.parquet"))["train"]
        assert rows(pickle.loads(pickle.dumps(source))) == EXPECTED  # noqa: S301
        assert source.roots
        assert all(datasets.config.HF_DATASETS_CACHE in Path(root).parents for root in source.roots)


class TestLabels:
    def test_names_give_the_classes_sorted(self, tmp_path):
        table(Video, Value("string"), ["push", "pull", "push"]).to_parquet(tmp_path / "x.parquet")
        source = read_sources(parquet(tmp_path / "x.parquet"))["train"]
        assert (source.labels, [label for _, label in rows(source)]) == (["pull", "push"], ["push", "pull", "push"])

    def test_indices_without_names_count_the_recipes(self, tmp_path):
        table(label=Value("int16")).to_parquet(tmp_path / "x.parquet")
        source = read_sources(parquet(tmp_path / "x.parquet", labels=["push", "pull"]))["train"]
        assert rows(source) == EXPECTED
        with pytest.raises(ValueError, match=r"x\.parquet, row 0 .*: the label 1 is an index"):
            read_sources(parquet(tmp_path / "x.parquet"))

    def test_names_of_the_column_keep_their_meaning_in_another_order(self, tmp_path):
        table().to_parquet(tmp_path / "x.parquet")
        source = read_sources(parquet(tmp_path / "x.parquet", labels=["pull", "push", "lift"]))["train"]
        assert rows(source) == EXPECTED
        assert source.class_counts().tolist() == [2, 1, 0]

    def test_an_index_for_no_class_is_refused(self, tmp_path):
        Dataset.from_dict({"video": [b"A"], "label": [-1]}).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="the label -1 is none of the 2 classes' indices"):
            read_sources(parquet(tmp_path / "x.parquet", labels=["push", "pull"]))

    def test_a_missing_one_is_named_with_its_row(self, tmp_path):
        table(labels=[0, None, 1]).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"x\.parquet, row 1: no label"):
            read_sources(parquet(tmp_path / "x.parquet"))

    @pytest.mark.parametrize("item", [CLASSES, Value("string")], ids=str)
    def test_there_may_be_several(self, tmp_path, item):
        labels = [[1, 0], [], [1]]
        if not isinstance(item, ClassLabel):
            labels = [[["push", "pull"][index] for index in row] for row in labels]
        table(label=List(item), labels=labels).to_parquet(tmp_path / "x.parquet")
        source = read_sources(parquet(tmp_path / "x.parquet", labels=["push", "pull"], **MULTI))["train"]
        assert [source.target(row).tolist() for row in range(3)] == [[1, 1], [0, 0], [0, 1]]
        assert source.target(0).dtype == np.float32

    def test_one_and_several_are_not_mixed_up(self, tmp_path):
        table().to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="column 'label': multi_label_classification does not go with ClassLabel"):
            read_sources(parquet(tmp_path / "x.parquet", **MULTI))
        table(label=List(Value("string")), labels=[["push"]] * 3).to_parquet(tmp_path / "y.parquet")
        with pytest.raises(ValueError, match="column 'label': single_label_classification does not go with List"):
            read_sources(parquet(tmp_path / "y.parquet"))

    def test_numbers_with_a_point_are_none(self, tmp_path):
        table(label=Value("float32")).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="column 'label': expected names or indices of classes, found float"):
            read_sources(parquet(tmp_path / "x.parquet"))

    def test_an_empty_one_is_named_with_its_row(self, tmp_path):
        table(label=Value("string"), labels=("push", "", "pull")).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"x\.parquet, row 1: the label is empty"):
            read_sources(parquet(tmp_path))

    def test_the_validation_split_may_list_its_names_in_another_order(self, tmp_path):
        table().to_parquet(tmp_path / "train.parquet")
        table(label=ClassLabel(names=["pull", "push"])).to_parquet(tmp_path / "other.parquet")
        splits = {
            split: str(tmp_path / f"{name}.parquet") for split, name in (("train", "train"), ("validation", "other"))
        }
        sources = read_sources(parquet(tmp_path, splits=splits))
        assert [label for _, label in rows(sources["train"])] == ["pull", "push", "pull"]
        assert [label for _, label in rows(sources["validation"])] == ["push", "pull", "push"]


class TestSeveralFiles:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        "label, labels", [(ClassLabel(names=["pull", "push"]), (1, 0, 1)), (Value("string"), ("a", "b", "c"))]
    )
    def test_another_type_of_a_column_is_refused(self, tmp_path, label, labels, streaming):
        table().to_parquet(tmp_path / "0.parquet")
        table(label=label, labels=labels).to_parquet(tmp_path / "1.parquet")
        with pytest.raises(ValueError, match=r"1\.parquet: column 'label': expected ClassLabel.*0\.parquet, found"):
            read_sources(parquet(tmp_path, streaming=streaming))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_other_widths_of_a_type_are_one_to_read(self, tmp_path, streaming):
        for index, (kind, label) in enumerate((("binary", "int32"), ("large_binary", "int64"))):
            table(Value(kind), Value(label), video=[b"A", b"B", b"C"]).to_parquet(tmp_path / f"{index}.parquet")
        source = read_sources(parquet(tmp_path, labels=["push", "pull"], streaming=streaming))["train"]
        assert len(source) == 6
        stream = source.open(0) if streaming else None
        found = [source.example(stream.row(draw)) for draw in range(6)] if streaming else None
        labels = [example.target for example in found] if streaming else source.classes.tolist()
        assert sorted(labels) == [0, 0, 1, 1, 1, 1]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_one_without_rows_is_passed_over(self, tmp_path, streaming):
        table().select([]).to_parquet(tmp_path / "0.parquet")
        table().to_parquet(tmp_path / "1.parquet")
        source = read_sources(parquet(tmp_path, streaming=streaming))["train"]
        assert len(source) == 3
        if not streaming:
            assert rows(source) == EXPECTED
            assert source.media[2].name.startswith(f"{tmp_path}/1.parquet, row 2")

    def test_those_of_several_splits_are_not_taken_together(self, tmp_path):
        for name in ("train-00000-of-00001", "test-00000-of-00001"):
            table().to_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=r"has files of test, train: name a pattern, such as .*/train-\*"):
            read_sources(parquet(tmp_path))
        assert rows(read_sources(parquet(tmp_path / "train-*"))["train"]) == EXPECTED


class TestMediaColumns:
    def test_images_are_no_videos(self, tmp_path):
        table(Image).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(
            ValueError, match=r"x\.parquet: column 'video': expected videos, bytes or paths, found Image"
        ):
            read_sources(parquet(tmp_path / "x.parquet"))

    def test_an_empty_cell_is_an_error_of_its_row(self, tmp_path):
        table(Value("binary"), video=[b"A", None, b""]).to_parquet(tmp_path / "x.parquet")
        media = read_sources(parquet(tmp_path / "x.parquet"))["train"].media
        assert media[0].content == b"A"
        for row in (1, 2):
            with pytest.raises(VideoDecodingError, match=rf"x\.parquet, row {row}: expected a file's bytes or path"):
                media[row]

    def test_an_address_is_read_when_the_file_is_wanted(self, tmp_path):
        address = f"file://{tmp_path}/a.mp4"
        media = to_media({"bytes": None, "path": address}, "row 0", None)
        assert media[:2] == (address, address)
        (tmp_path / "a.mp4").write_bytes(b"A")
        with media.on_disk() as local:
            assert local[:2] == (f"{tmp_path}/a.mp4", address)

    def test_a_file_in_an_archive_is_named_as_the_library_names_it_when_it_streams(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MODELING_COVER_CACHE", str(tmp_path / "cache"))
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("deep/a.mp4", b"A" * 1000)
        media = to_media({"bytes": None, "path": f"zip://deep/a.mp4::{tmp_path}/x.zip"}, "row 0", None)
        with media.on_disk() as local:
            assert Path(local.content).read_bytes() == b"A" * 1000

    def test_an_address_of_another_kind_is_an_error_of_its_row(self):
        for address in ("ftpx://a/b.mp4", "simplecache::http://a/b.mp4"):
            with pytest.raises(
                VideoDecodingError, match=r"row 3: .*: expected a path, or an address of one of http://"
            ):
                to_media({"bytes": None, "path": address}, "row 3", None)


class TestDataSetsOfTheLibrary:
    def test_splits_on_disk_are_found_by_name(self, tmp_path):
        DatasetDict({"train": table(), "test": table().select([1])}).save_to_disk(tmp_path / "saved")
        sources = read_sources(library(tmp_path / "saved", splits={"train": "train", "validation": "test"}))
        assert rows(sources["train"]) == EXPECTED
        assert rows(sources["validation"]) == EXPECTED[1:2]
        assert sources["validation"].media[0].name == f"{tmp_path}/saved, split test, row 0 (1.mp4)"

    def test_slices_are_splits_too(self, tmp_path):
        table().save_to_disk(tmp_path / "saved")
        splits = {"train": "train[:67%]", "validation": "train[2:]"}
        sources = read_sources(library(tmp_path / "saved", splits=splits))
        assert (rows(sources["train"]), rows(sources["validation"])) == (EXPECTED[:2], EXPECTED[2:])

    def test_rows_that_were_chosen_stay_chosen(self, tmp_path):
        table().select([2, 0]).save_to_disk(tmp_path / "saved")
        assert rows(read_sources(library(tmp_path / "saved"))["train"]) == [EXPECTED[2], EXPECTED[0]]

    def test_a_folder_as_on_the_hub_is_loaded(self, tmp_path):
        (tmp_path / "repository/data").mkdir(parents=True)
        table().to_parquet(tmp_path / "repository/data/train-00000-of-00001.parquet")
        table().select([0]).to_parquet(tmp_path / "repository/data/test-00000-of-00001.parquet")
        splits = {"train": "train[1:]", "validation": "test"}
        sources = read_sources(library(tmp_path / "repository", splits=splits))
        assert (rows(sources["train"]), rows(sources["validation"])) == (EXPECTED[1:], EXPECTED[:1])

    def test_a_split_that_is_not_there_is_named(self, tmp_path):
        DatasetDict({"train": table(), "test": table()}).save_to_disk(tmp_path / "saved")
        with pytest.raises(
            ValueError, match=r"dataset 'table': .*/saved: no split 'val', expected one of train, test"
        ):
            read_sources(library(tmp_path / "saved", splits={"train": "train", "validation": "val"}))
        (tmp_path / "repository").mkdir()
        table().to_parquet(tmp_path / "repository/train.parquet")
        with pytest.raises(ValueError, match=r"dataset 'table': cannot load .*/repository: .*\"val\""):
            read_sources(library(tmp_path / "repository", "val"))

    def test_a_folder_of_nothing_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=f"dataset 'table': cannot load {tmp_path}: "):
            read_sources(library(tmp_path))

    def test_a_missing_column_is_named(self, tmp_path):
        table().save_to_disk(tmp_path / "saved")
        with pytest.raises(ValueError, match=r"saved, split train: no column \['clip'\], found \['video', 'label'\]"):
            read_sources(library(tmp_path / "saved", columns={"media": "clip"}))
