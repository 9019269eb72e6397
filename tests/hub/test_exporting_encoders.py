# SPDX-License-Identifier: Apache-2.0
"""Encoders of transformers as programs: they give what the model gives, for any size that it takes, and no other."""

import json
import os
from pathlib import Path

import onnxruntime
import pytest
import torch
from encoders import CONFIGS, model_of
from modeling_cover import CoverForVideoClassification
from modeling_cover.hub.exporting import (
    METADATA_NAME,
    export_onnx,
    export_program,
    largest_difference,
    onnx_runner,
    program_metadata,
    save_program,
)
from tiny import tiny_processor


SMALLEST = {"num_hidden_layers": 1, "num_spatial_layers": 1}
ONNX = ["vjepa2"]  # of one size alone, with a pooling of its own


def build(kind: str, **changes) -> CoverForVideoClassification:
    known = CONFIGS[kind].to_dict()
    smallest = {name: value for name, value in SMALLEST.items() if name in known}
    return model_of(kind, {**smallest, **changes})


@pytest.fixture(scope="module")
def model() -> CoverForVideoClassification:
    # Made for as many frames as a program is exported with, which must not bind it.
    return build("videomae", num_frames=6)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "videomae.pt2"
    assert save_program(path, model, tiny_processor()) < 1e-5
    return path


@pytest.fixture(scope="module")
def run(file) -> torch.nn.Module:
    return torch.export.load(file).module()


@pytest.mark.slow  # which `test_exporting.py` has of our encoder
class TestClipsOfSeveralFramesToAToken:
    @pytest.mark.parametrize("shape", [(1, 6, 32, 32), (2, 2, 16, 48), (3, 10, 48, 32)], ids=str)
    def test_any_number_of_frames_of_any_size(self, model, run, shape):
        batch_size, num_frames, height, width = shape
        clips = torch.randn(batch_size, num_frames, 3, height, width)
        with torch.no_grad():
            expected, outputs = model(clips), run(clips)
        torch.testing.assert_close(outputs["actions_logits"], expected.head_logits["actions"], rtol=0, atol=1e-5)
        torch.testing.assert_close(outputs["pooler_output"], expected.pooler_output, rtol=0, atol=1e-5)

    def test_an_image_is_given_as_often_as_makes_a_token(self, model, run, file):
        extra = {METADATA_NAME: ""}
        torch.export.load(file, extra_files=extra)
        metadata = json.loads(extra[METADATA_NAME])
        assert (metadata["patch_size"], metadata["tubelet_frames"], metadata["only_size"]) == ([16, 16], 2, None)
        image = torch.randn(2, 1, 3, 32, 32)
        with torch.no_grad():
            expected = model(image).head_logits["things"]
            found = run(image.repeat(1, metadata["tubelet_frames"], 1, 1, 1))["things_logits"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 3, 32, 32), (1, 4, 30, 32)], ids=str)
    def test_others_are_refused(self, run, shape):
        batch_size, num_frames, height, width = shape
        with pytest.raises(Exception, match=r"to be of the form (2|16)\*s"):  # torch's own class
            run(torch.randn(batch_size, num_frames, 3, height, width))


@pytest.mark.slow  # of each kind, some three seconds
@pytest.mark.parametrize("kind", sorted({*CONFIGS} - {"videomae", "video_swin", *ONNX}))
def test_every_kind_is_exported_for_any_size(kind):
    model = build(kind)
    assert largest_difference(model, export_program(model).module()) < 1e-5
    assert program_metadata(model, tiny_processor())["only_size"] is None


@pytest.mark.slow
def test_video_swin_is_exported_for_clips_of_one_shape():
    model = build("video_swin")
    run, metadata = export_program(model).module(), program_metadata(model, tiny_processor())
    assert largest_difference(model, run) < 1e-5
    assert (metadata["only_frames"], metadata["only_size"]) == (4, [32, 32])
    for shape in ((1, 2, 3, 32, 32), (1, 4, 3, 32, 64)):
        with pytest.raises(Exception, match="to be equal to"):  # torch's own class
            run(torch.zeros(shape))


@pytest.mark.slow  # ONNX takes some 15 seconds
@pytest.mark.parametrize("kind", ONNX)
def test_so_it_is_to_onnx_or_for_its_one_size(kind, tmp_path):
    model, path = build(kind), tmp_path / "program.onnx"
    assert save_program(path, model, tiny_processor()) < 1e-4
    session = onnxruntime.InferenceSession(path)
    frames, size = model.config.tubelet[0], session.get_inputs()[0].shape[3:]
    metadata = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (metadata["only_size"], size) == (([32, 32], [32, 32]) if kind == "vjepa2" else (None, ["height", "width"]))
    assert metadata["tubelet_frames"] == frames
    run = onnx_runner(path)
    for shape in [(1, 2 * frames, 3, 32, 30), (1, 2 * frames, 3, 48, 32), (1, 3, 3, 32, 32)]:
        clips = torch.randn(shape)
        try:
            expected = model(clips).pooler_output
        except ValueError:
            with pytest.raises(Exception, match=r"reshape|dimension|Invalid|Expected"):  # onnxruntime's own classes
                run(clips)
        else:
            torch.testing.assert_close(run(clips)["pooler_output"], expected, rtol=0, atol=1e-4)


def test_video_swin_is_refused_for_onnx():
    with pytest.raises(ValueError, match=r"torch cannot convert a video_swin to ONNX: export it to a \.pt2 file"):
        export_onnx(build("video_swin"), tiny_processor())


def test_what_torch_cannot_export_is_named_and_transformers_traces_as_before(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "0")
    model = build("vit")
    monkeypatch.setattr(model.cover, "forward", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ValueError, match="torch cannot export a vit: division"):
        export_program(model)
    assert os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] == "0"
    assert not torch.jit.is_tracing()
