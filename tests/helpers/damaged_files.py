# SPDX-License-Identifier: Apache-2.0
"""Twenty thousand damaged files, and what becomes of them: frames or a VideoDecodingError, never anything else.

    python tests/helpers/damaged_files.py [--count 20000] [--seed 0]

Half of them have random damage, and half a lie in their structure (`media_mutations`). They are decoded in processes
of their own: a crash, a hang, another error, a frame of another file, more than 10 s of CPU time or more than 512 MiB
of memory, beside what Python and torch take, is a failure, which is printed with the file's number; `--only NUMBER`
makes that file and decodes it here. About 10 minutes on a CPU core. `test_damaged_files.py` runs a sample.
"""

import argparse
import itertools
import json
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from clips import indexed_frames, write_audio, write_clip, write_packed
from media_mutations import FORMATS, mutated
from modeling_cover import VideoDecodingError, read_video
from modeling_cover.model.frame_sampling_cover import uniform_frame_indices
from modeling_cover.model.image_reading_cover import read_image, read_image_tensor
from PIL import Image
from tqdm import tqdm


MOST_MEMORY = 2**29  # bytes that a file may take, beside what the process has before the first
MOST_SECONDS = 10.0  # of CPU time, for one file
FILES_PER_PROCESS = 500

SECRET = "secret.mp4"
# A file that others try to make the reader open: all of its frames are of this grey, which no other file has.
SECRET_LEVEL = 250

VIDEOS = {
    "h264.mp4": ("libx264", "yuv420p", {}),
    "h264.mkv": ("libx264", "yuv420p", {"g": "6"}),
    "h264.ts": ("libx264", "yuv420p", {"g": "8"}),
    "h264.flv": ("libx264", "yuv420p", {}),
    "hevc.mp4": ("libx265", "yuv420p", {}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {}),
    "av1.mp4": ("libsvtav1", "yuv420p", {}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
    "mpeg4_b_frames.avi": ("mpeg4", "yuv420p", {"bf": "2", "g": "8"}),
    "h264.avi": ("libx264", "yuv420p", {"g": "8"}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "gif.gif": ("gif", "rgb8", {}),
    "png.mov": ("png", "rgb24", {}),
    "ffv1.mkv": ("ffv1", "yuv420p", {}),
}
# What PIL is told when it writes them.
IMAGES = {
    "image.png": {},
    "image.jpeg": {},
    "image.webp": {},
    "image.bmp": {},
    "image.tiff": {},
    "deflated.tiff": {"compression": "tiff_adobe_deflate"},
    "lzw.tiff": {"compression": "tiff_lzw"},
    "progressive.jpeg": {"progressive": True},
    "lossless.webp": {"lossless": True},
}


class DamagedFile(NamedTuple):
    kind: str
    name: str
    content: bytes


def write_whole_files(folder: Path) -> None:
    """A small file of each kind, and the secret."""
    for name, (codec, pixel_format, options) in VIDEOS.items():
        write_clip(folder / name, indexed_frames(20, 48, 64), codec=codec, pixel_format=pixel_format, **options)
    fragments = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}
    write_clip(folder / "fragments.mp4", indexed_frames(20, 48, 64), container_options=fragments)
    write_packed(folder / "mpeg4_packed.avi", indexed_frames(20, 48, 64), g="8")
    write_audio(folder / "audio.mp4")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 200, (48, 64, 3), dtype=np.uint8))
    for name, options in IMAGES.items():
        image.save(folder / name, **options)
    image.quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(rng.integers(0, 2**16, (48, 64), dtype=np.uint16)).save(folder / "deep.png")
    moving = [image.rotate(angle) for angle in (0, 5, 10)]
    for suffix in ("webp", "png", "gif"):
        moving[0].save(folder / f"moving.{suffix}", save_all=True, append_images=moving[1:])
    write_clip(folder / SECRET, np.full((8, 48, 64, 3), SECRET_LEVEL, dtype=np.uint8))


def damaged_files(numbers: range, seed: int, folder: Path) -> Iterator[DamagedFile]:
    """The files of those numbers, which begin with those made by hand; a function of the seed.

    Args:
        folder: with what `write_whole_files` wrote. Scripts and playlists name the secret in it.
    """
    secret = folder / SECRET
    whole = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path != secret}
    by_hand = [*_scripts(secret, whole), *_bombs(whole), *_misnamed(whole)]
    names = list(whole)
    for number in numbers:
        if number < len(by_hand):
            yield by_hand[number]
            continue
        name, way = names[number % len(names)], number // len(names)
        yield _broken(name, whole[name], way, np.random.default_rng([seed, number]))


def _broken(name: str, whole: bytes, way: int, rng: np.random.Generator) -> DamagedFile:
    suffix = name.rpartition(".")[2]
    if suffix in FORMATS:
        way, is_mutated = divmod(way, 2)
        if is_mutated:
            return DamagedFile("mutated", name, mutated(whole, suffix, rng))
    if way % 3 == 0:
        # Every length comes in turn, by steps that leave out none.
        length = way // 3 * 7919 % len(whole)
        return DamagedFile("truncated", name, whole[:length])
    content = bytearray(whole)
    if way % 3 == 1:
        for place in rng.integers(len(content), size=2 ** int(rng.integers(8))):
            content[place] ^= int(rng.integers(1, 256))
        return DamagedFile("flipped", name, bytes(content))
    # Sizes, counts and offsets are near the start, or near the end where that is where an index is.
    for _ in range(int(rng.integers(1, 4))):
        value = struct.pack(">I", int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF0000, 0x00010000])))
        place = int(rng.integers(min(600, len(content) - 4)))
        place = place if rng.random() < 0.5 else len(content) - 4 - place
        content[place : place + 4] = value[:: int(rng.choice([1, -1]))]
    return DamagedFile("wrong numbers", name, bytes(content))


def _scripts(secret: Path, whole: dict[str, bytes]) -> Iterator[DamagedFile]:
    """What makes FFmpeg open another file, if it is let."""
    media = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n"
    scripts = {
        "playlist.m3u8": media,
        "master.m3u8": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{secret}\n",
        "url.m3u8": media.replace(str(secret), f"file://{secret}"),
        "concat.ffconcat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "manifest.mpd": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="0" '
            f'bandwidth="1"><BaseURL>file://{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>'
        ),
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "script.avs": f'FFVideoSource("{secret}")\n',
        "list.smil": f'<smil><body><video src="{secret}"/></body></smil>',
        "image.svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{secret}"/></svg>',
        "page.ps": f"%!PS\n({secret}) run\n",
        "name.txt": str(secret),
    }
    for (name, text), suffix in itertools.product(scripts.items(), ("", ".mp4", ".avi", ".jpg")):
        yield DamagedFile("script", name + suffix, text.encode())
    # A track may say that its samples are in another file (ISO 14496-12, data reference box).
    reference = f"file://{secret}".encode() + b"\0"
    box = struct.pack(">I4sI", 12 + len(reference), b"url ", 0) + reference
    content = whole["h264.mp4"]
    place = content.find(b"url ") - 4
    yield DamagedFile("script", "reference.mp4", content[:place] + box + content[place + 12 :])


def _bombs(whole: dict[str, bytes]) -> Iterator[DamagedFile]:
    """A few bytes that promise frames of gigabytes."""
    png = bytearray(whole["image.png"])
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    yield DamagedFile("bomb", "giant.png", bytes(png))
    gif = bytearray(whole["gif.gif"])
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield DamagedFile("bomb", "giant.gif", bytes(gif))
    bmp = bytearray(whole["image.bmp"])
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    yield DamagedFile("bomb", "giant.bmp", bytes(bmp))
    for name in ("image.jpeg", "mjpeg.avi"):
        jpeg = bytearray(whole[name])
        for place in [place for place in range(len(jpeg) - 9) if jpeg[place : place + 2] == b"\xff\xc0"]:
            jpeg[place + 5 : place + 9] = struct.pack(">HH", 65_500, 65_500)
        yield DamagedFile("bomb", f"giant.{name}", bytes(jpeg))
    yield DamagedFile("bomb", "giant.y4m", b"YUV4MPEG2 W65000 H65000 F25:1 C420\nFRAME\n" + bytes(1000))
    avi = bytearray(whole["mpeg4.avi"])
    for place in [place for place in range(len(avi) - 12) if avi[place : place + 4] == b"strf"]:
        avi[place + 12 : place + 20] = struct.pack("<ii", 60_000, 60_000)
    yield DamagedFile("bomb", "giant.avi", bytes(avi))
    yield DamagedFile("bomb", "solid.png", _solid_png(30_000))
    yield DamagedFile("bomb", "solid that PIL takes.png", _solid_png(13_300))
    yield DamagedFile("bomb", "thin.png", _solid_png(60_000, 8))


def _solid_png(width: int, height: int | None = None) -> bytes:
    """A whole, valid file of some kB, whose pixels would fill gigabytes, if not at once, then scaled to a short
    side."""
    height = width if height is None else height
    compressor = zlib.compressobj(9)
    rows = [compressor.compress(bytes(1 + -(-width // 8))) for _ in range(height)]
    content = b"".join(rows) + compressor.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _misnamed(whole: dict[str, bytes]) -> Iterator[DamagedFile]:
    for name in ("empty.mp4", "empty.avi", "empty.png"):
        yield DamagedFile("empty", name, b"")
    yield DamagedFile("audio only", "audio.mp4", whole["audio.mp4"])
    for name in whole:
        for suffix in (".mp4", ".jpg", ".txt"):
            yield DamagedFile("wrong extension", f"{name}{suffix}", whole[name])
    for name in ("zeros.mp4", "zeros.png", "zeros.ts"):
        yield DamagedFile("zeros", name, bytes(10_000))


def decode(file: DamagedFile, folder: Path) -> str:
    """What becomes of a file, as a video and as an image, from its path and from its bytes."""
    path = folder / file.name
    path.write_bytes(file.content)
    outcomes = [
        _outcome(lambda source: read_video(source, _uniform, short_side=32, num_threads=1)[0], source)
        for source in (path, file.content)
    ]
    outcomes.append(_outcome(lambda source: np.asarray(read_image(source).convert("RGB"))[None], path))
    outcomes.append(_outcome(lambda source: read_image_tensor(source).permute(1, 2, 0)[None].numpy(), file.content))
    path.unlink()
    return "; ".join(outcomes)


def _uniform(metadata) -> list[int]:
    return uniform_frame_indices(metadata.total_num_frames, 8)


def _outcome(read, source) -> str:
    try:
        frames = read(source)
    except VideoDecodingError:
        return "error"
    if frames.dtype != np.uint8 or frames.ndim != 4:
        raise AssertionError(f"expected frames (T, H, W, 3), got {frames.dtype} {frames.shape}")
    if abs(frames.mean() - SECRET_LEVEL) < 2 and frames.std() < 2:
        raise AssertionError("the frames are those of another file")
    return "frames"


def run_worker(numbers: range, seed: int, whole_files: Path) -> None:
    """Decode files and print a line of JSON before each and after it."""
    with tempfile.TemporaryDirectory() as folder:
        before = _memory("VmRSS")
        for number, file in zip(numbers, damaged_files(numbers, seed, whole_files), strict=True):
            print(json.dumps({"number": number, "kind": file.kind, "name": file.name}), flush=True)
            started = time.process_time()
            # A reader that does not come to an end is ended.
            most_seconds = int(started + 6 * MOST_SECONDS)
            resource.setrlimit(resource.RLIMIT_CPU, (most_seconds, resource.RLIM_INFINITY))
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is forgotten
            outcome = decode(file, Path(folder))
            used = {"seconds": time.process_time() - started, "memory": _memory("VmHWM") - before}
            print(json.dumps({"outcome": outcome, **used}), flush=True)


def _memory(field: str) -> int:
    """What this process holds ("VmRSS"), or has held at most ("VmHWM"), in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def run_processes(numbers: range, seed: int, whole_files: Path) -> tuple[list[tuple[dict, dict]], list[str]]:
    """What a worker says of each file, before and after it, and what went wrong. Where one ends early, another goes on
    behind the file that it ended with."""
    files, problems = [], []
    while numbers:
        lines, problem = _run_process(numbers, seed, whole_files)
        started = [line for line in lines if "number" in line]
        done = list(zip(started, (line for line in lines if "outcome" in line), strict=False))
        files += done
        problems += _excesses(done)
        if problem is None:
            break
        problems.append(f"{started[-1] if started else numbers}: {problem}")
        numbers = numbers[len(started) :] if started else range(0)
    return files, problems


def _run_process(numbers: range, seed: int, whole_files: Path) -> tuple[list[dict], str | None]:
    """The lines of a worker, and what went wrong with it, if anything."""
    arguments = ["--worker", str(numbers.start), str(numbers.stop), "--seed", str(seed)]
    arguments += ["--whole_files", str(whole_files)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AV_LOG_LEVEL": "quiet"}
    try:
        finished = subprocess.run(
            [sys.executable, __file__, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300 + MOST_SECONDS * len(numbers),  # for one that waits
        )
        output, problem = finished.stdout, None
        if finished.returncode:
            problem = f"exit code {finished.returncode}: {finished.stderr[-1000:]}"
    except subprocess.TimeoutExpired as expired:
        output, problem = (expired.stdout or b"").decode(errors="replace"), "it hangs"
    lines = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    return lines, problem


def _excesses(files: list[tuple[dict, dict]]) -> Iterator[str]:
    for file, end in files:
        if end["memory"] > MOST_MEMORY:
            yield f"{file}: it took {end['memory'] / 2**20:.0f} MiB"
        if end["seconds"] > MOST_SECONDS:
            yield f"{file}: it took {end['seconds']:.0f} s"


def run_all(count: int, seed: int, processes: int, whole_files: Path) -> list[str]:
    """Decode all files; print a table; return what went wrong."""
    chunks = [range(start, min(start + FILES_PER_PROCESS, count)) for start in range(0, count, FILES_PER_PROCESS)]
    problems, outcomes, slowest, memory = [], Counter(), 0.0, 0
    with ThreadPoolExecutor(processes) as pool, tqdm(total=count, unit="file") as progress:
        for files, found in pool.map(lambda chunk: run_processes(chunk, seed, whole_files), chunks):
            for file, end in files:
                outcomes[file["kind"], end["outcome"]] += 1
                slowest, memory = max(slowest, end["seconds"]), max(memory, end["memory"])
            problems += found
            progress.update(len(files))
            for one in found:
                progress.write(one)
    print(f"\n{'files':>6}  {'damage':15}  as a video, from path; bytes; as an image, from path; bytes")
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{number:6d}  {kind:15}  {outcome}")
    print(
        f"{sum(outcomes.values()):6d} files, the slowest in {slowest:.2f} s, at most {memory / 2**20:.0f} MiB a file"
    )
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", type=int, help="the number of a file to decode in this process")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--whole_files", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        run_worker(range(*arguments.worker), arguments.seed, arguments.whole_files)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_whole_files(Path(folder))
        if arguments.only is not None:
            numbers = range(arguments.only, arguments.only + 1)
            run_worker(numbers, arguments.seed, Path(folder))
        else:
            problems = run_all(arguments.count, arguments.seed, arguments.processes, Path(folder))
            sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    main()
