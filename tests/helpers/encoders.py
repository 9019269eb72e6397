# SPDX-License-Identifier: Apache-2.0
"""Tiny encoders of transformers, of each kind that there is an adapter of, as checkpoints of their own."""

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from modeling_cover import CoverConfig, CoverForVideoClassification
from modeling_cover.model.video_swin_cover import VideoSwinConfig
from tiny import perturb
from torch import nn
from torchvision.models.video.swin_transformer import SwinTransformer3d
from transformers import (
    AutoModel,
    AutoModelForVideoClassification,
    Dinov2Config,
    DINOv3ViTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    VideoMAEConfig,
    VideoPrismVisionConfig,
    ViTConfig,
    VivitConfig,
    VJEPA2Config,
)
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches


LABELS = ["lift", "pull", "push"]
HEADS = {"actions": {"labels": LABELS}, "things": {"labels": ["cup", "fork"], "modality": "image"}}
_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES = {**_LAYERS, "intermediate_size": 48, "image_size": 32, "patch_size": 16}
_PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}

VIDEO_ENCODERS: dict[str, PreTrainedConfig] = {
    "vjepa2": VJEPA2Config(
        **{**_LAYERS, "hidden_size": 48, "num_attention_heads": 2},
        **_PREDICTOR,
        crop_size=32,
        frames_per_clip=4,
        num_pooler_layers=1,
    ),
    "videomae": VideoMAEConfig(**_SIZES, num_frames=4),
    "vivit": VivitConfig(**_LAYERS, intermediate_size=48, image_size=32, num_frames=4),
    "videoprism_vision_model": VideoPrismVisionConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=36,
        num_frames=4,
        num_spatial_layers=2,
        num_temporal_layers=1,
    ),
    "video_swin": VideoSwinConfig(
        embed_dim=16,
        depths=[2, 2],
        num_heads=[4, 4],
        window_size=[2, 4, 4],
        mlp_ratio=1.5,
        image_size=32,
        num_frames=4,
        drop_path_rate=0.0,
    ),
}
# Of which transformers has classifiers of videos.
CLASSIFIERS = [kind for kind in VIDEO_ENCODERS if kind != "video_swin"]


class ImageEncoder(NamedTuple):
    config: PreTrainedConfig
    feature: Callable[
        [nn.Module, torch.Tensor], torch.Tensor
    ]  # of images (rows, 3, H, W), as its documentation has it


def _of_patches(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    patches = torch.stack([convert_image_to_patches(image, 16) for image in images])
    grid = torch.tensor([[size // 16 for size in images.shape[-2:]]] * len(images))
    return model(patches, torch.ones(patches.shape[:2]), grid).pooler_output


def _pooled(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images).pooler_output


def _class_token(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images).last_hidden_state[:, 0]


IMAGE_ENCODERS: dict[str, ImageEncoder] = {
    "vit": ImageEncoder(ViTConfig(**_SIZES), _class_token),
    "dinov2": ImageEncoder(Dinov2Config(**_LAYERS, image_size=28, patch_size=14), _pooled),
    "dinov3_vit": ImageEncoder(DINOv3ViTConfig(**_SIZES, num_register_tokens=2), _pooled),
    "siglip_vision_model": ImageEncoder(SiglipVisionConfig(**_SIZES), _pooled),
    "siglip2_vision_model": ImageEncoder(
        Siglip2VisionConfig(**_LAYERS, intermediate_size=48, num_patches=4, patch_size=16), _of_patches
    ),
}

CONFIGS = {**VIDEO_ENCODERS, **{name: encoder.config for name, encoder in IMAGE_ENCODERS.items()}}


SWIN_SIZES = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": [4, 3, 3]}


def torchvisions_video_swin(num_classes: int = len(LABELS)) -> nn.Module:
    """A tiny one of torchvision's, in which every parameter matters."""
    torch.manual_seed(0)
    return perturb(SwinTransformer3d([2, 4, 4], num_classes=num_classes, **SWIN_SIZES))


def size_of(kind: str) -> int:
    """Height and width, in pixels, that each takes."""
    return 36 if kind.startswith("videoprism") else 28 if kind == "dinov2" else 32


def save_encoder(
    folder: str | os.PathLike, kind: str, classifies: bool = False, labels: Sequence[str] = LABELS
) -> PreTrainedModel:
    """Save an encoder, or a classifier of videos that has it, and return it. Every parameter matters."""
    torch.manual_seed(0)
    config = type(CONFIGS[kind]).from_dict(CONFIGS[kind].to_dict())
    if classifies:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: index for index, name in enumerate(labels)}
    model = perturb((AutoModelForVideoClassification if classifies else AutoModel).from_config(config))
    model.save_pretrained(folder)
    return model


def model_of(kind: str, changes: dict[str, Any] | None = None, **options: Any) -> CoverForVideoClassification:
    """A model of a kind, with two heads, in which every parameter matters; `changes` are of its encoder's
    configuration."""
    torch.manual_seed(0)
    encoder = copy.deepcopy(CONFIGS[kind])
    for name, value in (changes or {}).items():
        setattr(encoder, name, value)
    config = CoverConfig(encoder=encoder, **{"heads": HEADS, "default_head": "actions", "num_frames": 4, **options})
    return perturb(CoverForVideoClassification(config))
