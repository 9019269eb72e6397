# SPDX-License-Identifier: Apache-2.0
"""Rows that are decoded already: arrays, tensors, PIL images, lists of them.

Axes: T frames of a clip   C, H, W channels, height and width of a frame.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.video_utils import VideoMetadata

from ...model.image_reading_cover import read_image_tensor, split_batch
from .media import PIXEL_VALUES, Decoded


def checked_decoded(value: Any, place: str, is_ready: bool) -> Decoded:
    """The value of a row that is no file; `is_ready` where floats are what the model takes.

    Raises:
        ValueError: if it is nothing decoded.
    """
    if not isinstance(value, Decoded) or (isinstance(value, list | tuple) and not value):
        raise ValueError(
            f"{place}: expected a file's path or bytes, an array, an image or a list of frames, got "
            f"{type(value).__name__}: .cast_column(COLUMN, Video(decode=False)) passes files as they are"
        )
    if isinstance(value, PIL.Image.Image) or not _holds_floats(value):
        return value
    if not is_ready:
        raise ValueError(
            f"{place}: expected frames of 0 to 255 in whole numbers, got floats: what the model takes as it is belongs "
            f'under "{PIXEL_VALUES}"'
        )
    clip = torch.stack([*map(torch.as_tensor, value)]) if isinstance(value, list | tuple) else torch.as_tensor(value)
    clip = clip.unsqueeze(0) if clip.ndim == 3 else clip
    if clip.ndim != 4 or clip.shape[1] != 3:
        raise ValueError(f"{place}: expected a clip (T, 3, H, W) or an image (3, H, W), got shape {tuple(clip.shape)}")
    return clip.to(torch.float32)


def _holds_floats(value: Decoded) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return isinstance(value, float) or np.issubdtype(getattr(value, "dtype", bool), np.floating)


def read_decoded(
    value: Decoded, modality: str, name: str, sample_indices: Callable[[VideoMetadata], Sequence[int]]
) -> torch.Tensor:
    """(T, C, H, W) of 0 to 255, C of 1, 3 or 4: the chosen frames of a video, or an image as its only one.

    Raises:
        ValueError: names the row if it is no such video or image.
    """
    if modality == "image" and isinstance(value, list | tuple):
        value = np.asarray(value)  # of numbers
    is_list = isinstance(value, list | tuple)
    if modality == "video":
        if not is_list and getattr(value, "ndim", 0) != 4:
            raise ValueError(f"{name}: expected frames, as a list or in 4 axes, got {_described(value)}")
        chosen = sample_indices(VideoMetadata(total_num_frames=len(value)))
        value = [_frame(value[index]) for index in chosen] if is_list else value[list(chosen)]
    elif getattr(value, "ndim", 3) != 3:
        raise ValueError(f"{name}: expected one image, got {_described(value)}")
    try:
        (clip,) = split_batch([value], None)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return clip if clip.ndim == 4 else clip.unsqueeze(0)


def _frame(value: Any) -> Any:
    """A frame of a list, which may be an encoded image as `datasets` stores it."""
    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes | str):
        return read_image_tensor(value)
    return np.asarray(value) if isinstance(value, list) else value


def _described(value: Decoded) -> str:
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
