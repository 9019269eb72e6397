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
"""What `import modeling_cover` loads, and what it leaves until somebody asks for it."""

import json
import subprocess
import sys
from pathlib import Path

import modeling_cover
import pytest


# Of training, evaluation and their pictures: a server that only answers clips has no use for them.
HEAVY = ("datasets", "matplotlib", "pandas", "pyarrow", "modeling_cover.training")


def test_running_a_model_loads_nothing_that_only_training_needs():
    code = (
        "import json, sys, modeling_cover; modeling_cover.CoverForVideoClassification(modeling_cover.CoverConfig("
        "hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, label2id={'a': 0, 'b': 1}));"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert json.loads(finished.stdout) == []


@pytest.mark.slow
def test_each_module_can_be_the_first_that_is_imported():
    package = Path(modeling_cover.__file__).parent
    modules = [
        ".".join(file.relative_to(package.parent).with_suffix("").parts)
        for file in sorted(package.rglob("*.py"))
        if file.name != "__init__.py"
    ]
    # Each in a fork of a process that has the libraries, so that it costs no start of an interpreter.
    code = """
import importlib, os, sys
import datasets, matplotlib.figure, modeling_cover, transformers.trainer
for module in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{module} cannot be imported first")
"""
    finished = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.mark.parametrize("name", modeling_cover.__all__)
def test_each_public_name_is_there_and_listed(name):
    assert getattr(modeling_cover, name).__name__ == name
    assert name in dir(modeling_cover)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CoverTrainr'"):
        modeling_cover.CoverTrainr  # noqa: B018
