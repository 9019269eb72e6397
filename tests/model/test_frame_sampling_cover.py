# SPDX-License-Identifier: Apache-2.0
"""Samplers choose as many frames as they are asked for, all of the video and in its order."""

from collections import Counter

import numpy as np
import pytest
from modeling_cover.model.frame_sampling_cover import (
    dense_frame_indices,
    random_clip_start,
    segment_frame_indices,
    spread_clip_starts,
    uniform_frame_indices,
)


# Of (total_num_frames, num_frames).
SAMPLERS = {
    "uniform": uniform_frame_indices,
    "segment": lambda total, number: segment_frame_indices(total, number, np.random.default_rng(0)),
    "dense": dense_frame_indices,
    "dense, stride 4": lambda total, number: dense_frame_indices(total, number, 4),
    "dense, random start": lambda total, number: dense_frame_indices(
        total, number, 2, random_clip_start(total, number, 2, np.random.default_rng(0))
    ),
    "dense, last of three": lambda total, number: dense_frame_indices(
        total, number, 2, spread_clip_starts(total, number, 2, 3)[-1]
    ),
}


class TestAllSamplers:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("total", [1, 2, 3, 7, 8, 9, 16, 31, 300])
    @pytest.mark.parametrize("number", [1, 2, 8, 17])
    def test_they_choose_frames_of_the_video_in_order_and_no_fewer(self, sampler, total, number):
        indices = SAMPLERS[sampler](total, number)
        assert len(indices) == number
        assert indices == sorted(indices)
        assert 0 <= indices[0] <= indices[-1] < total
        assert all(type(index) is int for index in indices)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_of_as_many_frames_as_there_are_they_repeat_none_needlessly(self, sampler):
        stride = 4 if "4" in sampler else 2 if "random" in sampler or "three" in sampler else 1
        indices = SAMPLERS[sampler](8 * stride, 8)
        assert len(set(indices)) == 8

    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize(("total", "number"), [(0, 8), (-1, 8), (8, 0), (8, -1)])
    def test_both_numbers_must_be_positive(self, sampler, total, number):
        with pytest.raises(ValueError, match=f"{number} of {total} frames"):
            SAMPLERS[sampler](total, number)


class TestUniform:
    @pytest.mark.parametrize(
        ("total", "wanted", "indices"),
        [
            (9, 3, [1, 4, 7]),
            (10, 4, [1, 3, 6, 8]),
            (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
            (2, 4, [0, 0, 1, 1]),
            (3, 8, [0, 0, 0, 1, 1, 2, 2, 2]),
            (1, 3, [0, 0, 0]),
            (7, 1, [3]),
        ],
    )
    def test_they_are_the_centres_of_equal_segments(self, total, wanted, indices):
        assert uniform_frame_indices(total, wanted) == indices

    def test_they_are_symmetric_about_the_middle_of_the_clip(self):
        indices = uniform_frame_indices(300, 15)  # 20 frames a segment: 10 before its centre, 9 behind
        assert [299 - index for index in reversed(indices)] == [index - 1 for index in indices]


class TestSegments:
    def test_each_has_one_frame_and_each_frame_its_chance(self):
        rng = np.random.default_rng(0)
        draws = [segment_frame_indices(12, 3, rng) for _ in range(2000)]
        for segment in range(3):
            counts = Counter(indices[segment] for indices in draws)
            assert sorted(counts) == [4 * segment + i for i in range(4)]
            assert min(counts.values()) > 400  # of 500 expected

    def test_they_follow_from_the_generator(self):
        first, second = (segment_frame_indices(300, 8, np.random.default_rng(5)) for _ in range(2))
        assert first == second
        assert first != segment_frame_indices(300, 8, np.random.default_rng(6))

    def test_those_of_a_short_video_repeat_its_frames(self):
        assert segment_frame_indices(2, 4, np.random.default_rng(0)) == [0, 0, 1, 1]


class TestDense:
    @pytest.mark.parametrize(
        ("total", "number", "stride", "start", "indices"),
        [
            (9, 3, 2, 1, [1, 3, 5]),
            (9, 3, 1, 0, [0, 1, 2]),
            (4, 4, 2, 0, [0, 2, 3, 3]),
            (9, 3, 4, 8, [8, 8, 8]),
        ],
    )
    def test_they_lie_a_stride_apart_until_the_video_ends(self, total, number, stride, start, indices):
        assert dense_frame_indices(total, number, stride, start) == indices

    @pytest.mark.parametrize("start", [-1, 9])
    def test_they_start_in_the_video(self, start):
        with pytest.raises(ValueError, match=f"0 to 8, got {start}"):
            dense_frame_indices(9, 3, 1, start)

    @pytest.mark.parametrize("stride", [0, -2])
    def test_the_stride_must_be_positive(self, stride):
        for choose in (
            lambda: dense_frame_indices(9, 3, stride),
            lambda: random_clip_start(9, 3, stride, np.random.default_rng(0)),
            lambda: spread_clip_starts(9, 3, stride, 2),
        ):
            with pytest.raises(ValueError, match=f"stride must be positive, got {stride}"):
                choose()


class TestClipStarts:
    def test_a_random_one_is_any_from_which_the_clip_fits(self):
        rng = np.random.default_rng(0)
        assert {random_clip_start(9, 3, 2, rng) for _ in range(200)} == {0, 1, 2, 3, 4}
        assert {random_clip_start(4, 3, 2, rng) for _ in range(20)} == {0}

    @pytest.mark.parametrize(
        ("total", "number", "stride", "clips", "starts"),
        [
            (9, 3, 1, 3, [0, 3, 6]),
            (9, 3, 2, 1, [2]),
            (9, 3, 2, 3, [0, 2, 4]),
            (10, 3, 1, 4, [0, 2, 5, 7]),
            (4, 8, 1, 3, [0, 0, 0]),
            (4, 2, 1, 5, [0, 1, 1, 2, 2]),
        ],
    )
    def test_they_are_spread_from_the_first_to_the_last_that_fits(self, total, number, stride, clips, starts):
        assert spread_clip_starts(total, number, stride, clips) == starts

    def test_there_must_be_one(self):
        with pytest.raises(ValueError, match="num_clips must be positive, got 0"):
            spread_clip_starts(9, 3, 1, 0)
