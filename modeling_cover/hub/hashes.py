# SPDX-License-Identifier: Apache-2.0
"""Hashes of a checkpoint's files, by which damage shows that leaves their sizes as they are.

They are in the format of coreutils, so that they can be checked without this package:

    cd outputs/mine/checkpoint-500 && sha256sum --check training_state/SHA256SUMS
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


_THREADS = 4  # hashing lets go of Python's lock
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def file_hash(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The hash of each file, by its name in the folder.

    Raises:
        OSError: if one cannot be read.
    """
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(file_hash, [folder / name for name in names]), strict=True))


def sums_text(hashes: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))


def read_sums(path: Path) -> dict[str, str]:
    """The hashes in a file, by name.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not what [`sums_text`] makes.
    """
    lines = [_LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not lines or None in lines:
        raise ValueError(f"line {lines.index(None) + 1 if lines else 1} is not a hash and a name")
    return {line[2]: line[1] for line in lines}
