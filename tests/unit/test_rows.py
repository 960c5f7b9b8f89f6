"""A table of many rows looks like any other."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hmmfs.inspect.mount.rows import Rows


@pytest.mark.parametrize("width", [160, 60, 30])
@pytest.mark.parametrize(
    "names", [["a"], ["r1", "gr\u00f6\u00dfe \u9875", "x" * 20], ["y" * 45, "b"]]
)
def test_rows_are_laid_out_as_a_table(names: list[str], width: int) -> None:
    rows = Rows("Regions", ("region", "size", "pages by node"), ("region", "pages by node"))
    for name in names:
        rows.add([name, "4K", "host=1 dev0=2"])
    shown = []
    for what in (rows, rows.table()):
        console = Console(file=io.StringIO(), width=width)
        console.print(what, highlight=False)
        assert isinstance(console.file, io.StringIO)
        shown.append([line.rstrip() for line in console.file.getvalue().splitlines()])
    assert shown[0] == shown[1]
    assert len(shown[0]) > len(names)
