# SPDX-License-Identifier: Apache-2.0
"""`cover export` from a checkout."""

import sys

from modeling_cover.commands.export import main


if __name__ == "__main__":
    sys.exit(main())
