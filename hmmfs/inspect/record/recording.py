"""The file that ``hmmfs record`` writes: JSON lines, read back one at a time.

Whatever the file holds, what comes out of ``Recording`` is of the types that it says, finite and
not negative; lines that are not so are left out and counted.
"""

from __future__ import annotations

import errno
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from hmmfs.errors import HmmfsError
from hmmfs.inspect.mount.trace import LARGEST, Event

SCHEMA = 1
LONGEST_LINE = 1 << 24  # bytes; a sample of ten thousand regions is a tenth of it
GZIP = b"\x1f\x8b"
LATEST = 9e9  # seconds: their nanoseconds fit into 63 bits
LONGEST = 1e12  # microseconds of one event

# What the makers of records below raise of values that are not what they should be.
NOT_WHOLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)

Counts = dict[str, int]
Progress = Callable[[int, int], None]  # bytes done, bytes in all

_NODE = re.compile(r"host|dev\d{1,4}", re.ASCII)


class Header(NamedTuple):
    """What was recorded. ``clock`` is CLOCK_MONOTONIC when ``started``, the time of day, was.

    ``stats`` and ``devices`` are counters as they were just before the command began; ``trace`` is
    what the mount's trace kept then, "all" or less.
    """

    version: str
    mount: str
    command: list[str]
    started: float
    clock: float
    nodes: list[str]
    capacity: Counts
    topology: str
    stats: Counts
    devices: dict[str, Counts]
    trace: str = "all"


class Sample(NamedTuple):
    """The state at about ``t``.

    ``used`` VRAM in bytes by device; ``regions`` pages by node, and the region's ``size`` in bytes;
    ``links`` bytes ``forward`` and ``back`` and ``busy_ns`` so far; ``faults`` so far by accessor.
    """

    t: float
    used: Counts
    regions: dict[str, Counts]
    links: dict[str, Counts]
    faults: Counts


class Gap(NamedTuple):
    """Events that the recorder was too slow for."""

    t: float
    events: int


class End(NamedTuple):
    """How the command ended (as a shell says it), and all counters as they were then."""

    t: float
    status: int
    stats: Counts
    devices: dict[str, Counts]
    trace: str = "all"


Record = Event | Sample | Gap | End


class Recording:
    """An open recording. ``broken`` is known once ``records`` is exhausted."""

    def __init__(self, path: str) -> None:
        """HmmfsError: it cannot be read, or does not begin as a recording does."""
        self.path = path
        self.broken = 0  # lines that could not be understood
        self._file = open(path, "rb")  # noqa: SIM115
        try:
            if not self._file.seekable():
                raise _refused(path, "is a pipe. Give a file, since some of it is read twice")
            self._lines = self._unpacked()
            self.size = self._file.seek(0, 2)
            self._file.seek(0)
            self.header = self._header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def records(self, progress: Progress = lambda done, total: None) -> Iterator[Record]:
        """Everything behind the header, in the file's order; only once."""
        for number, line in enumerate(self._each_line()):
            if number % 1024 == 0:
                progress(self._file.tell(), self.size)
            found = _record(line)
            if found is None:
                self.broken += 1
                continue
            yield found
        progress(self.size, self.size)

    def _unpacked(self) -> IO[bytes]:
        packed = self._file.read(2) == GZIP
        return gzip.GzipFile(fileobj=self._file) if packed else self._file  # type: ignore[return-value]

    def _each_line(self) -> Iterator[bytes]:
        """Lines without those that are too long; ends where a compressed file was cut off."""
        try:
            while line := self._lines.readline(LONGEST_LINE):
                if line.endswith(b"\n"):
                    yield line
                    continue
                # Too long, or half-written by a recorder that was killed.
                self.broken += 1
                while line and not line.endswith(b"\n"):
                    line = self._lines.readline(LONGEST_LINE)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.broken += 1

    def _header(self) -> Header:
        line = next(self._each_line(), b"")
        found = _object(line)
        if found is None or found.get("type") != "header":
            raise _refused(self.path, "is not a recording. Give a file that hmmfs record wrote")
        schema = found.get("schema")
        if schema != SCHEMA:
            shown = schema if type(schema) is int else "none"
            raise _refused(
                self.path,
                f"has schema {str(shown)[:20]}, but this version of hmmfs reads schema {SCHEMA}",
            )
        try:
            return Header(
                _text(found["hmmfs"]),
                _text(found["mount"]),
                [_text(word) for word in found["command"]],
                _time(found["started"]),
                _time(found["clock"]),
                _nodes(found["nodes"]),
                _counts(found["capacity"]),
                _text(found["topology"]),
                _counts(found.get("stats", {})),
                _counts_of(found.get("devices", {})),
                _text(found.get("trace", "all")),
            )
        except NOT_WHOLE:
            raise _refused(self.path, "has a header that is not whole: record it again") from None


def encode(record: dict[str, Any]) -> bytes:
    """A line of a recording. Names that are not UTF-8 stay as os.fsdecode gave them."""
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def encode_event(event: Event, quoted: Callable[[str], str] = json.dumps) -> bytes:
    """The same line as encode would make, several times faster; ``quoted`` may remember."""
    return (
        f'{{"type":"event","t":{event.t!r},"device":{quoted(event.device)},'
        f'"event":{quoted(event.event)},"region":{quoted(event.region)},"first":{event.first},'
        f'"pages":{event.pages},"from":{quoted(event.origin)},"to":{quoted(event.target)},'
        f'"trigger":{quoted(event.trigger)},"bytes":{event.bytes},"us":{event.us!r},'
        f'"sim_us":{event.sim_us!r}}}\n'
    ).encode()


def _refused(path: str, why: str) -> HmmfsError:
    return HmmfsError(errno.EINVAL, f"{path} {why}.")


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _record(line: bytes) -> Record | None:
    """None: this line is none of ours, or not whole."""
    found = _object(line)
    if found is None:
        return None
    make = _KINDS.get(str(found.get("type")))
    if make is None:
        return None
    try:
        return make(found)
    except NOT_WHOLE:
        return None


def _event(found: dict[str, Any]) -> Event:
    return Event(
        _time(found["t"]),
        _text(found["device"]),
        _text(found["event"]),
        _text(found["region"]),
        _count(found["first"]),
        _count(found["pages"]),
        _text(found["from"]),
        _text(found["to"]),
        _text(found["trigger"]),
        _count(found["bytes"]),
        _time(found["us"], LONGEST),
        _time(found["sim_us"], LONGEST),
    )


def _sample(found: dict[str, Any]) -> Sample:
    return Sample(
        _time(found["t"]),
        _counts(found["used"]),
        _counts_of(found["regions"]),
        _counts_of(found["links"]),
        _counts(found["faults"]),
    )


def _gap(found: dict[str, Any]) -> Gap:
    return Gap(_time(found["t"]), _count(found["events"]))


def _end(found: dict[str, Any]) -> End:
    status = found["status"]
    if type(status) is not int:
        raise TypeError
    return End(
        _time(found["t"]),
        status,
        _counts(found["stats"]),
        _counts_of(found["devices"]),
        _text(found.get("trace", "all")),
    )


_KINDS: dict[str, Callable[[dict[str, Any]], Record]] = {
    "event": _event,
    "sample": _sample,
    "lost": _gap,
    "end": _end,
}


def _text(value: object) -> str:
    """ValueError of halves of surrogate pairs, which JSON can hold and no name has."""
    if not isinstance(value, str):
        raise TypeError
    if not value.isascii():
        value.encode(errors="surrogateescape")
    return value


def _nodes(value: object) -> list[str]:
    """The host first, each once."""
    if not isinstance(value, list) or value[:1] != ["host"]:
        raise ValueError
    return [_node(name) for name in dict.fromkeys(value)]


def _node(value: object) -> str:
    if not isinstance(value, str) or not _NODE.fullmatch(value):
        raise ValueError
    return value


def _count(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    if not 0 <= value <= LARGEST:
        raise ValueError
    return value


def _time(value: object, below: float = LATEST) -> float:
    if type(value) not in (int, float):
        raise TypeError
    number = float(value)  # type: ignore[arg-type]
    if not (math.isfinite(number) and 0 <= number < below):
        raise ValueError
    return number


def _counts(value: dict[str, object]) -> Counts:
    return {_text(key): _count(number) for key, number in value.items()}


def _counts_of(value: dict[str, dict[str, object]]) -> dict[str, Counts]:
    return {_text(key): _counts(counts) for key, counts in value.items()}
