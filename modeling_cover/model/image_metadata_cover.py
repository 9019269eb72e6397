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
"""What an image file says beside its pixels: how it is to be turned; and the file without the rest, where that is
broken."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import PIL.Image


_PNG, _RIFF = b"\x89PNG\r\n\x1a\n", b"RIFF"
# Of what is not needed to decode, PNG's specification calls the chunk "ancillary": their names begin with a small
# letter.
_PNG_KEPT = (b"eXIf", b"iTXt", b"tRNS")
_XMP_KEYWORD = b"XML:com.adobe.xmp\0\0"  # and not compressed
_WEBP_KEPT = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"EXIF", b"XMP ")
# They are held three times.
_MAX_BYTES = 2**27
_ORIENTATION = 0x0112
# Of TIFF: bytes by type of an entry, the tags of further directories (EXIF, GPS, interoperability), those of a tile's
# sides.
_TIFF_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_TIFF_DIRECTORIES, _TILE_WIDTH, _TILE_HEIGHT = (34665, 34853, 40965), 322, 323
_MAX_TIFF_DIRECTORIES = 8
_MAX_TILE_PIXELS = 2**24
# Of JPEG: what begins a segment (in the data of a scan, a byte of ones is followed by a zero or a restart), the codes
# of the headers of frames, of the end, of a scan, and the bytes that tell.
_JPEG_SEGMENT, _JPEG_HEAD, _PIECE = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]"), 9, 2**16
_JPEG_FRAMES, _JPEG_END, _JPEG_SCAN = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, 0xD9, 0xDA
# Twenty scans of 50 million pixels; encoders write some ten.
_MAX_SCANNED_PIXELS = 2**30


def orientation_of(image: PIL.Image.Image) -> int | None:
    """How the pixels are to be turned, 1 to 8 as EXIF has it; None if the image does not say.

    `Image.getexif` fails on all that is broken, and copies what each entry refers to: of a small file, gigabytes.
    """
    found = _exif_orientation(image.info.get("exif") or _raw_profile(image.info.get("Raw profile type exif", "")))
    if found is not None:
        return found
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    match = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
    return int(match[1]) if match else None


def _exif_orientation(exif: bytes) -> int | None:
    """The entry of that name in the first directory of EXIF data, which are a TIFF file."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (directory,) = struct.unpack_from(f"{order}I", exif, 4)
    if directory + 2 > len(exif):
        return None
    (num_entries,) = struct.unpack_from(f"{order}H", exif, directory)
    for place in range(directory + 2, min(directory + 2 + 12 * num_entries, len(exif) - 11), 12):
        tag, kind, _, short = struct.unpack_from(f"{order}HHIH", exif, place)
        if tag == _ORIENTATION:
            return short if kind == 3 else None
    return None


def _raw_profile(text: str) -> bytes:
    """EXIF data as ImageMagick writes them into a text: a name, a length and digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def check_tiff(file: BinaryIO) -> None:
    """Raise a `ValueError` if a TIFF file refers to more than it has, which PIL would copy: the same bytes again and
    again.

    A tile may be larger than the image, and is decoded whole.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16 or struct.unpack_from(f"{order}H", head, 2)[0] not in (42, 43):
        return
    is_big = struct.unpack_from(f"{order}H", head, 2)[0] == 43
    offset, count, entry = ("Q", "Q", "HHQQ") if is_big else ("I", "H", "HHII")
    places, total, tile = [struct.unpack_from(f"{order}{offset}", head, 8 if is_big else 4)[0]], 0, {}
    for place in places:  # which grows by those of EXIF, GPS and interoperability
        file.seek(min(place, size))
        counted = file.read(struct.calcsize(f"{order}{count}"))
        if len(counted) < struct.calcsize(f"{order}{count}"):
            continue
        length = struct.calcsize(f"{order}{entry}")
        for _ in range(min(struct.unpack(f"{order}{count}", counted)[0], size // length)):
            if len(found := file.read(length)) < length:
                break
            tag, kind, number, value = struct.unpack(f"{order}{entry}", found)
            total += number * _TIFF_UNITS.get(kind, 0)
            if kind == 3 and number == 1:  # a short, at the left
                (value,) = struct.unpack_from(f"{order}H", found, length - (8 if is_big else 4))
            if tag in _TIFF_DIRECTORIES and len(places) < _MAX_TIFF_DIRECTORIES:
                places.append(value)
            tile[tag] = value
    if total > max(size, 2**20):
        raise ValueError(f"its entries refer to {total} bytes, and it has {size}")
    if tile.get(_TILE_WIDTH, 0) * tile.get(_TILE_HEIGHT, 0) > _MAX_TILE_PIXELS:
        raise ValueError(f"it has tiles of {tile[_TILE_WIDTH]} x {tile[_TILE_HEIGHT]} pixels")


def check_jpeg(file: BinaryIO) -> None:
    """Raise a `ValueError` if the scans of a JPEG file, each of which is gone through, have too many pixels together.

    A scan that says nothing new takes a few bytes, and as long as any other.
    """
    file.seek(0)
    if file.read(3) != b"\xff\xd8\xff":
        return
    pixels = scans = 0
    for head in _jpeg_segments(file):
        if head[1] in _JPEG_FRAMES and len(head) == _JPEG_HEAD:
            height, width = struct.unpack_from(">HH", head, 5)
            pixels = max(pixels, width * height)
        scans += head[1] == _JPEG_SCAN
        if scans * pixels > _MAX_SCANNED_PIXELS:
            raise ValueError(f"its pixels are encoded again and again: {pixels} in more than {scans - 1} scans")


def _jpeg_segments(file: BinaryIO) -> Iterator[bytes]:
    """The first bytes of each: two of the marker, two of the length, and what follows."""
    start, piece, place = 0, b"", 2
    while True:
        if place - start > len(piece) - _JPEG_HEAD:
            file.seek(place)
            start, piece = place, file.read(_PIECE)
        found = _JPEG_SEGMENT.search(piece, place - start)
        if found is None or found.start() > len(piece) - _JPEG_HEAD:
            is_last = len(piece) < _PIECE
            if is_last and found is not None:
                yield piece[found.start() :]
            if is_last:
                return
            place = start + (len(piece) - 1 if found is None else found.start())
            continue
        head = piece[found.start() : found.start() + _JPEG_HEAD]
        if head[1] == _JPEG_END:
            return
        yield head
        place = start + found.start() + 2 + max(2, int.from_bytes(head[2:4]))


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """A PNG or WebP file of what its pixels and their orientation are made of; None if it is of another kind,
    or these are more than 128 MiB.

    PIL refuses a whole image for one text that is too long, one profile or one checksum that is wrong, one chunk that
    is cut off behind the pixels.
    """
    file.seek(0)
    start = file.read(12)
    if start.startswith(_PNG):
        file.seek(len(_PNG))
        chunks = _png_chunks(file)
        return None if chunks is None else io.BytesIO(_PNG + b"".join(chunks))
    if start.startswith(_RIFF) and start[8:] == b"WEBP":
        chunks = _webp_chunks(file)
        content = None if chunks is None else b"WEBP" + b"".join(chunks)
        return None if content is None else io.BytesIO(_RIFF + struct.pack("<I", len(content)) + content)
    return None


def _png_chunks(file: BinaryIO) -> list[bytes] | None:
    chunks, total = [], 0
    while len(header := file.read(8)) == 8:
        size, name = struct.unpack(">I4s", header)
        if not name[:1].isupper() and name not in _PNG_KEPT:
            file.seek(size + 4, io.SEEK_CUR)
            continue
        total += size
        if total > _MAX_BYTES:
            return None
        chunk = header + file.read(size + 4)
        is_whole = struct.pack(">I", zlib.crc32(chunk[4:-4])) == chunk[-4:]
        if name[:1].isupper() or (is_whole and (name != b"iTXt" or _is_xmp(chunk))):
            chunks.append(chunk)
    return chunks


def _is_xmp(chunk: bytes) -> bool:
    """PIL reads no more than 1 MiB of a text."""
    return chunk[8:].startswith(_XMP_KEYWORD) and len(chunk) < 2**20


def _webp_chunks(file: BinaryIO) -> list[bytes] | None:
    """Those that are whole."""
    chunks, total = [], 0
    while len(header := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", header)
        if name not in _WEBP_KEPT:
            file.seek(size + size % 2, io.SEEK_CUR)
            continue
        total += size
        if total > _MAX_BYTES:
            return None
        content = file.read(size)
        if len(content) < size:
            break
        file.seek(size % 2, io.SEEK_CUR)
        if name == b"VP8X":
            content = bytes([content[0] & ~0x20]) + content[1:]  # no profile
        chunks.append(header + content + bytes(size % 2))
    return chunks
