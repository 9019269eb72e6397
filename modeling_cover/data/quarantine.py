# SPDX-License-Identifier: Apache-2.0
"""The files that could not be decoded: written down once, never tried again, and counted.

One file, `quarantine.jsonl`, is what all workers and processes of a run know in common:

    {"dataset": "k400", "path": "k400/train/abseiling/x.mp4", "reason": "...", "split": "train", "tried": 1203}

It decides nothing about what is trained on: a sample that is listed there would have failed again, and what stands in
for it is a function of the seed and its position.
"""

import fcntl
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..recipe.recipe import BadFilesRecipe


# The share of bad files is taken of no fewer rows than this (or than the dataset has): two bad ones among the first
# ten say little.
_FEWEST_ROWS = 1000
# Of a split that has fewer rows than this, as many files may be bad as of one that has them, but no more than half.
# One of five is more than a few per cent, and says as little.
_SMALL_SPLIT = 200
_EXAMPLES = 3


def most_bad_files(max_share: float, rows: int) -> float:
    """How many of so many rows may be bad: `max_share` of them, or if they are fewer than 200 that of 200, and of
    these no more than half of all rows.

        max_share 0.05      rows  1    5    15   200   1000   5000
                            most  0    2    7    10    50     250       (rounded down)

    A share of 0 allows none.
    """
    return max(max_share * rows, min(max_share * _SMALL_SPLIT, rows / 2))


class BadFile(NamedTuple):
    """A file that cannot be decoded. `tried` rows of the split were drawn until it was found, repeated ones counted
    again."""

    dataset: str
    path: str
    reason: str
    split: str = "train"
    tried: int = 0

    def to_line(self) -> bytes:
        """The entry as a line of the file."""
        return json.dumps(self._asdict()).encode() + b"\n"


class TooManyBadFilesError(ValueError):
    """More files of a dataset cannot be decoded than its recipe allows."""


class Quarantine:
    """The bad files of a run, in a file that need not exist yet. Any number of processes may write to it at a time."""

    def __init__(self, path: str | os.PathLike, max_share: float = BadFilesRecipe.max_share):
        self.path = Path(path)
        self.max_share = max_share
        self._forget()

    def _forget(self) -> None:
        # By dataset and split, by path.
        self._entries: dict[tuple[str, str], dict[str, BadFile]] = defaultdict(dict)
        self._bytes_read = 0

    def __getstate__(self) -> dict:
        # A worker that is spawned, not forked, reads the file again.
        return {"path": self.path, "max_share": self.max_share}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def add(self, bad_file: BadFile) -> None:
        """Write a file down, unless it is there already."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            # Released as the file is closed, also where the process is killed.
            fcntl.flock(file, fcntl.LOCK_EX)
            if self.reason(bad_file.dataset, bad_file.path, bad_file.split) is not None:
                return
            line = bad_file.to_line()
            # A process that was killed, or a disk that was full, may have left half a line.
            file.write(line if self._ends_with_a_line(file) else b"\n" + line)

    @staticmethod
    def _ends_with_a_line(file: BinaryIO) -> bool:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

    def reason(self, dataset: str, path: str, split: str = "train") -> str | None:
        """Why a file is in quarantine; None if it is not."""
        self._read_on()
        entry = self._entries[dataset, split].get(path)
        return None if entry is None else entry.reason

    def entries(self) -> list[BadFile]:
        """All of them, those of a split in the order in which they were found."""
        self._read_on()
        return [entry for entries in self._entries.values() for entry in entries.values()]

    def counts(self) -> dict[str, int]:
        """Bad files in the train split of each dataset that has any."""
        self._read_on()
        return {name: len(entries) for (name, split), entries in self._entries.items() if split == "train" and entries}

    def clear(self, split: str | None = None) -> None:
        """Forget all of them, or those of a split of each dataset: a new run tries every file again."""
        kept = [] if split is None else [entry for entry in self.entries() if entry.split != split]
        if kept:
            self.path.write_bytes(b"".join(entry.to_line() for entry in kept))
        else:
            self.path.unlink(missing_ok=True)
        self._forget()

    def copy_to(self, path: Path) -> None:
        """Write all of them to another file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(entry.to_line() for entry in self.entries()))

    def add_from(self, path: Path) -> None:
        """Add those that another file lists."""
        for entry in Quarantine(path).entries():
            self.add(entry)

    def check(self, bad_file: BadFile, size: int) -> None:
        """Raise a [`TooManyBadFilesError`] if more files are bad than is allowed of a split of `size` rows, after
        `bad_file` was found, see [`most_bad_files`]: of the rows tried so far, and of no fewer than 1000, or all."""
        self._read_on()
        bad = list(self._entries[bad_file.dataset, bad_file.split].values())
        # Workers are not at the same place: it is the furthest that tells how many rows the bad ones were among.
        tried = max(entry.tried for entry in [*bad, bad_file])
        rows = min(size, max(tried, _FEWEST_ROWS))
        if len(bad) > (most := most_bad_files(self.max_share, rows)):
            examples = "\n".join(f"  {entry.path}: {entry.reason}" for entry in bad[:_EXAMPLES])
            raise TooManyBadFilesError(
                f"dataset '{bad_file.dataset}', {bad_file.split} split: {len(bad)} of the {rows} rows tried cannot be "
                f"decoded, more than the {int(most)} that `bad_files: {{max_share: {self.max_share:g}}}` in the recipe "
                f"allows: mend or remove them, or give a larger share. The list is {self.path}; it begins with\n"
                f"{examples}"
            )

    def _read_on(self) -> None:
        """Read what has been written since the last time, by whichever process: whole lines only."""
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            size = 0
        if size < self._bytes_read:  # cleared by another process
            self._forget()
        if size == self._bytes_read:
            return
        with open(self.path, "rb") as file:
            file.seek(self._bytes_read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._bytes_read += len(line)
                try:
                    entry = BadFile(**json.loads(line))
                except (ValueError, TypeError):
                    continue  # what a killed process has left of a line
                self._entries[entry.dataset, entry.split].setdefault(entry.path, entry)
