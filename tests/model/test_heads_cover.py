# SPDX-License-Identifier: Apache-2.0
"""What a head may be made of: a linear classifier, or an MLP."""

import json

import pytest
import torch
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
            ("mlp", "head must be {'type': 'linear'} or {'type': 'mlp', 'hidden_size': ...}, got 'mlp'"),
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
