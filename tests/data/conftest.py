# SPDX-License-Identifier: Apache-2.0
"""Files for datasets that are listed and not read."""

import pytest


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
