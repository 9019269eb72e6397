# SPDX-License-Identifier: Apache-2.0
"""Progress bars that a log file has room for."""

import sys
from typing import Any

from tqdm import tqdm


# Between two states of a bar where stderr is no terminal, and the last one cannot be overwritten.
SECONDS_IN_A_FILE = 30.0


def bar(*args: Any, **options: Any) -> tqdm:
    """tqdm's, which in a file says every so many seconds how far it is, and nothing of what is over sooner."""
    if not sys.stderr.isatty():
        # With `miniters`, tqdm's own thread does not say it in between once more.
        options |= {"mininterval": SECONDS_IN_A_FILE, "delay": SECONDS_IN_A_FILE, "miniters": 1}
    return tqdm(*args, **options)
