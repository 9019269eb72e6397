# SPDX-License-Identifier: Apache-2.0
"""`cover probe` from a checkout."""

import sys

from modeling_cover.commands.probe import main


if __name__ == "__main__":
    sys.exit(main())
