# SPDX-License-Identifier: Apache-2.0
"""Encoders of transformers in two sizes, with random weights: tiny, and as published. And what a clip costs them.

A published size is what its checkpoint's class in transformers has by default, which its documentation names; fields
that differ from it are given here, and where they were read.
"""

from collections.abc import Callable

import torch
from modeling_cover import CoverConfig, CoverForVideoClassification
from modeling_cover.model.encoders_cover import ENCODERS
from modeling_cover.model.video_swin_cover import VideoSwinConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Dinov2Config,
    DINOv3ViTConfig,
    PreTrainedConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    VideoMAEConfig,
    VideoPrismVisionConfig,
    ViTConfig,
    VivitConfig,
    VJEPA2Config,
)


OURS = "cover"
HEADS = {"clips": {"labels": ["yes", "no"]}}

# Of clips of 2 frames of 40 x 40 pixels, as large as the quickstart draws them. Small encoders learn faster from
# random weights that are larger than the usual.
TINY_FRAMES, TINY_SIZE, TINY_PATCH = 2, 40, 10
_WIDTH = {"hidden_size": 64, "num_attention_heads": 4, "initializer_range": 0.2}
_LAYERS = {**_WIDTH, "num_hidden_layers": 2}
_PATCHES = {**_LAYERS, "intermediate_size": 128, "patch_size": TINY_PATCH}
_FRAMES = {**_PATCHES, "image_size": TINY_SIZE}
_TUBELET = [2, TINY_PATCH, TINY_PATCH]
_PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}

# By model type, all that there is an adapter of.
TINY: dict[str, Callable[[], PreTrainedConfig]] = {
    "vjepa2": lambda: VJEPA2Config(
        **{**_LAYERS, **_PREDICTOR, "num_attention_heads": 2, "patch_size": TINY_PATCH},
        mlp_ratio=2,
        crop_size=TINY_SIZE,
        frames_per_clip=TINY_FRAMES,
        num_pooler_layers=1,
    ),
    "videomae": lambda: VideoMAEConfig(**_FRAMES, num_frames=TINY_FRAMES),
    "vivit": lambda: VivitConfig(
        **_LAYERS, intermediate_size=128, image_size=TINY_SIZE, num_frames=TINY_FRAMES, tubelet_size=_TUBELET
    ),
    # It sees motion only by attention of a patch to itself in other frames, so a frame is one patch, and it is wider.
    "videoprism_vision_model": lambda: VideoPrismVisionConfig(
        hidden_size=128,
        num_attention_heads=8,
        intermediate_size=256,
        image_size=TINY_SIZE,
        num_frames=TINY_FRAMES,
        tubelet_size=[1, TINY_SIZE, TINY_SIZE],
        num_spatial_layers=1,
        num_temporal_layers=2,
    ),
    "video_swin": lambda: VideoSwinConfig(
        embed_dim=32,
        depths=[2, 2],
        num_heads=[4, 4],
        window_size=[2, 5, 5],
        mlp_ratio=2,
        image_size=TINY_SIZE,
        num_frames=TINY_FRAMES,
        initializer_range=0.2,
        drop_path_rate=0.0,
    ),
    "vit": lambda: ViTConfig(**_FRAMES),
    "dinov2": lambda: Dinov2Config(**_LAYERS, mlp_ratio=2, image_size=TINY_SIZE, patch_size=TINY_PATCH),
    "dinov3_vit": lambda: DINOv3ViTConfig(**_FRAMES),
    "siglip_vision_model": lambda: SiglipVisionConfig(**_FRAMES),
    "siglip2_vision_model": lambda: Siglip2VisionConfig(**_PATCHES, num_patches=(TINY_SIZE // TINY_PATCH) ** 2),
}

PUBLISHED: dict[str, Callable[[], PreTrainedConfig | None]] = {
    "facebook/timesformer-base-finetuned-k400": lambda: (
        None
    ),  # it becomes an encoder of ours, which is a Base by default
    "facebook/vjepa2-vitl-fpc64-256": VJEPA2Config,
    "MCG-NJU/videomae-base": VideoMAEConfig,
    "google/vivit-b-16x2-kinetics400": VivitConfig,
    "google/videoprism-base-f16r288": VideoPrismVisionConfig,
    # torchvision's file: Base, which its models/video/swin_transformer.py says.
    "swin3d_b_22k-7c6ae6fa.pth": lambda: VideoSwinConfig(
        embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]
    ),
    "google/vit-base-patch16-224-in21k": ViTConfig,
    "facebook/dinov2-base": Dinov2Config,
    # By default transformers has ViT-S/16. Base is 768 wide with 12 heads, and all have 4 registers: DINOv3's
    # dinov3/hub/backbones.py.
    "facebook/dinov3-vitb16-pretrain-lvd1689m": lambda: DINOv3ViTConfig(
        hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_register_tokens=4
    ),
    # Its configuration is a SigLIP's (model type siglip). Only checkpoints called naflex are a SigLIP 2's.
    "google/siglip2-base-patch16-224": SiglipVisionConfig,
    "google/siglip2-base-patch16-naflex": Siglip2VisionConfig,
}


def tiny_config(kind: str, **fields) -> CoverConfig:
    """A configuration of a kind of encoder in its tiny size, or of ours; `fields` are heads and others of it.

    Raises:
        ValueError: if there is none of that kind.
    """
    fields = {"num_frames": TINY_FRAMES, "image_size": TINY_SIZE, **fields}
    if kind == OURS:
        return CoverConfig(**{**_PATCHES, "time_initializer_range": 2.0, **fields})
    if kind not in TINY:
        raise ValueError(f"there is no tiny encoder of kind {kind!r}, but of {[OURS, *TINY]}")
    return CoverConfig(encoder=TINY[kind]().to_dict(), **fields)


def published_config(name: str, **fields) -> CoverConfig:
    """A configuration of the encoder of a checkpoint on the Hub; `fields` are heads and others of it.

    Raises:
        ValueError: if its size is not known here.
    """
    if name not in PUBLISHED:
        raise ValueError(f"the size of {name!r} is not known, but of {list(PUBLISHED)}")
    encoder = PUBLISHED[name]()
    return CoverConfig(encoder=None if encoder is None else encoder.to_dict(), **fields)


def tiny_encoder(kind: str, **fields) -> CoverForVideoClassification:
    """A tiny encoder with random weights. So that it learns motion in few steps, positions are drawn large."""
    model = CoverForVideoClassification(tiny_config(kind, **fields))
    if kind == "videoprism_vision_model":
        for embeddings in (model.cover.encoder.spatial_embeddings, model.cover.encoder.temporal_embeddings):
            nn.init.normal_(embeddings.position_embeddings)
    return model


def operations(config: CoverConfig, num_frames: int, size: int, pooler: bool = False) -> tuple[int, int]:
    """Floating-point operations of a forward pass of one clip and of one image.

    A multiplication and an addition are two. Nothing is computed but for SigLIP 2's image.

    Args:
        size: height and width of a frame, in pixels.
        pooler: count just what an encoder of transformers is given to pool its tokens.
    """
    kind = OURS if config.encoder is None else config.encoder.model_type
    # SigLIP 2 reads the sizes of its images, which are nowhere on the meta device.
    device = "cpu" if kind == "siglip2_vision_model" else "meta"
    config = CoverConfig.from_dict({**config.to_dict(), "attn_implementation": "eager"})
    with torch.device(device):
        model = CoverForVideoClassification(config).eval().requires_grad_(False)
    part = f"{type(model).__name__}.cover.pooler" if pooler else "Global"
    image = _counted(model, 1, size, device, part)
    by_frames = kind != OURS and ENCODERS[kind].takes_frames
    return num_frames * image if by_frames else _counted(model, num_frames, size, device, part), image


def _counted(model: nn.Module, num_frames: int, size: int, device: str, part: str) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixel_values=torch.zeros(1, num_frames, 3, size, size, device=device))
    return sum(counter.get_flop_counts().get(part, {}).values())
