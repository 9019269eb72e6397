# SPDX-License-Identifier: Apache-2.0
"""One row of a compact dataset: its file decoded, its frames sampled, scaled and encoded again.

Axes: T frames, H height, W width.
"""

import io
import os
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import PIL.Image
from av.video.reformatter import VideoReformatter
from transformers.video_utils import VideoMetadata

from ..data.samples import check_is_of_file
from ..data.sources import Source
from ..data.sources.media import Media
from ..model.frame_sampling_cover import uniform_frame_indices
from ..model.image_reading_cover import read_image_tensor
from ..model.video_decoding_cover import VideoDecodingError, read_video
from ..recipe.checks import check_whole_number


class _Codec(NamedTuple):
    """A codec's modality, the extension of its files, and its own scale of quality: lowest and highest number,
    default."""

    modality: str
    extension: str
    lowest: int
    highest: int
    default: int


# The defaults were chosen by examples/benchmark_data.py: see docs/compact_data.md.
CODECS = {
    "mjpeg": _Codec("video", "mp4", 2, 31, 3),  # FFmpeg's scale, 2 is the finest
    "h264": _Codec("video", "mp4", 1, 51, 23),  # x264's constant rate factor, 1 is the finest
    "jpeg": _Codec("image", "jpg", 1, 100, 90),  # Pillow's scale, 100 is the finest
    "webp": _Codec("image", "webp", 1, 100, 90),
}
_DEFAULT_CODECS = {"video": "mjpeg", "image": "jpeg"}


@dataclass(frozen=True, kw_only=True)
class PreparationSettings:
    """What becomes of each row.

    A video of fewer than `num_frames` frames keeps all it has; an image is one frame.

    Raises:
        ValueError: if a value is not what it must be, or does not apply to the modality.
    """

    modality: str  # of the dataset, "video" or "image"
    num_frames: int | None = None  # of a clip, spread over the whole video, 16 by default
    short_side: int = 256  # of a frame, in pixels, to which larger ones are scaled down
    codec: str | None = None  # one of `CODECS`, by default "mjpeg" for videos and "jpeg" for images
    quality: int | None = None  # on the codec's own scale; see `CODECS` for it and for the default
    shard_size: int = 1000  # rows

    def __post_init__(self):
        if self.modality == "image" and self.num_frames not in (None, 1):
            raise ValueError(f"num_frames does not apply to images, got {self.num_frames}")
        self._default("num_frames", 16 if self.modality == "video" else 1)
        for name in ("num_frames", "short_side", "shard_size"):
            check_whole_number(name, getattr(self, name))
        self._default("codec", _DEFAULT_CODECS[self.modality])
        codecs = [name for name, codec in CODECS.items() if codec.modality == self.modality]
        if self.codec not in codecs:
            raise ValueError(f"codec: expected one of {', '.join(codecs)} for {self.modality}s, got {self.codec!r}")
        codec = CODECS[self.codec]
        self._default("quality", codec.default)
        check_whole_number("quality", self.quality)
        if not codec.lowest <= self.quality <= codec.highest:
            raise ValueError(
                f"quality: expected {codec.lowest} to {codec.highest} for {self.codec}, got {self.quality}"
            )

    def _default(self, name: str, value: Any) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    @property
    def extension(self) -> str:
        return CODECS[self.codec].extension


class PreparedRow(NamedTuple):
    """One row as it goes into a shard, or why it does not."""

    row: int
    path: str  # what its file is called
    content: bytes | None = None  # the encoded clip or image; None if the file cannot be read
    annotation: dict[str, Any] | None = None  # its .json member
    bytes_before: int = 0
    reason: str | None = None  # why the file cannot be read


def prepare_row(source: Source, row: int, settings: PreparationSettings) -> PreparedRow:
    """Decode, sample, scale and encode one row. A file that cannot be read is no error.

    Raises:
        OSError: if the dataset as a whole is gone, or no more files may be open.
    """
    path = f"row {row}"
    try:
        media = source.media[row]
        path = media.name
        with media.on_disk() as local:
            prepare = _prepare_video if settings.modality == "video" else _prepare_image
            content, annotation = prepare(local, settings)
            size = len(local.content) if isinstance(local.content, bytes) else os.path.getsize(local.content)
    except (VideoDecodingError, OSError) as error:
        check_is_of_file(error, source)
        # A file that came as bytes is named by what it is called, as others are.
        reason = re.sub(r"^<\d+ bytes>", lambda _: path, str(error))
        return PreparedRow(row, path, reason=reason if path in reason else f"{path}: {reason}")
    labels = source.names_of(row) if source.class_starts is not None else source.labels[source.target(row)]
    return PreparedRow(row, path, content, {"label": labels, "path": path, **annotation}, size)


class _SmallerError(Exception):
    """A video is smaller than the short side asked for."""


def _prepare_video(media: Media, settings: PreparationSettings) -> tuple[bytes, dict[str, Any]]:
    def distinct_frames(metadata: VideoMetadata) -> list[int]:
        # Of a short video, the same frames are repeated when it is read back.
        return sorted(set(uniform_frame_indices(metadata.total_num_frames, settings.num_frames)))

    def distinct_frames_unless_smaller(metadata: VideoMetadata) -> list[int]:
        if min(metadata.height, metadata.width) < settings.short_side:
            raise _SmallerError
        return distinct_frames(metadata)

    options = {"num_threads": 1, "start": media.start, "end": media.end}
    try:
        frames, metadata = read_video(media.content, distinct_frames_unless_smaller, settings.short_side, **options)
    except _SmallerError:
        frames, metadata = read_video(media.content, distinct_frames, **options)
    annotation = {
        "start": media.start,
        "end": media.end,
        "duration": metadata.duration,
        "total_num_frames": metadata.total_num_frames,
        "frames": metadata.frames_indices,
    }
    content = encode_video(frames, settings.codec, settings.quality, metadata.duration)
    return content, {key: value for key, value in annotation.items() if value is not None}


def encode_video(frames: np.ndarray, codec: str, quality: int, duration: float | None = None) -> bytes:
    """An MP4 file of frames (T, H, W, 3), which lasts `duration` seconds, or T if that is not known.

    Raises:
        VideoDecodingError: if the frames are too small or too large for the codec.
    """
    if codec == "h264":
        # Of colour it stores every second pixel and row: an odd side loses its last.
        frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    num_frames, height, width, _ = frames.shape
    if not height or not width:
        raise VideoDecodingError(f"frames of one pixel's height or width cannot be encoded as {codec}")
    options = {
        "mjpeg": {"qmin": f"{quality}", "qmax": f"{quality}"},
        # One keyframe, and then what is quick to decode: no CABAC, no deblocking, no B-frames. No macroblock tree,
        # which on processors with AVX-512 makes use of memory that nothing was written to: the bytes would differ.
        "h264": {
            "crf": f"{quality}",
            "g": f"{num_frames}",
            "tune": "fastdecode",
            "bf": "0",
            "x264-params": "mbtree=0",
        },
    }
    rate = Fraction(num_frames / duration if duration else 1).limit_denominator(1000) or Fraction(1, 1000)
    to_yuv, file = VideoReformatter(), io.BytesIO()
    try:
        with av.open(file, "w", format="mp4") as container:
            encoder = {"mjpeg": "mjpeg", "h264": "libx264"}[codec]
            stream = container.add_stream(encoder, rate=rate, options={**options[codec], "threads": "1"})
            stream.width, stream.height = width, height
            stream.pix_fmt = {"mjpeg": "yuvj420p", "h264": "yuv420p"}[codec]
            for frame in frames:
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(to_yuv.reformat(rgb, format=stream.pix_fmt, threads=1)))
            container.mux(stream.encode())
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoDecodingError(f"frames of {width} x {height} cannot be encoded as {codec}: {error}") from error
    return file.getvalue()


def _prepare_image(media: Media, settings: PreparationSettings) -> tuple[bytes, dict[str, Any]]:
    image = PIL.Image.fromarray(read_image_tensor(media.content).permute(1, 2, 0).numpy())
    scale = Fraction(min(settings.short_side, *image.size), min(image.size))
    if scale < 1:
        # Bilinear, antialiased and rounded down, as training scales.
        image = image.resize([int(side * scale) for side in image.size], PIL.Image.Resampling.BILINEAR)
    file = io.BytesIO()
    try:
        image.save(file, settings.codec, quality=settings.quality)
    except (OSError, ValueError) as error:
        width, height = image.size
        reason = f"an image of {width} x {height} cannot be encoded as {settings.codec}: {error}"
        raise VideoDecodingError(reason) from error
    return file.getvalue(), {}
