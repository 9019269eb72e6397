# SPDX-License-Identifier: Apache-2.0
"""Names of classes and files as text for people: on one line, as they are, and without power over what shows them.

A name may be in any script, and hold whatever a folder's name or a cell of a table can.
"""

import io
import sys
import unicodedata
from collections.abc import Sequence


_UNSHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, invisible marks, surrogates, ends of lines and paragraphs
_JOINERS = "\u200c\u200d"  # which form letters in some scripts, and join emoji


def printable(name: str) -> str:
    """A name on one line that moves no cursor and reorders nothing: such characters are escaped as in Python.

    Of what is invisible, just a joiner stays, after a character that is not ASCII: there it is part of the spelling.
    """
    shown = ""
    for character in name:
        joins = character in _JOINERS and shown and not shown[-1].isascii()
        escaped = unicodedata.category(character) in _UNSHOWN and not joins
        shown += character.encode("unicode_escape").decode() if escaped else character
    return shown


def display_width(text: str) -> int:
    """The columns of a terminal that `text` takes: two of a wide character of East Asia, none of a mark on another."""
    return sum(map(_width, unicodedata.normalize("NFC", text)))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(name: str, width: int) -> str:
    """A printable name of at most `width` columns."""
    name = unicodedata.normalize("NFC", printable(name))
    if display_width(name) <= width:
        return name
    kept, left = "", width - 1
    for character in name:
        left -= _width(character)
        if left < 0:
            break
        kept += character
    return f"{kept}…"


def padded(text: str, width: int) -> str:
    """`text` with spaces after it, up to `width` columns."""
    return text + " " * (width - display_width(text))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first a header, as text in aligned columns."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(padded, row, widths)).rstrip() for row in cells)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    listed = ", ".join(repr(name) for name in names[:most]) or "none"
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def counted(number: int, one: str, many: str | None = None) -> str:
    """The number, and the noun in its plural where it should be."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def byte_size(size: float) -> str:
    """A number of bytes with the unit in which it is easy to read."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def make_printable() -> None:
    """Have stdout and stderr escape what their encoding lacks: all but ASCII, or a file's name that is not UTF-8.

    For a script to call first: else it would end in a UnicodeEncodeError when all its work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # and not a notebook's, which takes everything
            stream.reconfigure(errors="backslashreplace")
