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
"""Files of Video Swin Transformers: torchvision's, and the original release's.

Both are pickles of tensors, by other names. What a model was built with is in the shapes of its tensors.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .conversion_cover import Weights, check_finite, check_names_and_shapes, check_tensors, load_tensors
from .video_swin_cover import VideoSwinConfig, VideoSwinModel, relative_position_index


# What both normalise pixels of 0 to 1 with.
VIDEO_SWIN_MEAN, VIDEO_SWIN_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

_BIASES, _INDEX = "relative_position_bias_table", "relative_position_index"
# torchvision, where modules of `features` are a stage's layers and what merges their tokens, in turn; and the release.
_NAMES = (
    (r"^(module\.)?backbone\.", ""),
    (r"^features\.(\d+)\.", lambda found: f"{int(found[1]) // 2}." + "merging." * (int(found[1]) % 2)),
    (r"^layers\.(\d+)\.blocks\.", r"\1."),
    (r"^layers\.(\d+)\.downsample\.", r"\1.merging."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.(0|fc1)\.", ".fc1."),
    (r"\.mlp\.(3|fc2)\.", ".fc2."),
    (r"^patch_embed\.proj\.", "embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^norm\.", "layernorm."),
    (r"^(head|(module\.)?cls_head\.fc_cls)\.", "classifier."),
)


@dataclass(frozen=True, kw_only=True)
class VideoSwinWeights:
    config: VideoSwinConfig
    encoder: Weights  # named as in `VideoSwinModel`
    classifier: Weights  # weight and bias, if there are any


def is_video_swin(path: str | os.PathLike) -> bool:
    """Whether a file of tensors is of a Video Swin.

    Raises:
        ValueError: if it cannot be read.
    """
    stored = _stored(path)
    return isinstance(stored, Mapping) and any(str(name).endswith(_BIASES) for name in stored)


def read_video_swin(path: str | os.PathLike) -> VideoSwinWeights:
    """Read a file of torchvision's or of the original release.

    Raises:
        ValueError: if it is damaged, or weights are missing, left over, of another shape or not finite.
    """
    stored = _stored(path)
    check_tensors(path, stored, integers={name for name in stored if str(name).endswith(_INDEX)})
    state = {_renamed(name): tensor for name, tensor in stored.items()}
    try:
        depths = _depths(state)
        config = _config(state, depths)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: not a Video Swin, as torchvision or the release has it: {error}") from error
    tokens = math.prod(config.window_size)
    indices = [state.pop(name) for name in list(state) if name.endswith(_INDEX)]
    is_whole = all(index.shape == (tokens, tokens) for index in indices)
    if not is_whole or not all(map(relative_position_index(tuple(config.window_size)).equal, indices)):
        raise ValueError(f"{path}: {_INDEX}: expected the places of a window of {list(config.window_size)} tokens")
    state = {_in_one_list(name, depths): tensor.float() for name, tensor in state.items()}
    classifier = {name.split(".")[1]: state.pop(name) for name in list(state) if name.startswith("classifier.")}
    with torch.device("meta"):
        expected = VideoSwinModel(config).state_dict()
    if classifier:
        labels = classifier["bias"].shape[:1] if "bias" in classifier else torch.Size([0])
        shapes = {"weight": (*labels, config.hidden_size), "bias": tuple(labels)}
        if {name: tuple(tensor.shape) for name, tensor in classifier.items()} != shapes:
            found = {name: tuple(tensor.shape) for name, tensor in classifier.items()}
            raise ValueError(f"{path}: its classifier: expected weight and bias of {shapes}, got {found}")
    check_names_and_shapes(str(path), state, expected)
    check_finite(path, {**state, **classifier})
    return VideoSwinWeights(config=config, encoder=state, classifier=classifier)


def _stored(path: str | os.PathLike) -> Any:
    checkpoint = load_tensors(path)
    return checkpoint.get("state_dict", checkpoint)


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _depths(state: Weights) -> list[int]:
    """Layers of each stage."""
    layers = {tuple(map(int, found.groups())) for name in state if (found := re.match(r"(\d+)\.(\d+)\.", name))}
    depths = Counter(stage for stage, _ in layers)
    if not layers or layers != {(stage, index) for stage in range(len(depths)) for index in range(depths[stage])}:
        raise ValueError(f"expected layers without a gap in stages without a gap, got {sorted(layers)}")
    return [depths[stage] for stage in range(len(depths))]


def _config(state: Weights, depths: list[int]) -> VideoSwinConfig:
    embed_dim, num_channels, *patch_size = state["embeddings.projection.weight"].shape
    return VideoSwinConfig(
        patch_size=patch_size,
        num_channels=num_channels,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=[state[f"{stage}.0.attention.{_BIASES}"].shape[1] for stage in range(len(depths))],
        window_size=_window(state[f"0.0.attention.{_BIASES}"].shape[0], state[f"0.0.attention.{_INDEX}"].shape[0]),
        mlp_ratio=state["0.0.fc1.weight"].shape[0] / embed_dim,
    )


def _window(distances: int, tokens: int) -> list[int]:
    """The window of so many tokens with so many distances between them, whose rows and columns are as many."""
    for side in range(1, math.isqrt(tokens) + 1):
        time = tokens // side**2
        if time * side**2 == tokens and (2 * time - 1) * (2 * side - 1) ** 2 == distances:
            return [time, side, side]
    raise ValueError(f"no window has {tokens} tokens and {distances} distances")


def _in_one_list(name: str, depths: list[int]) -> str:
    """The name in a model whose layers are in one list; what merges tokens is of the last layer before."""
    if (found := re.match(r"(\d+)\.(\d+|merging)\.(.+)", name)) is None:
        return name
    stage, index, rest = int(found[1]), found[2], found[3]
    before = sum(depths[:stage])
    return (
        f"layers.{before + depths[stage] - 1}.merging.{rest}"
        if index == "merging"
        else f"layers.{before + int(index)}.{rest}"
    )
