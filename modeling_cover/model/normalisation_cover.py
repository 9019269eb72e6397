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
"""How checkpoints had pixels normalised: what a processor must do alike, and a check that it does."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor

from .configuration_cover import CoverConfig
from .conversion_cover import is_original_release, stored_config
from .encoders_cover import ENCODERS, vision_part
from .video_swin_checkpoints_cover import VIDEO_SWIN_MEAN, VIDEO_SWIN_STD, is_video_swin


if TYPE_CHECKING:
    from .video_processing_cover import CoverVideoProcessor

logger = logging.get_logger(__name__)

# What TimeSformer's release normalises pixels of 0 to 1 with.
RELEASE_MEAN, RELEASE_STD = [0.45] * 3, [0.225] * 3
# What a processor of transformers says of pixels. Only ViViT's has an offset.
_KEYS = ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize", "offset")
_TOLERANCE = 1e-3


def normalisation_of(path: str | os.PathLike, revision: str | None = None) -> dict[str, Any]:
    """Mean, deviation and scale of the pixels that a checkpoint was trained with, as a processor takes them: as its
    own processor says, or else as its kind has them, which is logged. None where neither is known.
    """
    if is_original_release(path):
        mean, std = (VIDEO_SWIN_MEAN, VIDEO_SWIN_STD) if is_video_swin(path) else (RELEASE_MEAN, RELEASE_STD)
        return {"image_mean": mean, "image_std": std}
    try:
        stored, _ = BaseVideoProcessor.get_video_processor_dict(path, revision=revision or "main")
    except OSError:
        stored = {}
    kind, of_kind = _of_kind(path, revision)
    own = {**of_kind, **{key: stored[key] for key in _KEYS if key in stored}}
    is_known = own.keys() >= {"image_mean", "image_std"}
    if "image_mean" not in stored:
        whose = f"as a {kind} does" if is_known else "with CoverVideoProcessor's"
        logger.warning(f"{path} says nothing of mean and deviation: normalising {whose}")
    return _as_mean_and_deviation(own) if is_known else {}


def _of_kind(path: str | os.PathLike, revision: str | None) -> tuple[str | None, Mapping[str, Any]]:
    """The model type of a checkpoint, and what is done to pixels for it; nothing where there is no configuration."""
    try:
        kind = vision_part(stored_config(path, revision)).model_type
    except ValueError:
        return None, {}
    return kind, ENCODERS[kind].normalisation if kind in ENCODERS else {}


def _as_mean_and_deviation(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a scale, a mean and a deviation alone."""
    mean, std = [0.0] * 3, [1.0] * 3
    if stored.get("do_normalize", True):
        # One number is for all channels.
        mean, std = (
            [value] * 3 if isinstance(value, int | float) else value
            for value in (stored["image_mean"], stored["image_std"])
        )
    if stored.get("offset", False) and stored.get("do_rescale", True):
        mean = [value + 1 for value in mean]  # pixels less 1 are what the mean is taken from
    own = {"image_mean": list(mean), "image_std": list(std)}
    factor = stored.get("rescale_factor") if stored.get("do_rescale", True) else 1.0
    return own if factor is None else {**own, "rescale_factor": factor}


def check_normalisation(config: CoverConfig, processor: "CoverVideoProcessor") -> None:
    """Raise a `ValueError` if a processor normalises pixels otherwise than the encoder's checkpoint had them."""
    expected = config.encoder_normalisation
    if expected is None:
        return
    given = {
        "do_normalize": processor.do_normalize,
        "do_rescale": processor.do_rescale,
        **{key: getattr(processor, key) for key in ("image_mean", "image_std", "rescale_factor")},
    }
    found, wanted = _in_pixels(_as_mean_and_deviation(given)), _in_pixels(expected)
    if not all(math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) for a, b in zip(found, wanted, strict=True)):
        source = getattr(config.encoder, "_name_or_path", "") or f"a {config.encoder.model_type}"
        raise ValueError(
            f"the processor normalises pixels otherwise than the encoder, {source}, was trained with: expected "
            f"{_described(expected)}, got {_described(_as_mean_and_deviation(given))}. "
            "CoverVideoProcessor.from_image_checkpoint makes one as the encoder's checkpoint says"
        )


def _in_pixels(normalisation: Mapping[str, Any]) -> list[float]:
    """Mean and deviation of pixels of 0 to 255, channel by channel."""
    factor = normalisation.get("rescale_factor", 1 / 255)
    return [value / factor for key in ("image_mean", "image_std") for value in normalisation[key]]


def _described(normalisation: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in normalisation.items())
