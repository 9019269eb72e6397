# SPDX-License-Identifier: Apache-2.0
"""Small clips made on the spot.

The frames of an indexed clip carry their own number as a grey level, so that a test can tell which frames it got.

Axes: T frames, H height, W width.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np


MAX_INDEXED_FRAMES = 32
_LEVELS_APART = 8

# Of MPEG-4, what a frame starts with, and user data that say that frames are packed.
_VOP, _PACKED_SIGN = b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p"

# So near to lossless that a frame's number survives.
_CODEC_OPTIONS = {
    "libx264": {"qp": "1"},
    "libx265": {"x265-params": "qp=1:log-level=none"},
    # With more threads than cores, libvpx's wait for one another by spinning.
    "libvpx": {"threads": "1"},
    "libvpx-vp9": {"crf": "1", "b": "0", "deadline": "realtime", "threads": "1"},
    "mpeg4": {"qmin": "1", "qmax": "1"},
    "mpeg2video": {"qmin": "1", "qmax": "1"},
}


def indexed_frames(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (T, H, W, 3): frame i is of one grey, 8 * i."""
    if num_frames > MAX_INDEXED_FRAMES:
        raise ValueError(f"at most {MAX_INDEXED_FRAMES} frames can be told apart, got {num_frames}")
    levels = np.arange(num_frames, dtype=np.uint8) * _LEVELS_APART
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def frame_numbers(frames: np.ndarray) -> list[int]:
    """What `indexed_frames` wrote into frames (T, H, W, 3)."""
    return np.rint(frames.mean(axis=(1, 2, 3)) / _LEVELS_APART).astype(int).tolist()


def corner_frames(num_frames: int = 2, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (T, H, W, 3): black, with the top left quarter white."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[:, : height // 2, : width // 2] = 255
    return frames


def moving_frames(num_frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 (T, H, W, 3): a texture that drifts, with a square in front of it that moves otherwise, so that encoders
    make use of what came before and after a frame."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 256, (height // 8 + 8, width // 8 + 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    for index in range(num_frames):
        drift = index % 48
        frames[index] = texture[drift : drift + height, drift : drift + width]
        top, left = 3 * index % (height - 16), 5 * index % (width - 16)
        frames[index, top : top + 16, left : left + 16] = texture[:16, :16]
    return frames


def plain_frames(source: str | os.PathLike | BinaryIO) -> np.ndarray:
    """All frames (T, H, W, 3) of a file as PyAV by itself decodes them, one after the other, on one thread."""
    with av.open(os.fspath(source) if isinstance(source, os.PathLike) else source) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_clip(
    path: str | os.PathLike,
    frames: np.ndarray,
    fps: int = 24,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    timestamps: Sequence[int] | None = None,
    audio_first: bool = False,
    title: str | None = None,
    container_format: str | None = None,
    container_options: dict[str, str] | None = None,
    **codec_options: str,
) -> str:
    """Encodes frames (T, H, W, 3). `timestamps`, in milliseconds, make the frame rate a variable one."""
    output = av.open(os.fspath(path), "w", format=container_format, options=container_options or {})
    with _same_priority(), output as container:
        audio = _add_audio(container) if audio_first else None
        stream = container.add_stream(codec, rate=fps, options=_CODEC_OPTIONS.get(codec, {}) | codec_options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if title is not None:
            container.metadata["title"] = title
        if timestamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if timestamps is not None:
                frame.pts, frame.time_base = timestamps[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            _write_silence(container, audio)
    return os.fspath(path)


@contextmanager
def _same_priority() -> Iterator[None]:
    """Where it may, as root's, SVT-AV1 gives the thread that encodes a real-time priority, before all other
    processes."""
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_packed(path: str | os.PathLike, frames: np.ndarray, fps: int = 24, **codec_options: str) -> str:
    """MPEG-4 in AVI as DivX and XviD write it: the first B frame in the packet of the frame behind it, each other one
    in the place of that before, and a frame that is not coded in the place of the last.

        coded       I  P1 B1 B2  P2      packed    I  P1+B1  B2  -  P2
    """
    content = io.BytesIO()
    with av.open(content, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=fps, options=_CODEC_OPTIONS["mpeg4"] | {"bf": "2"} | codec_options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    content.seek(0)
    with av.open(content) as container:
        coded = [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    packed, waiting = [], None
    for data, is_key in coded:
        is_b = data[data.index(_VOP) + 4] >> 6 == 2
        if is_b and waiting is None:
            packed[-1][0] += data
            waiting = True
            continue
        if waiting is not None and not is_b:
            packed.append([not_coded_vop(fps), False])
            waiting = None
        packed.append([data if is_b else data.replace(_VOP, _PACKED_SIGN + _VOP), is_key])
    return write_packets(path, packed, frames.shape[2], frames.shape[1], fps)


def not_coded_vop(fps: int) -> bytes:
    """A P frame of MPEG-4 of which the header says that it is not coded."""
    time_bits = max(1, (fps - 1).bit_length())
    bits = "01" + "0" + "1" + "0" * time_bits + "1" + "0" + "0"
    bits += "1" * (-len(bits) % 8)
    return _VOP + int(bits, 2).to_bytes(len(bits) // 8, "big")


def write_packets(
    path: str | os.PathLike, packets: Sequence[tuple[bytes, bool]], width: int, height: int, fps: int
) -> str:
    """An AVI file of packets of MPEG-4, each with whether it is a keyframe."""
    with av.open(os.fspath(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, (data, is_key) in enumerate(packets):
            packet = _packet(data, stream, number, fps)
            packet.is_keyframe = is_key
            container.mux(packet)
    return os.fspath(path)


def write_audio(path: str | os.PathLike, cover: bytes | None = None) -> str:
    """A second of silence; `cover`, a JPEG, as its cover picture."""
    with av.open(os.fspath(path), "w", format="mp4") as container:
        audio = _add_audio(container)
        if cover is not None:
            stream = container.add_stream("mjpeg", rate=24)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic
            container.mux(_packet(cover, stream, 0))
        _write_silence(container, audio)
    return os.fspath(path)


def write_jpegs(path: str | os.PathLike, jpegs: Sequence[bytes]) -> str:
    """A video of JPEG files as they are, EXIF data and all."""
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index, jpeg in enumerate(jpegs):
            container.mux(_packet(jpeg, stream, index))
    return os.fspath(path)


def _packet(data: bytes, stream: av.VideoStream, timestamp: int, fps: int = 24) -> av.Packet:
    packet = av.Packet(data)
    packet.stream = stream
    packet.pts = packet.dts = timestamp
    packet.time_base = Fraction(1, fps)
    packet.is_keyframe = True
    return packet


def _add_audio(container: av.container.OutputContainer) -> av.AudioStream:
    return container.add_stream("aac", rate=16000, layout="mono")


def _write_silence(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
    frame.rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
