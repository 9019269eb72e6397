# SPDX-License-Identifier: Apache-2.0
"""However a file is laid out, `read_video` yields the frames of a plain decoding, and decodes no more than it must."""

import contextlib
import io
import struct
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from clips import (
    frame_numbers,
    indexed_frames,
    moving_frames,
    not_coded_vop,
    plain_frames,
    write_clip,
    write_packed,
    write_packets,
)
from h264_headers import without_usability
from modeling_cover.model import video_decoding_cover, video_opening_cover
from modeling_cover.model.video_decoding_cover import VideoDecodingError, read_video
from modeling_cover.model.video_index_cover import scan_packets
from modeling_cover.model.video_opening_cover import open_video
from mp4_boxes import joined, with_edits


X264 = {"qp": "28"}
X265 = {"codec": "libx265"}
VP9 = {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"}
MPEG = {"qmin": "4", "qmax": "9", "g": "12"}
# The stream does not say how far its frames are out of order.
UNTOLD = {"g": "30", "bf": "7", "x264-params": "b-pyramid=normal:b-adapt=0", "is_untold": True}
TIMES = np.random.default_rng(0).integers(5, 90, 60).cumsum().tolist()
# What can make a frame depend on another one, and its time on a guess.
LAYOUTS = {
    "one_keyframe.mp4": {"g": "250"},
    "short_gops.mp4": {"g": "12"},
    "no_b_frames.mp4": {"g": "12", "bf": "0"},
    "pyramid.mp4": {"g": "30", "bf": "7", "x264-params": "b-pyramid=normal:b-adapt=0"},
    "strict_pyramid.mkv": {"g": "30", "bf": "7", "x264-params": "b-pyramid=strict:b-adapt=0"},
    "open_gops.mp4": {"g": "15", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"},
    "open_gops.mkv": {"g": "15", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"},
    "intra_refresh.mp4": {"g": "15", "bf": "2", "x264-params": "intra-refresh=1"},
    "many_references.mp4": {"g": "40", "refs": "8", "bf": "5", "slices": "3"},
    "interlaced.mp4": {"g": "12", "flags": "+ilme+ildct", "x264-params": "tff=1"},
    "deep_colour.mp4": {"g": "12", "pixel_format": "yuv420p10le"},
    "fragmented.mp4": {"g": "12", "bf": "3", "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "varying_rate.mp4": {"g": "12", "bf": "3", "timestamps": TIMES},
    "varying_rate.mkv": {"g": "12", "bf": "3", "timestamps": TIMES},
    "h264.avi": {"g": "12", "bf": "3"},
    "h264.flv": {"g": "12", "bf": "3"},
    "h264.ts": {"g": "12", "bf": "3"},
    "bare.h264": {"g": "12", "bf": "3", "fps": 25, "container_format": "h264"},
    "untold_order.mp4": UNTOLD,
    "untold_order.mkv": UNTOLD,
    "untold_order.avi": UNTOLD,
    "untold_order.flv": UNTOLD,
    "untold_order.ts": UNTOLD,
    "untold_order.h264": UNTOLD | {"fps": 25, "container_format": "h264"},
    "hevc_open_gops.mp4": X265 | {"x265-params": "log-level=none:keyint=12:min-keyint=12:bframes=4:b-adapt=0"},
    "hevc_closed_gops.mkv": X265 | {"x265-params": "log-level=none:keyint=12:min-keyint=12:open-gop=0"},
    "hevc_layers.mp4": X265 | {"x265-params": "log-level=none:keyint=30:temporal-layers=3"},
    "hevc.ts": X265 | {"x265-params": "log-level=none:keyint=12"},
    "vp9.webm": VP9 | {"g": "12"},
    "vp9_hidden_frames.webm": VP9 | {"g": "30", "deadline": "good", "lag-in-frames": "25", "auto-alt-ref": "1"},
    "vp8_hidden_frames.webm": VP9 | {"codec": "libvpx", "g": "30", "lag-in-frames": "25", "auto-alt-ref": "1"},
    "av1.mp4": {"codec": "libsvtav1", "preset": "13", "g": "20"},
    "mpeg4.avi": MPEG | {"codec": "mpeg4"},
    "mpeg4_b_frames.avi": MPEG | {"codec": "mpeg4", "bf": "2"},
    "mpeg4_packed.avi": MPEG | {"packed": True},
    "mpeg4_packed_one_keyframe.avi": MPEG | {"packed": True, "g": "250", "bf": "1"},
    "mpeg4_b_frames.mp4": MPEG | {"codec": "mpeg4", "bf": "2"},
    "mpeg2.ts": MPEG | {"codec": "mpeg2video", "bf": "2", "fps": 25},
    "mpeg2.mpg": MPEG | {"codec": "mpeg2video", "bf": "2", "fps": 25, "container_format": "mpeg"},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "animated.gif": {"codec": "gif", "pixel_format": "rgb8", "fps": 25},
}


def write_layout(path: Path) -> str:
    path.write_bytes(content_of_layout(path.name))
    return str(path)


@cache
def content_of_layout(name: str) -> bytes:
    options = dict(LAYOUTS[name])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if options.pop("packed", False):
            write_packed(path, moving_frames(60), **options)
            return path.read_bytes()
        is_untold = options.pop("is_untold", False)
        write_clip(path, moving_frames(60), **(options if "codec" in options else X264 | options))
        return without_usability(path.read_bytes()) if is_untold else path.read_bytes()


def every_frame(metadata):
    return range(metadata.total_num_frames)


@pytest.fixture
def clip(tmp_path) -> str:
    return write_clip(tmp_path / "clip.mp4", indexed_frames(20))


class TestAnyLayout:
    """However a file is laid out, its frames are those of a decoding from its start to its end, to the bit."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_all_and_random_frames_equal_those_of_a_plain_decoding(self, layout, tmp_path):
        path = write_layout(tmp_path / layout)
        expected = plain_frames(path)
        np.testing.assert_array_equal(read_video(path, every_frame, num_threads=1)[0], expected)
        random = np.random.default_rng(sum(layout.encode()))
        for num_threads in (1, 1, 1, 2, 3):
            indices = np.sort(random.integers(0, len(expected), size=random.integers(1, 9)))
            frames, metadata = read_video(path, lambda metadata, indices=indices: indices, num_threads=num_threads)
            np.testing.assert_array_equal(frames, expected[indices])
            assert metadata.total_num_frames == len(expected)

    @pytest.mark.parametrize("layout", ["short_gops.mp4", "open_gops.mp4", "no_b_frames.mp4"])
    def test_an_edit_list_may_begin_between_keyframes(self, layout, tmp_path):
        content = bytearray(Path(write_layout(tmp_path / layout)).read_bytes())
        start = content.index(b"elst") + 16
        struct.pack_into(">i", content, start, struct.unpack_from(">i", content, start)[0] + 17 * 512)
        expected = plain_frames(io.BytesIO(content))
        assert len(expected) == 43
        for indices in ([0], [5, 6, 30], [42]):
            frames, metadata = read_video(bytes(content), lambda metadata, indices=indices: indices)
            np.testing.assert_array_equal(frames, expected[indices])
            assert metadata.total_num_frames == 43

    def test_packets_that_do_not_fit_into_memory_are_read_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr("modeling_cover.model.video_index_cover._MAX_KEPT_BYTES", 1000)
        in_avi = ("mpeg4.avi", "mpeg4_b_frames.avi", "mpeg4_packed.avi", "h264.avi")
        for layout in ("short_gops.mp4", "varying_rate.mkv", "one_keyframe.mp4", "vp9.webm", *in_avi):
            path = write_layout(tmp_path / layout)
            for indices in ([7], [3, 20, 21, 50], range(59)):
                frames, _ = read_video(path, lambda metadata, indices=indices: indices)
                np.testing.assert_array_equal(frames, plain_frames(path)[indices])

    @pytest.mark.parametrize("segments", [[(0, 15), (35, 20)], [(13, 8), (47, 5)], [(30, 15), (5, 20)]], ids=str)
    @pytest.mark.parametrize("layout", ["short_gops.mp4", "no_b_frames.mp4", "hevc_open_gops.mp4", "mpeg4.mp4"])
    def test_an_edit_list_may_have_several_segments(self, layout, segments, tmp_path):
        options = MPEG | {"codec": "mpeg4"} if layout == "mpeg4.mp4" else LAYOUTS[layout]
        path = write_clip(tmp_path / layout, moving_frames(60), **(options if "codec" in options else X264 | options))
        content = with_edits(Path(path).read_bytes(), segments)
        expected = plain_frames(io.BytesIO(content))
        for index in range(len(expected)):
            frames, _ = read_video(content, lambda metadata, index=index: [index], num_threads=1)
            np.testing.assert_array_equal(frames, expected[index : index + 1])

    @pytest.mark.parametrize(
        "options", [({"qp": "12"}, {"qp": "30"}), ({"x264-params": "cqm=flat"}, {"x264-params": "cqm=jvt"})], ids=str
    )
    def test_files_that_were_joined_have_parameters_of_their_own(self, options, tmp_path):
        frames, common = moving_frames(60), {"g": "10", "bf": "0", "qp": "30"}
        both = [
            write_clip(tmp_path / f"{part}.mp4", frames[30 * part : 30 * part + 30], **common | options[part])
            for part in (0, 1)
        ]
        content = joined(*both)
        expected = plain_frames(io.BytesIO(content))
        assert len(expected) == 60
        for indices in ([2, 25, 42, 55], [55], [31], range(60)):
            found, _ = read_video(content, lambda metadata, indices=indices: indices, num_threads=1)
            np.testing.assert_array_equal(found, expected[list(indices)])

    @pytest.mark.parametrize("layout", ["short_gops.mp4", "vp9.webm", "mpeg4.avi", "mpeg4_packed.avi", "h264.avi"])
    def test_flags_that_call_every_packet_a_keyframe_do_no_harm(self, layout, tmp_path, monkeypatch):
        path = write_layout(tmp_path / layout)
        expected = plain_frames(path)
        scan = video_decoding_cover.scan_packets

        def scan_with_lies(container, stream):
            index = scan(container, stream)
            return replace(index, entries=np.arange(len(index.timestamps)))

        monkeypatch.setattr(video_decoding_cover, "scan_packets", scan_with_lies)
        for indices in ([7], [3, 20, 21, 50], [1, 14, 58]):
            frames, _ = read_video(path, lambda metadata, indices=indices: indices)
            np.testing.assert_array_equal(frames, expected[indices])

    @pytest.mark.parametrize(
        "layout",
        ["short_gops.mp4", "pyramid.mp4", "open_gops.mkv", "mpeg4.avi", "mpeg4_b_frames.avi", "h264.avi", "vp9.webm"],
    )
    def test_damage_leaves_a_frame_as_it_is_or_as_a_plain_decoding_mends_it(self, layout, tmp_path):
        content = Path(write_layout(tmp_path / layout)).read_bytes()
        intact = plain_frames(io.BytesIO(content))
        random = np.random.default_rng(0)
        num_read = 0
        for _ in range(10):
            damaged = bytearray(content)
            for position in random.integers(len(content) // 3, len(content) * 2 // 3, size=random.integers(1, 5)):
                damaged[position] = random.integers(256)
            shares = np.sort(random.random(5))
            with contextlib.suppress(VideoDecodingError, av.error.FFmpegError):
                frames, metadata = read_video(
                    bytes(damaged), lambda metadata, shares=shares: shares * metadata.total_num_frames, num_threads=1
                )
                if metadata.total_num_frames == 60:
                    num_read += 1
                    mended = plain_frames(io.BytesIO(damaged))
                    for frame, index in zip(frames, metadata.frames_indices, strict=True):
                        is_mended = len(mended) == 60 and (frame == mended[index]).all()
                        assert is_mended or (frame == intact[index]).all()
        assert num_read > 1


class TestAvi:
    """AVI tells neither the order nor the times of frames: MPEG-4 and H.264 tell the order themselves."""

    @pytest.mark.parametrize(
        "layout", ["mpeg4.avi", "mpeg4_b_frames.avi", "mpeg4_packed.avi", "mpeg4_packed_one_keyframe.avi", "h264.avi"]
    )
    def test_is_decoded_by_plan(self, layout, tmp_path, monkeypatch):
        path = write_layout(tmp_path / layout)
        expected = plain_frames(path)

        def fail(*arguments):
            raise AssertionError("decoded in order")

        monkeypatch.setattr(video_decoding_cover, "decode_in_order", fail)
        for index in range(len(expected)):
            frames, metadata = read_video(path, lambda metadata, index=index: [index], num_threads=1)
            np.testing.assert_array_equal(frames[0], expected[index])
            assert metadata.timestamps == pytest.approx([index / 24])
        assert metadata.duration == pytest.approx(len(expected) / 24)

    @pytest.mark.parametrize("layout", ["mpeg4_b_frames.avi", "mpeg4_packed.avi"])
    def test_frames_that_no_other_refers_to_are_not_decoded(self, layout, tmp_path, monkeypatch):
        path = write_layout(tmp_path / layout)
        with open_video(path, num_threads=1) as (container, stream):
            index = scan_packets(container, stream)
        (run,) = index.plan([11])
        num_references = int((~index.unreferenced[run[0] : run[1] + 1]).sum())
        assert num_references < run[1] + 1 - run[0]
        # So much may be decoded, and not a frame more.
        monkeypatch.setattr(video_opening_cover, "_MAX_DECODED_PIXELS", (num_references + 1) * 64 * 96)
        frames, _ = read_video(path, lambda metadata: [11], num_threads=1)
        np.testing.assert_array_equal(frames, plain_frames(path)[11:12])

    @pytest.mark.parametrize("places", [[10], [8, 8, 20], [1], [0], [30], [30, 30]], ids=str)
    @pytest.mark.parametrize("num_b_frames", ["0", "2"])
    def test_frames_that_are_not_coded_take_their_time_alone(self, num_b_frames, places, tmp_path):
        path = write_clip(tmp_path / "whole.avi", moving_frames(30), codec="mpeg4", bf=num_b_frames, g="12")
        with av.open(path) as container:
            packets = [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
        for place in reversed(places):
            packets.insert(place, (not_coded_vop(24), False))
        path = write_packets(tmp_path / "clip.avi", packets, 96, 64, 24)
        expected = plain_frames(path)
        frames, metadata = read_video(path, every_frame, num_threads=1)
        np.testing.assert_array_equal(frames, expected)
        assert (np.diff(metadata.timestamps) > 0).all()
        for index in range(0, len(expected), 3):
            frames, _ = read_video(path, lambda metadata, index=index: [index], num_threads=1)
            np.testing.assert_array_equal(frames[0], expected[index])
        if num_b_frames == "0" and places == [8, 8, 20]:
            slots = [*range(8), *range(10, 22), *range(23, 33)]
            assert metadata.timestamps == pytest.approx([slot / 24 for slot in slots])


class TestEffort:
    """What the wanted frames do not need is not decoded."""

    def test_other_groups_of_pictures_are_passed_over(self, tmp_path):
        path = write_layout(tmp_path / "short_gops.mp4")
        expected = plain_frames(path)
        content = bytearray(Path(path).read_bytes())
        with av.open(path) as container:
            packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
        for position, size in packets[12:36]:
            content[position + 5 : position + size] = bytes(size - 5)  # the head of each remains
        indices = [3, 40, 59]
        frames, metadata = read_video(bytes(content), lambda metadata: indices)
        np.testing.assert_array_equal(frames, expected[indices])
        assert metadata.total_num_frames == 60
        with pytest.raises(VideoDecodingError):
            read_video(bytes(content), lambda metadata: [20], num_threads=1)

    def test_the_sampler_is_asked_once(self, tmp_path):
        for layout in ("short_gops.mp4", "vp9.webm", "h264.ts", "bare.h264"):
            told = []
            read_video(write_layout(tmp_path / layout), lambda metadata, told=told: told.append(1) or [5])
            assert told == [1]


class TestBounds:
    """What a small file can make a decoder do."""

    @pytest.mark.parametrize("layout", ["one_keyframe.mp4", "h264.ts"])
    def test_of_time(self, layout, tmp_path, monkeypatch):
        path = write_layout(tmp_path / layout)
        monkeypatch.setattr(video_opening_cover, "_MAX_DECODED_PIXELS", 40 * 64 * 96)
        read_video(path, lambda metadata: [20], num_threads=1)
        with pytest.raises(VideoDecodingError, match="takes too long to decode"):
            read_video(path, lambda metadata: [59], num_threads=1)

    def test_of_the_longer_side(self, tmp_path):
        path = write_clip(tmp_path / "thin.mkv", np.zeros((2, 8, 400, 3), dtype=np.uint8), codec="ffv1")
        with pytest.raises(VideoDecodingError, match=r"thin\.mkv .*too narrow to be scaled: 400x8"):
            read_video(path, every_frame, short_side=224)
        assert read_video(path, every_frame)[0].shape == (2, 8, 400, 3)

    def test_of_a_frame_whose_pixels_take_more_than_usual(self, tmp_path):
        frames = np.zeros((1, 3000, 3000, 3), dtype=np.uint8)
        deep = write_clip(tmp_path / "deep.mkv", frames, preset="ultrafast", pixel_format="yuv444p10le")
        with pytest.raises(VideoDecodingError, match=r"deep\.mkv .*too large: 3000x3000 pixels of 48 bits"):
            read_video(deep, every_frame)
        usual = write_clip(tmp_path / "usual.mkv", frames, preset="ultrafast")
        assert read_video(usual, every_frame, short_side=8)[0].shape == (1, 8, 8, 3)
        # Of frames that refer to no other, a decoder keeps but a few.
        alone = write_clip(tmp_path / "alone.mov", frames, codec="prores_ks", pixel_format="yuv422p10le")
        assert read_video(alone, every_frame, short_side=8)[0].shape == (1, 8, 8, 3)


class TestSegments:
    @pytest.mark.parametrize(
        "layout", ["short_gops.mp4", "open_gops.mkv", "h264.ts", "bare.h264", "mpeg4_b_frames.avi"]
    )
    def test_are_the_frames_from_start_until_before_end(self, layout, tmp_path):
        path = write_layout(tmp_path / layout)
        expected, fps = plain_frames(path), LAYOUTS[layout].get("fps", 24)
        for first, stop in ((12, 36), (0, 6), (48, 60), (24, 25)):
            start = first / fps if first else None
            end = (stop - 0.5) / fps if stop < 60 else None
            frames, metadata = read_video(path, every_frame, start=start, end=end)
            np.testing.assert_array_equal(frames, expected[first:stop])
            assert metadata.total_num_frames == stop - first
            assert metadata.frames_indices == list(range(stop - first))
            assert metadata.duration == pytest.approx((stop - first) / fps, abs=0.01)
        with pytest.raises(VideoDecodingError, match=r"between 0\.51 and 0\.515 seconds: it lasts 2\.[45]"):
            read_video(path, every_frame, start=0.51, end=0.515)

    def test_go_by_the_time_where_the_frame_rate_varies(self, tmp_path):
        path = write_layout(tmp_path / "varying_rate.mp4")
        times = [(time - TIMES[0]) / 1000 for time in TIMES]
        frames, _ = read_video(path, every_frame, start=times[10], end=times[31] + 0.001)
        np.testing.assert_array_equal(frames, plain_frames(path)[10:32])

    def test_of_a_tenth_of_a_second_begin_at_the_frame_of_that_time(self, tmp_path):
        path = write_clip(tmp_path / "clip.mp4", indexed_frames(30), fps=10)
        for tenth in range(1, 20):
            frames, _ = read_video(path, every_frame, start=tenth / 10, end=tenth / 10 + 0.3)
            assert frame_numbers(frames) == [tenth, tenth + 1, tenth + 2]

    def test_behind_the_end_are_an_error_that_tells_the_duration(self, clip):
        with pytest.raises(VideoDecodingError, match=r"clip\.mp4 .*between 5 and 6 seconds: it lasts 0\.83"):
            read_video(clip, every_frame, start=5, end=6)

    def test_hold_where_packets_promise_frames_that_do_not_come(self, tmp_path):
        path = write_clip(tmp_path / "clip.ts", indexed_frames(30), g="10", bf="0")
        content = Path(path).read_bytes()
        content = content[len(content) // 4 // 188 * 188 :]
        frames, metadata = read_video(content, every_frame, start=0.25, end=0.5)  # of frames 10 to 29, at 24 a second
        assert frame_numbers(frames) == [16, 17, 18, 19, 20, 21]
        assert metadata.total_num_frames == 6
        assert metadata.duration == pytest.approx(0.25)

    @pytest.mark.parametrize(
        ("start", "end", "message"),
        [
            (-1, None, "start must be .* 0 or more, got -1"),
            (float("nan"), None, "start must be .* got nan"),
            (2, 2, "end must be .* after start, 2, got 2"),
            (None, 0, "end must be .* got 0"),
            (1, float("nan"), "end must be .* got nan"),
        ],
    )
    def test_must_be_intervals_of_time(self, start, end, message, clip):
        with pytest.raises(ValueError, match=message) as raised:
            read_video(clip, every_frame, start=start, end=end)
        assert not isinstance(raised.value, VideoDecodingError)
