# SPDX-License-Identifier: Apache-2.0
"""Runs code in an interpreter that has this package's dependencies and not the package."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path


MEND = Path(__file__).parents[2] / "modeling_cover" / "_torchvision.py"

# Where the wheels of torch and torchvision do not go together, transformers' pipelines cannot be imported at all, with
# or without this package; only there does the first line do anything.
PREAMBLE = f"""
import importlib.util, runpy
mend = runpy.run_path({str(MEND)!r})
assert importlib.util.find_spec("modeling_cover") is None, "the package must not be importable here"
"""


def run_without_package(
    code: str, folder: Path, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess:
    """Run `code` in `folder`. Packages are found on PYTHONPATH, where no .pth file brings in an editable install."""
    environment = {
        **environment,
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "HF_MODULES_CACHE": str(folder / "hf_modules"),
    }
    interpreter = Path(sys._base_executable).resolve()
    return subprocess.run(
        [str(interpreter), "-S", "-c", PREAMBLE + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
