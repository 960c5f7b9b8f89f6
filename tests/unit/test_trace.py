"""Lines of a trace: what they say, in whatever pieces and with whatever names they come."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmmfs.common.names import printable, unescape
from hmmfs.inspect.mount.trace import Event, Lines, Lost, parse, parse_line

LINE = b"7012.123456789 dev0 migrate_end a 3+512 host dev0 device_fault 2097152 412.250 161.250"
EVENT = Event(
    7012.123456789,
    "dev0",
    "migrate_end",
    "a",
    3,
    512,
    "host",
    "dev0",
    "device_fault",
    2097152,
    412.25,
    161.25,
)
HEADING = b"# TIME DEVICE EVENT REGION PAGES FROM TO TRIGGER BYTES MICROSECONDS SIMULATED\n"


def test_line() -> None:
    assert parse_line(LINE) == EVENT
    assert parse_line(LINE + b" a column to come") == EVENT


def test_what_is_not_there() -> None:
    found = parse_line(b"1.5 cpu throttle - - - - - 0 0.000 0.000")
    assert found == Event(1.5, "cpu", "throttle", "", 0, 0, "", "", "", 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("escaped", "name"),
    [
        (b"a\\040b", "a b"),
        (b"\\055", "-"),
        (b"\\134040", "\\040"),
        (b"\\377\\012", "\udcff\n"),
        ("é".encode(), "é"),
        (b"\\303\\251", "é"),
        (b"\\09", "\\09"),
    ],
)
def test_names(escaped: bytes, name: str) -> None:
    found = parse_line(LINE.replace(b" a ", b" " + escaped + b" "))
    assert isinstance(found, Event)
    assert found.region == name


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"", None),
        (HEADING.rstrip(), None),
        (b"# lost 17 events", Lost(17)),
        (b"# lost 1 event", Lost(1)),
        (b"# lost many events", None),
    ],
)
def test_comments(line: bytes, found: Lost | None) -> None:
    assert parse_line(line) == found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b" 161.250", b""),
        (b"7012.123456789", b"soon"),
        (b"7012.123456789", b"nan"),
        (b"7012.123456789", b"-1.0"),
        (b"3+512", b"3"),
        (b"3+512", b"-3+512"),
        (b"3+512", b"99999999999999999999+1"),
        (b"3+512", "\u0663+1".encode()),
        (b"2097152", b"-1"),
        (b"2097152", b"9" * 5000),
        (b"2097152", b"9223372036854775808"),
        (b"412.250", b"inf"),
    ],
)
def test_malformed(old: bytes, new: bytes) -> None:
    line = LINE.replace(old, new)
    assert line != LINE
    with pytest.raises(ValueError, match=r"."):
        parse_line(line)
    lines = Lines()
    assert list(lines.feed(line + b"\n" + LINE + b"\n")) == [EVENT]
    assert lines.malformed == 1


def test_snapshot_without_its_end() -> None:
    text = HEADING + LINE + b"\n# lost 3 events\n" + LINE[:-1]
    assert list(parse(text)) == [EVENT, Lost(3)]


@given(cuts=st.lists(st.integers(0, 3 * len(LINE)), max_size=6))
def test_pieces(cuts: list[int]) -> None:
    """Wherever reads cut it, the same lines come out once each."""
    text = HEADING + LINE + b"\n# lost 3 events\n" + LINE + b"\n"
    lines, found = Lines(), []
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(places):
        found += lines.feed(text[start:end])
    assert found == [EVENT, Lost(3), EVENT]
    assert lines.malformed == 0


@given(name=st.binary(min_size=1, max_size=40))
def test_printable_is_reversible(name: bytes) -> None:
    shown = printable(os.fsdecode(name))
    assert shown.isprintable()
    shown.encode()
    assert os.fsencode(unescape(shown)) == name


@given(data=st.binary())
def test_anything(data: bytes) -> None:
    """No bytes make the parser fail."""
    for found in parse(data + b"\n"):
        assert isinstance(found, Event | Lost)
