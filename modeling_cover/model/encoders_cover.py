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
"""Encoders of transformers other than ours, by kind: how each is given clips, and what of it is the feature.

A kind that is not here is added by [`register_encoder`].

Axes: B clips   T frames of a clip   C channels   H, W height and width   S tokens   D hidden size
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)
from transformers.utils import ModelOutput

from .video_swin_cover import VideoSwinConfig


class ClassTokenPooler(nn.Module):
    def forward(self, outputs: ModelOutput) -> torch.Tensor:
        return outputs.last_hidden_state[:, 0]


class MeanPooler(nn.Module):
    """The mean of all tokens, and a LayerNorm of it where there is one."""

    def __init__(self, norm: nn.Module | None = None):
        super().__init__()
        self.norm = norm

    def forward(self, outputs: ModelOutput) -> torch.Tensor:
        mean = outputs.last_hidden_state.mean(dim=1)
        return mean if self.norm is None else self.norm(mean)


class OwnPooler(nn.Module):
    """What the encoder itself makes of its tokens."""

    def forward(self, outputs: ModelOutput) -> torch.Tensor:
        return outputs.pooler_output


class AttentivePooler(nn.Module):
    """Attention of a learnt query to all tokens, of the class that the encoder's own classifier has."""

    def __init__(self, pooler: nn.Module, norm: nn.Module | None = None):
        super().__init__()
        self.pooler = pooler
        self.norm = norm

    def forward(self, outputs: ModelOutput) -> torch.Tensor:
        pooled = self.pooler(outputs.last_hidden_state)
        pooled = pooled[0] if isinstance(pooled, tuple) else pooled
        pooled = pooled.flatten(1)
        return pooled if self.norm is None else self.norm(pooled)


def _frames_and_patch(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Of configurations with a `tubelet_size` in frames, if any, and a `patch_size`."""
    patch = config.patch_size
    return getattr(config, "tubelet_size", 1), *((patch, patch) if isinstance(patch, int) else patch)


def _image_size(config: PreTrainedConfig) -> tuple[int, int]:
    size = config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _num_hidden_layers(config: PreTrainedConfig) -> int:
    return config.num_hidden_layers


def _none_before(config: PreTrainedConfig) -> int:
    return 0


def _class_token_before(config: PreTrainedConfig) -> int:
    return 1


def _as_it_is(encoder: PreTrainedModel) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class EncoderAdapter:
    """What has to be known of a kind of encoder.

    Attributes:
        poolers: what makes a feature, (rows, D), of the encoder's outputs, by a name that `config.encoder_pooling` may
            have; the first is the default.
        layers: the lists of layers within the encoder, in the order in which a clip goes through them.
        input_name: the argument of its `forward` that pixels are.
        takes_frames: whether it takes images, (rows, C, H, W): then each frame is a row, and a clip's feature is made
            of theirs by a `CoverFramePooler`. Otherwise it takes clips, (B, T, C, H, W).
        inputs: arguments of its `forward` from those pixels, in place of `input_name`.
        options: further arguments of its `forward`.
        tubelet: frames, rows and columns of pixels that make a token.
        image_size: height and width, in pixels, that it was made for.
        num_frames: the field of its configuration for the frames of a clip; None if it takes images.
        size_field: that for height and width, if it takes frames of one size alone: a square's.
        attention: the names, in a layer, of what makes queries and values: what LoRA adapts by default.
        num_layers: how many there are in `layers`.
        prepare: changes the encoder that was built: leaves out what has no part in the feature.
        classifier: the names, in the model of its kind that classifies videos, of what is in the pooler.
        normalisation: what is done to pixels, as a processor of transformers says it, for checkpoints without one.
        attends: for each of `layers`, the tokens among which its attention is: those of a "clip", of a "frame", or of
            a patch's "track" through time. Attention rollout needs it.
        tokens_before: how many tokens come before those of patches.
        patches_of_a_token: how many patches are in a token, layer by layer; None if it is one.
        traces_any_size: whether torch.export makes one program of it for clips of any frames and size.
        pooling_attention: how the names end, in a `CoverEncoderModel`, of what pools tokens by attention: each returns
            its output and its maps.
    """

    poolers: Mapping[str, Callable[[PreTrainedConfig], nn.Module]]
    layers: tuple[str, ...]
    input_name: str = "pixel_values"
    takes_frames: bool = False
    inputs: Callable[[PreTrainedConfig, torch.Tensor], dict[str, torch.Tensor]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tubelet: Callable[[PreTrainedConfig], tuple[int, int, int]] = _frames_and_patch
    image_size: Callable[[PreTrainedConfig], tuple[int, int]] = _image_size
    num_frames: str | None = "num_frames"
    size_field: str | None = None
    attention: tuple[str, ...] = ("q_proj", "v_proj")
    num_layers: Callable[[PreTrainedConfig], int] = _num_hidden_layers
    prepare: Callable[[PreTrainedModel], None] = _as_it_is
    classifier: Mapping[str, str] = field(default_factory=dict)
    normalisation: Mapping[str, Any] = field(default_factory=dict)
    attends: tuple[str, ...] = ()
    tokens_before: Callable[[PreTrainedConfig], int] = _none_before
    pooling_attention: tuple[str, ...] = ()
    patches_of_a_token: Callable[[PreTrainedConfig], list[int]] | None = None
    traces_any_size: bool = True

    def __post_init__(self):
        if self.attends and (len(self.attends) != len(self.layers) or set(self.attends) - {"clip", "frame", "track"}):
            raise ValueError(
                f"attends: expected 'clip', 'frame' or 'track' for each of the layers {list(self.layers)}, got "
                f"{list(self.attends)}"
            )

    def arguments(self, config: PreTrainedConfig, pixels: torch.Tensor) -> dict[str, Any]:
        """Of the encoder's `forward`."""
        inputs = {self.input_name: pixels} if self.inputs is None else self.inputs(config, pixels)
        return {**inputs, **self.options}

    def new_pooler(self, config: PreTrainedConfig, name: str | None) -> nn.Module:
        """The pooler of this name, newly initialised; by default the first.

        Raises:
            ValueError: if there is none.
        """
        name = next(iter(self.poolers)) if name is None else name
        if name not in self.poolers:
            raise ValueError(
                f"encoder_pooling: expected one of {list(self.poolers)} of a {config.model_type}, got {name!r}"
            )
        return self.poolers[name](config)


def _layer_norm(config: PreTrainedConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size)


def _of_videomae(config: PreTrainedConfig) -> nn.Module:
    return MeanPooler(_layer_norm(config)) if config.use_mean_pooling else ClassTokenPooler()


def _attentive_of_vjepa2(config: PreTrainedConfig) -> nn.Module:
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    return AttentivePooler(VJEPA2AttentivePooler(config))


def _attentive_of_videoprism(config: PreTrainedConfig) -> nn.Module:
    from transformers.models.videoprism.modeling_videoprism import (
        VideoPrismLayerNorm,
        VideoPrismMultiheadAttentionPoolingHead,
    )

    norm = VideoPrismLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    return AttentivePooler(VideoPrismMultiheadAttentionPoolingHead(config), norm)


def _without_mask_token(encoder: PreTrainedModel) -> None:
    mask_token = encoder.embeddings.mask_token  # of pre-training, and without a gradient
    if mask_token is not None:
        mask_token.requires_grad_(False)


def _without_predictor(encoder: PreTrainedModel) -> None:
    encoder.predictor = nn.Identity()  # of pre-training


def _without_pooler(encoder: PreTrainedModel) -> None:
    encoder.pooler = None


def _videomae_of_any_size(encoder: PreTrainedModel) -> None:
    from .resized_embeddings_cover import AnySizeVideoMAEEmbeddings, AnySizeVideoMAEPatches

    # The same weights, and another forward pass.
    encoder.embeddings.__class__ = AnySizeVideoMAEEmbeddings
    encoder.embeddings.patch_embeddings.__class__ = AnySizeVideoMAEPatches


def _vivit_of_any_size(encoder: PreTrainedModel) -> None:
    from .resized_embeddings_cover import AnySizeVivitEmbeddings

    _without_pooler(encoder)
    encoder.embeddings.__class__ = AnySizeVivitEmbeddings


def _patches_in_rows(config: PreTrainedConfig, frames: torch.Tensor) -> dict[str, torch.Tensor]:
    """Patches (rows, S, C * patch * patch) as SigLIP 2 takes images of any size, the channels last."""
    patch = config.patch_size
    rows, columns = frames.shape[-2] // patch, frames.shape[-1] // patch
    patches = frames.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch)).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": patches.flatten(3).flatten(1, 2),
        "pixel_attention_mask": torch.ones(frames.shape[0], rows * columns, device=frames.device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=frames.device).expand(frames.shape[0], 2),
    }


def _size_of_patches(config: PreTrainedConfig) -> tuple[int, int]:
    side = math.isqrt(config.num_patches) * config.patch_size
    return side, side


def _tubelet(config: PreTrainedConfig) -> tuple[int, int, int]:
    return tuple(config.tubelet_size)


def _adapter_of_images(**options: Any) -> EncoderAdapter:
    return EncoderAdapter(**{"takes_frames": True, "num_frames": None, "attends": ("frame",), **options})


_IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
_HALF = {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD}
_CLASS_TOKEN = {"class_token": lambda config: ClassTokenPooler()}
_MEAN = {"mean": lambda config: MeanPooler()}
_OWN = {"own": lambda config: OwnPooler()}
_RESIZING = {"interpolate_pos_encoding": True}

ENCODERS: dict[str, EncoderAdapter] = {
    "vjepa2": EncoderAdapter(
        poolers={**_MEAN, "attentive": _attentive_of_vjepa2},
        layers=("encoder.layer",),
        input_name="pixel_values_videos",
        options={"skip_predictor": True},
        num_frames="frames_per_clip",
        image_size=lambda config: (config.crop_size, config.crop_size),
        size_field="crop_size",
        attention=("query", "value"),
        prepare=_without_predictor,
        classifier={"pooler": "pooler"},
        normalisation=_IMAGENET,
        attends=("clip",),
        pooling_attention=("self_attn", "cross_attn"),
    ),
    "videomae": EncoderAdapter(
        poolers={"default": _of_videomae},
        layers=("encoder.layer",),
        attention=("query", "value"),
        prepare=_videomae_of_any_size,
        classifier={"norm": "fc_norm"},
        normalisation=_IMAGENET,
        attends=("clip",),
    ),
    "vivit": EncoderAdapter(
        poolers=_CLASS_TOKEN,
        layers=("layers",),
        tubelet=_tubelet,
        prepare=_vivit_of_any_size,
        normalisation={**_HALF, "rescale_factor": 1 / 127.5, "offset": True},
        attends=("clip",),
        tokens_before=_class_token_before,
    ),
    "videoprism_vision_model": EncoderAdapter(
        poolers={**_MEAN, "attentive": _attentive_of_videoprism},
        layers=("spatial_layers", "temporal_layers"),
        num_layers=lambda config: config.num_spatial_layers + config.num_temporal_layers,
        input_name="pixel_values_videos",
        options=_RESIZING,
        tubelet=_tubelet,
        classifier={"pooler": "head", "norm": "head_layernorm"},
        normalisation={**_HALF, "do_normalize": False},
        attends=("frame", "track"),
        pooling_attention=("pooler.pooler",),
    ),
    VideoSwinConfig.model_type: EncoderAdapter(
        poolers=_MEAN,
        layers=("layers",),
        tubelet=lambda config: tuple(config.patch_size),
        attention=("qkv",),
        normalisation=_IMAGENET,
        patches_of_a_token=lambda config: [
            4**stage for stage, depth in enumerate(config.depths) for _ in range(depth)
        ],
        traces_any_size=False,  # windows are cut to the clip
    ),
    "vit": _adapter_of_images(
        poolers=_CLASS_TOKEN,
        layers=("layers",),
        options=_RESIZING,
        prepare=_without_pooler,
        normalisation=_HALF,
        tokens_before=_class_token_before,
    ),
    "dinov2": _adapter_of_images(
        poolers=_CLASS_TOKEN,
        layers=("encoder.layer",),
        prepare=_without_mask_token,
        normalisation=_IMAGENET,
        tokens_before=_class_token_before,
    ),
    "dinov3_vit": _adapter_of_images(
        poolers=_CLASS_TOKEN,
        layers=("model.layer",),
        prepare=_without_mask_token,
        normalisation=_IMAGENET,
        tokens_before=lambda config: 1 + config.num_register_tokens,
    ),
    "siglip_vision_model": _adapter_of_images(
        poolers=_OWN,
        layers=("encoder.layers",),
        options=_RESIZING,
        normalisation=_HALF,
        pooling_attention=("encoder.head.attention",),
    ),
    "siglip2_vision_model": _adapter_of_images(
        poolers=_OWN,
        layers=("encoder.layers",),
        inputs=_patches_in_rows,
        image_size=_size_of_patches,
        normalisation=_HALF,
        pooling_attention=("encoder.head.attention",),
    ),
}


def register_encoder(model_type: str, adapter: EncoderAdapter) -> None:
    """Let models be built on a kind of encoder of transformers.

    Raises:
        ValueError: if there is an adapter of that kind already.
    """
    if model_type in ENCODERS:
        raise ValueError(f"there is an adapter of {model_type!r} already")
    ENCODERS[model_type] = adapter


def encoder_adapter(config: PreTrainedConfig) -> EncoderAdapter:
    """The adapter of an encoder of this configuration.

    Raises:
        ValueError: if there is none; it shows how to add one.
    """
    if config.model_type not in ENCODERS:
        raise ValueError(
            f"encoder: there is no adapter of model type {config.model_type!r}, but of {sorted(ENCODERS)}. One is added "
            f'by register_encoder("{config.model_type}", EncoderAdapter(poolers={{"mean": lambda config: MeanPooler()}}, '
            'layers=("encoder.layer",))), see modeling_cover.model.encoders_cover'
        )
    return ENCODERS[config.model_type]


def vision_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the encoder of images or videos within one of several encoders."""
    return getattr(config, "vision_config", None) or config


def as_tubelets(clips: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Clips that an encoder takes: an image, which is a clip of one frame, as often as makes one token.

    Raises:
        ValueError: if the frames, the height or the width are no whole number of tokens.
    """
    frames = encoder_adapter(config).tubelet(config)[0]
    if clips.ndim != 5:
        raise ValueError(
            f"pixel_values must be (batch_size, num_frames, num_channels, height, width), got {tuple(clips.shape)}"
        )
    check_size(config, clips.shape[1], tuple(clips.shape[-2:]))
    return clips.expand(-1, frames, -1, -1, -1) if clips.shape[1] == 1 else clips


def check_size(config: PreTrainedConfig, num_frames: int, size: int | tuple[int, int]) -> None:
    """Raise a `ValueError` unless an encoder takes clips of so many frames of this height and width, in pixels."""
    adapter, (height, width) = encoder_adapter(config), (size, size) if isinstance(size, int) else size
    frames, rows, columns = adapter.tubelet(config)
    if num_frames != 1 and (num_frames == 0 or num_frames % frames):
        raise ValueError(
            f"a {config.model_type} takes images, or clips of a multiple of {frames} frames, got {num_frames} frames"
        )
    if height % rows or width % columns or not height or not width:
        raise ValueError(
            f"a {config.model_type} takes frames in whole patches of {rows}x{columns} pixels, got {height}x{width}"
        )
    if adapter.size_field is not None and (height, width) != (own := adapter.image_size(config)):
        raise ValueError(
            f"this {config.model_type} has positions for frames of {own[0]}x{own[1]} alone, got {height}x{width}: "
            "from_encoder(..., image_size=...) makes one of another size"
        )
