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
"""Opens video files that may be a stranger's: which kinds, how large, for how long; and one error for whatever is
wrong."""

import errno
import io
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import BinaryIO

import av
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .file_access_cover import open_regular, public_name
from .image_pixels_cover import image_kind
from .video_memory_cover import check_mp4, limited_allocations


VideoSource = str | os.PathLike | bytes | BinaryIO

# FFmpeg's names of the containers and bare streams that hold their own frames. FFmpeg goes by a file's content, and a
# playlist (hls, dash), a script (concat, avs) or a pattern (image2) makes it open whatever files that content names: a
# "video" from an untrusted source could show any file of the machine. So nothing is opened but these.
_CONTAINERS = (
    "apng,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,webm,wtv,"
    "yuv4mpegpipe"
)

# A few bytes can claim to be a picture of gigabytes: 4096 x 4096, and of 32 bits. Where frames refer to others, a
# decoder keeps several of them, so these are smaller: 3840 x 2160 with 10 bits and every second colour value of a row.
_MAX_PIXELS = 2**24
_MAX_FRAME_BYTES, _MAX_LONE_FRAME_BYTES = 2**25, 2**26
_USUAL_BITS = 12  # of a pixel, before the decoder tells
# Of all frames that a decoder keeps: those that others refer to, and those that wait for their turn.
_MAX_DECODER_BYTES = 25 * 2**24
_MOST_KEPT_FRAMES = 34  # 16 of each, the last one and the next
# Of the frames that threads decode at a time.
_MAX_BYTES_OF_THREADS = 2**27
_MOST_AUTOMATIC_THREADS = 16  # that FFmpeg itself sees fit

_MAX_STREAMS = 64  # a film with its languages and subtitles has less

_DEMUXER_OPTIONS = {
    "format_whitelist": _CONTAINERS,
    "protocol_whitelist": "file",
    # As it opens a file, FFmpeg would decode the first frames of each stream, some twenty of H.264, to see what they
    # are like: that takes long, and gigabytes if there are many streams of large frames.
    "codec_whitelist": "none",
    "max_streams": str(_MAX_STREAMS),
}

# What no file is to blame for, and the next one would meet as well: no more files may be open, or a disk is full.
MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT}

# Until when files may be read, by time.monotonic().
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)

# Of a file, at a time: some 2.5 hours of 1920 x 1080, if none of it can be passed over.
_MAX_DECODED_PIXELS = 2**39
_LEAST_PIXELS = 2**10  # that a packet counts for, however small its picture


class _Work:
    """What may still be decoded, in pixels."""

    def __init__(self, pixels: int):
        self.left = pixels


_work: ContextVar[_Work | None] = ContextVar("work", default=None)


class VideoDecodingError(ValueError):
    """A video cannot be read. Whatever is wrong with it, this is the one error; it names the file and the reason."""


@contextmanager
def reading(source: VideoSource) -> Iterator[None]:
    """What goes wrong with a file leaves as a VideoDecodingError that names it; what it is not to blame for as an
    OSError."""
    try:
        yield
    except VideoDecodingError:
        raise
    except av.error.FFmpegError as error:
        if error.errno in MACHINE_ERRORS:
            raise OSError(error.errno, error.strerror, name_of(source)) from error
        reason = error.strerror
        if isinstance(error, av.error.MemoryError):  # which FFmpeg says of many streams, too
            reason = f"it takes too much memory, or has more than {_MAX_STREAMS} streams"
        elif (kind := image_kind(source)) is not None:
            reason = f"its content is an image ({kind})"
        raise VideoDecodingError(f"{name_of(source)} cannot be read as a video: {reason}") from error
    # Among them the file object's own, which come back through PyAV, and PyAV's for what it cannot describe.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise
        raise VideoDecodingError(f"{name_of(source)} cannot be read as a video: {said_of(error)}") from error


def said_of(error: Exception) -> str:
    """What an error of whatever kind says; some say nothing."""
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    # Those that are raised on purpose are sentences.
    return (
        str(error)
        if isinstance(error, OSError | ValueError | SyntaxError)
        else f"{type(error).__name__}: {error}".rstrip(": ")
    )


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within it, in this thread, a video or image that is still read after `seconds` is given up with a
    VideoDecodingError.

    For files of strangers: how long a packet takes depends on the codec. Time is looked at between two packets, and
    between two pieces of an image's file.
    """
    token = _deadline.set(min(_deadline.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def work_limit(pixels: int) -> Iterator[None]:
    """Within it, in this thread, a video is given up with a VideoDecodingError once more pixels than that are decoded.

    Unlike time, this is the same on every machine and in every run. All that is read within it counts together.
    """
    token = _work.set(_Work(pixels))
    try:
        yield
    finally:
        _work.reset(token)


class Effort:
    """Decodes, and bounds what is spent on it: a file of a few kB can have hours of giant frames."""

    def __init__(self, stream: VideoStream):
        self._stream, self._context = stream, stream.codec_context
        self._work = _work.get() or _Work(_MAX_DECODED_PIXELS)
        self._kind: tuple[int, int, str | None] | None = None  # of the frames
        self._buffers: set[int] | None = None  # where frames were, unless the decoder may keep as many as it likes
        self._work_a_packet = _LEAST_PIXELS
        self._kept_bytes = 0  # of memory, that a frame takes in the decoder

    def decode(self, packet: Packet | None) -> list[VideoFrame]:
        """The pictures that the decoder gives out for a packet; for None, those that it still holds.

        Raises:
            ValueError: decoding takes too much time or memory.
        """
        check_time()
        if packet is not None:
            self._work.left -= self._work_a_packet
            if self._work.left < 0:
                raise ValueError("it takes too long to decode: cut it, or encode it again")
        context = self._context
        pictures = context.decode(packet)
        kind = context.width, context.height, context.pix_fmt
        if kind != self._kind:
            self._kind = kind
            self._work_a_packet = max(context.width * context.height, _LEAST_PIXELS)
            self._begin_counting(check_frame_size(self._stream))
        if self._buffers is not None:
            self._count(pictures)
        return pictures

    def _begin_counting(self, frame_bytes: int) -> None:
        context = self._context
        self._kept_bytes = frame_bytes + context.width * context.height // 2  # motion takes up to half a byte a pixel
        is_bounded = context.codec.intra_only or _MOST_KEPT_FRAMES * self._kept_bytes <= _MAX_DECODER_BYTES
        self._buffers = None if is_bounded else set()

    def _count(self, pictures: list[VideoFrame]) -> None:
        """A decoder takes its buffers from a pool, which grows when all of them are in use. So there can be no more
        than have been seen, and those of the pictures that wait.

        Raises:
            ValueError: they take too much memory.
        """
        self._buffers.update(picture.planes[0].buffer_ptr for picture in pictures)
        of_threads = max(0, self._context.thread_count - 1)
        num_kept = len(self._buffers) + self._context.reorder_depth - of_threads
        if num_kept * self._kept_bytes > _MAX_DECODER_BYTES:
            size = f"{self._context.width}x{self._context.height}"
            raise ValueError(f"its decoder has to keep too many frames: {num_kept} of {size} pixels")


def check_time() -> None:
    if time.monotonic() > _deadline.get():
        raise ValueError("it takes too long to read: cut it, or encode it again")


@contextmanager
def open_video(
    source: VideoSource, num_threads: int, strict: bool = False
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens `source` and finds its video stream. A `strict` decoder raises where another one would conceal an error.

    Within the context, FFmpeg allocates no more than `MAX_ALLOCATION` bytes at a time in the whole process.
    """
    file = _input(source)
    with (
        limited_allocations(),
        av.open(file, mode="r", options=_DEMUXER_OPTIONS, metadata_errors="ignore") as container,
    ):
        stream = _video_stream(container)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        context = stream.codec_context
        frame_bytes = check_frame_size(stream)
        context.options = {"max_pixels": str(_MAX_PIXELS)} | ({"err_detect": "explode"} if strict else {})
        context.thread_type = "AUTO"
        frame_bytes = frame_bytes or context.width * context.height * _USUAL_BITS // 8
        most_threads = max(1, _MAX_BYTES_OF_THREADS // max(1, frame_bytes))
        is_large = most_threads < _MOST_AUTOMATIC_THREADS
        context.thread_count = min(num_threads or most_threads, most_threads) if is_large else num_threads
        yield container, stream


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The stream's packets from where the container stands.

    Where a truncated file ends inside a frame, the half that is left is no frame. In the middle, FFmpeg's mark of what
    is corrupt may also mean that two whole files were joined there.
    """
    # In streams without packets of their own, FFmpeg finds the end of a frame at the start of the next, and marks the
    # one before.
    is_late, was_corrupt, last = bool(container.format.flags & Flags.ts_discont.value), False, None
    for packet in container.demux(stream):
        check_time()
        if packet.size:
            if last is not None:
                yield last
                last = None
            is_corrupt = packet.is_corrupt
            if is_corrupt or was_corrupt:
                last = packet
            else:
                yield packet
            was_corrupt = is_late and is_corrupt
        elif packet.dts is None:
            # PyAV's own flushing packet for this stream. Those of the others would follow, and PyAV trips (IndexError)
            # over a stream that only appeared late in the file.
            break


def check_frame_size(stream: VideoStream) -> int:
    """The bytes of a frame, as far as they are known. Raises a `ValueError` if those that a decoder keeps would take
    too much memory."""
    context = stream.codec_context
    bits = 0 if context.format is None else context.format.padded_bits_per_pixel
    num_bytes = context.width * context.height * bits // 8
    most = _MAX_LONE_FRAME_BYTES if context.codec.intra_only else _MAX_FRAME_BYTES
    if num_bytes > most:
        size = f"{context.width}x{context.height} pixels of {bits} bits"
        raise ValueError(f"its frames are too large: {size}, more than {most} bytes")
    return num_bytes


def _input(source: VideoSource) -> str | BinaryIO:
    """What PyAV opens. FFmpeg has no bound of its own on what an MP4 file announces."""
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        if "\0" in os.fsdecode(source):
            raise ValueError("there is no such path")  # FFmpeg would take what is before the zero
        with open_regular(source) as file:
            check_mp4(file)
        # Without "file:", FFmpeg would take a name such as "a:b.mp4" for an address of protocol "a".
        return f"file:{os.fsdecode(source)}"
    check_mp4(source)
    source.seek(0)
    return source


def name_of(source: VideoSource) -> str:
    """What to call a file in messages."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, str | os.PathLike):
        return public_name(os.fsdecode(source))
    name = getattr(source, "name", None)  # of files that have one; others would show their place in memory
    return name if isinstance(name, str) else "<a file object>"


def _video_stream(container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        # The cover picture of a song counts as a video stream.
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise ValueError("there is no decoder for its video stream")
            return stream
    raise ValueError("it has no video stream")
