# SPDX-License-Identifier: Apache-2.0
"""Pixels are normalised as a checkpoint's own processor does it, and a processor that does it otherwise is refused."""

import numpy as np
import pytest
import torch
from encoders import CONFIGS, save_encoder
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor
from transformers import (
    AutoVideoProcessor,
    LlavaOnevisionVideoProcessor,
    SiglipImageProcessor,
    VideoMAEVideoProcessor,
    VivitImageProcessor,
    VivitVideoProcessor,
    VJEPA2VideoProcessor,
)


HEADS = {"actions": {"labels": ["lift", "pull"]}}
FRAMES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def pixels_of(processor: CoverVideoProcessor) -> torch.Tensor:
    return processor(FRAMES, do_resize=False, do_center_crop=False, do_sample_frames=False, return_tensors="pt")[
        "pixel_values"
    ]


class TestAsTheCheckpointSays:
    @pytest.mark.parametrize(
        ("kind", "native"),
        [
            ("vjepa2", VJEPA2VideoProcessor(image_mean=[0.1, 0.2, 0.3])),
            ("videomae", VideoMAEVideoProcessor(image_std=[0.1, 0.2, 0.3])),
            ("videomae", VideoMAEVideoProcessor(do_rescale=False)),
            ("vivit", VivitVideoProcessor()),
            ("videoprism_vision_model", LlavaOnevisionVideoProcessor(do_normalize=False)),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_pixels_are_those_of_its_own_processor(self, tmp_path, kind, native):
        CONFIGS[kind].save_pretrained(tmp_path)
        native.save_pretrained(tmp_path)
        stored = AutoVideoProcessor.from_pretrained(tmp_path)
        (expected,) = stored(
            list(FRAMES), do_resize=False, do_center_crop=False, do_sample_frames=False, return_tensors="pt"
        ).values()
        found = pixels_of(CoverVideoProcessor.from_image_checkpoint(tmp_path))
        torch.testing.assert_close(found, expected.view_as(found), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("kind", "native"), [("vivit", VivitImageProcessor()), ("siglip_vision_model", SiglipImageProcessor())]
    )
    def test_so_are_those_of_a_processor_of_images(self, tmp_path, kind, native):
        CONFIGS[kind].save_pretrained(tmp_path)
        native.save_pretrained(tmp_path)
        options = {"do_resize": False} | ({"do_center_crop": False} if kind == "vivit" else {})
        expected = native(list(FRAMES), **options, return_tensors="pt")["pixel_values"]
        found = pixels_of(CoverVideoProcessor.from_image_checkpoint(tmp_path))
        torch.testing.assert_close(found, expected.view_as(found), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("kind", "native"),
        [("vivit", VivitVideoProcessor()), ("vjepa2", VJEPA2VideoProcessor()), ("siglip_vision_model", None)],
    )
    def test_without_a_processor_pixels_are_as_those_of_its_kind(self, tmp_path, kind, native):
        CONFIGS[kind].save_pretrained(tmp_path / "bare")
        CONFIGS[kind].save_pretrained(tmp_path / "whole")
        (native or SiglipImageProcessor()).save_pretrained(tmp_path / "whole")
        bare, whole = (CoverVideoProcessor.from_image_checkpoint(tmp_path / name) for name in ("bare", "whole"))
        torch.testing.assert_close(pixels_of(bare), pixels_of(whole))


class TestContradictions:
    @pytest.fixture
    def model(self, tmp_path) -> CoverForVideoClassification:
        save_encoder(tmp_path, "videomae")
        VideoMAEVideoProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
        return CoverForVideoClassification.from_encoder(tmp_path, heads=HEADS)

    @pytest.mark.parametrize(
        "options", [{"image_mean": [0.5, 0.5, 0.5]}, {"rescale_factor": 1 / 127.5}, {"do_normalize": False}]
    )
    def test_a_processor_that_contradicts_the_encoders_is_refused(self, model, tmp_path, options):
        processor = CoverVideoProcessor.from_image_checkpoint(tmp_path, **options)
        message = rf"otherwise than the encoder, {tmp_path}, was trained with: expected image_mean \[0.1, 0.2, 0.3\]"
        with pytest.raises(ValueError, match=message):
            model.pipeline(processor)
        model.save_pretrained(tmp_path / "saved")
        loaded = CoverForVideoClassification.from_pretrained(tmp_path / "saved")
        with pytest.raises(ValueError, match=r"otherwise than the encoder, .* was trained with"):
            loaded.pipeline(processor)

    def test_one_number_is_for_all_channels(self, tmp_path):
        CONFIGS["vit"].save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text('{"image_mean": 0.4, "image_std": 0.2}')
        processor = CoverVideoProcessor.from_image_checkpoint(tmp_path)
        assert (processor.image_mean, processor.image_std) == ((0.4,) * 3, (0.2,) * 3)

    def test_one_that_means_the_same_is_taken(self, model, tmp_path):
        same = {"rescale_factor": 1, "image_mean": [25.5, 51, 76.5], "image_std": [127.5] * 3}
        model.pipeline(CoverVideoProcessor.from_image_checkpoint(tmp_path, **same))
