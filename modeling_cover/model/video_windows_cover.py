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
"""Sliding windows over a long video, each a clip of its own, out of one pass over its packets.

Axes: T frames, H height, W width.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from transformers.video_utils import VideoMetadata

from .video_decoding_cover import Beginning, Outline, VideoSource, decode_in_order, decode_planned, outline_of
from .video_opening_cover import open_video, reading


# Decoded at a time, over which a file without an index is begun again: some 250 MB at 224 x 400.
_MAX_FRAMES_AT_A_TIME = 1024
_WINDOWS_AT_A_TIME = 32  # of frames that lie in memory

# Three days of windows a second apart. Of two frames, a file of 700 bytes can say that they are centuries apart.
_MAX_WINDOWS = 2**18


class Window(NamedTuple):
    """A stretch of a video: `start` and `end` in seconds since its first frame is displayed."""

    start: float
    end: float


def window_times(duration: float, window: float, stride: float) -> list[Window]:
    """The windows of `window` seconds, `stride` seconds apart, that cover `duration` seconds.

        duration 5, window 2, stride 2      0 to 2, 2 to 4, 4 to 5      (the last may be cut short)
        duration 5, window 2, stride 1      0 to 2, 1 to 3, 2 to 4, 3 to 5
        duration 1, window 2, stride 1      0 to 1

    Raises:
        ValueError: if `window` or `stride` is not positive, or there are more than 262,144 windows.
    """
    for name, value in (("window", window), ("stride", stride)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number of seconds, got {value}")
    # In floats, 0.3 seconds are a little more than three times 0.1.
    steps = round(max(0.0, duration - window) / stride, 6)
    if steps >= _MAX_WINDOWS:
        times = f"{duration:g} seconds make more than {_MAX_WINDOWS} windows, {stride:g} seconds apart"
        raise ValueError(f"{times}: choose a longer stride")
    count = 1 + math.ceil(steps)
    starts = [float(index * stride) for index in range(count) if index * stride < duration or index == 0]
    return [Window(start, float(min(start + window, duration))) for start in starts]


def read_windows(
    source: VideoSource,
    window: float,
    stride: float,
    sample_indices: Callable[[VideoMetadata], Sequence[int]],
    short_side: int | None = None,
    num_threads: int = 0,
) -> Iterator[tuple[list[Window], list[np.ndarray], int]]:
    """Decodes some frames of each window of a video, a number of windows at a time so that memory is bounded.

    Args:
        source, short_side, num_threads: as in [`read_video`].
        window, stride: in seconds, as in [`window_times`].
        sample_indices: given the metadata of a window, the indices of the wanted ones of its frames, ascending. A
            window in which no new frame appears consists of the one that is displayed meanwhile.

    Yields:
        Windows that follow one another; the frames of each, uint8 of shape (T, H, W, 3), RGB, upright; and how many
        windows the whole video has.

    Raises:
        VideoDecodingError: whatever is wrong with the file, or it does not tell when its frames are displayed, or it
            has more than 262,144 windows.
        ValueError: `window` or `stride` is not positive.
    """
    window_times(0.0, window, stride)  # of their values, before the file is opened
    with reading(source), open_video(source, num_threads, strict=True) as (container, stream):
        outline = outline_of(source, container, stream, short_side)
        number, num_counts, times = 0, 0, _times(outline, window, stride)
        while number < len(times):
            group = _next_group(outline, islice(times, number, None), sample_indices)
            images, outline = _decode(source, container, stream, outline, group, num_threads)
            if images is not None:
                yield times[number : number + len(group)], images, len(times)
                number += len(group)
            elif num_counts:
                raise ValueError("it yields another number of frames each time it is decoded")
            else:
                num_counts += 1  # the windows are of the frames that there are
                times = _times(outline, window, stride)


def windows_of_frames(
    frames: torch.Tensor,
    fps: float,
    window: float,
    stride: float,
    sample_indices: Callable[[VideoMetadata], Sequence[int]],
) -> Iterator[tuple[list[Window], list[np.ndarray], int]]:
    """What [`read_windows`] yields, of frames (T, C, H, W) that follow one another `fps` times a second.

    Raises:
        ValueError: `window`, `stride` or `fps` is not positive.
    """
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be a positive number of frames a second, got {fps}")
    total, times = len(frames), window_times(len(frames) / fps, window, stride)
    frames = frames.cpu()
    if frames.dtype == torch.bfloat16:  # which numpy does not have
        frames = frames.float()
    for first in range(0, len(times), _WINDOWS_AT_A_TIME):
        clips, group = [], times[first : first + _WINDOWS_AT_A_TIME]
        for bounds in group:
            # In floats, 0.3 seconds are a little more than three times 0.1.
            start, stop = (min(total, math.ceil(round(seconds * fps, 6))) for seconds in bounds)
            if start == stop:
                start, stop = max(0, start - 1), max(1, start)
            indices = sample_indices(VideoMetadata(stop - start, fps=fps, duration=(stop - start) / fps))
            clips.append(frames[[start + int(index) for index in indices]].movedim(1, -1).numpy())
        yield group, clips, len(times)


def _times(outline: Outline, window: float, stride: float) -> list[Window]:
    duration = outline.index.duration(0, outline.index.num_frames)
    if duration is None:
        raise ValueError("it does not tell when its frames are displayed")
    return window_times(duration, window, stride)


def _next_group(
    outline: Outline, times: Iterable[Window], sample_indices: Callable[[VideoMetadata], Sequence[int]]
) -> list[list[int]]:
    """The frames that are wanted of as many windows as are decoded at a time, by their index in the whole video."""
    group, total = [], 0
    for start, end in times:
        first, stop = outline.index.shown_between(start, end)
        clip = outline.clip_of(first, stop, end)
        group.append([first + int(index) for index in sample_indices(clip.metadata)])
        total += len(group[-1])
        if total >= _MAX_FRAMES_AT_A_TIME:
            break
    return group


def _decode(
    source: VideoSource,
    container: InputContainer,
    stream: VideoStream,
    outline: Outline,
    group: list[list[int]],
    num_threads: int,
) -> tuple[list[np.ndarray] | None, Outline]:
    """The images of a group of windows; None, and a corrected outline, if the file has other frames than it said."""
    frames = sorted({frame for indices in group for frame in indices})
    images = decode_planned(container, stream, outline, frames)
    # The decoder no longer stands where it stood behind the first frame.
    outline = replace(outline, beginning=Beginning([], 0))
    if images is None:
        images, counted = decode_in_order(source, outline, frames, num_threads)
        if images is None or not counted.index.agrees_with(outline.index):
            return None, counted
        outline = counted
    upright = outline.orientation.turn_upright(images)
    return [upright[np.searchsorted(frames, indices)] for indices in group], outline
