# SPDX-License-Identifier: Apache-2.0
"""What a compiled layer would move on a GPU, which waits for its memory in all that is no product of matrices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[1] / "helpers" / "gpu_traffic.py"


@pytest.mark.slow
def test_a_compiled_layer_moves_less_than_half_of_what_an_eager_one_does():
    # In a process of its own, as the compiler is told of a GPU that is not there.
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    moved = json.loads(run.stdout)
    assert moved["compiled"] <= 0.45 * moved["eager"]
    assert moved["kernels"] <= 40
