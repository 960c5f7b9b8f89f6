"""Sizes as people write them: K, M, G and T are binary, ``64MiB`` is ``64M``."""

import re

from hmmfs.errors import UsageError

K, M, G, T = (1 << shift for shift in (10, 20, 30, 40))
PAGE = 4 * K
BLOCK = 2 * M
LARGEST = 16 * T  # of a region

_FACTORS = {"": 1, "K": K, "M": M, "G": G, "T": T}
_SIZE = re.compile(r"(\d{1,20})([KMGT]?)(?:(?<=[KMGT])IB)?", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes in ``text``: a whole number, then nothing or one of K, M, G, T (or KiB, MiB, ...)."""
    match = _SIZE.fullmatch(text.strip().upper())
    if not match:
        raise UsageError(
            f'"{text[:80]}" is not a size. Give a whole number of bytes, or one with K, M, G or T.'
        )
    return int(match[1]) * _FACTORS[match[2]]


def format_size(count: int) -> str:
    """The shortest exact form, which parse_size reads back: ``64M``, ``1G``, ``4100``."""
    for suffix in ("T", "G", "M", "K"):
        if count and count % _FACTORS[suffix] == 0:
            return f"{count // _FACTORS[suffix]}{suffix}"
    return str(count)
