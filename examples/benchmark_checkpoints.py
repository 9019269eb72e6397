# SPDX-License-Identifier: Apache-2.0
"""Measure what integrity checks cost: hashing a checkpoint while it is written, checking it, and hashing the names of
rows.

    python examples/benchmark_checkpoints.py [--gigabytes 2] [--rows 1000000]

Writes tensors of that size in the proportions of a run with AdamW (model, two moments) to the current folder, and
flushes them to the disk. Reads them again, as a run does before it resumes, and removes them. About 30 seconds on 2
CPU cores.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from modeling_cover.data.sources.media import PathMedia, hash_of
from modeling_cover.training import checkpoints
from modeling_cover.training.checkpoints import STATE_VERSION, RunCheckpoints, what_is_wrong
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    part = round(arguments.gigabytes * 1e9 / 3 / 4)
    tensors = {name: torch.rand(part) for name in ("model", "exp_avg", "exp_avg_sq")}
    hashing, hashes_of = [], checkpoints.file_hashes

    def timed(*args):
        started = time.perf_counter()
        try:
            return hashes_of(*args)
        finally:
            hashing.append(time.perf_counter() - started)

    checkpoints.file_hashes = timed
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        writer = RunCheckpoints(name)
        started = time.perf_counter()
        with writer.writing(1) as folder:
            save_file({"model": tensors.pop("model")}, folder / "model.safetensors")
            writer.write_state(
                folder, dict.fromkeys(checkpoints.STATE_KEYS, 0) | {"version": STATE_VERSION}, {"optimizer": tensors}
            )
        written = time.perf_counter() - started
        size = sum(file.stat().st_size for file in writer.path(1).rglob("*") if file.is_file()) / 1e9
        started, worked = time.perf_counter(), time.process_time()
        if (fault := what_is_wrong(writer.path(1))) is not None:
            raise RuntimeError(fault)
        checked, worked = time.perf_counter() - started, time.process_time() - worked
    started = time.perf_counter()
    media = PathMedia("/data", (f"class{row % 400}/{row:011}.mp4" for row in range(arguments.rows)))
    listed = time.perf_counter() - started
    started = time.perf_counter()
    hash_of(media.identity())
    named = time.perf_counter() - started
    print("| | seconds | |\n|---|---|---|")
    print(f"| writing {size:.2f} GB, flushed to the disk | {written:.1f} | {size / written:.2f} GB/s |")
    print(f"| of it hashing | {hashing[0]:.1f} | {hashing[0] / written:.0%} |")
    print(f"| checking it before a run resumes | {checked:.1f} | {size / checked:.2f} GB/s |")
    print(f"| of it the time of a CPU core | {worked:.1f} | {size / worked:.2f} GB/s |")
    print(f"| hashing {arguments.rows:,} names of rows | {named:.2f} | listed in {listed:.1f} s |")


if __name__ == "__main__":
    main()
