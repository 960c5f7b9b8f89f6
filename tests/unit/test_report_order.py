"""In which order the page of hmmfs report has blocks and regions: the busiest first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hmmfs.inspect.report.report import _blocks, _names
from hmmfs.inspect.report.summary import Summary


def summary(blocks: dict[tuple[str, int], tuple[int, int, int]], *names: str) -> Summary:
    """blocks: moves, faults and evictions of each; names: regions that a sample has."""
    made: Any = SimpleNamespace(
        blocks={
            key: SimpleNamespace(moves=moves, faults=faults, evictions=evictions)
            for key, (moves, faults, evictions) in blocks.items()
        },
        shown_samples=lambda: [SimpleNamespace(regions=dict.fromkeys(names))],
    )
    return cast(Summary, made)


def test_blocks() -> None:
    found = _blocks(
        summary(
            {
                ("idle", 0): (0, 1, 9),
                ("b", 1): (2, 3, 0),
                ("b", 0): (2, 3, 0),
                ("a", 7): (2, 3, 1),
                ("faults", 0): (0, 6, 0),
                ("moves", 0): (7, 0, 0),
            }
        )
    )
    order = [("moves", 0), ("faults", 0), ("a", 7), ("b", 0), ("b", 1), ("idle", 0)]
    assert [(each["region"], each["block"]) for each in found] == order
    assert found[2] == {"region": "a", "block": 7, "moves": 2, "faults": 3, "evictions": 1}


def test_regions() -> None:
    """By what all of their blocks do; those that do nothing by name."""
    found = _names(
        summary(
            {
                ("two", 0): (2, 1, 0),
                ("two", 1): (1, 2, 0),
                ("one", 0): (0, 5, 0),
                ("gone", 0): (9, 9, 9),
            },
            *("z", "two", "one", "a"),
        )
    )
    assert found == ["two", "one", "a", "z"]
