# SPDX-License-Identifier: Apache-2.0
"""What a stranger's file cannot do: have other files read, fill the memory, or keep its reader busy."""

import io
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from clips import indexed_frames, write_clip
from modeling_cover.model.image_reading_cover import read_image
from modeling_cover.model.video_decoding_cover import VideoDecodingError, read_video
from modeling_cover.model.video_opening_cover import open_video, time_limit
from modeling_cover.model.video_windows_cover import read_windows
from PIL import Image
from transformers.video_utils import VideoMetadata


def every_frame(metadata: VideoMetadata) -> Sequence[int]:
    return range(metadata.total_num_frames)


@pytest.fixture
def clip(tmp_path) -> str:
    return write_clip(tmp_path / "clip.mp4", indexed_frames(20))


class TestOtherFiles:
    """A file cannot make its reader open another one."""

    PLAYLISTS = {
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\n{name}\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile {name}\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
        'mimeType="video/mp4"><Representation id="0"><BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period>'
        "</MPD>",
    }

    @pytest.mark.parametrize("playlist", PLAYLISTS)
    @pytest.mark.parametrize("suffix", [".m3u8", ".ffconcat", ".mpd", ".mp4"])
    def test_a_playlist_is_no_video(self, playlist, suffix, tmp_path, monkeypatch):
        write_clip(tmp_path / "secret.ts", indexed_frames(20))
        path = tmp_path / f"clip{suffix}"
        path.write_text(self.PLAYLISTS[playlist].format(name="secret.ts"))
        monkeypatch.chdir(tmp_path)
        for source in (path, path.name, path.read_bytes()):
            with pytest.raises(VideoDecodingError):
                read_video(source, every_frame)
        with open(path, "rb") as file, pytest.raises(VideoDecodingError):
            read_video(file, every_frame)

    def test_ffmpeg_left_to_itself_would_read_the_other_file(self, tmp_path):
        write_clip(tmp_path / "secret.ts", indexed_frames(20))
        path = tmp_path / "clip.mp4"
        path.write_text(self.PLAYLISTS["concat"].format(name="secret.ts"))
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 20

    @pytest.mark.parametrize("address", ["concat:{path}|{path}", "subfile:,,start,0,end,0,,:{path}", "data:{path}"])
    def test_an_address_is_no_path(self, address, clip):
        with pytest.raises(VideoDecodingError, match="No such file"):
            read_video(address.format(path=clip), every_frame)


class TestStreams:
    def write(self, path: Path, num_streams: int) -> Path:
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), dtype=np.uint8), format="rgb24")
        with av.open(path, "w") as container:
            streams = [container.add_stream("mpeg4", rate=10) for _ in range(num_streams)]
            for stream in streams:
                stream.width = stream.height = 16
                stream.pix_fmt = "yuv420p"
            for stream in streams:
                frame.pts = None
                container.mux(stream.encode(frame))
                container.mux(stream.encode())
        return path

    def test_those_after_the_sixty_fourth_are_not_opened(self, tmp_path):
        for number in (64, 65, 80):
            with open_video(self.write(tmp_path / f"{number}.mkv", number), num_threads=1) as (container, _):
                assert len(container.streams) == 64

    @pytest.mark.parametrize("container", ["avi", "mp4", "nut"])
    def test_nor_is_a_file_that_cannot_be_read_without_them(self, container, tmp_path):
        assert len(read_video(self.write(tmp_path / f"64.{container}", 64), every_frame)[0]) == 1
        with pytest.raises(VideoDecodingError, match=rf"65\.{container} .*has more than 64 streams"):
            read_video(self.write(tmp_path / f"65.{container}", 65), every_frame)


class TestTime:
    def test_reading_longer_than_the_limit_is_given_up(self, clip):
        def too_late(metadata: VideoMetadata) -> Sequence[int]:
            time.sleep(0.3)
            return [metadata.total_num_frames - 1]

        with time_limit(0.2), pytest.raises(VideoDecodingError, match=r"clip\.mp4 .*it takes too long to read"):
            read_video(clip, too_late)
        assert read_video(clip, too_late)[0].shape == (1, 48, 64, 3)  # outside, there is none

    @pytest.mark.parametrize("suffix", ["mp4", "ts"])  # decoded by plan and in order
    def test_of_several_limits_the_first_to_end_holds(self, suffix, tmp_path):
        path = write_clip(tmp_path / f"clip.{suffix}", indexed_frames(20))
        with time_limit(100):
            with time_limit(0), time_limit(100), pytest.raises(VideoDecodingError, match="takes too long"):
                read_video(path, every_frame)
            assert len(read_video(path, every_frame)[0]) == 20

    def test_of_windows_each_is_within_it(self, clip):
        windows = read_windows(clip, 0.2, 0.2, every_frame)
        with time_limit(0), pytest.raises(VideoDecodingError, match="takes too long"):
            list(windows)
        assert sum(len(images) for _, images, _ in read_windows(clip, 0.2, 0.2, every_frame)) == 5

    def image(self, name: str, num_pieces: int) -> bytes:
        """A small image, and much for its reader to go through."""
        file = io.BytesIO()
        Image.new("L", (16, 16), 77).save(file, name)
        content = file.getvalue()
        if name == "PNG":
            chunk = struct.pack(">I4sI", 0, b"prIv", zlib.crc32(b"prIv"))
            return content[:33] + num_pieces * chunk + content[33:]
        if name == "JPEG":
            return content[:2] + num_pieces * b"\xff\xfe\0\2" + content[2:]
        if name == "GIF":
            start = content.index(b",\0\0\0\0")
            return content[:start] + num_pieces * b"!\xfd\1a\0" + content[start:]
        runs = num_pieces * b"\0\2\0\0" + 16 * b"\x10\x4d\0\0"
        header = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 8, 1, len(runs), 0, 0, 256, 0)
        return (
            b"BM"
            + struct.pack("<IHHI", 54 + 1024 + len(runs), 0, 0, 54 + 1024)
            + header
            + b"".join(bytes([grey] * 3 + [0]) for grey in range(256))
            + runs
        )

    @pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP"])
    def test_an_image_is_given_up_too(self, name):
        with time_limit(100):
            assert read_image(self.image(name, 10)).convert("L").getpixel((0, 0)) == 77
        content = self.image(name, 2_000_000)
        with time_limit(0.1), pytest.raises(VideoDecodingError, match="it takes too long to read"):
            read_image(content)
        path = io.BytesIO(content)
        with time_limit(0.1), pytest.raises(VideoDecodingError, match="it takes too long to read"):
            read_image(path)
