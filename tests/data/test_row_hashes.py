# SPDX-License-Identifier: Apache-2.0
"""Hashes of rows, which change with any name and any label, and not with the folder that the rows are in."""

import datasets
import pytest
from modeling_cover.data.sources import read_sources
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from test_tar_shards import write_shard


def hashes_of(place, **options) -> dict[str, str]:
    entry = {"name": "set", "format": "class_folders", "modality": "image", **options}
    return read_sources(DatasetRecipe(**entry, splits={"train": str(place)}))["train"].row_hashes()


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    assert set(before) == set(after)
    return [key for key in before if before[key] != after[key]]


@pytest.fixture
def folders(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/2.png", "b/3.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "images"


def test_of_class_folders_they_change_with_a_name(folders, tmp_path):
    before = hashes_of(folders)
    assert hashes_of(folders) == before
    assert hashes_of(folders.rename(tmp_path / "moved")) == before
    (tmp_path / "moved/a/1.png").rename(tmp_path / "moved/a/4.png")
    assert changed(before, hashes_of(tmp_path / "moved")) == ["names"]


def test_so_do_those_of_files_that_were_swapped(folders):
    before = hashes_of(folders)
    (folders / "a/0.png").rename(folders / "b/0.png")
    (folders / "b/2.png").rename(folders / "a/2.png")
    assert "names" in changed(before, hashes_of(folders))


def test_of_a_list_they_change_with_a_label_and_a_segment(folders):
    columns, manifest = {"path": "file", "label": "what", "start": "from", "end": "to"}, folders / "list.csv"

    def hashes(*rows: str) -> dict[str, str]:
        manifest.write_text("\n".join(["file,what,from,to", *rows]))
        return hashes_of(manifest, format="manifest", columns=columns, modality="video")

    before = hashes("a/0.png,x,0,1", "a/1.png,y,0,1")
    assert changed(before, hashes("a/0.png,y,0,1", "a/1.png,x,0,1")) == ["labels"]
    assert changed(before, hashes("a/0.png,x,0,1", "a/1.png,y,0,2")) == ["names"]
    assert changed(before, hashes("a/1.png,x,0,1", "a/0.png,y,0,1")) == ["names"]


def test_of_shards_they_change_with_a_member_and_its_size(tmp_path):
    def hashes(members: dict) -> dict[str, str]:
        write_shard(tmp_path / "0.tar", members)
        return hashes_of(tmp_path, format="webdataset", labels=["x", "y"])

    before = hashes({"0.png": b"1", "0.txt": "x", "1.png": b"2", "1.txt": "y"})
    assert changed(before, hashes({"0.png": b"1", "0.txt": "x", "2.png": b"2", "2.txt": "y"})) == ["names"]
    assert changed(before, hashes({"0.png": bytes(600), "0.txt": "x", "1.png": b"2", "1.txt": "y"})) == ["names"]
    assert changed(before, hashes({"0.png": b"1", "0.txt": "y", "1.png": b"2", "1.txt": "x"})) == ["labels"]


def test_of_a_table_they_change_with_the_sizes_of_rows_and_their_paths(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})

    def hashes(*files: tuple[bytes, str | None], batch_size: int | None = None) -> dict[str, str]:
        images = [{"bytes": content, "path": path} for content, path in files]
        columns = {"image": images, "label": [0, 1, 0][: len(files)]}
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        datasets.Dataset.from_dict(columns, features=features).to_parquet(path, batch_size=batch_size)
        return hashes_of(path, format="parquet")

    before = hashes((b"1", None), (b"22", "b.png"), (b"333", None))
    assert hashes((b"1", None), (b"22", "b.png"), (b"333", None), batch_size=1) == before
    assert changed(before, hashes((b"333", None), (b"22", "b.png"), (b"1", None))) == ["names"]
    assert changed(before, hashes((b"1", None), (b"22", "c.png"), (b"333", None))) == ["names"]


def test_of_several_labels_a_row_they_change_with_whose_they_are(folders):
    manifest = folders / "list.csv"

    def hashes(*rows: str) -> dict[str, str]:
        manifest.write_text("\n".join(["file,what", *rows]))
        options = {
            "columns": {"path": "file", "label": "what"},
            "problem_type": "multi_label_classification",
            "label_separator": ";",
        }
        return hashes_of(manifest, format="manifest", **options)

    assert changed(hashes("a/0.png,x;y", "a/1.png,z"), hashes("a/0.png,x", "a/1.png,y;z")) == ["labels"]
