# SPDX-License-Identifier: Apache-2.0

import json
import re

import pytest
from modeling_cover.data.sources import read_sources
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


@pytest.fixture
def read(tmp_path):
    """Reads a dataset whose lists are given as text by their names; the first is the train split."""

    def read(format: str, lists: dict[str, str], **options) -> dict:
        for name, content in lists.items():
            (tmp_path / name).write_text(content)
        splits = dict(zip(("train", "validation"), lists, strict=False))
        recipe = {"name": "mine", "format": format, "modality": "video", "splits": splits, "media_root": "videos"}
        return read_sources(DatasetRecipe(**recipe | options).resolved(tmp_path))

    return read


def rows(source, root) -> list[tuple[str, str]]:
    """(path from the root, label) of every row."""
    paths = [media.content.removeprefix(f"{root}/videos/") for media in source.media]
    return [(path, source.labels[source.target(row)]) for row, path in enumerate(paths)]


HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


class TestKinetics:
    def test_clips_are_named_after_their_id_and_segment(self, tmp_path, touch, read):
        touch("videos/-AbC_000004_000014.mp4", "videos/x.y_000123_000133.mkv")
        content = f"{HEADER}testifying,-AbC,4,14,train,0\neating spaghetti,x.y,123,133,train,0\n"
        source = read("kinetics", {"train.csv": content})["train"]
        assert rows(source, tmp_path) == [
            ("-AbC_000004_000014.mp4", "testifying"),
            ("x.y_000123_000133.mkv", "eating spaghetti"),
        ]
        assert source.labels == ["eating spaghetti", "testifying"]
        assert (source.media[0].start, source.media[0].end) == (None, None)
        assert source.roots == (str(tmp_path / "videos"),)

    @pytest.mark.parametrize("folder", ["eating spaghetti", "eating_spaghetti", "train", "train/eating spaghetti"])
    def test_they_may_lie_in_a_folder_of_the_split_or_of_the_class(self, tmp_path, touch, read, folder):
        touch(f"videos/{folder}/a_000001_000011.mp4")
        source = read("kinetics", {"train.csv": f"{HEADER}eating spaghetti,a,1,11,train,0\n"})["train"]
        assert rows(source, tmp_path) == [(f"{folder}/a_000001_000011.mp4", "eating spaghetti")]

    def test_one_list_may_have_all_splits(self, tmp_path, touch, read):
        touch("videos/a_000001_000011.mp4", "videos/b_000001_000011.mp4")
        content = f"{HEADER}eating,a,1,11,train,0\neating,b,1,11,validate,0\neating,c,1,11,test,0\n"
        (tmp_path / "all.csv").write_text(content)
        sources = read("kinetics", {}, splits={"train": "all.csv", "validation": "all.csv"})
        assert rows(sources["train"], tmp_path) == [("a_000001_000011.mp4", "eating")]
        assert rows(sources["validation"], tmp_path) == [("b_000001_000011.mp4", "eating")]

    def test_a_test_split_with_labels_may_serve_as_validation(self, tmp_path, touch, read):
        touch("videos/train/a_000001_000011.mp4", "videos/test/b_000001_000011.mp4")
        lists = {
            "train.csv": f"{HEADER}eating,a,1,11,train,0\n",
            "test.csv": f"{HEADER}eating,b,1,11,test,0\n",
        }
        assert rows(read("kinetics", lists)["validation"], tmp_path) == [("test/b_000001_000011.mp4", "eating")]

    def test_a_split_that_the_list_does_not_have_is_named(self, touch, read):
        touch("videos/b_000001_000011.mp4")
        with pytest.raises(
            ValueError, match=r"dataset 'mine': .*val\.csv: no rows of the train split, but of validate"
        ):
            read("kinetics", {"val.csv": f"{HEADER}eating,b,1,11,validate,0\n"})

    def test_a_list_without_labels_is_refused_as_one_of_a_test_split(self, touch, read):
        touch("videos/b_000001_000011.mp4")
        with pytest.raises(ValueError, match=r"test\.csv, line 1: no column \['label'\].*test split without labels"):
            read("kinetics", {"test.csv": "youtube_id,time_start,time_end,split\nb,1,11,test\n"})

    def test_clips_that_are_gone_are_an_error_that_counts_them(self, touch, read):
        touch("videos/a_000001_000011.mp4")
        content = f"{HEADER}eating,a,1,11,train,0\neating,b,1,11,train,0\neating,c,1,11,train,0\n"
        with pytest.raises(
            ValueError, match=r"train\.csv, line 3: .*/b_000001_000011\.mp4 does not exist \(nor do 1 more"
        ):
            read("kinetics", {"train.csv": content})

    def test_they_may_be_skipped_and_the_classes_stay_those_of_the_list(self, tmp_path, touch, read):
        touch("videos/a_000001_000011.mp4")
        content = f"{HEADER}abseiling,gone,1,11,train,0\neating,a,1,11,train,0\n"
        source = read("kinetics", {"train.csv": content}, missing_files="skip")["train"]
        assert rows(source, tmp_path) == [("a_000001_000011.mp4", "eating")]
        assert source.labels == ["abseiling", "eating"]
        assert source.class_counts().tolist() == [0, 1]

    def test_none_left_is_an_error_all_the_same(self, touch, read):
        touch("videos/other.mp4")
        with pytest.raises(ValueError, match=r"train\.csv, line 2: .*/a_000001_000011\.mp4 does not exist"):
            read("kinetics", {"train.csv": f"{HEADER}eating,a,1,11,train,0\n"}, missing_files="skip")

    def test_a_time_that_is_none_is_named_with_its_line(self, touch, read):
        touch("videos/a_000001_000011.mp4")
        with pytest.raises(
            ValueError, match=r"train\.csv, line 2: time_start and time_end must be whole seconds, got 'x'"
        ):
            read("kinetics", {"train.csv": f"{HEADER}eating,a,x,11,train,0\n"})

    @pytest.mark.parametrize("part", ["Train", "", "holdout"])
    def test_a_split_of_no_known_name_is_refused_and_not_left_out(self, touch, read, part):
        touch("videos/a_000001_000011.mp4", "videos/b_000001_000011.mp4")
        content = f"{HEADER}eating,a,1,11,train,0\neating,b,1,11,{part},0\n"
        with pytest.raises(ValueError, match=r"train\.csv, line 3: .*split"):
            read("kinetics", {"train.csv": content})

    def test_of_two_files_of_one_name_the_published_kind_is_taken(self, tmp_path, touch, read):
        touch(*(f"videos/a_000001_000011.{suffix}" for suffix in ("avi", "mkv", "mp4", "webm")))
        source = read("kinetics", {"train.csv": f"{HEADER}eating,a,1,11,train,0\n"})["train"]
        assert rows(source, tmp_path) == [("a_000001_000011.mp4", "eating")]

    def test_a_missing_media_root_is_named(self, read):
        with pytest.raises(ValueError, match=r"media_root: .*/videos is not a folder"):
            read("kinetics", {"train.csv": f"{HEADER}eating,a,1,11,train,0\n"})


def something(*templates: str) -> str:
    return json.dumps(
        [{"id": str(index), "label": "x", "template": template} for index, template in enumerate(templates, start=1)]
    )


class TestSomethingSomething:
    def test_the_label_is_the_template_without_brackets(self, tmp_path, touch, read):
        touch("videos/1.webm", "videos/2.mp4")
        lists = {"train.json": something("Holding [something] behind [something]", "Pushing [part] of [something]")}
        source = read("something_something", lists)["train"]
        assert rows(source, tmp_path) == [
            ("1.webm", "Holding something behind something"),
            ("2.mp4", "Pushing part of something"),
        ]

    def test_the_published_labels_give_the_order(self, tmp_path, touch, read):
        touch("videos/1.webm", "videos/2.webm")
        (tmp_path / "labels.json").write_text(json.dumps({"Pushing something": "0", "Holding something": "1"}))
        lists = {"train.json": something("Holding [something]", "Pushing [something]")}
        source = read("something_something", lists, labels="labels.json")["train"]
        assert source.labels == ["Pushing something", "Holding something"]
        assert [source.target(row) for row in range(2)] == [1, 0]

    def test_a_test_split_is_refused(self, touch, read):
        touch("videos/1.webm")
        with pytest.raises(
            ValueError, match=r"test\.json, item 1: no column \['template'\].*test split, which has no"
        ):
            read("something_something", {"test.json": '[{"id": "1"}]'})

    def test_a_missing_clip_is_named_with_its_item(self, touch, read):
        touch("videos/1.webm")
        with pytest.raises(ValueError, match=r"train\.json, item 2: .*/2\.webm does not exist"):
            read("something_something", {"train.json": something("Holding [something]", "Pushing [something]")})


class TestMomentsInTime:
    def test_lists_have_no_header_and_clips_lie_in_the_folder_of_the_split(self, tmp_path, touch, read):
        touch("videos/training/adult+female/a.mp4", "videos/training/b.mp4", "videos/validation/c.mp4")
        (tmp_path / "categories.txt").write_text("speaking,1\nadult female,0\n")
        lists = {
            "trainingSet.csv": "adult+female/a.mp4,adult female,3,1\nb.mp4,speaking,3,0\n",
            "validationSet.csv": "c.mp4,speaking,12,3\n",
        }
        sources = read("moments_in_time", lists, labels="categories.txt")
        assert rows(sources["train"], tmp_path) == [
            ("training/adult+female/a.mp4", "adult female"),
            ("training/b.mp4", "speaking"),
        ]
        assert rows(sources["validation"], tmp_path) == [("validation/c.mp4", "speaking")]
        assert sources["train"].labels == ["adult female", "speaking"]

    def test_a_row_without_a_label_is_named_with_its_line(self, touch, read):
        touch("videos/training/a.mp4")
        with pytest.raises(
            ValueError, match=r"training\.csv, line 2: expected a path and a label, got 'b\.mp4' and ''"
        ):
            read("moments_in_time", {"training.csv": "a.mp4,speaking\nb.mp4\n"})

    def test_a_missing_clip_is_named_with_its_line(self, touch, read):
        touch("videos/training/a.mp4")
        with pytest.raises(ValueError, match=r"training\.csv, line 2: .*/training/b\.mp4 does not exist"):
            read("moments_in_time", {"training.csv": "a.mp4,speaking\nb.mp4,speaking\n"})

    def test_a_missing_folder_of_the_split_is_named(self, tmp_path, touch, read):
        touch("videos/a.mp4")
        with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}/videos/training is not a folder"):
            read("moments_in_time", {"training.csv": "a.mp4,speaking\n"})

    def test_an_empty_list_is_named(self, touch, read):
        touch("videos/training/a.mp4")
        with pytest.raises(ValueError, match=r"training\.csv: no lines"):
            read("moments_in_time", {"training.csv": ""})
