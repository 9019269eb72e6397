# SPDX-License-Identifier: Apache-2.0
"""What installing the package takes: packages and megabytes, of the base and beyond it of each extra.

    python examples/package_sizes.py

Measured of what is installed in this environment; an extra that is not is left out. torch is counted as it is
installed here: its builds for CUDA are gigabytes larger than those for CPUs.
"""

import importlib.metadata
import re

from packaging.requirements import Requirement


PACKAGE = "modeling-cover"


def needed(name: str, extras: frozenset[str], found: dict[str, set[str]]) -> None:
    """Adds to `found` a package, by its name and the extras of it that are asked for, and all that it needs.

    Raises:
        importlib.metadata.PackageNotFoundError: if one is not installed.
    """
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in found and extras <= found[name]:
        return
    distribution = importlib.metadata.distribution(name)
    found.setdefault(name, set()).update(extras)
    for line in distribution.requires or []:
        requirement = Requirement(line)
        wanted = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(map(requirement.marker.evaluate, wanted)):
            needed(requirement.name, frozenset(requirement.extras), found)


def megabytes(names: set[str]) -> float:
    files = (file for name in names for file in importlib.metadata.distribution(name).files or [])
    return sum(path.stat().st_size for file in files if (path := file.locate()).is_file()) / 1e6


def closure(extras: frozenset[str] = frozenset()) -> set[str]:
    found: dict[str, set[str]] = {}
    needed(PACKAGE, extras, found)
    return {*found} - {PACKAGE}


def main() -> None:
    base = closure()
    print(f"| | packages | MB |\n|---|---|---|\n| base | {len(base)} | {megabytes(base):,.0f} |")
    for extra in sorted(importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra")):
        try:
            more = closure(frozenset([extra])) - base
        except importlib.metadata.PackageNotFoundError as error:
            print(f"| `{extra}` | not installed: {error} | |")
        else:
            print(f"| `{extra}` | +{len(more)} | +{megabytes(more):,.0f} |")


if __name__ == "__main__":
    main()
