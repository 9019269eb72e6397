# SPDX-License-Identifier: Apache-2.0
"""`cover evaluate` from a checkout."""

import sys

from modeling_cover.commands.evaluate import main


if __name__ == "__main__":
    sys.exit(main())
