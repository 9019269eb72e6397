# SPDX-License-Identifier: Apache-2.0
"""What `import modeling_cover` loads, and what it leaves until somebody asks for it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import modeling_cover
import pytest


# From the ground up: a room knows those before it. What is in none of them, all may use but the model.
ROOMS = ("model", "recipe", "data", "evaluation", "hub", "training", "dataset_tools", "commands")

# Of training, evaluation and their plots: a server that only answers clips has no use for them.
HEAVY = ("datasets", "matplotlib", "pandas", "pyarrow", "modeling_cover.training")


def test_running_a_model_loads_nothing_that_only_training_needs():
    code = (
        "import json, sys, modeling_cover; modeling_cover.CoverForVideoClassification(modeling_cover.CoverConfig("
        "hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, label2id={'a': 0, 'b': 1}));"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert json.loads(finished.stdout) == []


def imported_by(file: Path) -> set[str]:
    """The modules of the package that one of them imports, anywhere in it, such as "model.modeling_cover"."""
    package = Path(modeling_cover.__file__).parent
    folder = file.relative_to(package).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*folder[: len(folder) - node.level + 1], *(node.module or "").split("."))
            prefix = ".".join(part for part in base if part)
            found |= {prefix} if node.module else {f"{prefix}.{name.name}".lstrip(".") for name in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found |= {name.removeprefix("modeling_cover.") for name in names if name.split(".")[0] == "modeling_cover"}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_room_above_it(room):
    package = Path(modeling_cover.__file__).parent
    above = ROOMS[ROOMS.index(room) + 1 :]
    files = sorted((package / room).rglob("*.py"))
    assert files
    wrong = {file.name: [name for name in imported_by(file) if name.split(".")[0] in above] for file in files}
    assert {name: imports for name, imports in wrong.items() if imports} == {}


def test_the_model_imports_nothing_but_what_lies_beside_it():
    # Beside a checkpoint on the Hub, its files lie in one folder.
    folder = Path(modeling_cover.__file__).parent / "model"
    beside = {f"model.{file.stem}" for file in folder.glob("*.py")}
    for file in folder.glob("*.py"):
        assert imported_by(file) <= beside, file.name


def test_no_two_modules_have_one_name():
    names = [file.name for file in Path(modeling_cover.__file__).parent.rglob("*.py") if file.name != "__init__.py"]
    assert len(names) == len(set(names))


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
import datasets, modeling_cover, evaluate, gradio, matplotlib.figure, pebble, torch.distributed.checkpoint
import transformers.hf_argparser, transformers.trainer
for module in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{module} cannot be imported first")
"""
    finished = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.mark.parametrize("name", modeling_cover.__all__)
def test_each_public_name_is_there_and_listed(name):
    assert getattr(modeling_cover, name).__name__ == name
    assert name in dir(modeling_cover)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CoverTrainr'"):
        modeling_cover.CoverTrainr  # noqa: B018
