"""/proc/PID/maps: what is mapped where in a program."""

from __future__ import annotations

import bisect
import errno
import itertools
import os
import threading
import weakref
from typing import NamedTuple

from hmmfs.errors import HmmfsError

READ_BYTES = 1 << 16


class Mapping(NamedTuple):
    start: int
    end: int
    offset: int  # of the file
    device: str  # MAJOR:MINOR, in hex
    ino: int  # 0: there is no file
    private: bool

    @classmethod
    def parse(cls, line: str) -> Mapping:
        place, rights, offset, device, ino, *_ = line.split(maxsplit=5)
        start, end = (int(text, 16) for text in place.split("-"))
        return cls(start, end, int(offset, 16), device, int(ino), rights[3] == "p")


def open_proc(pid: int, name: str) -> int:
    """A descriptor of one of /proc/PID, which stays with the address space of this moment."""
    try:
        return os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        number = errno.ESRCH if error.errno == errno.ENOENT else error.errno or errno.EIO
        raise HmmfsError(
            number,
            f"The memory of process {pid} can't be had ({os.strerror(number)}): it must be of the "
            "user who mounted, or root must have mounted.",
        ) from error


class Maps:
    """Of the address space that the program has when this is made; nothing once that is gone."""

    def __init__(self, pid: int) -> None:
        self._fd = open_proc(pid, "maps")
        weakref.finalize(self, os.close, self._fd)
        self._turn = threading.Lock()

    def read(self, start: int, end: int) -> list[Mapping]:
        """What overlaps a range, in order. Waits for the program's own changes: call it from a
        thread."""
        # Read on, the file goes on at the next mapping whatever changes meanwhile; at an offset it
        # would count bytes anew.
        with self._turn:
            os.lseek(self._fd, 0, os.SEEK_SET)
            text = b"".join(iter(lambda: os.read(self._fd, READ_BYTES), b""))
        lines = os.fsdecode(text).split("\n")[:-1]
        # A program may have thousands, and hardly any of them is meant.
        first = bisect.bisect_right(lines, start, key=_end)
        return [
            Mapping.parse(line)
            for line in itertools.takewhile(lambda one: _start(one) < end, lines[first:])
        ]


def _start(line: str) -> int:
    return int(line[: line.index("-")], 16)


def _end(line: str) -> int:
    return int(line[line.index("-") + 1 : line.index(" ")], 16)
