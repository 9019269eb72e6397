# SPDX-License-Identifier: Apache-2.0
"""Files as Fashion-MNIST is published, of made-up pictures."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np


def write_fashion_mnist(folder: str | os.PathLike, pictures_per_kind: int = 8) -> Path:
    """Writes the four files, and returns their folder. No two pictures are alike."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for published in ("train", "t10k"):
        labels = np.arange(10, dtype=np.uint8).repeat(pictures_per_kind)
        images = np.zeros((len(labels), 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            height, width = 10 + label, 26 - label
            image[1 : 1 + height, 1 : 1 + width] = rng.integers(100, 256, (height, width))
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{published}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder
