# SPDX-License-Identifier: Apache-2.0
"""What a head may be made of: a linear classifier, an MLP, or attention to all tokens."""

import json

import pytest
import torch
from encoders import model_of
from modeling_cover import CoverConfig, CoverForVideoClassification
from tiny import tiny_config, tiny_model
from torch import nn
from torch.nn import functional as F


MLP = {"type": "mlp", "hidden_size": 24}
HEADS = {"plain": {"labels": ["a", "b", "c"]}, "deep": {"labels": ["x", "y"], "head": MLP}}


@pytest.fixture
def model() -> CoverForVideoClassification:
    return tiny_model(HEADS)


def clips(rows: int = 2, frames: int = 4) -> torch.Tensor:
    return torch.randn(rows, frames, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class TestAnMlp:
    def test_its_logits_and_gradients_are_those_of_torchs_layers_in_a_row(self, model):
        state = {name: weight.clone() for name, weight in model.classifiers["deep"].state_dict().items()}
        torchs = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 2))
        names = {"0.weight": "fc1.weight", "0.bias": "fc1.bias", "2.weight": "fc2.weight", "2.bias": "fc2.bias"}
        torchs.load_state_dict({name: state[own] for name, own in names.items()})
        output = model(clips())
        expected = torchs(output.pooler_output.detach())
        torch.testing.assert_close(output.head_logits["deep"], expected, rtol=0, atol=1e-6)
        output.head_logits["deep"].square().sum().backward()
        expected.square().sum().backward()
        for name, own in names.items():
            gradient = model.classifiers["deep"].get_parameter(own).grad
            torch.testing.assert_close(gradient, torchs.get_parameter(name).grad, rtol=0, atol=1e-5)

    def test_in_a_mixed_batch_each_heads_loss_is_of_its_rows(self, model):
        groups, head_ids = [clips(3), clips(2, 1)], torch.tensor([0, 1, 0, 1, 0])  # deep, plain
        labels = torch.tensor([1, 2, 0, 0, 1])
        output = model(groups, head_ids=head_ids, labels=labels)
        for index, name in enumerate(("deep", "plain")):
            rows = head_ids == index
            expected = F.cross_entropy(output.head_logits[name][rows], labels[rows])
            torch.testing.assert_close(output.head_losses[name], expected, atol=1e-6, rtol=0)

    def test_it_is_saved_in_the_configuration_and_loads(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        heads = json.loads((tmp_path / "config.json").read_text())["heads"]
        assert heads["deep"]["head"] == MLP
        loaded = CoverForVideoClassification.from_pretrained(tmp_path)
        for name, logits in model(clips()).head_logits.items():
            assert torch.equal(loaded(clips()).head_logits[name], logits)

    def test_it_can_be_added_and_its_new_weights_are_those_of_any_layer(self):
        torch.manual_seed(0)
        model = CoverForVideoClassification(tiny_config({"plain": HEADS["plain"]}, initializer_range=0.5))
        model.add_head("deep", ["x", "y"], head={"type": "mlp", "hidden_size": 4096})
        added = model.classifiers["deep"]
        assert added(torch.zeros(1, 16)).tolist() == [[0, 0]]  # no bias
        for layer in (added.fc1, added.fc2):
            assert layer.weight.std().item() == pytest.approx(0.5, rel=0.05)
        assert model.config.heads["deep"]["head"]["hidden_size"] == 4096
        model.remove_head("deep")
        assert not any("deep" in name for name in model.state_dict())

    def test_it_is_trained_where_the_backbone_is_frozen(self, model):
        model.freeze_backbone()
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert [name for name in trained if "deep" in name] == [
            f"classifiers.deep.{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")
        ]
        assert all(name.startswith("classifiers.") for name in trained)

    def test_other_labels_of_the_default_head_leave_it_an_mlp(self):
        config = CoverConfig(heads={"deep": HEADS["deep"]})
        config.id2label = {0: "u", 1: "v", 2: "w"}
        assert config.heads["deep"]["head"] == MLP
        assert config.heads["deep"]["labels"] == ["u", "v", "w"]


ATTENTIVE = {"type": "attentive", "num_heads": 4}


class TestAnAttentiveHead:
    @pytest.fixture
    def model(self) -> CoverForVideoClassification:
        return tiny_model({"plain": HEADS["plain"], "seeing": {"labels": ["x", "y"], "head": ATTENTIVE}})

    def test_its_logits_are_those_of_softmax_attention_written_out(self, model):
        head, tokens = model.classifiers["seeing"], model.cover(clips()).last_hidden_state
        assert head.query.abs().min() > 0  # the fixture's weights are none of a new head
        query, key, value = (
            (part @ weight.T + bias).unflatten(-1, (4, 4))
            for part, weight, bias in zip(
                (head.query.expand(2, -1, -1), tokens, tokens),
                head.attention.in_proj_weight.split(16),
                head.attention.in_proj_bias.split(16),
                strict=True,
            )
        )
        weights = (torch.einsum("rqhd,rshd->rhqs", query, key) / 4**0.5).softmax(dim=-1)
        found = head.attention.out_proj(torch.einsum("rhqs,rshd->rqhd", weights, value).flatten(1))
        expected = head.classifier(F.layer_norm(found, (16,), head.layernorm.weight, head.layernorm.bias))
        torch.testing.assert_close(model(clips()).head_logits["seeing"], expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("packing", [False, True])
    def test_in_a_mixed_batch_it_sees_each_groups_own_tokens(self, model, packing, monkeypatch):
        if packing:  # as a GPU has it, which cannot give the tokens
            monkeypatch.setattr(type(model.cover), "packing_devices", ("cpu",))
        groups, head_ids = [clips(3), clips(2, 1)], torch.tensor([0, 1, 0, 1, 1])
        output = model(groups, head_ids=head_ids, labels=torch.tensor([1, 1, 0, 0, 1]))
        alone = torch.cat([model(group).head_logits["seeing"] for group in groups])
        torch.testing.assert_close(output.head_logits["seeing"], alone, rtol=0, atol=1e-6)
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.classifiers["seeing"].parameters())

    def test_a_new_one_attends_to_all_tokens_alike(self):
        torch.manual_seed(0)
        model = CoverForVideoClassification(tiny_config({"plain": HEADS["plain"]})).eval()
        model.add_head("seeing", ["x", "y"], head=ATTENTIVE)
        head, tokens = model.classifiers["seeing"], model.cover(clips()).last_hidden_state
        torch.testing.assert_close(head(tokens), head(tokens.flip(1)))
        torch.testing.assert_close(head(tokens), head(tokens.mean(dim=1, keepdim=True)), rtol=0, atol=1e-5)

    def test_it_is_saved_and_loads_and_as_a_new_head_of_a_checkpoint_it_is_new(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded, heads = CoverForVideoClassification.from_pretrained(tmp_path), dict(model.config.heads)
        assert loaded.config.heads["seeing"]["head"] == ATTENTIVE
        assert torch.equal(loaded(clips()).head_logits["seeing"], model(clips()).head_logits["seeing"])
        heads["other"] = {"labels": ["u", "v"], "head": ATTENTIVE}
        other = CoverForVideoClassification.from_pretrained(tmp_path, heads=heads).classifiers["other"]
        assert not other.query.any() and other.attention.in_proj_weight.std() > 0.01
        assert torch.equal(other.layernorm.weight, torch.ones(16))

    def test_it_is_there_for_another_encoder(self):
        model = model_of("vit")
        model.add_head("seeing", ["x", "y"], head=ATTENTIVE)
        images = torch.randn(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        tokens = model.cover(images).last_hidden_state
        expected = model.classifiers["seeing"](tokens)
        torch.testing.assert_close(model(images, head="seeing").logits, expected)

    def test_a_pooler_that_no_head_sees_has_a_gradient_of_zeros_as_ddp_needs(self):
        model = model_of(
            "videomae", heads={"seeing": {"labels": ["x", "y"], "head": ATTENTIVE}}, default_head="seeing"
        )
        video = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        model(video, labels=torch.tensor([0, 1])).loss.backward()
        gradients = [parameter.grad for parameter in model.cover.pooler.parameters()]
        assert gradients and not any(gradient.any() for gradient in gradients)

    def test_layers_that_it_would_not_see_are_refused(self):
        model = model_of("vit", encoder_temporal_layers=1)
        with pytest.raises(
            ValueError, match="head 'new': an attentive head sees the tokens of frames, which encoder_te"
        ):
            model.add_head("new", ["x", "y"], head=ATTENTIVE)

    def test_heads_that_do_not_divide_the_feature_are_named(self, model):
        with pytest.raises(ValueError, match=r"head 'new': num_heads \(3\) does not divide .* hidden_size \(16\)"):
            model.add_head("new", ["x", "y"], head={"type": "attentive", "num_heads": 3})
        assert "new" not in model.config.heads


class TestALinearHead:
    @pytest.mark.parametrize("kind", [None, {"type": "linear"}])
    def test_it_is_the_default_of_which_nothing_is_said_and_its_weights_keep_their_names(self, kind):
        model = CoverForVideoClassification(tiny_config({"plain": {"labels": ["a", "b"], "head": kind}}))
        assert model.config.heads["plain"].keys() == {"labels", "modality", "problem_type"}
        assert type(model.classifiers["plain"]) is nn.Linear
        assert [name for name in model.state_dict() if "plain" in name] == [
            "classifiers.plain.weight",
            "classifiers.plain.bias",
        ]


class TestMistakes:
    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            (
                "mlp",
                "head must be {'type': 'linear'}, {'type': 'mlp', 'hidden_size': ...} or {'type': 'attentive', "
                "'num_heads': ...}, got 'mlp'",
            ),
            ({"type": "attentive", "hidden_size": 3}, "head must be .* 'hidden_size': 3}"),
            ({"type": "attentive", "num_heads": -2}, "head: num_heads must be a whole number, at least 1, got -2"),
            ({"type": "mpl"}, "head must be .* got {'type': 'mpl'}"),
            ({"type": "mlp"}, "head must be .* got {'type': 'mlp'}"),
            ({"type": ["mlp"]}, "head must be .* got {'type': .'mlp'.}"),
            ({"hidden_size": 3}, "head must be .* got {'hidden_size': 3}"),
            ({**MLP, "layers": 3}, "head must be .* 'layers': 3}"),
            ({"type": "linear", "hidden_size": 3}, "head must be .* 'hidden_size': 3}"),
            ({"type": "mlp", "hidden_size": 0}, "head: hidden_size must be a whole number, at least 1, got 0"),
            ({"type": "mlp", "hidden_size": 2.5}, "head: hidden_size must be a whole number, at least 1, got 2.5"),
            ({"type": "mlp", "hidden_size": True}, "head: hidden_size must be a whole number, at least 1, got True"),
        ],
    )
    def test_what_no_head_is_made_of_is_named(self, kind, message, model):
        with pytest.raises(ValueError, match=f"head 'new': {message}"):
            model.add_head("new", ["a", "b"], head=kind)
        assert "new" not in model.config.heads
