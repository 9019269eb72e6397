# SPDX-License-Identifier: Apache-2.0
"""`read_windows` yields, of each window of a long video, what `read_video` yields of it by itself."""

from pathlib import Path

import numpy as np
import pytest
from clips import frame_numbers, indexed_frames, moving_frames, write_clip
from modeling_cover.model import video_windows_cover
from modeling_cover.model.frame_sampling_cover import uniform_frame_indices
from modeling_cover.model.video_decoding_cover import VideoDecodingError, read_video
from modeling_cover.model.video_windows_cover import read_windows, window_times
from test_video_decoding_cover import KINDS


def four_frames(metadata):
    return uniform_frame_indices(metadata.total_num_frames, 4)


def all_windows(path, *arguments, **options):
    groups = list(read_windows(path, *arguments, **options))
    times = [time for group, _, _ in groups for time in group]
    clips = [clip for _, frames, _ in groups for clip in frames]
    assert len(times) == len(clips) == groups[-1][2]
    return times, clips


class TestTimes:
    @pytest.mark.parametrize(
        ("duration", "window", "stride", "times"),
        [
            (5, 2, 2, [(0, 2), (2, 4), (4, 5)]),
            (5, 2, 1, [(0, 2), (1, 3), (2, 4), (3, 5)]),
            (4, 2, 2, [(0, 2), (2, 4)]),
            (1, 2, 1, [(0, 1)]),
            (5, 1, 3, [(0, 1), (3, 4)]),
        ],
    )
    def test_windows_cover_the_video_and_end_with_it(self, duration, window, stride, times):
        assert window_times(duration, window, stride) == times

    def test_no_window_begins_at_the_end_though_floats_say_that_some_of_the_video_is_left(self):
        assert window_times(0.1 + 0.2, 0.1, 0.1)[-1].end == pytest.approx(0.3)
        assert len(window_times(0.1 + 0.2, 0.1, 0.1)) == 3

    @pytest.mark.parametrize(
        ("window", "stride", "culprit"), [(0, 1, "window"), (1, -1, "stride"), (1, np.inf, "stride")]
    )
    def test_seconds_must_be_positive(self, window, stride, culprit):
        with pytest.raises(ValueError, match=f"{culprit} must be a positive number of seconds"):
            window_times(5, window, stride)


class TestFrames:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("frames_at_a_time", [8, 1024])
    def test_of_each_kind_of_file_a_window_is_the_clip_between_its_ends(
        self, kind, frames_at_a_time, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(video_windows_cover, "_MAX_FRAMES_AT_A_TIME", frames_at_a_time)
        path = KINDS[kind](tmp_path / kind, indexed_frames(32))
        times, clips = all_windows(path, 0.5, 0.25, four_frames, short_side=24)
        assert len(times) >= 4
        for (start, end), clip in zip(times, clips, strict=True):
            expected, _ = read_video(path, four_frames, short_side=24, start=start or None, end=end)
            np.testing.assert_array_equal(clip, expected)

    def test_pictures_that_refer_to_one_another_are_the_same_as_those_of_a_whole_decoding(self, tmp_path):
        path = write_clip(tmp_path / "clip.mp4", moving_frames(100), bf="3", g="24")
        whole, _ = read_video(path, lambda metadata: range(metadata.total_num_frames))
        times, clips = all_windows(path, 1, 0.5, lambda metadata: range(metadata.total_num_frames))
        for (start, _), clip in zip(times, clips, strict=True):
            np.testing.assert_array_equal(clip, whole[round(start * 24) :][: len(clip)])

    def test_frames_of_a_variable_rate_are_taken_by_their_times(self, tmp_path):
        timestamps = [0, 100, 200, 300, 1000, 1500, 1600, 1700]
        path = write_clip(tmp_path / "clip.mp4", indexed_frames(8), timestamps=timestamps)
        _, clips = all_windows(path, 0.5, 0.5, lambda metadata: range(metadata.total_num_frames))
        # Between 0.5 and 1 second the fourth frame is still displayed.
        assert [frame_numbers(clip) for clip in clips[:4]] == [[0, 1, 2, 3], [3], [4], [5, 6, 7]]

    def test_windows_are_of_the_frames_that_there_are_where_a_file_promises_more(self, tmp_path):
        content = Path(write_clip(tmp_path / "whole.ts", indexed_frames(32), g="8")).read_bytes()
        path = tmp_path / "cut.ts"
        path.write_bytes(content[188 * (len(content) // 188 // 3) :])
        frames, metadata = read_video(path, lambda metadata: range(metadata.total_num_frames))
        times, clips = all_windows(path, 0.25, 0.25, lambda metadata: range(metadata.total_num_frames))
        np.testing.assert_array_equal(np.concatenate(clips), frames)
        assert times[-1].end == pytest.approx(metadata.duration)

    def test_a_file_that_is_no_video_is_one_error_that_names_it(self, tmp_path):
        path = tmp_path / "text.mp4"
        path.write_text("no video")
        with pytest.raises(VideoDecodingError, match=r"text\.mp4"):
            list(read_windows(path, 1, 1, four_frames))
