# SPDX-License-Identifier: Apache-2.0
"""What many tests train on, and what all of them go without so as to be fast.

The process from which xdist starts the others reads this file and collects nothing: what takes long is imported where
it is needed.
"""

import contextlib
import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


# The files that take longest, from the longest on, in `make test` or `make test-slow`. Started last, one of them would
# keep one process busy when the others have ended.
LONGEST = (
    "examples/test_miniature.py",
    "examples/test_compare_encoders.py",
    "examples/test_examples.py",
    "training/test_resuming.py",
    "hub/test_exporting.py",
    "examples/test_docs.py",
    "training/test_sharding.py",
    "hub/test_exporting_encoders.py",
    "training/test_given_datasets.py",
    "training/test_encoders.py",
    "training/test_encoders_in_processes.py",
    "training/test_watchdog.py",
    "training/test_launching.py",
    "examples/test_demo.py",
    "hub/test_round_trip.py",
    "data/test_remote_layouts.py",
    "examples/test_readme.py",
    "model/test_temporal_kernel_cover.py",
    "training/test_compiling.py",
    "test_importing.py",
    "examples/test_installed_package.py",
    "training/test_trainer.py",
    "examples/test_demo_guard.py",
    "examples/test_recipes.py",
    "examples/test_names.py",
    "model/test_video_layouts.py",
    "model/test_damaged_files.py",
    "hub/test_publishing.py",
)


# Triton's interpreter runs kernels on a CPU, if what kernels call was made for it when triton was imported: before
# torch imports it. The kernels themselves are interpreted if the variable says so when they are made.
if shutil.which("nvidia-smi") is None:
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):  # not every platform has it
        patch.setenv("TRITON_INTERPRET", "1")
        import triton.language  # noqa: F401


def pytest_collectstart() -> None:
    """Mend torchvision beside a CPU-only torch before any test module imports transformers."""
    import modeling_cover._torchvision  # noqa: F401


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """To run the slow tests, each process need not import the files that have none."""
    if config.getoption("markexpr") == "slow" and collection_path.suffix == ".py":
        return "mark.slow" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, and each file as it was; `--no-loadscope-reorder` keeps xdist from another order."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONGEST)}
    if gone := [str(path) for path in places if not path.exists()]:
        raise pytest.UsageError(f"{__file__}: LONGEST names files that are not there: {', '.join(gone)}")
    items.sort(key=lambda item: places.get(item.path, len(places)))


# What modules make when they are imported stays. To look through it again and again would be a tenth of all the time:
# each training run ends with `gc.collect()`.
gc.disable()


def pytest_collection_finish() -> None:
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture(scope="session")
def modules_at_rest() -> list[int]:
    """How many there were when `settled` saw new ones."""
    return [0]


@pytest.fixture(autouse=True)
def settled(modules_at_rest) -> None:
    if modules_at_rest != [len(sys.modules)]:  # many are imported by the first test that needs them
        modules_at_rest[:] = [len(sys.modules)]
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def unwaited() -> Iterator[None]:
    """Workers of a data loader that do not end are ended after a second each instead of five."""
    import torch.utils.data._utils as loading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "MP_STATUS_CHECK_INTERVAL", 1.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def undrawn() -> Iterator[Callable]:
    """Runs draw no curves at their end, which takes as long as the rest of a short one; `drawn` has them again."""
    from modeling_cover.training import curves

    def draw(log_history: object, names: object, path: Path) -> None:
        path.write_bytes(b"curves")

    original = curves.draw_training_curves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw_training_curves", draw)
        yield original


@pytest.fixture
def drawn(undrawn, monkeypatch) -> None:
    """Runs draw curves at their end."""
    from modeling_cover.training import curves

    monkeypatch.setattr(curves, "draw_training_curves", undrawn)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of clips and a stream of images, see `killed_runs.write_data`."""
    from killed_runs import write_data

    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    """The folder of a run of 6 steps, with checkpoints at 3 and 6."""
    from short_runs import make_trainer

    make_trainer(folder, folder / "finished").train()
    return folder / "finished"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
