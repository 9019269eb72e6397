# SPDX-License-Identifier: Apache-2.0
"""The README's snippets on what `make quickstart` has made, in the order shown, each in a fresh interpreter of the
environment that it has made, without an extra. `.ci/run` runs this before `make test` installs them.

Left out are those that name what one has to have: a network, files of one's own, an extra.
"""

import os
import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]
OF_ONES_OWN = ("org/gestures", "google/", "facebook/", "my_", "make ", "pip ", ".onnx")


def main() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    run = [(language, code) for language, code in blocks if not any(name in code for name in OF_ONES_OWN)]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    environment["ACCELERATE_USE_CPU"] = "true"
    for number, (language, code) in enumerate(run, start=1):
        print(f"README, snippet {number} of {len(run)}: {code.splitlines()[0]}", flush=True)
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600)


if __name__ == "__main__":
    main()
