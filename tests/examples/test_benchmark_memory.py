# SPDX-License-Identifier: Apache-2.0
"""How many clips fit on a GPU: what a step is found to take, and what follows from it."""

import json
import subprocess

import benchmark_memory
import pytest
import torch
from benchmark_memory import CHECKPOINTED, MODES, clips_that_fit, of_model_and_clip
from python_server import python


def peak(layers: int, rows: int) -> int:
    """Bytes that grow with layers, with rows, and with both."""
    return 1000 + 100 * layers + rows * (7 + 3 * layers)


@pytest.mark.parametrize(("layers", "rows"), [((1, 2), (1, 2)), ((12, 24), (8, 16))])
def test_few_layers_and_clips_tell_what_all_take(layers, rows):
    peaks = {(depth, count): peak(depth, count) for depth in layers for count in rows}
    assert of_model_and_clip(peaks, 24) == (1000 + 2400, 7 + 72)


def test_a_gpu_has_room_for_the_model_and_for_whole_clips():
    usable = benchmark_memory.USABLE * 24_564 * 2**20
    assert clips_that_fit(usable / 2, usable / 9)["24 GB"] == 4
    assert clips_that_fit(2 * usable, usable / 9)["24 GB"] == 0


@pytest.mark.parametrize(("device", "how", "depth"), [("cpu", "predicted", {2, 4}), ("cuda", "measured", {12, 24})])
def test_the_table_says_whether_it_is_measured(device, how, depth, monkeypatch, capsys):
    asked = []

    def measured(preset: str, layers: int, rows: int, mode: str, on: str) -> int:
        asked.append((preset, layers, on))
        return 10**7 * peak(layers, rows)

    monkeypatch.setattr(benchmark_memory, "measure", measured)
    benchmark_memory.table("large", device)
    out = capsys.readouterr().out
    assert f"large, 16x448x448, {how}" in out
    assert [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")][1:] == [
        f"| {m}" for m in MODES
    ]
    assert {layers for _, layers, _ in asked} == depth
    assert f"| eager | 34.0 | 0.79 | 0 | {int((0.92 * 49_140 * 2**20 - 34e9) / 0.79e9)} |" in out


def test_a_step_takes_the_more_the_more_clips_it_has():
    """In a process of its own, as its memory is the process's."""

    def peaks(rows: int) -> int:
        what = json.dumps(["tiny", 1, rows, CHECKPOINTED, "cpu"])
        command = [python(), benchmark_memory.__file__, "--peak_of", what]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)

    few, more = peaks(64), peaks(128)
    pixels = 4 * 3 * 32 * 32 * 4  # frames, channels, height and width, of four bytes
    assert few > 64 * pixels
    assert more - few > 64 * pixels


def test_what_tensors_take_at_most_is_counted_between_those_that_come_and_go():
    def run() -> None:
        first = torch.ones(1_000_000)
        second = torch.ones(2_000_000)
        del first
        third = torch.ones(500_000)
        del second, third

    assert benchmark_memory.growth(run) == 12_000_000
