# SPDX-License-Identifier: Apache-2.0
"""The encoder's parts: attention and its implementations, embeddings, and what changes while it trains."""

import pytest
import torch
from modeling_cover import CoverConfig, CoverForVideoClassification, CoverModel
from modeling_cover.model.divided_attention_cover import CoverDropPath
from modeling_cover.model.embeddings_cover import resize_position_embeddings, resize_time_embeddings
from torch.nn import functional as F
from two_layers import SIZES, clips, randomise


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class TestAttention:
    def test_eager_and_sdpa_agree(self, model):
        pixel_values = clips()
        model.set_attn_implementation("sdpa")
        sdpa = model(pixel_values).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(pixel_values).logits, sdpa, atol=1e-5, rtol=0)

    def test_flex_attention_agrees(self, model):
        pixel_values = clips(1, 4)
        expected = model(pixel_values).logits
        model.set_attn_implementation("flex_attention")
        # Not compiled: that takes a minute, and is torch's business.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(model(pixel_values).logits, expected, atol=1e-5, rtol=0)

    def test_maps_of_space_and_time_sum_to_one_and_have_their_shapes(self, model):
        model.set_attn_implementation("eager")
        output = model(clips(), output_attentions=True)
        assert [tuple(attention.shape) for attention in output.attentions] == [(2 * 4, 4, 17, 17)] * 2
        assert [tuple(attention.shape) for attention in output.temporal_attentions] == [(2 * 16, 4, 4, 4)] * 2
        for attention in (*output.attentions, *output.temporal_attentions):
            torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))

    def test_the_map_of_one_frame_over_time_is_one(self, model):
        model.set_attn_implementation("eager")
        output = model.cover(clips(2, 1), output_attentions=True)
        assert torch.equal(output.temporal_attentions[0], torch.ones(2 * 16, 4, 1, 1))

    def test_hidden_states_run_from_the_embeddings_to_the_last_layer(self, model):
        output = model(clips(), output_hidden_states=True)
        assert [tuple(states.shape) for states in output.hidden_states] == [(2, 1 + 4 * 16, 32)] * 3
        last = model.cover.layernorm(output.hidden_states[-1])
        assert torch.equal(last[:, 0], output.pooler_output)


class TestEmbeddings:
    def test_position_embeddings_keep_the_class_token_apart(self):
        embeddings = torch.randn(1, 1 + 16, 8)
        resized = resize_position_embeddings(embeddings, (4, 4), (2, 6))
        assert resized.shape == (1, 1 + 12, 8)
        assert torch.equal(resized[:, 0], embeddings[:, 0])
        grid = embeddings[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
        expected = F.interpolate(grid, size=(2, 6), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 12, 8)
        torch.testing.assert_close(resized[:, 1:], expected)

    def test_time_embeddings_are_resized_linearly(self):
        embeddings = torch.arange(4.0).reshape(1, 4, 1)
        assert resize_time_embeddings(embeddings, 2).flatten().tolist() == [0.5, 2.5]
        assert torch.equal(resize_time_embeddings(embeddings, 4), embeddings)


class TestTraining:
    def test_gradient_checkpointing_changes_no_gradient(self, model):
        batch = {"head_ids": torch.tensor([1, 2, 0]), "labels": torch.tensor([1, 2, 3])}
        groups = [clips(2), clips(1, 1)]
        model.train()
        model([*groups], **batch).loss.backward()
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        model.activation_checkpointing_enable()
        model([*groups], **batch).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5, msg=name)

    def test_one_step_moves_every_parameter(self, model):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(
            [clips(2), clips(1, 1)], head_ids=torch.tensor([1, 2, 0]), labels=torch.tensor([1, 2, 3])
        ).loss.backward()
        optimizer.step()
        still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
        # A key's bias moves all scores of a query alike, which softmax does not see.
        assert [name for name in still if not name.endswith("k_proj.bias")] == []

    def test_stochastic_depth_drops_whole_clips_and_keeps_the_mean(self):
        drop_path = CoverDropPath(0.25).train()
        residual = torch.ones(4000, 2, 3)
        dropped = drop_path(residual)
        kept = dropped[:, 0, 0] != 0
        assert torch.equal(dropped, torch.where(kept[:, None, None], 1 / 0.75, 0.0).expand_as(residual))
        assert abs(kept.float().mean() - 0.75) < 0.05
        assert torch.equal(drop_path.eval()(residual), residual)

    def test_stochastic_depth_grows_linearly_with_depth(self):
        model = CoverModel(CoverConfig(**{**SIZES, "num_hidden_layers": 3}, drop_path_rate=0.2))
        assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0, 0.1, 0.2])

    @pytest.mark.parametrize(
        "option", [{"hidden_dropout_prob": 0.5}, {"attention_probs_dropout_prob": 0.5}, {"drop_path_rate": 0.5}]
    )
    def test_dropout_acts_in_training_only(self, option):
        model = randomise(CoverForVideoClassification(CoverConfig(**SIZES, **option)))
        pixel_values = clips(8)
        assert torch.equal(model.eval()(pixel_values).logits, model(pixel_values).logits)
        model.train()
        assert not torch.equal(model(pixel_values).logits, model(pixel_values).logits)

    def test_freezing_the_backbone_trains_the_heads_only(self, model):
        model.freeze_backbone()
        model.resize_clips(num_frames=2, image_size=16)
        trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {"classifiers"}

    @pytest.mark.parametrize("with_labels", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_it_compiles_into_one_graph(self, model, with_labels):
        groups, batch = [clips(2), clips(1, 1)], {}
        if with_labels:
            batch = {"head_ids": torch.tensor([1, 2, 0]), "labels": torch.tensor([1, 2, 3])}
        compiled = torch.compile(model, fullgraph=True, backend="eager")(groups, **batch)
        expected = model(groups, **batch)
        torch.testing.assert_close(compiled.logits, expected.logits)
        if with_labels:
            torch.testing.assert_close(compiled.loss, expected.loss)
