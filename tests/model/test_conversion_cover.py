# SPDX-License-Identifier: Apache-2.0
"""Starting from a ViT or a TimeSformer: the same outputs, a report of what was done, and no guessing where it
cannot."""

import os

import pytest
import safetensors.torch
import torch
from checkpoints import (
    ORIGINAL_SIZES,
    make_timesformer,
    original_state,
    save_original,
    save_timesformer,
    save_vit,
)
from modeling_cover import CoverForVideoClassification
from tiny import tiny_config
from transformers import ViTForImageClassification


HEADS = {"k400": {"labels": ["abseiling", "zumba"]}, "imagenet": {"labels": ["tench", "hen"], "modality": "image"}}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def from_vit(folder, **options) -> CoverForVideoClassification:
    return CoverForVideoClassification.from_image_checkpoint(folder, heads=HEADS, default_head="k400", **options)


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(3, 3, height, width)


@torch.no_grad()
def assert_features_equal(model: CoverForVideoClassification, vit, pixel_values: torch.Tensor, **options) -> None:
    """Class-token features of images, (B, C, H, W), are those of the ViT within 1e-5."""
    expected = vit(pixel_values, **options).last_hidden_state[:, 0]
    features = model(pixel_values[:, None]).pooler_output
    assert expected.abs().mean() > 0.3
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def assert_logits_equal(model: CoverForVideoClassification, timesformer, pixel_values: torch.Tensor) -> None:
    """Logits of clips, (B, T, C, H, W), are those of the TimeSformer within 1e-4, and not all alike."""
    expected = timesformer(pixel_values).logits
    assert expected.std(dim=0).mean() > 1e-2
    torch.testing.assert_close(model(pixel_values).logits, expected, atol=1e-4, rtol=0)


def report(caplog) -> dict[str, str]:
    """The lines of the logged report, by what they begin with."""
    (message,) = [record.getMessage() for record in caplog.records if "Encoder loaded from" in record.getMessage()]
    lines = [line.removeprefix("- ").split(": ", maxsplit=1) for line in message.splitlines()[1:]]
    return {"source": message.splitlines()[0], **dict(lines)}


class TestFromAViT:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"hidden_act": "relu"},
            {"hidden_act": "gelu_new"},
            {"layer_norm_eps": 1e-12},
            {"layer_norm_eps": 0.3},
            {"qkv_bias": False},
            {"num_attention_heads": 2, "num_hidden_layers": 1},
            {"patch_size": 4},
            {"num_channels": 1},
        ],
        ids=str,
    )
    def test_features_of_an_image_are_the_vits(self, options, tmp_path):
        vit = save_vit(tmp_path, **options)
        pixel_values = images()[:, : options.get("num_channels", 3)]
        assert_features_equal(from_vit(tmp_path), vit, pixel_values)

    @pytest.mark.parametrize("patch_size", [8, [8, 4], [4, 8]])
    def test_height_and_width_may_differ(self, patch_size, tmp_path):
        vit = save_vit(tmp_path, image_size=[16, 32], patch_size=patch_size)
        assert_features_equal(from_vit(tmp_path), vit, images(16, 32))

    def test_features_of_a_still_video_are_those_of_its_frame(self, tmp_path):
        vit = save_vit(tmp_path)
        model, pixel_values = from_vit(tmp_path, num_frames=4), images()
        with torch.no_grad():
            features = model(pixel_values[:, None].expand(-1, 4, -1, -1, -1)).pooler_output
            expected = vit(pixel_values).last_hidden_state[:, 0]
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("image_size", [8, 24, 48])
    def test_at_another_image_size_position_embeddings_are_those_the_vit_interpolates(self, image_size, tmp_path):
        vit = save_vit(tmp_path)
        model = from_vit(tmp_path, image_size=image_size)
        assert model.config.image_size == image_size
        expected = vit.embeddings.interpolate_pos_encoding(
            torch.zeros(1, 1 + (image_size // 8) ** 2, 32), image_size, image_size
        )
        torch.testing.assert_close(model.cover.embeddings.position_embeddings, expected, atol=1e-5, rtol=0)
        pixel_values = images(image_size, image_size)
        assert_features_equal(model, vit, pixel_values, interpolate_pos_encoding=True)

    def test_temporal_attention_is_a_copy_of_spatial_attention(self, tmp_path):
        save_vit(tmp_path)
        for layer in from_vit(tmp_path).cover.layers:
            for temporal, spatial in (
                (layer.temporal_attention, layer.attention),
                (layer.temporal_layernorm, layer.layernorm_before),
            ):
                spatial = dict(spatial.named_parameters())
                for name, parameter in temporal.named_parameters():
                    assert torch.equal(parameter, spatial[name])
                    assert parameter.data_ptr() != spatial[name].data_ptr()
                    assert parameter.abs().sum() > 0

    def test_temporal_dense_and_time_embeddings_are_zeros(self, tmp_path):
        save_vit(tmp_path)
        model = from_vit(tmp_path, num_frames=5)
        assert model.cover.embeddings.time_embeddings.shape == (1, 5, 32)
        zeroed = [model.cover.embeddings.time_embeddings]
        zeroed += [parameter for layer in model.cover.layers for parameter in layer.temporal_dense.parameters()]
        assert all(not parameter.any() for parameter in zeroed)

    def test_heads_are_new_and_drawn_as_all_weights_are(self, tmp_path):
        save_vit(tmp_path, initializer_range=0.5)
        model = from_vit(tmp_path)
        assert model.config.heads.keys() == model.classifiers.keys() == HEADS.keys()
        assert model.config.default_head == "k400"
        for classifier in model.classifiers.values():
            assert 0.3 < classifier.weight.std() < 0.7
            assert not classifier.bias.any()

    def test_fields_of_the_configuration_are_the_vits_unless_given(self, tmp_path):
        save_vit(tmp_path, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2, hidden_act="relu")
        config = from_vit(tmp_path, drop_path_rate=0.3, hidden_dropout_prob=0.4).config
        assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.4, 0.2)
        assert (config.drop_path_rate, config.hidden_act, config.num_frames) == (0.3, "relu", 8)

    def test_weights_stored_in_half_precision_are_resized_and_kept_in_full(self, tmp_path):
        vit = save_vit(tmp_path)
        vit.bfloat16().save_pretrained(tmp_path)
        model = from_vit(tmp_path, image_size=24)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert_features_equal(model, vit.float(), images(24, 24), interpolate_pos_encoding=True)

    def test_it_can_be_saved_and_loaded(self, tmp_path):
        save_vit(tmp_path / "vit")
        model = from_vit(tmp_path / "vit", image_size=24)
        model.save_pretrained(tmp_path / "cover")
        loaded = CoverForVideoClassification.from_pretrained(tmp_path / "cover")
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())

    def test_the_report_names_what_was_copied_zeroed_new_and_unused(self, tmp_path, caplog):
        save_vit(tmp_path)
        from_vit(tmp_path)
        lines = report(caplog)
        assert str(tmp_path) in lines["source"]
        for name in ("temporal_attention", "temporal_layernorm", "temporal_dense", "time_embeddings"):
            assert name in lines["copied or zeroed"]
        assert lines["newly initialised, to be trained"] == "classifiers.imagenet, classifiers.k400"
        assert lines["in the checkpoint and not used"] == "pooler.dense.bias, pooler.dense.weight"

    def test_a_classifier_is_reported_as_unused_and_a_pooler_that_is_not_there_is_not(self, tmp_path, caplog):
        save_vit(tmp_path, ViTForImageClassification)
        from_vit(tmp_path)
        assert report(caplog)["in the checkpoint and not used"] == "classifier.bias, classifier.weight"

    def test_features_are_those_of_a_vit_with_a_classifier_too(self, tmp_path):
        classifier = save_vit(tmp_path, ViTForImageClassification)
        assert_features_equal(from_vit(tmp_path), classifier.vit, images())


class TestFromATimeSformer:
    @pytest.mark.parametrize("num_frames", [1, 3, 8, 16])
    def test_logits_are_its_own(self, num_frames, tmp_path):
        timesformer = save_timesformer(tmp_path, num_frames=num_frames, num_labels=5)
        model = CoverForVideoClassification.from_timesformer(tmp_path)
        assert (model.config.num_frames, model.config.default_head) == (num_frames, "k400")
        assert_logits_equal(model, timesformer, torch.randn(2, num_frames, 3, 16, 16))

    @pytest.mark.parametrize(
        "options", [{"hidden_act": "relu"}, {"layer_norm_eps": 0.3}, {"qkv_bias": False}, {"patch_size": 4}], ids=str
    )
    def test_logits_are_its_own_whatever_its_configuration(self, options, tmp_path):
        timesformer = save_timesformer(tmp_path, num_frames=3, num_labels=5, **options)
        model = CoverForVideoClassification.from_timesformer(tmp_path)
        assert_logits_equal(model, timesformer, torch.randn(2, 3, 3, 16, 16))

    def test_the_head_has_its_labels_and_the_name_asked_for(self, tmp_path):
        save_timesformer(tmp_path, id2label={0: "zumba", 1: "abseiling", 2: "knitting"})
        model = CoverForVideoClassification.from_timesformer(tmp_path, head="kinetics")
        assert model.config.head_names == ["kinetics"]
        assert model.config.id2label == {0: "zumba", 1: "abseiling", 2: "knitting"}

    def test_labels_can_be_given(self, tmp_path):
        save_timesformer(tmp_path, num_labels=3)
        model = CoverForVideoClassification.from_timesformer(tmp_path, labels=("push", "pull", "lift"))
        assert model.config.id2label == {0: "push", 1: "pull", 2: "lift"}

    def test_it_may_have_other_heads_beside_its_own_or_in_its_place(self, tmp_path):
        timesformer = save_timesformer(tmp_path, num_frames=2, num_labels=3)
        heads = {"objects": {"labels": ["tench", "goldfish"], "modality": "image"}}
        for head, names in (("actions", ["actions", "objects"]), (None, ["objects"])):
            model = CoverForVideoClassification.from_timesformer(
                tmp_path, head, heads=heads, default_head="objects", num_frames=2
            ).eval()
            assert (model.config.head_names, model.config.default_head) == (names, "objects")
            assert model.config.heads["objects"]["modality"] == "image"
            if head is not None:
                weight = model.classifiers[head].weight
                torch.testing.assert_close(weight, timesformer.classifier.weight, rtol=0, atol=0)

    def test_without_any_head_it_is_refused(self, tmp_path):
        save_timesformer(tmp_path)
        with pytest.raises(ValueError, match="heads: expected at least one head"):
            CoverForVideoClassification.from_timesformer(tmp_path, head=None)

    @pytest.mark.parametrize("labels", [["push", "pull"], ["push", "pull", "lift", "throw"], []])
    def test_another_number_of_labels_is_refused(self, labels, tmp_path):
        save_timesformer(tmp_path, num_labels=3)
        with pytest.raises(ValueError, match=f"head 'k400': expected 3 labels, .*, got {len(labels)}"):
            CoverForVideoClassification.from_timesformer(tmp_path, labels=labels)

    def test_labels_may_be_given_with_the_head(self, tmp_path):
        save_timesformer(tmp_path, num_labels=3)
        heads = {"ssv2": {"labels": ["push", "pull", "lift"]}}
        model = CoverForVideoClassification.from_timesformer(tmp_path, head="ssv2", heads=heads)
        assert model.config.heads["ssv2"]["labels"] == ["push", "pull", "lift"]
        with pytest.raises(ValueError, match=r"labels: .* needs a `head`"):
            CoverForVideoClassification.from_timesformer(tmp_path, head=None, labels=["push"], heads=heads)

    def test_a_classifier_that_is_left_out_is_reported(self, tmp_path, caplog):
        save_timesformer(tmp_path)
        CoverForVideoClassification.from_timesformer(tmp_path, head=None, heads={"ssv2": {"labels": ["push", "pull"]}})
        lines = report(caplog)
        assert sorted(lines["in the checkpoint and not used"].split(", ")) == ["classifier.bias", "classifier.weight"]

    def test_embeddings_are_resized_once_where_another_size_is_asked_for(self, tmp_path):
        timesformer = save_timesformer(tmp_path, num_frames=2).timesformer
        model = CoverForVideoClassification.from_timesformer(tmp_path, num_frames=3, image_size=24, drop_path_rate=0.1)
        assert (model.config.num_frames, model.config.image_size, model.config.drop_path_rate) == (3, 24, 0.1)
        embeddings = model.cover.embeddings
        assert embeddings.position_embeddings.shape == (1, 1 + 9, 32)
        first, last = timesformer.embeddings.time_embeddings[0]
        torch.testing.assert_close(embeddings.time_embeddings[0], torch.stack([first, (first + last) / 2, last]))

    def test_the_report_names_nothing_as_new_or_unused(self, tmp_path, caplog):
        save_timesformer(tmp_path)
        CoverForVideoClassification.from_timesformer(tmp_path)
        lines = report(caplog)
        assert str(tmp_path) in lines.pop("source")
        assert len(lines) == 3
        assert set(lines.values()) == {"nothing"}


class TestFromTheOriginalRelease:
    @pytest.mark.parametrize("suffix", ["pyth", "pth", "pt"])
    def test_logits_are_those_of_the_model_in_it(self, suffix, tmp_path):
        timesformer = make_timesformer(**ORIGINAL_SIZES, num_frames=3, num_labels=5)
        path = save_original(tmp_path / f"TimeSformer.{suffix}", original_state(timesformer))
        model = CoverForVideoClassification.from_timesformer(path)
        assert_logits_equal(model, timesformer, torch.randn(2, 3, 3, 16, 16))

    def test_its_configuration_is_read_from_the_shapes(self, tmp_path):
        timesformer = make_timesformer(**{**ORIGINAL_SIZES, "image_size": 24}, num_frames=3, num_labels=5)
        model = CoverForVideoClassification.from_timesformer(
            save_original(tmp_path / "x.pyth", original_state(timesformer))
        )
        config = model.config
        assert {name: getattr(config, name) for name in ORIGINAL_SIZES} == {
            **ORIGINAL_SIZES,
            "image_size": [24, 24],
            "patch_size": [8, 8],
        }
        assert (config.num_frames, config.num_channels, config.layer_norm_eps, config.qkv_bias) == (3, 3, 1e-6, True)
        assert config.id2label == {index: f"LABEL_{index}" for index in range(5)}

    @pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
    def test_names_may_have_the_prefixes_of_wrappers_and_weights_lie_at_the_top(self, prefix, tmp_path):
        timesformer = make_timesformer(**ORIGINAL_SIZES, num_frames=2)
        state = {prefix + name.removeprefix("model."): tensor for name, tensor in original_state(timesformer).items()}
        torch.save(state, tmp_path / "x.pyth")
        model = CoverForVideoClassification.from_timesformer(tmp_path / "x.pyth")
        assert_logits_equal(model, timesformer, torch.randn(2, 2, 3, 16, 16))

    def test_labels_can_be_given_and_their_number_is_checked(self, tmp_path):
        path = save_original(tmp_path / "x.pyth", original_state(make_timesformer(**ORIGINAL_SIZES, num_labels=3)))
        model = CoverForVideoClassification.from_timesformer(path, head="ssv2", labels=["push", "pull", "lift"])
        assert (model.config.default_head, model.config.label2id) == ("ssv2", {"push": 0, "pull": 1, "lift": 2})
        with pytest.raises(ValueError, match=r"head 'k400': expected 3 labels, .*, got 2"):
            CoverForVideoClassification.from_timesformer(path, labels=["push", "pull"])

    def test_the_report_names_what_else_is_in_the_file(self, tmp_path, caplog):
        path = save_original(tmp_path / "x.pyth", original_state(make_timesformer(**ORIGINAL_SIZES)))
        CoverForVideoClassification.from_timesformer(path)
        lines = report(caplog)
        assert path in lines["source"]
        assert lines["in the checkpoint and not used"] == "cfg, epoch"
        assert lines["newly initialised, to be trained"] == "nothing"

    def test_a_file_that_would_run_code_is_refused_and_runs_none(self, tmp_path):
        class RunsCode:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        torch.save({"model_state": {}, "cfg": RunsCode()}, tmp_path / "x.pyth")
        with pytest.raises(ValueError, match=r"x\.pyth: expected a file of tensors only"):
            CoverForVideoClassification.from_timesformer(tmp_path / "x.pyth")
        assert not (tmp_path / "ran").exists()

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"nowhere\.pyth is not a file"):
            CoverForVideoClassification.from_timesformer(tmp_path / "nowhere.pyth")

    @pytest.mark.parametrize("content", [[1, 2], {"model_state": [1, 2]}, {"epoch": 3}])
    def test_a_file_without_weights_is_named(self, content, tmp_path):
        torch.save(content, tmp_path / "x.pyth")
        with pytest.raises(ValueError, match=r"x\.pyth: "):
            CoverForVideoClassification.from_timesformer(tmp_path / "x.pyth")

    @pytest.mark.parametrize(
        ("name", "named"),
        [
            ("cls_token", "cls_token"),
            ("pos_embed", "pos_embed"),
            ("time_embed", "time_embed"),
            ("blocks.0.mlp.fc1.weight", r"blocks\.0\.mlp\.fc1\.weight"),
            ("blocks.1.norm2.bias", r"1\.(norm2|layernorm_after)\.bias"),
            ("head.bias", r"head\.bias"),
        ],
    )
    def test_a_weight_that_is_missing_is_named(self, name, named, tmp_path):
        state = original_state(make_timesformer(**ORIGINAL_SIZES))
        del state[f"model.{name}"]
        with pytest.raises(ValueError, match=rf"x\.pyth: .*{named}"):
            CoverForVideoClassification.from_timesformer(save_original(tmp_path / "x.pyth", state))

    def test_a_weight_that_is_left_over_is_named(self, tmp_path):
        state = {**original_state(make_timesformer(**ORIGINAL_SIZES)), "model.extra.weight": torch.ones(3)}
        path = save_original(tmp_path / "x.pyth", state)
        with pytest.raises(ValueError, match=r"x\.pyth: .*extra\.weight"):
            CoverForVideoClassification.from_timesformer(path)

    def test_one_with_attention_over_space_only_is_refused(self, tmp_path):
        state = original_state(make_timesformer(**ORIGINAL_SIZES))
        state = {name: tensor for name, tensor in state.items() if "temporal" not in name}
        with pytest.raises(ValueError, match=r"divided space-time attention.*blocks\.0\.temporal_attn\.qkv\.weight"):
            CoverForVideoClassification.from_timesformer(save_original(tmp_path / "x.pyth", state))


class TestOtherCheckpoints:
    def test_a_vit_is_no_timesformer_and_the_other_way_round(self, tmp_path):
        save_vit(tmp_path / "vit")
        save_timesformer(tmp_path / "timesformer")
        with pytest.raises(ValueError, match=r"/vit: expected .* model type 'timesformer', got 'vit'"):
            CoverForVideoClassification.from_timesformer(tmp_path / "vit")
        with pytest.raises(ValueError, match=r"/timesformer: expected .* model type 'vit', got 'timesformer'"):
            from_vit(tmp_path / "timesformer")

    def test_a_cover_checkpoint_is_neither(self, tmp_path):
        CoverForVideoClassification(tiny_config()).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="model type 'vit', got 'cover'"):
            from_vit(tmp_path)
        with pytest.raises(ValueError, match="model type 'timesformer', got 'cover'"):
            CoverForVideoClassification.from_timesformer(tmp_path)

    @pytest.mark.parametrize("attention_type", ["space_only", "joint_space_time"])
    def test_a_timesformer_of_another_kind_of_attention_is_refused(self, attention_type, tmp_path):
        save_timesformer(tmp_path, attention_type=attention_type)
        with pytest.raises(ValueError, match=f"expected .*'divided_space_time', got '{attention_type}'"):
            CoverForVideoClassification.from_timesformer(tmp_path)

    @pytest.mark.parametrize(
        ("stored", "named"),
        [
            ("layer.1.attention.attention.query.weight", r"layers\.1\.attention\.q_proj\.weight"),
            ("embeddings.position_embeddings", r"embeddings\.position_embeddings"),
            ("layernorm.bias", r"layernorm\.bias"),
        ],
    )
    def test_a_vit_that_lacks_a_weight_of_the_encoder_is_refused(self, stored, named, tmp_path):
        save_vit(tmp_path)
        remove_weight(tmp_path, stored)
        with pytest.raises(ValueError, match=f"weights are missing .*{named}"):
            from_vit(tmp_path)

    def test_a_timesformer_that_lacks_a_weight_is_refused(self, tmp_path):
        save_timesformer(tmp_path)
        remove_weight(tmp_path, "layer.1.temporal_dense.weight")
        with pytest.raises(ValueError, match=r"weights are missing .*layer\.1\.temporal_dense\.weight"):
            CoverForVideoClassification.from_timesformer(tmp_path)


def remove_weight(folder, ending: str) -> None:
    """Takes the one weight whose name ends so out of a checkpoint."""
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    (removed,) = [name for name in state if name.endswith(ending)]
    del state[removed]
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
