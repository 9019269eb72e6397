# SPDX-License-Identifier: Apache-2.0
"""Attention rollout, against the joint matrix over all tokens of a clip and against a ViT's."""

import pytest
import torch
from checkpoints import save_vit
from modeling_cover import CoverForVideoClassification
from modeling_cover.evaluation.rollout import attention_rollout
from tiny import tiny_model
from transformers import ViTForImageClassification


HEADS = {"motions": {"labels": ["left", "right", "up"]}, "things": {"labels": ["cup", "hat"], "modality": "image"}}
FRAMES, PATCHES = 3, 4


@pytest.fixture(scope="module")
def model() -> CoverForVideoClassification:
    return tiny_model(HEADS, std=0.3, num_hidden_layers=2, image_size=16, num_frames=FRAMES)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randn(2, FRAMES, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def joint_spatial(maps: torch.Tensor) -> torch.Tensor:
    """The spatial attention of one clip (T, heads, 1 + N, 1 + N) as one matrix (heads, 1 + T * N, 1 + T * N)."""
    tokens = 1 + FRAMES * PATCHES
    joint = maps.new_zeros(maps.shape[1], tokens, tokens)
    for frame in range(FRAMES):
        own = [0, *range(1 + frame * PATCHES, 1 + (frame + 1) * PATCHES)]
        for row, token in enumerate(own):
            share = 1 / FRAMES if token == 0 else 1.0
            for column, other in enumerate(own):
                joint[:, token, other] += share * maps[frame, :, row, column]
    return joint


def joint_temporal(maps: torch.Tensor) -> torch.Tensor:
    """The temporal attention of one clip (N, heads, T, T) as one matrix; the class token keeps to itself."""
    tokens = 1 + FRAMES * PATCHES
    joint = maps.new_zeros(maps.shape[1], tokens, tokens)
    joint[:, 0, 0] = 1
    for patch in range(PATCHES):
        for frame in range(FRAMES):
            for other in range(FRAMES):
                joint[:, 1 + frame * PATCHES + patch, 1 + other * PATCHES + patch] = maps[patch, :, frame, other]
    return joint


def joint_matrices(outputs, clip: int) -> list[torch.Tensor]:
    """Of one clip all attention as joint matrices, in the order of the forward pass."""
    joint = []
    for spatial, temporal in zip(outputs.attentions, outputs.temporal_attentions, strict=True):
        joint.append(joint_temporal(temporal.unflatten(0, (-1, PATCHES))[clip]))
        joint.append(joint_spatial(spatial.unflatten(0, (-1, FRAMES))[clip]))
    return joint


def normalized(row: torch.Tensor) -> torch.Tensor:
    return row[1:].view(FRAMES, 2, 2) / row[1:].sum()


def test_it_is_the_product_of_the_joint_matrices(model, clips):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(clips, output_attentions=True)
    found = attention_rollout(model, clips)
    assert found.shape == (2, FRAMES, 2, 2)
    identity = torch.eye(1 + FRAMES * PATCHES)
    for clip in range(2):
        product = identity
        for matrix in joint_matrices(outputs, clip):
            product = (0.5 * matrix.mean(dim=0) + 0.5 * identity) @ product
        assert (found[clip] - normalized(product[0])).abs().max() < 1e-5


@pytest.mark.parametrize(("head", "label", "index"), [("motions", "up", 2), ("things", 1, 1), ("motions", None, None)])
def test_with_a_label_maps_are_weighted_with_its_gradient(model, clips, head, label, index):
    model.set_attn_implementation("eager")
    found = attention_rollout(model, clips, head=head, label=label)
    outputs = model(clips, head=head, output_attentions=True)
    chosen = outputs.logits.argmax(dim=-1) if index is None else torch.tensor([index, index])
    maps = [*outputs.attentions, *outputs.temporal_attentions]
    gradients = torch.autograd.grad(outputs.logits[torch.arange(2), chosen].sum(), maps)
    outputs.attentions, outputs.temporal_attentions = maps[:2], maps[2:]
    identity = torch.eye(1 + FRAMES * PATCHES)
    for clip in range(2):
        joint = joint_matrices(outputs, clip)
        outputs.attentions, outputs.temporal_attentions = gradients[:2], gradients[2:]
        of_joint = joint_matrices(outputs, clip)
        outputs.attentions, outputs.temporal_attentions = maps[:2], maps[2:]
        row = identity
        for step, (matrix, gradient) in enumerate(zip(joint, of_joint, strict=True)):
            gradient = gradient.clone()
            if step % 2:
                # A frame's map is a part of the class token's row of T: the gradient of the row is T times the
                # frame's. `joint_spatial` has taken the mean of the row, and the mean of the gradient of the class
                # token's own part.
                gradient[:, 0] *= FRAMES**2
                gradient[:, 0, 0] /= FRAMES
            else:
                gradient[:, 0] = 0  # no attention
            row = row + (matrix * gradient).clamp(min=0).mean(dim=0) @ row
        assert (found[clip] - normalized(row[0])).abs().max() < 1e-5


def test_of_an_image_it_is_the_rollout_of_the_vit_it_started_from(tmp_path):
    torch.manual_seed(0)
    vit = save_vit(tmp_path, attn_implementation="eager")
    model = CoverForVideoClassification.from_image_checkpoint(tmp_path, heads=HEADS, default_head="motions").eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        attentions = vit(images, output_attentions=True).attentions
    product = identity = torch.eye(1 + PATCHES)
    for maps in attentions:
        product = (0.5 * maps.mean(dim=1) + 0.5 * identity) @ product
    expected = product[:, 0, 1:] / product[:, 0, 1:].sum(dim=1, keepdim=True)
    assert (attention_rollout(model, images[:, None]).flatten(1) - expected).abs().max() < 1e-5


def test_of_an_image_and_a_label_it_is_that_of_a_vit_with_the_same_classifier(tmp_path):
    torch.manual_seed(0)
    vit = save_vit(tmp_path, ViTForImageClassification, num_labels=3, attn_implementation="eager")
    model = CoverForVideoClassification.from_image_checkpoint(tmp_path, heads=HEADS, default_head="motions").eval()
    model.classifiers["motions"].load_state_dict(vit.classifier.state_dict())
    images = torch.randn(2, 3, 16, 16)
    outputs = vit(images, output_attentions=True)
    gradients = torch.autograd.grad(outputs.logits[:, 1].sum(), outputs.attentions)
    product = torch.eye(1 + PATCHES)
    for maps, gradient in zip(outputs.attentions, gradients, strict=True):
        product = product + (maps * gradient).clamp(min=0).mean(dim=1) @ product
    expected = product[:, 0, 1:] / product[:, 0, 1:].sum(dim=1, keepdim=True)
    assert (attention_rollout(model, images[:, None], "motions", 1).flatten(1) - expected).abs().max() < 1e-5


def test_the_model_is_as_it_was_afterwards(model, clips):
    model.set_attn_implementation("sdpa")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.inference_mode():
        rollout = attention_rollout(model, clips)
    assert torch.equal(attention_rollout(model, clips), rollout)
    attention_rollout(model, clips, head="motions")
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "ssv2"}, "ssv2"),
        ({"head": "motions", "label": "down"}, "down"),
        ({"head": "motions", "label": 3}, "from 0 to 2"),
        ({"label": 0}, "which head"),
    ],
)
def test_what_there_is_not_is_named(model, clips, options, message):
    with pytest.raises(ValueError, match=message):
        attention_rollout(model, clips, **options)
