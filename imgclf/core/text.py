"""Text for people: counts, shares and sizes in words, names that fit, control characters spelt out."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence

LONGEST = 120  # characters of a text that may be a hostile file's, in a message


def plural(count: int, noun: str) -> str:
    """`1 image`, `1,797 images`, `2 classes`."""
    return f"{count:,} {noun if count == 1 else noun + ('es' if noun.endswith('s') else 's')}"


def percent(share: float, digits: int = 1) -> str:
    """0.98123 as `98.1%`."""
    return f"{100 * share:.{digits}f}%"


def percent_range(low: float, high: float) -> str:
    """An interval of shares: 0.8888 and 0.9331 as `88.9–93.3%`."""
    return f"{100 * low:.1f}–{percent(high)}"


def first_few(names: Sequence[str], most: int = 5) -> str:
    """Names on one printable line: `a, b, c`, or the first ones and a count: `a, b, c, d, e and 7 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 45 as `45 s`, 1,678 as `28 min`, 9,000 as `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def byte_size(count: float) -> str:
    """A number of bytes in decimal units: 62,000,000 as `62 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} bytes"


def shorten(text: str, most: int = LONGEST) -> str:
    """The start of a text, at most `most` characters with the ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    """`text` on one line, with control characters and broken encoding spelt out: a newline as `\\n`, ESC as `\\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def one_line(error: BaseException) -> str:
    """An error as one printable line; its type where it has no text."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def natural(text: str) -> tuple[str, bytes]:
    """A key that sorts names as people count: IMG_2 before IMG_10; the bytes decide between IMG_2 and IMG_02."""
    return re.sub(r"[0-9]+", lambda digits: _counted(digits[0].lstrip("0")), text), os.fsencode(text)


def _counted(number: str) -> str:
    """The digits of a number after how many there are: a longer number is a larger one."""
    return f"{len(number):04}{number}"


def nfc(name: str) -> str:
    """The form in which names are compared: `é` is one letter, whether it was stored as one or as `e` and an accent."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
