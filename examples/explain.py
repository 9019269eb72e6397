# SPDX-License-Identifier: Apache-2.0
"""`cover explain` from a checkout."""

import sys

from modeling_cover.commands.explain import main


if __name__ == "__main__":
    sys.exit(main())
