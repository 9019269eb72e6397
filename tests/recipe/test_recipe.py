# SPDX-License-Identifier: Apache-2.0
"""Recipes: what a YAML file may say, and how what it may not say is named."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from modeling_cover import Recipe, load_recipe
from modeling_cover.recipe import recipe
from modeling_cover.recipe.augmentation_recipe import Augmentation, ColorJitter
from modeling_cover.recipe.mixture_recipe import MixtureRecipe
from modeling_cover.recipe.recipe import BadFilesRecipe, ClipRecipe, DatasetRecipe


EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "recipes").rglob("*.yaml"))
KINETICS = {
    "name": "k400",
    "format": "class_folders",
    "modality": "video",
    "splits": {"train": "k400/train", "validation": "k400/val"},
}
IMAGENET = {"name": "imagenet", "format": "class_folders", "modality": "image", "splits": {"train": "imagenet/train"}}


@pytest.fixture
def load(tmp_path):
    """Loads a recipe given as text, or as keys and values that are put beside a dataset."""

    def load(text: str | None = None, **content) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"datasets": [KINETICS], **content}) if text is None else text)
        return load_recipe(path)

    return load


class TestContent:
    def test_all_but_the_datasets_has_defaults(self, load):
        loaded = load()
        assert loaded.datasets == (DatasetRecipe(**KINETICS),)
        assert loaded.clips == ClipRecipe(num_frames=8, image_size=224, short_side=256)
        assert (loaded.model, loaded.training) == ({}, {})
        (kinetics,) = loaded.datasets
        assert (kinetics.weight, kinetics.horizontal_flip, kinetics.labels, kinetics.media_root) == (
            1,
            True,
            None,
            None,
        )
        assert (loaded.mixture, loaded.bad_files) == (MixtureRecipe(), BadFilesRecipe())
        assert loaded.augmentations == {"k400": Augmentation()}

    def test_sections_may_be_left_empty(self, load):
        assert load(model=None, clips=None, training=None) == load()

    def test_everything_that_is_said_is_kept(self, load):
        loaded = load(
            model={"from_image_checkpoint": "google/vit-base-patch16-224-in21k", "default_head": "imagenet"},
            clips={"num_frames": 16, "image_size": 448, "short_side": 480},
            datasets=[KINETICS, {**IMAGENET, "weight": 0.5, "horizontal_flip": False, "labels": ["tench", "hen"]}],
            training={"learning_rate": 0.005, "seed": 3},
        )
        assert loaded.model == {
            "from_image_checkpoint": "google/vit-base-patch16-224-in21k",
            "default_head": "imagenet",
        }
        assert loaded.clips == ClipRecipe(num_frames=16, image_size=448, short_side=480)
        assert [dataset.name for dataset in loaded.datasets] == ["k400", "imagenet"]
        assert (loaded.datasets[1].weight, loaded.datasets[1].horizontal_flip) == (0.5, False)
        assert loaded.datasets[1].labels == ["tench", "hen"]
        assert loaded.training == {"learning_rate": 0.005, "seed": 3}

    @pytest.mark.parametrize(("image_size", "short_side"), [(224, 256), (448, 512), (32, 37)])
    def test_the_short_side_before_cropping_is_an_eighth_more_than_seven_of_the_crop(self, image_size, short_side):
        assert ClipRecipe(image_size=image_size).short_side == short_side

    def test_a_weight_of_zero_leaves_a_dataset_in_the_mixture(self, load):
        loaded = load(datasets=[KINETICS, {**IMAGENET, "weight": 0}])
        assert [dataset.weight for dataset in loaded.datasets] == [1, 0]

    def test_several_datasets_share_a_class_list_that_is_given_once(self, load):
        entries = [{**KINETICS, "labels": "sports"}, {**IMAGENET, "labels": "animals"}, {**IMAGENET, "name": "b"}]
        loaded = load(
            data_root="/data",
            class_lists={"sports": ["run", "swim"], "animals": "lists/animals.txt"},
            datasets=[*entries, {**KINETICS, "name": "k600", "labels": "sports"}],
        )
        assert [dataset.labels for dataset in loaded.datasets] == [
            ["run", "swim"],
            "/data/lists/animals.txt",
            None,
            ["run", "swim"],
        ]

    def test_a_dataset_has_the_common_augmentation_and_its_own_on_top(self, load):
        loaded = load(
            augmentation={"color_jitter": {"hue": 0.1}, "mixup_alpha": 0.2},
            datasets=[{**KINETICS, "horizontal_flip": False, "augmentation": {"mixup_alpha": 0.8}}, IMAGENET],
        )
        jitter = ColorJitter(hue=0.1)
        assert loaded.augmentations == {
            "k400": Augmentation(horizontal_flip=False, color_jitter=jitter, mixup_alpha=0.8),
            "imagenet": Augmentation(color_jitter=jitter, mixup_alpha=0.2),
        }

    def test_sections_of_the_mixture_and_of_bad_files_are_kept(self, load):
        loaded = load(
            mixture={"sampling": "temperature", "temperature": 2, "when_exhausted": "stop"},
            bad_files={"max_share": 0.5},
            clips={"sampling": "dense", "frame_stride": 4},
        )
        assert loaded.mixture == MixtureRecipe(sampling="temperature", temperature=2, when_exhausted="stop")
        assert loaded.bad_files == BadFilesRecipe(max_share=0.5)
        assert (loaded.clips.sampling, loaded.clips.frame_stride) == ("dense", 4)

    def test_it_cannot_be_changed(self, load):
        with pytest.raises(dataclasses.FrozenInstanceError):
            load().datasets = ()


class TestPaths:
    def test_relative_ones_start_from_the_data_root(self, load):
        somewhere = {**KINETICS, "format": "manifest", "media_root": "k400/videos", "labels": "k400/labels.txt"}
        (dataset,) = load(data_root="/data", datasets=[somewhere]).datasets
        assert dataset.splits == {"train": "/data/k400/train", "validation": "/data/k400/val"}
        assert (dataset.media_root, dataset.labels) == ("/data/k400/videos", "/data/k400/labels.txt")

    def test_without_a_data_root_they_start_from_the_current_folder(self, load):
        (dataset,) = load().datasets
        assert dataset.splits == {"train": "k400/train", "validation": "k400/val"}

    def test_absolute_ones_stay(self, load):
        (dataset,) = load(data_root="/data", datasets=[{**KINETICS, "splits": {"train": "/k400"}}]).datasets
        assert dataset.splits == {"train": "/k400"}

    def test_a_tilde_is_the_home_folder(self, load, monkeypatch):
        monkeypatch.setenv("HOME", "/home/somebody")
        (dataset,) = load(data_root="~/data").datasets
        assert dataset.splits["train"] == "/home/somebody/data/k400/train"


class TestExamples:
    def test_the_one_in_the_documentation_is_a_recipe(self, load):
        loaded = load(recipe.__doc__.split("\n\n", maxsplit=1)[1])
        assert [dataset.name for dataset in loaded.datasets] == ["k400", "ssv2"]
        assert [dataset.horizontal_flip for dataset in loaded.datasets] == [True, False]
        assert loaded.datasets[1].columns == {"path": "video", "label": "label"}
        assert loaded.training == {"learning_rate": 0.005}

    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
    def test_those_that_come_with_the_package_are_recipes(self, path):
        assert load_recipe(path).datasets

    def test_the_quickstart_mixes_videos_and_images_and_never_mirrors_motions(self):
        (path,) = [path for path in EXAMPLES if path.stem == "quickstart"]
        datasets = {dataset.name: dataset for dataset in load_recipe(path).datasets}
        assert {name: dataset.modality for name, dataset in datasets.items()} == {
            "shapes": "video",
            "motions": "video",
            "textures": "image",
        }
        assert [name for name, dataset in datasets.items() if not dataset.horizontal_flip] == ["motions"]


class TestExtending:
    @pytest.fixture
    def load_over(self, load, tmp_path):
        """Loads a recipe that extends one of two datasets."""
        base = {
            "data_root": "/data",
            "model": {"from_image_checkpoint": "org/vit", "default_head": "k400", "drop_path_rate": 0.1},
            "clips": {"num_frames": 16, "image_size": 448},
            "datasets": [KINETICS, {**IMAGENET, "weight": 0.5}],
            "training": {"learning_rate": 0.005, "num_train_epochs": 20},
        }
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
        return lambda **content: load(yaml.safe_dump({"extends": "base.yaml", **content}))

    def test_what_is_not_said_is_the_bases(self, load_over, tmp_path):
        assert load_over() == load_over(model=None, datasets=None) == load_recipe(tmp_path / "base.yaml")

    def test_sections_are_laid_over_it_key_by_key(self, load_over):
        loaded = load_over(clips={"num_frames": 8}, training={"learning_rate": 0.1, "seed": 3})
        assert (loaded.clips.num_frames, loaded.clips.image_size) == (8, 448)
        assert loaded.training == {"learning_rate": 0.1, "num_train_epochs": 20, "seed": 3}

    def test_datasets_are_chosen_and_changed(self, load_over):
        loaded = load_over(datasets=[{"name": "imagenet", "weight": 0.75}])
        assert [(dataset.name, dataset.weight) for dataset in loaded.datasets] == [("imagenet", 0.75)]
        assert loaded.datasets[0].splits == {"train": "/data/imagenet/train"}
        loaded = load_over(datasets=["k400", {**IMAGENET, "name": "places"}])
        assert [dataset.name for dataset in loaded.datasets] == ["k400", "places"]

    def test_another_starting_point_takes_the_place_of_the_bases(self, load_over):
        loaded = load_over(model={"from_pretrained": "org/cover"})
        assert loaded.model == {"from_pretrained": "org/cover", "default_head": "k400", "drop_path_rate": 0.1}

    def test_a_base_may_extend_another(self, load_over, load, tmp_path):
        load_over(training={"seed": 3})
        (tmp_path / "recipe.yaml").rename(tmp_path / "middle.yaml")
        loaded = load(yaml.safe_dump({"extends": "middle.yaml", "training": {"seed": 4}}))
        assert loaded.training == {"learning_rate": 0.005, "num_train_epochs": 20, "seed": 4}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"extends": "nowhere.yaml"}, r"extends: nowhere\.yaml: .*No such file"),
            ({"extends": 3}, "extends: expected the file of another recipe, got 3"),
            ({"extends": "recipe.yaml"}, r"extends: recipe\.yaml is extended by this recipe, and by itself"),
            ({"datasets": [["k400", "imagenet"]]}, r"datasets: \['k400', 'imagenet'\] is none of the base's"),
            ({"datasets": ["k500"]}, "datasets: 'k500' is none of the base's, which are k400, imagenet"),
            ({"datasets": ["k400", "k400"]}, "datasets: k400 given more than once"),
            ({"trainin": {}}, "unknown key 'trainin', did you mean 'training'"),
        ],
    )
    def test_what_is_wrong_is_named(self, load_over, content, message):
        with pytest.raises(ValueError, match=rf"recipe .*recipe\.yaml: .*{message}"):
            load_over(**content)


class TestBadFiles:
    def test_one_that_is_missing_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"recipe .*nowhere\.yaml: .*No such file"):
            load_recipe(tmp_path / "nowhere.yaml")

    def test_one_that_is_no_text_is_named(self, tmp_path):
        (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=r"recipe .*recipe\.yaml: .*can't decode"):
            load_recipe(tmp_path / "recipe.yaml")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{a: b: c}", r"recipe\.yaml: .*line 1, column 6"),
            ("", r"recipe\.yaml: .*expected keys and values, got None"),
            ("- k400\n- ssv2\n", r"recipe\.yaml: .*expected keys and values, got \['k400', 'ssv2'\]"),
            ("datasets: !!python/object/apply:os.getcwd []", r"recipe\.yaml: .*python/object/apply"),
        ],
    )
    def test_one_that_is_no_yaml_of_keys_and_values_is_named_with_the_place(self, load, text, message):
        with pytest.raises(ValueError, match=f"(?s){message}"):
            load(text)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("clips: {}\nmodel: {}\nclips: {}\n", "line 3: the key clips was given in line 1 already"),
            ("clips:\n  num_frames: 8\n  num_frames: 16\n", "line 3: the key num_frames was given in line 2 already"),
            ("datasets:\n- {name: a, weight: 1, weight: 2}\n", "line 2: the key weight was given in line 2 already"),
            (
                "datasets:\n- name: a\n  format: manifest\n- format: manifest\n  name: a\n",
                "line 5: datasets: 'a' is the name of the one in line 2 already, expected a name of its own for each",
            ),
            ("data_root: ~nobody-of-that-name/data\ndatasets: []\n", "home directory"),
            ("[" * 5000, "recursion"),
        ],
    )
    def test_a_key_given_twice_is_refused_with_its_line(self, load, text, message):
        with pytest.raises(ValueError, match=message):
            load(text)

    def test_a_key_that_is_no_name_is_refused(self, load):
        with pytest.raises(ValueError, match=r"recipe\.yaml"):
            load("? [clips, model]\n: {}\n")


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"modle": {}}, "the recipe: unknown key 'modle', did you mean 'model'"),
            ({"clips": {"num_frame": 8}}, "clips: unknown key 'num_frame', did you mean 'num_frames'"),
            ({"datasets": [{**KINETICS, "wieght": 1}]}, "'k400': unknown key 'wieght', did you mean 'weight'"),
            (
                {"xyz": 1},
                "the recipe: unknown key 'xyz', expected augmentation, bad_files, class_lists, clips, data_root, datasets, mixture, model, training",
            ),
            (
                {"5": 1},
                "the recipe: unknown key '5', expected augmentation, bad_files, class_lists, clips, data_root, datasets, mixture, model, training",
            ),
        ],
    )
    def test_the_key_and_the_likeliest_or_all_others_are_named(self, load, content, message):
        with pytest.raises(ValueError, match=rf"recipe\.yaml: .*{message}"):
            load(**content)


class TestBadDatasets:
    @pytest.mark.parametrize(
        ("datasets", "message"),
        [
            ([], "datasets: expected at least one"),
            (None, "datasets: expected a list of datasets, got None"),
            ({"k400": KINETICS}, "datasets: expected a list of datasets, got {'k400'"),
            (["k400"], "dataset 'number 1': expected keys and values, got 'k400'"),
            ([KINETICS, IMAGENET, KINETICS], "datasets: 'k400' is the name of the one in line . already"),
            ([{**KINETICS, "weight": 0}, {**IMAGENET, "weight": 0.0}], "every weight is 0, there is nothing to train"),
        ],
    )
    def test_there_is_a_list_of_one_or_more_each_with_its_name(self, load, datasets, message):
        with pytest.raises(ValueError, match=message):
            load(datasets=datasets)

    @pytest.mark.parametrize("key", ["format", "modality", "splits"])
    def test_a_missing_key_is_named_with_its_dataset(self, load, key):
        entry = {other: value for other, value in KINETICS.items() if other != key}
        with pytest.raises(ValueError, match=f"dataset 'k400': missing {key}"):
            load(datasets=[entry])

    def test_one_without_a_name_is_told_by_its_number(self, load):
        nameless = {key: value for key, value in IMAGENET.items() if key != "name"}
        with pytest.raises(ValueError, match="dataset 'number 2': missing name"):
            load(datasets=[KINETICS, nameless])

    @pytest.mark.parametrize("name", ["k.400", "k 400", "", 400, None, ["k400"]])
    def test_a_name_is_one_that_a_head_can_have(self, load, name):
        with pytest.raises(ValueError, match=r"dataset name .*expected letters, digits, '_' and '-'") as error:
            load(datasets=[{**KINETICS, "name": name}])
        assert repr(name) in str(error.value)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"format": "avi"}, r"format must be one of \('class_folders', 'manifest', .*, got 'avi'"),
            ({"horizontal_flip": "never"}, "horizontal_flip must be true or false, got 'never'"),
            ({"splits": {"train": "t", "val": "v"}}, r"unknown splits \['val'\], expected train and validation"),
            ({"labels": [True, False]}, r"labels.*\[True, False\]"),
            ({"streaming": True}, "streaming does not apply to the format 'class_folders'"),
        ],
    )
    def test_a_wrong_value_is_named_with_its_dataset_and_what_was_expected(self, load, entry, message):
        with pytest.raises(ValueError, match=f"dataset 'k400': {message}"):
            load(datasets=[{**KINETICS, **entry}])

    @pytest.mark.parametrize("weight", [-1, -0.5, float("nan"), float("inf"), "heavy", True, None, [1.0]])
    def test_a_weight_is_a_number_that_is_not_negative(self, load, weight):
        with pytest.raises(
            ValueError, match="dataset 'k400': weight must be a finite number, at least 0, got"
        ) as error:
            load(datasets=[{**KINETICS, "weight": weight}, IMAGENET])
        assert repr(weight) in str(error.value)


class TestOtherBadValues:
    @pytest.mark.parametrize("name", ["num_frames", "image_size", "short_side"])
    @pytest.mark.parametrize("value", [0, -8, 8.5, "224", True, [224, 224]])
    def test_sizes_of_clips_are_positive_whole_numbers(self, load, name, value):
        with pytest.raises(ValueError, match=rf"recipe\.yaml: clips: {name} must be a positive whole number") as error:
            load(clips={name: value})
        assert repr(value) in str(error.value)

    def test_a_crop_has_to_fit_into_the_short_side(self, load):
        with pytest.raises(ValueError, match=r"clips: short_side \(200\) is below image_size \(224\)"):
            load(clips={"short_side": 200})

    @pytest.mark.parametrize("section", ["model", "clips", "training"])
    @pytest.mark.parametrize("value", [["num_frames"], [], 5, "fast", False])
    def test_a_section_has_keys_and_values(self, load, section, value):
        with pytest.raises(ValueError, match=f"{section}: expected keys and values, got ") as error:
            load(**{section: value})
        assert repr(value) in str(error.value)

    @pytest.mark.parametrize("value", [5, ["data"]])
    def test_the_data_root_is_a_path(self, load, value):
        with pytest.raises(ValueError, match=rf"recipe\.yaml: data_root: .*{value!r}".replace("[", r"\[")):
            load(data_root=value)

    @pytest.mark.parametrize(
        ("sections", "message"),
        [
            ({"mixture": {"temperatur": 2}}, "mixture: unknown key 'temperatur', did you mean 'temperature'"),
            ({"mixture": {"weights": "equal"}}, "mixture: weights must be one of .*, got 'equal'"),
            (
                {"mixture": {"update_shares": {"k400": 1}}},
                "update_shares have no effect without `weights: equal_updates`",
            ),
            (
                {"mixture": {"weights": "equal_updates", "update_shares": {"imagenet": 1}}},
                r"update_shares: expected one for each of \['k400'\], got \['imagenet'\]",
            ),
            (
                {"mixture": {"weights": "equal_updates", "update_shares": {"k400": 0}}},
                "mixture: update_shares: k400 must be .*, got 0",
            ),
            ({"mixture": {"weights": "equal_updates", "update_shares": 3}}, "update_shares: expected one for each"),
            ({"bad_files": {"max_share": 5}}, "bad_files: max_share must be a finite number, from 0 to 1, got 5"),
            ({"clips": {"sampling": "random"}}, "clips: sampling must be one of .*, got 'random'"),
            ({"clips": {"frame_stride": 2}}, "frame_stride has no effect with sampling 'uniform'"),
            ({"augmentation": {"mixup": 1}}, "dataset 'k400': augmentation: unknown key 'mixup', did you mean"),
            ({"augmentation": {"horizontal_flip": False}}, "horizontal_flip is a key of the dataset itself"),
            ({"augmentation": {"short_side_range": [200, 300]}}, "begins below image_size"),
            ({"class_lists": {"sports": 5}}, "class_lists: sports: expected a file or a list of labels, got 5"),
        ],
    )
    def test_what_a_section_does_not_take_is_named(self, load, sections, message):
        with pytest.raises(ValueError, match=message):
            load(**sections)

    def test_a_weight_that_would_be_overwritten_is_refused(self, load):
        mixture = {"weights": "equal_updates", "update_shares": {"k400": 3, "imagenet": 1}}
        loaded = load(mixture=mixture, datasets=[KINETICS, IMAGENET])
        assert loaded.mixture == MixtureRecipe(**mixture)
        with pytest.raises(ValueError, match="dataset 'imagenet': weight has no effect with `weights: equal_updates`"):
            load(mixture=mixture, datasets=[KINETICS, {**IMAGENET, "weight": 0.5}])

    def test_a_model_has_one_starting_point(self, load):
        with pytest.raises(
            ValueError, match="expected one starting point, got from_image_checkpoint and from_pretrained"
        ):
            load(model={"from_pretrained": "here", "from_image_checkpoint": "there"})

    @pytest.mark.parametrize("value", [None, "", 5])
    @pytest.mark.parametrize("key", ["from_image_checkpoint", "from_timesformer", "from_pretrained"])
    def test_a_starting_point_that_says_nothing_does_not_start_from_random_weights(self, load, key, value):
        with pytest.raises(ValueError, match=rf"recipe\.yaml: model: {key}"):
            load(model={key: value})

    @pytest.mark.parametrize("value", [None, 5, ["k400"]])
    def test_the_default_head_is_a_name(self, load, value):
        with pytest.raises(ValueError, match="model: default_head must be a dataset's name, got"):
            load(model={"default_head": value})
