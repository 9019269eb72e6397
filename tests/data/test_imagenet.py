# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from modeling_cover.data.sources import read_sources
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from scipy.io import savemat


MAPPING = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn03095699 container ship, containership\n"


@pytest.fixture
def read(tmp_path, touch):
    """Reads two synsets in folders, two images without classes, and what the options say."""
    touch("train/n03126707/n03126707_7.JPEG", "train/n01440764/n01440764_18.JPEG")
    touch("val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING)

    def read(validation: str, **options) -> dict:
        splits = {"train": "train", "validation": validation}
        recipe = {"name": "imagenet", "format": "imagenet", "modality": "image", "splits": splits, "media_root": "val"}
        return read_sources(DatasetRecipe(**recipe | options).resolved(tmp_path))

    return read


def write_solution(folder, *rows: str) -> str:
    (folder / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    return "LOC_val_solution.csv"


def write_development_kit(folder, numbers: list[int]) -> str:
    """As image-net.org has it: synsets in an order of their own, and one that others belong to."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    records = [
        (1, "n03126707", "crane", "lifts and moves heavy objects", 0),
        (2, "n01440764", "tench, Tinca tinca", "freshwater dace-like game fish", 0),
        (3, "n02012849", "crane", "large long-necked wading bird", 0),
        (1001, "n01503061", "bird", "warm-blooded egg-laying vertebrates", 18),
    ]
    savemat(folder / "meta.mat", {"synsets": np.array(records, dtype=fields)[:, None]})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, numbers)))
    return "ILSVRC2012_validation_ground_truth.txt"


def labels(source) -> list[str]:
    return [source.labels[source.target(row)] for row in source.rows()]


class TestClasses:
    def test_they_are_called_by_the_names_of_their_synsets_in_the_order_of_these(self, read):
        source = read("train", synsets="LOC_synset_mapping.txt")["train"]
        assert source.labels == ["tench, Tinca tinca", "crane (n03126707)"]
        assert labels(source) == source.labels

    def test_without_a_file_of_names_they_are_called_by_their_ids(self, read):
        assert read("train")["train"].labels == ["n01440764", "n03126707"]

    def test_a_folder_of_no_synset_is_named(self, read, touch):
        touch("train/fish/a.JPEG")
        with pytest.raises(ValueError, match=r"dataset 'imagenet': .*train/fish: fish is not among the synsets of "):
            read("train", synsets="LOC_synset_mapping.txt")

    def test_a_line_without_a_name_is_named(self, read, tmp_path):
        (tmp_path / "names.txt").write_text("n01440764 tench\nn02012849\n")
        with pytest.raises(ValueError, match=r"synsets: .*names\.txt, line 2: expected a synset and its name"):
            read("train", synsets="names.txt")


class TestTheListOfValidationImages:
    @pytest.mark.parametrize("synsets", [None, "LOC_synset_mapping.txt"])
    def test_it_may_be_kaggles(self, read, tmp_path, synsets):
        boxes = "ILSVRC2012_val_00000002,n01440764 85 1 499 272 n01440764 3 4 5 6 "
        place = write_solution(tmp_path, boxes, "ILSVRC2012_val_00000001,n03126707 0 0 9 9")
        source = read(place, synsets=synsets)["validation"]
        names = ["n01440764", "n03126707"] if synsets is None else ["tench, Tinca tinca", "crane (n03126707)"]
        assert labels(source) == names
        assert [media.content.rsplit("_", 1)[1] for media in source.media] == ["00000002.JPEG", "00000001.JPEG"]

    def test_it_may_be_the_development_kits_whose_numbers_are_in_an_order_of_their_own(self, read, tmp_path):
        source = read(write_development_kit(tmp_path, [2, 1]), synsets="meta.mat")["validation"]
        assert labels(source) == ["tench, Tinca tinca", "crane (n03126707)"]
        assert source.labels == ["tench, Tinca tinca", "crane (n03126707)"]

    @pytest.mark.parametrize(("numbers", "culprit"), [([2, 1001], "'1001'"), ([2, 0], "'0'"), ([1, -1], "'-1'")])
    def test_a_number_of_no_class_is_named_with_its_line(self, read, tmp_path, numbers, culprit):
        place = write_development_kit(tmp_path, numbers)
        with pytest.raises(ValueError, match=rf"{place}, line 2: expected the number of a synset.*got {culprit}"):
            read(place, synsets="meta.mat")

    def test_numbers_are_not_read_without_what_they_count(self, read, tmp_path):
        place = write_development_kit(tmp_path, [2, 1])
        with pytest.raises(ValueError, match=r"has numbers of synsets: `synsets` must name the meta\.mat"):
            read(place, synsets="LOC_synset_mapping.txt")

    def test_what_is_no_such_file_is_named(self, read, tmp_path):
        place = write_development_kit(tmp_path, [2, 1])
        (tmp_path / "meta.mat").write_bytes(b"no matlab file at all" * 20)
        with pytest.raises(ValueError, match=r"synsets: .*meta\.mat is not the meta\.mat of ILSVRC 2012"):
            read(place, synsets="meta.mat")

    def test_a_row_of_no_synset_is_named(self, read, tmp_path):
        place = write_solution(tmp_path, "ILSVRC2012_val_00000001,n03126707 0 0 9 9", "ILSVRC2012_val_00000002,")
        with pytest.raises(ValueError, match=r"LOC_val_solution\.csv, line 3: expected an image and a synset"):
            read(place)

    def test_an_image_that_is_not_there_is_named_or_left_out(self, read, tmp_path):
        rows = [f"ILSVRC2012_val_{number:08d},n01440764 0 0 9 9" for number in (1, 3)]
        place = write_solution(tmp_path, *rows)
        with pytest.raises(ValueError, match=r"line 3: .*ILSVRC2012_val_00000003\.JPEG does not exist"):
            read(place)
        assert len(read(place, missing_files="skip")["validation"]) == 1

    def test_it_needs_the_folder_of_its_images(self, read, tmp_path):
        with pytest.raises(ValueError, match="is a list: media_root must name the folder of its images"):
            read(write_solution(tmp_path, "ILSVRC2012_val_00000001,n03126707"), media_root=None)

    def test_images_of_a_class_that_is_not_trained_are_named(self, read, tmp_path):
        place = write_solution(tmp_path, "ILSVRC2012_val_00000001,n02012849 0 0 9 9")
        with pytest.raises(ValueError, match=r"classes .*crane \(n02012849\).* are not among the labels"):
            read(place, synsets="LOC_synset_mapping.txt")


def test_it_is_of_images():
    with pytest.raises(ValueError, match="the format 'imagenet' is of images, got the modality 'video'"):
        DatasetRecipe(name="a", format="imagenet", modality="video", splits={"train": "train"})
