# SPDX-License-Identifier: Apache-2.0
"""MP4 files put together by hand, as editors of video do and FFmpeg's muxer cannot.

An MP4 file is boxes within boxes: four bytes of size, four of kind, and the content.
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av


SAMPLE_TABLE = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def box(kind: bytes, *contents: bytes) -> bytes:
    content = b"".join(contents)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def path_to(content: bytes, kinds: Sequence[bytes]) -> list[tuple[int, int]]:
    """(start, end) of a box and, before it, of those that it is in."""
    path, start, end = [], 0, len(content)
    for kind in kinds:
        while content[start + 4 : start + 8] != kind:
            start += struct.unpack_from(">I", content, start)[0]
            if start >= end:
                raise ValueError(f"no box {kind!r}")
        end = start + struct.unpack_from(">I", content, start)[0]
        path.append((start, end))
        start += 8
    return path


def replaced(content: bytes, kinds: Sequence[bytes], new: bytes) -> bytes:
    """The file with another box in place of one; what its index says of places in the file must lie before it."""
    *outer, (start, end) = path_to(content, kinds)
    changed = bytearray(content[:start] + new + content[end:])
    for at, until in outer:
        struct.pack_into(">I", changed, at, until - at + len(new) - (end - start))
    return bytes(changed)


def with_edits(content: bytes, segments: Sequence[tuple[int, int]], fps: int = 24) -> bytes:
    """The file with an edit list of segments, each of (first frame, number of frames), that are shown one after the
    other."""
    kinds = (b"moov", b"trak", b"edts", b"elst")
    (start, _) = path_to(content, kinds)[-1]
    offset = struct.unpack_from(">IIIi", content, start + 8)[3]
    (movie, _), (track, _) = (
        path_to(content, (b"moov", b"mvhd"))[-1],
        path_to(content, (*SAMPLE_TABLE[:3], b"mdhd"))[-1],
    )
    movie_units, track_units = (struct.unpack_from(">I", content, at + 20)[0] for at in (movie, track))
    entries = [
        struct.pack(">IiI", round(count * movie_units / fps), offset + first * track_units // fps, 1 << 16)
        for first, count in segments
    ]
    return replaced(content, kinds, box(b"elst", numbers(0, len(entries)), *entries))


def joined(first: str, second: str, fps: int = 24) -> bytes:
    """One track of the samples of two files of one size and codec, each with parameters of its own."""
    contents = [Path(path).read_bytes() for path in (first, second)]
    samples, counts = [], []
    for path in (first, second):
        with av.open(path) as container:
            found = [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
            ticks = int(Fraction(1, fps) / container.streams.video[0].time_base)
        samples, counts = samples + found, [*counts, len(found)]
    kinds = box(b"ftyp", b"isom", numbers(512), b"isomavc1")
    data = box(b"mdat", *(data for data, _ in samples))
    places = [len(kinds) + 8]
    for data_of_one, _ in samples[:-1]:
        places.append(places[-1] + len(data_of_one))
    keyframes = [number for number, (_, is_keyframe) in enumerate(samples, start=1) if is_keyframe]
    descriptions = []
    for content in contents:
        start, end = path_to(content, (*SAMPLE_TABLE, b"stsd"))[-1]
        descriptions.append(content[start + 16 : end])
    table = box(
        b"stbl",
        box(b"stsd", numbers(0, 2), *descriptions),
        box(b"stts", numbers(0, 1, len(samples), ticks)),
        box(b"stss", numbers(0, len(keyframes), *keyframes)),
        box(b"stsc", numbers(0, 2, 1, 1, 1, counts[0] + 1, 1, 2)),
        box(b"stsz", numbers(0, 0, len(samples), *(len(data) for data, _ in samples))),
        box(b"stco", numbers(0, len(places), *places)),
    )
    content = replaced(contents[0], SAMPLE_TABLE, table)
    content = replaced(content, (b"moov", b"trak", b"edts"), box(b"free"))
    start, end = path_to(content, (b"moov",))[-1]
    return kinds + data + content[start:end]
