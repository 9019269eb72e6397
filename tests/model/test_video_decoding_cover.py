# SPDX-License-Identifier: Apache-2.0
"""`read_video` yields the frames that were asked for, upright, or one error."""

import contextlib
import io
import shutil
import struct
from functools import partial
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from clips import (
    corner_frames,
    frame_numbers,
    indexed_frames,
    write_audio,
    write_clip,
    write_jpegs,
)
from modeling_cover.model.frame_sampling_cover import uniform_frame_indices
from modeling_cover.model.video_decoding_cover import VideoDecodingError, read_video
from torchvision.transforms.v2 import functional as tvF


# Container and codec of what the datasets of the field come as, and their difficulties: B-frames (H.264, HEVC, MPEG),
# no index (MPEG-TS, raw H.264), no timestamps (MPEG-PS, raw H.264), hidden frames (VP9), no codec to speak of (GIF).
KINDS = {
    "h264.mp4": partial(write_clip, bf="3"),
    "fragmented.mp4": partial(write_clip, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "hevc.mp4": partial(write_clip, codec="libx265"),
    "h264.mkv": partial(write_clip, bf="3"),
    "vp9.webm": partial(write_clip, codec="libvpx-vp9"),
    "mpeg4.avi": partial(write_clip, codec="mpeg4", bf="2"),
    "h264.ts": partial(write_clip, bf="3"),
    "mpeg2.mpg": partial(write_clip, codec="mpeg2video", container_format="mpeg", fps=25),
    "raw.h264": partial(write_clip, container_format="h264"),
    "animated.gif": partial(write_clip, codec="gif", pixel_format="gray", fps=25),
}


def every_frame(metadata):
    return range(metadata.total_num_frames)


def eight_frames(metadata):
    return uniform_frame_indices(metadata.total_num_frames, 8)


@pytest.fixture
def clip(tmp_path) -> str:
    return write_clip(tmp_path / "clip.mp4", indexed_frames(20))


class TestFrames:
    @pytest.mark.parametrize("kind", KINDS)
    def test_all_of_them_come_in_display_order(self, kind, tmp_path):
        path = KINDS[kind](tmp_path / kind, indexed_frames(24))
        frames, metadata = read_video(path, every_frame)
        assert frames.dtype == np.uint8
        assert frames.shape == (24, 48, 64, 3)
        assert frame_numbers(frames) == list(range(24))
        assert metadata.total_num_frames == 24
        assert metadata.duration == pytest.approx(24 / metadata.fps, abs=0.01)

    @pytest.mark.parametrize("kind", KINDS)
    def test_those_asked_for_come_and_no_others(self, kind, tmp_path):
        path = KINDS[kind](tmp_path / kind, indexed_frames(24))
        frames, metadata = read_video(path, lambda metadata: np.array([0, 3, 3, 11, 22]))
        assert frame_numbers(frames) == [0, 3, 3, 11, 22]
        assert metadata.frames_indices == [0, 3, 3, 11, 22]

    def test_they_equal_those_of_a_plain_decoding(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
        path = write_clip(tmp_path / "noise.mp4", noise)
        with av.open(path) as container:
            expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        frames, _ = read_video(path, every_frame)
        np.testing.assert_array_equal(frames, expected)

    def test_colours_keep_their_places(self, tmp_path):
        colours = np.full((2, 48, 64, 3), (200, 60, 30), dtype=np.uint8)
        frames, _ = read_video(write_clip(tmp_path / "red.mp4", colours, pixel_format="yuv444p"), every_frame)
        np.testing.assert_allclose(frames.mean(axis=(0, 1, 2)), (200, 60, 30), atol=3)

    @pytest.mark.parametrize("num_threads", [0, 1, 2])
    def test_they_do_not_depend_on_the_number_of_threads(self, num_threads, clip):
        frames, _ = read_video(clip, eight_frames, num_threads=num_threads)
        assert frame_numbers(frames) == uniform_frame_indices(20, 8)

    @pytest.mark.parametrize("container", ["mp4", "mkv"])
    def test_they_go_by_their_order_where_the_frame_rate_varies(self, container, tmp_path):
        times = [index**2 * 10 for index in range(24)]  # ever slower
        path = write_clip(tmp_path / f"slowing.{container}", indexed_frames(24), timestamps=times)
        frames, metadata = read_video(path, eight_frames)
        assert frame_numbers(frames) == uniform_frame_indices(24, 8)
        assert metadata.duration == pytest.approx(5.3, abs=0.5)
        assert metadata.timestamps == pytest.approx([times[index] / 1000 for index in metadata.frames_indices])
        _, metadata = read_video(path, every_frame, start=1.0, end=3.0)
        assert metadata.timestamps == pytest.approx([time / 1000 - 1.0 for time in times if 1000 <= time < 3000])

    def test_the_metadata_describes_the_clip(self, clip):
        _, metadata = read_video(clip, eight_frames)
        assert metadata.total_num_frames == 20
        assert metadata.fps == 24.0
        assert metadata.duration == pytest.approx(20 / 24)
        assert (metadata.height, metadata.width) == (48, 64)
        assert metadata.video_backend == "pyav"
        assert metadata.timestamps[0] == pytest.approx(1 / 24)

    def test_audio_may_come_first(self, tmp_path):
        path = write_clip(tmp_path / "clip.mp4", indexed_frames(20), audio_first=True)
        with av.open(path) as container:
            assert [stream.type for stream in container.streams] == ["audio", "video"]
        assert frame_numbers(read_video(path, every_frame)[0]) == list(range(20))

    def test_audio_may_come_late(self, tmp_path):
        # Behind the 5 MB within which FFmpeg looks for streams: PyAV then trips over the one it has not seen.
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        frames = np.stack([np.roll(noise, 97 * index, axis=1) for index in range(10)])
        path = Path(write_clip(tmp_path / "clip.flv", frames, codec="flv", qmin="1", qmax="1", g="1"))
        content = bytearray(path.read_bytes() + flv_audio_tag(milliseconds=400) * 2)
        assert len(content) > 6_000_000
        content[4] = 1  # there is video; of audio the header says nothing
        with av.open(io.BytesIO(content)) as container, pytest.raises(IndexError):
            list(container.demux(video=0))
        assert len(read_video(bytes(content), every_frame)[0]) == 10

    def test_metadata_that_is_not_utf_8_does_no_harm(self, tmp_path):
        path = Path(write_clip(tmp_path / "clip.mkv", indexed_frames(20), title="A TITLE"))
        path.write_bytes(path.read_bytes().replace(b"A TITLE", b"\xff TITLE"))
        with pytest.raises(UnicodeDecodeError):
            av.open(str(path))
        assert frame_numbers(read_video(path, every_frame)[0]) == list(range(20))


class TestSources:
    def test_a_path_its_bytes_and_a_file_object_are_one(self, clip):
        content = Path(clip).read_bytes()
        expected, _ = read_video(clip, eight_frames)
        with open(clip, "rb") as file:
            file.seek(100)
            for source in (Path(clip), content, io.BytesIO(content), file, file):
                np.testing.assert_array_equal(read_video(source, eight_frames)[0], expected)

    @pytest.mark.parametrize("name", ["a:b.mp4", "clip %02d.mp4", "clip?x=1#y.mp4", "clípé.mp4", "clip.txt"])
    def test_a_path_is_taken_literally(self, name, clip, tmp_path):
        shutil.copy(clip, tmp_path / name)
        frames, _ = read_video(tmp_path / name, eight_frames)
        assert len(frames) == 8

    def test_a_relative_path_may_look_like_a_protocol(self, clip, tmp_path, monkeypatch):
        shutil.copy(clip, tmp_path / "concat:b.mp4")
        monkeypatch.chdir(tmp_path)
        assert len(read_video("concat:b.mp4", eight_frames)[0]) == 8


class TestOrientation:
    # The matrix (a, b, c, d) of an MP4 takes column x and row y to column ax + cy and row bx + dy.
    @pytest.mark.parametrize(
        ("matrix", "corner", "shape"),
        [
            ((1, 0, 0, 1), "top left", (48, 64)),
            ((0, 1, -1, 0), "top right", (64, 48)),  # a phone held upright: a quarter turn clockwise
            ((-1, 0, 0, -1), "bottom right", (48, 64)),
            ((0, -1, 1, 0), "bottom left", (64, 48)),
            ((-1, 0, 0, 1), "top right", (48, 64)),  # mirrored
            ((1, 0, 0, -1), "bottom left", (48, 64)),
            ((0, 1, 1, 0), "top left", (64, 48)),  # mirrored and turned
            ((0, -1, -1, 0), "bottom right", (64, 48)),
        ],
    )
    def test_frames_are_turned_as_the_display_matrix_says(self, matrix, corner, shape, tmp_path):
        path = Path(write_clip(tmp_path / "turned.mp4", corner_frames()))
        path.write_bytes(with_display_matrix(path.read_bytes(), *matrix))
        frames, metadata = read_video(path, every_frame)
        assert frames.shape == (2, *shape, 3)
        assert (metadata.height, metadata.width) == shape
        assert white_corner(frames[0]) == corner

    def test_frames_are_turned_where_pyav_cannot_tell_the_matrix(self, tmp_path):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # orientation: to be turned clockwise
        jpeg = io.BytesIO()
        PIL.Image.fromarray(corner_frames()[0]).save(jpeg, "JPEG", exif=exif, quality=95)
        frames, _ = read_video(write_jpegs(tmp_path / "exif.avi", [jpeg.getvalue()] * 2), every_frame)
        assert frames.shape == (2, 64, 48, 3)
        assert white_corner(frames[0]) == "top right"


class TestShortSide:
    @pytest.mark.parametrize(
        ("height", "width", "expected"),
        [(48, 64, (24, 32)), (64, 48, (32, 24)), (48, 70, (24, 35)), (16, 16, (24, 24))],
    )
    def test_is_the_shorter_side_of_the_frames(self, height, width, expected, tmp_path):
        path = write_clip(tmp_path / "clip.mp4", indexed_frames(8, height, width))
        frames, metadata = read_video(path, every_frame, short_side=24)
        assert frames.shape == (8, *expected, 3)
        assert frame_numbers(frames) == list(range(8))
        assert (metadata.height, metadata.width) == (height, width)

    def test_holds_for_turned_frames(self, tmp_path):
        path = Path(write_clip(tmp_path / "turned.mp4", corner_frames()))
        path.write_bytes(with_display_matrix(path.read_bytes(), 0, 1, -1, 0))
        frames, _ = read_video(path, every_frame, short_side=24)
        assert frames.shape == (2, 32, 24, 3)
        assert white_corner(frames[0]) == "top right"

    def test_rounds_the_longer_side_down_as_torchvision_does(self, tmp_path):
        path = write_clip(tmp_path / "clip.mp4", indexed_frames(4, 48, 64))
        for short_side in (20, 31, 32, 37):
            frames, _ = read_video(path, every_frame, short_side=short_side)
            expected = tvF.resize(torch.zeros(4, 3, 48, 64), [short_side]).shape
            assert frames.shape == (4, *expected[2:], 3)

    @pytest.mark.parametrize("short_side", [24, 90])
    def test_scales_as_torchvision_does_up_to_the_chroma(self, short_side, tmp_path):
        # Of a smooth picture: an encoder halves the resolution of its colours, and what is made of that is not laid
        # down.
        rows, columns = np.mgrid[:128, :192]
        smooth = np.stack([rows * 2, columns, 255 - rows - columns // 2], axis=-1).astype(np.uint8)
        path = write_clip(tmp_path / "smooth.mp4", np.repeat(smooth[None], 4, axis=0))
        frames, _ = read_video(path, every_frame, short_side=short_side)
        full = torch.from_numpy(read_video(path, every_frame)[0]).permute(0, 3, 1, 2)
        expected = tvF.resize(full, [short_side], antialias=True).permute(0, 2, 3, 1).numpy()
        difference = np.abs(frames.astype(int) - expected)
        assert difference.mean() < 2
        assert difference.max() < 8

    def test_antialiases(self, tmp_path):
        stripes = np.zeros((2, 96, 96, 3), dtype=np.uint8)
        stripes[:, :, ::2] = 255
        frames, _ = read_video(write_clip(tmp_path / "stripes.mp4", stripes), every_frame, short_side=16)
        np.testing.assert_allclose(frames[:, :, 2:-2], 127, atol=6)

    def test_must_be_positive(self, clip):
        with pytest.raises(ValueError, match="short_side must be positive, got 0"):
            read_video(clip, every_frame, short_side=0)


class TestCounting:
    def test_a_header_may_announce_one_frame_too_many(self, tmp_path):
        content = bytearray(Path(write_clip(tmp_path / "clip.avi", indexed_frames(20), codec="mpeg4")).read_bytes())
        for chunk, offset in ((b"avih", 24), (b"strh", 40)):
            position = content.index(chunk) + offset
            assert struct.unpack_from("<I", content, position) == (20,)
            struct.pack_into("<I", content, position, 21)
        with av.open(io.BytesIO(content)) as container:
            assert container.streams.video[0].frames == 21
        frames, metadata = read_video(bytes(content), eight_frames)
        assert metadata.total_num_frames == 20
        assert frame_numbers(frames) == uniform_frame_indices(20, 8)

    def test_frames_outside_the_edit_list_do_not_count(self, tmp_path):
        path = Path(write_clip(tmp_path / "clip.mp4", indexed_frames(20), bf="0"))
        content = bytearray(path.read_bytes())
        start = content.index(b"elst") + 16
        assert struct.unpack_from(">i", content, start) == (0,)
        struct.pack_into(">i", content, start, 5 * 512)  # 512 units a frame
        told = []
        frames, metadata = read_video(
            bytes(content), lambda metadata: told.append(metadata.total_num_frames) or [0, 9]
        )
        assert frame_numbers(frames) == [5, 14]
        assert metadata.total_num_frames == 15
        assert told == [15]

    def test_frames_before_the_first_keyframe_do_not_count(self, tmp_path):
        path = write_clip(tmp_path / "clip.ts", indexed_frames(30), g="10", bf="0")
        content = Path(path).read_bytes()
        content = content[len(content) // 4 // 188 * 188 :]  # in units of transport packets, into the first ten frames
        with av.open(io.BytesIO(content)) as container:
            num_packets = sum(packet.size > 0 for packet in container.demux(video=0))
        told = []
        frames, metadata = read_video(content, lambda metadata: told.append(metadata.total_num_frames) or [0, 5])
        assert frame_numbers(frames) == [10, 15]
        assert metadata.total_num_frames == 20
        assert told == [num_packets, 20]
        assert num_packets > 20

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("clip.mp4", {"container_options": {"movflags": "faststart"}}),
            ("clip.mkv", {}),
            ("clip.avi", {"codec": "mpeg4"}),
        ],
    )
    def test_a_truncated_file_is_the_clip_up_to_its_cut(self, name, options, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
        content = Path(write_clip(tmp_path / name, noise, bf="0", **options)).read_bytes()
        expected, _ = read_video(content, every_frame)
        lengths = []
        for share in (0.5, 0.6, 0.7, 0.8, 0.9):
            frames, metadata = read_video(content[: int(len(content) * share)], every_frame)
            np.testing.assert_array_equal(frames, expected[: metadata.total_num_frames])
            lengths.append(len(frames))
        assert 4 <= lengths[0] < lengths[-1] < 12

    def test_a_stream_of_which_the_last_packets_yield_no_frame_is_shorter(self, tmp_path):
        path = write_clip(tmp_path / "clip.h264", indexed_frames(24), container_format="h264", bf="3")
        content = Path(path).read_bytes()
        corrected = []
        for cut in range(len(content) * 2 // 3, len(content), 3):
            told = []
            with contextlib.suppress(VideoDecodingError):
                read_video(
                    content[:cut],
                    lambda metadata, told=told: told.append(metadata.total_num_frames) or eight_frames(metadata),
                )
                corrected += [told] if len(told) > 1 else []
        assert corrected
        assert all(second < first for first, second in corrected)


class TestSampling:
    @pytest.mark.parametrize(
        ("indices", "message"),
        [
            ([], "no frame"),
            ([3, 2], "ascending order"),
            ([-1, 2], "frames 0 to 19"),
            ([0, 20], "frames 0 to 19"),
        ],
    )
    def test_indices_must_be_those_of_the_clip_in_order(self, indices, message, clip):
        with pytest.raises(ValueError, match=message) as raised:
            read_video(clip, lambda metadata: indices)
        assert not isinstance(raised.value, VideoDecodingError)

    @pytest.mark.parametrize("error", [ValueError("mine"), OSError("mine"), IndexError("mine")])
    def test_its_own_errors_pass_through(self, error, clip):
        def fail(metadata):
            raise error

        with pytest.raises(type(error)) as raised:
            read_video(clip, fail)
        assert raised.value is error


class TestErrors:
    """Whatever is wrong with a file, it is a VideoDecodingError that names it."""

    def test_a_path_with_a_zero_is_not_that_of_another_file(self, clip):
        with pytest.raises(VideoDecodingError, match="there is no such path"):
            read_video(f"{clip}\0.txt", lambda metadata: [0])

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(VideoDecodingError, match=r"nowhere\.mp4 .*No such file"):
            read_video(tmp_path / "nowhere.mp4", every_frame)

    def test_a_directory(self, tmp_path):
        with pytest.raises(VideoDecodingError, match=str(tmp_path)):
            read_video(tmp_path, every_frame)

    @pytest.mark.parametrize(
        "content", [b"", b"This is no video.\n" * 100, bytes(5000)], ids=["empty", "text", "zeros"]
    )
    def test_a_file_that_is_no_video(self, content, tmp_path):
        path = tmp_path / "clip.mp4"
        path.write_bytes(content)
        with pytest.raises(VideoDecodingError, match=r"clip\.mp4 cannot be read as a video"):
            read_video(path, every_frame)
        with pytest.raises(VideoDecodingError, match=f"<{len(content)} bytes> cannot be read"):
            read_video(content, every_frame)
        with pytest.raises(VideoDecodingError, match=r"^<a file object> cannot be read"):
            read_video(io.BytesIO(content), every_frame)

    def test_a_file_without_video(self, tmp_path):
        with pytest.raises(VideoDecodingError, match=r"song\.m4a .*no video stream"):
            read_video(write_audio(tmp_path / "song.m4a"), every_frame)

    def test_a_song_with_a_cover_picture(self, tmp_path):
        cover = io.BytesIO()
        PIL.Image.fromarray(corner_frames()[0]).save(cover, "JPEG")
        path = write_audio(tmp_path / "song.m4a", cover.getvalue())
        with av.open(path) as container:
            assert container.streams.video
        with pytest.raises(VideoDecodingError, match="no video stream"):
            read_video(path, every_frame)

    def test_a_closed_file_object(self, clip):
        with open(clip, "rb") as file:
            pass
        with pytest.raises(VideoDecodingError, match="closed"):
            read_video(file, every_frame)

    @pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8])
    def test_a_truncated_file_with_its_index_at_the_end(self, share, clip):
        content = Path(clip).read_bytes()
        with pytest.raises(VideoDecodingError):
            read_video(content[: int(len(content) * share)], every_frame)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_truncated_file_of_which_too_little_is_left(self, kind, tmp_path):
        content = Path(KINDS[kind](tmp_path / kind, indexed_frames(24))).read_bytes()
        with pytest.raises(VideoDecodingError):
            read_video(content[:40], every_frame)
        for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
            with contextlib.suppress(VideoDecodingError):
                frames, metadata = read_video(content[: int(len(content) * share)], every_frame)
                assert len(frames) == metadata.total_num_frames <= 24

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_damaged_file(self, kind, tmp_path):
        content = Path(KINDS[kind](tmp_path / kind, indexed_frames(24))).read_bytes()
        random = np.random.default_rng(0)
        for _ in range(30):
            damaged = bytearray(content)
            for position in random.integers(0, min(len(damaged), 2000), size=10):
                damaged[position] = random.integers(256)
            with contextlib.suppress(VideoDecodingError):
                assert len(read_video(bytes(damaged), eight_frames)[0]) == 8

    def test_a_picture_too_large_to_be_meant(self, tmp_path):
        content = bytearray(Path(KINDS["animated.gif"](tmp_path / "clip.gif", indexed_frames(4))).read_bytes())
        struct.pack_into("<HH", content, 6, 16000, 16000)
        with pytest.raises(VideoDecodingError):
            read_video(bytes(content), every_frame)


def with_display_matrix(content: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 file's content with another display matrix in its track header."""
    position = content.index(b"tkhd") + 44
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return content[:position] + matrix + content[position + len(matrix) :]


def white_corner(image: np.ndarray) -> str:
    rows, columns = np.nonzero(image.mean(axis=-1) > 128)
    vertical = "top" if rows.mean() < image.shape[0] / 2 else "bottom"
    return f"{vertical} {'left' if columns.mean() < image.shape[1] / 2 else 'right'}"


def flv_audio_tag(milliseconds: int) -> bytes:
    data = b"\x2f" + bytes(50)  # MP3
    tag = b"\x08" + struct.pack(">I", len(data))[1:] + struct.pack(">I", milliseconds)[1:] + bytes(4) + data
    return tag + struct.pack(">I", len(tag))
