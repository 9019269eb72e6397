# SPDX-License-Identifier: Apache-2.0
"""Files and labels of a dataset: class folders, manifests, label spaces, and how what is wrong with them is named."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from listed import class_folders, manifest, paths, rows, targets
from modeling_cover.data.sources import read_sources
from modeling_cover.data.sources.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES


class TestClassFolders:
    def test_the_folder_is_the_label_and_files_are_sorted(self, tmp_path, touch):
        touch("zumba/b.mp4", "zumba/a.mp4", "abseiling/c.mp4")
        source = read_sources(class_folders(splits={"train": str(tmp_path)}))["train"]
        assert source.labels == ["abseiling", "zumba"]
        assert targets(source) == [0, 1, 1]
        assert type(source.target(0)) is int
        assert paths(source) == [str(tmp_path / path) for path in ("abseiling/c.mp4", "zumba/a.mp4", "zumba/b.mp4")]
        assert len(source) == 3

    def test_files_may_lie_deeper(self, tmp_path, touch):
        touch("abseiling/2019/07/a.mp4", "zumba/b.mp4")
        source = read_sources(class_folders(splits={"train": str(tmp_path)}))["train"]
        assert rows(source) == [
            (str(tmp_path / "abseiling/2019/07/a.mp4"), "abseiling"),
            (str(tmp_path / "zumba/b.mp4"), "zumba"),
        ]

    @pytest.mark.parametrize(("modality", "suffixes"), [("video", VIDEO_SUFFIXES), ("image", IMAGE_SUFFIXES)])
    def test_only_files_of_the_modality_count_in_whatever_case(self, tmp_path, touch, caplog, modality, suffixes):
        files = [f"x/file{suffix}" for suffix in suffixes] + [f"y/file{suffix.upper()}" for suffix in suffixes]
        # A GIF may be of either.
        other = (IMAGE_SUFFIXES if modality == "video" else VIDEO_SUFFIXES) - suffixes
        touch(*files, "readme.md", "x/notes.txt", "y/none", *(f"x/other{suffix}" for suffix in other))
        source = read_sources(class_folders(modality=modality, splits={"train": str(tmp_path)}))["train"]
        assert sorted(paths(source)) == sorted(str(tmp_path / file) for file in files)
        assert f"{3 + len(other)} files are left out that lie in no class's folder, or do not end as" in caplog.text

    def test_the_rest_is_the_recipes(self, tmp_path, touch):
        touch("x/a.png", "y/b.png")
        dataset = class_folders(name="imagenet", modality="image", splits={"train": str(tmp_path)})
        source = read_sources(dataset)["train"]
        assert (source.name, source.modality, source.problem_type, source.roots) == (
            "imagenet",
            "image",
            "single_label_classification",
            (str(tmp_path),),
        )

    def test_hidden_files_are_none_of_its(self, tmp_path, touch):
        touch("x/a.mp4", "x/._a.mp4", "x/.trash/b.mp4", ".cache/c.mp4")
        assert paths(read_sources(class_folders(splits={"train": str(tmp_path)}))["train"]) == [
            str(tmp_path / "x/a.mp4")
        ]

    def test_rows_of_each_class_are_counted(self, tmp_path, touch):
        touch("x/a.mp4", "y/b.mp4", "y/c.mp4")
        dataset = class_folders(splits={"train": str(tmp_path)}, labels=["z", "y", "x"])
        counts = read_sources(dataset)["train"].class_counts()
        assert (counts.tolist(), counts.dtype) == ([0, 2, 1], np.int64)

    def test_it_can_be_sent_to_a_worker(self, tmp_path, touch):
        touch("x/a.mp4", "y/b.mp4")
        source = read_sources(class_folders(splits={"train": str(tmp_path)}))["train"]
        assert rows(pickle.loads(pickle.dumps(source))) == rows(source)  # noqa: S301

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"dataset 'k400': .*/nowhere is not a folder"):
            read_sources(class_folders(splits={"train": str(tmp_path / "nowhere")}))

    def test_a_file_is_no_folder(self, tmp_path, touch):
        touch("train.csv")
        with pytest.raises(ValueError, match=r"dataset 'k400': .*/train\.csv is not a folder"):
            read_sources(class_folders(splits={"train": str(tmp_path / "train.csv")}))

    def test_a_folder_without_class_folders_is_named(self, tmp_path, touch):
        touch("a.mp4", "b.mp4")
        with pytest.raises(ValueError, match=f"dataset 'k400': no class folders in {re.escape(str(tmp_path))}"):
            read_sources(class_folders(splits={"train": str(tmp_path)}))

    def test_a_class_without_files_of_the_modality_is_named(self, tmp_path, touch):
        touch("abseiling/a.mp4", "zumba/b.png")
        with pytest.raises(
            ValueError, match=r"dataset 'k400': no video files in .*/zumba, expected some for each class"
        ):
            read_sources(class_folders(splits={"train": str(tmp_path)}))


class TestLabels:
    @pytest.fixture
    def train(self, write) -> str:
        return write("path,label\na.mp4,push\nb.mp4,pull\n")

    def test_all_splits_have_those_of_the_train_split_sorted(self, train, write):
        validation = write("path,label\nc.mp4,push\n", name="validation.csv")
        sources = read_sources(manifest(splits={"train": train, "validation": validation}))
        assert sources["train"].labels == sources["validation"].labels == ["pull", "push"]
        assert targets(sources["train"]) == [1, 0]
        assert targets(sources["validation"]) == [1]

    def test_a_class_of_the_validation_split_alone_is_refused(self, train, write):
        validation = write("path,label\nc.mp4,lift\n", name="validation.csv")
        with pytest.raises(ValueError, match="dataset 'ssv2': validation split") as error:
            read_sources(manifest(splits={"train": train, "validation": validation}))
        assert (
            f"validation split ({validation}): classes 'lift' are not among those of the train split ({train}), "
            in (str(error.value))
        )
        assert str(error.value).endswith(f"; see {validation}, line 2 ({Path(validation).parent / 'c.mp4'})")

    def test_a_class_of_the_validation_split_alone_is_taken_where_labels_are_listed(self, train, write):
        validation = write("path,label\nc.mp4,lift\n", name="validation.csv")
        dataset = manifest(splits={"train": train, "validation": validation}, labels=["push", "pull", "lift"])
        sources = read_sources(dataset)
        assert sources["train"].labels == sources["validation"].labels == ["push", "pull", "lift"]
        assert (targets(sources["train"]), targets(sources["validation"])) == ([0, 1], [2])

    @pytest.mark.parametrize("content", ["push\npull\nlift\n", "\n push \r\npull\n\nlift", "\ufeffpush\npull\nlift\n"])
    def test_a_file_lists_them_one_a_line(self, tmp_path, train, content):
        (tmp_path / "labels.txt").write_bytes(content.encode())
        source = read_sources(manifest(splits={"train": train}, labels=str(tmp_path / "labels.txt")))["train"]
        assert source.labels == ["push", "pull", "lift"]
        assert targets(source) == [0, 1]

    def test_a_missing_file_of_them_is_named(self, tmp_path, train):
        with pytest.raises(ValueError, match=r"dataset 'ssv2': labels: .*/labels\.txt is not a file"):
            read_sources(manifest(splits={"train": train}, labels=str(tmp_path / "labels.txt")))

    @pytest.mark.parametrize("content", [b"", b"\n \n", "gå\n".encode("latin-1")])
    def test_a_file_without_any_or_not_of_text_is_named(self, tmp_path, train, content):
        (tmp_path / "labels.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"dataset 'ssv2': labels: .*labels\.txt"):
            read_sources(manifest(splits={"train": train}, labels=str(tmp_path / "labels.txt")))

    @pytest.mark.parametrize("labels", [[], ["push", True], ["push", "pull", "push"]])
    def test_a_list_of_them_holds_different_strings(self, train, labels):
        with pytest.raises(ValueError, match=r"dataset 'ssv2': labels.*(push|\[\])"):
            read_sources(manifest(splits={"train": train}, labels=labels))

    def test_a_class_that_is_not_listed_is_named(self, train):
        message = (
            r"dataset 'ssv2': train split \(.*train\.csv\): classes 'pull' are not among the labels 'push', 'lift'"
        )
        with pytest.raises(ValueError, match=message):
            read_sources(manifest(splits={"train": train}, labels=["push", "lift"]))

    def test_of_many_classes_a_few_are_named(self, tmp_path, touch):
        touch(*(f"class{index}/a.mp4" for index in range(9)))
        message = (
            "classes 'class1', 'class2', 'class3', 'class4', 'class5' and 3 more are not among the labels 'class0'"
        )
        with pytest.raises(ValueError, match=message):
            read_sources(class_folders(splits={"train": str(tmp_path)}, labels=["class0"]))


class TestLabelsOfAnExistingHead:
    @pytest.fixture
    def train(self, write) -> str:
        return write("path,label\na.mp4,push\nb.mp4,pull\nc.mp4,lift\n")

    @pytest.mark.parametrize("listed", [None, ["lift", "pull", "push"]])
    def test_its_order_counts(self, train, listed):
        dataset = manifest(splits={"train": train}, labels=listed)
        source = read_sources(dataset, head_labels=["push", "lift", "pull"])["train"]
        assert source.labels == ["push", "lift", "pull"]
        assert targets(source) == [0, 2, 1]

    @pytest.mark.parametrize("listed", [None, ["lift", "pull", "push"]])
    @pytest.mark.parametrize(
        ("head_labels", "named"),
        [
            (["push", "lift"], ["'pull'"]),
            (["push", "lift", "pull", "throw"], ["'throw'"]),
            (["push", "lift", "throw"], ["'pull'", "'throw'"]),
        ],
    )
    def test_other_classes_than_its_are_refused_and_named(self, train, listed, head_labels, named):
        with pytest.raises(ValueError, match=r"dataset 'ssv2'.*classes") as error:
            read_sources(manifest(splits={"train": train}, labels=listed), head_labels=head_labels)
        assert all(label in str(error.value) for label in named)

    def test_classes_on_either_side_are_told_apart(self, train):
        message = "classes differ from those of head 'ssv2'. Only in the dataset: 'pull'; only in the head: 'throw'"
        with pytest.raises(ValueError, match=message):
            dataset = manifest(splits={"train": train}, labels=["lift", "pull", "push"])
            read_sources(dataset, head_labels=["push", "lift", "throw"])
