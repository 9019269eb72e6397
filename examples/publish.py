# SPDX-License-Identifier: Apache-2.0
"""`cover publish` from a checkout."""

import sys

from modeling_cover.commands.publish import main


if __name__ == "__main__":
    sys.exit(main())
