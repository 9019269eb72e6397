# SPDX-License-Identifier: Apache-2.0
"""Clips and images in one pass, as on a GPU: the same as one group after the other, with fewer operators."""

import copy

import pytest
import torch
from modeling_cover import CoverForVideoClassification
from modeling_cover.model import divided_attention_cover
from modeling_cover.model.packed_frames_cover import num_passes, packed_frames
from tiny import tiny_config
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from two_layers import HEADS, SIZES, clips, randomise


LABELS, HEAD_IDS = torch.tensor([1, 2, 3, 0, 1, 2, 0, 1]), torch.tensor([1, 2, 0, 0, 2, 0, 1, 2])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def packing(model: CoverForVideoClassification) -> CoverForVideoClassification:
    """The same model, made to do on a CPU what it does on a GPU."""
    model = copy.deepcopy(model)
    model.cover.packing_devices = ("cpu",)
    return model


def groups() -> list[torch.Tensor]:
    return [clips(2), clips(3, 1), clips(1, 2, 16, 48), clips(2, 5)]


def results(model, inputs, **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    output = model(
        inputs, labels=LABELS[: sum(map(len, inputs))], head_ids=HEAD_IDS[: sum(map(len, inputs))], **kwargs
    )
    output.loss.backward()
    return output.pooler_output, {name: p.grad for name, p in model.named_parameters()}


def assert_same(model, inputs, **kwargs) -> None:
    (features, grads), (expected, expected_grads) = (results(m, inputs, **kwargs) for m in (packing(model), model))
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-6)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-5, rtol=1e-5, msg=name)


class TestTheSame:
    @pytest.mark.parametrize("fields", [{}, {"qkv_bias": False}, {"_attn_implementation": "eager"}], ids=str)
    def test_as_one_group_after_the_other(self, fields):
        model = randomise(CoverForVideoClassification(tiny_config(HEADS, **SIZES, **fields)), std=0.1)
        assert_same(model, groups())

    @pytest.mark.parametrize("inputs", [lambda: [clips(3)], lambda: [clips(4, 1)], lambda: [clips(1, 1)]])
    def test_for_clips_or_images_alone(self, model, inputs):
        assert_same(model.train(), inputs())

    def test_of_one_tensor(self, model):
        video = clips(2)
        torch.testing.assert_close(packing(model)(video).logits, model(video).logits, atol=1e-5, rtol=1e-5)

    def test_with_activation_checkpointing(self, model):
        model.train().gradient_checkpointing_enable()
        assert_same(model, groups())

    def test_of_the_encoder_alone(self, model):
        inputs = groups()
        apart = torch.cat([model.cover(group).pooler_output for group in inputs])
        torch.testing.assert_close(model.cover(inputs).pooler_output, apart, atol=1e-5, rtol=1e-5)

    def test_of_images_alone_every_parameter_has_a_gradient(self, model):
        _, grads = results(packing(model), [clips(2, 1)])
        assert [name for name, grad in grads.items() if grad is None] == []

    def test_in_autocast(self, model):
        inputs = groups()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            found, expected = (m(inputs).pooler_output for m in (packing(model), model))
        assert (found - expected).norm() < 0.02 * expected.norm()

    def test_what_is_recorded(self, model):
        model.set_attn_implementation("eager")
        inputs, asked = groups(), {"output_hidden_states": True, "output_attentions": True}
        found, expected = (m(inputs, **asked) for m in (packing(model), model))
        for key in ("hidden_states", "attentions", "temporal_attentions"):
            assert all(
                torch.equal(*pair)
                for two in zip(found[key], expected[key], strict=True)
                for pair in zip(*two, strict=True)
            )


class TestLayersThatAreNoMereProducts:
    def test_a_hook_sees_what_a_projection_returns(self, model):
        changed = packing(model)
        for each in (changed, model):
            for attention in (each.cover.layers[0].attention, each.cover.layers[1].temporal_attention):
                attention.k_proj.register_forward_hook(lambda module, inputs, output: output * 2)
                attention.v_proj.register_forward_hook(lambda module, inputs, output: output + 1)
        inputs = groups()
        torch.testing.assert_close(changed(inputs).logits, model(inputs).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(changed(inputs).logits, packing(model)(inputs).logits * 2)

    def test_a_lora_is_trained(self, model):
        peft = pytest.importorskip("peft")
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
        randomise(adapted)
        inputs, pooled = groups(), []
        for devices in ((), ("cpu",)):
            model.cover.packing_devices = devices
            pooled.append(model(inputs).pooler_output)
        torch.testing.assert_close(*pooled, atol=1e-4, rtol=1e-4)
        pooled[1].sum().backward()
        assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_" in name)


def order_of_gradients(model, inputs) -> list[str]:
    """The names of parameters, as their gradients come."""
    found, handles = [], []
    for name, parameter in model.named_parameters():
        hook = parameter.register_post_accumulate_grad_hook(lambda _, name=name: found.append(name))
        handles.append(hook)
    model(inputs).pooler_output.sum().backward()
    for handle in handles:
        handle.remove()
    return found


def test_gradients_come_in_one_order_whatever_a_process_is_given(model):
    """ZeRO adds up what comes first on each process, and so on."""
    orders = [
        order_of_gradients(packing(model).train(), inputs) for inputs in (groups()[:2], [clips(2, 1)], [clips(2)])
    ]
    assert len(orders[0]) > 40
    assert orders[0] == orders[1] == orders[2]
    in_layers = [
        [name for name in order if "layers." in name] for order in (orders[0], order_of_gradients(model, groups()))
    ]
    assert in_layers[0] == in_layers[1]


def test_the_mlps_go_in_parts_in_inference_with_the_same_result(model, monkeypatch):
    inputs = groups()
    with torch.no_grad():
        whole = packing(model)(inputs).logits
        monkeypatch.setattr(divided_attention_cover, "PACKED_INFERENCE_CHUNK", 40)  # two frames
        seen = []
        part = packing(model)
        part.cover.layers[0].fc1.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        torch.testing.assert_close(part(inputs).logits, whole, atol=1e-6, rtol=1e-6)
    assert max(seen) == 2
    assert sum(seen) == 2 * 4 + 3 + 2 + 2 * 5


class TestRandomParts:
    def test_a_clip_has_one_class_token_in_spite_of_dropout(self):
        model = packing(CoverForVideoClassification(tiny_config(HEADS, **SIZES, hidden_dropout_prob=0.5))).train()
        seen = []
        for module in (model.cover.embeddings, *model.cover.layers):
            module.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)))
        inputs = [clips(2), clips(3, 1), clips(1, 3)]
        model(inputs)
        embedded = seen[1][0][0]  # what the first layer is given
        for output in (embedded, *(output for _, output in seen[1:])):
            for clip in output[:, 0].split([4, 4, 1, 1, 1, 3]):
                assert torch.equal(clip, clip[:1].expand_as(clip))
        assert (seen[-1][1] == 0).float().mean() < 0.1  # what is dropped is the residual branches

    def test_drop_path_drops_whole_clips_and_keeps_the_mean(self):
        model = packing(CoverForVideoClassification(tiny_config(HEADS, **SIZES, drop_path_rate=0.4))).train()
        scales = []
        for layer in model.cover.layers:
            layer.register_forward_pre_hook(lambda module, inputs: scales.append(inputs[1].scales.flatten(1)))
        model([clips(500, 2, 8, 8), clips(500, 1, 8, 8)])
        first, last = scales
        assert torch.equal(first, torch.ones_like(first))  # the rate grows from 0 in the first layer
        assert last.unique().tolist() == pytest.approx([0, 1 / 0.6])
        assert torch.equal(last[:, 0:1000:2], last[:, 1:1000:2])
        assert last.mean() == pytest.approx(1, abs=0.12)  # 3,000 draws: more than 6 standard deviations
        assert not torch.equal(last[0], last[1])


class Operators(TorchDispatchMode):
    """Counts what would each launch a kernel: all but views and memory that is not filled."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1]
        self.count += not func.is_view and not name.startswith(("empty", "new_empty", "_unsafe_view", "detach"))
        return func(*args, **(kwargs or {}))


def operators(model, inputs, training: bool = True) -> int:
    """Of a layer's forward and backward pass, autocast to bf16: those of two layers less those of one."""
    counts = []
    for num_layers in (1, 2):
        part = copy.deepcopy(model)
        part.cover.layers = part.cover.layers[:num_layers]
        with Operators() as counted:
            with torch.autocast("cpu", torch.bfloat16):
                pooled = part(inputs).pooler_output.sum()
            if training:
                pooled.backward()
        counts.append(counted.count)
    return counts[1] - counts[0]


class TestOperators:
    def test_a_mixed_batch_takes_no_more_than_clips_alone(self, model):
        model = packing(model).train()
        for training in (False, True):
            alone, mixed = (
                operators(model, inputs, training) for inputs in ([clips(4)], [clips(2), clips(2, 2), clips(4, 1)])
            )
            assert mixed <= 1.05 * alone

    def test_they_are_fewer_than_one_group_after_the_other_takes(self, model):
        inputs = [clips(2), clips(4, 1)]
        assert operators(packing(model).train(), inputs) < 0.5 * operators(model.train(), inputs)
        assert operators(packing(model).train(), inputs[:1]) < 0.8 * operators(model.train(), inputs[:1])


MIXTURES = [
    *[
        ((4, 4), (4, 1)),
        ((3, 4), (5, 1)),
        ((7, 4), (1, 1)),
        ((1, 4), (7, 1)),
        ((8, 4),),
        ((8, 1),),
        ((1, 4),),
        ((1, 1),),
    ],
    *[((2, 4), (2, 2)), ((2, 2), (3, 4), (4, 1)), ((1, 2),), ((5, 2),), ((1, 8), (2, 1)), ((2, 8),), ((2, 1),)],
    *[((2, 2), (1, 3), (1, 5), (4, 1)), ((6, 1), (2, 4)), ((3, 1),), ((5, 4), (5, 2)), ((1, 6), (1, 7))],
]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"drop_path_rate": 0.2}], ids=str)
def test_twenty_mixtures_are_at_most_four_graphs_for_all_layers_together(fields, monkeypatch):
    model = CoverForVideoClassification(tiny_config(HEADS, **{**SIZES, "num_hidden_layers": 3}, **fields)).train()
    model.cover.packing_devices = ("cpu",)
    torch._dynamo.reset()
    counters.clear()
    for layer in model.cover.layers:
        layer.compile(backend="eager")
    for mixture in MIXTURES:
        inputs = [clips(*sizes) for sizes in mixture]
        model(inputs).pooler_output.sum().backward()
    assert len(MIXTURES) == 20
    assert counters["stats"]["unique_graphs"] <= 4
    monkeypatch.setattr(divided_attention_cover, "PACKED_INFERENCE_CHUNK", 40)
    with torch.no_grad():  # in parts, were it not compiled
        for mixture in MIXTURES:
            model.eval()([clips(*sizes) for sizes in mixture])
    assert counters["stats"]["unique_graphs"] <= 8
    assert not counters["graph_break"]


class TestNumberOfPasses:
    def test_is_that_of_frame_sizes(self, model):
        assert num_passes(packing(model).cover, groups()) == 2
        assert num_passes(model.cover, groups()) == 4

    def test_clips_of_too_many_frames_go_one_group_after_the_other(self, model):
        inputs = [clips(1, 2, 8, 8), clips(1, 1, 8, 8)]
        assert num_passes(packing(model).cover, inputs) == 1
        assert num_passes(packing(model).cover, [*inputs, clips(1, 129, 8, 8)]) == 3

    @pytest.mark.parametrize(
        ("inputs", "asked", "message"),
        [
            ([(1, 129, 8, 8)], {}, "a clip of 129 frames, at most 128 can"),
            ([(1, 2, 8, 8)], {"output_hidden_states": True}, "output_hidden_states is asked for"),
            ([(1, 2, 8, 8)], {"output_temporal_attentions": True}, "output_temporal_attentions is asked for"),
        ],
    )
    def test_what_cannot_go_together_is_refused_as_a_list(self, model, inputs, asked, message):
        with pytest.raises(ValueError, match=message):
            model.cover([clips(*sizes) for sizes in inputs], **asked)

    def test_with_dropout_of_attention_training_goes_one_group_after_the_other(self):
        model = packing(CoverForVideoClassification(tiny_config(HEADS, **SIZES, attention_probs_dropout_prob=0.5)))
        with pytest.raises(ValueError, match="attention_probs_dropout_prob is not 0"):
            model.train().cover(groups())
        assert model(groups()).pooler_output.shape == (8, 32)
        assert num_passes(model.eval().cover, groups()) == 4

    def test_tables_are_made_once_for_a_mixture(self):
        first, second = (packed_frames([clips(2), clips(1, 1)], 16, 8, torch.float32) for _ in range(2))
        assert first is second
