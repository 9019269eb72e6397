# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as programs that run without this package: torch.export's, and ONNX.

A program takes `pixel_values`, (batch, frames, channels, height, width), as the video processor makes them: any number
of clips, of any number of frames, one included, and of any size in whole patches. Where an encoder makes a token of
several frames, it takes a multiple of them, and an image as so many frames; and where it has positions for one size,
or cannot be traced for others, it takes that alone. It gives `<head>_logits`, (batch, labels), of each head, and
`pooler_output`, (batch, hidden size), what heads see which are not attentive. Both kinds of files tell in their
metadata how to make the one and read the other, see [`program_metadata`].
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..bars import bar
from ..model.configuration_cover import as_pair
from ..model.encoders_cover import encoder_adapter
from ..model.heads_cover import head_logits
from ..model.modeling_cover import CoverForVideoClassification
from ..model.video_processing_cover import CoverVideoProcessor


ONNX_SUFFIX, PROGRAM_SUFFIX = ".onnx", ".pt2"
METADATA_NAME = "metadata.json"  # of the extra file in a program of torch.export
TOLERANCE = 1e-4  # of outputs in fp32, absolute

_NO_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"

Outputs = Mapping[str, torch.Tensor]


class _Program(nn.Module):
    """What is exported: the encoder and some heads."""

    def __init__(self, model: CoverForVideoClassification, heads: Sequence[str]):
        super().__init__()
        self.cover = model.cover
        self.tubelet = model.config.tubelet
        self.classifiers = nn.ModuleDict({head: model.classifiers[head] for head in heads})

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.cover(self.in_whole_patches(pixel_values), return_dict=True)
        pooled, tokens = output.pooler_output, [output.last_hidden_state]
        logits = {output_name(head): head_logits(part, pooled, tokens) for head, part in self.classifiers.items()}
        return {**logits, "pooler_output": pooled}

    def in_whole_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The same pixels, by a way that fails for others: ONNX has no other means to refuse a size."""
        num_frames, _, height, width = pixel_values.shape[1:]
        frames, rows, columns = self.tubelet
        cut = pixel_values.unflatten(-1, (width // columns, columns)).unflatten(-3, (height // rows, rows))
        whole = cut.flatten(-2).flatten(-3, -2)
        return whole if frames == 1 else whole.unflatten(1, (num_frames // frames, frames)).flatten(1, 2)


def output_name(head: str) -> str:
    return f"{head}_logits"


def export_program(model: CoverForVideoClassification, heads: Sequence[str] | None = None) -> ExportedProgram:
    """A model as a program of `torch.export`, with dynamic batch, frames, height and width, as far as its encoder
    has them, see [`program_metadata`].

    Args:
        model: in evaluation mode, with sdpa or eager attention.
        heads: whose logits it gives, in this order; by default all.

    Raises:
        ValueError: if there is no such head, or the model is in training mode, in part or whole, or has another
            attention, or an encoder that torch cannot export.
    """
    heads = _checked_heads(model, heads)
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"attn_implementation {attention!r} cannot be exported: load the model with 'sdpa'")
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode, with its dropout: call model.eval() first")
    frames, rows, columns = model.config.tubelet
    # Sizes that stand for all others: none of them is 1, and no two are the same.
    shape = [2, 3 * frames, model.config.num_channels, 4 * rows, 5 * columns]
    dynamic = {0: Dim("batch")}
    if (only_frames := _only_frames(model)) is None:
        dynamic[1] = Dim("frames") if frames == 1 else frames * Dim("tubelets")
    else:
        shape[1] = only_frames
    if (size := _only_size(model)) is None:
        dynamic |= {3: rows * Dim("rows"), 4: columns * Dim("columns")}
    else:
        shape[3:] = size
    example = torch.zeros(shape, device=model.device, dtype=model.dtype)
    try:
        with torch.no_grad(), _for_any_size():
            program = torch.export.export(
                _Program(model, heads).eval(), (example,), dynamic_shapes={"pixel_values": dynamic}
            )
    except Exception as error:  # of an encoder that somebody has registered: anything
        if model.config.encoder is None:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"torch cannot export a {model.config.encoder.model_type}: {reason}") from error
    # Where there is an example, a program also checks what torch's tracing has assumed of its memory, and refuses one
    # frame.
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


@contextmanager
def _for_any_size() -> Iterator[None]:
    """Have transformers trace an encoder for all sizes: resize positions also where they fit, which it does when
    `torch.jit` traces, and leave out checks of values that a runtime cannot make. [`_Program`] checks sizes."""
    is_tracing, before = torch.jit.is_tracing, os.environ.get(_NO_CHECKS)
    torch.jit.is_tracing, os.environ[_NO_CHECKS] = lambda: True, "1"
    try:
        yield
    finally:
        torch.jit.is_tracing = is_tracing
        if before is None:
            del os.environ[_NO_CHECKS]
        else:
            os.environ[_NO_CHECKS] = before


def _only_size(model: CoverForVideoClassification) -> tuple[int, int] | None:
    """Height and width, in pixels, where a program takes no others."""
    encoder = model.config.encoder
    if encoder is None:
        return None
    adapter = encoder_adapter(encoder)
    if not adapter.traces_any_size:
        return as_pair(model.config.image_size)
    return None if adapter.size_field is None else adapter.image_size(encoder)


def _only_frames(model: CoverForVideoClassification) -> int | None:
    """The frames of a clip, where a program takes no others."""
    encoder = model.config.encoder
    return None if encoder is None or encoder_adapter(encoder).traces_any_size else model.config.num_frames


def export_onnx(
    model: CoverForVideoClassification,
    video_processor: CoverVideoProcessor,
    heads: Sequence[str] | None = None,
) -> torch.onnx.ONNXProgram:
    """A model in fp32 as an ONNX program, see [`export_program`]; its `save(path)` writes it.

    Raises:
        ImportError: if the packages of the extra `onnx` are not installed.
        ValueError: as [`export_program`], and if the model is not in fp32, or has an encoder of one shape of clips,
            whose windows torch's conversion to ONNX fails at.
    """
    check_onnx_is_installed()
    _check_fp32(model)
    if _only_frames(model) is not None:
        raise ValueError(f"torch cannot convert a {model.config.encoder.model_type} to ONNX: export it to a .pt2 file")
    program = export_program(model, heads)
    names = [*map(output_name, _checked_heads(model, heads)), "pooler_output"]
    onnx_program = torch.onnx.export(program, input_names=["pixel_values"], output_names=names, verbose=False)
    names = "batch", "frames", "channels", "height", "width"
    axes = zip(onnx_program.model.graph.inputs[0].shape, names, strict=True)
    onnx_program.rename_axes({axis: name for axis, name in axes if not isinstance(axis, int)})
    for name, value in program_metadata(model, video_processor, heads).items():
        onnx_program.model.metadata_props[name] = json.dumps(value, ensure_ascii=False)
    return onnx_program


def program_metadata(
    model: CoverForVideoClassification, video_processor: CoverVideoProcessor, heads: Sequence[str] | None = None
) -> dict[str, Any]:
    """What a user of a program needs to know. An ONNX program has each value as JSON, a .pt2 all of it, as
    `metadata.json`.

    `heads` has labels, modality and problem type of each head; `default_head` the name of the model's, or of the first
    where that is not exported; `patch_size` its height and width in pixels; `num_frames` those that the model was
    trained with; `tubelet_frames` those that make a token: a clip has a multiple of them, and an image is given so
    often; `only_size` the height and width of frames where there are no others, or null; `only_frames` the number of
    frames, likewise; `video_processor` the configuration that makes `pixel_values`, such as `image_mean`, `image_std`
    and `crop_size`.
    """
    heads = _checked_heads(model, heads)
    default = model.config.default_head
    processor = {name: value for name, value in video_processor.to_dict().items() if value is not None}
    return {
        "heads": {head: model.config.heads[head] for head in heads},
        "default_head": default if default in heads else heads[0],
        "patch_size": list(model.config.tubelet[1:]),
        "num_frames": model.config.num_frames,
        "tubelet_frames": model.config.tubelet[0],
        "only_frames": _only_frames(model),
        "only_size": None if (size := _only_size(model)) is None else list(size),
        "video_processor": processor,
    }


def _checked_heads(model: CoverForVideoClassification, heads: Sequence[str] | None) -> list[str]:
    if heads is None:
        return model.config.head_names
    if isinstance(heads, str) or not heads:
        raise ValueError(f"heads: expected a list of names of heads, one at least, got {heads!r}")
    for head in heads:
        model.config.get_head(head)
    return list(dict.fromkeys(heads))


def _check_fp32(model: CoverForVideoClassification) -> None:
    if model.dtype != torch.float32:
        raise ValueError(f"a program is exported in fp32, got a model in {model.dtype}: load it with dtype='float32'")


def check_onnx_is_installed() -> None:
    try:
        import onnx as onnx
        import onnxruntime as onnxruntime
        import onnxscript as onnxscript
    except ImportError as error:
        raise ImportError(
            f"{error.name} is not installed, it comes with `pip install modeling-cover[onnx]`"
        ) from error


# ---- Files ----


def save_program(
    path: str | os.PathLike,
    model: CoverForVideoClassification,
    video_processor: CoverVideoProcessor,
    heads: Sequence[str] | None = None,
) -> float:
    """Write a program, of the kind that the suffix of `path` tells, `.onnx` or `.pt2`, and check it against the model.

    A file is there only if it gives what the model gives. An ONNX program of more than about 1.5 GB has its weights in
    a second file, `<name>.onnx.data`.

    Args:
        path: of the file, replaced if it is there.
        model: in fp32, on the CPU, and as [`export_program`] takes it.
        video_processor: of the checkpoint, for the metadata.
        heads: whose logits it gives, in this order; by default all.

    Returns:
        the largest difference to what the model gives, on shapes that it was not exported with.

    Raises:
        ImportError: if an ONNX program is asked for, and the packages of the extra `onnx` are not installed.
        ValueError: as [`export_program`], if the model is not in fp32 on the CPU, no file can be at `path`, or an
            output differs from the model's by more than 1e-4.
    """
    path = Path(path)
    if path.suffix not in (ONNX_SUFFIX, PROGRAM_SUFFIX):
        raise ValueError(f"{path}: expected a name that ends in {ONNX_SUFFIX} or {PROGRAM_SUFFIX}")
    if path.is_dir() or next(parent for parent in path.absolute().parents if parent.exists()).is_file():
        raise ValueError(f"{path}: expected a file in a folder, there is something else of that name")
    _check_fp32(model)
    if model.device.type != "cpu":
        raise ValueError(
            f"a program is made for where its model is, and a file for the CPU, got a model on {model.device}"
        )
    if path.suffix == ONNX_SUFFIX:
        program = export_onnx(model, video_processor, heads)
    else:
        program = export_program(model, heads)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under its own name, by which an ONNX program refers to the file of its weights.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unchecked = Path(folder) / path.name
        if path.suffix == ONNX_SUFFIX:
            program.save(unchecked)
            run = onnx_runner(unchecked)
        else:
            metadata = json.dumps(program_metadata(model, video_processor, heads))
            torch.export.save(program, unchecked, extra_files={METADATA_NAME: metadata})
            run = torch.export.load(unchecked).module()
        difference = largest_difference(model, run)
        if not difference <= TOLERANCE:  # NaN is not
            raise ValueError(f"{path}: differs from the model by {difference:.1e}, expected at most {TOLERANCE:.0e}")
        # An older program goes before its weights do, so that none is ever beside another's.
        path.unlink(missing_ok=True)
        _weights_of(path).unlink(missing_ok=True)
        for file in (_weights_of(unchecked), unchecked):
            if file.exists():
                file.replace(path.with_name(file.name))
    return difference


def _weights_of(path: Path) -> Path:
    """Where the weights of a large ONNX program are."""
    return path.with_name(f"{path.name}.data")


def file_size(path: str | os.PathLike) -> int:
    """Bytes of a program, with those of a second file of weights."""
    return sum(file.stat().st_size for file in (Path(path), _weights_of(Path(path))) if file.exists())


def onnx_runner(path: str | os.PathLike) -> Callable[[torch.Tensor], Outputs]:
    """An ONNX program on the CPU, by onnxruntime: from pixel values to outputs by name."""
    check_onnx_is_installed()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(pixel_values: torch.Tensor) -> Outputs:
        outputs = session.run(names, {"pixel_values": pixel_values.cpu().numpy()})
        return dict(zip(names, map(torch.from_numpy, outputs), strict=True))

    return run


@torch.inference_mode()
def largest_difference(model: CoverForVideoClassification, run: Callable[[torch.Tensor], Outputs]) -> float:
    """Between a program's outputs and the model's: two images, a clip of the usual size, and three of an odd one;
    or clips of the usual size alone, where it takes no others."""
    config = model.config
    frames, rows, columns = config.tubelet
    usual = as_pair(config.image_size)
    odd = (rows, 3 * columns) if _only_size(model) is None else usual
    shapes = [(1, config.num_frames, *usual), (3, config.num_frames, *usual)]
    if _only_frames(model) is None:
        shapes = [(2, 1, *usual), shapes[0], (3, config.num_frames + frames, *odd)]
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch_size, num_frames, *size in bar(shapes, desc="comparing with the model", leave=False):
        clips = torch.randn(batch_size, num_frames, config.num_channels, *size, generator=generator)
        clips = clips.to(model.device, model.dtype)
        expected = model(clips, return_dict=True)
        seen = clips.expand(-1, frames, -1, -1, -1) if num_frames == 1 else clips
        for name, output in run(seen).items():
            head = name.removesuffix("_logits")
            ours = expected.pooler_output if name == "pooler_output" else expected.head_logits[head]
            differences.append((output.to(ours) - ours).abs().max())
    return torch.stack(differences).max().item()
