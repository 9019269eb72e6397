# SPDX-License-Identifier: Apache-2.0
"""Video Swin gives what torchvision's gives, and starts from the files of torchvision and of the original release."""

import os
import re

import pytest
import torch
from encoders import LABELS, SWIN_SIZES, torchvisions_video_swin
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor
from modeling_cover.model.video_swin_checkpoints_cover import read_video_swin
from modeling_cover.model.video_swin_cover import VideoSwinConfig
from torchvision.models.video import swin_transformer


HEADS = {"things": {"labels": ["cup", "fork"], "modality": "image"}}


def as_released(name: str) -> str:
    """What the original release calls a weight of torchvision's."""
    if name.startswith("head."):
        return name.replace("head.", "cls_head.fc_cls.")
    found = re.match(r"features\.(\d+)\.(.*)", name)
    if found is None:
        return f"backbone.{name}"
    (stage, merges), rest = divmod(int(found[1]), 2), found[2]
    if merges:
        return f"backbone.layers.{stage}.downsample.{rest}"
    return f"backbone.layers.{stage}.blocks.{rest}".replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")


def save(path: os.PathLike, native: torch.nn.Module, layout: str) -> None:
    state = native.state_dict()
    if layout == "release":
        state = {"meta": {"epoch": 30}, "state_dict": {as_released(name): weight for name, weight in state.items()}}
    torch.save(state, path)


@pytest.mark.parametrize("layout", ["torchvision", "release"])
class TestFiles:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_the_classifier_becomes_a_head_and_all_gives_the_same(self, tmp_path, layout, attention):
        native = torchvisions_video_swin()
        save(tmp_path / "swin.pth", native, layout)
        model = CoverForVideoClassification.from_encoder(
            tmp_path / "swin.pth", heads={**HEADS, "actions": {"labels": LABELS}}, head="actions"
        )
        model.set_attn_implementation(attention)
        assert model.config.encoder == VideoSwinConfig(**SWIN_SIZES, patch_size=[2, 4, 4])
        features = []
        native.head.register_forward_pre_hook(lambda module, arguments: features.append(arguments[0]))
        # Windows that fit; that are shifted and padded; an image; and a clip smaller than a window.
        for shape in ((2, 8, 3, 24, 24), (1, 12, 3, 40, 36), (2, 2, 3, 32, 32), (1, 4, 3, 8, 8)):
            clips = torch.randn(shape)
            with torch.no_grad():
                expected, outputs = native(clips.transpose(1, 2)), model(clips)
            torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(outputs.pooler_output, features.pop(), rtol=0, atol=1e-6)

    def test_pixels_are_normalised_as_torchvision_does_it(self, tmp_path, layout):
        save(tmp_path / "swin.pth", torchvisions_video_swin(), layout)
        processor = CoverVideoProcessor.from_image_checkpoint(tmp_path / "swin.pth")
        transforms = swin_transformer.Swin3D_T_Weights.DEFAULT.transforms()
        assert (*processor.image_mean, *processor.image_std) == (*transforms.mean, *transforms.std)

    def test_a_damaged_file_is_named(self, tmp_path, layout):
        path, native = tmp_path / "swin.pth", torchvisions_video_swin()
        save(path, native, layout)
        content = torch.load(path)
        state = content.get("state_dict", content)
        name = next(name for name in state if name.endswith("fc1.weight") or name.endswith("mlp.0.weight"))
        for weight, message in (
            (torch.full_like(state[name], float("nan")), f"{path}: weights are not finite"),
            (state[name][:, :-1], f"{path}: weights do not fit"),
        ):
            torch.save({**state, name: weight}, path)
            with pytest.raises(ValueError, match=message):
                CoverForVideoClassification.from_encoder(path, head="actions")
        torch.save({other: weight for other, weight in state.items() if other != name}, path)
        with pytest.raises(ValueError, match=f"{path}: not a Video Swin, as torchvision or the release has it"):
            CoverForVideoClassification.from_encoder(path, head="actions")


def test_by_default_it_is_torchvisions_tiny_one(tmp_path):
    native = swin_transformer.swin3d_t().half()  # as a small file
    torch.save(native.state_dict(), tmp_path / "swin3d_t.pth")
    stored = read_video_swin(tmp_path / "swin3d_t.pth")
    assert stored.config.to_diff_dict() == VideoSwinConfig().to_diff_dict()
    number = sum(weight.numel() for weight in (*stored.encoder.values(), *stored.classifier.values()))
    assert number == swin_transformer.Swin3D_T_Weights.DEFAULT.meta["num_params"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("index", "message"),
        [
            (lambda index: index.flip(0), "expected the places of a window of"),
            (lambda index: index[:9], "no window has 9 tokens"),
            (lambda index: index[:, :1], "expected the places of a window of"),
        ],
    )
    def test_places_in_windows_that_are_others(self, tmp_path, index, message):
        state = torchvisions_video_swin().state_dict()
        name = "features.0.0.attn.relative_position_index"
        torch.save({**state, name: index(state[name]).clone()}, tmp_path / "swin.pth")
        with pytest.raises(ValueError, match=message):
            read_video_swin(tmp_path / "swin.pth")

    def test_layers_with_a_gap(self, tmp_path):
        state = {
            name: weight for name, weight in torchvisions_video_swin().state_dict().items() if ".0.0." not in name
        }
        torch.save(state, tmp_path / "swin.pth")
        with pytest.raises(ValueError, match="expected layers without a gap"):
            read_video_swin(tmp_path / "swin.pth")

    def test_another_pooling(self, tmp_path):
        save(tmp_path / "swin.pth", torchvisions_video_swin(), "torchvision")
        with pytest.raises(ValueError, match=r"encoder_pooling: expected one of \['mean'\] of a video_swin"):
            CoverForVideoClassification.from_encoder(tmp_path / "swin.pth", head="actions", pooling="attentive")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_heads": [2]}, "expected layers and attention heads of each stage"),
            ({"window_size": [4, 4]}, "window_size must be that of time, rows and columns"),
            ({"num_heads": [3, 4]}, "do not divide the channels, 16 at first"),
        ],
    )
    def test_a_configuration_that_contradicts_itself(self, fields, message):
        from huggingface_hub.errors import StrictDataclassClassValidationError

        with pytest.raises(StrictDataclassClassValidationError, match=message):
            VideoSwinConfig(**{**SWIN_SIZES, **fields})
