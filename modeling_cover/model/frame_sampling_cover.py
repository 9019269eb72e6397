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
"""Which frames of a video make a clip: pure functions over indices.

All of them return ascending indices, from 0 to `total_num_frames - 1`, and as many as they were asked for however
short the video is; nothing is left to chance but by a generator that is passed in. A number that is not positive, or a
start that is no frame of the video, is a `ValueError`.

The drawings show the frames of a video in a row: `#` is chosen, `.` is not.
"""

from itertools import pairwise

import numpy as np


def uniform_frame_indices(total_num_frames: int, num_frames: int) -> list[int]:
    """The centre frame of each of `num_frames` equal segments of a whole clip.

    9 frames, 3 wanted      . # .   . # .   . # .       1, 4, 7
    2 frames, 4 wanted      #   #   #   #               0, 0, 1, 1      (a short clip repeats its frames)
    4 frames, 4 wanted      #   #   #   #               0, 1, 2, 3
    """
    _check(total_num_frames, num_frames)
    return [(2 * i + 1) * total_num_frames // (2 * num_frames) for i in range(num_frames)]


def segment_frame_indices(total_num_frames: int, num_frames: int, rng: np.random.Generator) -> list[int]:
    """A random frame of each of `num_frames` equal segments (Wang et al., 2016, Temporal Segment Networks).

        9 frames, 3 wanted      # . .   . . #   . # .       0, 5, 7
        2 frames, 4 wanted      #   #   #   #               0, 0, 1, 1      (a short clip repeats its frames)

    Each frame of a segment is as likely as the others; `uniform_frame_indices` is what evaluation takes in their
    place.
    """
    _check(total_num_frames, num_frames)
    edges = [i * total_num_frames // num_frames for i in range(num_frames + 1)]
    return [int(rng.integers(start, max(end, start + 1))) for start, end in pairwise(edges)]


def dense_frame_indices(total_num_frames: int, num_frames: int, stride: int = 1, start: int = 0) -> list[int]:
    """`num_frames` frames, `stride` apart, from the frame `start` on.

        9 frames, 3 wanted, stride 2, start 1       . # . # . # . . .       1, 3, 5
        4 frames, 4 wanted, stride 2, start 0       # . # #                 0, 2, 3, 3

    Where the video ends before the clip does, its last frame is repeated, as SlowFast and VideoMAE do (others begin
    again with the first frame, which shows the model a jump that never happened).
    """
    _check(total_num_frames, num_frames, stride)
    if not 0 <= start < total_num_frames:
        raise ValueError(f"start must be a frame of the video, 0 to {total_num_frames - 1}, got {start}")
    return [min(start + i * stride, total_num_frames - 1) for i in range(num_frames)]


def random_clip_start(total_num_frames: int, num_frames: int, stride: int, rng: np.random.Generator) -> int:
    """Where a dense clip begins at random: any frame from which it fits into the video, or 0 if it does not fit."""
    return int(rng.integers(_last_clip_start(total_num_frames, num_frames, stride) + 1))


def spread_clip_starts(total_num_frames: int, num_frames: int, stride: int, num_clips: int) -> list[int]:
    """Where `num_clips` dense clips begin that are spread evenly over a video, from its first frame to its last.

        9 frames, clips of 3, stride 1, 3 clips     # # # . . . . . .       0
                                                    . . . # # # . . .       3
                                                    . . . . . . # # #       6
        9 frames, clips of 3, stride 2, 1 clip      . . # . # . # . .       2       (one clip lies in the centre)

    Clips that do not fit side by side overlap; of a video shorter than a clip all begin at 0.
    """
    last = _last_clip_start(total_num_frames, num_frames, stride)
    if num_clips < 1:
        raise ValueError(f"num_clips must be positive, got {num_clips}")
    if num_clips == 1:
        return [last // 2]
    return [
        (2 * i * last + num_clips - 1) // (2 * (num_clips - 1)) for i in range(num_clips)
    ]  # rounded to the nearest


def _last_clip_start(total_num_frames: int, num_frames: int, stride: int) -> int:
    _check(total_num_frames, num_frames, stride)
    return max(0, total_num_frames - 1 - (num_frames - 1) * stride)


def _check(total_num_frames: int, num_frames: int, stride: int = 1) -> None:
    if total_num_frames < 1 or num_frames < 1:
        raise ValueError(f"cannot choose {num_frames} of {total_num_frames} frames: both numbers must be positive")
    if stride < 1:
        raise ValueError(f"stride must be positive, got {stride}")
