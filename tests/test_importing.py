# SPDX-License-Identifier: Apache-2.0
"""What `import modeling_cover` loads, and what it leaves until somebody asks for it."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
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


def statements(tree: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    """All in a module, or those that run when it is imported: not in functions, nor for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from statements(node, at_import)


def imported_by(file: Path, at_import: bool = False) -> set[str]:
    """The modules of the package that one of them imports, anywhere or `at_import`, such as "model.modeling_cover"."""
    package = Path(modeling_cover.__file__).parent
    folder = file.relative_to(package).parent.parts
    found = set()
    for node in statements(ast.parse(file.read_text(encoding="utf-8")), at_import):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*folder[: len(folder) - node.level + 1], *(node.module or "").split("."))
            prefix = ".".join(part for part in base if part)
            names = {f"{prefix}.{name.name}".lstrip(".") for name in node.names}
            modules = {name for name in names if (package / name.replace(".", "/")).with_suffix(".py").exists()}
            found |= modules or {prefix}
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


def test_each_module_can_be_the_first_that_is_imported():
    package = Path(modeling_cover.__file__).parent
    modules = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        modules[".".join(part for part in parts if part != "__init__")] = file
    graph = {
        module: {name for name in imported_by(file, at_import=True) if name in modules}
        for module, file in modules.items()
    }
    assert sum(map(len, graph.values())) > 2 * len(graph)
    graphlib.TopologicalSorter(graph).prepare()  # which names modules that import one another in a circle


@pytest.mark.parametrize("name", modeling_cover.__all__)
def test_each_public_name_is_there_and_listed(name):
    assert getattr(modeling_cover, name).__name__ == name
    assert name in dir(modeling_cover)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CoverTrainr'"):
        modeling_cover.CoverTrainr  # noqa: B018
