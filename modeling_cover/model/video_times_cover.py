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
"""When frames are displayed: one line of times that ascends, though clocks begin again and durations tell untruths.

Axes: N packets, as they are decoded; F frames, as they are displayed.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.container import InputContainer
from av.format import Flags


UNKNOWN = -(2**63)  # of a time that is not told

# A clock that goes on so much later is another one: at a keyframe, where FFmpeg (`dts_delta_threshold`) and players
# take it for such; at any frame, where no recording pauses for so long.
_JUMP_AT_KEYFRAME, _JUMP = 10, 3600  # seconds

# Between keyframes, times that go back by less are out of order, and the clock is the same.
_DISORDER = 1  # seconds

# A duration is believed if it is so many times the usual one or shorter, unless something else confirms it, and not if
# it is so many times shorter.
_USUAL = 4


@dataclass(frozen=True)
class TimeLine:
    """When each of F frames is displayed, ascending, and when the last of them is no longer, in units of time."""

    times: np.ndarray  # (F,) int64
    end: int
    usual: int  # from one frame to the next, in most cases

    @property
    def length(self) -> int:
        return self.end - int(self.times[0])


@dataclass(frozen=True)
class Announced:
    """What a file says of its end."""

    end: int | None  # in units of time, by the clock of its frames
    is_certain: bool  # whether it was said of just these frames, all of which are there
    frames_have_own: bool  # whether the durations of packets are those of frames, however long


@dataclass(frozen=True)
class Clock:
    """How the clock of a container may misbehave."""

    restarts: bool  # of files that were joined end to end, it begins again
    jumps: bool  # it may go on later, too, without meaning a pause

    @classmethod
    def of(cls, container: InputContainer) -> "Clock":
        # An MP4 file has one table of all times, and AVI counts frames.
        is_one = container.format.name == "avi" or container.format.name.startswith("mov")
        return cls(not is_one, bool(container.format.flags & Flags.ts_discont.value))

    def parts(self, decoded: np.ndarray, is_key: np.ndarray, time_base: Fraction) -> np.ndarray:
        """Of packets that were joined from several clocks, the part (N,) that each belongs to, from 0 on.

        `decoded` (N,) says when each is decoded, UNKNOWN where it is not told: ascending, but where a part begins.
        """
        begins = np.zeros(len(decoded), dtype=np.int64)
        known = np.flatnonzero(decoded != UNKNOWN)
        if self.restarts and len(known):
            steps, is_key = np.diff(decoded[known]) * float(time_base), is_key[known[1:]]
            is_new = (steps < -_DISORDER) | ((steps < 0) & is_key)
            if self.jumps:
                is_new |= (steps > _JUMP) | ((steps > _JUMP_AT_KEYFRAME) & is_key)
            begins[known[1:]] = is_new
        return begins.cumsum()


def time_line(
    told: np.ndarray, parts: np.ndarray, last_duration: int, announced: Announced, usual: int | None
) -> TimeLine | None:
    """The time line of frames of which some times are told; None if one of them is not.

    Of parts, the first frame of the next follows the last of the one before as frames within it follow one another.

    Args:
        told: (F,), ascending within each part.
        parts: (F,), which part a frame belongs to, ascending.
        last_duration: of the last frame, as its packet has it; not positive where it has none.
        usual: the time between two frames by the rate of the header, if there is one.
    """
    if not len(told) or (told == UNKNOWN).any():
        return None
    steps = np.diff(told)
    is_within = np.diff(parts) == 0
    usual = _median(steps[is_within]) or usual
    for place in np.flatnonzero(~is_within):
        in_part = (parts[1:] == parts[place]) & is_within
        steps[place] = _median(steps[in_part]) or usual or 0
    times = told[0] + np.concatenate([[0], steps.cumsum()]).astype(np.int64)
    rest = None
    if announced.end is not None and is_within.all():
        rest = announced.end - int(told[-1])
    last = _last(last_duration, rest, usual, announced)
    return TimeLine(times, int(times[-1]) + last, usual or last)


def _median(steps: np.ndarray) -> int:
    """Of the steps that are any, 0 if none is. (NumPy's own takes as long as all the rest here.)"""
    steps = np.sort(steps[steps > 0])
    return int(steps[len(steps) // 2]) if len(steps) else 0


def _last(own: int, rest: int | None, usual: int | None, announced: Announced) -> int:
    """How long the last frame is displayed: as its packet says, as the header says, or as long as others, in this
    order where they are to be believed."""

    def is_likely(duration: int, has_witness: bool) -> bool:
        # A shorter one comes of a rate such as 1000 that a browser's recorder gives; a longer one may be meant.
        is_enough = duration > 0 and (usual is None or _USUAL * duration >= usual)
        return is_enough and (has_witness or usual is None or duration <= _USUAL * usual)

    is_confirmed = rest is not None and abs(own - rest) <= max(usual or 0, own // 100)
    if is_likely(own, is_confirmed) or (announced.frames_have_own and own > 0):
        return own
    if rest is not None and is_likely(rest, announced.is_certain):
        return rest
    return usual or max(own, 0)


def rate_of(line: TimeLine | None, num_frames: int, header: Fraction | None, time_base: Fraction) -> Fraction | None:
    """Frames a second: the header's rate, unless the frames' times contradict it; then their mean rate.

    Of a header's rate, the frames may be half a frame, and one in 100, more or fewer than its times.
    """
    if line is None or line.length <= 0:
        return header
    duration = line.length * time_base
    if header and abs(header * duration - num_frames) <= Fraction(1, 2) + Fraction(num_frames, 100):
        return header
    return num_frames / duration
