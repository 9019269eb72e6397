# SPDX-License-Identifier: Apache-2.0
"""Names that look alike: one class however its accents are composed, and whatever blanks are about it.

"é" is one character (NFC), or an "e" and an accent (NFD): which, depends on the system that wrote a name. People see
no difference, nor the blank behind a name.
"""

import ast
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Any


def normal_name(name: str) -> str:
    """A class's name as it is compared and kept: composed (NFC), without blanks at its ends."""
    return unicodedata.normalize("NFC", name).strip()


def plain_spelling(name: str) -> str:
    """What names that a person may take for one have in common: not case, blanks, underscores, hyphens or what is not
    seen."""
    seen = (
        sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) not in ("Cf", "Cc", "Mn")
    )
    return re.sub(r"[\s_\-]+", " ", "".join(seen)).strip().casefold()


def told_apart(name: str, others: Iterable[str]) -> str:
    """For an error about a name that is not among others: the one that looks like it, both with escapes; else
    nothing."""
    alike = next((other for other in others if other != name and plain_spelling(other) == plain_spelling(name)), None)
    return "" if alike is None else f" ({name!a} is spelt otherwise than {alike!a})"


class PathForms:
    """Finds files whose names are written with accents composed otherwise than they are on the disk."""

    def __init__(self):
        self._listings: dict[str, dict[str, list[str]]] = {}

    def find(self, path: str) -> str | None:
        """The path as the disk has it; None if it has none, or several."""
        if path.isascii() or os.path.exists(path):
            return path if os.path.exists(path) else None
        folder, name = os.path.split(path)
        if folder == path:  # the root
            return None
        folder = self.find(folder or ".")
        found = [] if folder is None else self._listing(folder).get(unicodedata.normalize("NFC", name), [])
        return os.path.join(folder, found[0]) if len(found) == 1 else None

    def _listing(self, folder: str) -> dict[str, list[str]]:
        """The names in a folder by their composed form."""
        if folder not in self._listings:
            names = self._listings[folder] = defaultdict(list)
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                names[unicodedata.normalize("NFC", name)].append(name)
        return self._listings[folder]


_ONE_STRING = re.compile(r"""(?s)[rRuUbB]{0,2}('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""")


def listed_in(cell: str) -> list[Any] | None:
    """The items of a list as Python or JSON write one into a cell of text, "['run', 'jump']"; None if it is none.

    Raises:
        ValueError: if the cell is in brackets, and what is in them is no list of names or whole numbers.
    """
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        node = ast.parse(cell, mode="eval").body
        items = ast.literal_eval(node)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{cell!r} looks like a list and is none: write the labels in quotes") from error
    for item, element in zip(items, node.elts, strict=True):
        text = ast.get_source_segment(cell, element) or ""
        # numpy writes no commas, and Python joins two strings without one between them.
        if isinstance(item, str) and not _ONE_STRING.fullmatch(text):
            raise ValueError(f"{cell!r} looks like a list without commas: write one between two labels")
    return items
