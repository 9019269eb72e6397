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
"""What counts of an image file, its pixels, whatever its name is, its depth, and what else the file tells about
them."""

import os
from typing import BinaryIO

import numpy as np
import PIL.Image

from .file_access_cover import open_regular
from .image_metadata_cover import orientation_of


_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)
_HEAD = 32  # bytes that tell

_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

_MAX_DEEP = 2**16 - 1
_LIGHT = 2  # floats up to here are neither of 0 to 1, nor a picture of 0 to 255 in which anything can be seen
_PIXELS_AT_A_TIME = 2**22
_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0


def image_kind(source: str | os.PathLike | bytes | BinaryIO) -> str | None:
    """The kind of image that a file is by its first bytes, such as "JPEG"; None if it is none, or cannot be read."""
    head = _head(source)
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    is_bmp = head[:2] == b"BM" and len(head) >= 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES
    return "BMP" if is_bmp else None


def _head(source: str | os.PathLike | bytes | BinaryIO) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD]
    try:
        if isinstance(source, str | os.PathLike):
            with open_regular(source) as file:
                return file.read(_HEAD)
        source.seek(0)
        return source.read(_HEAD)
    except (OSError, ValueError):  # ValueError: a path with a zero in it, or of a pipe
        return b""


def positive(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image, of which PIL leaves a TIFF of 16 bits as a negative where it says that white is zero."""
    if image.format != "TIFF" or not _is_deep(image) or image.tag_v2.get(_TIFF_PHOTOMETRIC) != _WHITE_IS_ZERO:
        return image
    values = np.asarray(image).astype(np.int32)
    return PIL.Image.fromarray(np.subtract(_MAX_DEEP, values, out=values).astype(np.uint16))


def _is_deep(image: PIL.Image.Image) -> bool:
    """Whether it is of one grey value of more than 8 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def turned_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image as its metadata say that it lies; as it is where they say nothing, or are broken."""
    # `PIL.ImageOps.exif_transpose` writes the EXIF data again, and fails on what it cannot write.
    turn = _TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def is_scaled(low: float, high: float) -> bool:
    """Whether floats between these are of 0 to 1 instead of 0 to 255, which all zeros may be as well.

    Raises:
        ValueError: they are of neither, or what they are of cannot be told.
    """
    if not 0 <= low <= high <= 255 or 1 < high < _LIGHT:  # NaN is in no range
        raise ValueError(
            f"an image or clip of floats must have values of 0 to 1, or of 0 to 255, got {low:g} to {high:g}"
        )
    return high <= 1


def _grey_of_floats(image: PIL.Image.Image) -> PIL.Image.Image:
    """Of 8 bits, an image whose values are floats."""
    if is_scaled(*image.getextrema()):
        image = image.point(lambda value: value * 255 + 0.5)
    return image.convert("L")


def rgb_pixels(image: PIL.Image.Image) -> np.ndarray:
    """(H, W, 3), uint8: what `to_rgb` makes of the image, some rows at a time, since each step is a copy of all of
    them."""
    if image.mode == "F":
        image = _grey_of_floats(image)  # by the range of all rows, not of some
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    num_rows = max(1, _PIXELS_AT_A_TIME // max(1, width))
    for top in range(0, height, num_rows):
        rows = slice(top, min(top + num_rows, height))
        part = image if num_rows >= height else image.crop((0, rows.start, width, rows.stop))
        pixels[rows] = np.asarray(to_rgb(part))
    return pixels


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in RGB of 8 bits; what is transparent becomes white.

    A grey image of 16 bits (PIL's modes "I;16" and "I") is scaled by 257, where PIL itself would make white of all
    above 255.

    Raises:
        ValueError: the values are not of a range that is known: "I" beyond 0 to 65535, or floats ("F") that are
            neither of 0 to 1 nor of 0 to 255.
    """
    if _is_deep(image):
        image = _of_eight_bits(image)
    elif image.mode == "F":
        image = _grey_of_floats(image)
    if image.mode == "La":  # which PIL turns into nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _of_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """A grey image, with an alpha channel where the one of 16 bits has a value that is transparent."""
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= _MAX_DEEP:
        raise ValueError(
            f"a grey image of whole numbers must have values of 0 to {_MAX_DEEP}, got {values.min()} to {values.max()}"
        )
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is None:
        return PIL.Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(np.stack([grey, alpha], axis=-1), "LA")
