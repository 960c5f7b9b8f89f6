"""What the built-in policies choose."""

import numpy as np
import pytest

from hmmfs import policy
from hmmfs.errors import UsageError
from hmmfs.memory import BLOCK_PAGES, CANDIDATE_DTYPE
from hmmfs.policy.placement import BUILT_IN as PLACEMENTS


@pytest.mark.parametrize(
    ("name", "touched", "faults", "window"),
    [
        ("none", (37, 1), 1, (37, 1)),
        ("none", (37, 5), 9, (37, 5)),
        ("grow", (37, 1), 1, (32, 16)),
        ("grow", (37, 1), 2, (0, 64)),
        ("grow", (37, 1), 3, (0, 512)),
        ("grow", (37, 1), 200, (0, 512)),
        ("grow", (15, 2), 1, (0, 32)),
        ("grow", (511, 1), 1, (496, 16)),
        ("block", (37, 1), 1, (0, 512)),
    ],
)
def test_windows(name: str, touched: tuple[int, int], faults: int, window: tuple[int, int]) -> None:
    assert policy.placement(name).window(*touched, faults) == window


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_the_express_path_follows_the_same_table(kind: type[policy.PlacementPolicy]) -> None:
    placement = kind()
    table = placement.table()
    assert table is not None
    for faults in range(1, 6):
        for page in range(BLOCK_PAGES):
            first, count = placement.window(page, 1, faults)
            assert first <= page < first + count <= BLOCK_PAGES
            assert count == table[min(faults, 4) - 1]


def candidates(*rows: tuple[int, int]) -> np.ndarray:
    """(last_device, last_migrated) of each."""
    found = np.zeros(len(rows), dtype=CANDIDATE_DTYPE)
    for row, (used, migrated) in zip(found, rows, strict=True):
        row["last_device"], row["last_migrated"] = used, migrated
    return found


def test_lru_evicts_what_was_used_longest_ago() -> None:
    found = candidates((30, 1), (10, 2), (20, 3))
    assert list(policy.eviction("lru").order(found)) == [1, 2, 0]


def test_lru_keeps_what_was_fetched_and_not_used_yet() -> None:
    found = candidates((10, 1), (0, 40))
    assert list(policy.eviction("lru").order(found)) == [0, 1]


def test_lrm_evicts_what_came_first() -> None:
    found = candidates((10, 3), (20, 1), (30, 2))
    assert list(policy.eviction("lrm").order(found)) == [1, 2, 0]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="none, grow, block"):
        policy.placement("psychic")
    with pytest.raises(UsageError, match="lru, lrm"):
        policy.eviction("psychic")
