# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Runs code in an interpreter that has this package's dependencies and not the package."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path


MEND = Path(__file__).parent.parent / "modeling_cover" / "_torchvision.py"

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
