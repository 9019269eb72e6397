# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged where it tells: their elements are taken apart, changed, and put together again.

An element is what a format is made of: a box of MP4, an element of Matroska, a chunk of RIFF and PNG, a packet of a
transport stream, a block of GIF, a segment of JPEG, an entry of TIFF. All that stands around a change is made right
again, sizes and checksums, so that a reader comes as far as to the lie.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


# What counts, sizes, offsets and sides of pictures are set to.
_EXTREMES = [0, 1, 2, 16, 255, 256, 4096, 16384, 2**15, 2**16 - 1, 2**16, 2**20, 2**22, 2**24, 2**25, 2**28, 2**31 - 1]
_EXTREMES += [2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
_MAX_BYTES = 2**20  # of a mutated file


@dataclass(frozen=True)
class Element:
    """Of a file.

    Attributes:
        name: what stands before or behind its size: a code, an identity.
        body: its content, without that of its children.
        children: elements within it, behind its body; None if it has none by its kind.
        size: that it claims; None for its own.
    """

    name: bytes
    body: bytes
    children: tuple["Element", ...] | None = None
    size: int | None = None


class Format(NamedTuple):
    """How a kind of file is taken apart and put together."""

    parse: Callable[[bytes], list[Element]]
    write: Callable[[list[Element]], bytes]
    byte_order: str


def mutated(content: bytes, suffix: str, rng: np.random.Generator) -> bytes:
    """A file with one to four changes, a function of `rng`.

    Args:
        content: of a whole file.
        suffix: of its name, a key of `FORMATS`.
    """
    form = FORMATS[suffix]
    elements = form.parse(content)
    for _ in range(int(rng.integers(1, 5))):
        changed = _changed(elements, form.byte_order, rng)
        if _size(changed) <= _MAX_BYTES:
            elements = changed
    return form.write(elements)


def _size(elements: list[Element]) -> int:
    return sum(len(element.body) + 8 + _size(element.children or ()) for element in elements)


def _changed(elements: list[Element], byte_order: str, rng: np.random.Generator) -> list[Element]:
    """The elements with one change, somewhere in the tree."""
    if not elements:
        return elements
    # Any element at any depth, each as likely as the others.
    paths = list(_paths(elements))
    path = paths[int(rng.integers(len(paths)))]
    return _changed_at(elements, path, byte_order, rng)


def _paths(elements: list[Element], above: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    for index, element in enumerate(elements):
        yield (*above, index)
        yield from _paths(element.children or (), (*above, index))


def _changed_at(
    elements: list[Element], path: tuple[int, ...], byte_order: str, rng: np.random.Generator
) -> list[Element]:
    elements, index = list(elements), path[0]
    element = elements[index]
    if len(path) > 1:
        children = _changed_at(list(element.children), path[1:], byte_order, rng)
        elements[index] = replace(element, children=tuple(children))
        return elements
    way = int(rng.integers(12))
    if way <= 5:
        elements[index] = replace(element, body=_other_body(element.body, byte_order, rng))
    elif way == 6:
        own = len(element.body) + _size(element.children or ())
        elements[index] = replace(element, size=int(rng.choice([*map(float, (0, 1, own // 2, own + 1, 2 * own))])))
        if rng.random() < 0.5:
            elements[index] = replace(element, size=_EXTREMES[int(rng.integers(len(_EXTREMES)))])
    elif way == 7:
        del elements[index]
    elif way == 8:
        elements[index : index + 1] = [element] * int(rng.choice([2, 3, 40, 1000]))
    elif way == 9:
        other = int(rng.integers(len(elements)))
        elements[index], elements[other] = elements[other], elements[index]
    elif way == 10:
        within = element
        for _ in range(int(rng.choice([1, 2, 20, 200]))):
            within = replace(element, children=(within,), body=element.body[:64])
        elements[index] = within
    else:
        length = int(rng.integers(len(element.body) + 1))
        filled = element.body[:length] + bytes(int(rng.choice([0, 1, 64, 65536])))
        elements[index] = replace(element, body=filled)
    return elements


def _other_body(body: bytes, byte_order: str, rng: np.random.Generator) -> bytes:
    """The content with one number in it set to an extreme, or changed by a little or much."""
    if not body:
        return body
    width = int(rng.choice([1, 2, 4, 4, 8]))
    width = min(width, len(body))
    # The numbers that tell stand at the beginning.
    most = len(body) - width
    place = int(rng.integers(min(most, 40) + 1)) if rng.random() < 0.7 else int(rng.integers(most + 1))
    number = int.from_bytes(body[place : place + width], byte_order)
    way = int(rng.integers(4))
    if way <= 1:
        number = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
    elif way == 2:
        number += int(rng.choice([-1, 1, -8, 8]))
    else:
        number <<= int(rng.integers(1, 24))
    return body[:place] + (number % 256**width).to_bytes(width, byte_order) + body[place + width :]


# ---- MP4 ----

_BOXES = frozenset(b"moov trak mdia minf stbl dinf edts udta mvex moof traf stsd meta".split())
_BODY_OF_BOX = {b"stsd": 8, b"meta": 4}


def _parse_mp4(content: bytes) -> list[Element]:
    elements, start = [], 0
    while start + 8 <= len(content):
        size, name = struct.unpack_from(">I4s", content, start)
        if size < 8 or start + size > len(content):
            break
        inside = content[start + 8 : start + size]
        if name in _BOXES:
            length = _BODY_OF_BOX.get(name, 0)
            elements.append(Element(name, inside[:length], tuple(_parse_mp4(inside[length:]))))
        else:
            elements.append(Element(name, inside))
        start += size
    return elements


def _write_mp4(elements: list[Element]) -> bytes:
    parts = []
    for element in elements:
        inside = element.body + _write_mp4(element.children or ())
        size = len(inside) + 8 if element.size is None else element.size
        if size < 2**32:
            parts.append(struct.pack(">I4s", size, element.name) + inside)
        else:
            parts.append(struct.pack(">I4sQ", 1, element.name, size % 2**64) + inside)
    return b"".join(parts)


# ---- Matroska ----

_MASTERS = frozenset(
    bytes.fromhex(code)
    for code in (
        *("1a45dfa3", "18538067", "1549a966", "1654ae6b", "ae", "e0", "1f43b675", "a0", "1c53bb6b", "bb", "b7"),
        *("114d9b74", "4dbb", "1254c367", "7373", "63c0", "67c8"),
    )
)


def _parse_ebml(content: bytes) -> list[Element]:
    elements, start = [], 0
    while start < len(content) and content[start]:
        length = 9 - content[start].bit_length()
        name, place = content[start : start + length], start + length
        if place >= len(content) or not content[place]:
            break
        width = 9 - content[place].bit_length()
        size = int.from_bytes(content[place : place + width], "big") & (1 << 7 * width) - 1
        inside = content[place + width : place + width + size]
        if size == (1 << 7 * width) - 1:
            inside = content[place + width :]
        is_master = name in _MASTERS
        elements.append(Element(name, b"" if is_master else inside, tuple(_parse_ebml(inside)) if is_master else None))
        start = place + width + len(inside)
    return elements


def _write_ebml(elements: list[Element]) -> bytes:
    parts = []
    for element in elements:
        inside = element.body + _write_ebml(element.children or ())
        size = len(inside) if element.size is None else element.size
        parts.append(element.name + (size % 2**56 | 1 << 56).to_bytes(8, "big") + inside)
    return b"".join(parts)


# ---- RIFF: AVI and WebP ----


def _parse_riff(content: bytes) -> list[Element]:
    elements, start = [], 0
    while start + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, start)
        inside = content[start + 8 : start + 8 + size]
        if name in (b"RIFF", b"LIST"):
            elements.append(Element(name, inside[:4], tuple(_parse_riff(inside[4:]))))
        else:
            elements.append(Element(name, inside))
        start += 8 + size + size % 2
    return elements


def _write_riff(elements: list[Element]) -> bytes:
    parts = []
    for element in elements:
        inside = element.body + _write_riff(element.children or ())
        size = len(inside) if element.size is None else element.size
        parts.append(struct.pack("<4sI", element.name, size % 2**32) + inside + bytes(len(inside) % 2))
    return b"".join(parts)


# ---- Transport streams: packets of 188 bytes ----


def _parse_ts(content: bytes) -> list[Element]:
    """Each packet: four bytes of head, and the rest."""
    return [Element(content[at : at + 4], content[at + 4 : at + 188]) for at in range(0, len(content) - 187, 188)]


def _write_ts(elements: list[Element]) -> bytes:
    parts = []
    for element in elements:
        packet = bytearray((element.name + element.body)[:188].ljust(188, b"\xff"))
        is_table = packet[1] & 0x40 and packet[3] & 0x30 == 0x10 and packet[4] == 0 and packet[5] in (0, 2, 0x42)
        end = 8 + (int.from_bytes(packet[6:8], "big") & 0xFFF)
        if is_table and 12 <= end <= 188:
            packet[end - 4 : end] = _crc32_of_mpeg(bytes(packet[5 : end - 4])).to_bytes(4, "big")
        parts.append(bytes(packet))
    return b"".join(parts)


def _crc32_of_mpeg(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc


# ---- GIF ----


def _parse_gif(content: bytes) -> list[Element]:
    """The screen with its colours, and each block: what it is, and its sub-blocks."""
    start = 13 + _colours(content[10])
    elements = [Element(b"", content[:13]), Element(b"", content[13:start])]
    while start < len(content) and content[start] in b"!,":
        length = 2 if content[start] == 0x21 else 10 + _colours(content[start + 9]) + 1
        place = start + length
        blocks = []
        while place < len(content) and content[place]:
            blocks.append(Element(b"\0", content[place + 1 : place + 1 + content[place]]))
            place += 1 + content[place]
        elements.append(Element(b"", content[start : start + length], (*blocks, Element(b"", b"\0"))))
        start = place + 1
    return [*elements, Element(b"", content[start:])]


def _colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _write_gif(elements: list[Element]) -> bytes:
    parts = []
    for element in elements:
        if element.name:  # a sub-block
            size = min(len(element.body), 255) if element.size is None else element.size % 256
            parts.append(bytes([size]) + element.body[:255])
        else:
            parts.append(element.body)
        parts.append(_write_gif(element.children or ()))
    return b"".join(parts)


# ---- PNG ----

_PNG = b"\x89PNG\r\n\x1a\n"


def _parse_png(content: bytes) -> list[Element]:
    elements, start = [], len(_PNG)
    while start + 12 <= len(content):
        size, name = struct.unpack_from(">I4s", content, start)
        elements.append(Element(name, content[start + 8 : start + 8 + size]))
        start += 12 + size
    return elements


def _write_png(elements: list[Element]) -> bytes:
    return _PNG + b"".join(map(_png_chunk, elements))


def _png_chunk(element: Element) -> bytes:
    body = element.body + b"".join(map(_png_chunk, element.children or ()))
    size = len(body) if element.size is None else element.size % 2**32
    return struct.pack(">I", size) + element.name + body + struct.pack(">I", zlib.crc32(element.name + body))


# ---- JPEG ----


def _parse_jpeg(content: bytes) -> list[Element]:
    """Its segments; those without a size have all that stands before the next marker in their name."""
    elements, start = [], 0
    while start + 2 <= len(content):
        marker = content[start : start + 2]
        if marker[1] in (0xD8, 0xD9, 0x01) or marker[0] != 0xFF:
            elements.append(Element(b"", marker))
            start += 2
            continue
        size = int.from_bytes(content[start + 2 : start + 4], "big")
        elements.append(Element(marker, content[start + 4 : start + 2 + size]))
        start += 2 + size
        if marker[1] == 0xDA:
            end = start
            while end + 1 < len(content) and not (
                content[end] == 0xFF and content[end + 1] not in (0, *range(0xD0, 0xD8))
            ):
                end += 1
            elements.append(Element(b"", content[start:end]))
            start = end
    return elements


def _write_jpeg(elements: list[Element]) -> bytes:
    parts = []
    for element in elements:
        inside = element.body + _write_jpeg(element.children or ())
        size = len(inside) + 2 if element.size is None else element.size
        parts.append(element.name + (size % 2**16).to_bytes(2, "big") + inside if element.name else inside)
    return b"".join(parts)


# ---- TIFF ----


def _parse_tiff(content: bytes) -> list[Element]:
    """The data as they stand, and the entries of the one directory, which is written behind them."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = [content[start + 2 + 12 * index : start + 14 + 12 * index] for index in range(count)]
    return [Element(b"data", content), *(Element(b"", entry) for entry in entries)]


def _write_tiff(elements: list[Element]) -> bytes:
    data = b"".join(element.body for element in elements if element.name)
    entries = [element.body[:12].ljust(12, b"\0") for element in elements if not element.name]
    data += bytes(len(data) % 2)
    sizes = [element.size for element in elements if element.size is not None]
    count = sizes[0] % 2**16 if sizes else len(entries)
    # The next directory is, if a size is a lie, the same again.
    following = len(data) if sizes else 0
    directory = struct.pack("<H", count) + b"".join(entries) + struct.pack("<I", following)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


FORMATS = {
    "mp4": Format(_parse_mp4, _write_mp4, "big"),
    "mov": Format(_parse_mp4, _write_mp4, "big"),
    "mkv": Format(_parse_ebml, _write_ebml, "big"),
    "webm": Format(_parse_ebml, _write_ebml, "big"),
    "avi": Format(_parse_riff, _write_riff, "little"),
    "webp": Format(_parse_riff, _write_riff, "little"),
    "ts": Format(_parse_ts, _write_ts, "big"),
    "gif": Format(_parse_gif, _write_gif, "little"),
    "png": Format(_parse_png, _write_png, "big"),
    "jpeg": Format(_parse_jpeg, _write_jpeg, "big"),
    "tiff": Format(_parse_tiff, _write_tiff, "little"),
}
