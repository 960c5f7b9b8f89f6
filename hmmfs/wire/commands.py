"""The operations that a device understands, one a line, and what a line may look like.

    read R:OFF+LEN                    copy R1[:OFF+LEN] to R2[:OFF]
    write R:OFF HEX                   checksum R[:OFF+LEN]
    fill R[:OFF+LEN] BYTE             compare R1[:OFF+LEN] with R2[:OFF+LEN]
    migrate R[:OFF+LEN] to devN|host

Words are split as a shell does, so a name with spaces takes quotes. A name whose end looks like a
range (a colon, then a digit or a sign) is written with one: `a:1:0+4096` is 4096 bytes of `a:1`.
In place of R:OFF+LEN there may be PID@ADDRESS+LENGTH, of the own memory of a program that runs
under hmmfs run.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, replace

from hmmfs.common.units import K, parse_size
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.wire.launches import Launch, decoded

MAX_TRANSFER = 64 * K  # bytes of one read or write
HOST = 0

FORMS = {
    "read": "read REGION:OFFSET+LENGTH",
    "write": "write REGION:OFFSET HEX",
    "fill": "fill REGION[:OFFSET+LENGTH] BYTE",
    "copy": "copy REGION[:OFFSET+LENGTH] to REGION[:OFFSET]",
    "checksum": "checksum REGION[:OFFSET+LENGTH]",
    "compare": "compare REGION[:OFFSET+LENGTH] with REGION[:OFFSET+LENGTH]",
    "migrate": "migrate REGION[:OFFSET+LENGTH] to devN|host",
    "call": "call BASE64, as hmmfs launch writes it",
    "cancel": "cancel NAME, of a call",
}


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a region; length None is up to its end."""

    region: bytes
    offset: int = 0
    length: int | None = None
    pid: int = 0  # of the program whose memory it is, by address; 0: it is a region's


@dataclass(frozen=True, slots=True)
class Read:
    source: Range
    verb = "read"


@dataclass(frozen=True, slots=True)
class Write:
    target: Range
    data: bytes
    verb = "write"


@dataclass(frozen=True, slots=True)
class Fill:
    target: Range
    byte: int
    verb = "fill"


@dataclass(frozen=True, slots=True)
class Copy:
    source: Range
    target: Range  # its length is the source's
    verb = "copy"


@dataclass(frozen=True, slots=True)
class Checksum:
    source: Range
    verb = "checksum"


@dataclass(frozen=True, slots=True)
class Compare:
    left: Range
    right: Range
    verb = "compare"


@dataclass(frozen=True, slots=True)
class Migrate:
    source: Range
    node: int
    verb = "migrate"


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a launch that waits or runs. It does not wait for its turn."""

    name: str
    verb = "cancel"


Operation = Read | Write | Fill | Copy | Checksum | Compare | Migrate | Launch | Cancel


def parse(line: str) -> Operation:
    """The operation that a line asks for; a HmmfsError says what is wrong with it."""
    words = split(line)
    verb = words[0] if words else ""
    if verb not in FORMS:
        raise UsageError(
            f"{shortened(verb)!r} is not an operation: the operations are {', '.join(FORMS)}."
        )
    return _PARSERS[verb](words[1:])


# A piece of a word: bare, in single quotes, in double quotes (where \\ escapes " and \\), escaped.
_PIECE = r"""[^ \t\r\n'"\\]+|'[^']*'|"(?:[^"\\]|\\.)*"|\\."""
_WORD = re.compile(rf"[ \t\r\n]*((?:{_PIECE})+|\Z)", re.DOTALL)
_PIECES = re.compile(_PIECE, re.DOTALL)


def split(line: str) -> list[str]:
    """What shlex.split gives. That takes the square of a word's length, and a launch is one word of
    a hundred KiB or more, split on the thread that everything waits for."""
    words, at = [], 0
    while at < len(line):
        found = _WORD.match(line, at)
        if found is None or (found.end() == at):
            raise UsageError(
                f"{shortened(line.strip())!r} has a quote that is not closed. Close it, or put \\ "
                "before it."
            )
        at = found.end()
        if found[1]:
            words.append("".join(map(_unquoted, _PIECES.findall(found[1]))))
    return words


def _unquoted(piece: str) -> str:
    if piece[0] == "'":
        return piece[1:-1]
    if piece[0] == '"':
        return re.sub(r'\\(["\\])', r"\1", piece[1:-1])
    return piece.removeprefix("\\") if len(piece) == 2 else piece


def shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _form(verb: str) -> UsageError:
    return UsageError(f"That is not a {verb}: its form is `{FORMS[verb]}`.")


def _read(words: list[str]) -> Operation:
    if len(words) != 1:
        raise _form("read")
    source = _range(words[0], "read")
    if source.length is None:
        raise _form("read")
    if source.length > MAX_TRANSFER:
        raise _too_big("read", source.length)
    return Read(source)


def _write(words: list[str]) -> Operation:
    if len(words) != 2:
        raise _form("write")
    target = _range(words[0], "write", bare_offset=True)
    if not (":" in words[0] or target.pid) or target.length is not None:
        raise _form("write")
    if not re.fullmatch(r"([0-9A-Fa-f]{2})+", words[1]):
        raise UsageError(
            "The bytes of a write are wrong. Give two hexadecimal digits for each, such as 00ff."
        )
    data = bytes.fromhex(words[1])
    if len(data) > MAX_TRANSFER:
        raise _too_big("write", len(data))
    return Write(replace(target, length=len(data)), data)


def _fill(words: list[str]) -> Operation:
    if len(words) != 2:
        raise _form("fill")
    try:
        byte = int(words[1], 0)
    except ValueError:
        byte = -1
    if not 0 <= byte <= 255:
        raise UsageError(
            f"{shortened(words[1])!r} is not a byte. Give a number from 0 to 255, or 0xff."
        )
    return Fill(_range(words[0], "fill"), byte)


def _copy(words: list[str]) -> Operation:
    if len(words) != 3 or words[1] != "to":
        raise _form("copy")
    target = _range(words[2], "copy", bare_offset=True)
    if target.length is not None:
        raise _form("copy")
    return Copy(_range(words[0], "copy"), target)


def _checksum(words: list[str]) -> Operation:
    if len(words) != 1:
        raise _form("checksum")
    return Checksum(_range(words[0], "checksum"))


def _compare(words: list[str]) -> Operation:
    if len(words) != 3 or words[1] != "with":
        raise _form("compare")
    left, right = _range(words[0], "compare"), _range(words[2], "compare")
    if None not in (left.length, right.length) and left.length != right.length:
        raise UsageError(
            f"{left.length} bytes can't be compared with {right.length}. Give equal lengths."
        )
    return Compare(left, right)


def _migrate(words: list[str]) -> Operation:
    if len(words) != 3 or words[1] != "to":
        raise _form("migrate")
    place = re.fullmatch(r"dev(\d{1,4})", words[2], re.ASCII)
    if words[2] != "host" and not place:
        raise HmmfsError(
            errno.ENODEV, f"{words[2]!r} is not a place for pages. Use host, or a device as dev0."
        )
    return Migrate(_range(words[0], "migrate"), int(place[1]) + 1 if place else HOST)


def _call(words: list[str]) -> Operation:
    if len(words) != 1:
        raise _form("call")
    return decoded(words[0])


def _cancel(words: list[str]) -> Operation:
    if len(words) != 1:
        raise _form("cancel")
    return Cancel(words[0])


_PARSERS = {
    "read": _read,
    "write": _write,
    "fill": _fill,
    "copy": _copy,
    "checksum": _checksum,
    "compare": _compare,
    "migrate": _migrate,
    "call": _call,
    "cancel": _cancel,
}


def _too_big(verb: str, length: int) -> HmmfsError:
    return HmmfsError(
        errno.E2BIG, f"A {verb} takes at most {MAX_TRANSFER} bytes; this one has {length}."
    )


# PID@ADDRESS+LENGTH, of the own memory of a program under hmmfs run
_PROGRAM = re.compile(r"(\d{1,9})@([^+:]*)(?:\+([^+:]*))?", re.ASCII)


def _range(word: str, verb: str, *, bare_offset: bool = False) -> Range:
    program = _PROGRAM.fullmatch(word)
    if program:
        if program[3] is None and not bare_offset:
            raise UsageError(
                f"{shortened(word)} has no length: a program's memory is PID@ADDRESS+LENGTH."
            )
        if not int(program[1]):
            raise HmmfsError(errno.ESRCH, "There is no process 0.")
        bytes_ = None if program[3] is None else _size(program[3], verb)
        return Range(b"", _number(program[2], verb), bytes_, int(program[1]))
    name, colon, span = word.rpartition(":")
    if not colon or not re.match(r"[-+0-9]", span):
        return Range(os.fsencode(_named(word, verb)))
    offset, plus, length = span.partition("+")
    if not plus and not bare_offset:
        raise _form(verb)
    start = _number(offset, verb)
    if not plus:
        return Range(os.fsencode(_named(name, verb)), start)
    return Range(os.fsencode(_named(name, verb)), start, _size(length, verb))


def _size(text: str, verb: str) -> int:
    size = _number(text, verb)
    if size == 0:
        raise UsageError(f"A {verb} of no bytes does nothing. Give a length above 0.")
    return size


def _named(name: str, verb: str) -> str:
    if not name:
        raise _form(verb)
    return name


def _number(text: str, verb: str) -> int:
    if text.startswith("-"):
        raise HmmfsError(errno.ERANGE, f"{text} is negative: offsets and lengths count from 0.")
    if re.fullmatch(r"0[xX][0-9A-Fa-f]{1,16}", text):
        return int(text, 16)
    try:
        return parse_size(text)
    except UsageError as error:
        raise UsageError(f"{error.sentence[:-1]}, as in `{FORMS[verb]}`.") from None
