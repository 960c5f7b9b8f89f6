"""Sizes, in and out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmmfs.common.units import format_size, parse_size
from hmmfs.errors import UsageError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4K", 4096),
        ("4k", 4096),
        ("64M", 64 << 20),
        ("64MiB", 64 << 20),
        ("1g", 1 << 30),
        ("2T", 2 << 40),
        (" 8K ", 8192),
    ],
)
def test_parse(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text",
    ["", "M", "-1", "1.5G", "64MB", "64iB", "64 M", "1P", "0x10", "9" * 30, "\u0664K", "1M1"],
)
def test_refuse(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a size\. Give a whole number"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_format_reads_back(count: int) -> None:
    assert parse_size(format_size(count)) == count


def test_format_is_short() -> None:
    sizes = (0, 1, 4100, 4096, 64 << 20, 3 << 29, 2 << 40)
    assert [format_size(size) for size in sizes] == ["0", "1", "4100", "4K", "64M", "1536M", "2T"]
