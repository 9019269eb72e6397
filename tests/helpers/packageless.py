# SPDX-License-Identifier: Apache-2.0
"""Runs code in an interpreter that has this package's dependencies and not the package."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from python_server import python_without_package


PREAMBLE = """
import importlib.util
assert importlib.util.find_spec("modeling_cover") is None, "the package must not be importable here"
"""


def run_without_package(
    code: str, folder: Path, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess:
    """Run `code` in `folder`, where nothing brings in an editable install."""
    return subprocess.run(
        [python_without_package(), "-c", PREAMBLE + code],
        cwd=folder,
        env={**environment, "HF_MODULES_CACHE": str(folder / "hf_modules")},
        capture_output=True,
        text=True,
        timeout=600,
    )
