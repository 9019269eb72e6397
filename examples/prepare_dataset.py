# SPDX-License-Identifier: Apache-2.0
"""`cover prepare` from a checkout."""

import sys

from modeling_cover.commands.prepare import main


if __name__ == "__main__":
    sys.exit(main())
