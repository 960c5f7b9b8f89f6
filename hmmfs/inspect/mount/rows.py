"""The look of tables for people: words to the left, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from hmmfs.common.names import printable


def table(title: str, *headings: str, words: Sequence[str] = ()) -> Table:
    """Columns of numbers, but for those named in ``words``."""
    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        found.add_column(heading, justify="left" if heading in words else "right", overflow="fold")
    return found


class Rows:
    """A table of many rows. Where all of it fits each row is one line: rich takes 1 ms for a row of
    cells, which it measures, wraps and pads, and 20 us for a line."""

    def __init__(self, title: str, headings: Sequence[str], words: Sequence[str]) -> None:
        self._title, self._headings, self._words = title, headings, words
        self._rows: list[list[str]] = []

    def add(self, cells: Sequence[str]) -> None:
        self._rows.append([printable(cell) for cell in cells])

    def table(self) -> Table:
        found = table(self._title, *self._headings, words=self._words)
        for row in self._rows:
            found.add_row(*map(Text, row))
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = zip(self._headings, *self._rows, strict=True)
        widths = [max(map(cell_len, column)) for column in columns]
        if sum(widths) + 2 * len(widths) > options.max_width:
            yield self.table()
            return
        # The frame is rich's own, of a table with one row that is as wide.
        frame = Rows(self._title, self._headings, self._words)
        frame.add(["x" * width for width in widths])
        *head, _, foot = console.render_lines(frame.table(), options)
        for line in head:
            yield from line
            yield Segment.line()
        for row in self._rows:
            cells = (
                cell + " " * (width - cell_len(cell))
                if heading in self._words
                else " " * (width - cell_len(cell)) + cell
                for cell, width, heading in zip(row, widths, self._headings, strict=True)
            )
            yield Segment(f" {'  '.join(cells)}")
            yield Segment.line()
        yield from foot
        yield Segment.line()
