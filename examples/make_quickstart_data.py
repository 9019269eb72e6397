# SPDX-License-Identifier: Apache-2.0
"""Draw the quickstart's three small datasets, which `quickstart_data.py` describes.

    python examples/make_quickstart_data.py
    python examples/make_quickstart_data.py --output data/quickstart --preview outputs/quickstart_data.png

Takes half a minute on 2 CPU cores for 4,680 files of 16 MB together. It ends with this line:

    data/quickstart: 4680 files, 16.5 MB, 26 s
"""

import argparse
import time
from pathlib import Path

from quickstart_data import QUICKSTART_DATA, draw_preview, draw_quickstart


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the three small datasets of the quickstart.")
    parser.add_argument("--output", type=Path, default=QUICKSTART_DATA, help="folder to draw them in")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other files")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of files per label")
    parser.add_argument("--preview", type=Path, help="also write a contact sheet, a PNG, here")
    args = parser.parse_args()

    start = time.perf_counter()
    files = draw_quickstart(args.output, args.seed, args.scale)
    if files:
        megabytes = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file()) / 1e6
        print(f"{args.output}: {files} files, {megabytes:.1f} MB, {time.perf_counter() - start:.0f} s")
    else:
        print(f"{args.output}: complete already, nothing to draw")
    if args.preview is not None:
        args.preview.parent.mkdir(parents=True, exist_ok=True)
        draw_preview(args.output, args.scale).save(args.preview)


if __name__ == "__main__":
    main()
