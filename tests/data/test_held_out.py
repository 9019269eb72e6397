# SPDX-License-Identifier: Apache-2.0
"""A validation split that is held out of the train rows: by class, by file, and alike wherever it is read."""

import csv
import io
import random
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


MULTI = "multi_label_classification"


def entry(place: Path | str, format: str = "class_folders", **options) -> DatasetRecipe:
    made = {"name": "small", "format": format, "modality": "video", "splits": {"train": str(place)}, "validation": 0.2}
    return DatasetRecipe(**made | options)


def write_folders(folder: Path, files: dict[str, int]) -> Path:
    for label, count in files.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / label / f"{number}.mp4").touch()
    return folder


def write_list(path: Path, rows: list[tuple]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "from", "to"), *rows])
    for name, *_ in rows:
        (path.parent / name).touch()
    return path


def names(source: Source, folder: Path) -> list[str]:
    return [str(Path(media.name).relative_to(folder)) for media in source.media]


def counts(source: Source) -> dict[str, int]:
    return {label: count for label, count in zip(source.labels, source.class_counts().tolist(), strict=True) if count}


class TestClasses:
    def test_of_each_class_a_share_is_held_out_and_no_row_is_lost(self, tmp_path):
        folder = write_folders(tmp_path, {"run": 5, "sit": 10, "walk": 100})
        sources = read_sources(entry(folder))
        assert counts(sources["validation"]) == {"run": 1, "sit": 2, "walk": 20}
        assert counts(sources["train"]) == {"run": 4, "sit": 8, "walk": 80}
        found = [*names(sources["train"], folder), *names(sources["validation"], folder)]
        whole = read_sources(entry(folder, validation=None))["train"]
        assert sorted(found) == sorted(names(whole, folder))
        for source in sources.values():
            for row, media in enumerate(source.media):
                assert source.names_of(row) == [Path(media.name).parent.name]

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    def test_of_two_files_one_is_on_each_side_whatever_the_share(self, tmp_path, share):
        sources = read_sources(entry(write_folders(tmp_path, {"run": 2, "walk": 3}), validation=share))
        assert counts(sources["validation"])["run"] == counts(sources["train"])["run"] == 1
        assert min(counts(sources["validation"])["walk"], counts(sources["train"])["walk"]) >= 1

    def test_a_single_file_stays_in_training_which_a_message_counts(self, tmp_path, caplog):
        sources = read_sources(entry(write_folders(tmp_path, {"run": 1, "sit": 1, "walk": 4})))
        assert counts(sources["train"]) == {"run": 1, "sit": 1, "walk": 3}
        assert counts(sources["validation"]) == {"walk": 1}
        assert sources["validation"].labels == ["run", "sit", "walk"]
        assert (
            "no row in validation for 2 classes with a single file, which stays in training: 'run', 'sit'"
            in caplog.text
        )

    def test_nothing_to_hold_out_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match=r"dataset 'small': validation: .* leaves no row to validate on"):
            read_sources(entry(write_folders(tmp_path, {"run": 1, "walk": 1})))


class TestStability:
    def test_it_depends_on_the_names_alone_and_not_on_where_or_in_which_order_they_are_listed(self, tmp_path):
        rows = [(f"{number}.mp4", "run" if number % 3 else "walk") for number in range(60)]
        here, there = write_list(tmp_path / "a/list.csv", rows), tmp_path / "b/list.csv"
        moved = write_list(there, random.Random(0).sample([(f"./{name}", label) for name, label in rows], len(rows)))
        split = {
            folder: sorted(names(read_sources(entry(place, "manifest"))["validation"], place.parent))
            for folder, place in {"a": here, "b": moved}.items()
        }
        assert split["a"] == split["b"] and len(split["a"]) == 12

    def test_a_file_more_moves_one_other_at_most(self, tmp_path):
        folder = write_folders(tmp_path, {"run": 3, "walk": 7})
        was = set(names(read_sources(entry(folder))["validation"], folder))
        for number in range(3, 60):
            (folder / "run" / f"{number}.mp4").touch()
            now = set(names(read_sources(entry(folder))["validation"], folder))
            moved = (was ^ now) - {f"run/{number}.mp4"}
            assert len(moved) <= 1 and all(name.startswith("run/") for name in moved)
            was = now
        assert len([name for name in was if name.startswith("run/")]) == 12

    def test_the_order_of_the_heads_labels_changes_nothing(self, tmp_path):
        folder = write_folders(tmp_path, {"run": 9, "sit": 9, "walk": 9})
        expected = names(read_sources(entry(folder))["validation"], folder)
        turned = read_sources(entry(folder), head_labels=["walk", "run", "sit"])
        assert names(turned["validation"], folder) == expected
        alone = read_sources(entry(folder), head_labels=["run", "sit", "walk"], splits=["validation"])
        assert list(alone) == ["validation"] and names(alone["validation"], folder) == expected

    def test_the_hashes_that_a_run_resumes_by_tell_which_rows_are_held_out(self, tmp_path):
        folder = write_folders(tmp_path / "one", {"run": 5, "walk": 5})
        copy = shutil.copytree(folder, tmp_path / "two")
        hashes = read_sources(entry(folder))["train"].row_hashes()
        assert hashes == read_sources(entry(copy))["train"].row_hashes()
        assert hashes != read_sources(entry(folder, validation=0.4))["train"].row_hashes()
        assert hashes != read_sources(entry(folder, validation=None))["train"].row_hashes()


class TestFiles:
    def test_segments_of_a_file_are_on_one_side(self, tmp_path):
        rows = [
            (f"{film}.mp4", ("run", "walk")[film % 2], 2 * part, 2 * part + 2)
            for film in range(20)
            for part in range(5)
        ]
        place = write_list(tmp_path / "list.csv", rows)
        sources = read_sources(entry(place, "manifest", columns={"start": "from", "end": "to"}))
        films = {split: Counter(names(source, tmp_path)) for split, source in sources.items()}
        assert not films["train"].keys() & films["validation"].keys()
        assert set(films["validation"].values()) == {5} and len(films["validation"]) == 4
        assert {media.start for media in sources["validation"].media} == {0, 2, 4, 6, 8}

    def test_so_are_those_with_other_labels(self, tmp_path):
        rows = [(f"{film}.mp4", label, 0, 1) for film in range(10) for label in ("run", "walk")]
        rows += [(f"{film}.mp4", "sit", 1, 2) for film in (3, 4)]
        sources = read_sources(
            entry(write_list(tmp_path / "list.csv", rows), "manifest", columns={"start": "from", "end": "to"})
        )
        films = {split: set(names(source, tmp_path)) for split, source in sources.items()}
        assert not films["train"] & films["validation"] and len(films["validation"]) == 2
        assert counts(sources["validation"])["sit"] == counts(sources["train"])["sit"] == 1

    def test_rows_of_several_labels_count_for_each(self, tmp_path):
        rows = [
            (f"{number}.png", "person" + "|dog" * (number < 2) + "|cat" * (number in (2, 3, 4)))
            for number in range(30)
        ]
        place = write_list(tmp_path / "list.csv", [*rows, ("30.png", ""), ("31.png", "")])
        sources = read_sources(entry(place, "manifest", modality="image", problem_type=MULTI))
        assert counts(sources["validation"]) == {"cat": 1, "dog": 1, "person": 6}
        assert counts(sources["train"]) == {"cat": 2, "dog": 1, "person": 24}
        unlabelled = [row for row in range(len(sources["validation"])) if not sources["validation"].names_of(row)]
        assert len(unlabelled) == 1
        for source in sources.values():
            for row, name in enumerate(names(source, tmp_path)):
                number = int(Path(name).stem)
                assert ("dog" in source.names_of(row)) == (number < 2)

    def test_a_class_none_of_whose_files_can_be_spared_is_told(self, tmp_path, caplog):
        # Of a and b one is held out each, and z may have no other files than those that are left.
        rows = [("1.png", "a"), ("2.png", "a|z"), ("3.png", "b|z"), ("4.png", "b")]
        for number in range(20):
            place = write_list(
                tmp_path / str(number) / "list.csv", [(f"{number}_{name}", label) for name, label in rows]
            )
            sources = read_sources(entry(place, "manifest", modality="image", problem_type=MULTI))
            for source in sources.values():
                assert set(counts(source)) >= {"a", "b"}
        assert "no row in validation for 1 class that share their files: 'z'" in caplog.text


class TestFormats:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        datasets.disable_progress_bars()

    def test_shards(self, tmp_path):
        for shard in range(2):
            members = {}
            for number in range(5 * shard, 5 * shard + 5):
                members |= {f"{number}.mp4": f"video {number}", f"{number}.cls": ("run", "walk")[number % 2]}
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content.encode()))
        sources = read_sources(entry(tmp_path, "webdataset"))
        assert counts(sources["validation"]) == {"run": 1, "walk": 1}
        content = {split: {media.content for media in source.media} for split, source in sources.items()}
        assert content["train"] | content["validation"] == {f"video {number}".encode() for number in range(10)}
        assert not content["train"] & content["validation"]

    @pytest.mark.parametrize("format", ["parquet", "dataset"])
    def test_tables_whose_rows_of_one_content_are_on_one_side(self, tmp_path, format):
        contents = [f"image {number % 10}".encode() for number in range(20)]
        rows = {"image": [{"bytes": content, "path": None} for content in contents], "label": [0, 1] * 10}
        table = Dataset.from_dict(rows, Features({"image": Image(), "label": ClassLabel(names=["run", "walk"])}))
        if format == "parquet":
            table.to_parquet(tmp_path / "rows.parquet")
            recipe = entry(tmp_path, format, modality="image")
        else:
            table.save_to_disk(tmp_path / "saved")
            recipe = entry("train", format, modality="image", path=str(tmp_path / "saved"))
        sources = read_sources(recipe)
        content = {split: Counter(media.content for media in source.media) for split, source in sources.items()}
        assert not content["train"].keys() & content["validation"].keys()
        assert list(content["validation"].values()) == [2, 2]
        assert counts(sources["validation"]) == {"run": 2, "walk": 2}

    def test_arrays_that_a_table_holds(self, tmp_path):
        rows = {"image": [[[[number] * 3] * 2] * 2 for number in range(10)], "label": [0, 1] * 5}
        features = {"image": datasets.Array3D((2, 2, 3), "uint8"), "label": ClassLabel(names=["run", "walk"])}
        Dataset.from_dict(rows, Features(features)).save_to_disk(tmp_path / "saved")
        sources = read_sources(entry("train", "dataset", modality="image", path=str(tmp_path / "saved")))
        assert (len(sources["train"]), len(sources["validation"])) == (8, 2)

    def test_paths_in_a_table(self, tmp_path):
        (tmp_path / "videos").mkdir()
        for number in range(10):
            (tmp_path / "videos" / f"{number}.mp4").touch()
        rows = {"video": [f"{number}.mp4" for number in range(10)], "label": [0, 1] * 5}
        features = Features({"video": Value("string"), "label": ClassLabel(names=["run", "walk"])})
        Dataset.from_dict(rows, features).save_to_disk(tmp_path / "saved")
        options = {"path": str(tmp_path / "saved"), "media_root": str(tmp_path / "videos")}
        sources = read_sources(entry("train", "dataset", **options))
        assert (len(sources["train"]), len(sources["validation"])) == (8, 2)


class TestRecipe:
    @pytest.mark.parametrize("share", [0, 1, 1.5, -0.2, "20%", True, float("nan")])
    def test_a_share_is_between_0_and_1(self, share):
        with pytest.raises(ValueError, match="dataset 'small': validation must be"):
            entry("somewhere", validation=share)

    def test_there_is_no_other_validation_split(self):
        with pytest.raises(ValueError, match="validation: `splits` names a validation split already"):
            entry("somewhere", splits={"train": "a", "validation": "b"})

    def test_of_a_stream_nothing_is_held_out(self):
        with pytest.raises(ValueError, match="of a streamed train split no rows can be held out"):
            entry("somewhere", "parquet", streaming=True)

    def test_it_is_a_split_like_any_other(self, tmp_path):
        recipe = entry(write_folders(tmp_path, {"run": 5, "walk": 5}))
        assert recipe.split_names == ("train", "validation")
        assert entry(tmp_path, validation=None).split_names == ("train",)
        with pytest.raises(ValueError, match="there is no split 'test', but train, validation"):
            read_sources(recipe, splits=["train", "test"])
