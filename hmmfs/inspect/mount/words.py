"""Numbers as people read them."""

from __future__ import annotations

from hmmfs.common.units import PAGE

_DECIMAL = ("", "k", "M", "G", "T", "P")


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
