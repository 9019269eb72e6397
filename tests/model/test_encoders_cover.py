# SPDX-License-Identifier: Apache-2.0
"""Encoders of transformers in place of ours: each gives what it gives by itself, and takes images as well."""

import json
from collections.abc import Callable

import pytest
import torch
from encoders import CLASSIFIERS, CONFIGS, HEADS, IMAGE_ENCODERS, LABELS, VIDEO_ENCODERS, model_of, save_encoder
from huggingface_hub.errors import StrictDataclassClassValidationError
from modeling_cover import CoverConfig, CoverForVideoClassification
from modeling_cover.model.configuration_cover import as_pair
from modeling_cover.model.encoders_cover import (
    ENCODERS,
    ClassTokenPooler,
    EncoderAdapter,
    MeanPooler,
    register_encoder,
)
from safetensors.torch import load_file, save_file
from tiny import perturb
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, ViTMSNConfig, ViTMSNModel, WhisperConfig


def clips_of(model: CoverForVideoClassification, batch_size: int = 2, num_frames: int = 4) -> torch.Tensor:
    return torch.randn(
        batch_size, num_frames, 3, *as_pair(model.config.image_size), generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture
def build() -> Callable[..., CoverForVideoClassification]:
    return model_of


class TestFeatures:
    @pytest.fixture(autouse=True)
    def without_gradients(self):
        with torch.no_grad():
            yield

    @pytest.mark.parametrize("kind", CLASSIFIERS)
    def test_a_classifier_of_transformers_becomes_a_head_and_gives_the_same(self, tmp_path, kind):
        native = save_encoder(tmp_path, kind, classifies=True)
        model = CoverForVideoClassification.from_encoder(tmp_path, heads={"things": HEADS["things"]}, head="actions")
        assert model.config.heads["actions"]["labels"] == LABELS
        assert model.config.default_head == "actions"
        clips = clips_of(model)
        seen = []
        native.classifier.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
        expected, outputs = native(clips).logits, model(clips)
        # VideoPrism's have an axis for the one query of its pooling.
        torch.testing.assert_close(outputs.logits, expected.view_as(outputs.logits), rtol=0, atol=1e-5)
        torch.testing.assert_close(outputs.pooler_output, seen[0].view_as(outputs.pooler_output), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("kind", VIDEO_ENCODERS)
    def test_so_do_the_features_of_one_without_a_classifier(self, tmp_path, kind):
        native = save_encoder(tmp_path, kind)
        model = CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions")
        tokens, outputs = native(clips_of(model)).last_hidden_state, model.cover(clips_of(model))
        torch.testing.assert_close(outputs.last_hidden_state, tokens, rtol=0, atol=1e-6)
        # A LayerNorm that VideoMAE's classifier has and that is new here.
        mean = (
            torch.nn.functional.layer_norm(tokens.mean(1), tokens.shape[-1:]) if kind == "videomae" else tokens.mean(1)
        )
        expected = tokens[:, 0] if kind == "vivit" else mean
        torch.testing.assert_close(outputs.pooler_output, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("kind", IMAGE_ENCODERS)
    def test_an_encoder_of_images_sees_each_frame_by_itself(self, tmp_path, kind):
        native = save_encoder(tmp_path, kind)
        model = CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions")
        clips = clips_of(model, num_frames=3)
        feature = IMAGE_ENCODERS[kind].feature
        expected = torch.stack([feature(native, clips[:, index]) for index in range(3)]).mean(dim=0)
        torch.testing.assert_close(model(clips).pooler_output, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(model(clips[:, :1]).pooler_output, feature(native, clips[:, 0]), rtol=0, atol=1e-6)

    def test_the_vision_part_is_taken_of_a_model_of_images_and_text(self, tmp_path):
        from transformers import SiglipConfig, SiglipModel

        vision = IMAGE_ENCODERS["siglip_vision_model"].config.to_dict()
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
        native = perturb(SiglipModel(SiglipConfig(vision_config=vision, text_config={**text, "vocab_size": 99})))
        native.save_pretrained(tmp_path)
        model = CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions")
        images = clips_of(model, num_frames=1)
        expected = native.vision_model(images[:, 0]).pooler_output
        torch.testing.assert_close(model(images).pooler_output, expected, rtol=0, atol=1e-6)

    def test_a_timesformer_becomes_one_of_ours(self, tmp_path):
        from checkpoints import save_timesformer

        native = save_timesformer(tmp_path, num_frames=4)
        model = CoverForVideoClassification.from_encoder(tmp_path, head="actions")
        assert model.config.encoder is None
        clips = torch.randn(2, 4, 3, 16, 16)
        torch.testing.assert_close(model(clips).logits, native(clips).logits, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="pooling: a TimeSformer's feature is its class token, got 'mean'"):
            CoverForVideoClassification.from_encoder(tmp_path, head="actions", pooling="mean")


@pytest.mark.parametrize("kind", CONFIGS)
class TestEveryKind:
    def test_what_is_saved_is_loaded_and_gives_the_same(self, build, tmp_path, kind):
        model = build(kind)
        model.save_pretrained(tmp_path)
        loaded = CoverForVideoClassification.from_pretrained(tmp_path).eval()
        assert loaded.config.encoder.to_diff_dict() | {"dtype": None} == model.config.encoder.to_diff_dict() | {
            "dtype": None
        }
        with torch.no_grad():
            assert torch.equal(loaded(clips_of(model)).logits, model(clips_of(model)).logits)
        code = {file.name for file in tmp_path.glob("*.py")}
        assert code >= {"modeling_cover.py", "encoders_cover.py", "resized_embeddings_cover.py"}
        stored = json.loads((tmp_path / "config.json").read_text())
        assert stored["auto_map"]["AutoModel"] == "modeling_cover.CoverEncoderModel"

    def test_an_image_is_the_shortest_clip_and_costs_no_more(self, build, kind):
        model = build(kind)
        clips = clips_of(model, num_frames=8)
        frames = model.config.tubelet[0]
        costs = []
        with torch.no_grad():
            for group in (clips, clips[:, :1]):
                with FlopCounterMode(display=False) as counter:
                    features = model(group).pooler_output
                costs.append(counter.get_total_flops())
            still = model(clips[:, :1].expand(-1, frames, -1, -1, -1)).pooler_output
        torch.testing.assert_close(features, still, rtol=0, atol=1e-6)
        assert costs[1] <= costs[0] * (frames / 8 + 0.05)

    def test_clips_and_images_together_train_every_parameter(self, build, kind):
        model = build(kind)
        groups = [clips_of(model), clips_of(model, num_frames=8), clips_of(model, num_frames=1)]
        head_ids = torch.tensor([0, 0, 0, 0, 1, 1])
        outputs = model(groups, labels=torch.tensor([0, 1, 2, 0, 1, 0]), head_ids=head_ids)
        outputs.loss.backward()
        without = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
        assert without == []
        apart = torch.cat([model(group).pooler_output for group in groups])
        torch.testing.assert_close(outputs.pooler_output, apart, rtol=0, atol=1e-6)

    def test_layers_are_recomputed_to_the_same_gradient(self, build, kind):
        model, labels = build(kind), torch.tensor([0, 1])
        gradients = []
        for recompute in (False, True):
            if recompute:
                model.gradient_checkpointing_enable()
            model.train().zero_grad()
            torch.manual_seed(0)  # DINOv3 draws a scale of its positions
            model(clips_of(model), labels=labels).loss.backward()
            gradients.append(
                {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
            )
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, msg=name)

    def test_states_and_maps_are_the_encoders_own(self, build, kind):
        model = build(kind)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            outputs = model(clips_of(model), output_hidden_states=True, output_attentions=True)
        layers = model.config.num_hidden_layers
        assert isinstance(model.get_input_embeddings(), torch.nn.Module)
        assert len(outputs.attentions) == layers
        assert len(outputs.hidden_states) >= layers
        assert all(map.shape[1] == model.config.num_attention_heads for map in outputs.attentions)


class TestSizes:
    @pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "vjepa2"])
    def test_positions_are_resized_for_other_frames_and_sizes(self, build, kind):
        model = build(kind)
        height, width = model.config.image_size
        with torch.no_grad():
            features = [
                model(torch.zeros(1, num_frames, 3, *size)).pooler_output
                for num_frames, size in ((4, (height, width)), (8, (height, 2 * width)), (2, (2 * height, height)))
            ]
        assert all(torch.isfinite(feature).all() for feature in features)

    @pytest.mark.parametrize("kind", ["videomae", "vivit"])
    def test_of_a_still_clip_the_place_in_time_is_between_its_neighbours(self, build, kind):
        """Twice as many frames stand at points between those of the table."""
        model = build(kind)
        embeddings = model.cover.encoder.embeddings
        clip = torch.zeros(1, 4, 3, *model.config.image_size)
        with torch.no_grad():
            few, many = embeddings(clip), embeddings(clip.repeat(1, 2, 1, 1, 1))
        few, many = (tokens[:, kind == "vivit" :].unflatten(1, (-1, 4)) for tokens in (few, many))
        torch.testing.assert_close(many[:, 1], 0.75 * few[:, 0] + 0.25 * few[:, 1])
        torch.testing.assert_close(many[:, 0], few[:, 0])

    def test_a_checkpoint_is_made_for_another_size_where_it_must_be(self, tmp_path):
        save_encoder(tmp_path, "vjepa2")
        model = CoverForVideoClassification.from_encoder(
            tmp_path, heads=HEADS, default_head="actions", image_size=64, num_frames=8
        )
        assert model.config.encoder.crop_size == 64
        assert model(clips_of(model, num_frames=8)).logits.shape == (2, 3)

    @pytest.mark.parametrize(
        ("kind", "shape", "message"),
        [
            ("videomae", (3, 32, 32), "a videomae takes images, or clips of a multiple of 2 frames, got 3 frames"),
            ("videomae", (0, 32, 32), "got 0 frames"),
            ("vivit", (4, 30, 32), "a vivit takes frames in whole patches of 16x16 pixels, got 30x32"),
            ("vjepa2", (4, 64, 64), r"positions for frames of 32x32 alone, got 64x64: from_encoder\(..., image_size"),
            ("dinov2", (1, 28, 0), "whole patches of 14x14 pixels, got 28x0"),
        ],
    )
    def test_clips_that_it_cannot_take_are_refused(self, build, kind, shape, message):
        model = build(kind)
        num_frames, height, width = shape
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(1, num_frames, 3, height, width))
        if 0 not in shape and kind != "vivit":  # whose whole patches the configuration has always asked for
            with pytest.raises(StrictDataclassClassValidationError, match=message):
                CoverConfig(encoder=CONFIGS[kind], num_frames=num_frames, image_size=(height, width))


class TestTemporalLayers:
    """Of encoders of images: attention among the features of frames."""

    def test_a_new_layer_leaves_the_mean_as_it_is(self):
        torch.manual_seed(0)
        heads = {"heads": HEADS, "default_head": "actions"}
        config = CoverConfig(encoder=CONFIGS["vit"].to_dict(), encoder_temporal_layers=2, **heads)
        model = CoverForVideoClassification(config).eval()
        clips = clips_of(model)
        with torch.no_grad():
            frames = [model(clips[:, index : index + 1]).pooler_output for index in range(4)]
            expected = torch.stack(frames, dim=1).mean(dim=1)
            torch.testing.assert_close(model(clips).pooler_output, expected, rtol=0, atol=1e-4)

    def test_it_is_torchs_layer(self, build):
        model = build("vit", encoder_temporal_layers=1)
        (layer,), width = model.cover.pooler.layers, model.config.hidden_size
        expected = torch.nn.TransformerEncoderLayer(
            width, 4, 48, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6
        ).eval()
        attention = layer.attention
        state = {
            "self_attn.out_proj": attention.o_proj,
            "linear1": layer.fc1,
            "linear2": layer.fc2,
            "norm1": layer.layernorm_before,
            "norm2": layer.layernorm_after,
        }
        weights = {
            f"{name}.{part}": getattr(module, part) for name, module in state.items() for part in ("weight", "bias")
        }
        for part in ("weight", "bias"):
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            weights[f"self_attn.in_proj_{part}"] = torch.cat([getattr(module, part) for module in projections])
        expected.load_state_dict(weights)
        features = torch.randn(2, 4, width)
        with torch.no_grad():
            torch.testing.assert_close(layer(features), expected(features), rtol=0, atol=1e-5)

    def test_it_sees_the_order_of_frames_and_trains_wholly(self, build, tmp_path):
        model = build("dinov2", encoder_temporal_layers=1)
        clips = clips_of(model)
        features = [model(group).pooler_output for group in (clips, clips.flip(1))]
        assert not torch.allclose(features[0], features[1], atol=1e-3)
        model.save_pretrained(tmp_path)
        loaded = CoverForVideoClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(clips).pooler_output, features[0])
        groups, head_ids = [clips, clips[:, :1]], torch.tensor([0, 0, 1, 1])
        model(groups, labels=torch.tensor([0, 1, 1, 0]), head_ids=head_ids).loss.backward()
        new = dict(model.cover.pooler.named_parameters())
        assert "time_embeddings" in new
        assert all(
            weight.grad is not None and weight.grad.any() for name, weight in new.items() if "k_proj.bias" not in name
        )

    @pytest.mark.parametrize(("kind", "whose"), [("videomae", "a videomae"), (None, "ours")])
    def test_an_encoder_of_clips_has_none(self, kind, whose):
        with pytest.raises(
            StrictDataclassClassValidationError, match=f"for encoders of images, and {whose} sees whole clips"
        ):
            CoverConfig(encoder=kind and CONFIGS[kind], encoder_temporal_layers=1, num_frames=4)


class TestOnesOwn:
    @pytest.fixture
    def registered(self, monkeypatch):
        monkeypatch.setattr("modeling_cover.model.encoders_cover.ENCODERS", dict(ENCODERS))
        register_encoder(
            "vit_msn",
            EncoderAdapter(
                poolers={"class_token": lambda config: ClassTokenPooler(), "mean": lambda config: MeanPooler()},
                layers=("encoder.layer",),
                takes_frames=True,
                num_frames=None,
                options={"interpolate_pos_encoding": True},
            ),
        )

    def test_a_kind_is_added(self, registered, tmp_path):
        torch.manual_seed(0)
        options = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32}
        native = perturb(ViTMSNModel(ViTMSNConfig(**options, intermediate_size=48)))
        native.save_pretrained(tmp_path)
        model = CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions", pooling="mean")
        images = clips_of(model, num_frames=1)
        with torch.no_grad():
            expected = native(images[:, 0]).last_hidden_state.mean(dim=1)
            torch.testing.assert_close(model(images).pooler_output, expected, rtol=0, atol=1e-6)

    def test_one_that_is_there_is_not_replaced(self, registered):
        with pytest.raises(ValueError, match="there is an adapter of 'vit_msn' already"):
            register_encoder("vit_msn", ENCODERS["vit"])


class TestBadInput:
    @pytest.mark.parametrize("config", [BertConfig(), WhisperConfig()], ids=["language", "audio"])
    def test_a_checkpoint_of_something_else_is_named_with_how_an_adapter_is_added(self, tmp_path, config):
        config.save_pretrained(tmp_path)
        message = (
            rf"{tmp_path}: .*no adapter of model type '{config.model_type}'.*register_encoder\(\"{config.model_type}\""
        )
        with pytest.raises(ValueError, match=message):
            CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions")

    def test_a_folder_without_a_checkpoint_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=f"{tmp_path}: expected a checkpoint of transformers"):
            CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions")

    def test_weights_that_are_missing_or_not_finite_are_named(self, tmp_path):
        save_encoder(tmp_path, "videomae")
        weights = load_file(tmp_path / "model.safetensors")
        name = "encoder.layer.1.output.dense.weight"
        save_file(
            {**weights, name: torch.full_like(weights[name], float("nan"))},
            tmp_path / "model.safetensors",
            {"format": "pt"},
        )
        with pytest.raises(ValueError, match=f"weights are not finite.*{name}"):
            CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions")
        del weights[name]
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=f"weights are missing or of another shape: .*{name}"):
            CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions")

    def test_a_head_of_a_checkpoint_that_classifies_nothing(self, tmp_path):
        save_encoder(tmp_path, "videomae")
        with pytest.raises(ValueError, match=r"head 'actions': .* has no classifier of videos"):
            CoverForVideoClassification.from_encoder(tmp_path, head="actions")

    def test_a_head_with_another_number_of_labels(self, tmp_path):
        save_encoder(tmp_path, "vivit", classifies=True)
        with pytest.raises(
            ValueError, match="head 'actions': expected 3 labels, as the checkpoint's classifier, got 2"
        ):
            CoverForVideoClassification.from_encoder(
                tmp_path, heads={"actions": {"labels": ["a", "b"]}}, head="actions"
            )

    def test_a_pooling_that_its_kind_does_not_have(self, tmp_path):
        save_encoder(tmp_path, "vivit")
        with pytest.raises(
            ValueError, match=r"encoder_pooling: expected one of \['class_token'\] of a vivit, got 'mean'"
        ):
            CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions", pooling="mean")

    def test_another_pooling_than_that_of_the_classifier_which_becomes_a_head(self, tmp_path):
        save_encoder(tmp_path, "vjepa2", classifies=True)
        with pytest.raises(ValueError, match="head 'actions' sees features by 'attentive', got 'mean'"):
            CoverForVideoClassification.from_encoder(tmp_path, head="actions", pooling="mean")
        model = CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS, default_head="actions", pooling="mean")
        assert model.config.encoder_pooling == "mean"

    def test_a_model_type_that_transformers_does_not_know(self):
        with pytest.raises(ValueError, match="encoder: expected a model_type of transformers, got 'vjepa9'"):
            CoverConfig(encoder={"model_type": "vjepa9"})
