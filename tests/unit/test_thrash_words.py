"""How long ago something thrashed, in words."""

from __future__ import annotations

import pytest

from hmmfs.inspect.mount.thrash import _ago


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s ago"),
        (2.26, "2.3 s ago"),
        (99.9, "99.9 s ago"),
        (100, "2 min ago"),
        (600, "10 min ago"),
        (7200, "120 min ago"),
    ],
)
def test_ago(seconds: float, said: str) -> None:
    assert _ago({"seconds_ago": seconds}) == said
