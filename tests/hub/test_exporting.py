# SPDX-License-Identifier: Apache-2.0
"""Exported programs give what the model gives, on shapes they were not exported with, and refuse what it refuses."""

import copy
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import modeling_cover.hub.exporting as exporting
import onnx
import onnxruntime
import pytest
import torch
from checkpoints import perturb, save_timesformer
from modeling_cover import CoverForVideoClassification, CoverVideoProcessor
from modeling_cover.commands import export
from modeling_cover.hub.exporting import (
    METADATA_NAME,
    export_onnx,
    export_program,
    file_size,
    largest_difference,
    save_program,
)
from tiny import tiny_config


ROOT = Path(__file__).parents[2]
TOLERANCE = {"rtol": 0, "atol": 1e-4}
HEADS = ["tags", "places", "k400"]  # in another order than the model's
FORMATS = [pytest.param(".onnx", marks=pytest.mark.slow), ".pt2"]  # ONNX takes half a minute

# What a program must take: an image, a frame of one patch, odd numbers of each, and what the checkpoint was made for.
SHAPES = [(1, 1, 16, 16), (3, 1, 24, 16), (2, 5, 8, 40), (1, 8, 16, 16), (4, 3, 8, 8), (1, 2, 32, 32)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exporting")


@pytest.fixture(scope="module")
def timesformer(folder):
    torch.manual_seed(0)
    return save_timesformer(folder / "timesformer", num_frames=8, num_hidden_layers=1)


@pytest.fixture(scope="module")
def model(timesformer, folder) -> CoverForVideoClassification:
    """A converted TimeSformer with two more heads: an MLP for several labels of a clip, and an attentive one."""
    model = CoverForVideoClassification.from_timesformer(folder / "timesformer", head="k400")
    of_tags = {"modality": "image", "problem_type": "multi_label_classification"}
    mlp = {"type": "mlp", "hidden_size": 12}
    model.add_head("tags", ["indoors", "night, or dusk", "straße"], **of_tags, head=mlp)
    model.add_head("places", ["near", "far"], head={"type": "attentive", "num_heads": 2})
    torch.manual_seed(0)
    for name in ("tags", "places"):
        perturb(model.classifiers[name])
    return model


@pytest.fixture(scope="module")
def processor() -> CoverVideoProcessor:
    return CoverVideoProcessor(num_frames=8, size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def program(model) -> torch.export.ExportedProgram:
    return export_program(model, HEADS)


@pytest.fixture(scope="module")
def onnx_program(model, processor, program) -> torch.onnx.ONNXProgram:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "export_program", lambda _, heads: program)
        return export_onnx(model, processor, HEADS)


@pytest.fixture(scope="module")
def exports(program, request) -> Callable[[str], AbstractContextManager]:
    """Inside, a file of that format is written of what is exported once for all tests, as that takes long."""

    @contextmanager
    def exported(suffix: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if suffix == ".onnx":
                onnx_program = request.getfixturevalue("onnx_program")
                patch.setattr(exporting, "export_onnx", lambda *_: onnx_program)
            patch.setattr(exporting, "export_program", lambda *_: program)
            yield

    return exported


@pytest.fixture(scope="module")
def saved(model, processor, exports, folder) -> Callable[[str], Path]:
    """The file of a format, written when it is asked for."""
    (folder / "new").mkdir()
    (folder / "new" / "program.onnx.data").write_text("the weights of a larger program")

    @cache
    def save(suffix: str) -> Path:
        path = folder / "new" / f"program{suffix}"
        with exports(suffix):
            assert 0 <= save_program(path, model, processor, HEADS) <= 1e-4
        return path

    return save


@pytest.fixture(scope="module", params=FORMATS)
def run(request, saved):
    """The file as its users load it, with nothing of this package: from a clip to outputs by name."""
    path = saved(request.param)
    if request.param == ".pt2":
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda clip: {
        name: torch.from_numpy(value)
        for name, value in zip(names, session.run(None, {"pixel_values": clip.numpy()}), strict=True)
    }


class TestValues:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_they_are_the_models_for_any_batch_frames_and_size(self, model, run, shape):
        batch_size, num_frames, height, width = shape
        clips = torch.randn(batch_size, num_frames, 3, height, width)
        with torch.no_grad():
            expected = model(clips)
        outputs = run(clips)
        assert list(outputs) == ["tags_logits", "places_logits", "k400_logits", "pooler_output"]
        for name in HEADS:
            torch.testing.assert_close(outputs[f"{name}_logits"], expected.head_logits[name], **TOLERANCE)
        torch.testing.assert_close(outputs["pooler_output"], expected.pooler_output, **TOLERANCE)

    def test_a_converted_timesformer_gives_what_it_gives_in_transformers(self, timesformer, run):
        clips = torch.randn(2, 8, 3, 16, 16)
        with torch.no_grad():
            expected = timesformer(clips).logits
        torch.testing.assert_close(run(clips)["k400_logits"], expected, **TOLERANCE)

    @pytest.mark.slow
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_patches_that_are_no_squares_and_bf16(self, attention):
        torch.manual_seed(0)
        config = tiny_config(
            image_size=(16, 32), patch_size=(8, 16), num_frames=2, num_channels=1, num_hidden_layers=1
        )
        model = perturb(CoverForVideoClassification(config)).bfloat16()
        model.set_attn_implementation(attention)
        program = export_program(model).module()
        for shape in [(1, 1, 1, 8, 16), (3, 4, 1, 24, 64)]:
            clips = torch.randn(shape).bfloat16()
            with torch.no_grad():
                torch.testing.assert_close(program(clips)["pooler_output"], model(clips).pooler_output)

    @pytest.mark.slow
    def test_the_size_that_is_exported_with_may_be_the_models_own(self):
        """4 x 5 patches, here no squares, and three frames are what stands for all sizes; a condition on equality
        would bind the program."""
        config = tiny_config(
            image_size=(32, 80), patch_size=(8, 16), num_frames=3, num_hidden_layers=1, return_dict=False
        )
        model = perturb(CoverForVideoClassification(config))
        assert largest_difference(model, export_program(model).module()) < 1e-5


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "shape", [(1, 2, 3, 20, 16), (1, 2, 3, 16, 20), (1, 2, 1, 16, 16), (1, 0, 3, 16, 16)], ids=str
    )
    def test_clips_that_the_model_refuses(self, model, run, shape):
        with pytest.raises(ValueError, match="pixel_values"):
            model(torch.randn(shape))
        # Of classes that onnxruntime does not publish; torch.export's is a RuntimeError.
        with pytest.raises(Exception, match=r"reshape|dimension|Expected input|greater than 0"):
            run(torch.randn(shape))

    def test_a_head_that_there_is_not_and_none_at_all(self, model):
        with pytest.raises(ValueError, match=r"'ssv2'.*k400.*tags"):
            export_program(model, ["ssv2"])
        with pytest.raises(ValueError, match="one at least"):
            export_program(model, [])

    def test_a_model_in_training_mode_and_an_attention_that_is_not_exported(self, model):
        copy = CoverForVideoClassification(model.config).train()
        with pytest.raises(ValueError, match=r"model\.eval\(\)"):
            export_program(copy)
        copy.eval().set_attn_implementation("flex_attention")
        try:
            with pytest.raises(ValueError, match=r"flex_attention.*sdpa"):
                export_program(copy)
        finally:
            copy.set_attn_implementation("sdpa")  # its configuration is the other model's, too

    def test_a_place_where_no_program_can_be_leaves_nothing(self, model, processor, tmp_path):
        (tmp_path / "folder.pt2").mkdir()
        (tmp_path / "file").write_text("")
        for place, message in {
            "new/program.bin": r"program\.bin.*\.onnx or \.pt2",
            "folder.pt2": r"folder\.pt2: expected a file",
            "file/below/program.pt2": r"program\.pt2: expected a file",
        }.items():
            with pytest.raises(ValueError, match=message):
                save_program(tmp_path / place, model, processor)
        with pytest.raises(ValueError, match="expected a list"):
            save_program(tmp_path / "new" / "program.pt2", model, processor, heads="tags")
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.pt2"]

    @pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
    def test_a_model_that_is_not_in_fp32_on_the_cpu(self, model, processor, tmp_path, suffix):
        with pytest.raises(ValueError, match=r"float16.*float32"):
            save_program(tmp_path / f"p{suffix}", CoverForVideoClassification(model.config).eval().half(), processor)
        with torch.device("meta"):
            elsewhere = CoverForVideoClassification(model.config).eval()
        with pytest.raises(ValueError, match=r"for the CPU, got a model on meta"):
            save_program(tmp_path / f"p{suffix}", elsewhere, processor)

    @pytest.mark.parametrize(
        ("suffix", "weight"), [(".pt2", float("nan")), pytest.param(".onnx", 1.01, marks=pytest.mark.slow)]
    )
    def test_a_program_that_gives_something_else_leaves_no_file(
        self, model, processor, exports, tmp_path, suffix, weight
    ):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.classifiers["tags"].fc2.weight.mul_(weight)
        (tmp_path / f"program{suffix}").write_text("older")
        with exports(suffix), pytest.raises(ValueError, match=r"differs from the model by (nan|\d)"):
            save_program(tmp_path / f"program{suffix}", other, processor)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]

    @pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
    def test_without_the_extra_it_is_named(self, model, processor, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"{package} .*modeling-cover\[onnx\]"):
            export_onnx(model, processor)


class TestFiles:
    @pytest.mark.slow
    def test_nothing_is_left_of_an_older_program(self, saved):
        assert saved(".pt2").parent == saved(".onnx").parent
        assert sorted(path.name for path in saved(".onnx").parent.iterdir()) == ["program.onnx", "program.pt2"]

    @pytest.mark.slow
    def test_onnx_takes_the_sizes_by_name_and_passes_its_own_check(self, saved):
        onnx.checker.check_model(saved(".onnx"), full_check=True)
        session = onnxruntime.InferenceSession(saved(".onnx"))
        (pixel_values,) = session.get_inputs()
        assert (pixel_values.name, pixel_values.shape) == ("pixel_values", ["batch", "frames", 3, "height", "width"])
        sizes = [3, 2, 2, 32]
        assert [output.shape for output in session.get_outputs()] == [["batch", size] for size in sizes]

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_the_metadata_tell_how_to_prepare_a_clip_and_to_read_the_answer(self, saved, model, processor, suffix):
        if suffix == ".onnx":
            metadata = onnxruntime.InferenceSession(saved(suffix)).get_modelmeta().custom_metadata_map
            values = {name: json.loads(value) for name, value in metadata.items()}
        else:
            extra = {METADATA_NAME: ""}
            torch.export.load(saved(suffix), extra_files=extra)
            values = json.loads(extra[METADATA_NAME])
        assert values["heads"] == model.config.heads
        assert (values["default_head"], values["patch_size"], values["num_frames"]) == ("k400", [8, 8], 8)
        assert CoverVideoProcessor(**values["video_processor"]).to_dict() == processor.to_dict()

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_nothing_names_a_folder_of_this_machine(self, saved, suffix):
        content = saved(suffix).read_bytes()
        for path in (ROOT, Path(torch.__file__).parent, Path.home(), saved(suffix).parent):
            assert str(path).encode() not in content

    def test_a_program_of_torch_has_no_pickle_in_it(self, saved):
        with zipfile.ZipFile(saved(".pt2")) as archive:
            contents = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        assert contents["data/sample_inputs/model.pt"] == b""
        described = {
            kind: json.loads(contents[f"data/{kind}/model_{kind}_config.json"])["config"]
            for kind in ("weights", "constants")
        }
        assert len(described["weights"]) > 20 and described["constants"] == {}
        assert not any(tensor["use_pickle"] for tensor in described["weights"].values())

    @pytest.mark.slow
    def test_weights_in_a_second_file_come_with_the_first(self, model, processor, exports, tmp_path, monkeypatch):
        path = tmp_path / "program.onnx"
        monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
        with exports(".onnx"):
            assert save_program(path, model, processor) < 1e-4
        names = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
        assert set(names) == {"program.onnx", "program.onnx.data"}
        assert file_size(path) == sum(names.values())
        outputs = [output.name for output in onnxruntime.InferenceSession(path).get_outputs()]
        assert outputs == ["tags_logits", "places_logits", "k400_logits", "pooler_output"]


@pytest.mark.slow
def test_the_script_writes_the_heads_that_it_is_asked_for(model, processor, folder, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    output = tmp_path / "tags.pt2"
    arguments = ["--model", str(tmp_path / "model"), "--output", str(output), "--head"]
    assert export.main([*arguments, "tags"]) == 0
    assert "differs from the model by" in capsys.readouterr().out
    outputs = torch.export.load(output).module()(torch.zeros(1, 1, 3, 16, 16))
    assert list(outputs) == ["tags_logits", "pooler_output"]
    assert b"k400_logits" not in output.read_bytes()
    assert export.main([*arguments, "ssv2"]) == 2
    assert "'ssv2'" in capsys.readouterr().err
    for model_id, message in {
        str(folder / "timesformer"): "from_timesformer",
        str(tmp_path / "nowhere"): "nowhere",
    }.items():
        assert export.main(["--model", model_id, "--output", str(output)]) == 2
        assert message in capsys.readouterr().err
