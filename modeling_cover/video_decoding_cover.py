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

`read_video` goes through a file twice: once to count its frames, which takes demuxing only, and once to decode. In
between it asks its caller which frames are wanted, so that the choice rests on the true length of the clip and not on
what a header claims. A frame's index is its rank in display order. Its time plays no part, so a variable frame rate
needs no care.

Axes: T frames, H height, W width.
"""

import io
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from transformers.video_utils import VideoMetadata


VideoSource = str | os.PathLike | bytes | BinaryIO

# FFmpeg's names of the containers and bare streams that hold their own frames. FFmpeg goes by a file's content, and a
# playlist (hls, dash), a script (concat, avs) or a pattern (image2) makes it open whatever files that content names: a
# "video" from an untrusted source could show any file of the machine. So nothing is opened but these.
_CONTAINERS = (
    "apng,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,webm,wtv,"
    "yuv4mpegpipe"
)

_DEMUXER_OPTIONS = {
    "format_whitelist": _CONTAINERS,
    "protocol_whitelist": "file",
    # Where a truncated file ends inside a frame, the half that is left is no frame.
    "fflags": "discardcorrupt",
}

# 8192 x 8192. A few bytes can claim to be a picture of gigabytes.
_DECODER_OPTIONS = {"max_pixels": str(2**26)}


class VideoDecodingError(ValueError):
    """A video cannot be read. Whatever is wrong with it, this is the one error; it names the file and the reason."""


def uniform_frame_indices(total_num_frames: int, num_frames: int) -> list[int]:
    """The centre frame of each of `num_frames` equal segments of a whole clip.

        9 frames, 3 wanted      . # .   . # .   . # .       1, 4, 7
        2 frames, 4 wanted      #   #   #   #               0, 0, 1, 1      (a short clip repeats its frames)
        4 frames, 4 wanted      #   #   #   #               0, 1, 2, 3

    Raises:
        ValueError: if either number is not positive.
    """
    if total_num_frames < 1 or num_frames < 1:
        raise ValueError(f"cannot choose {num_frames} of {total_num_frames} frames: both numbers must be positive")
    return [(2 * i + 1) * total_num_frames // (2 * num_frames) for i in range(num_frames)]


def read_video(
    source: VideoSource,
    sample_indices: Callable[[VideoMetadata], Sequence[int]],
    short_side: int | None = None,
    num_threads: int = 0,
) -> tuple[np.ndarray, VideoMetadata]:
    """Decodes the frames of a video that `sample_indices` asks for.

    Args:
        source: path of a file, its bytes, or a seekable binary file object (read from its start, left open).
        sample_indices: given the metadata, the indices of the wanted frames in ascending order; an index may be
            repeated. Asked again, with the corrected number, where decoding shows that there are fewer or more frames.
        short_side: height or width, whichever is shorter, to scale the frames to; the aspect ratio is kept. Unscaled
            if None.
        num_threads: of the decoder; 0 for as many as FFmpeg sees fit.

    Returns:
        The frames, uint8 of shape (T, H, W, 3), RGB, turned upright as the file says; and the metadata:
        `total_num_frames` that can be decoded, `fps` (None if unknown), `width` and `height` of the upright
        source in pixels, `duration` in seconds (None if unknown) and `frames_indices`, the T indices.

    Raises:
        VideoDecodingError: whatever is wrong with the file. A truncated one is the clip up to its cut where the
            container lets that be read, and an error otherwise.
        ValueError: `sample_indices` returned no index, one outside the clip, or descending ones; `short_side` is not
            positive. Errors that `sample_indices` raises pass through as they are.
    """
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be positive, got {short_side}")
    outline = _outline(source)
    metadata = outline.metadata
    for _ in range(2):
        indices = _checked_indices(sample_indices(metadata), metadata.total_num_frames)
        images, total_num_frames = _decode(source, outline, indices, short_side, num_threads)
        if total_num_frames == metadata.total_num_frames:
            break
        metadata.total_num_frames = total_num_frames
        outline = replace(outline, timestamps=[None] * total_num_frames)
    else:
        raise VideoDecodingError(f"{_name(source)} yields another number of frames each time it is decoded")
    metadata.frames_indices = indices
    return outline.orientation.turn_upright(np.stack([images[index] for index in indices])), metadata


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


@dataclass(frozen=True)
class _Outline:
    """What a file tells without being decoded beyond its first frame."""

    metadata: VideoMetadata
    # Of the frames in display order, in the stream's unit of time. All None where some are not known.
    timestamps: list[int | None]
    # Of a frame as it is stored, before it is turned.
    width: int
    height: int
    orientation: _Orientation


def _outline(source: VideoSource) -> _Outline:
    timings, frame = [], None  # (timestamp, duration) of each packet: not the packets, which hold the file's bytes
    # More threads would only delay the first frame: each of them takes a frame of its own before one comes out.
    with _open(source, num_threads=1) as (container, stream):
        for packet in _packets(container, stream):
            if frame is None:
                frame = next(iter(stream.decode(packet)), None)
            if packet is not None and not packet.is_discard:  # what is discarded lies outside the file's edit list
                timings.append((packet.pts, packet.duration or 0))
        if frame is None:
            raise ValueError("it has no frame that can be decoded")
        orientation = _Orientation.of(frame)
        width, height = (frame.height, frame.width) if orientation.transposed else (frame.width, frame.height)
        duration, fps = _duration_and_fps(timings, stream)
        metadata = VideoMetadata(len(timings), fps, width, height, duration, video_backend="pyav")
        timestamps = [timestamp for timestamp, _ in timings]
        timestamps = [None] * len(timings) if None in timestamps else sorted(timestamps)
        return _Outline(metadata, timestamps, frame.width, frame.height, orientation)


def _duration_and_fps(timings: list[tuple[int | None, int]], stream: VideoStream) -> tuple[float | None, float | None]:
    """Duration in seconds and frame rate; None where the file does not tell."""
    rate = stream.average_rate or stream.guessed_rate
    duration = None
    if timings and all(start is not None for start, _ in timings):
        ticks = max(start + length for start, length in timings) - min(start for start, _ in timings)
        duration = float(ticks * stream.time_base)
    if not duration and rate:
        duration = float(len(timings) / rate)
    if not rate:
        return duration, len(timings) / duration if duration else None
    return duration, float(rate)


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


def _decode(
    source: VideoSource, outline: _Outline, indices: list[int], short_side: int | None, num_threads: int
) -> tuple[dict[int, np.ndarray], int]:
    """The images (H, W, 3) at `indices`, as they are stored; and the true number of frames.

    Packets promise frames that a decoder need not yield: before the first keyframe, or hidden ones. Such a gap shows
    where the frames' timestamps part from the packets', or by the end coming early. Only then is the whole file
    decoded, to count. Otherwise decoding stops at the last frame that is wanted.
    """
    scale = 1 if short_side is None else short_side / min(outline.width, outline.height)
    width, height = max(1, round(outline.width * scale)), max(1, round(outline.height * scale))
    total_num_frames, wanted, reformatter = len(outline.timestamps), set(indices), VideoReformatter()
    images, number_decoded, as_promised = {}, 0, True
    with _open(source, num_threads) as (container, stream):
        decoded = chain.from_iterable(stream.decode(packet) for packet in _packets(container, stream))
        for index, frame in enumerate(decoded):
            number_decoded += 1
            if index in wanted:
                image = reformatter.reformat(frame, width, height, format="rgb24", threads=1)
                images[index] = image.to_ndarray()
            as_promised = as_promised and index < total_num_frames and outline.timestamps[index] in (None, frame.pts)
            if as_promised and index == indices[-1]:
                return images, total_num_frames
        if not number_decoded:
            raise ValueError("it has no frame that can be decoded")
    return images, number_decoded


@contextmanager
def _open(source: VideoSource, num_threads: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens `source` and finds its video stream. What goes wrong meanwhile leaves as a VideoDecodingError."""
    try:
        file = _input(source)
        with av.open(file, mode="r", options=_DEMUXER_OPTIONS, metadata_errors="ignore") as container:
            stream = _video_stream(container)
            stream.codec_context.options = _DECODER_OPTIONS
            stream.codec_context.thread_type = "AUTO"
            stream.codec_context.thread_count = num_threads
            yield container, stream
    except av.error.FFmpegError as error:
        raise VideoDecodingError(f"{_name(source)} cannot be read as a video: {error.strerror}") from error
    # OSError: the file object's own, which comes back through PyAV. ValueError: PyAV's, for what it cannot describe, and
    # those raised here.
    except (OSError, ValueError) as error:
        raise VideoDecodingError(f"{_name(source)} cannot be read as a video: {error}") from error


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet | None]:
    """The stream's packets, and None in the end, which makes the decoder give out the frames that it still holds."""
    for packet in container.demux(stream):
        if packet.size:
            yield packet
        elif packet.dts is None:
            # PyAV's own flushing packet for this stream. Those of the others would follow, and PyAV trips (IndexError)
            # over a stream that only appeared late in the file.
            break
    yield None


def _input(source: VideoSource) -> str | BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        # Without "file:", FFmpeg would take a name such as "a:b.mp4" for an address of protocol "a".
        return f"file:{os.fsdecode(source)}"
    source.seek(0)
    return source


def _name(source: VideoSource) -> str:
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    return repr(source)


def _video_stream(container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        # The cover picture of a song counts as a video stream.
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise ValueError("there is no decoder for its video stream")
            return stream
    raise ValueError("it has no video stream")
