# SPDX-License-Identifier: Apache-2.0
"""`cover predict` from a checkout."""

import sys

from modeling_cover.commands.predict import main


if __name__ == "__main__":
    sys.exit(main())
