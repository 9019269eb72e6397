# SPDX-License-Identifier: Apache-2.0
"""Layouts that a user registers, and how they are read."""

from pathlib import Path

import pytest
from listed import rows
from modeling_cover import file_rows, load_recipe, register_layout
from modeling_cover.data.sources import read_sources
from modeling_cover.layouts import LAYOUTS
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


def read_named(dataset, split, place):
    return file_rows(dataset, split, place, [(file.name, file.name[0]) for file in sorted(Path(place).iterdir())])


@pytest.fixture
def register():
    """Registers a layout until the test ends."""
    yield lambda read, **options: register_layout("named", read, **options)
    LAYOUTS.pop("named", None)


def entry(place: Path | str, **options) -> DatasetRecipe:
    values = {"name": "waves", "format": "named", "modality": "video", "splits": {"train": str(place)}}
    return DatasetRecipe(**{**values, **options})


def read(place: Path | str, **options):
    return read_sources(entry(place, **options))["train"]


class TestARegisteredLayout:
    def test_its_rows_and_classes_are_those_that_it_finds(self, register, touch, tmp_path):
        touch("a1.mp4", "b2.mp4", "a3.mp4")
        register(read_named)
        source = read(tmp_path)
        assert source.labels == ["a", "b"]
        assert rows(source) == [(str(tmp_path / name), name[0]) for name in ("a1.mp4", "a3.mp4", "b2.mp4")]

    def test_a_recipe_names_it_and_its_paths_start_from_the_data_root(self, register, touch, tmp_path):
        touch("data/clips/a1.mp4", "data/clips/b1.mp4")
        register(read_named)
        (tmp_path / "recipe.yaml").write_text(
            f"data_root: {tmp_path}/data\n"
            "datasets: [{name: waves, format: named, modality: video, splits: {train: clips}}]\n"
        )
        (dataset,) = load_recipe(tmp_path / "recipe.yaml").datasets
        assert len(read_sources(dataset)["train"]) == 2

    def test_it_has_what_all_layouts_have(self, register, touch, tmp_path):
        touch(*(f"{label}{number}.mp4" for label in "ab" for number in range(4)))
        register(read_named)
        splits = read_sources(entry(tmp_path, validation=0.25))
        assert [len(splits[split]) for split in ("train", "validation")] == [6, 2]
        assert set(splits["train"].row_hashes()) == {"names", "labels"}

    def test_it_may_be_registered_again(self, register, touch, tmp_path):
        touch("a1.mp4")
        register(lambda dataset, split, place: pytest.fail("this was replaced"))
        register_layout("named", lambda *of: file_rows(*of, [("a1.mp4", 1)], classes=["x", "y"]))
        source = read(tmp_path)
        assert (source.labels, source.target(0)) == (["x", "y"], 1)

    def test_segments_are_read_as_those_of_a_list(self, register, touch, tmp_path):
        touch("a.mp4")
        found = [("a.mp4", "x", 0, 2.5), ("a.mp4", "y", 2.5, None), ("a.mp4", "y")]
        register(lambda *of: file_rows(*of, found))
        assert [(media.start, media.end) for media in read(tmp_path).media] == [(0, 2.5), (2.5, None), (None, None)]

    def test_its_options_are_fields_of_the_entry(self, register, touch, tmp_path):
        touch("a.mp4")
        found = [("a.mp4", ["x", "y"]), ("gone.mp4", ["x"])]
        register(lambda *of: file_rows(*of, found), options=["problem_type", "missing_files"])
        source = read(tmp_path, problem_type="multi_label_classification", missing_files="skip")
        assert [source.names_of(row) for row in source.rows()] == [["x", "y"]]


class TestMistakes:
    def test_a_name_that_nobody_registered_says_how_to(self, tmp_path):
        with pytest.raises(ValueError, match=r"format must be one of \('class_folders'.* got 'named'; .*register_lay"):
            entry(tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": "manifest"}, "'manifest' is one of the package's own"),
            ({"name": "a b"}, "layout name 'a b': expected letters"),
            ({"read": "read_named"}, "layout 'new': read must be a function"),
            ({"modality": "videos"}, "layout 'new': modality must be None or one of"),
            ({"options": ["streaming"]}, "layout 'new': options must be some of .* got .'streaming'."),
            ({"options": "columns"}, "layout 'new': options must be some of .* got 'columns'"),
        ],
    )
    def test_what_cannot_be_registered_is_named(self, arguments, message):
        before = dict(LAYOUTS)
        with pytest.raises(ValueError, match=message):
            register_layout(**{"name": "new", "read": read_named, **arguments})
        assert before == LAYOUTS

    def test_an_option_or_a_modality_that_it_does_not_have_is_refused(self, register, tmp_path):
        register(read_named, modality="image")
        with pytest.raises(ValueError, match="dataset 'waves': the format 'named' is of images, got the modality"):
            entry(tmp_path)
        with pytest.raises(ValueError, match="dataset 'waves': media_root does not apply to the format 'named'"):
            entry(tmp_path, modality="image", media_root="somewhere")

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            ([("a.mp4",)], r"row 0 of .*: expected \(path, label\) or .* got \('a.mp4',\)"),
            (["ab"], r"row 0 of .*: expected \(path, label\) or .* got 'ab'"),
            ([("a.mp4", "x"), ("", "x")], "row 1 of .*: a path must be a string that is not empty"),
            ([("a.mp4", 1.5)], "row 0 of .*: a label must be a name or an index"),
            ([("a.mp4", "x", 3, 2)], "row 0 of .*: the segment from 3.0 to 2.0 s is empty"),
            ([("a.mp4", "x"), ("b.mp4", "x")], "row 1 of .*: .*b.mp4 does not exist"),
            ([], "the format 'named' finds no rows in "),
        ],
    )
    def test_a_row_that_is_none_is_named(self, register, touch, tmp_path, found, message):
        touch("a.mp4")
        register(lambda *of: file_rows(*of, found))
        with pytest.raises(ValueError, match=f"dataset 'waves': {message}"):
            read(tmp_path)

    def test_what_is_no_rows_at_all_is_refused(self, register, tmp_path):
        register(lambda dataset, split, place: [("a.mp4", "x")])
        with pytest.raises(ValueError, match="what reads the format 'named' returned list, expected what file_rows"):
            read(tmp_path)
