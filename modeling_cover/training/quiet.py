# SPDX-License-Identifier: Apache-2.0
"""What libraries say in a run that is not about it, left out where it is said; nothing else is."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging


class _NotOfThisRun(logging.Filter):
    """Leaves out messages that begin with `words`."""

    def __init__(self, words: str):
        super().__init__()
        self.words = words

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.words)


# One for all, as a logger has a filter once.
_CHOICE_OF_DEEPSPEED = _NotOfThisRun("Setting accelerator to CPU")


def leave_out_deepspeed(args: TrainingArguments) -> None:
    """Where DeepSpeed is installed, accelerate imports it, and it says that it finds no GPU: in a run without it that
    is of no concern."""
    if not args.deepspeed:
        logging.getLogger("DeepSpeed").addFilter(_CHOICE_OF_DEEPSPEED)


@contextmanager
def without_bar(description: str) -> Iterator[None]:
    """Inside, transformers shows no bar of that description: of a model's one file it is there at once."""

    def made(factory, args, kwargs):
        make = factory if previous is None else lambda *args, **kwargs: previous(factory, args, kwargs)
        return make(*args, **{**kwargs, "disable": True} if kwargs.get("desc") == description else kwargs)

    previous = transformers_logging.set_tqdm_hook(made)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
