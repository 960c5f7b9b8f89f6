"""Names as words, lines and labels. They may hold any byte but "/" and NUL; what a word, a line or
a terminal can't hold stands as a backslash and three octal digits, as in /proc/mounts."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable

_ESCAPED = re.compile(rb"[\x00-\x20\x7f\\]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


def escaped(name: bytes) -> str:
    """A region's name as one word: blanks, control characters, backslashes and what is not UTF-8 as
    octal digits; and so a name that is just "-", which stands for none."""
    plain = _ESCAPED.sub(lambda found: b"".join(b"\\%03o" % byte for byte in found[0]), name)
    text = plain.decode(errors="octal")
    return r"\055" if text == "-" else text


def _octal(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    bad = error.object[error.start : error.end]
    return "".join(f"\\{byte:03o}" for byte in bad), error.end


codecs.register_error("octal", _octal)


def unescaped(word: bytes) -> bytes:
    """The name that a word or a line stands for."""
    return _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), word)


def unescape(text: str) -> str:
    """The same of text, as os.fsdecode gives it."""
    return os.fsdecode(unescaped(os.fsencode(text))) if "\\" in text else text


def printable(name: str) -> str:
    """A name in characters that every terminal, file and page can hold: `unescape` reads it back.
    Blanks stay."""
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(_shown(one) if one != "\\" else r"\134" for one in name)


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape"))


def no_device(name: str, known: Iterable[str]) -> str:
    """The sentence on a device that a machine has not."""
    return f"There is no device {printable(name)}; the devices are {', '.join(known) or 'none'}."


def one_line(sentence: str) -> str:
    """A sentence as one line of plain characters: an exception's text may hold line breaks, and
    bytes that terminals obey. Half a character becomes a question mark."""
    sentence = re.sub("[\ud800-\udc7f\udd00-\udfff]", "?", " ".join(sentence.splitlines()))
    return "".join(map(_shown, sentence))


def label(name: bytes) -> str:
    """A name as a label of a metric: UTF-8 as it is, but backslashes and any other byte as octal
    digits, so that no two names are the same."""
    text = os.fsdecode(name.replace(b"\\", b"\\134"))
    return re.sub("[\ud800-\udfff]", lambda odd: f"\\{ord(odd[0]) - 0xDC00:03o}", text)


def quoted(name: str) -> str:
    """A name as one word for a shell: bash's ``$'…'`` where plain quotes would not show it all."""
    if name.isprintable():
        import shlex  # 1 ms, and few want it

        return shlex.quote(name)
    return "$'" + printable(name).replace("'", "\\'") + "'"
