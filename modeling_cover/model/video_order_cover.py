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
"""In which order pictures are displayed, as their own headers say: AVI tells of a frame only when it is decoded.

`order_reader` has a reader for the codecs that it knows. It is fed the packets of a file in the order in which they
are decoded, and tells what to decode in the place of each, which is one picture.

- MPEG-4 Part 2 (ISO 14496-2): I and P pictures are displayed when the next of them is decoded, B pictures at once, and
  nothing refers to these. DivX and XviD pack B pictures into the packet before theirs, and leave a picture "not coded"
  in their place, so that each packet seems to be displayed as soon as it is decoded.
- H.264 (ISO 14496-10): each picture has a number, the picture order count, that begins again at each IDR picture.
"""

import re
from collections.abc import Iterator

import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream

from .video_times_cover import UNKNOWN


_START = b"\0\0\1"
# Of MPEG-4: a picture ("video object plane") follows, or the head of a sequence.
_VOP, _SEQUENCE = b"\0\0\1\xb6", b"\0\0\1\xb0"

# What FFmpeg, too, takes for the sign of packed pictures, in the user data of a stream.
_PACKED = re.compile(rb"DivX\d+(?:Build|b)\d+p")

_LAYER = re.compile(b"\0\0\1[\x20-\x2f]")  # the start code of a video object layer

# Kinds of pictures, as two bits of their headers have them (1 are P pictures, 3 sprites); and "not coded": the one
# before goes on.
_I, _B, _N = 0, 2, 4

# Types of a layer that FFmpeg takes to be without B pictures where it is not told.
_SIMPLE = (1, 17)

# No picture that is not coded has more bytes. (FFmpeg takes 19 for the most, `MAX_NVOP_SIZE`.)
_MAX_NOT_CODED = 32

MAX_REORDER_DEPTH = 16  # that a decoder of H.264 knows

# Of a slice, the bytes in which what is asked about lies; of a parameter set, all.
_HEADER_BYTES = 64


class _Bits:
    """Reads bits, the highest first.

    Raises:
        EOFError: there are no more.
    """

    def __init__(self, data: bytes):
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int = 1) -> int:
        self._left -= count
        if self._left < 0:
            raise EOFError("a header ends early")
        return self._value >> self._left & ((1 << count) - 1)

    def exp_golomb(self) -> int:
        zeros = 0
        while not self.read():
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


class OrderReader:
    """Of the packets that it has been fed: which are displayed, in which order."""

    def __init__(self):
        self.is_regular = True  # whether each packet so far is what this reader knows

    def picture(self, data: bytes, start: int, stop: int) -> bytes | None:
        """The picture to be decoded in the place of the next packet, `data` from `start` to `stop`; None for
        itself."""
        raise NotImplementedError

    def display_order(self) -> np.ndarray:
        """(F,), the packets whose pictures are displayed, in order."""
        raise NotImplementedError

    @property
    def is_entry(self) -> np.ndarray:
        """(N,) bool: whether decoding can begin at a packet."""
        raise NotImplementedError

    @property
    def is_unreferenced(self) -> np.ndarray | None:
        """(N,) bool: whether no other picture refers to that of a packet; None where the decoder can tell, too."""
        return None


def order_reader(stream: VideoStream, is_avi: bool) -> OrderReader | None:
    """A reader where the container does not tell the order, or the pictures tell more."""
    extradata, codec = stream.codec_context.extradata or b"", stream.codec_context.codec.canonical_name
    if codec == "mpeg4":
        return Mpeg4Order(extradata)
    return H264Order(extradata) if codec == "h264" and is_avi else None


def pictures_of(packets: Iterator[Packet], order: OrderReader) -> Iterator[Packet]:
    """The packets, of one picture each."""
    for packet in packets:
        picture = order.picture(bytes(packet), 0, packet.size)
        if picture is None:
            yield packet
        else:
            copied = packet_of(picture, packet.pts, packet.dts)
            copied.duration = packet.duration
            yield copied


def packet_of(data: bytes, presented: int | None, decoded: int | None) -> Packet:
    # Of `Packet(data)` the decoder would read on behind the data, where FFmpeg wants zeros.
    packet = Packet(len(data))
    packet.update(data)
    packet.pts, packet.dts = presented, decoded
    return packet


def reorder_depth(timestamps: np.ndarray) -> int:
    """Of packets with these timestamps (N,): how many, at most, precede one that is displayed before them."""
    if UNKNOWN in timestamps:
        return MAX_REORDER_DEPTH
    ranks = np.empty(len(timestamps), dtype=np.int64)
    ranks[np.argsort(timestamps, kind="stable")] = np.arange(len(timestamps))
    # Of the one that most precede, none that follows is displayed earlier, so all of its steps are such.
    return min(MAX_REORDER_DEPTH, int((np.arange(len(timestamps)) - ranks).max(initial=0)))


class Mpeg4Order(OrderReader):
    def __init__(self, extradata: bytes):
        super().__init__()
        self._kinds = bytearray()
        self._head = extradata  # what stands before pictures, of their sequence
        self._is_packed = _PACKED.search(extradata) is not None
        self._layer, self._time_bits, self._has_b_pictures = b"", 0, False
        self._read_layer(extradata)
        self._waiting: bytes | None = (
            None  # a B picture, packed with another, to be decoded in place of the next packet
        )

    def picture(self, data: bytes, start: int, stop: int) -> bytes | None:
        if not self._is_packed and data.startswith(_VOP, start) and stop - start > _MAX_NOT_CODED:  # as most are
            self._kinds.append(data[start + len(_VOP)] >> 6)
            return None
        first = data.find(_VOP, start, stop)
        if first > start:
            self._read_head(data[start:first])
        kind, picture = self._kind_of(data, first, stop), None
        # The decoder, too, looks for a second one only where the stream is said to have them.
        second = data.find(_VOP, first + len(_VOP), stop) if self._is_packed and first >= 0 else -1
        if self._waiting is not None:
            self.is_regular &= second < 0 and kind in (_B, _N) and not data.startswith(_SEQUENCE, start)
            picture, self._waiting = self._waiting, data[start:stop] if kind == _B else None
            kind = _B
        elif second >= 0:
            self.is_regular &= self._kind_of(data, second, stop) == _B
            self.is_regular &= data.find(_VOP, second + len(_VOP), stop) < 0
            picture, self._waiting = _cut(data, start, second), data[second:stop]
        self._kinds.append(kind)
        return picture

    def display_order(self) -> np.ndarray:
        kinds = self._column
        if _B not in self._kinds:
            is_displayed = kinds != _N
            if len(kinds) and not self._has_b_pictures:
                is_displayed[-1] = True  # at the end FFmpeg repeats the picture that goes on
            return np.flatnonzero(is_displayed)
        # The decoder tells by the times in pictures which B pictures it can decode, and those of N pictures are among
        # them.
        self.is_regular &= self._has_b_pictures and _N not in self._kinds
        references, b_pictures = np.flatnonzero((kinds != _B) & (kinds != _N)), np.flatnonzero(kinds == _B)
        # Each by the packet at which it is displayed. Of the first B pictures, what they refer to is not there.
        turns = np.append(references[1:], len(kinds))
        b_pictures = b_pictures[b_pictures > turns[0]]
        displayed = np.concatenate([references, b_pictures])
        return displayed[np.argsort(np.concatenate([turns[: len(references)], b_pictures]))]

    @property
    def is_entry(self) -> np.ndarray:
        return self._column == _I

    @property
    def is_unreferenced(self) -> np.ndarray:
        return self._column == _B

    @property
    def _column(self) -> np.ndarray:
        """(N,) uint8, the kind of each picture."""
        return np.frombuffer(bytes(self._kinds), dtype=np.uint8)

    def _read_head(self, head: bytes) -> None:
        if head != self._head:
            self._head = head
            if not self._is_packed and _PACKED.search(head):
                self._is_packed = True
                self.is_regular &= not self._kinds  # once the decoder knows, it treats pictures before otherwise, too
            self._read_layer(head)

    def _read_layer(self, head: bytes) -> None:
        found = _LAYER.search(head)
        if found is None:
            return
        end = head.find(_START, found.end())
        layer = head[found.end() : end if end >= 0 else len(head)]
        if layer != self._layer:
            self._layer = layer
            self._time_bits, self._has_b_pictures = _told_of_layer(layer)

    def _kind_of(self, data: bytes, start: int, stop: int) -> int:
        kind = start + len(_VOP)
        if start < 0 or kind == stop:
            self.is_regular = False
            return _N
        if stop - start <= _MAX_NOT_CODED and not self._is_coded(data[kind:stop]):
            return _N
        return data[kind] >> 6

    def _is_coded(self, header: bytes) -> bool:
        try:
            bits = _Bits(header)
            bits.read(2)
            while bits.read():
                pass  # a second each
            bits.read(1 + self._time_bits + 1)
            return bool(bits.read())
        except EOFError:
            self.is_regular = False
            return False


def _told_of_layer(layer: bytes) -> tuple[int, bool]:
    """Of the head of a layer: how many bits of a picture's header its time within the second takes, 0 if the head is
    cut; and whether there may be B pictures."""
    try:
        bits = _Bits(layer[:_HEADER_BYTES])
        bits.read(1)  # random access
        has_b_pictures = bits.read(8) not in _SIMPLE
        if bits.read():
            bits.read(4 + 3)  # version, priority
        if bits.read(4) == 15:
            bits.read(8 + 8)  # aspect ratio
        if bits.read():
            bits.read(2)  # chroma
            has_b_pictures = not bits.read()
            if bits.read():
                bits.read(79)  # buffer
        bits.read(2 + 1)  # shape
        return max(1, (bits.read(16) - 1).bit_length()), has_b_pictures
    except EOFError:
        return 0, False


def _cut(data: bytes, start: int, second: int) -> bytes:
    """The first picture of a packet, up to where the second begins.

    The decoder looks at some bytes behind a picture to find its end, so the head of the second stays. With another bit
    in its kind, the decoder takes it for none that is packed.
    """
    kind = second + len(_VOP)
    return data[start:kind] + bytes([data[kind] | 0x40]) + data[kind + 1 : kind + 9]


class H264Order(OrderReader):
    """Of a stream of frames, not fields, with start codes."""

    def __init__(self, extradata: bytes):
        super().__init__()
        self._parameters: bytes | None = None
        self._frame_num_bits = 0
        self._count_bits = 0  # 0: pictures are displayed in the order in which they are decoded
        self._latest = 0  # the picture order count of the last picture that others refer to
        self._group = 0  # how many IDR pictures there were
        self._keys: list[tuple[int, int]] = []  # of each packet, ascending as pictures are displayed
        self._is_idr: list[bool] = []
        self._read_parameters(extradata)

    def picture(self, data: bytes, start: int, stop: int) -> bytes | None:
        number = len(self._keys)
        try:
            self._read(data[start:stop])
        except EOFError:
            self.is_regular = False
        if len(self._keys) == number:  # no picture has been found in it
            self.is_regular = False
            self._add(is_idr=False, count=0)
        return None

    def display_order(self) -> np.ndarray:
        return np.array(sorted(range(len(self._keys)), key=self._keys.__getitem__), dtype=np.int64)

    @property
    def is_entry(self) -> np.ndarray:
        return np.array(self._is_idr, dtype=bool)

    def _add(self, is_idr: bool, count: int) -> None:
        self._group += is_idr
        self._keys.append((self._group, count))
        self._is_idr.append(is_idr)

    def _read(self, data: bytes) -> None:
        for unit in _units_of(data):
            kind = unit[0] & 31
            if kind in (7, 8):
                self._read_parameters(_START + unit)
            elif kind in (1, 5):
                self._read_slice(unit)
                return
            elif 2 <= kind <= 4:
                raise EOFError("a slice in parts")

    def _read_parameters(self, data: bytes) -> None:
        for unit in _units_of(data):
            if unit[0] & 31 != 7:
                continue
            unit = unit.rstrip(b"\0")
            if self._parameters is not None and unit != self._parameters:
                self.is_regular = False  # there are several: which of them holds is told elsewhere
            elif self._parameters is None:
                self._parameters = unit
                try:
                    self._parse_parameters(_Bits(_unescaped(unit)[1:]))
                except EOFError:
                    self.is_regular = False

    def _parse_parameters(self, bits: _Bits) -> None:
        profile = bits.read(8)
        bits.read(16)
        bits.exp_golomb()
        if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
            if bits.exp_golomb() == 3:
                raise EOFError("colours may be apart")
            bits.exp_golomb()
            bits.exp_golomb()
            bits.read()
            if bits.read():
                raise EOFError("a scaling matrix")
        self._frame_num_bits = bits.exp_golomb() + 4
        count_type = bits.exp_golomb()
        if count_type == 0:
            self._count_bits = bits.exp_golomb() + 4
        elif count_type == 1:
            raise EOFError("counts that are predicted")
        bits.exp_golomb()  # references
        bits.read()
        bits.exp_golomb()  # width
        bits.exp_golomb()  # height
        if not bits.read():
            raise EOFError("fields")

    def _read_slice(self, unit: bytes) -> None:
        if self._parameters is None:
            raise EOFError("no parameters")
        is_idr, is_unreferenced = unit[0] & 31 == 5, not unit[0] >> 5 & 3
        bits = _Bits(_unescaped(unit[:_HEADER_BYTES])[1:])
        bits.exp_golomb()  # first macroblock
        bits.exp_golomb()  # kind
        bits.exp_golomb()  # parameter set
        bits.read(self._frame_num_bits)
        if is_idr:
            bits.exp_golomb()
            self._latest = 0
        count = len(self._keys)
        if self._count_bits:
            # The bits that are not told are those that bring it nearest to the last one (8.2.1.1).
            period = 1 << self._count_bits
            count = self._latest + (bits.read(self._count_bits) - self._latest + period // 2) % period - period // 2
            self._latest = self._latest if is_unreferenced else count
        self._add(is_idr, count)


def _units_of(data: bytes) -> Iterator[bytes]:
    start = data.find(_START)
    while start >= 0:
        end = data.find(_START, start + 3)
        unit = data[start + 3 : end if end >= 0 else len(data)]
        if unit:
            yield unit
        start = end


def _unescaped(data: bytes) -> bytes:
    return data.replace(b"\0\0\3", b"\0\0")


def is_idr(data: bytes, length_size: int | None) -> bool:
    """Whether an H.264 packet is an IDR picture. Containers also flag others, whose successors may refer further
    back."""
    position = 0
    while True:
        if length_size is None:
            start = data.find(b"\0\0\1", position)
            header, following = start + 3, start + 4
        else:
            start, header = position, position + length_size
            following = header + int.from_bytes(data[position:header], "big")
        if start < 0 or header >= len(data):
            return False
        kind = data[header] & 31
        if kind in (1, 5):  # a slice of another picture, or of an IDR picture
            return kind == 5
        position = following
