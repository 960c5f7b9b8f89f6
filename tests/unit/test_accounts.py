"""What the audit of a mount's numbers takes for wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from hmmfs.inspect.mount.accounts import _nodes


@pytest.mark.parametrize(
    ("came", "regions", "wrong"),
    [(5, 1, False), (4, 1, True), (6, 1, True), (6, 2, False), (4, 2, True), (5, 2, False)],
)
def test_what_regions_without_a_name_may_have(came: int, regions: int, wrong: bool) -> None:
    """Of 5 pages 2 went, and 3 are in the one region that has a name."""
    book = Counter(populated_pages=came, dropped_pages=2)
    checks = list(_nodes(["host"], Counter(regions=regions), {"host": book}, [{"pages_host": 3}]))
    assert [one != other for _, one, other in checks] == [wrong] + [False] * (len(checks) - 1)
