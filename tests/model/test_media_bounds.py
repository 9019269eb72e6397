# SPDX-License-Identifier: Apache-2.0
"""What a stranger's media file may take: memory and work; and what of it is opened at all."""

import ctypes
import io
import json
import os
import re
import socket
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from clips import indexed_frames, write_clip
from forked_runs import start_processes
from modeling_cover import CoTrainingDataset, CoverVideoProcessor
from modeling_cover.data import samples
from modeling_cover.data.mixture import SampleReference
from modeling_cover.data.quarantine import Quarantine
from modeling_cover.data.sources import Source
from modeling_cover.data.sources.media import Media
from modeling_cover.dataset_tools.file_inspection import inspect_file
from modeling_cover.model import video_memory_cover
from modeling_cover.model.file_access_cover import open_regular
from modeling_cover.model.image_reading_cover import read_image, read_image_tensor
from modeling_cover.model.video_decoding_cover import VideoDecodingError, read_video
from modeling_cover.model.video_memory_cover import MAX_ALLOCATION, check_mp4, limited_allocations
from modeling_cover.model.video_opening_cover import reading, work_limit
from modeling_cover.model.video_windows_cover import read_windows, window_times
from mp4_boxes import SAMPLE_TABLE, box, numbers, path_to, replaced
from PIL import Image


def measured(folder: Path, *paths: Path) -> list[dict]:
    """Of each file, how many `frames` were decoded, the `reason` if none, and the `memory` in bytes."""
    log, found = folder / "log", folder / "measured.json"
    run = start_processes(measure, 1, log, {}, found, paths)
    assert run.wait(600) == 0, log.read_text()[-3000:]
    return json.loads(found.read_text())


def measure(output: Path, paths: Sequence[Path]) -> None:
    """Decode each file and write down the most memory that it took, in bytes."""
    found = []
    for path in paths:
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        try:
            frames, _ = read_video(path, lambda metadata: [metadata.total_num_frames - 1], 32, num_threads=1)
            count, reason = len(frames), ""
        except VideoDecodingError as error:
            count, reason = 0, str(error)
        found.append({"frames": count, "reason": reason, "memory": memory("VmHWM") - before})
    output.write_text(json.dumps(found))


def memory(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def with_references(width: int, height: int, pixel_format: str) -> bytes:
    """An MP4 file of 18 frames, each of which may refer to the 16 before it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"preset": "ultrafast", "x264-params": "ref=16:bframes=0:keyint=250:scenecut=0:weightp=0"}
        stream = container.add_stream("libx264", rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for level in range(18):
            frame = av.VideoFrame(width, height, pixel_format)
            for plane in frame.planes:
                plane.update(bytes([level]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def write_streams(path: Path, content: bytes, count: int) -> None:
    """The file of one stream, as so many streams."""
    with av.open(io.BytesIO(content)) as source, av.open(path, "w") as container:
        stream = source.streams.video[0]
        copies = [container.add_stream_from_template(stream) for _ in range(count)]
        for packet in source.demux(stream):
            if not packet.size:
                continue
            for copy in copies:
                copied = av.Packet(bytes(packet))
                copied.pts, copied.dts, copied.time_base = packet.pts, packet.dts, packet.time_base
                copied.is_keyframe, copied.stream = packet.is_keyframe, copy
                container.mux(copied)


def with_samples(content: bytes, count: int) -> bytes:
    """An MP4 file that announces so many samples, all of one size and at one place."""
    content = replaced(content, (*SAMPLE_TABLE, b"stts"), box(b"stts", numbers(0, 1, count, 512)))
    content = replaced(content, (*SAMPLE_TABLE, b"stsc"), box(b"stsc", numbers(0, 1, 1, count, 1)))
    return replaced(content, (*SAMPLE_TABLE, b"stsz"), box(b"stsz", numbers(0, 1, count)))


def with_tracks(content: bytes, count: int) -> bytes:
    (start, end), (track, track_end) = path_to(content, (b"moov", b"trak"))
    tracks = content[track:track_end] * count
    return content[:start] + box(b"moov", content[start + 8 : end], tracks) + content[end:]


def with_fragment(content: bytes, count: int) -> bytes:
    run = box(b"trun", numbers(0, count))
    head = box(b"tfhd", numbers(0x000038, 1, 512, 1, 0))
    return content + box(b"moof", box(b"mfhd", numbers(0, 1)), box(b"traf", head, run))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return Path(write_clip(tmp_path_factory.mktemp("bounds") / "clip.mp4", indexed_frames(8)))


@pytest.fixture(scope="module")
def whole(clip) -> bytes:
    return clip.read_bytes()


class TestMemory:
    def test_of_a_small_file_it_is_less_than_512_mib_whatever_the_file_says(self, clip, whole, tmp_path):
        many = with_tracks(with_samples(whole, 2**16), 14)
        files = {
            "samples.mp4": with_samples(whole, 2**25),
            "more samples.mp4": with_samples(whole, 2**31 - 1),
            "tracks.mp4": with_tracks(with_samples(whole, 2**21), 14),
            "as many tracks.mp4": many,
            "fragment.mp4": with_fragment(whole, 2**25),
        }
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        *hostile, usual = measured(tmp_path, *(tmp_path / name for name in files), clip)
        assert usual["frames"] == 1
        too_large = {name: found for name, found in zip(files, hostile, strict=True) if found["memory"] >= 2**29}
        assert not too_large

    @pytest.mark.slow
    def test_nor_do_the_frames_that_decoders_keep_take_more(self, tmp_path):
        one, many, deep = (tmp_path / name for name in ("one.mp4", "many.ts", "deep.mkv"))
        one.write_bytes(with_references(4096, 4096, "yuv420p"))
        # FFmpeg, left to itself, would have a decoder for each stream.
        write_streams(many, one.read_bytes(), 16)
        write_streams(deep, with_references(1920, 1080, "yuv444p10le"), 16)
        *refused, whole = found = measured(tmp_path, one, many, deep)
        assert max(file["memory"] for file in found) < 2**29, found
        for file in refused:
            assert "its decoder has to keep too many frames: 13 of 4096x4096 pixels" in file["reason"]
        assert whole["frames"] == 1

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (partial(with_samples, count=2**23), "announces more than 4194304 samples"),
            (lambda content: with_tracks(with_samples(content, 2**21), 3), "announces more than 4194304 samples"),
            (partial(with_fragment, count=2**23), "announces more than 4194304 samples"),
            (lambda content: content + box(b"senc", numbers(0, 2**23)), "announces more than 4194304 samples"),
            (lambda content: content + box(b"saiz", numbers(0), b"\0", numbers(2**23)), "announces more than 4194304"),
            (
                lambda content: replaced(
                    content, (*SAMPLE_TABLE, b"stsc"), box(b"stsc", numbers(0, 1, 1, 2**32 - 1, 1))
                ),
                "more than 2097152 pieces of sound",
            ),
            (
                lambda content: content + box(b"stsd", numbers(0, 1), box(b"trun", numbers(0, 2**31))),
                "its box stsd has a box trun",
            ),
            (
                lambda content: (
                    content
                    + box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", numbers(0), zlib.compress(bytes(2**23))))
                ),
                "its compressed header has more than 4194304 bytes",
            ),
        ],
    )
    def test_a_file_that_announces_too_much_is_not_opened(self, change, reason, whole):
        for source in (change(whole), io.BytesIO(change(whole))):
            with pytest.raises(VideoDecodingError, match=reason):
                read_video(source, lambda metadata: [0])
        check_mp4(io.BytesIO(whole))

    @pytest.mark.parametrize(
        ("kind", "reason"), [(b"moof", "more than 4096 samples"), (b"none", "more than 500 boxes")]
    )
    def test_boxes_count_themselves(self, kind, reason, whole, monkeypatch):
        monkeypatch.setattr(video_memory_cover, "_MAX_BOXES", 500)
        monkeypatch.setattr(video_memory_cover, "_MAX_SAMPLES", 4096)
        check_mp4(io.BytesIO(whole + 100 * box(kind)))
        with pytest.raises(ValueError, match=reason):
            check_mp4(io.BytesIO(whole + 500 * box(kind)))

    def test_a_box_is_found_wherever_ffmpeg_looks_for_it(self, whole):
        table = box(b"stsz", numbers(0, 1, 2**23))
        for path in ((b"moov",), (b"moov", b"udta"), (b"moof", b"traf"), (b"hoov",), ()):
            content = table
            for kind in reversed(path):
                content = box(kind, box(b"mvhd", bytes(100)) if kind == b"hoov" else b"", content)
            with pytest.raises(ValueError, match="samples"):
                check_mp4(io.BytesIO(whole + content))
        within = struct.pack(">I4sQ", 1, b"moov", 16 + len(table)) + table
        with pytest.raises(ValueError, match="samples"):
            check_mp4(io.BytesIO(whole + within))
        check_mp4(io.BytesIO(whole + box(b"mdat", table)))  # which is data

    def test_files_of_other_kinds_pass(self, tmp_path):
        for name, codec in (("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.gif", "gif")):
            options = {"pixel_format": "rgb8"} if codec == "gif" else {}
            with open(write_clip(tmp_path / name, indexed_frames(4), codec=codec, **options), "rb") as file:
                check_mp4(file)

    def test_ffmpeg_allocates_no_more_at_a_time_while_a_file_is_read(self):
        library = ctypes.CDLL(av._core.__file__)
        library.av_malloc.restype, library.av_malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        library.av_free.argtypes = [ctypes.c_void_p]

        def is_allowed(size: int) -> bool:
            place = library.av_malloc(size)
            library.av_free(place)
            return place is not None

        assert is_allowed(2 * MAX_ALLOCATION)
        with limited_allocations():
            with limited_allocations():
                assert not is_allowed(2 * MAX_ALLOCATION)
            assert is_allowed(MAX_ALLOCATION // 2) and not is_allowed(2 * MAX_ALLOCATION)
        assert is_allowed(2 * MAX_ALLOCATION)

    def test_where_the_function_is_not_found_it_is_said(self, monkeypatch):
        monkeypatch.setattr(video_memory_cover, "_max_alloc", video_memory_cover._max_alloc.__wrapped__)
        monkeypatch.setattr(ctypes, "CDLL", lambda path: object())
        with pytest.warns(RuntimeWarning, match=r"av_max_alloc cannot be found .* gigabytes"), limited_allocations():
            pass

    def test_frames_that_become_too_large_in_the_middle_are_refused(self, tmp_path):
        large = np.zeros((2, 3000, 3000, 3), dtype=np.uint8)
        parts = [
            write_clip(tmp_path / "small.ts", indexed_frames(4)),
            write_clip(tmp_path / "deep.ts", large, preset="ultrafast", pixel_format="yuv444p10le"),
        ]
        joined = b"".join(Path(part).read_bytes() for part in parts)
        with pytest.raises(VideoDecodingError, match="too large: 3000x3000 pixels of 48 bits"):
            read_video(joined, lambda metadata: [0, metadata.total_num_frames - 1], short_side=32, num_threads=1)


class TestWork:
    def test_a_limit_counts_pixels_and_not_time(self, clip):
        with work_limit(8 * 64 * 48):
            read_video(clip, lambda metadata: [7], num_threads=1)
            with pytest.raises(VideoDecodingError, match=r"clip\.mp4 .*takes too long to decode"):
                read_video(clip, lambda metadata: [7], num_threads=1)
        read_video(clip, lambda metadata: [7], num_threads=1)

    def test_a_sample_that_takes_too_much_is_a_bad_row_as_any_other(self, clip, tmp_path, monkeypatch):
        long = write_clip(tmp_path / "long.mp4", np.zeros((60, 48, 64, 3), dtype=np.uint8), g="100")
        media = [Media(str(long), "long.mp4"), Media(str(clip), "clip.mp4")]
        source = Source(
            name="motions",
            modality="video",
            labels=["a", "b"],
            problem_type="single_label_classification",
            media=media,
            classes=np.array([0, 1]),
        )
        processor = CoverVideoProcessor(
            num_frames=2, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        monkeypatch.setattr(samples, "_MAX_SAMPLE_PIXELS", 30 * 64 * 48)
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=1.0)
        dataset = CoTrainingDataset([source], ["motions"], processor, seed=0, quarantine=quarantine)
        assert dataset[SampleReference("motions", 0, 0, 0)]["labels"] == 1
        (entry,) = quarantine.entries()
        assert entry.path == "long.mp4" and "takes too long to decode" in entry.reason

    def test_a_video_has_a_bounded_number_of_windows(self, whole, tmp_path):
        with pytest.raises(ValueError, match="more than 262144 windows, 1 seconds apart: choose a longer stride"):
            window_times(1e15, 1, 1)
        assert len(window_times(100_000, 1, 1)) == 100_000
        far = replaced(whole, (*SAMPLE_TABLE, b"stts"), box(b"stts", numbers(0, 2, 1, 2**31 - 1, 7, 512)))
        (tmp_path / "far.mp4").write_bytes(far)
        with pytest.raises(VideoDecodingError, match=r"far\.mp4 .*more than 262144 windows"):
            list(read_windows(tmp_path / "far.mp4", 0.01, 0.01, lambda metadata: [0]))


class TestErrors:
    """Whatever is raised about a file is the decoding error; what the machine is to blame for is not."""

    def palette_png(self) -> bytes:
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 3, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\0"))]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
            for name, content in [*chunks, (b"IEND", b"")]
        )

    def test_a_png_without_its_palette(self):
        for read in (read_image, read_image_tensor):
            with pytest.raises(VideoDecodingError, match="cannot be read as an image: it has no palette"):
                read(self.palette_png())

    def test_an_image_whose_values_have_no_known_range(self, tmp_path):
        path = tmp_path / "floats.tiff"
        Image.fromarray(np.full((40, 40), 1000, dtype=np.float32)).save(path)
        media = Media(str(path), path.name)
        processor = CoverVideoProcessor()
        with pytest.raises(VideoDecodingError, match=r"floats\.tiff .*0 to 255, got 1000"):
            samples.load_frames(media, "image", processor, processor.sample_frames, 32)

    @pytest.mark.parametrize(
        "kind", [AssertionError, IndexError, OverflowError, RecursionError, MemoryError, EOFError]
    )
    def test_whatever_is_raised(self, kind, monkeypatch):
        def fail(*args, **kwargs):
            raise kind

        with pytest.raises(VideoDecodingError, match=r"a\.mp4 cannot be read"), reading("a.mp4"):
            fail()
        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(VideoDecodingError, match=r"<69 bytes> cannot be read"):
            read_image(bytes(69))

    def test_not_what_the_machine_or_the_user_is_to_blame_for(self, monkeypatch):
        for error, kind in ((OSError(24, "Too many open files"), OSError), (KeyboardInterrupt(), KeyboardInterrupt)):
            with pytest.raises(kind) as raised, reading("a.mp4"):
                raise error
            assert not isinstance(raised.value, VideoDecodingError)


class TestWhatIsOpened:
    """Regular files alone: a pipe would be waited for."""

    @pytest.fixture(params=["pipe", "socket", "device", "folder", "link to a pipe"])
    def special(self, request, tmp_path):
        path = tmp_path / "x.mp4"
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        elif request.param == "folder":
            path.mkdir()
        elif request.param == "link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to(tmp_path / "pipe")
        elif request.param == "socket":
            listener = socket.socket(socket.AF_UNIX)
            request.addfinalizer(listener.close)
            here = os.open(tmp_path, os.O_RDONLY)  # such a path is short
            request.addfinalizer(lambda: os.close(here))
            listener.bind(f"/proc/self/fd/{here}/x.mp4")
        return path

    def test_nothing_else_is(self, special):
        for read in (
            partial(read_video, sample_indices=lambda metadata: [0]),
            read_image,
            partial(inspect_file, modality="video"),
            lambda path: list(read_windows(path, 1, 1, lambda metadata: [0])),
        ):
            with pytest.raises(ValueError, match="it is no regular file, but a"):
                read(str(special))
        processor = CoverVideoProcessor()
        for modality in ("video", "image"):
            media = Media(str(special), "x.mp4")
            with pytest.raises(VideoDecodingError, match="it is no regular file"):
                samples.load_frames(media, modality, processor, processor.sample_frames, 32)

    def test_a_file_and_a_link_to_one_are(self, clip, tmp_path):
        (tmp_path / "link.mp4").symlink_to(clip)
        for path in (clip, tmp_path / "link.mp4"):
            with open_regular(path) as file:
                assert file.read(8)[4:] == b"ftyp"
            assert len(read_video(path, lambda metadata: [0])[0]) == 1
