# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import pytest
from modeling_cover.data.sources import read_sources
from modeling_cover.dataset_tools.stand_ins import moved, write_stand_ins
from modeling_cover.model.video_processing_cover import CoverVideoProcessor
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


LAYOUTS = {
    "kinetics": {
        "splits": {"train": "k400/annotations/train.csv", "validation": "k400/annotations/val.csv"},
        "media_root": "k400",
    },
    "something_something": {
        "splits": {"train": "ssv2/labels/train.json", "validation": "ssv2/labels/validation.json"},
        "media_root": "ssv2/20bn-something-something-v2",
        "labels": "ssv2/labels/labels.json",
    },
    "moments_in_time": {
        "splits": {"train": "mit/trainingSet.csv", "validation": "mit/validationSet.csv"},
        "media_root": "mit",
        "labels": "mit/moments_categories.txt",
    },
    "imagenet": {
        "modality": "image",
        "splits": {"train": "imagenet/ILSVRC/Data/CLS-LOC/train", "validation": "imagenet/LOC_val_solution.csv"},
        "media_root": "imagenet/ILSVRC/Data/CLS-LOC/val",
        "synsets": "imagenet/LOC_synset_mapping.txt",
    },
    "class_folders": {"modality": "image", "splits": {"train": "mine/train", "validation": "mine/val"}},
    "manifest": {
        "splits": {"train": "mine/train.tsv", "validation": "mine/val.jsonl"},
        "columns": {"path": "file", "label": "what", "start": "from", "end": "to"},
        "media_root": "mine/clips",
    },
}


def entry(format: str, **options) -> DatasetRecipe:
    return DatasetRecipe(**{"name": "mine", "format": format, "modality": "video", **LAYOUTS[format], **options})


class TestWriteStandIns:
    @pytest.mark.parametrize("format", LAYOUTS)
    def test_they_are_read_as_what_they_stand_in_for(self, format, tmp_path):
        dataset = moved(entry(format), tmp_path)
        assert write_stand_ins(dataset) == {"train": 50, "validation": 20}
        sources = read_sources(dataset)
        assert {split: len(source) for split, source in sources.items()} == {"train": 50, "validation": 20}
        for split, source in sources.items():
            assert source.class_counts().tolist() == [{"train": 5, "validation": 2}[split]] * 10
        processor = CoverVideoProcessor(
            num_frames=4, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        for source in sources.values():
            frames = 1 if dataset.modality == "image" else 4
            media = source.media[7]
            content = media.content if dataset.modality == "video" else Path(media.content).read_bytes()
            assert processor(content, return_tensors="pt")["pixel_values"].shape == (1, frames, 3, 32, 32)

    def test_classes_have_the_names_that_the_published_files_have(self, tmp_path):
        def labels(format):
            dataset = moved(entry(format), tmp_path)
            write_stand_ins(dataset)
            return read_sources(dataset)["train"].labels

        assert labels("kinetics")[1] == "air drumming"
        assert labels("something_something")[1] == "Attaching something to something"
        assert labels("moments_in_time")[0] == "adult+female+singing"
        assert labels("imagenet")[1] == "goldfish, Carassius auratus"

    @pytest.mark.parametrize("suffix", ["txt", "json"])
    def test_a_list_of_classes_is_written_where_the_recipe_has_it(self, tmp_path, suffix):
        dataset = moved(entry("class_folders", labels=f"mine/names.{suffix}"), tmp_path)
        write_stand_ins(dataset)
        assert len(read_sources(dataset)["train"].labels) == 10

    @pytest.mark.parametrize(
        ("format", "options"), [("kinetics", {}), ("imagenet", {}), ("imagenet", {"synsets": None})]
    )
    def test_so_is_one_of_a_layout_that_needs_none(self, format, options, tmp_path):
        listed = moved(entry(format, labels="lists/classes.txt", **options), tmp_path)
        write_stand_ins(listed)
        source, found = read_sources(listed)["train"], (tmp_path / "lists" / "classes.txt").read_text()
        assert sorted(source.labels) == sorted(found.splitlines())

    def test_the_recipes_own_classes_are_drawn(self, tmp_path):
        multi_label = {"problem_type": "multi_label_classification", "labels": ["up", "down"]}
        dataset = moved(entry("manifest", **multi_label), tmp_path)
        assert write_stand_ins(dataset) == {"train": 10, "validation": 4}
        assert read_sources(dataset)["train"].labels == ["up", "down"]

    def test_they_are_the_same_each_time(self, tmp_path):
        def contents(folder):
            write_stand_ins(moved(entry("something_something"), folder))
            return {
                path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
            }

        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_a_format_without_any_is_named(self):
        dataset = DatasetRecipe(name="mine", format="parquet", modality="image", splits={"train": "train"})
        with pytest.raises(
            ValueError, match="dataset 'mine': no stand-ins for the format 'parquet', but for kinetics"
        ):
            write_stand_ins(dataset)


class TestMoved:
    def test_all_paths_are_in_the_folder(self, tmp_path):
        dataset = moved(entry("imagenet", media_root="/data/val", synsets="../names.txt"), tmp_path)
        assert dataset.media_root == str(tmp_path / "data" / "val")
        assert dataset.synsets == str(tmp_path / "names.txt")
        assert dataset.splits["validation"] == str(tmp_path / "imagenet" / "LOC_val_solution.csv")

    def test_an_address_is_named_without_its_secrets(self, tmp_path):
        dataset = entry("manifest", media_root="https://me:key@example.org/clips?signature=1")
        with pytest.raises(ValueError, match=r"dataset 'mine': media_root: https://example\.org/clips is remote"):
            moved(dataset, tmp_path)
