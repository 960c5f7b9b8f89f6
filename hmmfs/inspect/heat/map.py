"""`hmmfs map`: which region is meant, and its heat map as text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from hmmfs.common import mountinfo
from hmmfs.common.names import printable
from hmmfs.common.units import PAGE, format_size
from hmmfs.errors import UsageError
from hmmfs.inspect.heat.heat import (
    NOTHING,
    OWNER,
    SEVERAL,
    UNITS,
    Detail,
    Heat,
    by_node,
    heat,
    node_of,
    per_row,
)
from hmmfs.inspect.mount.mounts import choose
from hmmfs.inspect.mount.words import grouped, pages, size

PICTURES = (".png", ".svg")
ROWS = 64
ADDRESS = 14  # characters: 12 hexadecimal digits and two blanks
OWNER_STYLES = (
    *("green", "blue", "magenta", "cyan", "yellow", "red"),
    *("bright_green", "bright_blue", "bright_magenta", "bright_cyan", "bright_yellow"),
    *("bright_red", "dark_orange", "purple", "deep_pink4"),
)
LEVEL_STYLES = ("", *("blue",) * 3, *("yellow",) * 3, *("red",) * 2, "bold red")


def parse_place(words: Sequence[str]) -> tuple[str, str]:
    """The mount's directory and the region's name of ``REGION``, ``DIR REGION`` or
    ``DIR/regions/NAME``. HmmfsError: there is no such mount. UsageError: it is none of these."""
    if len(words) > 2:
        raise UsageError("Give one region, or the directory of a mount and one region.")
    *directory, region = words
    if directory:
        point = choose(directory[0])
    elif "/" in region:
        point, region = _path(region)
    else:
        point = choose(None)
    if "/" in region or region in ("", ".", ".."):
        raise UsageError(
            f'"{printable(region)}" is not a region\'s name: give one as in DIR/regions.'
        )
    return point, region


def picture_ending(path: str) -> str:
    """``.png`` or ``.svg``. UsageError: it is neither."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in PICTURES:
        raise UsageError(f"{printable(path)} ends in neither .png nor .svg. Give a picture's name.")
    return ending


def show(detail: Detail, by: str) -> None:
    """To stdout, as wide as the terminal is."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in lines(detail, by, console.width):
        console.print(line)


def lines(detail: Detail, by: str, width: int) -> Iterator[Text]:
    """Title, rows, legend, counts."""
    row = per_row(width - ADDRESS)
    found = heat(detail, by, row * ROWS)
    yield Text(f"Region {printable(detail['name'])}, {size(detail['size'])}, by {by}")
    yield Text(f"A character is {format_size(found.pages * PAGE)}.")
    yield from _rows(found, row, by)
    yield legend(found, by)
    yield Text(counts(detail))


def styled(cells: str, by: str) -> Text:
    """Cells in the colours of their owners or counts."""
    text = Text(no_wrap=True)
    for cell in cells:
        text.append(cell, style(cell, by))
    return text


def style(cell: str, by: str) -> str:
    if cell in (NOTHING, " "):
        return "dim"
    if by != OWNER:
        return LEVEL_STYLES[int(cell)]
    if cell == SEVERAL:
        return "bold"
    return "reverse" if cell == "h" else f"reverse {OWNER_STYLES[int(cell, 16)]}"


def legend(found: Heat, by: str) -> Text:
    """What every character there is means."""
    if by != OWNER:
        return _scale(found, by)
    text = Text()
    for cell in sorted(set(found.cells), key=lambda cell: "h0123456789abcde+.".index(cell)):
        meaning = {NOTHING: "nothing", SEVERAL: "several nodes"}.get(cell) or node_of(cell)
        text.append(cell, style(cell, by)).append(f" {meaning}  ")
    text.rstrip()
    return text


def counts(detail: Detail) -> str:
    """Pages of each node, which are those of the region's residency."""
    nodes = by_node(detail)
    if not nodes:
        return "No page is anywhere: nobody has touched the region."
    return ", ".join(f"{node}: {pages(count)}" for node, count in nodes.items())


def _path(path: str) -> tuple[str, str]:
    """Of DIR/regions/NAME: DIR's mount, NAME. Looks only at what is mounted where."""
    directory, name = os.path.split(path)
    above, regions = os.path.split(mountinfo.resolve(directory or "."))
    if regions != "regions" or mountinfo.find_hmmfs(above) is None:
        raise UsageError(
            f"{printable(path)} is not a region. Give a name, or a path as in DIR/regions/NAME."
        )
    return choose(above), name


def _rows(found: Heat, row: int, by: str) -> Iterator[Text]:
    """With addresses; rows of nothing are one line with a star, as in a hex dump."""
    skipping = False
    for start in range(0, len(found.cells), row):
        cells = found.cells[start : start + row]
        if not cells.strip(NOTHING):
            if not skipping:
                yield Text("*")
            skipping = True
            continue
        skipping = False
        yield Text(f"{start * found.pages * PAGE:012x}  ").append_text(styled(cells, by))


def _scale(found: Heat, by: str) -> Text:
    unit = UNITS[by]
    if not found.most:
        return Text(f". no {unit} anywhere")
    return Text(
        f". none, 1 to 9: ninths of the most, {grouped(found.most)} {unit} in "
        f"{format_size(found.pages * PAGE)}"
    )
