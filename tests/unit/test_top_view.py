"""What `hmmfs top` draws, page by page."""

from __future__ import annotations

from typing import Any

import pytest

from hmmfs.common.units import PAGE
from hmmfs.inspect.smi.query import Earlier
from hmmfs.inspect.top.view import View, _rate, _vram, bar


def region(name: str, **pages: int) -> dict[str, Any]:
    return {"name": name, "residency": {f"pages_{node}": count for node, count in pages.items()}}


def drawn(regions: list[dict[str, Any]], used: int, total: int, cells: int) -> str:
    device = {"name": "dev0", "vram": {"used": used * PAGE, "total": total * PAGE}}
    view = View({"regions": regions, "devices": [device]})
    return _vram(view, device, cells).plain


def test_each_region_has_its_letter_in_vram() -> None:
    regions = [region("b", dev0=2, dev1=5), region("a", dev0=1, host=3)]
    assert drawn(regions, 3, 4, 4) == "[abb.]"
    assert drawn(regions, 3, 8, 8) == "[abb.....]"


def test_pages_of_no_region_with_a_name() -> None:
    assert drawn([], 1, 2, 2) == "[?.]"
    assert drawn([region("a", dev0=1)], 2, 4, 4) == "[a?..]"
    assert drawn([region("a", dev0=2)], 1, 4, 4) == "[aa..]"  # one of the counts is older


@pytest.mark.parametrize(
    ("shares", "whole", "said"),
    [
        ([], 0, "[....]"),
        ([0], 4, "[....]"),
        ([4], 4, "[aaaa]"),
        ([1, 1, 1, 1], 4, "[abcd]"),
        ([1, 7], 16, "[bb..]"),
        ([1000], 4, "[aaaa]"),
    ],
)
def test_bar(shares: list[int], whole: int, said: str) -> None:
    parts = [("abcd"[at], "", share) for at, share in enumerate(shares)]
    assert bar(parts, whole, 4).plain == said


def test_a_rate_is_of_the_number_at_the_end_of_the_keys() -> None:
    now, then = ({"faults": {"total": n, "read": 7}} for n in (30, 10))
    assert _rate(now, Earlier(then, 2.0), "faults", "total") == 10.0
    assert _rate(now, Earlier({}, 2.0), "faults", "total") == 0.0
    assert _rate(now, None, "faults", "total") == 0.0
