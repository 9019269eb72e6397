# SPDX-License-Identifier: Apache-2.0
"""Names in pictures: drawn as they are, in any script that the fonts of the machine have.

DejaVu Sans, which comes with matplotlib, has accents and most alphabets, Arabic's as well. For what it lacks, such as
Chinese, Japanese, Korean and Hindi, the machine's own fonts are looked through.
"""

import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont
from transformers.utils import logging

from .text import printable


logger = logging.get_logger(__name__)

# Of a drawing: a picture that cannot be written; one too large, or a text that cannot be laid out; a font that FreeType
# refuses.
DRAWING_ERRORS = (OSError, ValueError, RuntimeError)

_BASE = "DejaVu Sans"
_MOST_NAMED = 10
_VARIANTS = range(0xFE00, 0xFE10)  # selectors of a character's form, invisible

_font_of: dict[str, str | None] = {}  # by character, the file of a font that has it
_told: set[str] = set()  # names with characters that no font has


@contextmanager
def told_if_not_drawn(path: str | os.PathLike) -> Iterator[None]:
    """A picture that cannot be drawn is no reason to lose what it is of: why is logged, and all else goes on."""
    try:
        yield
    except DRAWING_ERRORS as error:
        logger.warning(f"{printable(str(path))} is not drawn: {printable(str(error))}")


@contextmanager
def plain_text(names: Iterable[str]) -> Iterator[None]:
    """While a matplotlib figure is made and saved: none of its texts is read as TeX, fonts are those that `names` need.

    What no font has is told by [`find_fonts`], in place of matplotlib's warning for each glyph.
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


def find_fonts(names: Iterable[str]) -> list[str]:
    """The files of fonts, beside DejaVu Sans, that have the characters of `names`.

    Names with a character that no font has are logged once. Drawing many names is faster when they were given here
    together first.
    """
    names = list(map(printable, names))
    characters = {character for name in names for character in name if _is_visible(character)}
    _look_for(characters)
    missing = {character for character in characters if _font_of[character] is None}
    untold = [name for name in dict.fromkeys(names) if not missing.isdisjoint(name) and name not in _told]
    if untold:
        _told.update(untold)
        more = f" and {len(untold) - _MOST_NAMED} more" if len(untold) > _MOST_NAMED else ""
        logger.warning(
            f"no installed font has all characters of {', '.join(untold[:_MOST_NAMED])}{more}: in pictures there are "
            "boxes in their place. Noto's fonts have them (fonts-noto-core and fonts-noto-cjk on Debian and Ubuntu)"
        )
    found = dict.fromkeys(_font_of[character] for character in sorted(characters - missing))
    return [file for file in found if file != _base_file()]


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) != "Cf" and ord(character) not in _VARIANTS


def _look_for(characters: set[str]) -> None:
    """Choose fonts for characters: DejaVu Sans, then those of the machine that have most of the rest."""
    missing = characters - _font_of.keys()
    if not missing:
        return
    there = _having(FT2Font(_base_file()), missing)
    _font_of.update(dict.fromkeys(there, _base_file()))
    missing -= there
    fonts = _installed_fonts(missing) if missing else {}
    while missing and fonts:
        best = max(fonts, key=lambda file: len(fonts[file] & missing))
        there = fonts.pop(best) & missing
        _font_of.update(dict.fromkeys(there, best))
        missing -= there
    _font_of.update(dict.fromkeys(missing))


def _installed_fonts(characters: set[str]) -> dict[str, set[str]]:
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


def _having(font: FT2Font, characters: Iterable[str]) -> set[str]:
    return {character for character in characters if font.get_char_index(ord(character))}


@lru_cache
def _base_file() -> str:
    return font_manager.findfont(_BASE)


@lru_cache
def _family(file: str) -> str:
    """The name by which matplotlib knows a font."""
    font_manager.fontManager.addfont(file)
    return font_manager.FontProperties(fname=file).get_name()


# ---- With Pillow, which draws a text with one font ----


@lru_cache
def _pillow_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def _parts(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """`text` in parts that one font draws each, left to right."""
    text = printable(text)
    _look_for(set(filter(_is_visible, text)))
    parts: list[tuple[str, str]] = []
    for character in text:
        file = _font_of.get(character) or _base_file()
        # What belongs to the letter before it is shaped with it.
        attached = not _is_visible(character) or unicodedata.category(character).startswith("M")
        if parts and (attached or parts[-1][1] == file):
            parts[-1] = (parts[-1][0] + character, parts[-1][1])
        else:
            parts.append((character, file))
    return [(part, _pillow_font(file, size)) for part, file in parts]


def text_width(text: str, size: int) -> float:
    """In pixels, of letters of `size` pixels."""
    return sum(font.getlength(part) for part, font in _parts(text, size))


def draw_text(
    canvas: ImageDraw.ImageDraw, place: Sequence[float], text: str, colour: str, size: int, anchor: str = "la"
) -> None:
    """Draw a name on one line.

    Args:
        canvas: what to draw on.
        place: (x, y), in pixels, of the anchor.
        text: what to draw.
        colour: of it.
        size: of the letters, in pixels.
        anchor: "l" or "r", left or right end of the text, and "a" or "m", top or middle of the line.
    """
    left, top = place
    ascent, descent = _pillow_font(_base_file(), size).getmetrics()
    baseline = top + ascent if anchor[1] == "a" else top + (ascent - descent) / 2
    if anchor[0] == "r":
        left -= text_width(text, size)
    for part, font in _parts(text, size):
        canvas.text((left, baseline), part, fill=colour, font=font, anchor="ls")
        left += font.getlength(part)
