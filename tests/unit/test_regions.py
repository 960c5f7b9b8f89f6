"""The table of regions: what a refused change leaves."""

from __future__ import annotations

import errno

import pytest

from hmmfs.errors import HmmfsError
from hmmfs.memory import Core, RegionTable, regions


def test_a_name_too_many_leaves_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a name that nobody uses would never go."""
    monkeypatch.setattr(regions, "MAX_NAMES", 2)
    core = Core([16, 16])
    try:
        table = RegionTable(core)
        first = table.create(b"a", 0o100644, 0, 0)
        table.link(first, b"b")
        for _ in range(3):
            with pytest.raises(HmmfsError, match="at most 2 names") as caught:
                table.create(b"c", 0o100644, 0, 0)
            assert caught.value.errno == errno.ENOSPC
        assert table.regions == 1
        assert not table.has_nameless()
    finally:
        core.close()
