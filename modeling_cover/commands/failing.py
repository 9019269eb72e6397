# SPDX-License-Identifier: Apache-2.0
"""How a command ends that cannot do what it is asked for: with one line, and a code that says why.

| exit code | |
|---|---|
| 0 | done |
| 1 | it failed at work, or `cover check` has found problems, or `cover predict` a file that it cannot read |
| 2 | what was asked for cannot be done: an argument, the recipe, a file |
| 70, 75 | training has stalled, or was told to stop: see docs/training.md |
| 130 | stopped by Ctrl-C |
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec


DEBUG = "--debug"
DEBUG_VALUES = ("underflow_overflow", "tpu_metrics_debug")  # of transformers' training argument
FAILED, UNFIT, INTERRUPTED = 1, 2, 130
# A process that is not the main one tells its error if it is still there then: of an error that all have, the launcher
# has ended it.
SECONDS_FOR_THE_MAIN_PROCESS = 3.0
_OF_A_WORKER = "\nOriginal Traceback (most recent call last):"

P = ParamSpec("P")


def told(main: Callable[P, int | None]) -> Callable[P, int]:
    """Have the `main` of a command return an exit code, and end in `error: ...` on one line of stderr.

    With `--debug` in `sys.argv`, and where the error is a fault of the program, it is raised with its traceback.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        _, debug = without_debug(sys.argv[1:])
        try:
            return main(*args, **kwargs) or 0
        except KeyboardInterrupt as stop:
            if debug:
                raise
            print(f"stopped{f': {stop}' * bool(stop.args)}", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            if debug or not is_expected(error):
                raise
            say(error, int(os.environ.get("RANK", "0")))
            return exit_code(error)

    return run


def command_parser(description: str, **options: Any) -> argparse.ArgumentParser:
    """A parser of a command line, with `--debug`; what [`told`] makes of that is not a parser's business."""
    options = {"description": description, "formatter_class": argparse.RawDescriptionHelpFormatter, **options}
    parser = argparse.ArgumentParser(**options)
    parser.add_argument(DEBUG, action="store_true", help="show an error with its traceback")
    return parser


def without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """A command line without `--debug`, and whether it has it. With a value, `--debug` is a training argument of
    transformers, and stays."""
    ours = {
        index
        for index, argument in enumerate(arguments)
        if argument == DEBUG and (index + 1 == len(arguments) or arguments[index + 1] not in DEBUG_VALUES)
    }
    return [argument for index, argument in enumerate(arguments) if index not in ours], bool(ours)


def parse_known(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """What a parser of [`command_parser`] knows, and the training arguments that it does not: one is `--debug` with a
    value."""
    arguments, _ = without_debug(sys.argv[1:] if arguments is None else arguments)
    at = arguments.index(DEBUG) if DEBUG in arguments else len(arguments)
    options, others = parser.parse_known_args(arguments[:at] + arguments[at + 2 :])
    return options, [*others, *arguments[at : at + 2]]


def is_expected(error: Exception) -> bool:
    """Whether an error is about what was asked for, or this package's own, and not a fault of the program."""
    package = __name__.partition(".")[0]
    return isinstance(error, (ValueError, OSError, ImportError)) or type(error).__module__.startswith(f"{package}.")


def exit_code(error: Exception) -> int:
    # Here, so that `cover --help` need not load torch.
    from ..data.quarantine import TooManyBadFilesError
    from ..hub.publishing import PublishingError
    from ..training.step_guard import NonFiniteTrainingError, TrainingOutOfMemoryError

    at_work = (TooManyBadFilesError, PublishingError, NonFiniteTrainingError, TrainingOutOfMemoryError)
    return FAILED if isinstance(error, at_work) else UNFIT


def say(error: Exception, rank: int = 0) -> None:
    """Print the line of an error, once for all processes that have the same."""
    if rank:
        time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
    print(f"error: {f'process {rank}: ' * bool(rank)}{one_line(error)}", file=sys.stderr, flush=True)


def one_line(error: Exception) -> str:
    message = str(error)
    if _OF_A_WORKER in message:  # of a data loader's worker: it is at the end of its traceback
        message = message.rpartition(f"{type(error).__name__}: ")[2]
    text = ""
    for line in filter(None, (" ".join(line.split()) for line in message.splitlines())):
        text += line if not text else f" {line}" if text[-1] in ".,:;!?" else f"; {line}"
    return text or type(error).__name__
