# SPDX-License-Identifier: Apache-2.0
"""What a file tells about itself beyond the frames that training takes of it: its hash, and whether it is whole."""

import hashlib
import os
from functools import lru_cache, partial
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Discard
from av.video.stream import VideoStream

from ..model.file_access_cover import open_regular
from ..model.video_opening_cover import Effort, VideoSource, open_video, packets_of, reading


# A header's duration is rounded, and may be that of a sound track which goes on for a little after its last packet.
_LEAST_MISSING_SECONDS, _LEAST_MISSING_SHARE = 0.25, 0.02

# Containers whose header has a duration. Of others, such as transport streams, FFmpeg makes one out of the times that
# it finds, which may run back: where a clock wraps, or files were joined end to end.
_ANNOUNCING = ("asf", "avi", "flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mxf", "nut")


class FileFacts(NamedTuple):
    """Of one file: 128 bits of its hash (2,) uint64, and why it is truncated or damaged, if it is."""

    digest: np.ndarray
    truncated: str | None = None
    damaged: str | None = None


def inspect_file(content: str | bytes, modality: str, full: bool = False) -> FileFacts:
    """Read a file from beginning to end, and with `full` decode all of it.

    An image that can be decoded at all is whole, so of images this is the hash alone.

    Raises:
        VideoDecodingError: if a video cannot be opened.
        OSError: if the file cannot be read.
    """
    if isinstance(content, bytes):
        return _inspect(content, modality, full)
    status = os.stat(content)
    return _inspect_path(content, modality, full, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _inspect_path(path: str, modality: str, full: bool, *_: int) -> FileFacts:
    # The segments of a long file, which are neighbours as a rule, have it in common.
    return _inspect(path, modality, full)


def _inspect(content: str | bytes, modality: str, full: bool) -> FileFacts:
    digest = _digest(content)
    if modality == "image":
        return FileFacts(digest)
    with reading(content):
        return FileFacts(digest, _missing_end(content), _damage(content) if full else None)


def _digest(content: str | bytes) -> np.ndarray:
    new_hash = partial(hashlib.blake2b, digest_size=16)
    if isinstance(content, bytes):
        digest = new_hash(content).digest()
    else:
        with open_regular(content) as file:
            digest = hashlib.file_digest(file, new_hash).digest()
    return np.frombuffer(digest, dtype=np.uint64)


def _missing_end(source: VideoSource) -> str | None:
    """Why the file is not whole; None if its packets go as far as its header says, or the header does not say."""
    with open_video(source, num_threads=1) as (container, stream):
        announced = _announced_seconds(container, stream)
        if announced is None:
            return None
        for other in container.streams:
            other.discard = Discard.default  # the sound may be longer than the pictures
        end = 0.0
        for packet in container.demux():
            if not packet.size and packet.dts is None:
                break  # of PyAV, at the end of the file
            time = packet.dts if packet.pts is None else packet.pts  # AVI has no other than the order of its packets
            if time is not None:
                end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
    if announced - end <= max(_LEAST_MISSING_SECONDS, _LEAST_MISSING_SHARE * announced):
        return None
    return f"it ends after {end:.2f} of the {announced:.2f} seconds that its header announces"


def _announced_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    if container.format.name not in _ANNOUNCING:
        return None
    # Of AVI, FFmpeg takes the duration from what is there.
    if container.format.name == "avi":
        return float(stream.frames / stream.average_rate) if stream.frames and stream.average_rate else None
    return None if container.duration is None else container.duration / av.time_base


def _damage(source: VideoSource) -> str | None:
    """What a decoder that conceals nothing says of the packets behind the first frame; None if it has no complaint.

    Before the first frame are those that refer to what was cut off: many a file is cut without being encoded again.
    """
    num_packets, bad, reason = 0, [], ""
    with open_video(source, num_threads=1, strict=True) as (container, stream):
        effort, has_begun = Effort(stream), False
        for packet in packets_of(container, stream):
            try:
                has_begun = bool(effort.decode(packet)) or has_begun
            except av.error.FFmpegError as error:
                if has_begun:
                    bad.append(num_packets)
                    reason = error.strerror
            num_packets += 1
    if not bad:
        return None
    return f"{len(bad)} of its {num_packets} packets cannot be decoded ({reason}), the first is number {bad[0]}"
