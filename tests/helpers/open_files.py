# SPDX-License-Identifier: Apache-2.0
"""A limit on open files, as shared machines have."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """Inside, this process may open `count` more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = []  # of the numbers below the highest that is in use
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while not fillers or fillers[-1] <= highest:
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    os.close(last := fillers.pop())
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
