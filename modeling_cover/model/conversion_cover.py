# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Encoder weights from checkpoints of transformers' ViT and TimeSformer and of the original TimeSformer release.

Each reader names the encoder's parameters as `CoverModel` does, so that the model loads them strictly.
"""

import math
import os
import re
import zipfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from logging import LogRecord
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .configuration_cover import CoverConfig, patch_grid
from .embeddings_cover import resize_position_embeddings, resize_time_embeddings


logger = logging.get_logger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)
Weights = dict[str, torch.Tensor]

# Fields that the configurations of ViT, TimeSformer and CoVeR share, by the same names.
SHARED_FIELDS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "image_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
    "qkv_bias",
)

# transformers' TimeSformer, then the original release, to CoVeR. `qkv` is split afterwards.
TIMESFORMER_NAMES = (
    (r"^encoder\.layer\.", "layers."),
    (r"\battention\.attention\.qkv\.", "attention.qkv."),
    (r"\btemporal_attention\.attention\.qkv\.", "temporal_attention.qkv."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"\.intermediate\.dense\.", ".fc1."),
    (r"^(layers\.\d+)\.output\.dense\.", r"\1.fc2."),
)
ORIGINAL_NAMES = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^time_embed$", "embeddings.time_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "layers."),
    (r"\.mlp\.", "."),
    (r"\.temporal_norm1\.", ".temporal_layernorm."),
    (r"\.temporal_attn\.", ".temporal_attention."),
    (r"\.temporal_fc\.", ".temporal_dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.", ".attention."),
    (r"\.proj\.(?=weight|bias)", ".o_proj."),
    (r"^norm\.", "layernorm."),
)


def is_original_release(path: str | os.PathLike) -> bool:
    """Whether `path` names a file of tensors, as the original releases have it, rather than a folder or Hub id."""
    return str(path).endswith((".pyth", ".pth", ".pt"))


# What the configuration of a model of the release is read from, and the axes of each.
RELEASE_SHAPES = {
    "pos_embed": 3,
    "time_embed": 3,
    "patch_embed.proj.weight": 4,
    "blocks.0.mlp.fc1.weight": 2,
    "head.weight": 2,
    "head.bias": 1,
    "blocks.0.temporal_attn.qkv.weight": 2,
}
RELEASE_HEAD_WIDTH = 64  # of an attention head, in every model of the release


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """An encoder read from a checkpoint of another architecture."""

    source: str  # where it was read from
    config: dict[str, Any]  # fields of `CoverConfig`
    state_dict: Weights  # parameters, named as in `CoverModel`
    grid: tuple[int, int]  # rows and columns of patches that the position embeddings are for
    derived: tuple[str, ...] = ()  # what was copied or zeroed rather than read, in words
    unused: tuple[str, ...] = ()  # names in the checkpoint of what was left out
    labels: list[str] = field(default_factory=list)  # of the classifier, in order; empty where there is none
    classifier: Weights = field(default_factory=dict)  # its `weight` and `bias`; empty where there is none


def encoder_weights_from_vit(path: str | os.PathLike, num_frames: int, revision: str | None = None) -> EncoderWeights:
    """Read a ViT; see `CoverForVideoClassification.from_image_checkpoint`."""
    vit, unused, missing = _load(AutoModel, path, "vit", may_lack="pooler.", revision=revision)
    state = {name.replace(".mlp.", "."): tensor for name, tensor in vit.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    unused = sorted(
        {*unused, *(name for name in vit.state_dict() if name.startswith("pooler.") and name not in missing)}
    )
    hidden_size = vit.config.hidden_size
    for name, tensor in list(state.items()):
        for spatial, temporal in (
            (".attention.", ".temporal_attention."),
            (".layernorm_before.", ".temporal_layernorm."),
        ):
            if spatial in name:
                state[name.replace(spatial, temporal)] = tensor.clone()
    for index in range(vit.config.num_hidden_layers):
        state[f"layers.{index}.temporal_dense.weight"] = torch.zeros(hidden_size, hidden_size)
        state[f"layers.{index}.temporal_dense.bias"] = torch.zeros(hidden_size)
    state["embeddings.time_embeddings"] = torch.zeros(1, num_frames, hidden_size)
    config = {**_shared_fields(vit.config), "num_frames": num_frames}
    return EncoderWeights(
        source=str(path),
        config=config,
        state_dict=state,
        grid=patch_grid(config["image_size"], config["patch_size"]),
        derived=(
            "temporal_attention and temporal_layernorm (copies of attention and layernorm_before)",
            "temporal_dense and time_embeddings (zeros)",
        ),
        unused=tuple(unused),
    )


def encoder_weights_from_timesformer(path: str | os.PathLike, revision: str | None = None) -> EncoderWeights:
    """Read a TimeSformer; see `CoverForVideoClassification.from_timesformer`."""
    if is_original_release(path):
        check_revision(path, revision)
        return _from_original_timesformer(path)
    model, unused, _ = _load(AutoModelForVideoClassification, path, "timesformer", revision=revision)
    if model.config.attention_type != "divided_space_time":
        raise ValueError(f"{path}: expected attention_type 'divided_space_time', got '{model.config.attention_type}'")
    state, classifier = model.state_dict(), {}
    for name in ("weight", "bias"):
        classifier[name] = state.pop(f"classifier.{name}")
    state = {name.removeprefix("timesformer."): tensor for name, tensor in state.items()}
    config = {
        **_shared_fields(model.config),
        "num_frames": model.config.num_frames,
        "drop_path_rate": model.config.drop_path_rate,
    }
    return EncoderWeights(
        source=str(path),
        config=config,
        state_dict=_split_qkv(_rename(state, TIMESFORMER_NAMES)),
        grid=patch_grid(config["image_size"], config["patch_size"]),
        unused=tuple(sorted(unused)),
        labels=[model.config.id2label[index] for index in range(model.config.num_labels)],
        classifier=classifier,
    )


def _from_original_timesformer(path: str | os.PathLike) -> EncoderWeights:
    """Read a `.pyth` file of the original release, whose configuration is in the shapes of its tensors."""
    checkpoint = load_tensors(path)
    state = checkpoint.get("model_state", checkpoint)
    check_tensors(path, state)
    state = {name.removeprefix("module.").removeprefix("model."): tensor for name, tensor in state.items()}
    if missing := [name for name in RELEASE_SHAPES if name not in state]:
        raise ValueError(f"{path}: not a TimeSformer with divided space-time attention, {missing} are missing")
    _check_release_shapes(path, state)
    classifier = {"weight": state.pop("head.weight").float(), "bias": state.pop("head.bias").float()}
    hidden_size, num_channels, *patch_size = state["patch_embed.proj.weight"].shape
    grid_side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    config = {
        "hidden_size": hidden_size,
        "num_attention_heads": hidden_size // RELEASE_HEAD_WIDTH,
        "num_hidden_layers": len(_blocks(state)),
        "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
        "layer_norm_eps": 1e-6,
        "image_size": [grid_side * size for size in patch_size],
        "patch_size": patch_size,
        "num_channels": num_channels,
        "num_frames": state["time_embed"].shape[1],
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }
    state = _split_qkv(_rename({name: tensor.float() for name, tensor in state.items()}, ORIGINAL_NAMES))
    return EncoderWeights(
        source=str(path),
        config=config,
        state_dict=state,
        grid=(grid_side, grid_side),
        unused=tuple(sorted(set(checkpoint) - {"model_state"})) if "model_state" in checkpoint else (),
        labels=[f"LABEL_{index}" for index in range(classifier["bias"].shape[0])],
        classifier=classifier,
    )


def load_tensors(path: str | os.PathLike) -> Mapping[str, Any]:
    """What `torch.save` has written: of tensors and plain values alone, and no larger than the file."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a file")
    if zipfile.is_zipfile(path):
        _check_uncompressed(path)
    # weights_only: such a file is a pickle, and must not run code.
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle ends in any of them
        raise ValueError(f"{path}: expected a file of tensors only, as torch.save writes it") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(checkpoint).__name__}")
    return checkpoint


def _check_uncompressed(path: str | os.PathLike) -> None:
    """Raise a `ValueError` for an archive that unpacks to more than it is: torch.save compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path}: expected a file of tensors only, as torch.save writes it") from error
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > os.path.getsize(path):
        raise ValueError(f"{path}: its content is compressed, expected a file of tensors as torch.save writes it")


def check_tensors(path: str | os.PathLike, state: Any, integers: Container[str] = ()) -> None:
    """Raise a `ValueError` unless `state` has tensors of numbers by name, no larger than the file that they are
    from. Those called `integers` need not be floats."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{path}: expected tensors by name, got {type(tensor).__name__} under {name!r}")
        is_number = tensor.is_floating_point() or name in integers
        if not is_number or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{path}: {name}: expected plain numbers, got {tensor.dtype}, {tensor.layout}")
    # A tensor of any size may repeat a single number.
    taken, size = sum(tensor.nbytes for tensor in state.values()), os.path.getsize(path)
    if taken > size:
        raise ValueError(f"{path}: its tensors would take {taken} bytes, and the file has {size}")


def _check_release_shapes(path: str | os.PathLike, state: Weights) -> None:
    """Raise a `ValueError` unless a configuration can be read from the shapes of a model of the release."""
    for name, axes in RELEASE_SHAPES.items():
        if state[name].ndim != axes or state[name].numel() == 0:
            raise ValueError(f"{path}: {name}: expected {axes} axes, got the shape {tuple(state[name].shape)}")
    hidden_size, patches = state["patch_embed.proj.weight"].shape[0], state["pos_embed"].shape[1] - 1
    if hidden_size % RELEASE_HEAD_WIDTH:
        raise ValueError(f"{path}: expected a width that is a multiple of {RELEASE_HEAD_WIDTH}, got {hidden_size}")
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise ValueError(
            f"{path}: pos_embed: expected those of a square of patches and of one token, got {patches + 1}"
        )
    classes = state["head.bias"].shape[0]
    if (shape := tuple(state["head.weight"].shape)) != (classes, hidden_size):
        raise ValueError(f"{path}: head.weight: expected the shape {(classes, hidden_size)}, got {shape}")
    blocks = _blocks(state)
    if blocks != {str(index) for index in range(len(blocks))}:
        raise ValueError(f"{path}: expected blocks from 0 on without a gap, got {sorted(blocks)}")


def _blocks(state: Weights) -> set[str]:
    return {name.split(".")[1] for name in state if name.startswith("blocks.")}


def _load(
    auto_class: type,
    path: str | os.PathLike,
    model_type: str,
    may_lack: str | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, set[str], set[str]]:
    """Load a whole checkpoint of `model_type` in fp32, and the names of its weights that are not used."""
    found = stored_config(path, revision).model_type
    if found != model_type:
        raise ValueError(f"{path}: expected a checkpoint of model type '{model_type}', got '{found}'")
    try:
        options = {"dtype": torch.float32, "output_loading_info": True, **where_stored(revision)}
        with without_load_report():
            model, info = auto_class.from_pretrained(path, **options)
    except Exception as error:  # as of a configuration; and a safetensors file has its own
        raise ValueError(f"{path}: its weights cannot be loaded: {error}") from error
    missing = sorted(name for name in info["missing_keys"] if may_lack is None or not name.startswith(may_lack))
    if missing or info["mismatched_keys"]:
        raise ValueError(f"{path}: weights are missing or of another shape: {missing or info['mismatched_keys']}")
    return model, set(info["unexpected_keys"]), set(info["missing_keys"])


@contextmanager
def without_load_report() -> Iterator[None]:
    """Inside, transformers does not print its table of weights that are missing or not used: whoever loads with
    `output_loading_info` tells that, or refuses it."""

    def is_another(record: LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    of_loading = logging.get_logger(PreTrainedModel.__module__)
    of_loading.addFilter(is_another)
    try:
        yield
    finally:
        of_loading.removeFilter(is_another)


def stored_config(path: str | os.PathLike, revision: str | None) -> PreTrainedConfig:
    """The configuration of a checkpoint of transformers.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    check_revision(path, revision)
    try:
        return AutoConfig.from_pretrained(path, **where_stored(revision))
    except Exception as error:  # transformers has one for each way in which a file may be damaged
        raise ValueError(
            f"{path}: expected a checkpoint of transformers, and it has no configuration: {error}"
        ) from error


def where_stored(revision: str | None) -> dict[str, Any]:
    """What `from_pretrained` is told of where a checkpoint is; no code of it is run."""
    return {"trust_remote_code": False, **({} if revision is None else {"revision": revision})}


def _shared_fields(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in SHARED_FIELDS}


def _rename(state: Weights, names: tuple[tuple[str, str], ...]) -> Weights:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _split_qkv(state: Weights) -> Weights:
    """Split each fused query-key-value projection (3 * D, ...) into the three."""
    split = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            for part, chunk in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                split[name.replace(".qkv.", f".{part}.")] = chunk.clone()
        else:
            split[name] = tensor
    return split


def check_config_fields(kwargs: Mapping[str, Any]) -> None:
    """Raise a `ValueError` unless `kwargs` are fields of `CoverConfig`, which would keep a misspelt one in silence."""
    if unknown := sorted(set(kwargs) - {field.name for field in fields(CoverConfig)} - {"attn_implementation"}):
        raise ValueError(f"{unknown} are not fields of CoverConfig")


def check_revision(place: str | os.PathLike, revision: str | None) -> None:
    """Raise a `ValueError` if a revision is asked of what is no repository of the Hub."""
    if revision is not None and (os.path.exists(place) or is_original_release(place)):
        raise ValueError(f"{place}: revision {revision!r} has no effect, as it is no repository of the Hub")


def _check_weights(weights: EncoderWeights, expected: Weights) -> None:
    """Raise a `ValueError` unless an encoder has the names and shapes of `expected`, and all of its numbers are
    finite."""
    check_names_and_shapes(weights.source, weights.state_dict, expected)
    check_finite(weights.source, {**weights.state_dict, **weights.classifier})


def check_finite(source: str | os.PathLike, state: Weights) -> None:
    if names := sorted(name for name, weight in state.items() if not torch.isfinite(weight).all()):
        raise ValueError(f"{source}: weights are not finite, {names}")


def check_names_and_shapes(source: str, state: Weights, expected: Weights) -> None:
    """Raise a `ValueError` unless `state` has the names and shapes of `expected`."""
    wrong = {
        "missing": sorted(expected.keys() - state.keys()),
        "left over": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & state.keys() if state[name].shape != expected[name].shape
        ),
    }
    if found := {what: names for what, names in wrong.items() if names}:
        raise ValueError(f"{source}: weights do not fit, {found}")


def model_with_encoder_weights(
    model_class: type[Model], config: CoverConfig, weights: EncoderWeights, classified: tuple[str, ...] = ()
) -> Model:
    """A `CoverForVideoClassification` of this configuration whose encoder has these weights; what is new is logged.

    Args:
        classified: names of the heads whose weights the checkpoint brings.
    """
    with torch.device("meta"):  # the shapes alone, as what a damaged file says may be of any size
        stored = model_class(CoverConfig(**weights.config, heads=config.heads, default_head=config.default_head))
    _check_weights(weights, stored.cover.state_dict())
    model = model_class(config)
    embeddings = model.cover.embeddings
    state = dict(weights.state_dict)
    state["embeddings.position_embeddings"] = resize_position_embeddings(
        state["embeddings.position_embeddings"], weights.grid, embeddings.grid
    )
    state["embeddings.time_embeddings"] = resize_time_embeddings(
        state["embeddings.time_embeddings"], config.num_frames
    )
    check_names_and_shapes(weights.source, state, model.cover.state_dict())
    model.cover.load_state_dict(state)
    model.to(config.dtype or torch.float32)
    new = [f"classifiers.{name}" for name in config.head_names if name not in classified]
    logger.warning(
        f"Encoder loaded from {weights.source}.\n"
        f"- copied or zeroed: {', '.join(weights.derived) or 'nothing'}\n"
        f"- newly initialised, to be trained: {', '.join(new) or 'nothing'}\n"
        f"- in the checkpoint and not used: {', '.join(weights.unused) or 'nothing'}"
    )
    return model.eval()
