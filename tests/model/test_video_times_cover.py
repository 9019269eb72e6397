# SPDX-License-Identifier: Apache-2.0
"""Times ascend and durations are true, however uneven a file's clock is."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from clips import indexed_frames, moving_frames, plain_frames, write_clip
from modeling_cover.model.video_decoding_cover import read_video
from modeling_cover.model.video_times_cover import Announced, rate_of, time_line
from modeling_cover.model.video_windows_cover import read_windows


# A screen recording in which nothing moves for a minute.
PAUSE = [40 * number for number in range(15)] + [60_000 + 40 * number for number in range(15)]
PAUSED = {
    "clip.mp4": {"bf": "3"},
    "no_b_frames.mp4": {"bf": "0"},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mpeg4.mp4": {"codec": "mpeg4", "bf": "2"},
    "clip.mov": {},
    "clip.mkv": {},
    "clip.webm": {"codec": "libvpx-vp9"},
    "clip.ts": {},
    "clip.flv": {},
}

# Containers of which files can be joined end to end, and a codec for each.
JOINED = {
    "ts": {"bf": "3"},
    "mpg": {"codec": "mpeg2video", "container_format": "mpeg", "bf": "2"},
    "mkv": {"bf": "3"},
    "webm": {"codec": "libvpx-vp9"},
    "avi": {"codec": "mpeg4"},
    "gif": {"codec": "gif", "pixel_format": "rgb8"},
}


def every_frame(metadata):
    return range(metadata.total_num_frames)


def window_times(source, window: float) -> list[tuple[float, float]]:
    return [time for group, _, _ in read_windows(source, window, window, lambda metadata: [0]) for time in group]


class TestPauses:
    @pytest.mark.parametrize("name", PAUSED)
    def test_count_once_and_where_they_are(self, name, tmp_path):
        path = write_clip(tmp_path / name, moving_frames(30), timestamps=PAUSE, **PAUSED[name])
        frames, metadata = read_video(path, every_frame)
        np.testing.assert_array_equal(frames, plain_frames(path))
        assert metadata.duration == pytest.approx(60.6, abs=0.003)
        assert metadata.timestamps == pytest.approx([time / 1000 for time in PAUSE])
        assert metadata.fps == pytest.approx(30 / 60.6, rel=1e-3)
        times = window_times(path, 10)
        assert [start for start, _ in times] == [0, 10, 20, 30, 40, 50, 60]
        assert times[-1][1] == pytest.approx(60.6, abs=0.003)

    @pytest.mark.parametrize("name", PAUSED)
    def test_are_not_part_of_what_ends_within_them(self, name, tmp_path):
        path = write_clip(tmp_path / name, moving_frames(30), timestamps=PAUSE, **PAUSED[name])
        _, metadata = read_video(path, every_frame, start=0.4, end=1.0)
        assert metadata.timestamps == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
        assert metadata.duration == pytest.approx(0.6)
        _, metadata = read_video(path, every_frame, start=0.4, end=60.1)
        assert metadata.total_num_frames == 8
        assert metadata.duration == pytest.approx(59.72, abs=0.003)


class TestJoinedFiles:
    """`cat first second`: the second plays after the first."""

    @pytest.mark.parametrize("suffix", JOINED)
    def test_play_one_after_the_other(self, suffix, tmp_path):
        paths = [
            Path(write_clip(tmp_path / f"{number}.{suffix}", moving_frames(number), fps=25, **JOINED[suffix]))
            for number in (30, 20)
        ]
        content = b"".join(path.read_bytes() for path in paths)
        expected = plain_frames(io.BytesIO(content))
        assert len(expected) == 50
        frames, metadata = read_video(content, every_frame)
        np.testing.assert_array_equal(frames, expected)
        assert metadata.timestamps == pytest.approx([number / 25 for number in range(50)], abs=0.002)
        assert metadata.duration == pytest.approx(2)
        assert metadata.fps == 25
        frames, metadata = read_video(content, every_frame, start=1.01, end=1.81)
        np.testing.assert_array_equal(frames, expected[26:46])
        assert metadata.duration == pytest.approx(0.8, abs=0.002)
        assert window_times(content, 1)[-1] == pytest.approx((1, 2))
        for index in (0, 29, 30, 31, 49):
            frames, metadata = read_video(content, lambda metadata, index=index: [index])
            np.testing.assert_array_equal(frames, expected[index : index + 1])
            assert metadata.timestamps == pytest.approx([index / 25], abs=0.002)

    @pytest.mark.parametrize("starts", [(0, 90_000), (90_000, 0), (0, 40), (5_000, 1_000), (1, 1, 1)])
    def test_may_have_clocks_far_apart(self, starts, tmp_path):
        content = b""
        for start in starts:
            times = [1000 * start + 40 * number for number in range(20)]
            content += Path(write_clip(tmp_path / "part.ts", indexed_frames(20), timestamps=times)).read_bytes()
        frames, metadata = read_video(content, every_frame)
        np.testing.assert_array_equal(frames, plain_frames(io.BytesIO(content)))
        assert metadata.timestamps == pytest.approx([number / 25 for number in range(20 * len(starts))])
        assert metadata.duration == pytest.approx(0.8 * len(starts))

    def test_keep_a_pause_of_their_own(self, tmp_path):
        content = b"".join(
            Path(write_clip(tmp_path / "part.ts", indexed_frames(30), timestamps=times)).read_bytes()
            for times in (PAUSE, [40 * number for number in range(30)])
        )
        _, metadata = read_video(content, every_frame)
        expected = [*PAUSE, *(60_600 + 40 * number for number in range(30))]
        assert metadata.timestamps == pytest.approx([time / 1000 for time in expected])

    def test_whose_first_ends_inside_a_frame_are_decoded_as_by_pyav(self, tmp_path):
        content = Path(write_clip(tmp_path / "clip.ts", moving_frames(30), g="10")).read_bytes()
        joined = content[: 188 * (len(content) // 188 * 2 // 3)] + content
        expected = plain_frames(io.BytesIO(joined))
        frames, metadata = read_video(joined, every_frame, num_threads=1)
        np.testing.assert_array_equal(frames, expected)
        assert (np.diff(metadata.timestamps) > 0).all()


@pytest.mark.parametrize("seconds", [95443.0, 95443.5])
def test_a_clock_of_33_bits_that_wraps_goes_on(seconds, tmp_path):
    times = [round(1000 * seconds) + 40 * number for number in range(30)]
    assert times[0] * 90 < 2**33 < times[-1] * 90
    frames, metadata = read_video(write_clip(tmp_path / "clip.ts", moving_frames(30), timestamps=times), every_frame)
    assert len(frames) == 30
    assert metadata.timestamps == pytest.approx([number / 25 for number in range(30)])
    assert metadata.duration == pytest.approx(1.2)


class TestRates:
    @pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
    def test_of_a_browser_s_webm_are_the_mean_of_its_times(self, codec, tmp_path):
        times = np.cumsum([0, *np.random.default_rng(0).integers(28, 38, 29)]).tolist()
        path = write_clip(tmp_path / "clip.webm", moving_frames(30), fps=1000, codec=codec, timestamps=times)
        _, metadata = read_video(path, every_frame)
        usual = float(np.median(np.diff(times)))
        assert metadata.duration == pytest.approx((times[-1] + usual) / 1000, abs=0.002)
        assert metadata.fps == pytest.approx(30 / metadata.duration)
        assert 28 < metadata.fps < 33

    @pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
    def test_that_agree_with_the_times_are_the_header_s(self, suffix, tmp_path):
        codec = {"avi": "mpeg4"}.get(suffix, "libx264")
        path = write_clip(tmp_path / f"clip.{suffix}", moving_frames(60), fps=Fraction(30000, 1001), codec=codec)
        assert read_video(path, every_frame)[1].fps == 30000 / 1001

    def test_without_times_are_the_header_s(self):
        assert rate_of(None, 30, Fraction(25), Fraction(1, 1000)) == 25
        assert rate_of(None, 30, None, Fraction(1, 1000)) is None


class TestLastFrame:
    """How long it is displayed."""

    @pytest.mark.parametrize(
        ("own", "end", "is_certain", "frames_have_own", "expected"),
        [
            (40, None, False, False, 40),
            (0, None, False, False, 40),  # not told: as long as others
            (-7, None, False, False, 40),
            (90_000, None, False, False, 40),  # far too long, and nothing confirms it
            (90_000, 400, False, False, 40),
            (2_000, 2_360, False, False, 2_000),  # the header confirms it
            (2_000, None, False, True, 2_000),  # of a container that says it of each frame
            (0, 410, False, False, 50),
            (0, 9_000, False, False, 40),  # of a truncated file
            (0, 9_000, True, False, 8_640),  # of which nothing is missing
            (1, 361, False, False, 40),  # of a rate of 1000
            (0, 361, True, False, 40),
            (90_000, 300, True, False, 40),  # an end before the last frame
        ],
    )
    def test_is_told_by_its_packet_the_header_or_the_others(self, own, end, is_certain, frames_have_own, expected):
        times = np.arange(10) * 40
        announced = Announced(end, is_certain, frames_have_own)
        line = time_line(times, np.zeros(10, dtype=np.int64), own, announced, usual=None)
        assert line.end - line.times[-1] == expected

    @pytest.mark.parametrize(("suffix", "options"), [("gif", {}), ("png", {"default_image": False})])
    def test_of_an_animation_lasts_as_its_writer_wanted(self, suffix, options, tmp_path):
        images = [PIL.Image.fromarray(frame) for frame in moving_frames(4)]
        delays = [100, 50, 700, 2000]
        path = tmp_path / f"clip.{suffix}"
        images[0].save(path, save_all=True, append_images=images[1:], duration=delays, **options)
        _, metadata = read_video(path, every_frame)
        assert metadata.timestamps == pytest.approx([0, 0.1, 0.15, 0.85])
        assert metadata.duration == pytest.approx(2.85)

    @pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "gif"])
    def test_is_the_only_one(self, suffix, tmp_path):
        options = {"avi": {"codec": "mpeg4"}, "gif": {"codec": "gif", "pixel_format": "rgb8"}}.get(suffix, {})
        _, metadata = read_video(
            write_clip(tmp_path / f"a.{suffix}", moving_frames(1), fps=25, **options), every_frame
        )
        assert metadata.timestamps == [0]
        assert metadata.duration == pytest.approx(0.04, abs=0.001)
        assert metadata.fps == 25

    def test_may_be_another_than_the_last_that_is_decoded(self, tmp_path):
        # The pause is before the last three frames, so that a B frame's packet lasts for as long as it.
        times = [40 * number for number in range(27)] + [30_000, 30_040, 30_080]
        options = {"bf": "3", "x264-params": "b-adapt=0"}
        for shift in range(4):  # the last group of B frames is cut differently
            shifted = times[shift:]
            path = write_clip(tmp_path / "clip.mp4", moving_frames(len(shifted)), timestamps=shifted, **options)
            _, metadata = read_video(path, every_frame)
            assert metadata.duration == pytest.approx((30_120 - shifted[0]) / 1000, abs=0.003)


class TestLine:
    def nothing(self) -> Announced:
        return Announced(None, is_certain=False, frames_have_own=False)

    def test_joins_parts_by_what_is_usual_in_the_first_of_them(self):
        told = np.array([500, 540, 580, 100, 120, 140])
        line = time_line(told, np.array([0, 0, 0, 1, 1, 1]), 0, self.nothing(), usual=None)
        assert line.times.tolist() == [500, 540, 580, 620, 640, 660]

    def test_of_parts_of_one_frame_goes_by_the_rate(self):
        line = time_line(np.array([9, 7]), np.array([0, 1]), 0, self.nothing(), usual=40)
        assert line.times.tolist() == [9, 49]
        assert line.end == 89

    def test_keeps_frames_that_share_a_time(self):
        line = time_line(np.array([0, 40, 40, 80]), np.zeros(4, dtype=np.int64), 40, self.nothing(), usual=None)
        assert line.times.tolist() == [0, 40, 40, 80]
        assert line.end == 120

    def test_is_none_where_a_time_is_not_told(self):
        assert time_line(np.array([0, -(2**63)]), np.zeros(2, dtype=np.int64), 0, self.nothing(), usual=40) is None
