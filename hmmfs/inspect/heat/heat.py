"""A region's address space as a row of cells: who owns them, how many pages or faults they have.

A cell is a power of two of pages, and a character: for owners those of ``state/NAME/map``, for
counts a digit. What has another colour has another character, too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hmmfs.common.names import printable
from hmmfs.common.units import BLOCK, PAGE
from hmmfs.errors import HmmfsError
from hmmfs.inspect.mount.reading import PATIENCE_S, Values, ask, text, values

NOTHING, SEVERAL = ".", "+"
LEVELS = 9
BLOCK_PAGES = BLOCK // PAGE
OWNER = "owner"
# What blocks are counted by, and the columns of state/NAME/blocks that add up to it.
COUNTS = {
    "dirty": ("dirty",),
    "faults": ("cpu_faults", "device_faults"),
    "evictions": ("evictions",),
}
KINDS = (OWNER, *COUNTS)
UNITS = {"dirty": "dirty pages", "faults": "faults", "evictions": "evictions"}

Detail = dict[str, Any]


@dataclass(frozen=True)
class Heat:
    """``cells`` has a character for every ``pages`` pages; ``most`` is what the digit 9 stands for,
    0 where characters are owners."""

    pages: int
    cells: str
    values: tuple[int, ...] = ()
    most: int = 0


def read_region(path: str, name: str, patience_s: float = PATIENCE_S) -> Detail:
    """What ``state/NAME`` of the mount on ``path`` says page by page. HmmfsError: no such region.

    ``map`` has `pages` a character and `rows` of (first byte, characters, pages by node);
    ``blocks`` a dictionary for each block that was ever touched.
    """
    found = ask(path, lambda point: _collect(point, name), patience_s)
    if found is None:
        raise HmmfsError(
            errno.ENOENT, f"There is no region {printable(name)} on {printable(path)}."
        )
    return dict(found)


def heat(detail: Detail, by: str, limit: int) -> Heat:
    """At most ``limit`` cells (1 at least), by one of KINDS. Counts are known block by block, so
    their cells are blocks at least."""
    finest = detail["map"]["pages"] if by == OWNER else BLOCK_PAGES
    pages = _cell(detail["size"], finest, limit)
    return _owners(detail, pages) if by == OWNER else _counts(detail, by, pages)


def by_node(detail: Detail) -> dict[str, int]:
    """Pages of every node that has any, as the map counts them."""
    found: dict[str, int] = {}
    for _, _, nodes in detail["map"]["rows"]:
        for node, count in nodes.items():
            found[node] = found.get(node, 0) + count
    return found


def node_of(character: str) -> str | None:
    """The node that a character of the map stands for, if for one."""
    if character == "h":
        return "host"
    return None if character in (NOTHING, SEVERAL) else f"dev{int(character, 16)}"


def per_row(width: int, most: int = 1 << 12) -> int:
    """How many cells a row of so many characters has: a power of two, so that rows begin at round
    addresses."""
    return 1 << (max(1, min(width, most)).bit_length() - 1)


def parse_map(said: str) -> Detail:
    first, *rows = said.rstrip("\n").split("\n")
    return {"pages": int(first.split(" is ")[1].split(" ")[0]), "rows": [_row(row) for row in rows]}


def parse_blocks(said: str) -> list[Values]:
    first, *rows = said.rstrip("\n").split("\n")
    names = first.removeprefix("#").split()
    return [dict(zip(names, map(int, row.split()), strict=True)) for row in rows]


def _collect(point: str, name: str) -> Detail | None:
    try:
        residency = values(point, "state", name, "residency")
        region_map = text(point, "state", name, "map")
        blocks = text(point, "state", name, "blocks")
    except FileNotFoundError:
        if os.path.exists(os.path.join(point, "version")):
            return None
        raise
    if not (residency and region_map and blocks):  # removed meanwhile: they say nothing then
        return None
    return {
        "name": name,
        "size": int(residency["size"]),
        "residency": residency,
        "map": parse_map(region_map),
        "blocks": parse_blocks(blocks),
    }


def _row(row: str) -> tuple[int, str, dict[str, int]]:
    offset, characters, *nodes = row.split()
    counts = (node.split("=", 1) for node in nodes)
    return int(offset, 16), characters, {node: int(count) for node, count in counts}


def _cell(size: int, finest: int, limit: int) -> int:
    pages = finest
    while _count(size, pages) > max(1, limit):
        pages *= 2
    return pages


def _count(size: int, pages: int) -> int:
    return -(-size // (pages * PAGE))


def _owners(detail: Detail, pages: int) -> Heat:
    fine = detail["map"]["pages"]
    owners: list[set[str]] = [set() for _ in range(_count(detail["size"], pages))]
    for cell, character in _characters(detail, fine):
        if character != NOTHING and cell * fine // pages < len(owners):
            owners[cell * fine // pages].add(character)
    return Heat(pages, "".join(map(_together, owners)))


def _characters(detail: Detail, fine: int) -> Iterator[tuple[int, str]]:
    for offset, characters, _ in detail["map"]["rows"]:
        yield from enumerate(characters, offset // (fine * PAGE))


def _together(owners: set[str]) -> str:
    if len(owners) > 1:
        return SEVERAL
    return next(iter(owners), NOTHING)


def _counts(detail: Detail, by: str, pages: int) -> Heat:
    counts = [0] * _count(detail["size"], pages)
    for block in detail["blocks"]:
        cell = int(block["block"]) * BLOCK_PAGES // pages
        if cell < len(counts):
            counts[cell] += sum(int(block[key]) for key in COUNTS[by])
    most = max(counts, default=0)
    return Heat(pages, "".join(map(_digit(most), counts)), tuple(counts), most)


def _digit(most: int) -> Callable[[int], str]:
    """0 is a dot; anything else one of nine equal steps to the most."""
    return lambda count: str(-(-LEVELS * count // most)) if count else NOTHING
