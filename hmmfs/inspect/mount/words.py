"""Names and numbers as people read them; names of regions may hold any byte but "/" and NUL."""

from __future__ import annotations

import os
import re
import shlex

from hmmfs.common.units import PAGE

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_DECIMAL = ("", "k", "M", "G", "T", "P")


def unescape(text: str) -> str:
    r"""A name as os.fsdecode gives it, from one in which bytes may stand as \ooo."""
    if "\\" not in text:
        return text
    return os.fsdecode(
        _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), os.fsencode(text))
    )


def printable(name: str) -> str:
    r"""The name in characters that every terminal, file and page can hold.

    Control characters, backslashes and bytes that are not UTF-8 become \ooo, which unescape reads
    back; blanks stay.
    """
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(_shown(character) for character in name)


def _shown(character: str) -> str:
    if character == "\\" or not character.isprintable():
        return "".join(f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape"))
    return character


def quoted(name: str) -> str:
    """A name as one word for a shell: bash's ``$'…'`` where plain quotes would not show it all."""
    if name.isprintable():
        return shlex.quote(name)
    return "$'" + printable(name).replace("'", "\\'") + "'"


def size(count: float) -> str:
    """Bytes with three or four digits: ``512 B``, ``48 MiB``, ``1.25 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{_short(count)} {unit}"
        count /= 1024
    return f"{_short(count)} TiB"


def pages(count: int) -> str:
    """``1 page (4 KiB)``, ``12 288 pages (48 MiB)``."""
    return f"{grouped(count)} page{'s' * (count != 1)} ({size(count * PAGE)})"


def grouped(count: int) -> str:
    """``12 288``."""
    return f"{count:,}".replace(",", " ")


def brief(count: float) -> str:
    """At most five characters, decimal: ``0``, ``9999``, ``12.3k``, ``412M``."""
    if count < 10_000:
        return _short(count)
    for unit in _DECIMAL:
        if count < 999.5:
            return f"{_short(count)}{unit}"
        count /= 1000
    return f"{_short(count)}E"


def duration(nanoseconds: int) -> str:
    """``750 ns``, ``12.5 us``, ``3.2 ms``, ``7.01 s``, ``2 h 03 min``."""
    value = float(nanoseconds)
    for unit in ("ns", "us", "ms"):
        if value < 1000:
            return f"{_short(value)} {unit}"
        value /= 1000
    if value < 100:
        return f"{_short(value)} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _short(value: float) -> str:
    """Up to two digits behind the point, as far as three digits in all reach."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
