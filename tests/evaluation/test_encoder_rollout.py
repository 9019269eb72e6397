# SPDX-License-Identifier: Apache-2.0
"""Attention rollout through encoders of transformers, against the product of dense matrices over all tokens."""

import math

import pytest
import torch
from encoders import CONFIGS, model_of
from modeling_cover import CoverForVideoClassification
from modeling_cover.evaluation.relevance import default_method, label_relevance
from modeling_cover.evaluation.rollout import attention_rollout
from modeling_cover.model.configuration_cover import as_pair
from modeling_cover.model.encoders_cover import ENCODERS


FRAMES = 4
BEFORE = {"vivit": 1, "vit": 1, "dinov2": 1, "dinov3_vit": 5}  # a class token, and four registers
CLASS_TOKEN = {*BEFORE, "class_token"}
CASES = [
    *(kind for kind in CONFIGS if ENCODERS[kind].attends),
    "vjepa2 attentive",
    "videoprism_vision_model attentive",
    "videomae class_token",
]


def build(case: str) -> CoverForVideoClassification:
    kind, _, pooling = case.partition(" ")
    changes = {"use_mean_pooling": False} if pooling == "class_token" else {"num_register_tokens": 4}
    return model_of(kind, changes, encoder_pooling="attentive" if pooling == "attentive" else None)


def clips_of(model: CoverForVideoClassification, num_frames: int = FRAMES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, num_frames, 3, *as_pair(model.config.image_size), generator=generator)


def joint(maps: torch.Tensor, groups: int, is_track: bool = False) -> torch.Tensor:
    """Maps (B * groups, heads, S, S) as one matrix of each clip (B, heads, groups * S, groups * S): blocks, or with
    `is_track` what is at the same place of each block."""
    batch_size, heads, size = maps.shape[0] // groups, maps.shape[1], maps.shape[-1]
    whole = maps.new_zeros(batch_size, heads, groups * size, groups * size)
    for index, each in enumerate(maps.unflatten(0, (batch_size, groups)).unbind(1)):
        if is_track:
            whole[:, :, index::groups, index::groups] = each
        else:
            whole[:, :, index * size : (index + 1) * size, index * size : (index + 1) * size] = each
    return whole


class Recorded:
    """Maps of a forward pass, of layers and of what pools tokens, with the gradients of the largest logits."""

    def __init__(self, model: CoverForVideoClassification, clips: torch.Tensor):
        self.pooling: list[torch.Tensor] = []
        self.attended: torch.Tensor | None = None
        model.set_attn_implementation("eager")
        for name, module in model.cover.named_modules():
            if type(module) is torch.nn.MultiheadAttention:
                module.register_forward_hook(self.record_heads)
            elif name == "pooler.pooler" or (name.startswith("pooler.") and name.endswith("_attn")):
                module.register_forward_hook(self.record)
        outputs = model(clips, output_attentions=True)
        self.layers = list(outputs.attentions)
        seen = self.pooling if self.attended is None else [self.attended]
        gradients = torch.autograd.grad(outputs.logits.max(dim=1).values.sum(), [*self.layers, *seen])
        self.gradients, self.pooling_gradients = gradients[: len(self.layers)], gradients[len(self.layers) :]
        if self.attended is not None:
            # A weight of a head is multiplied by the head's values, and the sum by the last matrix.
            of_heads = (self.pooling_gradients[0] @ self.attention.out_proj.weight).unflatten(-1, (4, -1))
            self.pooling_gradients = [torch.einsum("bqhd,bshd->bhqs", of_heads, self.values)]

    def record(self, module, arguments, output):
        if isinstance(output, tuple):
            self.pooling.append(output[1])

    def record_heads(self, attention, arguments, output):
        """Of torch's own attention, which averages its maps, and not those that its output is made of."""
        query, key, _ = arguments
        self.attention, self.attended = attention, output[0]
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        query, key, self.values = (
            (tokens @ weight.T + bias).unflatten(-1, (4, -1))
            for tokens, weight, bias in zip((query, key, key), weights, biases, strict=True)
        )
        scores = torch.einsum("bqhd,bshd->bhqs", query, key) / math.sqrt(query.shape[-1])
        self.pooling = [scores.softmax(dim=-1)]
        torch.testing.assert_close(self.pooling[0].mean(dim=1), output[1])


def expected(case: str, model: CoverForVideoClassification, clips: torch.Tensor, weighted: bool) -> torch.Tensor:
    kind = case.split()[0]
    recorded = Recorded(model, clips)
    maps, pooling = [*recorded.layers], [*recorded.pooling]
    if weighted:
        maps = [(a * g).clamp(min=0) for a, g in zip(maps, recorded.gradients, strict=True)]
        pooling = [(a * g).clamp(min=0) for a, g in zip(pooling, recorded.pooling_gradients, strict=True)]
    if kind == "videoprism_vision_model":
        tracks = [False, False, True]
        maps = [joint(a, 4 if is_track else FRAMES, is_track) for a, is_track in zip(maps, tracks, strict=True)]
        frames = FRAMES
    else:
        frames = FRAMES if ENCODERS[kind].takes_frames else 1
        maps = [joint(a, frames) for a in maps]
    maps = [a.mean(dim=1).double() for a in [*maps, *pooling[:-1]]]
    identity = torch.eye(maps[0].shape[-1], dtype=torch.float64)
    product = identity.expand_as(maps[0])
    for matrix in maps:
        product = (matrix + identity) @ product if weighted else (matrix / 2 + identity / 2) @ product
    if weighted and not pooling:
        product = product - identity
    size = identity.shape[0] // frames
    if pooling:
        row = pooling[-1].mean(dim=1).double().reshape(2, 1, -1) @ product
    elif {kind, *case.split()} & CLASS_TOKEN:
        row = product[:, ::size].sum(dim=1)
    else:
        row = product.sum(dim=1)
    patches = row.reshape(2, frames, size)[:, :, BEFORE.get(kind, 0) :].reshape(2, -1, 2, 2)
    patches = patches.repeat_interleave(FRAMES // patches.shape[1], dim=1)
    return (patches / patches.sum(dim=(1, 2, 3), keepdim=True)).detach().float()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "of a label"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_row_of_the_dense_product_that_the_feature_takes(case, weighted):
    model = build(case)
    clips = clips_of(model)
    found = attention_rollout(model, clips, head="actions" if weighted else None)
    assert found.shape == (2, FRAMES, 2, 2)
    torch.testing.assert_close(found, expected(case, model, clips, weighted), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_an_image_has_a_map_of_one_frame(case):
    model = build(case)
    images = clips_of(model, num_frames=1)
    assert default_method(model, images) == "rollout"
    found = label_relevance(model, images, "things", "fork")
    assert found.shape == (2, 1, 2, 2)
    torch.testing.assert_close(found.sum(dim=(1, 2, 3)), torch.ones(2))


def test_the_model_is_as_it_was_afterwards():
    model = build("siglip_vision_model")
    before = model(clips_of(model)).logits
    attention_rollout(model, clips_of(model), head="actions")
    assert model.config._attn_implementation == "sdpa"
    assert type(model.cover.encoder.head.attention) is torch.nn.MultiheadAttention
    assert torch.equal(model(clips_of(model)).logits, before)
    assert all(parameter.grad is None for parameter in model.parameters())
