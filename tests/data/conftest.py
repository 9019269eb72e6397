# SPDX-License-Identifier: Apache-2.0
"""Files for datasets that are listed and not read, and a few that are."""

import numpy as np
import PIL.Image
import pytest
from clips import indexed_frames, write_clip


@pytest.fixture
def touch(tmp_path):
    """Makes empty files; no file is read, only looked for."""

    def touch(*paths: str) -> None:
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()

    return touch


@pytest.fixture
def write(tmp_path, touch):
    """Writes a manifest, and the files a.mp4, b.mp4 and c.mp4 beside it."""

    def write(content: str | bytes, name: str = "train.csv") -> str:
        touch("a.mp4", "b.mp4", "c.mp4")
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """The paths of three videos of 9 frames."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{index}.mp4", indexed_frames(9)[index:]) for index in range(3)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(3)]
    for path in paths:
        PIL.Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return list(map(str, paths))
