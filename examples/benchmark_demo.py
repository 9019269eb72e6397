# SPDX-License-Identifier: Apache-2.0
"""Measure how long a visitor of the demo waits for the first answer: from the click to the bars, without the upload.

    python examples/benchmark_demo.py --model outputs/quickstart

Serves the page of demo.py in a process of its own, and asks it about a clip of 10 seconds, 640 x 360, 30 frames a
second, H.264. Takes about 30 seconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from gradio_client import Client, handle_file


SECONDS, FPS, WIDTH, HEIGHT = 10, 30, 640, 360


def write_clip(path: Path) -> None:
    """A disk that grows before noise."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    background = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(SECONDS * FPS):
            frame = background.copy()
            frame[(rows - HEIGHT / 2) ** 2 + (columns - WIDTH / 2) ** 2 < (20 + index / 3) ** 2] = (230, 120, 80)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def seconds_to_answers(client: Client, clip: Path, heads: list[str]) -> tuple[float, float]:
    """Until the first answer is there, and until all of it is."""
    started = time.perf_counter()
    outputs = iter(client.submit(handle_file(clip), heads, api_name="/video"))
    next(outputs)
    first = time.perf_counter() - started
    for _ in outputs:
        pass
    return first, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    command = [sys.executable, "-u", str(Path(__file__).with_name("demo.py")), "--model", arguments.model]
    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder) / "clip.mp4")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            url = next(line.split()[-1] for line in process.stdout if "Running on local URL" in line)
            client = Client(url, verbose=False)
            endpoint = client.view_api(print_info=False, return_format="dict")["named_endpoints"]["/video"]
            heads = endpoint["parameters"][1]["parameter_default"]
            times = [seconds_to_answers(client, Path(folder) / "clip.mp4", heads) for _ in range(arguments.runs)]
        finally:
            process.kill()
    first, whole = zip(*times, strict=True)
    print(
        f"{os.cpu_count()} CPU cores, {SECONDS} s of {WIDTH} x {HEIGHT} at {FPS} frames a second, {len(heads)} heads"
    )
    print(f"bars: at first {first[0]:.2f} s, then {statistics.median(first[1:]):.2f} s (median of {len(first) - 1})")
    print(f"with timeline and rollout: {statistics.median(whole[1:]):.2f} s")


if __name__ == "__main__":
    main()
