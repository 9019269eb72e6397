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
"""Frames out of a video file, by PyAV, which bundles FFmpeg.

`read_video` reads a file's packets, which tells how many frames there are and when each is displayed; asks its caller
which of them are wanted, so that the choice rests on the true length of the clip and not on what a header claims; and
decodes, of the packets, those that the wanted frames need. A frame's index is its rank in display order.

What comes out of the decoder is held against what the packets promised. Where the two part (a damaged file, frames
before the first keyframe, a container without timestamps), the whole file is decoded in order, and its frames counted.

Axes: T frames, H height, W width.
"""

import math
import struct
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, compress
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from transformers.video_utils import VideoMetadata

from .video_avi_cover import avi_index
from .video_index_cover import BrokenPromise, VideoIndex, packets_between, scan_packets
from .video_opening_cover import Effort, VideoDecodingError, VideoSource, open_video, packets_of, reading
from .video_times_cover import UNKNOWN


# Scaled to a short side, the long side of frames of 1 x 60,000 would fill gigabytes.
MAX_ASPECT_RATIO = 32

# For a change of format alone, these are what PyAV takes by itself. (It would look up names for each frame.)
_CONVERTING = {"format": av.VideoFormat("rgb24"), "interpolation": int(Interpolation.BILINEAR)}
# swscale widens its bilinear filter by the factor of the reduction, which is what torchvision calls antialiasing. To
# planes of each colour it scales twice as fast as to pixels, and to the same values.
_SCALING = {
    "format": av.VideoFormat("gbrp"),
    "interpolation": int(Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND),
}


def read_video(
    source: VideoSource,
    sample_indices: Callable[[VideoMetadata], Sequence[int]],
    short_side: int | None = None,
    num_threads: int = 0,
    start: float | None = None,
    end: float | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """Decodes the frames of a video that `sample_indices` asks for.

    Args:
        source: path of a file, its bytes, or a seekable binary file object (read from its start, left open).
        sample_indices: given the metadata, the indices of the wanted frames in ascending order; an index may be
            repeated. Asked again, with the corrected number, where decoding shows that there are fewer or more frames.
        short_side: height or width, whichever is shorter, to scale the frames to, antialiased; the aspect ratio is
            kept, and the longer side rounded down. Unscaled if None.
        num_threads: of the decoder; 0 for as many as FFmpeg sees fit.
        start, end: seconds since the first frame is displayed. The clip is then only the frames from `start` on that
            are displayed before `end`, and its indices count from the first of them. None for the file's own ends.

    Returns:
        The frames, uint8 of shape (T, H, W, 3), RGB, turned upright as the file says; and the metadata:
        `total_num_frames` that can be decoded, `fps` (None if unknown), `width` and `height` of the upright
        source in pixels, `duration` in seconds (None if unknown), `frames_indices`, the T indices, and `timestamps`,
        when these frames are displayed. Number, duration and times are those of the clip between `start` and `end`.
        Times ascend: of files that were joined end to end, the second plays after the first. `duration` is until the
        last frame is no longer displayed. `fps` is the header's rate or, where the times contradict it, the mean.

    Raises:
        VideoDecodingError: whatever is wrong with the file, or no frame lies between `start` and `end`. A truncated
            file is the clip up to its cut where the container lets that be read, and an error otherwise.
        ValueError: `sample_indices` returned no index, one outside the clip, or descending ones; `short_side` is not
            positive; `start` is negative or not before `end`. Errors that `sample_indices` raises pass through as
            they are.
    """
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be positive, got {short_side}")
    _check_segment(start, end)
    with ExitStack() as stack:
        with reading(source):
            container, stream = stack.enter_context(open_video(source, num_threads, strict=True))
            outline = outline_of(source, container, stream, short_side)
            clip = outline.clip(start, end)
        indices = _checked_indices(sample_indices(clip.metadata), len(clip.frames))
        with reading(source):
            images = decode_planned(container, stream, outline, [clip.frames[index] for index in indices])
    num_counts = 0
    while images is None:
        with reading(source):
            frames = [clip.frames[index] for index in indices]
            images, outline = decode_in_order(source, outline, frames, num_threads)
            counted = outline.clip(start, end)
            if counted.frames != clip.frames and num_counts == 1:
                raise ValueError("it yields another number of frames each time it is decoded")
        if counted.frames != clip.frames:
            images, num_counts = None, num_counts + 1
            indices = _checked_indices(sample_indices(counted.metadata), len(counted.frames))
        clip = counted
    clip.metadata.frames_indices = indices
    return outline.orientation.turn_upright(images), clip.metadata


class _Orientation(NamedTuple):
    """How stored frames must be turned: rows and columns exchanged first, then each of them reversed or not."""

    transposed: bool
    rows_reversed: bool
    columns_reversed: bool

    @classmethod
    def of(cls, frame: VideoFrame) -> "_Orientation":
        # The display matrix takes column x and row y of the stored frame to column ax + cy and row bx + dy.
        a, b, c, d = _display_matrix(frame)
        if abs(b) > abs(a):
            return cls(True, rows_reversed=b < 0, columns_reversed=c < 0)
        return cls(False, rows_reversed=d < 0, columns_reversed=a < 0)

    def turn_upright(self, frames: np.ndarray) -> np.ndarray:
        if self.transposed:
            frames = frames.swapaxes(1, 2)
        frames = frames[:, :: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]
        return np.ascontiguousarray(frames)


def _display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV lists no side data at all if one entry is of a kind that it does not know, such as EXIF. The angle
        # (counterclockwise) it tells all the same; only a mirroring is lost.
        angle = math.radians(frame.rotation)
        return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    return a, b, c, d


class ClipMetadata(VideoMetadata):
    """Of a clip whose frames may not follow one another at one rate."""

    # (F,), when each frame is displayed, since the first is; None where it is not told. No field, which a copy would
    # take.
    seconds = None

    @property
    def timestamps(self) -> list[float]:
        """When the chosen frames are displayed, in seconds."""
        if self.seconds is None or self.frames_indices is None:
            return super().timestamps
        return self.seconds[self.frames_indices].tolist()


class _Clip(NamedTuple):
    """The frames that are asked about, those between `start` and `end`: their indices in the whole video."""

    frames: range
    metadata: VideoMetadata


class Beginning(NamedTuple):
    """What the decoder has yielded so far, and after how many packets; 0 if it cannot go on from there."""

    pictures: list[VideoFrame]
    num_packets: int


@dataclass(frozen=True)
class Outline:
    """What a file tells without being decoded beyond its first frame."""

    index: VideoIndex
    beginning: Beginning
    orientation: _Orientation
    # Of a frame as it is stored, before it is turned.
    width: int
    height: int
    # Of the images to be made of them: (width, height).
    size: tuple[int, int]

    def clip(self, start: float | None, end: float | None) -> _Clip:
        return self.clip_of(*self.index.between(start, end), end)

    def clip_of(self, first: int, stop: int, end: float | None) -> _Clip:
        width, height = (self.height, self.width) if self.orientation.transposed else (self.width, self.height)
        duration = self.index.duration(first, stop, end)
        metadata = ClipMetadata(stop - first, self.index.fps, width, height, duration, video_backend="pyav")
        metadata.seconds = self.index.seconds(first, stop)
        return _Clip(range(first, stop), metadata)


def outline_of(source: VideoSource, container: InputContainer, stream: VideoStream, short_side: int | None) -> Outline:
    index = avi_index(source, container, stream) or scan_packets(container, stream)
    beginning = _decode_beginning(stream, index)
    frame = beginning.pictures[0] if beginning.pictures else _first_frame(source)
    if short_side and max(frame.width, frame.height) > MAX_ASPECT_RATIO * min(frame.width, frame.height):
        raise ValueError(f"its frames are too narrow to be scaled: {frame.width}x{frame.height}")
    scale = Fraction(short_side or 1, min(frame.width, frame.height) if short_side else 1)
    size = max(1, int(frame.width * scale)), max(1, int(frame.height * scale))
    return Outline(index, beginning, _Orientation.of(frame), frame.width, frame.height, size)


def _decode_beginning(stream: VideoStream, index: VideoIndex) -> Beginning:
    """Up to the first packet after which pictures come out of the decoder; nothing where that fails."""
    effort = Effort(stream)
    index.prepare(stream)
    try:
        for number, packet in enumerate(index.packets or ()):
            pictures = effort.decode(packet)
            if pictures:
                return Beginning(pictures, number + 1)
        return Beginning(effort.decode(None), 0)
    except av.error.FFmpegError:
        return Beginning([], 0)  # the decoder that decodes in order, and conceals errors, has the last word


def _first_frame(source: VideoSource) -> VideoFrame:
    with open_video(source, num_threads=1) as (container, stream):
        frame = next(_pictures_in_order(container, stream), None)
    if frame is None:
        raise ValueError("it has no frame that can be decoded")
    return frame


def _check_segment(start: float | None, end: float | None) -> None:
    if start is not None and not 0 <= start < math.inf:
        raise ValueError(f"start must be a number of seconds, 0 or more, got {start}")
    if end is not None and not (start or 0) < end < math.inf:
        raise ValueError(f"end must be a number of seconds after start, {start or 0}, got {end}")


def _checked_indices(indices: Sequence[int], total_num_frames: int) -> list[int]:
    indices = [int(index) for index in indices]
    if not indices:
        raise ValueError("sample_indices chose no frame")
    if indices != sorted(indices):
        raise ValueError(f"sample_indices must choose frames in ascending order, got {indices}")
    if indices[0] < 0 or indices[-1] >= total_num_frames:
        raise ValueError(
            f"sample_indices chose frames {indices} of a clip that has frames 0 to {total_num_frames - 1}"
        )
    return indices


class _Images:
    """The images (T, H, W, 3) of some frames, each converted as it comes out of the decoder."""

    def __init__(self, frames: list[int], size: tuple[int, int]):
        self.frames = frames
        self.width, self.height = size
        self.rows = {frame: row for row, frame in enumerate(sorted(set(frames)))}
        self.missing = set(self.rows)
        self.array = np.empty((len(self.rows), self.height, self.width, 3), dtype=np.uint8)
        self.reformatter = VideoReformatter()

    def add(self, frame: int, picture: VideoFrame) -> None:
        """Converts the picture of `frame`."""
        is_scaled = (picture.width, picture.height) != (self.width, self.height)
        # One thread: as many as there are cores, new ones for each frame, would cost more than they save.
        options = _SCALING if is_scaled else _CONVERTING
        image = self.reformatter.reformat(picture, self.width, self.height, **options, threads=1)
        pixels = self.array[self.rows[frame]]
        if is_scaled:
            for plane, channel in zip(image.planes, (1, 2, 0), strict=True):
                pixels[..., channel] = _rows(plane, self.width)
        else:
            pixels.reshape(self.height, -1)[:] = _rows(image.planes[0], 3 * self.width)
        self.missing.discard(frame)

    def stacked(self) -> np.ndarray:
        """(T, H, W, 3), as often as each frame was asked for."""
        if len(self.rows) == len(self.frames):
            return self.array
        return self.array[[self.rows[frame] for frame in self.frames]]


def _rows(plane: VideoPlane, width: int) -> np.ndarray:
    """The rows (H, width) of a plane, without the bytes that fill them up. (PyAV's `to_ndarray` copies once more.)"""
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, abs(plane.line_size))[:, :width]
    return rows if plane.line_size > 0 else rows[::-1]


def decode_planned(
    container: InputContainer, stream: VideoStream, outline: Outline, frames: list[int]
) -> np.ndarray | None:
    """The images (T, H, W, 3) of `frames`, as they are stored, from those packets alone that they need.

    None where the file is not of a kind that allows it, or does not keep what its packets promise.
    """
    index = outline.index
    if not index.is_exact:
        return None
    images = _Images(frames, outline.size)
    timestamps = index.timestamps[index.display_order[frames]].tolist()
    by_time = dict(zip(timestamps, frames, strict=True))
    decoder = _RunDecoder(container, stream, outline, wanted=by_time)
    try:
        for run in index.plan(frames):
            for picture in decoder.decode(*run):
                if picture.pts in by_time:
                    images.add(by_time[picture.pts], picture)
    except (av.error.FFmpegError, BrokenPromise):
        return None
    return None if images.missing else images.stacked()


class _RunDecoder:
    """Decodes runs of packets: of a run, the pictures of the `wanted` timestamps and those that these refer to."""

    def __init__(self, container: InputContainer, stream: VideoStream, outline: Outline, wanted: Container[int]):
        self._container = container
        self._stream = stream
        self._index = outline.index
        self._timestamps, self._shown = outline.index.timestamps.tolist(), outline.index.shown.tolist()
        self._beginning = outline.beginning
        self._wanted = wanted
        self._effort = Effort(stream)
        unreferenced = outline.index.unreferenced
        self._unreferenced = unreferenced if unreferenced is not None and unreferenced.any() else None

    def decode(self, first: int, last: int) -> Iterator[VideoFrame]:
        """The pictures of the packets `first` to `last`.

        Raises:
            BrokenPromise: the pictures show that the run may not be what its packets promise.
        """
        index, num_pictures, time = self._index, 0, UNKNOWN
        start = self._timestamps[first] if first else UNKNOWN
        pictures, next_packet = self._beginning if first == 0 else ([], first)
        if next_packet == first:
            self._stream.codec_context.flush_buffers()
        is_sent = self._is_sent(next_packet, last, start)
        packets = packets_between(self._container, self._stream, index, next_packet, is_sent)
        # Iterators in C, as each layer of generators here would take a percent of the time of a small video.
        for picture in chain(pictures, chain.from_iterable(map(self._send, chain(packets, [None])))):
            before, time = time, picture.pts
            # Of fields, two packets may make a picture.
            if time is None or picture.is_corrupt or picture.interlaced_frame:
                raise BrokenPromise(f"the picture at {time} is corrupt, interlaced or without a time")
            if time <= before:
                raise BrokenPromise(f"the picture at {time} follows that at {before}")
            if first and not num_pictures and not (picture.key_frame and time == start):
                raise BrokenPromise(f"packet {first} is no keyframe")
            num_pictures += 1
            yield picture
        if index.is_skippable:
            return
        is_decoded = [True] * (next_packet - first) + is_sent
        if num_pictures != sum(compress(self._shown[first : first + len(is_decoded)], is_decoded)):
            raise BrokenPromise(f"packets {first} to {last} yield {num_pictures} pictures")

    def _is_sent(self, first: int, last: int, start: int) -> list[bool]:
        """Of the packets `first` to `last`, those that the decoder is sent."""
        times = self._timestamps[first : last + 1]
        # Others may refer to what precedes the run, and nothing that is displayed later refers to them.
        is_sent = [time >= start for time in times]
        if self._unreferenced is not None:
            for number in np.flatnonzero(self._unreferenced[first : last + 1]).tolist():
                is_sent[number] &= times[number] in self._wanted
        return is_sent

    def _send(self, packet: Packet | None) -> list[VideoFrame]:
        """What the decoder gives out for it; for None, what it still holds."""
        if packet is not None and self._index.is_skippable:
            self._stream.codec_context.skip_frame = "DEFAULT" if packet.pts in self._wanted else "NONREF"
        return self._effort.decode(packet)


def decode_in_order(
    source: VideoSource, outline: Outline, frames: list[int], num_threads: int
) -> tuple[np.ndarray | None, Outline]:
    """The images (T, H, W, 3) of `frames`, as they are stored, and the outline, corrected where the file does not keep
    what its packets promise; no images if it then lacks one of `frames`.

    Packets promise frames that a decoder need not yield: before the first keyframe, or hidden ones. Such a gap shows
    where the pictures' timestamps part from the packets', or by the end coming early. Only then is the whole file
    decoded, to count. Otherwise decoding stops at the last frame that is wanted.
    """
    if outline.index.promised is None:
        with open_video(source, num_threads=1) as (container, stream):
            outline = replace(outline, index=scan_packets(container, stream))
    # What a decoder makes up for what is damaged depends on the number of its threads. A file that was to be decoded
    # by plan, and is here, is damaged.
    if num_threads != 1 and not outline.index.is_exact:
        try:
            return _decode_as_one(source, outline, frames, num_threads, strict=True)
        except av.error.FFmpegError:
            pass
    return _decode_as_one(source, outline, frames, num_threads=1, strict=False)


def _decode_as_one(
    source: VideoSource, outline: Outline, frames: list[int], num_threads: int, strict: bool
) -> tuple[np.ndarray | None, Outline]:
    images, last = _Images(frames, outline.size), frames[-1]
    promised = [None if time == UNKNOWN else time for time in outline.index.promised.tolist()]
    timestamps, is_key, as_promised = [], [], True
    with open_video(source, num_threads, strict) as (container, stream):
        outline.index.prepare(stream)
        for number, picture in enumerate(_pictures_in_order(container, stream)):
            timestamps.append(picture.pts)
            is_key.append(picture.key_frame)
            if number in images.rows:
                images.add(number, picture)
            as_promised = as_promised and number < len(promised) and promised[number] in (None, picture.pts)
            if as_promised and number == last:
                return images.stacked(), outline
    if not timestamps:
        raise ValueError("it has no frame that can be decoded")
    corrected = replace(outline, index=outline.index.counted(timestamps, is_key))
    return None if images.missing else images.stacked(), corrected


def _pictures_in_order(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    effort = Effort(stream)
    for packet in chain(packets_of(container, stream), [None]):  # None: the decoder gives out what it still holds
        yield from effort.decode(packet)


__all__ = ["VideoDecodingError", "VideoSource", "read_video"]
