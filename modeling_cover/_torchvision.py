# SPDX-License-Identifier: Apache-2.0
"""Lets `import torchvision` succeed beside a CPU-only torch.

torchvision's wheels on PyPI are built for CUDA. Beside a CPU-only torch their compiled operators cannot be loaded, and
`import torchvision` (hence `from transformers import pipeline`) fails with "operator torchvision::nms does not exist",
although its transforms, the only part needed here, are pure Python. Declaring the two operators that torchvision
registers fake kernels for is enough; calling them stays an error. The package imports this module before anything
else.
"""

import importlib.util
from pathlib import Path

import torch


def _operators_load() -> bool:
    """Whether torchvision's compiled operators load beside this torch (loading them twice does no harm)."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to mend: importing torchvision will say that it is missing
    for path in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(path)
        except OSError:
            return False
    return True


def _declare_operators() -> torch.library.Library | None:
    if torch.version.cuda is not None or torch.version.hip is not None or _operators_load():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# The declarations live as long as the Library object does.
_library = _declare_operators()
