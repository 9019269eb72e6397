# SPDX-License-Identifier: Apache-2.0

import json

import numpy as np
import pytest
from modeling_cover.data.sources.label_lists import LabelColumnBuilder, LabelSpace, read_labels


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / name)

    return write


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("labels.txt", "push\npull, slowly\nlift\n"),
            ("labels.txt", "\ufeff\n push \r\npull, slowly\n\nlift"),
            ("labels", "pull, slowly,1\npush,0\nlift,2\n"),
            ("categories.txt", "push,0\npull, slowly,1\nlift,2\n"),
            ("labels.csv", 'push,0\nlift,2\n"pull, slowly",1\n'),
            ("labels.csv", 'name,index\nlift,2\n"pull, slowly",1\npush,0\n'),
            ("labels.csv", 'id,name\n2,lift\n1,"pull, slowly"\n0,push\n'),
            ("labels.csv", 'push\n"pull, slowly"\nlift\n'),
            ("labels.json", json.dumps(["push", "pull, slowly", "lift"])),
            ("labels.json", json.dumps({"lift": "2", "push": "0", "pull, slowly": "1"})),
            ("labels.json", json.dumps({"lift": 2, "push": 0, "pull, slowly": 1})),
        ],
    )
    def test_each_kind_gives_the_classes_in_order(self, write, name, content):
        assert read_labels(write(name, content)) == ["push", "pull, slowly", "lift"]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("labels.txt", "", r"labels.txt: expected a list of strings, got \[\]"),
            ("labels.txt", "push\npull\npush\n", r"labels.txt: \['push'\] given more than once"),
            ("labels.txt", "gå\n".encode("latin-1"), "labels.txt: .*can't decode"),
            (
                "labels.txt",
                "push,0\npull,2\n",
                "labels.txt: the index on line 2: expected each of 0 to 1 once, got '2'",
            ),
            (
                "labels.txt",
                "push,0\npull,0\n",
                "labels.txt: the index on line 2: expected each of 0 to 1 once, got '0'",
            ),
            ("labels.csv", "push,0\npull\n", "labels.csv, line 2: expected a label and its index, got 'pull'"),
            (
                "labels.csv",
                "push,0\npull,x\n",
                "labels.csv: the index on line 2: expected each of 0 to 1 once, got 'x'",
            ),
            ("labels.csv", "name\npush\npull\n", "labels.csv, line 1: .* looks like a header: delete the line 'name'"),
            ("labels.json", '["push",\n"pull"\n', "labels.json, line 3: "),
            ("labels.json", "[" * 100_000, "labels.json: too deeply nested"),
            ("labels.json", "5", "labels.json: expected a list or an object {label: index}, got 5"),
            ("labels.json", '["push", 5]', r"labels.json: expected a list of strings, got \['push', 5\]"),
            ("labels.json", '{"push": 1}', "labels.json: the index of 'push': expected each of 0 to 0 once, got '1'"),
        ],
    )
    def test_what_is_wrong_in_one_is_named_with_its_place(self, write, name, content, message):
        with pytest.raises(ValueError, match=f"labels: .*{message}"):
            read_labels(write(name, content))

    def test_a_missing_one_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"labels: .*/nowhere\.txt is not a file"):
            read_labels(str(tmp_path / "nowhere.txt"))


class TestLabelsOfRows:
    def test_a_name_is_its_place_in_the_heads_order(self):
        space = LabelSpace(["push", "lift"], listed=None)
        assert [space.position(label) for label in ("lift", "push", "throw")] == [1, 0, None]

    def test_an_index_counts_the_sources_list_whatever_the_heads_order(self):
        space = LabelSpace(["push", "lift"], listed=["lift", "throw", "push"])
        assert [space.position(label) for label in (0, 1, 2, "0", "2")] == [1, None, 0, 1, 0]

    def test_a_number_that_is_a_name_is_a_name(self):
        assert LabelSpace(["7", "3", "0"], listed=["7", "3", "0"]).position("0") == 2

    def test_an_index_needs_a_list_and_lies_in_it(self):
        with pytest.raises(ValueError, match="the label 1 is an index: list the names that it counts under `labels`"):
            LabelSpace(["push", "lift"], listed=None).position(1)
        for label in (2, -1, "2"):
            with pytest.raises(ValueError, match=f"the label {label} is none of the 2 classes' indices"):
                LabelSpace(["push", "lift"], listed=["push", "lift"]).position(label)

    def test_of_several_labels_each_is_a_one(self):
        space = LabelSpace(["push", "lift", "throw"], listed=None)
        target = space.target(["throw", "push"], multi_label=True)
        assert target.dtype == np.float32
        assert target.tolist() == [1, 0, 1]
        assert space.target([], multi_label=True).tolist() == [0, 0, 0]

    @pytest.mark.parametrize(
        ("label", "multi_label"),
        [
            (None, False),
            (True, False),
            (1.0, False),
            ("", False),
            (["push"], False),
            ("push", True),
            ([None], True),
            (5, True),
        ],
    )
    def test_what_is_no_label_is_refused(self, label, multi_label):
        with pytest.raises(ValueError, match="label"):
            LabelColumnBuilder(multi_label).append(label)


def test_rows_can_be_selected_from_columns_of_one_or_several_labels():
    single, several = LabelColumnBuilder(multi_label=False), LabelColumnBuilder(multi_label=True)
    for label in "abcab":
        single.append(label)
    for labels in (["a", "b"], [], ["c"], ["b", "c", "a"]):
        several.append(labels)
    kept = single.build().selected(np.array([4, 2, 0]))
    assert [kept.values[code] for code in kept.codes] == ["b", "c", "a"]
    kept = several.build().selected(np.array([3, 1, 0]))
    assert [kept.values[code] for code in kept.codes] == ["b", "c", "a", "a", "b"]
    assert (kept.starts.tolist(), len(kept)) == ([0, 3, 3, 5], 3)
    assert kept.first_row_of(kept.values.index("a")) == 0
    assert kept.first_row_of(kept.values.index("b")) == 0
    assert single.build().first_row_of(1) == 1
