# SPDX-License-Identifier: Apache-2.0
"""Co-training of encoders of transformers: by recipe, with the guarantees that ours have."""

import copy
import dataclasses

import pytest
import torch
from encoders import CONFIGS, LABELS, save_encoder, size_of
from forked_runs import start
from killed_runs import build_recipe, build_trainer, kill, wait_for
from modeling_cover import CoverForVideoClassification, Recipe, prepare_cotraining
from modeling_cover.recipe.recipe import ClipRecipe
from modeling_cover.training.adapters import plain_name
from modeling_cover.training.batches import encoder_operations, layers_of
from modeling_cover.training.optimization import depths, freeze_all_but
from safetensors.torch import load_file
from short_runs import final_weights, make_trainer, resumed_from


def recipe_of(folder, kind: str, **model) -> Recipe:
    """The recipe of the runs of these tests, on an encoder of random weights, or with what `model` says of it."""
    recipe = build_recipe(folder)
    size = size_of(kind)
    clips = ClipRecipe(num_frames=4, image_size=size, short_side=size)
    default_head = {key: recipe.model[key] for key in ("default_head",) if key in recipe.model}
    model = model or {"encoder": CONFIGS[kind].to_dict()}
    return dataclasses.replace(recipe, clips=clips, model={**default_head, **model})


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "vit")) for kind in CONFIGS])
def test_a_run_moves_every_weight_and_one_that_is_killed_ends_with_the_same_to_the_bit(folder, tmp_path, kind):
    temporal = {"encoder_temporal_layers": 1} if kind == "vit" else {}
    recipe = recipe_of(folder, kind)
    options = {
        "model": {"encoder": CONFIGS[kind].to_dict(), **temporal},
        "clips": dataclasses.asdict(recipe.clips),
        "max_steps": 4,
        "save_steps": 2,
        "layer_decay": 0.9,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    process = start(folder, killed, **options, stalled={"step": 3, "process": 0})
    trainer = build_trainer(folder, whole, **options)
    before = copy.deepcopy(final_weights(trainer))
    trainer.train()
    weights = final_weights(trainer)
    idle = [name for name, weight in weights.items() if weight.numel() and torch.equal(weight, before[name])]
    # Positions of DINOv3's rotation; and masks of pre-training.
    assert [name for name in idle if not name.endswith(("inv_freq", "mask_token", "position_ids"))] == []

    assert wait_for((killed / "checkpoint-2").exists, process)
    kill(process)
    resumed = build_trainer(folder, killed, **options)
    resumed.train(resume_from_checkpoint="auto")
    assert resumed.resumed_from == str(killed / "checkpoint-2")
    for name, weight in final_weights(resumed).items():
        assert torch.equal(weight, weights[name]), name
    loaded = CoverForVideoClassification.from_pretrained(whole / "checkpoint-4")
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())


class TestParameters:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_layers_are_as_deep_as_a_clip_goes_through_them(self, folder, kind):
        model = prepare_cotraining(recipe_of(folder, kind)).model
        found = depths((name for name, _ in model.named_parameters()), model.config.layer_lists)
        layers = model.config.num_hidden_layers
        assert len(layers_of(model)) == layers
        assert set(found.values()) == set(range(layers + 2))
        assert all(depth == 0 for name, depth in found.items() if "patch_embed" in name or "position_emb" in name)
        assert all(depth == layers + 1 for name, depth in found.items() if name.startswith("classifiers."))

    def test_temporal_layers_come_after_spatial_ones(self, folder):
        model = prepare_cotraining(recipe_of(folder, "videoprism_vision_model")).model
        found = depths((name for name, _ in model.named_parameters()), model.config.layer_lists)
        names = ("spatial_layers.0", "spatial_layers.1", "temporal_layers.0")
        assert [max(depth for name, depth in found.items() if layer in name) for layer in names] == [1, 2, 3]

    def test_only_heads_and_what_pools_for_them_are_trained_where_that_is_asked_for(self, folder, tmp_path):
        recipe = recipe_of(folder, "vjepa2", encoder=CONFIGS["vjepa2"].to_dict(), encoder_pooling="attentive")
        trainer = make_trainer(folder, tmp_path, recipe, trained_part="heads", max_steps=1)
        before = copy.deepcopy(final_weights(trainer))
        trainer.train()
        for name, weight in final_weights(trainer).items():
            assert torch.equal(weight, before[name]) == name.startswith("cover.encoder."), name

    def test_the_last_layers_are_trained_with_what_follows_them(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, recipe_of(folder, "video_swin"), trained_part="last_2_layers")
        trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        followed = ("classifiers.", "cover.encoder.layernorm.", "cover.encoder.layers.2.", "cover.encoder.layers.3.")
        assert trained == {name for name, _ in trainer.model.named_parameters() if name.startswith(followed)}

    def test_there_are_not_more_layers_than_the_encoder_has(self, folder, tmp_path):
        with pytest.raises(ValueError, match="trained_part: 'last_3_layers' of a model that has 2 layers"):
            make_trainer(folder, tmp_path, recipe_of(folder, "videomae"), trained_part="last_3_layers")

    def test_temporal_attention_that_is_not_apart_is_not_trained_apart(self, folder, tmp_path):
        with pytest.raises(ValueError, match="trained_part: the temporal attention of a videomae is not apart"):
            make_trainer(folder, tmp_path, recipe_of(folder, "videomae"), trained_part="temporal_and_heads")

    def test_operations_are_counted_by_token(self, folder):
        model = prepare_cotraining(recipe_of(folder, "videomae")).model
        weights = sum(parameter.numel() for layer in layers_of(model) for parameter in layer.parameters())
        clips, images = torch.zeros(2, 4, 3, 32, 32), torch.zeros(3, 1, 3, 32, 32)
        assert encoder_operations(model, [clips, images]) == 6 * weights * (2 * 2 * 4 + 3 * 1 * 4)

    def test_what_is_frozen_takes_fewer(self, folder):
        model = prepare_cotraining(recipe_of(folder, "videomae")).model
        first, second = (sum(parameter.numel() for parameter in layer.parameters()) for layer in layers_of(model))
        clips = torch.zeros(2, 4, 3, 32, 32)
        for part, expected in {"heads": 2 * (first + second), "last_1_layers": 2 * first + 4 * second}.items():
            freeze_all_but(model.requires_grad_(True), part)
            assert encoder_operations(model, clips) == expected * 2 * 2 * 4

    def test_a_token_of_several_patches_is_one(self, folder):
        model = prepare_cotraining(recipe_of(folder, "video_swin")).model
        weights = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers_of(model)]
        # Two tokens of time and 8 x 8 of space; a quarter of them in the second stage's two layers.
        expected = 6 * 2 * (128 * (weights[0] + weights[1]) + 32 * (weights[2] + weights[3]))
        assert encoder_operations(model, torch.zeros(2, 4, 3, 32, 32)) == expected


class TestRecipe:
    def test_a_classifier_goes_on_as_a_head_beside_new_ones(self, folder, tmp_path):
        native = save_encoder(tmp_path, "videomae", classifies=True, labels=["class0", "class1"])
        model = prepare_cotraining(recipe_of(folder, "videomae", from_encoder=str(tmp_path), head="videos")).model
        assert torch.equal(model.classifiers["videos"].weight, native.classifier.weight)
        assert model.config.head_names == ["images", "videos"]

    def test_its_classes_must_be_those_of_the_dataset(self, folder, tmp_path):
        save_encoder(tmp_path, "videomae", classifies=True)
        with pytest.raises(ValueError, match=r"dataset 'videos': its classes differ from those of head .*lift"):
            prepare_cotraining(recipe_of(folder, "videomae", from_encoder=str(tmp_path), head="videos"))
        assert LABELS[0] == "lift"

    def test_pixels_are_normalised_as_the_checkpoint_says(self, folder, tmp_path):
        from transformers import VideoMAEVideoProcessor

        save_encoder(tmp_path, "videomae")
        VideoMAEVideoProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
        processor = prepare_cotraining(recipe_of(folder, "videomae", from_encoder=str(tmp_path))).processor
        assert (*processor.image_mean, *processor.image_std) == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)

    def test_a_checkpoint_goes_on_with_the_clips_of_its_encoder_alone(self, folder, tmp_path):
        prepare_cotraining(recipe_of(folder, "vjepa2")).model.save_pretrained(tmp_path)
        recipe = recipe_of(folder, "vjepa2", from_pretrained=str(tmp_path))
        larger = dataclasses.replace(recipe, clips=ClipRecipe(num_frames=4, image_size=64))
        with pytest.raises(ValueError, match="this vjepa2 has positions for frames of 32x32 alone, got 64x64"):
            prepare_cotraining(larger)

    def test_a_field_of_the_encoder_is_the_checkpoints(self, folder, tmp_path):
        save_encoder(tmp_path, "videomae")
        with pytest.raises(ValueError, match="model: hidden_size: the starting point has its own"):
            prepare_cotraining(recipe_of(folder, "videomae", from_encoder=str(tmp_path), hidden_size=8))


class TestAdapters:
    @pytest.mark.parametrize(
        ("kind", "pooling"),
        [
            ("videomae", None),
            pytest.param("vjepa2", "attentive", marks=pytest.mark.slow),
            pytest.param("videoprism_vision_model", "attentive", marks=pytest.mark.slow),
            pytest.param("dinov3_vit", None, marks=pytest.mark.slow),
            pytest.param("video_swin", None, marks=pytest.mark.slow),
        ],
    )
    def test_attention_is_adapted_heads_and_their_pooling_are_trained_and_a_run_resumes(
        self, folder, tmp_path, kind, pooling
    ):
        encoder = CONFIGS[kind].to_dict()
        recipe = recipe_of(folder, kind, encoder=encoder, encoder_pooling=pooling, lora={"r": 2})
        options = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2}
        whole = make_trainer(folder, tmp_path / "whole", recipe, **options)
        trained = {plain_name(name) for name, weight in whole.model.named_parameters() if weight.requires_grad}
        assert {name.split(".")[0] for name in trained} == {"classifiers", "cover"}
        assert all(name.startswith(("classifiers.", "cover.pooler.", "cover.encoder.")) for name in trained)
        assert any(name.startswith("cover.pooler.") for name in trained) == (kind not in ("dinov3_vit", "video_swin"))
        whole.train()
        resumed = resumed_from(tmp_path / "whole", 2, tmp_path / "resumed", folder, recipe, **options)
        weights = final_weights(whole)
        assert all(torch.equal(weight, weights[name]) for name, weight in final_weights(resumed).items())
        merged = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
        assert merged.keys() == CoverForVideoClassification(whole.model.config).state_dict().keys()
