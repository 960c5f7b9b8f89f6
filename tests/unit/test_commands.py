"""What a line of `submit` may look like, and what is said of one that may not."""

import errno
import os
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmmfs.device.executor import parse_all
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.wire.commands import (
    Checksum,
    Compare,
    Copy,
    Fill,
    Migrate,
    Range,
    Read,
    Write,
    parse,
    split,
)

WHOLE = Range(b"a")


@pytest.mark.parametrize(
    ("line", "operation"),
    [
        ("read a:0+4096", Read(Range(b"a", 0, 4096))),
        ("read a:0x10+64K", Read(Range(b"a", 16, 65536))),
        ("write a:5 00fF", Write(Range(b"a", 5, 2), b"\x00\xff")),
        ("fill a 7", Fill(WHOLE, 7)),
        ("fill a:1M+2M 0xff", Fill(Range(b"a", 1 << 20, 2 << 20), 255)),
        ("copy a to b", Copy(WHOLE, Range(b"b"))),
        ("copy a:1+2 to b:3", Copy(Range(b"a", 1, 2), Range(b"b", 3))),
        ("checksum a", Checksum(WHOLE)),
        ("  checksum   a  ", Checksum(WHOLE)),
        ("checksum 'two words'", Checksum(Range(b"two words"))),
        ("checksum two\\ words:0+1T", Checksum(Range(b"two words", 0, 1 << 40))),
        ("checksum a:b", Checksum(Range(b"a:b"))),
        ("checksum a:1:0+4", Checksum(Range(b"a:1", 0, 4))),
        ("checksum é", Checksum(Range("é".encode()))),
        ("compare a with b", Compare(WHOLE, Range(b"b"))),
        ("compare a:0+2 with b", Compare(Range(b"a", 0, 2), Range(b"b"))),
        ("migrate a to host", Migrate(WHOLE, 0)),
        ("migrate a:0+1 to dev12", Migrate(Range(b"a", 0, 1), 13)),
    ],
)
def test_forms(line: str, operation: object) -> None:
    assert parse(line) == operation


@pytest.mark.parametrize(
    ("line", "number", "says"),
    [
        ("", errno.EINVAL, "the operations are"),
        ("drop a", errno.EINVAL, "'drop' is not an operation"),
        ("checksum", errno.EINVAL, "its form is"),
        ("checksum a b", errno.EINVAL, "its form is"),
        ("checksum 'a", errno.EINVAL, "not closed"),
        ("checksum :0+4", errno.EINVAL, "its form is"),
        ("checksum a:12", errno.EINVAL, "its form is"),
        ("checksum a:1z+4", errno.EINVAL, "not a size"),
        ("checksum a:0+0", errno.EINVAL, "above 0"),
        ("checksum a:-4+4", errno.ERANGE, "negative"),
        ("checksum a:4+-4", errno.ERANGE, "negative"),
        ("read a", errno.EINVAL, "its form is"),
        ("read a:0+65537", errno.E2BIG, "at most 65536"),
        ("write a 00", errno.EINVAL, "its form is"),
        ("write a:0+1 00", errno.EINVAL, "its form is"),
        ("write a:0 0", errno.EINVAL, "two hexadecimal digits"),
        ("write a:0 zz", errno.EINVAL, "two hexadecimal digits"),
        ("write a:0 " + "00" * 65537, errno.E2BIG, "at most 65536"),
        ("fill a 256", errno.EINVAL, "from 0 to 255"),
        ("fill a -1", errno.EINVAL, "from 0 to 255"),
        ("fill a seven", errno.EINVAL, "from 0 to 255"),
        ("copy a into b", errno.EINVAL, "its form is"),
        ("copy a to b:0+4", errno.EINVAL, "its form is"),
        ("compare a:0+1 with b:0+2", errno.EINVAL, "equal lengths"),
        ("migrate a to gpu", errno.ENODEV, "dev0"),
        ("migrate a to dev-1", errno.ENODEV, "dev0"),
    ],
)
def test_bad_lines(line: str, number: int, says: str) -> None:
    with pytest.raises(HmmfsError) as caught:
        parse(line)
    assert caught.value.errno == number
    assert says in caught.value.sentence
    assert "\n" not in caught.value.sentence
    assert caught.value.sentence.endswith(".")


def test_a_submission_is_parsed_before_any_of_it_runs() -> None:
    assert parse_all("checksum a\n\n fill a 1\n") == [Checksum(WHOLE), Fill(WHOLE, 1)]
    with pytest.raises(HmmfsError):
        parse_all("fill a 1\nnonsense\n")
    with pytest.raises(HmmfsError):
        parse_all(" \n")


@given(st.text())
def test_any_line_is_an_operation_or_a_sentence(line: str) -> None:
    number = None
    try:
        parse(line)
    except HmmfsError as error:
        number = error.errno
    assert number in (None, errno.EINVAL, errno.ENODEV, errno.ERANGE, errno.E2BIG)


@given(st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name))
def test_every_name_can_be_written_with_quotes_and_a_range(name: bytes) -> None:
    quoted = "'" + os.fsdecode(name).replace("'", "'\\''") + ":0+1'"
    assert parse(f"checksum {quoted}") == Checksum(Range(name, 0, 1))


@given(st.text(alphabet="ab \t\n'\"\\\\é\x0b", max_size=20))
def test_words_are_those_of_a_shell(line: str) -> None:
    try:
        wanted = shlex.split(line)
    except ValueError:
        with pytest.raises(UsageError, match="not closed"):
            split(line)
    else:
        assert split(line) == wanted


def test_a_long_word_takes_no_time_to_speak_of() -> None:
    """16 MiB: a split that takes the square of the length would never come back."""
    assert split("call " + "x" * (1 << 24))[1] == "x" * (1 << 24)
