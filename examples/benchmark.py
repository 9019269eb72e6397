# SPDX-License-Identifier: Apache-2.0
"""`cover benchmark` from a checkout."""

import sys

from modeling_cover.commands.benchmark import main


if __name__ == "__main__":
    sys.exit(main())
