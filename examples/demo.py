# SPDX-License-Identifier: Apache-2.0
"""`cover demo` from a checkout."""

import sys

from modeling_cover.commands.demo import main


if __name__ == "__main__":
    sys.exit(main())
