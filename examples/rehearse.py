# SPDX-License-Identifier: Apache-2.0
"""`cover rehearse` from a checkout."""

import sys

from modeling_cover.commands.rehearse import main


if __name__ == "__main__":
    sys.exit(main())
