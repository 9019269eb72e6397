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
"""Videos and images however they come: to clips, to images, or to what is still to be decoded.

Axes: T frames, C channels, H height, W width.
"""

import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import PurePath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
import torch
from huggingface_hub.utils import httpx
from PIL.Image import DecompressionBombError
from transformers.image_utils import ChannelDimension

from .file_access_cover import open_regular, public_name, reason_of, retried
from .image_metadata_cover import check_jpeg, check_tiff, without_metadata
from .image_pixels_cover import is_scaled, positive, rgb_pixels, turned_upright
from .video_decoding_cover import MAX_ASPECT_RATIO, VideoDecodingError, VideoSource
from .video_opening_cover import MACHINE_ERRORS, check_time, name_of, said_of


# A GIF may move, and is read as a video.
STILL_SUFFIXES = frozenset([".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])
# PIL goes by content. Among what else it opens are formats read by other programs (EPS, by Ghostscript).
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# PIL itself warns of 89 million, and takes up to 178. What is transparent is copied once more.
_MAX_IMAGE_PIXELS, _MAX_TRANSPARENT_PIXELS = 50_000_000, 2**25
_MAX_WEBP_PIXELS = 25_000_000  # of which libwebp and PIL hold four copies of 32 bits
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_URL_TIMEOUT = 60.0  # seconds, to connect and between two pieces of the content
_MAX_DOWNLOAD_SECONDS = 600.0
_MAX_DOWNLOAD_BYTES = 2**31
_MAX_BYTES_IN_MEMORY = 2**26

_EXPECTED = (
    "expected a video (a path, a URL, bytes, a binary file object, a 4-D array or tensor, a list of frames), an image "
    "(a path, a PIL image, a 3-D array or tensor), or a list of these"
)


def split_batch(
    videos: Any, data_format: ChannelDimension | None, is_to_255: bool = True
) -> list[torch.Tensor | VideoSource]:
    """The items of a batch: a clip (T, C, H, W), an image (C, H, W), or what is still to be decoded.

    With `is_to_255` arrays must hold values of 0 to 255, or floats or truth values of 0 to 1, which become those of 0
    to 255; otherwise any.
    """
    if isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5:
        videos = list(videos)
    if not isinstance(videos, list | tuple) or is_frame_list(videos):
        items = {"videos": videos}
    elif videos:
        items = {f"videos[{index}]": video for index, video in enumerate(videos)}
    else:
        raise ValueError(f"videos is empty: {_EXPECTED}")
    items = {name: _to_item(item, name, data_format, is_to_255) for name, item in items.items()}
    return list((_on_one_scale(items) if is_to_255 else items).values())


def whole_clip(video: Any, data_format: ChannelDimension | None, is_to_255: bool) -> torch.Tensor:
    """One clip (T, C, H, W) that is decoded already; floats of `is_to_255` as whole numbers, whose scale is settled.

    Raises:
        ValueError: if it is an image, or several clips.
    """
    items = split_batch(video, data_format, is_to_255)
    if len(items) != 1 or not isinstance(items[0], torch.Tensor) or items[0].ndim != 4:
        raise ValueError("window: expected a file, or the frames of one video, as a list of them or in 4 axes")
    (clip,) = items
    return clip.round().to(torch.uint8) if is_to_255 and clip.is_floating_point() else clip


def is_decoded(video: Any) -> bool:
    """Whether it is no file, but frames or an image."""
    return isinstance(video, np.ndarray | torch.Tensor | PIL.Image.Image | list | tuple)


def _on_one_scale(items: dict[str, torch.Tensor | VideoSource]) -> dict[str, torch.Tensor | VideoSource]:
    """The same with floats of 0 to 1 multiplied by 255. All floats of a call are of one scale: a dark clip of 0 to 255
    would else be taken for a bright one of 0 to 1."""
    highest, scaled = {}, {}
    for name, item in items.items():
        if isinstance(item, torch.Tensor) and item.is_floating_point():
            low, high = (bound.item() for bound in item.to(torch.float32).aminmax())
            try:
                scaled[name] = is_scaled(low, high)
            except ValueError as error:
                hint = "clip them, or pass do_rescale=False with what is scaled already"
                raise ValueError(f"{name}: {error}: {hint}") from error
            highest[name] = high
    light = [name for name, high in highest.items() if not scaled[name]]
    small = [name for name, high in highest.items() if scaled[name] and high > 0]
    if light and small:
        raise ValueError(
            f"floats of one call must all be of 0 to 1, or all of 0 to 255: {small[0]} has none above "
            f"{highest[small[0]]:g}, and {light[0]} has up to {highest[light[0]]:g}"
        )
    return {name: _to_255(item) if name in small else _of_truth(item) for name, item in items.items()}


def _to_255(clip: torch.Tensor) -> torch.Tensor:
    return clip.to(torch.float32) * 255


def _of_truth(item: torch.Tensor | VideoSource) -> torch.Tensor | VideoSource:
    """What is true is white."""
    return item.to(torch.uint8) * 255 if isinstance(item, torch.Tensor) and item.dtype == torch.bool else item


def _is_frame(item: Any) -> bool:
    return isinstance(item, PIL.Image.Image) or (isinstance(item, np.ndarray | torch.Tensor) and item.ndim == 3)


def is_frame_list(items: list | tuple) -> bool:
    """Whether these are frames of one video: PIL images or 3-D arrays."""
    return len(items) > 0 and all(_is_frame(item) for item in items)


def _to_item(
    item: Any, name: str, data_format: ChannelDimension | None, is_to_255: bool
) -> torch.Tensor | VideoSource:
    if isinstance(item, list | tuple) and is_frame_list(item):
        frames = [_to_item(frame, f"{name}[{index}]", data_format, is_to_255) for index, frame in enumerate(item)]
        shapes = {tuple(frame.shape) for frame in frames}
        if len(shapes) > 1:
            raise ValueError(f"the frames of {name} must have one shape (C, H, W), got {sorted(shapes)}")
        if len(kinds := {_kind_of_values(frame) for frame in frames}) > 1:
            raise ValueError(f"the frames of {name} must have one kind of values, got {' and '.join(sorted(kinds))}")
        return torch.stack(frames)
    if isinstance(item, PIL.Image.Image):
        try:
            return image_to_tensor(item)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if isinstance(item, np.ndarray | torch.Tensor) and item.ndim in (3, 4):
        array = _array_to_tensor(item, name, data_format)
        if is_to_255:
            _check_values(array, name)
        return array
    if isinstance(item, str | os.PathLike):
        return read_image_tensor(item) if _has_image_suffix(item) else item
    if isinstance(item, bytes) or hasattr(item, "read"):
        return item
    kind = (
        f"an array of shape {tuple(item.shape)}" if isinstance(item, np.ndarray | torch.Tensor) else repr(type(item))
    )
    raise ValueError(f"{name} is {kind}: {_EXPECTED}")


def _kind_of_values(frame: torch.Tensor) -> str:
    if frame.is_floating_point():
        return "floats"
    return "truth values" if frame.dtype == torch.bool else "whole numbers"


def _array_to_tensor(
    array: np.ndarray | torch.Tensor, name: str, data_format: ChannelDimension | None
) -> torch.Tensor:
    """Channels first, whatever they were: (..., C, H, W). The order is told by the sizes unless it is given."""
    if 0 in array.shape:
        raise ValueError(f"{name} has no frames: its shape is {tuple(array.shape)}")
    if isinstance(array, np.ndarray):
        # torch takes neither negative strides nor, in silence, a read-only array.
        array = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    before, after = array.shape[-3], array.shape[-1]
    if data_format is None:
        # Three channels are likelier than one or four; if that does not decide, first, as all over transformers.
        channels_last = after in _CHANNELS and (before not in _CHANNELS or (after == 3 and before != 3))
        data_format = ChannelDimension.LAST if channels_last else ChannelDimension.FIRST
    if (before if data_format == ChannelDimension.FIRST else after) not in _CHANNELS:
        raise ValueError(
            f"{name} must have 1, 3 or 4 channels, before or after height and width (`input_data_format` settles which),"
            f" got shape {tuple(array.shape)}"
        )
    return array if data_format == ChannelDimension.FIRST else array.movedim(-1, -3)


def _check_values(array: torch.Tensor, name: str) -> None:
    """Raise a `ValueError` unless integers of more than 8 bits are from 0 to 255."""
    if array.dtype in (torch.uint8, torch.bool) or array.is_floating_point():
        return
    lowest, highest = (int(bound) for bound in array.to(torch.int64).aminmax())
    if lowest < 0 or highest > 255:
        hint = ": divide what is of 16 bits by 257" if lowest >= 0 else ""
        raise ValueError(f"{name} has values from {lowest} to {highest}, expected 0 to 255{hint}")


def image_to_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """(3, H, W), uint8. Transparent parts become white, as those of arrays with four channels do; see [`to_rgb`]."""
    return torch.from_numpy(rgb_pixels(image)).permute(2, 0, 1)


def _has_image_suffix(path: str | os.PathLike) -> bool:
    path = urlsplit(path).path if is_url(path) else os.fsdecode(path)
    return PurePath(path).suffix.lower() in STILL_SUFFIXES


def read_image(source: str | os.PathLike | bytes | BinaryIO) -> PIL.Image.Image:
    """The image at a path or a URL, or in a file or its bytes, turned upright by its EXIF data.

    What else a file tells (text, profiles) may be broken, or too much: its pixels are what counts. Within
    [`time_limit`] the time is looked at between two pieces of the file.

    Raises:
        VideoDecodingError: whatever is wrong with it.
    """
    with _reading(source), _open_image(source) as file:
        try:
            return _decoded(file)
        except Exception as error:  # PIL's readers raise whatever they run into
            is_too_large = isinstance(error, _UnfitSizeError | DecompressionBombError | MemoryError)
            pixels = None if is_too_large else without_metadata(file)
            if pixels is None:
                raise
        return _decoded(pixels)


def read_image_tensor(source: str | os.PathLike | bytes | BinaryIO) -> torch.Tensor:
    """(3, H, W), uint8: what `image_to_tensor` makes of `read_image`."""
    image = read_image(source)
    with _reading(source):
        return image_to_tensor(image)


@contextmanager
def _reading(source: str | os.PathLike | bytes | BinaryIO) -> Iterator[None]:
    """What goes wrong with an image leaves as a VideoDecodingError that names it; what it is not to blame for as an
    OSError."""
    try:
        yield
    except VideoDecodingError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise
        reason = said_of(error)
        if isinstance(error, PIL.UnidentifiedImageError):  # whose message is about Python's file object
            reason = f"its content is none of {', '.join(_IMAGE_FORMATS)}, or broken"
        elif isinstance(error, DecompressionBombError):  # whose message is about an attack
            reason = f"it has too many pixels, more than {_MAX_IMAGE_PIXELS}"
        raise VideoDecodingError(f"{name_of(source)} cannot be read as an image: {reason}") from error


def _decoded(file: BinaryIO) -> PIL.Image.Image:
    check_tiff(file)
    check_jpeg(file)
    file.seek(0)
    with PIL.Image.open(file, formats=_IMAGE_FORMATS) as image:
        if image.mode in ("P", "PA") and image.palette is None:
            raise ValueError("it has no palette")  # PIL trips over it only where its colours are asked for
        _check_image_size(image)
        image.load()
        return turned_upright(positive(image))


class _UnfitSizeError(ValueError):
    """An image is too large, or too narrow."""


def _check_image_size(image: PIL.Image.Image) -> None:
    width, height = image.size
    most = _MAX_TRANSPARENT_PIXELS if image.has_transparency_data else _MAX_IMAGE_PIXELS
    most = min(most, _MAX_WEBP_PIXELS) if image.format == "WEBP" else most
    if width * height > most:
        raise _UnfitSizeError(f"it has too many pixels: {width} x {height}, more than {most}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise _UnfitSizeError(f"it is too narrow to be scaled: {width} x {height}")


@contextmanager
def _open_image(source: str | os.PathLike | bytes | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        opened = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        opened = download(source) if is_url(source) else open_regular(source)
    else:
        source.seek(0)
        opened = nullcontext(source)  # it stays open
    with opened as file:
        yield _TimedFile(file)


class _TimedFile:
    """A file that is given up when the time for reading is over; see [`time_limit`]. PIL reads a piece after the
    other."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        check_time()
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)  # PIL asks whether a file has a `fileno`, say


def is_url(source: Any) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def download(url: str) -> BinaryIO:
    """The content of a URL, as a file that lies in memory unless it is large, and is gone when it is closed.

    What fails and may heal is tried again. The message of an error leaves out what would be the right to fetch it.

    Raises:
        VideoDecodingError: it cannot be fetched, or not in 10 minutes, or has more than 2 GiB.
    """
    file = tempfile.SpooledTemporaryFile(_MAX_BYTES_IN_MEMORY)  # noqa: SIM115 (the caller closes it)
    deadline = time.monotonic() + _MAX_DOWNLOAD_SECONDS
    try:
        retried(lambda: _download_once(url, file, deadline), deadline)
    except BaseException as error:
        file.close()
        if isinstance(error, httpx.HTTPError | httpx.InvalidURL | UnicodeError):
            # Its own message, and those of its causes, have the whole URL.
            raise VideoDecodingError(f"{public_name(url)} cannot be fetched: {reason_of(error)}") from None
        raise
    file.seek(0)
    return file


def _download_once(url: str, file: BinaryIO, deadline: float) -> None:
    file.seek(0)
    file.truncate()
    size = 0
    with httpx.stream("GET", url, follow_redirects=True, timeout=_URL_TIMEOUT) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            size += file.write(piece)
            if size > _MAX_DOWNLOAD_BYTES:
                raise VideoDecodingError(f"{public_name(url)} has more than {_MAX_DOWNLOAD_BYTES} bytes")
            if time.monotonic() > deadline:
                raise VideoDecodingError(f"{public_name(url)} takes more than {_MAX_DOWNLOAD_SECONDS:.0f} s to fetch")
