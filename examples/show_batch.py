# SPDX-License-Identifier: Apache-2.0
"""`cover show` from a checkout."""

import sys

from modeling_cover.commands.show import main


if __name__ == "__main__":
    sys.exit(main())
