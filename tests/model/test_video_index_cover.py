# SPDX-License-Identifier: Apache-2.0
"""What packets tell of a file: its frames, their times, and what has to be decoded for some of them."""

from pathlib import Path

import av
import numpy as np
import pytest
from clips import indexed_frames, moving_frames, write_clip
from modeling_cover.model.video_decoding_cover import VideoDecodingError, read_video
from modeling_cover.model.video_index_cover import VideoIndex, packets_between, scan_packets
from modeling_cover.model.video_opening_cover import open_video


def index_of(path: str) -> VideoIndex:
    with open_video(path, num_threads=1) as (container, stream):
        return scan_packets(container, stream)


@pytest.fixture
def write(tmp_path):
    def write(name: str, **options) -> str:
        return write_clip(tmp_path / name, moving_frames(30), **options)

    return write


class TestPlan:
    def test_a_frame_needs_what_lies_between_it_and_the_keyframe_before(self, write):
        index = index_of(write("clip.mp4", g="10", bf="0"))
        assert index.entries.tolist() == [0, 10, 20]
        assert index.plan([0]) == [(0, 0)]
        assert index.plan([9]) == [(0, 9)]
        assert index.plan([10]) == [(10, 10)]
        assert index.plan([3, 25]) == [(0, 3), (20, 25)]
        assert index.plan([3, 3, 5, 27, 29]) == [(0, 5), (20, 29)]

    def test_runs_that_touch_are_one(self, write):
        index = index_of(write("clip.mp4", g="10", bf="0"))
        assert index.plan([9, 10]) == [(0, 10)]
        assert index.plan([8, 10]) == [(0, 8), (10, 10)]

    def test_a_frame_displayed_before_the_keyframe_it_follows_needs_the_one_before(self, write):
        index = index_of(write("clip.mp4", codec="mpeg4", g="10", bf="2"))
        keyframe = int(index.entries[1])
        displayed_before = int(np.flatnonzero(index.display_order == keyframe)[0]) - 1
        assert index.display_order[displayed_before] > keyframe  # decoded behind it
        assert index.plan([displayed_before]) == [(0, index.display_order[displayed_before])]

    def test_every_frame_of_an_intra_codec_stands_alone(self, write):
        index = index_of(write("clip.avi", codec="mjpeg", pixel_format="yuvj420p"))
        assert index.plan([4, 20]) == [(4, 4), (20, 20)]


class TestEntries:
    def test_of_h264_are_its_idr_pictures_alone(self, write):
        options = {"g": "10", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"}
        for name in ("clip.mp4", "clip.mkv", "clip.ts"):  # with lengths, with lengths, with start codes
            path = write(name, **options)
            with av.open(path) as container:
                flags = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
            assert sum(flags) == 3
            assert index_of(path).entries.tolist() == [0]
            closed = write(name, g="10")
            assert len(index_of(closed).entries) == 3

    def test_of_hevc_are_its_open_keyframes_too(self, write):
        index = index_of(
            write("clip.mp4", codec="libx265", **{"x265-params": "log-level=none:keyint=10:min-keyint=10"})
        )
        assert len(index.entries) == 3


class TestTrust:
    """Which files are decoded by plan."""

    @pytest.mark.parametrize(
        ("name", "options", "is_exact", "is_skippable"),
        [
            ("clip.mp4", {}, True, True),
            ("clip.mkv", {}, True, True),
            ("clip.ts", {}, False, True),  # without an index
            ("clip.avi", {}, True, True),  # without timestamps, but frames that tell their order
            ("clip.avi", {"flags": "+ilme+ildct", "x264-params": "tff=1"}, False, True),  # or fields, which do not
            ("clip.webm", {"codec": "libvpx-vp9"}, True, False),
            ("clip.webm", {"codec": "libvpx"}, False, False),  # hidden frames in packets of their own
            ("clip.avi", {"codec": "mpeg4"}, True, False),
            ("clip.avi", {"codec": "mpeg4", "bf": "2"}, True, False),
            ("clip.mp4", {"codec": "mpeg4", "bf": "2"}, True, False),
            ("clip.avi", {"codec": "msmpeg4v3"}, False, False),
            ("clip.mp4", {"codec": "libx265", "x265-params": "log-level=none"}, True, True),
            ("clip.mp4", {"codec": "libx265", "x265-params": "log-level=none:temporal-layers=3"}, True, False),
        ],
    )
    def test_goes_by_container_and_codec(self, name, options, is_exact, is_skippable, write):
        index = index_of(write(name, **options))
        assert (index.is_exact, index.is_skippable) == (is_exact, is_skippable)


class TestTimes:
    def test_frames_are_in_display_order(self, write):
        index = index_of(write("clip.mp4", bf="3"))
        assert index.times.tolist() == sorted(index.timestamps.tolist())
        assert index.display_order.tolist() != list(range(30))
        assert index.fps == 24
        assert index.duration(0, 30) == pytest.approx(30 / 24)
        assert index.duration(6, 12) == pytest.approx(6 / 24)

    def test_they_may_not_be_told(self, write):
        index = index_of(write("clip.h264", container_format="h264"))
        assert index.times is None
        assert index.num_frames == 30
        assert index.duration(0, 30) == pytest.approx(30 / 25)  # FFmpeg takes 25 frames a second for granted

    def test_those_of_counted_frames_replace_what_was_promised(self, write):
        index = index_of(write("clip.mp4"))
        times = index.times.tolist()[4:]
        counted = index.counted(times, [False] * 26)
        assert counted.num_frames == 26
        assert counted.times.tolist() == times
        assert counted.duration(0, 26) == pytest.approx(26 / 24)
        assert not counted.is_exact
        assert index.counted([None, 1, 2], [True] * 3).times is None


class TestBounds:
    def test_the_number_of_packets_has_one(self, write, monkeypatch):
        monkeypatch.setattr("modeling_cover.model.video_index_cover._MAX_PACKETS", 29)
        with pytest.raises(VideoDecodingError, match=r"clip\.mp4 .*more than 29 packets"):
            read_video(write("clip.mp4"), lambda metadata: [0])

    def test_packets_are_kept_up_to_one(self, write, monkeypatch):
        path = write("clip.mp4")
        assert len(index_of(path).packets) == 30
        monkeypatch.setattr("modeling_cover.model.video_index_cover._MAX_KEPT_BYTES", 1000)
        assert index_of(path).packets is None

    def test_packets_are_counted_however_small_they_are(self, write, monkeypatch):
        path = write("clip.mp4")
        monkeypatch.setattr("modeling_cover.model.video_index_cover._BYTES_OF_A_PACKET", 2**26 // 20)
        assert index_of(path).packets is None

    def test_packets_may_not_be_much_larger_than_the_file(self, write, monkeypatch):
        """As they would be if an index names the same bytes again and again."""
        path = write("clip.mp4")
        monkeypatch.setattr("modeling_cover.model.video_index_cover._MAX_SMALL_BYTES", 0)
        assert index_of(path).num_frames == 30
        monkeypatch.setattr("modeling_cover.model.video_index_cover._MAX_EXPANSION", 0.5)
        with pytest.raises(VideoDecodingError, match=r"clip\.mp4 .*its packets are more than \d+"):
            read_video(path, lambda metadata: [0])

    def test_packets_that_were_not_kept_are_found_again(self, write, monkeypatch):
        path = write("clip.mp4", g="10")
        with open_video(path, num_threads=1) as (container, stream):
            kept = scan_packets(container, stream).packets
        monkeypatch.setattr("modeling_cover.model.video_index_cover._MAX_KEPT_BYTES", 1000)
        with open_video(path, num_threads=1) as (container, stream):
            index = scan_packets(container, stream)
            for first, last in ((0, 5), (20, 29), (10, 10), (0, 29)):
                again = list(packets_between(container, stream, index, first, [True] * (last + 1 - first)))
                assert [bytes(packet) for packet in again] == [bytes(packet) for packet in kept[first : last + 1]]

    def test_a_picture_has_one_already_while_the_file_is_probed(self, tmp_path):
        content = bytearray(
            Path(write_clip(tmp_path / "a.gif", indexed_frames(2), codec="gif", pixel_format="gray")).read_bytes()
        )
        content[6:10] = b"\x00\x80\x00\x80"  # 32768 x 32768
        with pytest.raises(VideoDecodingError):
            read_video(bytes(content), lambda metadata: [0])
