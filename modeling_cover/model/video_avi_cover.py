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
"""The index of a plain AVI file, read from its bytes.

Through FFmpeg and PyAV a packet takes 5 microseconds, which is a fifth of the time for a short clip of MPEG-4, where
one packet in three is decoded. In AVI, packets are chunks that follow one another, and at the end is a list of them:

    RIFF "AVI "   LIST hdrl   ...   LIST movi   00dc 01wb 00dc ...   idx1

Files in which the list and the chunks agree, and nothing else is there, are read here; the others, damaged ones among
them, by FFmpeg.
"""

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from .file_access_cover import open_regular
from .video_index_cover import VideoIndex, in_place
from .video_opening_cover import VideoSource
from .video_order_cover import order_reader, packet_of, reorder_depth
from .video_times_cover import Announced, Clock, time_line


# Larger files are not kept in memory.
_MAX_BYTES = 2**25

# Of a chunk, which an even number of bytes follows; and of the list of all: positions are from anywhere.
_HEADER = np.dtype([("name", "S4"), ("size", "<u4")])
_ENTRY = np.dtype([("name", "S4"), ("flags", "<u4"), ("position", "<u4"), ("size", "<u4")])
_NONE = np.empty(0, dtype=_ENTRY)


class AviPackets:
    """The packets of a file in memory, each made when it is asked for."""

    def __init__(
        self,
        data: bytes,
        starts: list[int],
        stops: list[int],
        pictures: list[bytes | None],  # to be decoded in the place of a packet's own
        timestamps: list[int],
    ):
        self._data, self._starts, self._stops = data, starts, stops
        self._pictures, self._timestamps = pictures, timestamps

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Packet:
        picture = self._pictures[number] or self._data[self._starts[number] : self._stops[number]]
        return packet_of(picture, self._timestamps[number], number)


def avi_index(source: VideoSource, container: InputContainer, stream: VideoStream) -> VideoIndex | None:
    """What `scan_packets` tells; None of files that are not plain AVI, or whose pictures do not tell their order."""
    is_small_avi = container.format.name == "avi" and 0 < container.size <= _MAX_BYTES
    order = order_reader(stream, is_avi=True) if is_small_avi else None
    data = None if order is None else _content(source, container.size)
    chunks = None if data is None else _chunks(data, stream.index, len(container.streams))
    if chunks is None:
        return None
    starts, stops = chunks
    pictures = [order.picture(data, start, stop) for start, stop in zip(starts, stops, strict=True)]
    display_order = order.display_order()
    if not order.is_regular or not len(display_order):
        return None
    num_packets, decoded = len(pictures), np.sort(display_order)
    timestamps = in_place(display_order, decoded, num_packets)
    shown = np.zeros(num_packets, dtype=bool)
    shown[display_order] = True
    is_entry = order.is_entry & shown
    is_entry[0] = True
    own = Announced(None, is_certain=False, frames_have_own=True)
    return VideoIndex(
        time_base=stream.time_base,
        header_rate=stream.average_rate or stream.guessed_rate,
        timestamps=timestamps,
        marks=np.arange(num_packets),
        shown=shown,
        unreferenced=order.is_unreferenced,
        entries=np.flatnonzero(is_entry),
        display_order=display_order,
        promised=None,
        line=time_line(decoded, np.zeros(len(decoded), dtype=np.int64), 1, own, usual=None),
        packets=AviPackets(data, starts, stops, pictures, timestamps.tolist()),
        clock=Clock.of(container),
        reorder_depth=reorder_depth(timestamps),
        is_exact=True,
        is_skippable=order.is_unreferenced is None,
    )


def _content(source: VideoSource, size: int) -> bytes | None:
    if isinstance(source, bytes):
        return source
    if hasattr(source, "read"):
        return None  # FFmpeg reads it, and expects to find it where it left it
    with open_regular(source, buffering=0) as file:
        return file.read(size)


def _chunks(data: bytes, number: int, num_streams: int) -> tuple[list[int], list[int]] | None:
    """Where the data of each packet of stream `number` begin, and end; None if the file is not plain AVI."""
    chunks, entries = _parts(data)
    if (
        chunks is None or not len(entries) or data.find(b"indx", 0, chunks.start) >= 0
    ):  # that is a list in several parts
        return None
    sizes = entries["size"].astype(np.int64)
    positions = chunks.start + entries["position"].astype(np.int64) - entries["position"][0]
    ends = positions + _HEADER.itemsize + sizes + sizes % 2
    if not np.array_equal(positions[1:], ends[:-1]) or ends[-1] != chunks.stop:
        return None
    bytes_of_headers = np.frombuffer(data, dtype=np.uint8)[positions[:, None] + np.arange(_HEADER.itemsize)]
    headers = bytes_of_headers.view(_HEADER)[:, 0]
    names = headers["name"]
    if not np.array_equal(names, entries["name"]) or not np.array_equal(headers["size"], sizes):
        return None
    is_own = (names == b"%02ddc" % number) | (names == b"%02ddb" % number)
    others = {b"%02dwb" % other for other in range(num_streams) if other != number}
    starts, sizes = positions[is_own] + _HEADER.itemsize, sizes[is_own]
    if not others.issuperset(names[~is_own].tolist()) or not len(sizes) or not sizes.all():
        return None
    return starts.tolist(), (starts + sizes).tolist()


def _parts(data: bytes) -> tuple[range | None, np.ndarray]:
    """Where the chunks of LIST movi lie, None if nowhere; and the list of them, which must be at the end of the
    file."""
    movi, position = None, 12
    while data[:4] == b"RIFF" and data[8:12] == b"AVI " and position + _HEADER.itemsize <= len(data):
        name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        start, position = position + _HEADER.itemsize, position + _HEADER.itemsize + size + size % 2
        if movi is not None:
            is_list = name == b"idx1" and position == len(data) and size % _ENTRY.itemsize == 0
            return (movi, np.frombuffer(data, dtype=_ENTRY, offset=start)) if is_list else (None, _NONE)
        if name == b"LIST" and data[start : start + 4] == b"movi":
            movi = range(start + 4, position)
    return None, _NONE
