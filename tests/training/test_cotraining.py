# SPDX-License-Identifier: Apache-2.0
"""From a recipe to model, processor and data, from each starting point."""

import dataclasses
import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from checkpoints import (
    ORIGINAL_SIZES,
    SIZES,
    make_timesformer,
    original_state,
    perturb,
    save_original,
    save_timesformer,
    save_vit,
)
from clips import write_clip
from modeling_cover import (
    CoverConfig,
    CoverForVideoClassification,
    CoverVideoProcessor,
    collate_clips,
    prepare_cotraining,
)
from modeling_cover.data.mixture import SampleReference
from modeling_cover.recipe.recipe import ClipRecipe, DatasetRecipe, Recipe
from transformers import TimesformerVideoProcessor, ViTImageProcessor


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
ACTIONS, OBJECTS = ["pull", "push"], ["hen", "ostrich", "tench"]
FIELDS = {name: value for name, value in SIZES.items() if name != "image_size"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Videos of two actions and images of three objects, a folder a class; the objects have a validation split."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label in ACTIONS:
        (folder / "actions" / label).mkdir(parents=True)
        frames = rng.integers(0, 256, (4, 24, 32, 3), dtype=np.uint8)
        write_clip(folder / "actions" / label / "clip.mp4", frames)
    for split, label in ((split, label) for split in ("train", "val") for label in OBJECTS):
        (folder / "objects" / split / label).mkdir(parents=True)
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "objects" / split / label / "image.png")
    return folder


@pytest.fixture
def recipe(data) -> Recipe:
    """Two datasets and small clips; nothing is said of the model."""
    actions = DatasetRecipe(
        name="actions", format="class_folders", modality="video", splits={"train": str(data / "actions")}
    )
    objects = DatasetRecipe(
        name="objects",
        format="class_folders",
        modality="image",
        splits={"train": str(data / "objects" / "train"), "validation": str(data / "objects" / "val")},
        weight=0.5,
    )
    return Recipe(datasets=(actions, objects), clips=ClipRecipe(num_frames=2, image_size=16, short_side=20))


def prepare(recipe: Recipe, **model):
    return prepare_cotraining(dataclasses.replace(recipe, model=model))


def listing(recipe: Recipe, labels: list[str]) -> Recipe:
    """The recipe with the labels of its first dataset listed."""
    first, *others = recipe.datasets
    return dataclasses.replace(recipe, datasets=(dataclasses.replace(first, labels=labels), *others))


def renamed(recipe: Recipe, *names: str) -> Recipe:
    """The recipe with other names for its datasets."""
    pairs = zip(recipe.datasets, names, strict=True)
    return dataclasses.replace(
        recipe, datasets=tuple(dataclasses.replace(dataset, name=name) for dataset, name in pairs)
    )


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class TestAnyStart:
    def test_there_is_a_head_for_each_dataset_with_its_labels(self, recipe):
        config = prepare(recipe, **FIELDS).model.config
        assert config.head_names == ["actions", "objects"]
        assert {name: (head["labels"], head["modality"]) for name, head in config.heads.items()} == {
            "actions": (ACTIONS, "video"),
            "objects": (OBJECTS, "image"),
        }

    def test_the_default_head_is_the_first_datasets_unless_another_is_named(self, recipe):
        backwards = dataclasses.replace(recipe, datasets=recipe.datasets[::-1])
        assert prepare(recipe, **FIELDS).model.config.default_head == "actions"
        assert prepare(backwards, **FIELDS).model.config.default_head == "objects"
        config = prepare(recipe, **FIELDS, default_head="objects").model.config
        assert config.default_head == "objects"
        assert list(config.id2label.values()) == OBJECTS

    def test_the_processor_makes_clips_as_the_recipe_says(self, recipe):
        processor = prepare(recipe, **FIELDS).processor
        assert processor.num_frames == 2
        assert processor.size["shortest_edge"] == 20
        assert (processor.crop_size["height"], processor.crop_size["width"]) == (16, 16)

    def test_it_trains_on_train_splits_and_evaluates_on_validation_splits(self, recipe, data):
        cotraining = prepare(recipe, **FIELDS)
        assert cotraining.train_dataset.sizes == {"actions": 2, "objects": 3}
        assert list(cotraining.eval_datasets) == ["objects"]
        validation = cotraining.eval_datasets["objects"].source
        assert [media.content for media in validation.media] == [
            str(data / "objects" / "val" / label / "image.png") for label in OBJECTS
        ]
        assert validation.labels == OBJECTS

    def test_weights_of_the_loss_are_the_recipes(self, recipe):
        assert prepare(recipe, **FIELDS).loss_weights == {"actions": 1.0, "objects": 0.5}

    def test_the_trainer_is_given_all_of_it(self, recipe):
        cotraining = prepare(recipe, **FIELDS)
        assert cotraining.trainer_kwargs == {
            "recipe": cotraining.recipe,
            "model": cotraining.model,
            "processing_class": cotraining.processor,
            "train_dataset": cotraining.train_dataset,
            "schedule": cotraining.schedule,
            "eval_dataset": cotraining.eval_datasets,
            "loss_weights": cotraining.loss_weights,
        }

    def test_the_model_takes_the_batches(self, recipe):
        cotraining = prepare(recipe, **FIELDS)
        references = itertools.islice(cotraining.schedule.references(), cotraining.schedule.epoch_size)
        batch = collate_clips([cotraining.train_dataset[reference] for reference in references])
        batch["pixel_values"] = [cotraining.processor.normalize_pixels(clips) for clips in batch["pixel_values"]]
        outputs = cotraining.model(**batch)
        assert set(outputs.head_losses) == {"actions", "objects"}
        assert all(0 < loss < 10 for loss in outputs.head_losses.values())

    def test_the_seed_decides_what_is_random_about_a_sample(self, recipe):
        recipe = dataclasses.replace(recipe, model=FIELDS)
        reference = SampleReference("objects", 0, position=0, draw=0)
        views = [prepare_cotraining(recipe, seed).train_dataset[reference]["pixel_values"] for seed in (1, 1, 2)]
        assert torch.equal(views[0], views[1])
        assert not torch.equal(views[0], views[2])


class TestFromScratch:
    def test_the_model_has_the_fields_given_and_the_sizes_of_the_clips(self, recipe):
        config = prepare(recipe, **FIELDS, drop_path_rate=0.2).model.config
        assert {name: getattr(config, name) for name in SIZES} == SIZES
        assert (config.num_frames, config.drop_path_rate) == (2, 0.2)

    def test_pixels_are_normalised_as_by_default(self, recipe):
        processor = prepare(recipe, **FIELDS).processor
        assert (processor.image_mean, processor.image_std) == (
            CoverVideoProcessor().image_mean,
            CoverVideoProcessor().image_std,
        )


class TestFromAViT:
    def test_the_encoder_is_the_vits_and_all_heads_are_new(self, recipe, tmp_path):
        vit = save_vit(tmp_path)
        cotraining = prepare(recipe, from_image_checkpoint=str(tmp_path), drop_path_rate=0.2, default_head="objects")
        expected = CoverForVideoClassification.from_image_checkpoint(
            tmp_path, heads=cotraining.model.config.heads, default_head="objects", num_frames=2
        )
        assert same_weights(cotraining.model.cover, expected.cover)
        assert torch.equal(cotraining.model.cover.layernorm.weight, vit.layernorm.weight)
        config = cotraining.model.config
        assert (config.default_head, config.drop_path_rate, config.num_frames) == ("objects", 0.2, 2)
        assert config.head_names == ["actions", "objects"]

    def test_position_embeddings_are_resized_to_the_clips(self, recipe, tmp_path):
        save_vit(tmp_path, image_size=32)
        model = prepare(recipe, from_image_checkpoint=str(tmp_path)).model
        assert model.config.image_size == 16
        assert model.cover.embeddings.position_embeddings.shape == (1, 1 + 4, 32)

    def test_pixels_are_normalised_as_the_vits_were(self, recipe, tmp_path):
        save_vit(tmp_path)
        ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
        processor = prepare(recipe, from_image_checkpoint=str(tmp_path)).processor
        assert (list(processor.image_mean), list(processor.image_std)) == (MEAN, STD)
        assert (processor.num_frames, processor.crop_size["height"]) == (2, 16)

    def test_without_a_processor_pixels_are_normalised_as_a_vits_are_and_a_warning_says_so(
        self, recipe, tmp_path, caplog
    ):
        save_vit(tmp_path)
        processor = prepare(recipe, from_image_checkpoint=str(tmp_path)).processor
        assert list(processor.image_mean) == list(CoverVideoProcessor().image_mean)
        assert f"{tmp_path} says nothing of mean and deviation: normalising as a vit does" in caplog.text


class TestFromATimeSformer:
    def test_it_can_bring_the_head_of_a_dataset(self, recipe, tmp_path):
        timesformer = save_timesformer(tmp_path, num_frames=2, id2label=dict(enumerate(ACTIONS)))
        model = prepare(recipe, from_timesformer=str(tmp_path), head="actions", default_head="objects").model
        assert model.config.head_names == ["actions", "objects"]
        assert model.config.default_head == "objects"
        assert model.config.heads["actions"]["labels"] == ACTIONS
        pixel_values = torch.randn(2, 2, 3, 16, 16)
        with torch.no_grad():
            expected, logits = timesformer(pixel_values).logits, model(pixel_values).head_logits["actions"]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)

    def test_its_labels_keep_their_classifiers_order(self, recipe, tmp_path):
        timesformer = save_timesformer(tmp_path, num_frames=2, id2label={0: "push", 1: "pull"})
        cotraining = prepare(recipe, from_timesformer=str(tmp_path), head="actions")
        assert cotraining.model.config.heads["actions"]["labels"] == ["push", "pull"]
        assert torch.equal(cotraining.model.classifiers["actions"].weight, timesformer.classifier.weight)
        labels = [
            cotraining.train_dataset[SampleReference("actions", row, position=0, draw=0)]["labels"] for row in range(2)
        ]
        assert labels == [1, 0]

    def test_other_labels_than_its_are_refused(self, recipe, tmp_path):
        save_timesformer(tmp_path, num_frames=2, id2label={0: "push", 1: "lift"})
        with pytest.raises(ValueError, match=r"classes differ from those of head 'actions'.*'pull'.*'lift'"):
            prepare(recipe, from_timesformer=str(tmp_path), head="actions")

    def test_without_a_head_only_the_encoder_is_kept(self, recipe, tmp_path):
        timesformer = save_timesformer(tmp_path, num_frames=2, num_labels=7)
        model = prepare(recipe, from_timesformer=str(tmp_path), drop_path_rate=0.2).model
        assert model.config.head_names == sorted(model.classifiers) == ["actions", "objects"]
        assert (model.config.default_head, model.config.drop_path_rate) == ("actions", 0.2)
        expected = CoverForVideoClassification.from_timesformer(tmp_path)
        assert same_weights(model.cover, expected.cover)
        assert not torch.equal(model.classifiers["actions"].weight, timesformer.classifier.weight[:2])

    @pytest.mark.parametrize("names", [("timesformer", "objects"), ("actions", "timesformer")])
    def test_a_dataset_may_be_called_timesformer(self, recipe, tmp_path, names):
        save_timesformer(tmp_path, num_frames=2, num_labels=7)
        config = prepare(renamed(recipe, *names), from_timesformer=str(tmp_path)).model.config
        assert config.head_names == sorted(names)
        assert [config.heads[name]["labels"] for name in names] == [ACTIONS, OBJECTS]

    def test_its_embeddings_are_resized_to_the_clips(self, recipe, tmp_path):
        save_timesformer(tmp_path, num_frames=4, image_size=32)
        model = prepare(recipe, from_timesformer=str(tmp_path)).model
        assert (model.config.num_frames, model.config.image_size) == (2, 16)
        assert model.cover.embeddings.time_embeddings.shape == (1, 2, 32)
        assert model.cover.embeddings.position_embeddings.shape == (1, 1 + 4, 32)

    @pytest.mark.parametrize("processor_class", [ViTImageProcessor, TimesformerVideoProcessor])
    def test_pixels_are_normalised_as_its_were(self, recipe, tmp_path, processor_class):
        save_timesformer(tmp_path, num_frames=2)
        processor_class(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
        processor = prepare(recipe, from_timesformer=str(tmp_path)).processor
        assert (list(processor.image_mean), list(processor.image_std)) == (MEAN, STD)

    def test_a_file_of_the_original_release_serves_as_well(self, recipe, tmp_path):
        timesformer = make_timesformer(**ORIGINAL_SIZES, num_frames=2, num_labels=2)
        path = save_original(tmp_path / "TimeSformer.pyth", original_state(timesformer))
        labels = list(reversed(ACTIONS))
        model = prepare(listing(recipe, labels), from_timesformer=path, head="actions").model
        assert model.config.heads["actions"]["labels"] == labels
        assert torch.equal(model.classifiers["actions"].weight, timesformer.classifier.weight)

    def test_a_classifier_without_label_names_needs_them_listed_since_an_order_found_would_be_a_guess(
        self, recipe, tmp_path
    ):
        save_timesformer(tmp_path, num_frames=2, num_labels=2)
        with pytest.raises(ValueError, match=r"dataset 'actions': .* does not name the labels .* list `labels`"):
            prepare(recipe, from_timesformer=str(tmp_path), head="actions")
        prepare(listing(recipe, ACTIONS), from_timesformer=str(tmp_path), head="actions")

    def test_its_shape_is_its_own(self, recipe, tmp_path):
        save_timesformer(tmp_path, num_frames=2)
        with pytest.raises(ValueError, match="num_hidden_layers: the starting point has its own"):
            prepare(recipe, from_timesformer=str(tmp_path), num_hidden_layers=3)

    def test_a_head_that_is_no_datasets_is_named(self, recipe, tmp_path):
        save_timesformer(tmp_path)
        with pytest.raises(ValueError, match=r"unknown head 'k400', the datasets are \['actions', 'objects'\]"):
            prepare(recipe, from_timesformer=str(tmp_path), head="k400")

    def test_a_head_with_another_number_of_classes_is_refused(self, recipe, tmp_path):
        save_timesformer(tmp_path, num_labels=7)
        with pytest.raises(ValueError, match=r"expected 7 labels, .*, got 2"):
            prepare(listing(recipe, ACTIONS), from_timesformer=str(tmp_path), head="actions")


class TestFromACoverCheckpoint:
    @pytest.fixture
    def save(self, tmp_path):
        """Saves a CoVeR with these heads, and the processor it was trained with."""

        def save(**heads: list[str]) -> CoverForVideoClassification:
            config = CoverConfig(
                **SIZES,
                num_frames=4,
                heads={name: {"labels": labels} for name, labels in heads.items()},
                default_head=min(heads),
            )
            model = perturb(CoverForVideoClassification(config))
            model.save_pretrained(tmp_path)
            CoverVideoProcessor(image_mean=MEAN, image_std=STD, num_frames=4).save_pretrained(tmp_path)
            return model

        return save

    def test_a_head_it_has_is_kept_with_its_order_of_labels(self, recipe, tmp_path, save):
        saved = save(actions=["push", "pull"])
        cotraining = prepare(recipe, from_pretrained=str(tmp_path))
        assert cotraining.model.config.heads["actions"]["labels"] == ["push", "pull"]
        assert same_weights(cotraining.model.cover.layers, saved.cover.layers)
        assert same_weights(cotraining.model.classifiers["actions"], saved.classifiers["actions"])
        samples = [cotraining.train_dataset[SampleReference("actions", row, position=0, draw=0)] for row in range(2)]
        # Rows are in the order of the folders: pull, then push.
        assert [sample["labels"] for sample in samples] == [1, 0]

    def test_a_head_it_lacks_is_added(self, recipe, tmp_path, save):
        save(actions=ACTIONS)
        cotraining = prepare(recipe, from_pretrained=str(tmp_path), default_head="objects")
        config = cotraining.model.config
        assert config.heads["objects"]["labels"] == OBJECTS
        assert config.heads["objects"]["modality"] == "image"
        assert config.default_head == "objects"
        assert cotraining.model.classifiers["objects"].weight.shape == (3, 32)
        sample = cotraining.train_dataset[SampleReference("objects", 2, position=0, draw=0)]
        assert (sample["labels"], sample["head_ids"]) == (2, config.head_names.index("objects"))

    def test_heads_without_a_dataset_stay(self, recipe, tmp_path, save):
        saved = save(actions=ACTIONS, k400=["abseiling", "zumba", "knitting"])
        cotraining = prepare(recipe, from_pretrained=str(tmp_path))
        assert cotraining.model.config.head_names == ["actions", "k400", "objects"]
        assert same_weights(cotraining.model.classifiers["k400"], saved.classifiers["k400"])
        assert cotraining.train_dataset[SampleReference("objects", 0, position=0, draw=0)]["head_ids"] == 2

    @pytest.mark.parametrize(
        ("labels", "named"),
        [
            (["push", "lift"], ["'pull'"]),
            (["push", "pull", "lift"], ["'lift'"]),
        ],
    )
    def test_other_classes_than_those_of_a_head_it_has_are_refused(self, recipe, tmp_path, save, labels, named):
        save(actions=labels)
        with pytest.raises(ValueError, match=r"dataset 'actions'.*classes") as error:
            prepare(recipe, from_pretrained=str(tmp_path))
        assert all(label in str(error.value) for label in named)

    def test_its_embeddings_are_resized_to_the_clips_of_the_recipe(self, recipe, tmp_path, save):
        saved = save(actions=ACTIONS).cover.eval()
        model = prepare(recipe, from_pretrained=str(tmp_path)).model.cover.eval()
        assert (model.config.num_frames, model.config.image_size) == (2, 16)
        embeddings = model.embeddings
        assert (embeddings.time_embeddings.shape[1], embeddings.position_embeddings.shape[1]) == (2, 1 + 4)
        # The old model resizes its own on the way: at the new size both are the same function.
        clips = torch.randn(1, 2, 3, 16, 16)
        torch.testing.assert_close(model(clips).pooler_output, saved(clips).pooler_output, atol=1e-6, rtol=0)

    def test_fields_given_replace_its_own(self, recipe, tmp_path, save):
        save(actions=ACTIONS)
        assert prepare(recipe, from_pretrained=str(tmp_path), drop_path_rate=0.2).model.config.drop_path_rate == 0.2

    def test_its_processor_serves_with_the_sizes_of_the_clips(self, recipe, tmp_path, save):
        save(actions=ACTIONS)
        processor = prepare(recipe, from_pretrained=str(tmp_path)).processor
        assert (list(processor.image_mean), list(processor.image_std)) == (MEAN, STD)
        assert (processor.num_frames, processor.size["shortest_edge"], processor.crop_size["height"]) == (2, 20, 16)

    def test_what_is_trained_can_be_started_from(self, recipe, tmp_path):
        first = prepare(recipe, **FIELDS)
        first.model.save_pretrained(tmp_path)
        first.processor.save_pretrained(tmp_path)
        second = prepare(recipe, from_pretrained=str(tmp_path))
        assert same_weights(first.model, second.model)
        assert first.processor.to_dict() == second.processor.to_dict()
        assert first.train_dataset.sizes == second.train_dataset.sizes

    def test_a_checkpoint_of_another_architecture_is_refused(self, recipe, tmp_path):
        save_vit(tmp_path)
        with pytest.raises(ValueError, match=r"expected .*'cover', got 'vit'.*from_image_checkpoint"):
            prepare(recipe, from_pretrained=str(tmp_path))


class TestBadModelSections:
    """All of them are noticed before a file of the data is looked at."""

    @pytest.fixture
    def recipe(self, recipe) -> Recipe:
        nowhere = [dataclasses.replace(dataset, splits={"train": "nowhere"}) for dataset in recipe.datasets]
        return dataclasses.replace(recipe, datasets=tuple(nowhere))

    def test_data_that_is_missing_is_named(self, recipe):
        with pytest.raises(ValueError, match="dataset 'actions': nowhere is not a folder"):
            prepare(recipe, **FIELDS)

    def test_an_unknown_default_head_is_named_with_the_datasets(self, recipe):
        with pytest.raises(ValueError, match=r"unknown default_head 'k400', .* \['actions', 'objects'\]"):
            prepare(recipe, default_head="k400")

    @pytest.mark.parametrize(
        ("key", "hint"),
        [
            ("hiden_size", "did you mean 'hidden_size'"),
            ("from_vit", "expected .*from_image_checkpoint, from_pretrained, from_timesformer"),
            ("id2label", "expected "),
            ("problem_type", "expected "),
            ("defualt_head", "did you mean 'default_head'"),
        ],
    )
    def test_an_unknown_key_is_named_with_a_hint(self, recipe, key, hint):
        with pytest.raises(ValueError, match=f"model: unknown key '{key}', {hint}"):
            prepare(recipe, **{key: 1})

    @pytest.mark.parametrize(
        ("key", "section"), [("image_size", "clips"), ("num_frames", "clips"), ("heads", "datasets")]
    )
    def test_what_is_said_elsewhere_is_refused_with_the_place(self, recipe, key, section):
        with pytest.raises(ValueError, match=f"model: .*'{key}'.*{section}"):
            prepare(recipe, **{key: 16})

    def test_a_key_that_is_no_name_is_refused(self, recipe):
        with pytest.raises(ValueError, match=r"model: unknown key '?5"):
            prepare_cotraining(dataclasses.replace(recipe, model={5: 1}))

    def test_a_head_to_bring_needs_a_timesformer(self, recipe):
        with pytest.raises(
            ValueError, match="'head' names the head of a classifier: it needs from_timesformer or from_encoder"
        ):
            prepare(recipe, head="actions")
