# SPDX-License-Identifier: Apache-2.0
"""Names in plots: drawn as they are, in any script that the fonts of the machine have.

DejaVu Sans, which comes with matplotlib, has accents and most alphabets, Arabic's as well. For what it lacks, such as
Chinese, Japanese, Korean and Hindi, matplotlib is given the machine's own fonts.
"""

import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from transformers.utils import logging

from .text import printable, some


logger = logging.get_logger(__name__)

# Of a drawing: a file that cannot be written; a plot too large, or a text that cannot be laid out; a font that
# FreeType refuses.
DRAWING_ERRORS = (OSError, ValueError, RuntimeError)

_BASE = "DejaVu Sans"
_MOST_NAMED = 10
_VARIANTS = range(0xFE00, 0xFE10)  # selectors of a character's form, invisible

_told: set[str] = set()  # names with characters that no font has


@contextmanager
def told_if_not_drawn(path: str | os.PathLike) -> Iterator[None]:
    """A plot that cannot be drawn is no reason to lose what it is of: why is logged, and all else continues."""
    try:
        yield
    except DRAWING_ERRORS as error:
        logger.warning(f"{printable(str(path))} is not drawn: {printable(str(error))}")


@contextmanager
def plain_text(names: Iterable[str]) -> Iterator[None]:
    """While a matplotlib figure is made and saved: none of its texts is read as TeX, fonts are those that `names`
    need.

    What no font has is said by [`find_fonts`], in place of matplotlib's warning for each glyph.
    """
    settings = {
        "font.family": [_BASE, *map(_family, find_fonts(names))],
        "text.parse_math": False,
        "text.usetex": False,
        "axes.formatter.use_mathtext": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def find_fonts(names: Iterable[str]) -> tuple[str, ...]:
    """The files of fonts, beside DejaVu Sans, that have the characters of `names`.

    Names with a character that no font has are logged once.
    """
    names = list(map(printable, names))
    files, missing = _fonts_for(frozenset(character for name in names for character in name if _is_visible(character)))
    untold = [name for name in dict.fromkeys(names) if not missing.isdisjoint(name) and name not in _told]
    if untold:
        _told.update(untold)
        logger.warning(
            f"no installed font has all characters of {some(untold, _MOST_NAMED)}: in plots there are boxes in their "
            "place. Noto's fonts have them (fonts-noto-core and fonts-noto-cjk on Debian and Ubuntu)"
        )
    return files


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) != "Cf" and ord(character) not in _VARIANTS


@lru_cache
def _fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The files of fonts for what DejaVu Sans lacks, and the characters that none has."""
    missing = characters - _having(FT2Font(font_manager.findfont(_BASE)), characters)
    files, fonts = [], _installed_fonts(missing) if missing else {}
    while missing and fonts:
        best = max(fonts, key=lambda file: len(fonts[file] & missing))
        if there := fonts.pop(best) & missing:
            files.append(best)
            missing -= there
    return tuple(files), missing


def _installed_fonts(characters: frozenset[str]) -> dict[str, frozenset[str]]:
    """By file, which of the characters it has; upright ones without serifs first.

    Not from matplotlib's list of them, which it keeps on the disk, so that a font installed since is not in it.
    """
    found = []
    for file in font_manager.findSystemFonts():
        try:
            font = FT2Font(file)
        except (OSError, RuntimeError):  # a file of that name which is no font
            continue
        name = font.family_name.replace(" ", "").lower()
        having = _having(font, characters)
        # One of bitmaps has no outlines to draw, and one of last resort a box for everything.
        if having and font.scalable and "lastresort" not in name:
            found.append((font.style_name not in ("Regular", "Book"), "sans" not in name, file, having))
    return {file: having for *_, file, having in sorted(found, key=lambda entry: entry[:3])}


def _having(font: FT2Font, characters: Iterable[str]) -> frozenset[str]:
    return frozenset(character for character in characters if font.get_char_index(ord(character)))


@lru_cache
def _family(file: str) -> str:
    """The name by which matplotlib knows a font."""
    font_manager.fontManager.addfont(file)
    return font_manager.FontProperties(fname=file).get_name()
