# SPDX-License-Identifier: Apache-2.0
"""Names that look alike: one class, or an error that shows the difference; and lists that stand in a cell of text."""

import os
import unicodedata
from pathlib import Path

import datasets
import pytest
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.data.sources.label_lists import LabelSpace, read_labels
from modeling_cover.data.sources.spelling import listed_in, normal_name, plain_spelling, told_apart
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
MULTI = {"problem_type": "multi_label_classification"}


def write_rows(folder: Path, text: str, name: str = "train.csv") -> str:
    for file in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        (folder / file).touch()
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def read(place: str, format: str = "manifest", **options) -> Source:
    recipe = {"name": "clips", "format": format, "modality": "video", "splits": {"train": place}}
    return read_sources(DatasetRecipe(**recipe | options))["train"]


def labels_of(source: Source) -> list:
    targets = [source.target(row) for row in range(len(source))]
    if source.class_starts is None:
        return [source.labels[target] for target in targets]
    return [[label for label, is_there in zip(source.labels, target, strict=True) if is_there] for target in targets]


class TestOneClass:
    def test_blanks_about_a_name_make_no_class(self, tmp_path):
        source = read(write_rows(tmp_path, "path,label\na.mp4,run\nb.mp4,run \nc.mp4, run\nd.mp4,walk\n"))
        assert labels_of(source) == ["run", "run", "run", "walk"]
        assert source.labels == ["run", "walk"]
        assert source.spellings == {"run": ["run", "run ", " run"]}

    def test_nor_does_the_way_that_accents_are_composed(self, tmp_path):
        source = read(write_rows(tmp_path, f"path,label\na.mp4,{COMPOSED}\nb.mp4,{DECOMPOSED}\nc.mp4,walk\n"))
        assert labels_of(source) == [COMPOSED, COMPOSED, "walk"]

    def test_class_folders_of_one_name_are_one_class(self, tmp_path):
        for name, file in ((COMPOSED, "a"), (DECOMPOSED, "b"), ("walk", "c")):
            (tmp_path / "train" / name).mkdir(parents=True)
            (tmp_path / "train" / name / f"{file}.mp4").touch()
        source = read(str(tmp_path / "train"), "class_folders")
        assert source.labels == [COMPOSED, "walk"]
        assert sorted(os.path.basename(media.name) for media in source.media) == ["a.mp4", "b.mp4", "c.mp4"]
        assert all(os.path.isfile(media.content) for media in source.media)

    def test_nor_in_a_table(self, tmp_path):
        table = datasets.Dataset.from_dict({"video": [b"1", b"2", b"3"], "label": [" run", DECOMPOSED, "run"]})
        table.to_parquet(tmp_path / "rows.parquet")
        source = read(str(tmp_path / "rows.parquet"), "parquet")
        assert labels_of(source) == ["run", COMPOSED, "run"]

    def test_nor_of_several_labels_a_row(self, tmp_path):
        text = f"path,label\na.mp4,{COMPOSED}|run\nb.mp4, run |{DECOMPOSED}\n"
        assert labels_of(read(write_rows(tmp_path, text), **MULTI)) == [[COMPOSED, "run"]] * 2

    def test_another_split_and_the_recipes_list_may_write_it_otherwise(self, tmp_path):
        train = write_rows(tmp_path, f"path,label\na.mp4,{COMPOSED}\nb.mp4,walk\n")
        validation = write_rows(tmp_path, f"path,label\na.mp4,{DECOMPOSED}\n", "val.csv")
        entry = {"name": "clips", "format": "manifest", "modality": "video"}
        recipe = DatasetRecipe(**entry, splits={"train": train, "validation": validation})
        assert labels_of(read_sources(recipe)["validation"]) == [COMPOSED]
        recipe = DatasetRecipe(**entry, splits={"train": train}, labels=["walk", DECOMPOSED])
        assert read_sources(recipe)["train"].labels == ["walk", COMPOSED]

    def test_a_head_may_have_the_name_as_it_was_found(self, tmp_path):
        recipe = DatasetRecipe(
            name="clips",
            format="manifest",
            modality="video",
            splits={"train": write_rows(tmp_path, f"path,label\na.mp4,{COMPOSED}\nb.mp4,run\n")},
        )
        source = read_sources(recipe, head_labels=["run ", DECOMPOSED])["train"]
        assert source.labels == ["run ", DECOMPOSED]
        assert [source.target(row) for row in range(2)] == [1, 0]


class TestErrors:
    def test_a_label_of_blanks_is_empty(self, tmp_path):
        with pytest.raises(ValueError, match=r"train\.csv, line 3: the label is empty"):
            read(write_rows(tmp_path, "path,label\na.mp4,run\nb.mp4,   \n"))
        table = datasets.Dataset.from_dict({"video": [b"1", b"2"], "label": ["run", " \t"]})
        table.to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=r"rows\.parquet, row 1: the label is empty"):
            read(str(tmp_path / "rows.parquet"), "parquet")

    @pytest.mark.parametrize("labels", [["run", "run "], [COMPOSED, DECOMPOSED], ["walk", "run", " run"]])
    def test_a_list_of_classes_that_has_one_twice_is_refused_with_both_forms(self, labels):
        with pytest.raises(ValueError, match="are one name but for blanks and how accents are composed") as caught:
            read_labels(labels)
        assert all(ascii(label) in str(caught.value) for label in labels[-2:])

    def test_a_head_that_has_one_twice_is_refused(self):
        with pytest.raises(ValueError, match="'run' and 'run ' are one name"):
            LabelSpace(["run", "run "], listed=None)

    def test_names_that_only_look_alike_are_shown_apart(self, tmp_path):
        text = "path,label\na.mp4,ping\u200bpong\nb.mp4,walk\n"
        with pytest.raises(ValueError, match=r"'ping\\u200bpong' is spelt otherwise than 'pingpong'"):
            read(write_rows(tmp_path, text), labels=["pingpong", "walk"])
        assert told_apart("Run", ["walk", "run"]) == " ('Run' is spelt otherwise than 'run')"
        assert told_apart("jump", ["walk", "run"]) == ""

    def test_words_of_other_scripts_are_not_taken_for_one_another(self):
        assert plain_spelling("कि") != plain_spelling("की")
        assert normal_name(" हिन्दी ") == "हिन्दी"


class TestPaths:
    @pytest.mark.parametrize(("on_disk", "written"), [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)])
    def test_a_file_is_found_however_its_accents_are_composed(self, tmp_path, on_disk, written):
        (tmp_path / on_disk).mkdir()
        (tmp_path / on_disk / f"{on_disk}.mp4").touch()
        text = f"path,label\n{written}/{written}.mp4,run\na.mp4,walk\n"
        source = read(write_rows(tmp_path, text))
        assert [os.path.isfile(media.content) for media in source.media] == [True, True]

    def test_so_are_the_folders_and_files_that_a_recipe_names(self, tmp_path):
        folder = tmp_path / DECOMPOSED
        folder.mkdir()
        write_rows(folder, "path,label\na.mp4,run\n")
        source = read(str(tmp_path / COMPOSED / "train.csv"), media_root=str(tmp_path / COMPOSED))
        assert os.path.isfile(source.media[0].content)

    def test_what_is_not_there_is_still_missing(self, tmp_path):
        with pytest.raises(ValueError, match=f"{COMPOSED}.mp4 does not exist"):
            read(write_rows(tmp_path, f"path,label\n{COMPOSED}.mp4,run\n"))


class TestListsInCells:
    @pytest.mark.parametrize(
        ("cell", "items"),
        [
            ("['run', 'jump']", ["run", "jump"]),
            ('["run", "it\'s, it"]', ["run", "it's, it"]),
            (" [ 'run' , ] ", ["run"]),
            ("[]", []),
            ("[3, 5]", [3, 5]),
            ("run|jump", None),
            ("[push] it", None),
        ],
    )
    def test_what_python_writes_is_read(self, cell, items):
        assert listed_in(cell) == items

    @pytest.mark.parametrize(
        "cell", ["[run, jump]", "[x for x in y]", "['run'", "['a', print()]", "[" * 500 + "]" * 500]
    )
    def test_what_is_no_list_is_refused(self, cell):
        if cell.endswith("]"):
            with pytest.raises(ValueError, match="looks like a list and is none"):
                listed_in(cell)
        else:
            assert listed_in(cell) is None

    def test_a_list_without_commas_is_not_read_as_one_label(self):
        with pytest.raises(ValueError, match="without commas"):
            listed_in("['run' 'jump']")

    def test_a_column_of_lists_has_the_labels_of_the_lists(self, tmp_path):
        text = "path,label\na.mp4,\"['run', 'jump']\"\nb.mp4,[]\nc.mp4,jump|sit\n"
        source = read(write_rows(tmp_path, text), **MULTI)
        assert source.labels == ["jump", "run", "sit"]
        assert labels_of(source) == [["jump", "run"], [], ["jump", "sit"]]

    def test_what_is_wrong_in_one_is_named_by_its_line(self, tmp_path):
        with pytest.raises(ValueError, match=r"train\.csv, line 3: '\[jump\]' looks like a list and is none"):
            read(write_rows(tmp_path, "path,label\na.mp4,run\nb.mp4,[jump]\n"), **MULTI)
        with pytest.raises(ValueError, match=r"train\.csv, line 2: expected one label, got the list"):
            read(write_rows(tmp_path, "path,label\na.mp4,['run']\n"))
