"""Words that others chose, such as names of classes and files, in a line, a page or a figure."""

from __future__ import annotations

import itertools
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_LABEL = 24  # a figure is as wide as a phone
# Control and format characters, half surrogates (bytes of a file name that are no UTF-8), ends of lines and paragraphs.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # format characters that words and emoji are written with


def printable(text: str) -> str:
    r"""``text`` with what is not seen, moves the cursor or turns the direction of reading escaped: ``\n``, ``\x1b``."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _HIDDEN and c not in _JOINERS else c
        for c in text
    )


def shortened(name: str, longest: int = 40) -> str:
    """A name as a page shows it: :func:`printable`, no wider than ``longest`` Latin letters, the middle left out."""
    shown = printable(name)
    if sum(map(_width, shown)) <= longest:
        return shown
    half = (longest - 1) // 2
    return f"{_beginning(shown, half)}…{_beginning(shown[::-1], half)[::-1]}"


def _width(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _beginning(text: str, longest: int) -> str:
    widths = itertools.accumulate(map(_width, text))
    return "".join(c for c, width in zip(text, widths, strict=True) if width <= longest)


def label(name: str) -> str:
    """A name as matplotlib takes it for text and nothing else: no formula between dollars, no leading underscore, which
    would keep it out of a legend."""
    shown = shortened(name, _LONGEST_LABEL).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def choose_fonts(figure: Figure) -> None:
    """Gives each text of a figure, after its own font, installed ones for the characters which that one lacks."""
    from matplotlib.font_manager import findfont
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        own = _characters(findfont(text.get_fontproperties()))
        if families := _families(frozenset(text.get_text()) - own):
            text.set_fontfamily(["sans-serif", *families])


@cache
def _characters(path: str) -> frozenset[str]:
    """The characters that a font file can draw."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap())) | {"\n"}
    except RuntimeError:  # coloured bitmaps, which matplotlib does not draw
        return frozenset()


@cache
def _families(missing: frozenset[str]) -> tuple[str, ...]:
    """Families of installed fonts that together have as many of the characters as any have."""
    from matplotlib.font_manager import fontManager

    families = []
    for font in sorted(fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400, font.fname)):
        if not missing:
            break
        if found := missing & _characters(font.fname):
            families.append(font.name)
            missing -= found
    return tuple(families)
