# SPDX-License-Identifier: Apache-2.0
"""`cover diagnose` from a checkout."""

import sys

from modeling_cover.commands.diagnose import main


if __name__ == "__main__":
    sys.exit(main())
