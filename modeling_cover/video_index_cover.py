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
refer to later ones are decoded after these, so frames are displayed in another order: that of their timestamps.
`scan_packets` reads all packets once; `VideoIndex.plan` says which of them some frames need.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from .video_opening_cover import check_time, packets_of


# 38 hours at 30 frames a second. An index takes some 40 bytes a packet.
_MAX_PACKETS = 2**22

# Up to this many bytes of packets are kept, so that a file of usual size is read but once. A packet takes some 700 more.
_MAX_KEPT_BYTES, _BYTES_OF_A_PACKET = 2**26, 1024

# How many times the file's size its packets may be together, since a container may refer to the same bytes again and
# again; Matroska may have packed them. Small files may be of nothing else.
_MAX_EXPANSION, _MAX_SMALL_BYTES = 4, 2**26

# Containers with an index of their own, which gives each frame a timestamp. The others (transport streams, bare streams)
# leave FFmpeg to guess, and may cut a frame into several packets.
_INDEXED_CONTAINERS = ("avi", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")

# Codecs of which each packet is one frame that is displayed, and which decode a keyframe and what follows it as if there
# had been nothing before.
_SEEKABLE_CODECS = ("av1", "h264", "hevc", "mjpeg", "mpeg4", "vp9")

_UNKNOWN = -(2**63)


class BrokenPromise(Exception):
    """What comes out of a file is not what its packets promised."""


@dataclass(frozen=True)
class VideoIndex:
    """The packets of a stream in the order in which they are decoded: N of them, of F frames that are displayed."""

    time_base: Fraction  # seconds a unit of time
    rate: Fraction | None  # frames a second, as the header has it
    timestamps: np.ndarray  # (N,) int64, when the frame is displayed, in units of time; _UNKNOWN where not told
    durations: np.ndarray  # (N,) int64, 0 where not told
    shown: np.ndarray  # (N,) bool: not those outside the file's edit list
    entries: np.ndarray  # (E,) the packets where decoding can begin, ascending; the first packet is always one
    display_order: np.ndarray  # (F,) the packet of each frame; in the packets' order where a time is not told
    packets: list[Packet] | None  # themselves, unless they take too much memory
    is_exact: bool  # whether timestamps tell the frames apart and the file is of a kind that keeps what they promise
    is_skippable: bool  # whether the decoder can tell the frames that no other refers to, and leave them out

    @property
    def num_frames(self) -> int:
        return len(self.display_order)

    @cached_property  # each window of a long video asks for it
    def times(self) -> np.ndarray | None:
        """When each frame is displayed, ascending (F,), in units of time; None where one is not known."""
        times = self.timestamps[self.display_order]
        return None if (times == _UNKNOWN).any() else times

    @property
    def fps(self) -> float | None:
        """Frames a second; None where the file does not tell."""
        if self.rate:
            return float(self.rate)
        duration = self.duration(0, self.num_frames)
        return self.num_frames / duration if duration else None

    def duration(self, first: int, stop: int) -> float | None:
        """Seconds that the frames from `first` until before `stop` last; None where the file does not tell."""
        times = self.times
        if times is not None:
            ends = times + self.durations[self.display_order]
            ticks = int(ends[first:stop].max() - times[first])
            if ticks > 0:
                return float(ticks * self.time_base)
        return float((stop - first) / self.rate) if self.rate else None

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
        """The same; if no new frame appears between `start` and `end`, the one that is displayed meanwhile.

        Raises:
            ValueError: the file does not tell when a frame is displayed.
        """
        first, stop = self._first_from(start), self._first_from(end)
        return (first, stop) if first < stop else (max(0, first - 1), max(1, first))

    def _first_from(self, seconds: float) -> int:
        """The first frame displayed `seconds` after the first of them or later."""
        times, time_base = self.times, self.time_base
        if times is None:
            if not self.rate:
                raise ValueError("it does not tell when its frames are displayed")
            times, time_base = np.arange(self.num_frames), 1 / self.rate
        # To the microsecond, since 0.1 as a float lies behind a frame at a tenth of a second.
        ticks = math.ceil(Fraction(seconds).limit_denominator(1_000_000) / time_base)
        return int(np.searchsorted(times - times[0], ticks))

    def counted(self, timestamps: Sequence[int | None]) -> "VideoIndex":
        """The same for the frames that came out of the decoder, in their order, and have these `timestamps`."""
        num_frames = len(timestamps)
        timestamps = np.array([_UNKNOWN if time is None else time for time in timestamps], dtype=np.int64)
        ticks = round(1 / (self.rate * self.time_base)) if self.rate else 0
        return replace(
            self,
            timestamps=timestamps if _ascend(timestamps) else np.full(num_frames, _UNKNOWN),
            durations=np.full(num_frames, ticks),
            shown=np.ones(num_frames, dtype=bool),
            entries=np.zeros(1, dtype=np.int64),
            display_order=np.arange(num_frames),
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
        for packet in self.display_order[list(frames)]:
            entry = self._entry_before(packet)
            if runs and entry <= runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], max(runs[-1][1], int(packet)))
            else:
                runs.append((entry, int(packet)))
        return runs

    def _entry_before(self, packet: int) -> int:
        # What is displayed before an entry but decoded behind it may refer to what precedes both.
        for entry in self.entries[: np.searchsorted(self.entries, packet, side="right")][:0:-1]:
            if self.timestamps[entry] <= self.timestamps[packet]:
                return int(entry)
        return 0


def scan_packets(container: InputContainer, stream: VideoStream) -> VideoIndex:
    """Reads all packets of a stream.

    Raises:
        ValueError: there are too many, or they are larger than the file.
    """
    timestamps, durations, shown, entries = array("q"), array("q"), array("b"), array("q")
    packets, num_bytes, is_sound, is_entry = [], 0, True, _entry_test(stream)
    max_bytes = max(_MAX_SMALL_BYTES, _MAX_EXPANSION * container.size)
    is_mp4 = container.format.name.startswith("mov")
    for number, packet in enumerate(packets_of(container, stream)):
        num_bytes += packet.size
        if number == _MAX_PACKETS:
            raise ValueError(f"it has more than {_MAX_PACKETS} packets")
        if num_bytes > max_bytes:
            raise ValueError(f"its packets are more than {max_bytes} bytes, and the file has {container.size}")
        timestamps.append(_UNKNOWN if packet.pts is None else packet.pts)
        durations.append(packet.duration or 0)
        shown.append(not packet.is_discard)
        # Of joined files, the parameters that the decoder has to be told are those of the last packet that it was sent.
        is_sound = is_sound and not packet.is_corrupt and not (is_mp4 and packet.has_sidedata("new_extradata"))
        if not number or (packet.is_keyframe and not packet.is_discard and is_entry(packet)):
            entries.append(number)
        if packets is not None:
            packets.append(packet)
            is_small = num_bytes + _BYTES_OF_A_PACKET * len(packets) <= _MAX_KEPT_BYTES
            packets = packets if is_small else None
    timestamps, durations = np.array(timestamps, dtype=np.int64), np.array(durations, dtype=np.int64)
    shown = np.array(shown, dtype=bool)
    is_told = _UNKNOWN not in timestamps
    display_order = np.flatnonzero(shown)
    if is_told:
        display_order = display_order[np.argsort(timestamps[display_order], kind="stable")]
    is_exact = is_sound and _keeps_promises(container, stream) and _ascend(timestamps[display_order])
    return VideoIndex(
        time_base=stream.time_base,
        rate=stream.average_rate or stream.guessed_rate,
        timestamps=timestamps,
        durations=durations,
        shown=shown,
        entries=np.array(entries, dtype=np.int64),
        display_order=display_order,
        packets=packets,
        is_exact=is_exact and not _has_several_segments(timestamps, shown),
        is_skippable=_is_skippable(stream),
    )


def packets_between(
    container: InputContainer, stream: VideoStream, index: VideoIndex, first: int, last: int
) -> Iterator[Packet]:
    """The packets `first` to `last` once more.

    Raises:
        BrokenPromise: the file does not yield the same packets again.
    """
    if index.packets is not None:
        for packet in index.packets[first : last + 1]:
            check_time()
            yield packet
        return
    container.seek(int(index.timestamps[first]), stream=stream)
    number = first
    for packet in packets_of(container, stream):
        if packet.pts == index.timestamps[number] and packet.is_discard != bool(index.shown[number]):
            yield packet
            if number == last:
                return
            number += 1
        elif number > first:
            break
    raise BrokenPromise(f"packet {number} is not found again")


def _keeps_promises(container: InputContainer, stream: VideoStream) -> bool:
    codec = _codec(stream)
    if container.format.name not in _INDEXED_CONTAINERS or codec not in _SEEKABLE_CODECS:
        return False
    # Two frames of MPEG-4 Part 2 may share a packet where there are B-frames.
    return codec != "mpeg4" or not stream.codec_context.has_b_frames


def _codec(stream: VideoStream) -> str:
    return stream.codec_context.codec.canonical_name


def _ascend(times: np.ndarray) -> bool:
    return len(times) > 0 and times[0] != _UNKNOWN and bool((times[1:] > times[:-1]).all())


def _has_several_segments(times: np.ndarray, shown: np.ndarray) -> bool:
    """Whether an edit list leaves out frames in the middle: what comes before a later segment has times of its own."""
    first, last = times[shown].min(), times[shown].max()
    return bool(((times > first) & (times < last) & ~shown).any())


def _entry_test(stream: VideoStream) -> Callable[[Packet], bool]:
    """Tells whether decoding can begin at a packet that the container flags as a keyframe."""
    if _codec(stream) != "h264":
        return lambda packet: True
    extradata = stream.codec_context.extradata or b""
    # An MP4 file's configuration record begins with a 1; a bare stream's parameter sets with the start code 0, 0, 1.
    length_size = (extradata[4] & 3) + 1 if len(extradata) > 4 and extradata[0] == 1 else None
    return lambda packet: _is_idr(bytes(packet), length_size)


def _is_idr(data: bytes, length_size: int | None) -> bool:
    """Whether an H.264 packet is an IDR picture. Containers also flag others, whose successors may refer further back."""
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


def _is_skippable(stream: VideoStream) -> bool:
    """Whether a decoder that is told to leave out unreferenced frames leaves out those alone."""
    if _codec(stream) != "hevc":
        return _codec(stream) == "h264"
    # With several temporal layers, FFmpeg takes frames for unreferenced to which those of a higher layer refer. Their
    # number is in the configuration record, which transport streams do not have.
    extradata = stream.codec_context.extradata or b""
    return len(extradata) > 21 and extradata[0] == 1 and extradata[21] >> 3 & 7 == 1
