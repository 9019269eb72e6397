# SPDX-License-Identifier: Apache-2.0
"""Gradient times input, against what it has to be; and which method is the default."""

from dataclasses import replace

import pytest
import torch
from encoders import CONFIGS, HEADS, model_of
from modeling_cover import CoverForVideoClassification
from modeling_cover.commands.explain import explain
from modeling_cover.evaluation import relevance
from modeling_cover.evaluation.relevance import default_method, gradient_times_input, label_relevance
from modeling_cover.evaluation.rollout import attention_rollout
from modeling_cover.model.configuration_cover import as_pair
from modeling_cover.model.encoders_cover import ENCODERS, EncoderAdapter
from tiny import tiny_model
from torch import nn


def model_like(kind: str) -> CoverForVideoClassification:
    return tiny_model(HEADS, image_size=16) if kind == "ours" else model_of(kind)


def clips_of(model: CoverForVideoClassification, num_frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, num_frames, 3, *as_pair(model.config.image_size), generator=generator)


class Linear(nn.Module):
    """In the place of an encoder: features that are linear in the pixels, and that ignore one patch."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        weight = torch.randn(16, *shape, generator=torch.Generator().manual_seed(2))
        weight[:, 1, :, 8:, :8] = 0
        self.weight = nn.Parameter(weight)

    def forward(self, pixel_values: torch.Tensor, **kwargs):
        from modeling_cover.model.outputs_cover import CoverModelOutput

        return CoverModelOutput(pooler_output=torch.einsum("btchw,dtchw->bd", pixel_values, self.weight))


class TestGradientTimesInput:
    @pytest.mark.parametrize("num_frames", [1, 4])
    @pytest.mark.parametrize("kind", ["ours", *CONFIGS])
    def test_it_is_each_pixels_part_of_the_logit_to_first_order_summed_over_patches(self, kind, num_frames):
        model = model_like(kind)
        trained = [parameter.requires_grad for parameter in model.parameters()]
        clips = clips_of(model, num_frames).requires_grad_()
        (gradient,) = torch.autograd.grad(model(clips, head="things").logits[:, 1].sum(), clips)
        products = clips.detach() * gradient
        rows, columns = model.config.tubelet[1:]
        grid = clips.shape[-2] // rows, clips.shape[-1] // columns
        expected = torch.zeros(2, num_frames, *grid)
        for row in range(grid[0]):
            for column in range(grid[1]):
                patch = products[..., row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
                expected[:, :, row, column] = patch.sum(dim=(2, 3, 4))
        found = gradient_times_input(model, clips, "things", "fork", signed=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        positive = gradient_times_input(model, clips, "things", "fork")
        parts = found.clamp(min=0)
        torch.testing.assert_close(positive * parts.sum(dim=(1, 2, 3), keepdim=True), parts)
        assert [parameter.requires_grad for parameter in model.parameters()] == trained
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_of_a_linear_model_it_is_the_logit_without_its_bias_and_0_where_nothing_matters(self):
        model = tiny_model(HEADS, image_size=16)
        clips = clips_of(model)
        model.cover = Linear(clips.shape[1:])
        found = gradient_times_input(model, clips, "actions", "push", signed=True)
        expected = model(clips, head="actions").logits[:, 2] - model.classifiers["actions"].bias[2]
        torch.testing.assert_close(found.sum(dim=(1, 2, 3)), expected, rtol=1e-4, atol=1e-4)
        assert (found[:, 1, 1, 0] == 0).all()
        assert (found != 0).sum() == found.numel() - 2

    def test_it_is_the_largest_logits_without_a_label_and_the_model_may_be_in_use(self):
        model = model_of("videomae")
        clips = clips_of(model)
        with torch.no_grad():
            best = model(clips).logits.argmax(dim=-1)
            found = gradient_times_input(model, clips, "actions")
        for index in range(2):
            alone = gradient_times_input(model, clips, "actions", best[index].item())[index]
            torch.testing.assert_close(found[index], alone)


class TestMethod:
    def test_the_default_is_rollout_where_the_maps_are_known_and_fit(self, monkeypatch):
        model = model_of("vit")
        clips = clips_of(model)
        assert default_method(model, clips) == "rollout"
        assert torch.equal(label_relevance(model, clips, "actions"), attention_rollout(model, clips, "actions"))
        # Two clips of four frames, two layers, four heads, five tokens, four bytes.
        monkeypatch.setattr(relevance, "MOST_BYTES_OF_MAPS", 2 * 4 * 2 * 4 * 5**2 * 4 - 1)
        assert default_method(model, clips) == "gradient"
        monkeypatch.setattr(relevance, "MOST_BYTES_OF_MAPS", 2 * 4 * 2 * 4 * 5**2 * 4)
        assert default_method(model, clips) == "rollout"

    def test_an_encoder_whose_attention_is_not_known_has_gradient_times_input_alone(self, monkeypatch):
        unknown = EncoderAdapter(poolers=ENCODERS["videomae"].poolers, layers=("encoder.layer",))
        monkeypatch.setitem(ENCODERS, "videomae", unknown)
        model = model_of("videomae")
        clips = clips_of(model)
        assert default_method(model, clips) == "gradient"
        found = label_relevance(model, clips, "actions", "pull")
        assert torch.equal(found, gradient_times_input(model, clips, "actions", "pull"))
        with pytest.raises(ValueError, match=r"adapter of 'videomae' does not say .*`attends`.*gradient times input"):
            attention_rollout(model, clips)

    def test_an_adapter_that_is_wrong_about_tokens_is_named(self, monkeypatch):
        poolers = ENCODERS["vivit"].poolers
        with pytest.raises(ValueError, match=r"attends: expected 'clip', .* layers \['layers'\], got \['video'\]"):
            EncoderAdapter(poolers=poolers, layers=("layers",), attends=("video",))
        model = model_of("vivit")
        monkeypatch.setitem(ENCODERS, "vivit", replace(ENCODERS["vivit"], tokens_before=lambda config: 0))
        with pytest.raises(ValueError, match="a vivit gives 9 tokens of patches, expected 8: see `tokens_before`"):
            attention_rollout(model, clips_of(model))

    def test_a_pooling_whose_tokens_are_not_known_has_no_rollout(self):
        model = model_of("vit")
        model.cover.pooler.of_frame = nn.Identity()
        with pytest.raises(ValueError, match="how much of each token a Identity takes"):
            attention_rollout(model, clips_of(model))

    def test_windows_and_attention_among_features_of_frames_have_none(self):
        model = model_of("vit", encoder_temporal_layers=1)
        with pytest.raises(ValueError, match="attention among the features of frames is not followed"):
            attention_rollout(model, clips_of(model))
        model = model_of("video_swin")
        with pytest.raises(ValueError, match="adapter of 'video_swin' does not say what its layers attend to"):
            attention_rollout(model, clips_of(model))
        assert default_method(model, clips_of(model)) == "gradient"

    def test_a_head_that_attends_to_all_tokens_has_no_rollout(self):
        model = model_of("vit")
        model.add_head("places", ["in", "out"], head={"type": "attentive", "num_heads": 2})
        clips = clips_of(model)
        assert (default_method(model, clips), default_method(model, clips, "places")) == ("rollout", "gradient")
        found = label_relevance(model, clips, "places", "out")
        assert torch.equal(found, gradient_times_input(model, clips, "places", "out"))
        with pytest.raises(
            ValueError, match="head 'places' attends to all tokens, and not to the clip's feature alon"
        ):
            attention_rollout(model, clips, "places", "out")
        with pytest.raises(
            ValueError, match="--plain follows the clip's feature, and head 'places' attends to all tok"
        ):
            explain(model, None, "clip.mp4", None, head="places", plain=True)

    def test_what_there_is_not_is_named(self):
        model = model_of("vit")
        with pytest.raises(ValueError, match=r"method: expected one of \['rollout', 'gradient'\], got 'lime'"):
            label_relevance(model, clips_of(model), "actions", method="lime")
        with pytest.raises(ValueError, match="'ssv2'"):
            gradient_times_input(model, clips_of(model), "ssv2")
        with pytest.raises(ValueError, match="'jump'"):
            gradient_times_input(model, clips_of(model), "actions", "jump")
        with pytest.raises(ValueError, match=r"expected shape \(B, T, C, H, W\)"):
            gradient_times_input(model, clips_of(model)[0], "actions")
