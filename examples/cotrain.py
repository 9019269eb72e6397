# SPDX-License-Identifier: Apache-2.0
"""`cover train` from a checkout; without a recipe it runs the quickstart, and first draws its data if need be."""

import sys
from functools import partial

from modeling_cover.commands.train import main
from quickstart_data import QUICKSTART, QUICKSTART_DATA, draw_quickstart


if __name__ == "__main__":
    sys.exit(main(QUICKSTART, partial(draw_quickstart, QUICKSTART_DATA)))
