# SPDX-License-Identifier: Apache-2.0
"""`cover check` from a checkout."""

import sys

from modeling_cover.commands.check import main


if __name__ == "__main__":
    sys.exit(main())
