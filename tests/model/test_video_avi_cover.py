# SPDX-License-Identifier: Apache-2.0
"""The index of an AVI file that is read from its bytes is the one that FFmpeg's packets tell, or there is none."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from clips import moving_frames, write_clip, write_packed
from modeling_cover.model import video_decoding_cover
from modeling_cover.model.video_avi_cover import avi_index
from modeling_cover.model.video_decoding_cover import VideoDecodingError, read_video
from modeling_cover.model.video_index_cover import VideoIndex, scan_packets
from modeling_cover.model.video_opening_cover import VideoSource, open_video


CLIPS = {
    "no_b_frames": {"codec": "mpeg4", "g": "6"},
    "b_frames": {"codec": "mpeg4", "g": "6", "bf": "2"},
    "packed": {"packed": True, "g": "6"},
    "h264": {"g": "6", "bf": "2"},
    "odd_size": {"codec": "mpeg4", "height": 50, "width": 70},
}


def write(folder: Path, name: str) -> Path:
    options = dict(CLIPS[name])
    frames = moving_frames(20, options.pop("height", 48), options.pop("width", 64))
    is_packed = options.pop("packed", False)
    return Path((write_packed if is_packed else write_clip)(folder / "clip.avi", frames, **options))


def both_indices(source: VideoSource) -> tuple[VideoIndex | None, VideoIndex]:
    with open_video(source, num_threads=1, strict=True) as (container, stream):
        return avi_index(source, container, stream), scan_packets(container, stream)


def assert_same(index: VideoIndex, scanned: VideoIndex) -> None:
    assert index.agrees_with(scanned)
    for name in ("display_order", "entries", "shown", "timestamps", "unreferenced"):
        np.testing.assert_array_equal(getattr(index, name), getattr(scanned, name), err_msg=name)
    for name in ("rate", "time_base", "is_exact", "is_skippable"):
        assert getattr(index, name) == getattr(scanned, name), name
    assert (index.line.end, index.line.usual) == (scanned.line.end, scanned.line.usual)
    assert len(index.packets) == len(scanned.packets)
    for packet, expected in zip(index.packets, scanned.packets, strict=True):
        assert (bytes(packet), packet.pts, packet.dts) == (bytes(expected), expected.pts, expected.dts)


@pytest.mark.parametrize("clip", CLIPS)
class TestPlainFiles:
    def test_are_told_as_ffmpeg_tells_them(self, clip, tmp_path):
        path = write(tmp_path, clip)
        for source in (path, str(path), path.read_bytes()):
            index, scanned = both_indices(source)
            assert_same(index, scanned)

    def test_with_sound_beside(self, clip, tmp_path):
        path = with_sound(write(tmp_path, clip))
        index, scanned = both_indices(path)
        assert b"01wb" in path.read_bytes()
        assert_same(index, scanned)

    def test_when_damaged_yield_what_they_do_by_ffmpeg(self, clip, tmp_path, monkeypatch):
        """Of each damaged file, the frames, the number of frames, and the error, if there is one, are the same."""
        rng, content = np.random.default_rng(0), write(tmp_path, clip).read_bytes()
        num_indexed = 0
        for _ in range(60):
            damaged = damage(content, rng)
            by_bytes = result(damaged)
            with monkeypatch.context() as patch:
                patch.setattr(video_decoding_cover, "avi_index", spy := Spy())
                result(damaged)
                num_indexed += spy.num_indexed
                patch.setattr(video_decoding_cover, "avi_index", lambda *arguments: None)
                by_ffmpeg = result(damaged)
            assert type(by_bytes) is type(by_ffmpeg)
            if isinstance(by_bytes, str):
                assert by_bytes == by_ffmpeg
            else:
                np.testing.assert_array_equal(by_bytes, by_ffmpeg)
        assert num_indexed > 10  # the damage lies in pictures, or where it changes nothing


class Spy:
    """Counts the files that have been read from their bytes."""

    num_indexed = 0

    def __call__(self, *arguments) -> VideoIndex | None:
        index = avi_index(*arguments)
        self.num_indexed += index is not None
        return index


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """A file of which a few bytes are others, half of them in its headers and lists."""
    damaged = bytearray(content)
    places = [place for place in range(len(content) - 8) if content[place : place + 2] in (b"00", b"LI", b"id", b"st")]
    for _ in range(rng.integers(1, 4)):
        place = rng.choice(places) + rng.integers(16) if rng.random() < 0.5 else rng.integers(len(content))
        damaged[min(int(place), len(content) - 1)] = rng.integers(256)
    return bytes(damaged)


def result(content: bytes) -> np.ndarray | str:
    """All frames of a file, or what is said of it."""
    try:
        return read_video(content, lambda metadata: range(metadata.total_num_frames), num_threads=1)[0]
    except VideoDecodingError as error:
        return str(error)


def with_sound(path: Path) -> Path:
    """The same packets, between packets of silence."""
    target = path.with_name(f"sound_{path.name}")
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        sound = container.add_stream("pcm_s16le", rate=8000)
        for packet in source.demux(video=0):
            if packet.size:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 333), dtype=np.int16), layout="stereo")
                frame.rate = 8000
                container.mux(sound.encode(frame))
                packet.stream = stream
                container.mux(packet)
        container.mux(sound.encode())
    return target


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data


class TestOtherFiles:
    """What is not a plain AVI file is left to FFmpeg."""

    @pytest.fixture
    def content(self, tmp_path) -> bytes:
        return write(tmp_path, "no_b_frames").read_bytes()

    def test_cut_off(self, content):
        index, _ = both_indices(content[: len(content) // 2])
        assert index is None

    def test_without_the_list_of_chunks(self, content):
        index, scanned = both_indices(content[: content.rindex(b"idx1")])
        assert index is None
        assert scanned.num_frames == 20

    def test_with_something_behind(self, content):
        index, _ = both_indices(content + content)
        assert index is None

    def test_with_another_chunk_among_the_packets(self, content):
        junk, place = chunk(b"JUNK", bytes(8)), content.index(b"movi") + 4
        other = bytearray(content[:place] + junk + content[place:])
        other[place - 8 : place - 4] = struct.pack(
            "<I", struct.unpack("<I", other[place - 8 : place - 4])[0] + len(junk)
        )
        index, scanned = both_indices(bytes(other))
        assert index is None
        assert scanned.num_frames == 20

    def test_whose_list_has_other_sizes(self, content):
        other = bytearray(content)
        other[-1] ^= 1
        index, _ = both_indices(bytes(other))
        assert index is None

    def test_of_another_codec(self, tmp_path):
        path = write_clip(tmp_path / "clip.avi", moving_frames(5), codec="mjpeg", pixel_format="yuvj420p")
        index, _ = both_indices(path)
        assert index is None

    def test_of_another_container(self, tmp_path):
        index, _ = both_indices(write_clip(tmp_path / "clip.mp4", moving_frames(5), codec="mpeg4"))
        assert index is None

    def test_a_file_object_is_left_where_it_stands(self, content):
        frames, _ = read_video(io.BytesIO(content), lambda metadata: [3, 17], num_threads=1)
        np.testing.assert_array_equal(frames, read_video(content, lambda metadata: [3, 17], num_threads=1)[0])

    def test_that_are_large(self, content, monkeypatch):
        monkeypatch.setattr("modeling_cover.model.video_avi_cover._MAX_BYTES", len(content) - 1)
        index, _ = both_indices(content)
        assert index is None
