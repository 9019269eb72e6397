# SPDX-License-Identifier: Apache-2.0
"""Files and labels of a dataset: class folders, manifests, label spaces, and how what is wrong with them is named."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from listed import manifest, paths, rows
from modeling_cover.data.sources import read_sources


class TestManifests:
    def test_each_line_is_a_row_and_the_order_is_kept(self, tmp_path, write):
        path = write("path,label\nc.mp4,push\na.mp4,pull\nb.mp4,push\n")
        source = read_sources(manifest(splits={"train": path}))["train"]
        assert source.labels == ["pull", "push"]
        assert rows(source) == [
            (str(tmp_path / "c.mp4"), "push"),
            (str(tmp_path / "a.mp4"), "pull"),
            (str(tmp_path / "b.mp4"), "push"),
        ]

    def test_columns_are_found_by_name(self, tmp_path, write):
        path = write("id,label,video,template\n1,push,a.mp4,x\n2,pull,b.mp4,y\n")
        dataset = manifest(splits={"train": path}, columns={"path": "video", "label": "template"})
        assert rows(read_sources(dataset)["train"]) == [(str(tmp_path / "a.mp4"), "x"), (str(tmp_path / "b.mp4"), "y")]

    def test_labels_may_have_commas_quotes_and_line_breaks_in_quotes(self, write):
        path = write('path,label\na.mp4,"Pushing, then ""pulling"" it"\nb.mp4,"two\nlines"\n')
        source = read_sources(manifest(splits={"train": path}))["train"]
        assert [label for _, label in rows(source)] == ['Pushing, then "pulling" it', "two\nlines"]

    def test_a_byte_order_mark_is_no_part_of_the_first_column(self, write):
        path = write("\ufeffpath,label\r\na.mp4,kör\r\nb.mp4,gå\r\n")
        assert read_sources(manifest(splits={"train": path}))["train"].labels == ["gå", "kör"]

    def test_blank_lines_are_skipped(self, write):
        path = write("path,label\n\na.mp4,push\n\nb.mp4,pull\n")
        assert len(read_sources(manifest(splits={"train": path}))["train"]) == 2

    def test_paths_start_from_the_media_root(self, tmp_path, write, touch):
        touch("videos/deep/1.mp4", "videos/2.mp4")
        path = write("path,label\ndeep/1.mp4,push\n2.mp4,pull\n")
        source = read_sources(manifest(splits={"train": path}, media_root=str(tmp_path / "videos")))["train"]
        assert paths(source) == [str(tmp_path / "videos/deep/1.mp4"), str(tmp_path / "videos/2.mp4")]

    def test_absolute_paths_stay(self, tmp_path, write):
        path = write(f"path,label\n{tmp_path}/a.mp4,push\nb.mp4,pull\n")
        shutil.copytree(tmp_path, tmp_path / "elsewhere")
        source = read_sources(manifest(splits={"train": path}, media_root=str(tmp_path / "elsewhere")))["train"]
        assert paths(source) == [str(tmp_path / "a.mp4"), str(tmp_path / "elsewhere/b.mp4")]

    def test_a_wanted_column_that_is_there_twice_is_refused(self, write):
        path = write("path,label,label\na.mp4,push,pull\n")
        with pytest.raises(ValueError, match=r"line 1: more than one column \['label'\]"):
            read_sources(manifest(splits={"train": path}))

    def test_a_file_of_another_kind_is_refused(self, write):
        path = write("a.mp4 push\n", name="train.txt")
        with pytest.raises(ValueError, match=r"train\.txt: expected a \.csv, \.tsv, \.json or \.jsonl file"):
            read_sources(manifest(splits={"train": path}))

    def test_a_missing_one_is_named(self, tmp_path):
        for place in (tmp_path / "nowhere.csv", tmp_path):
            with pytest.raises(ValueError, match=f"dataset 'ssv2': {re.escape(str(place))} is not a file"):
                read_sources(manifest(splits={"train": str(place)}))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("path,class\na.mp4,push\n", r"line 1: no column \['label'\], found \['path', 'class'\]"),
            ("a.mp4,push\nb.mp4,pull\n", r"line 1: no column \['path', 'label'\], found \['a.mp4', 'push'\]"),
            ("", r"line 1: no column \['path', 'label'\], found \[\]"),
            ("path,label\n", "no lines after the header"),
            ("path,label\na.mp4,push\n,pull\n", "line 3: path or label is empty"),
            ("path,label\na.mp4,push\nb.mp4,\n", "line 3: path or label is empty"),
            ("path,label\na.mp4,push\nb.mp4\n", "line 3: path or label is empty"),
            ("path,label\na.mp4,push\n\nd.mp4,pull\n", r"line 4: .*/d\.mp4 does not exist"),
            ("path,label\na.mp4,push\nnowhere/a.mp4,pull\n", r"line 3: .*/nowhere/a\.mp4 does not exist"),
            ("path,label\na.mp4,push\nA.mp4,pull\n", r"line 3: .*/A\.mp4 does not exist"),
            # A comma without quotes would otherwise cut the label short in silence.
            ("path,label\na.mp4,push\nb.mp4,Pushing, then pulling\n", "line 3: "),
            ('path,label\na.mp4,push\nb.mp4,"pull\n', "line 3: "),
            ('path,label\na.mp4,push\nb.mp4,"pull" it\n', "line 3: "),
            ("path,label\na.mp4,push\nb.mp4,gå\n".encode("latin-1"), ""),
        ],
    )
    def test_what_is_wrong_in_one_is_named_with_its_line(self, write, content, message):
        path = write(content)
        with pytest.raises(ValueError, match=f"{re.escape(path)}.*{message}"):
            read_sources(manifest(splits={"train": path}))

    def test_a_missing_file_is_named_in_the_split_it_is_missing_from(self, write):
        train = write("path,label\na.mp4,push\nb.mp4,pull\n")
        validation = write("path,label\nd.mp4,push\n", name="validation.csv")
        with pytest.raises(ValueError, match=r"validation\.csv, line 2: .*/d\.mp4 does not exist"):
            read_sources(manifest(splits={"train": train, "validation": validation}))


RECORDS = [{"path": "b.mp4", "label": "push", "more": 1}, {"path": "a.mp4", "label": "pull"}]
CONTENTS = {
    "train.tsv": "label\tpath\npush\tb.mp4\npull\ta.mp4\n",
    "train.json": json.dumps(RECORDS),
    "columns.json": json.dumps({"label": ["push", "pull"], "path": ["b.mp4", "a.mp4"], "more": [1, 2, 3]}),
    "train.jsonl": "\n\n".join(json.dumps(record) for record in RECORDS) + "\n",
}


class TestOtherKinds:
    @pytest.mark.parametrize("name", CONTENTS)
    def test_all_say_the_same(self, tmp_path, write, name):
        source = read_sources(manifest(splits={"train": write(CONTENTS[name], name=name)}))["train"]
        assert rows(source) == [(str(tmp_path / "b.mp4"), "push"), (str(tmp_path / "a.mp4"), "pull")]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x.tsv", "path\tclass\na.mp4\tpush\n", r"line 1: no column \['label'\], found \['path', 'class'\]"),
            ("x.json", "[]", "x.json: no items"),
            ("x.json", '[{"path": "a.mp4",\n}]', "x.json, line 2: "),
            (
                "x.json",
                '{"path": "a.mp4", "label": "push"}',
                r"expected lists of one length under \['path', 'label'\]",
            ),
            ("x.json", '{"path": ["a.mp4"], "label": []}', r"expected lists of one length under \['path', 'label'\]"),
            ("x.json", '{"path": [], "label": []}', "x.json: no items"),
            ("x.json", "5", "x.json: expected a list of objects or an object of columns, got 5"),
            ("x.json", '[{"path": "a.mp4", "label": "push"}, 5]', "item 2: expected an object, got 5"),
            ("x.json", '[{"path": "a.mp4"}]', r"item 1: no column \['label'\], found \['path'\]"),
            ("x.json", '[{"path": "a.mp4", "label": null}]', "item 1: a label must be a name or an index, got None"),
            ("x.json", '[{"path": "", "label": "push"}]', "item 1: path or label is empty"),
            ("x.json", '[{"path": 5, "label": "push"}]', "item 1: a path must be a string, got 5"),
            ("x.json", '[{"path": "a.mp4", "label": 1}]', "the label 1 is an index: list the names"),
            ("x.json", '[{"path": "d.mp4", "label": "push"}]', r"item 1: .*/d\.mp4 does not exist"),
            ("x.jsonl", '{"path": "a.mp4", "label": "push"}\n\n{"path"', "line 3: "),
            ("x.jsonl", '{"path": "a.mp4", "label": "push"}\n\n{"path": "d.mp4", "label": "x"}\n', "line 3: .*d.mp4"),
            ("x.jsonl", "", "x.jsonl: no items"),
        ],
    )
    def test_what_is_wrong_in_one_is_named_with_its_place(self, write, name, content, message):
        with pytest.raises(ValueError, match=f"dataset 'ssv2': .*{message}"):
            read_sources(manifest(splits={"train": write(content, name=name)}))

    def test_a_label_may_be_an_index_into_listed_labels(self, write):
        path = write('[{"path": "a.mp4", "label": 1}, {"path": "b.mp4", "label": 0}]', name="train.json")
        source = read_sources(manifest(splits={"train": path}, labels=["push", "pull"]))["train"]
        assert [source.target(row) for row in range(2)] == [1, 0]


class TestSegments:
    COLUMNS = {"start": "from", "end": "to"}

    def test_one_file_may_appear_many_times(self, tmp_path, write):
        path = write("path,label,from,to\na.mp4,push,0,2.5\na.mp4,pull,2.5,\na.mp4,push,,4\nb.mp4,push,,\n")
        media = read_sources(manifest(splits={"train": path}, columns=self.COLUMNS))["train"].media
        assert [(item.start, item.end) for item in media] == [(0, 2.5), (2.5, None), (None, 4), (None, None)]
        assert [item.content for item in media] == [str(tmp_path / name) for name in ("a.mp4",) * 3 + ("b.mp4",)]

    def test_json_has_them_as_numbers(self, write):
        path = write('[{"path": "a.mp4", "label": "x", "from": 1, "to": null}]', name="train.json")
        media = read_sources(manifest(splits={"train": path}, columns=self.COLUMNS))["train"].media[0]
        assert (media.start, media.end) == (1, None)

    @pytest.mark.parametrize(
        ("start", "end", "message"),
        [
            ("x", "2", "start must be a number of seconds, at least 0, got 'x'"),
            ("-1", "2", "start must be a number of seconds, at least 0, got '-1'"),
            ("0", "nan", "end must be a number of seconds, at least 0, got 'nan'"),
            ("0", "inf", "end must be a number of seconds, at least 0, got 'inf'"),
            ("2", "2", r"the segment from 2\.0 to 2\.0 s is empty"),
            ("", "0", "the segment from nan to 0.0 s is empty"),
        ],
    )
    def test_one_that_is_none_is_named_with_its_line(self, write, start, end, message):
        path = write(f"path,label,from,to\na.mp4,push,1,2\na.mp4,push,{start},{end}\n")
        with pytest.raises(ValueError, match=rf"train\.csv, line 3: {message}"):
            read_sources(manifest(splits={"train": path}, columns=self.COLUMNS))


class TestSeveralLabels:
    MULTI = {"problem_type": "multi_label_classification"}

    @pytest.mark.parametrize(
        ("name", "content", "options"),
        [
            ("train.csv", "path,label\na.mp4,walk|talk\nb.mp4,\nc.mp4, talk | talk\n", {}),
            ("train.csv", 'path,label\na.mp4,"walk,talk"\nb.mp4,\nc.mp4,talk\n', {"label_separator": ","}),
            (
                "train.json",
                json.dumps({"path": ["a.mp4", "b.mp4", "c.mp4"], "label": [["walk", "talk"], [], ["talk", "talk"]]}),
                {},
            ),
        ],
    )
    def test_a_target_has_a_one_for_each(self, write, name, content, options):
        source = read_sources(manifest(splits={"train": write(content, name=name)}, **self.MULTI, **options))["train"]
        assert source.labels == ["talk", "walk"]
        assert [source.target(row).tolist() for row in range(3)] == [[1, 1], [0, 0], [1, 0]]
        assert source.target(0).dtype == np.float32
        assert source.class_counts().tolist() == [2, 1]

    def test_in_json_they_are_a_list(self, write):
        path = write('[{"path": "a.mp4", "label": "walk|talk"}]', name="train.json")
        with pytest.raises(ValueError, match=r"train\.json, item 1: expected a list of labels, got 'walk\|talk'"):
            read_sources(manifest(splits={"train": path}, **self.MULTI))

    def test_an_empty_one_among_others_is_refused(self, write):
        path = write("path,label\na.mp4,walk||talk\n")
        with pytest.raises(ValueError, match=r"train\.csv, line 2: the label is empty"):
            read_sources(manifest(splits={"train": path}, **self.MULTI))

    def test_a_class_of_the_validation_split_alone_is_named_with_its_file(self, write):
        train, validation = (
            write("path,label\na.mp4,walk\n"),
            write("path,label\na.mp4,walk\nb.mp4,walk|run\n", "v.csv"),
        )
        with pytest.raises(ValueError, match=r"classes 'run' are not among those of the train split.*b\.mp4"):
            read_sources(manifest(splits={"train": train, "validation": validation}, **self.MULTI))


class TestMissingFiles:
    def test_their_rows_may_be_left_out_with_a_warning_that_counts_them(self, tmp_path, write, caplog):
        path = write("path,label,start\nd.mp4,lift,1\nb.mp4,pull,2\ne.mp4,lift,3\na.mp4,push,4\n")
        dataset = manifest(splits={"train": path}, missing_files="skip", columns={"start": "start"})
        with caplog.at_level("WARNING"):
            source = read_sources(dataset)["train"]
        assert rows(source) == [(str(tmp_path / "b.mp4"), "pull"), (str(tmp_path / "a.mp4"), "push")]
        assert [media.start for media in source.media] == [2, 4]
        assert source.labels == ["lift", "pull", "push"]
        (message,) = caplog.messages
        assert "dataset 'ssv2', train split: rows without a file are left out" in message
        assert "line 2" in message and "d.mp4 does not exist (nor do 1 more of the 4 files)" in message


def test_absolute_paths_outside_of_the_media_root_are_roots_too(tmp_path, write):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/x.mp4").touch()
    path = write(f"path,label\n{tmp_path}/a.mp4,push\n{tmp_path}/elsewhere/deep/x.mp4,push\n")
    dataset = manifest(splits={"train": path}, media_root=str(tmp_path / "elsewhere"))
    assert read_sources(dataset)["train"].roots == (str(tmp_path / "elsewhere"), str(tmp_path))


def test_many_lines_are_read_in_a_moment(tmp_path, touch):
    """200,000 in about a second on an idle core; ten times that would be a regression, not a busy machine."""
    touch(*(f"{folder}/{name}.mp4" for folder in range(20) for name in range(50)))
    lines = (f"{index % 20}/{index % 50}.mp4,class {index % 400}\n" for index in range(50_000))
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(lines))
    start = time.process_time()
    source = read_sources(manifest(splits={"train": str(tmp_path / "train.csv")}))["train"]
    assert time.process_time() - start < 2.5
    assert (len(source), len(source.labels)) == (50_000, 400)
