# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate, publish and use CoVeR models."""

import importlib
import sys

from .failing import DEBUG, told


COMMANDS = {
    "train": "co-train a model on the datasets of a recipe",
    "evaluate": "evaluate a checkpoint on datasets, with views and intervals",
    "predict": "predict the classes of videos and images with every head",
    "rehearse": "try a recipe in a minute on stand-ins for its datasets",
    "check": "find bad files, empty classes and leaks in the datasets of a recipe",
    "prepare": "keep only the frames that training samples",
    "diagnose": "tell whether the datasets of a recipe help one another",
    "show": "draw a batch as the model is fed with it",
    "explain": "draw where a model looks",
    "probe": "fit classifiers to the features of an encoder",
    "publish": "publish a checkpoint on the Hub, with its card",
    "export": "export a checkpoint to ONNX or torch.export",
    "demo": "serve a page that classifies what is dropped on it",
    "benchmark": "compare speed and memory with transformers' video models",
}

_USAGE = """usage: cover COMMAND [ARGUMENTS]

{about}

{listed}

`cover COMMAND --help` has its arguments, and `--debug` shows tracebacks.
With many processes:
accelerate launch -m modeling_cover.commands.COMMAND [ARGUMENTS]"""


def usage() -> str:
    listed = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    return _USAGE.format(about=__doc__, listed=listed)


def main() -> None:
    """Run the subcommand that the command line names; its exit code is that of the process."""
    arguments = sys.argv[1:]
    name = next((argument for argument in arguments if argument != DEBUG), "--help")
    if name in ("-h", "--help"):
        print(usage())
        return
    arguments.remove(name)
    sys.argv = [f"cover {name}", *arguments]
    sys.exit(run(name))


@told
def run(name: str) -> int:
    if name not in COMMANDS:
        raise ValueError(f"no command '{name}', expected one of {', '.join(COMMANDS)}")
    # Each by itself: what one needs, another may not have installed.
    return importlib.import_module(f"..{name}", __name__).main()
