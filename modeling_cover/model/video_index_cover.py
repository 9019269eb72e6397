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
"""What a video file tells without being decoded: its frames, their times, and where decoding can begin.

A container is a sequence of packets, each of a compressed frame, in the order in which they are decoded. Frames that
refer to later ones are decoded after these, so frames are displayed in another order: that of their timestamps, or, in
AVI, which has none, that which the pictures' own headers tell. `scan_packets` reads all packets once;
`VideoIndex.plan` says which of them some frames need.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import compress

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from .video_opening_cover import packets_of
from .video_order_cover import MAX_REORDER_DEPTH, is_idr, order_reader, pictures_of, reorder_depth
from .video_times_cover import UNKNOWN, Announced, Clock, TimeLine, rate_of, time_line


# 38 hours at 30 frames a second. An index takes some 40 bytes a packet.
_MAX_PACKETS = 2**22

# A packet takes some bytes of the file, if not for its data, then for its place in a list; of a few packets, none
# need.
_LEAST_BYTES_A_PACKET, _FEW_PACKETS = 4, 2**14

# Up to this many bytes of packets are kept, so that a file of usual size is read but once. A packet takes some 700
# more.
_MAX_KEPT_BYTES, _BYTES_OF_A_PACKET = 2**26, 1024

# How many times the file's size its packets may be together, since a container may refer to the same bytes again and
# again; Matroska may have packed them. Small files may be of nothing else.
_MAX_EXPANSION, _MAX_SMALL_BYTES = 4, 2**26

_AVI, _MATROSKA, _MP4 = "avi", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's names

# Containers with an index of their own, which gives each frame a time. The others (transport streams, bare streams)
# leave FFmpeg to guess, and may cut a frame into several packets.
_INDEXED_CONTAINERS = (_AVI, _MATROSKA, _MP4)

# Those whose header says when the whole ends; and those of which each packet says how long the frame is displayed.
_HAVE_END = (_MATROSKA, "flv")
_HAVE_FRAME_DURATIONS = (_AVI, "gif", "apng")

# Codecs of which each packet is one frame that is displayed, and which decode a keyframe and what follows it as if
# there had been nothing before.
_SEEKABLE_CODECS = ("av1", "h264", "hevc", "mjpeg", "mpeg4", "vp9")


class BrokenPromise(Exception):
    """What comes out of a file is not what its packets promised."""


@dataclass(frozen=True)
class VideoIndex:
    """The packets of a stream in the order in which they are decoded: N of them, of F frames that are displayed."""

    time_base: Fraction  # seconds a unit of time
    header_rate: Fraction | None  # frames a second, as the header has it
    timestamps: (
        np.ndarray
    )  # (N,) int64, of each packet and its picture, ascending as they are displayed; may be UNKNOWN
    marks: np.ndarray  # (N,) int64, the time by which the container finds a packet again
    shown: np.ndarray  # (N,) bool: not those outside the file's edit list
    unreferenced: np.ndarray | None  # (N,) bool: no other picture refers to theirs; None where the decoder must tell
    entries: np.ndarray  # (E,) the packets where decoding can begin, ascending; the first packet is always one
    display_order: np.ndarray  # (F,) the packet of each frame; in the packets' order where a time is not told
    promised: np.ndarray | None  # (F,) int64, the timestamp of each frame if the file is decoded in order
    line: TimeLine | None  # when each frame is displayed; None where that of one is not known
    packets: Sequence[Packet] | None  # themselves, unless they take too much memory
    clock: Clock
    reorder_depth: int  # how many frames, at most, are decoded before one that is displayed before them
    is_exact: bool  # whether timestamps tell the frames apart and the file is of a kind that keeps what they promise
    is_skippable: bool  # whether the decoder can tell the frames that no other refers to, and leave them out

    def prepare(self, stream: VideoStream) -> None:
        """Before the first packet is decoded: tells the decoder what FFmpeg would guess from the first 20 frames.

        Where an H.264 stream does not say how far its frames are out of order, a decoder that reckons with less drops
        some.
        """
        if _codec(stream) == "h264":
            stream.codec_context.reorder_depth = self.reorder_depth

    @property
    def num_frames(self) -> int:
        return len(self.display_order)

    @cached_property
    def rate(self) -> Fraction | None:
        """Frames a second; None where the file does not tell."""
        return rate_of(self.line, self.num_frames, self.header_rate, self.time_base)

    @property
    def times(self) -> np.ndarray | None:
        """When each frame is displayed, ascending (F,), in units of time; None where one is not known."""
        return None if self.line is None else self.line.times

    def agrees_with(self, other: "VideoIndex") -> bool:
        """Whether both have as many frames, displayed at the same times."""
        if self.times is None or other.times is None:
            return self.num_frames == other.num_frames and self.times is other.times
        return np.array_equal(self.times, other.times)

    @property
    def fps(self) -> float | None:
        """Frames a second; None where the file does not tell."""
        return float(self.rate) if self.rate else None

    def duration(self, first: int, stop: int, end: float | None = None) -> float | None:
        """Seconds from when frame `first` is displayed until `stop` is, or the last frame no longer is.

        Of frames that were asked for up to `end`, in seconds since the first of the file, the last counts until then,
        and for as long as others in any case, but not for the whole of a pause. None where the file does not tell.
        """
        if self.line is None or self.line.length <= 0:
            return float((stop - first) / self.rate) if self.rate else None
        times = self.line.times
        until = int(times[stop]) if stop < self.num_frames else self.line.end
        if end is not None:
            until = min(until, max(int(times[0]) + self._ticks(end), int(times[stop - 1]) + self.line.usual))
        return float((until - int(times[first])) * self.time_base)

    def seconds(self, first: int, stop: int) -> np.ndarray | None:
        """When the frames from `first` until before `stop` are displayed (F,), in seconds since `first` is; None where
        the file does not tell."""
        times = self.times
        return None if times is None else (times[first:stop] - times[first]) * float(self.time_base)

    def between(self, start: float | None, end: float | None) -> tuple[int, int]:
        """The frames, from the first until before the second, displayed from `start` on and before `end`, in seconds.

        Raises:
            ValueError: there is none, or the file does not tell when a frame is displayed.
        """
        if start is None and end is None:
            return 0, self.num_frames
        first = 0 if start is None else self._first_from(start)
        stop = self.num_frames if end is None else self._first_from(end)
        if first >= stop:
            duration = self.duration(0, self.num_frames)
            raise ValueError(f"none of its frames lies between {start} and {end} seconds: it lasts {duration} seconds")
        return first, stop

    def shown_between(self, start: float, end: float) -> tuple[int, int]:
        """The frames displayed between `start` and `end`; if no new one appears, the one that is there meanwhile."""
        first, stop = self._first_from(start), self._first_from(end)
        return (first, stop) if first < stop else (max(0, first - 1), max(1, first))

    def _first_from(self, seconds: float) -> int:
        """The first frame displayed `seconds` after the first of them or later."""
        if self.times is not None:
            return int(np.searchsorted(self.times - self.times[0], self._ticks(seconds)))
        if not self.rate:
            raise ValueError("it does not tell when its frames are displayed")
        return min(self.num_frames, math.ceil(_exact(seconds) * self.rate))

    def _ticks(self, seconds: float) -> int:
        return math.ceil(_exact(seconds) / self.time_base)

    def counted(self, timestamps: Sequence[int | None], is_key: Sequence[bool]) -> "VideoIndex":
        """The index of the frames that came out of the decoder, in their order; `timestamps` are the file's."""
        num_frames = len(timestamps)
        told = np.array([UNKNOWN if time is None else time for time in timestamps], dtype=np.int64)
        parts = self.clock.parts(told, np.array(is_key, dtype=bool), self.time_base)
        told = told[np.lexsort((told, parts))]
        last = self.line.end - int(self.line.times[-1]) if self.line else 0
        nothing = Announced(None, is_certain=False, frames_have_own=False)
        return replace(
            self,
            timestamps=told,
            marks=told,
            shown=np.ones(num_frames, dtype=bool),
            unreferenced=None,
            entries=np.zeros(1, dtype=np.int64),
            display_order=np.arange(num_frames),
            promised=np.full(num_frames, UNKNOWN),
            line=time_line(told, parts, last, nothing, _ticks_a_frame(self.header_rate, self.time_base)),
            packets=None,
            is_exact=False,
        )

    def plan(self, frames: Sequence[int]) -> list[tuple[int, int]]:
        """The runs of packets (first, last) that `frames`, indices in display order, need to be decoded.

        Each run begins where decoding can; ascending, none touching the next.

            packets             0 1 2 3 4 5 6 7 8 9       decoding can begin at 0, 4 and 8
            frames 2 and 5      0-------------5           2 needs 0 to 2, 5 needs 4 to 5: apart
                                0---2   4-5
        """
        runs = []
        packets = self.display_order[list(frames)]
        places = np.searchsorted(self.entries, packets, side="right") - 1
        # What is displayed before an entry but decoded behind it may refer to what precedes both.
        while (is_early := (self.timestamps[self.entries[places]] > self.timestamps[packets]) & (places > 0)).any():
            places -= is_early
        for entry, packet in zip(self.entries[places].tolist(), packets.tolist(), strict=True):
            if runs and entry <= runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], max(runs[-1][1], packet))
            else:
                runs.append((entry, packet))
        return runs


def _exact(seconds: float) -> Fraction:
    """To the microsecond, since 0.1 as a float lies behind a frame at a tenth of a second."""
    return Fraction(seconds).limit_denominator(1_000_000)


class _Scan:
    """What the packets of a stream say, in the order in which they are decoded."""

    def __init__(self, container: InputContainer, stream: VideoStream):
        self.presented, self.decoded, self.durations = array("q"), array("q"), array("q")
        self.shown, self.keys, self.entries = array("b"), array("b"), array("b")
        self.packets: list[Packet] | None = []
        self.is_sound = True
        self.order = order_reader(stream, container.format.name == _AVI)
        packets, is_entry = packets_of(container, stream), _entry_test(stream)
        if self.order is None:
            self._read(container, packets, is_entry)
        else:
            self._read(container, pictures_of(packets, self.order), lambda packet: False)
            self.entries = array("b", self.order.is_entry.tolist())

    def _read(self, container: InputContainer, packets: Iterator[Packet], is_entry: Callable[[Packet], bool]) -> None:
        max_bytes = max(_MAX_SMALL_BYTES, _MAX_EXPANSION * container.size)
        max_packets = min(_MAX_PACKETS, max(_FEW_PACKETS, container.size // _LEAST_BYTES_A_PACKET))
        is_mp4, num_bytes = container.format.name == _MP4, 0
        for number, packet in enumerate(packets):
            size, presented, decoded = packet.size, packet.pts, packet.dts
            num_bytes += size
            if number == max_packets:
                raise ValueError(f"it has more than {max_packets} packets, and {container.size} bytes")
            if num_bytes > max_bytes:
                raise ValueError(f"its packets are more than {max_bytes} bytes, and the file has {container.size}")
            is_key = packet.is_keyframe
            self.presented.append(UNKNOWN if presented is None else presented)
            self.decoded.append(UNKNOWN if decoded is None else decoded)
            self.durations.append(packet.duration or 0)
            self.shown.append(not packet.is_discard)
            self.keys.append(is_key)
            self.entries.append(is_key and is_entry(packet))
            # Of joined files, the parameters that the decoder has to be told are those of the last packet that it was
            # sent.
            if packet.is_corrupt or (is_mp4 and packet.has_sidedata("new_extradata")):
                self.is_sound = False
            if self.packets is not None:
                self.packets.append(packet)
                if num_bytes + _BYTES_OF_A_PACKET * number > _MAX_KEPT_BYTES:
                    self.packets = None


def _column(values: array) -> np.ndarray:
    """(N,), int64 or bool, what was gathered of each packet."""
    return np.array(values, dtype=np.int64 if values.typecode == "q" else bool)


def scan_packets(container: InputContainer, stream: VideoStream) -> VideoIndex:
    """Reads all packets of a stream.

    Raises:
        ValueError: there are too many, or they are larger than the file.
    """
    scan, clock, name = _Scan(container, stream), Clock.of(container), container.format.name
    presented, decoded, shown = _column(scan.presented), _column(scan.decoded), _column(scan.shown)
    parts = clock.parts(decoded, _column(scan.keys), stream.time_base)
    timestamps, display_order = presented, np.flatnonzero(shown)
    order = None if scan.order is None else scan.order.display_order()
    is_exact = scan.is_sound and not parts.any() and not _has_several_segments(presented, shown)
    is_exact = is_exact and (scan.order is None or scan.order.is_regular)
    is_exact = is_exact and name in _INDEXED_CONTAINERS and _codec(stream) in _SEEKABLE_CODECS
    if name == _AVI and is_exact and order is not None and UNKNOWN not in decoded:
        display_order, shown = order, np.zeros(len(shown), dtype=bool)
        shown[order] = True
        timestamps = in_place(order, np.sort(decoded[order]), len(shown))
        if scan.packets is not None:
            for packet, timestamp in zip(scan.packets, timestamps.tolist(), strict=True):
                packet.pts = timestamp
    elif UNKNOWN not in presented:
        display_order = display_order[np.lexsort((presented[display_order], parts[display_order]))]
        is_exact = is_exact and (order is None or np.array_equal(order, display_order))
    return VideoIndex(
        time_base=stream.time_base,
        header_rate=stream.average_rate or stream.guessed_rate,
        timestamps=timestamps,
        marks=decoded if name == _AVI else presented,
        shown=shown,
        unreferenced=None if scan.order is None else scan.order.is_unreferenced,
        entries=np.union1d([0], np.flatnonzero(_column(scan.entries) & shown)).astype(np.int64),
        display_order=display_order,
        promised=presented[display_order],
        line=_line(scan, container, stream, display_order, parts),
        packets=scan.packets,
        clock=clock,
        # A guess of FFmpeg's, of AVI whose pictures do not tell.
        reorder_depth=MAX_REORDER_DEPTH if name == _AVI and not is_exact else reorder_depth(timestamps),
        is_exact=is_exact and _ascend(timestamps[display_order]),
        is_skippable=_is_skippable(stream),
    )


def _line(
    scan: _Scan, container: InputContainer, stream: VideoStream, display_order: np.ndarray, parts: np.ndarray
) -> TimeLine | None:
    if not len(display_order):
        return None
    is_avi, last = container.format.name == _AVI, int(display_order[-1])
    # AVI has a frame displayed when one is decoded.
    told = np.sort(_column(scan.decoded)[display_order]) if is_avi else _column(scan.presented)[display_order]
    # Of MP4, durations are the times from decoding one frame to decoding the next.
    is_told = container.format.name != _MP4 or last == len(parts) - 1
    announced = _announced(container, stream, _column(scan.shown), int(told[0]))
    usual = _ticks_a_frame(stream.average_rate or stream.guessed_rate, stream.time_base)
    return time_line(told, parts[display_order], scan.durations[last] if is_told else 0, announced, usual)


def in_place(display_order: np.ndarray, told: np.ndarray, num_packets: int) -> np.ndarray:
    """A timestamp for each packet (N,): those of frames (F,) and, of what is not displayed, that of the latest
    frame."""
    timestamps = np.full(num_packets, UNKNOWN)
    timestamps[display_order] = told
    return np.where(timestamps == UNKNOWN, np.maximum.accumulate(timestamps), timestamps)


def _announced(container: InputContainer, stream: VideoStream, shown: np.ndarray, first: int) -> Announced:
    """What the header says of the end, `first` being when the first frame is displayed. (Of transport and program
    streams, FFmpeg makes it up.)"""
    name, end = container.format.name, None
    if name == _MP4 and stream.duration is not None:
        end = first + stream.duration
    elif name in _HAVE_END and container.duration is not None and len(container.streams) == 1:
        # Of all streams together: where there are others, one of them may be longer.
        end = round(Fraction(container.duration, av.time_base) / stream.time_base)
    # Edit lists may name an end that the frames do not reach.
    is_certain = name == _MP4 and bool(shown.all()) and len(shown) == stream.frames
    return Announced(end, is_certain, frames_have_own=name in _HAVE_FRAME_DURATIONS)


def _ticks_a_frame(rate: Fraction | None, time_base: Fraction) -> int | None:
    return round(1 / (rate * time_base)) if rate else None


def packets_between(
    container: InputContainer, stream: VideoStream, index: VideoIndex, first: int, is_wanted: Sequence[bool]
) -> Iterator[Packet]:
    """Of the packets from `first` on, those that are wanted.

    Raises:
        BrokenPromise: the file does not yield the same packets again.
    """
    numbers = range(first, first + len(is_wanted))
    if index.packets is None:
        return compress(_packets_again(container, stream, index, numbers), is_wanted)
    return map(index.packets.__getitem__, compress(numbers, is_wanted))


def _packets_again(
    container: InputContainer, stream: VideoStream, index: VideoIndex, numbers: range
) -> Iterator[Packet]:
    is_avi = container.format.name == _AVI
    container.seek(int(index.marks[numbers.start]), stream=stream)
    order, packets, number = order_reader(stream, is_avi), packets_of(container, stream), numbers.start
    for packet in packets if order is None else pictures_of(packets, order):
        mark = packet.dts if is_avi else packet.pts
        if mark == index.marks[number] and (is_avi or packet.is_discard != bool(index.shown[number])):
            if is_avi:
                packet.pts = int(index.timestamps[number])
            yield packet
            number += 1
            if number == numbers.stop:
                return
        elif number > numbers.start:
            break
    raise BrokenPromise(f"packet {number} is not found again")


def _codec(stream: VideoStream) -> str:
    return stream.codec_context.codec.canonical_name


def _ascend(times: np.ndarray) -> bool:
    return len(times) > 0 and times[0] != UNKNOWN and bool((times[1:] > times[:-1]).all())


def _has_several_segments(times: np.ndarray, shown: np.ndarray) -> bool:
    """Whether an edit list leaves out frames in the middle: what comes before a later segment has times of its own."""
    if shown.all() or not shown.any():
        return False
    first, last = times[shown].min(), times[shown].max()
    return bool(((times > first) & (times < last) & ~shown).any())


def _entry_test(stream: VideoStream) -> Callable[[Packet], bool]:
    """Tells whether decoding can begin at a packet that the container flags as a keyframe."""
    if _codec(stream) != "h264":
        return lambda packet: True
    extradata = stream.codec_context.extradata or b""
    # An MP4 file's configuration record begins with a 1; a bare stream's parameter sets with the start code 0, 0, 1.
    length_size = (extradata[4] & 3) + 1 if len(extradata) > 4 and extradata[0] == 1 else None
    return lambda packet: is_idr(bytes(packet), length_size)


def _is_skippable(stream: VideoStream) -> bool:
    """Whether a decoder that is told to leave out unreferenced frames leaves out those alone."""
    if _codec(stream) != "hevc":
        return _codec(stream) == "h264"
    # With several temporal layers, FFmpeg takes frames for unreferenced to which those of a higher layer refer. Their
    # number is in the configuration record, which transport streams do not have.
    extradata = stream.codec_context.extradata or b""
    return len(extradata) > 21 and extradata[0] == 1 and extradata[21] >> 3 & 7 == 1
