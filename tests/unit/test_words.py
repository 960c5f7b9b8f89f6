"""Numbers as people read them, to the last digit."""

from __future__ import annotations

import pytest

from hmmfs.inspect.mount import words


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0"),
        (7, "7"),
        (0.5, "0.5"),
        (12.54, "12.5"),
        (999, "999"),
        (1000, "1000"),
        (9999, "9999"),
        (10_000, "10k"),
        (12_340, "12.3k"),
        (999_400, "999k"),
        (999_600, "1M"),
        (9_990_000, "9.99M"),
        (9_996_000, "10M"),
        (99_900_000, "99.9M"),
        (99_960_000, "100M"),
        (412_000_000, "412M"),
        (5 * 10**9, "5G"),
        (5 * 10**12, "5T"),
        (5 * 10**15, "5P"),
        (5 * 10**18, "5E"),
    ],
)
def test_brief(count: float, said: str) -> None:
    assert words.brief(count) == said
    assert len(said) <= 5


@pytest.mark.parametrize(
    ("nanoseconds", "said"),
    [
        (0, "0 ns"),
        (750, "750 ns"),
        (999, "999 ns"),
        (1000, "1 us"),
        (9_250, "9.25 us"),
        (9_994, "9.99 us"),
        (9_996, "10 us"),
        (12_500, "12.5 us"),
        (99_940, "99.9 us"),
        (99_960, "100 us"),
        (3_200_000, "3.2 ms"),
        (7_010_000_000, "7.01 s"),
        (99_900_000_000, "99.9 s"),
        (100_000_000_000, "1 min 40 s"),
        (119_600_000_000, "2 min 00 s"),
        (3_599_000_000_000, "59 min 59 s"),
        (3_600_000_000_000, "1 h 00 min"),
        (7_380_000_000_000, "2 h 03 min"),
    ],
)
def test_duration(nanoseconds: int, said: str) -> None:
    assert words.duration(nanoseconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (48 << 20, "48 MiB"),
        (5 << 28, "1.25 GiB"),
        (1 << 40, "1 TiB"),
        (2000 << 40, "2000 TiB"),
    ],
)
def test_size(count: int, said: str) -> None:
    assert words.size(count) == said


def test_pages() -> None:
    assert words.pages(1) == "1 page (4 KiB)"
    assert words.pages(0) == "0 pages (0 B)"
    assert words.pages(12_288) == "12 288 pages (48 MiB)"
    assert words.grouped(1_234_567) == "1 234 567"
