"""The files of the trace: `trace`, `trace_pipe`, `trace_size` and `trace_filter`.

Each open file of `trace_pipe` has a place of its own, so readers don't take events from each other.
It begins behind what any reader has had. All of its state is the trio thread's.
"""

from __future__ import annotations

import errno
import select

import pyfuse3
import trio

from hmmfs.common.names import escaped, unescaped
from hmmfs.common.units import K, parse_size
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.filesystem.submit import MAX_READ
from hmmfs.memory import Region, RegionTable, Trace
from hmmfs.memory.trace import KINDS, LINE, MAX_EVENTS
from hmmfs.service import apart

EVENTS = 64 * K  # of 56 bytes
# Readers are told at most so often: a trip through the loop takes some 18 us.
PAUSE_S = 0.001
PIECE = 256 * K
COLUMNS = "# time device event region pages from to trigger bytes microseconds simulated\n"
READY = select.POLLIN | select.POLLRDNORM


class Tracing:
    """What the files say and take."""

    def __init__(self, trace: Trace, regions: RegionTable) -> None:
        self._trace = trace
        self._regions = regions
        self._consumed = 0
        self._more = trio.Event()
        self._polled: dict[Pipe, pyfuse3.PollHandle] = {}
        self._kinds = KINDS
        self._names: tuple[bytes, ...] | None = None  # None: all
        regions.on_named(self._named)

    # ---- trace

    def snapshot(self) -> Snapshot:
        return Snapshot(self._trace)

    def clear(self, _: str) -> None:
        self._trace.clear()

    # ---- trace_size, trace_filter

    @property
    def size(self) -> int:
        return self._trace.size

    def resize(self, text: str) -> None:
        try:
            events = parse_size(text)
        except UsageError:
            events = MAX_EVENTS + 1
        if events > MAX_EVENTS:
            raise UsageError(
                f"{text[:80]!r} is not a number of events. Give one up to {MAX_EVENTS}; 0: none."
            )
        self._trace.resize(1 << (events - 1).bit_length() if events else 0)

    @property
    def filter(self) -> str:
        words = []
        if self._kinds != KINDS:
            words.append(f"events={','.join(self._kinds)}")
        if self._names is not None:
            words.append(f"regions={','.join(_listed(name) for name in self._names)}")
        return " ".join(words) or "all"

    def set_filter(self, text: str) -> None:
        words = text.split()
        said = {key: value for key, _, value in (word.partition("=") for word in words)}
        known = said and len(said) == len(words) and said.keys() <= {"events", "regions"}
        if text != "all" and not known:
            raise UsageError(
                f"{text[:80]!r} is not a filter. Write all, or events=EVENT,… and regions=NAME,…."
            )
        kinds = _kinds(said["events"]) if "events" in said else KINDS
        names = tuple(map(_name, said["regions"].split(","))) if "regions" in said else None
        self._kinds, self._names = kinds, names
        self._trace.keep(kinds)
        for _, region in self._regions.listed():
            self._named(region)

    def _named(self, region: Region) -> None:
        """A region has a name, or another one."""
        self._trace.keep_region(region.ino, self._names is None or region.name in self._names)

    # ---- trace_pipe

    def open(self) -> Pipe:
        return Pipe(self, self._trace, max(self._consumed, self._trace.oldest()))

    def consumed(self, cursor: int) -> None:
        self._consumed = max(self._consumed, cursor)

    async def more(self, cursor: int) -> None:
        """Until there is an event of that number."""
        waiting = self._more
        if self._trace.wake(cursor) <= cursor:
            await waiting.wait()

    def tell(self, pipe: Pipe, handle: pyfuse3.PollHandle, cursor: int) -> bool:
        """Whether there is an event of that number now; else who polls the pipe is told later, by
        the last handle alone: it wakes all."""
        self._polled[pipe] = handle
        return self._trace.wake(cursor) > cursor

    def closed(self, pipe: Pipe) -> None:
        self._polled.pop(pipe, None)

    async def on_trace(self) -> None:
        """An event has come that somebody waits for."""
        await trio.sleep(PAUSE_S)
        self._more.set()
        self._more = trio.Event()
        polled, self._polled = self._polled, {}
        for handle in polled.values():
            apart("Waking who polls trace_pipe", handle.notify)


class Snapshot:
    """One open file of `trace`: the events that there were when it was first read, as text, some of
    it at a time: a ring of a million events is 100 MB. Reading on is cheap, and so is beginning
    anew. What was overwritten meanwhile is counted in a line of its own."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._first: int | None = None
        self._until = self._cursor = self._base = 0  # _text is what is at _base of the file
        self._text = b""
        self._turn = trio.Lock()

    async def read(self, offset: int, size: int) -> bytes:
        async with self._turn:
            if self._first is None:
                self._first, self._until = self._trace.oldest(), self._trace.wake(-1)
                self._begin()
            if offset < self._base:
                self._begin()
            while offset >= self._base + len(self._text):
                if self._cursor >= self._until:
                    return b""
                self._base += len(self._text)
                self._text, self._cursor = await trio.to_thread.run_sync(
                    self._trace.text, self._cursor, PIECE, self._until
                )
            at = offset - self._base
            return self._text[at : at + min(size, MAX_READ)]

    def _begin(self) -> None:
        assert self._first is not None
        self._cursor, self._base, self._text = self._first, 0, COLUMNS.encode()


class Pipe:
    """One open file of `trace_pipe`."""

    def __init__(self, tracing: Tracing, trace: Trace, cursor: int) -> None:
        self._tracing = tracing
        self._trace = trace
        self._cursor = cursor
        self._rest = b""  # of lines that a reader with a small buffer has begun
        self._waiting: set[trio.CancelScope] = set()
        self._interrupted = False  # before the read that waits has begun

    async def read(self, size: int, *, nonblocking: bool) -> bytes:
        """Whole lines, unless `size` is less than one. EAGAIN: there are none, and the file is not
        to wait; EINTR: a signal came."""
        while not self._rest:
            text, self._cursor = self._trace.text(self._cursor, min(size, MAX_READ))
            self._tracing.consumed(self._cursor)
            self._rest = text
            if not text and nonblocking:
                raise HmmfsError(errno.EAGAIN, "There are no events now: poll, or read again.")
            if not text:
                await self._wait()
        self._interrupted = False
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def _wait(self) -> None:
        scope = trio.CancelScope()
        if self._interrupted:
            self._interrupted = False
            scope.cancel()
        self._waiting.add(scope)
        try:
            with scope:
                await self._tracing.more(self._cursor)
        finally:
            self._waiting.discard(scope)
        if scope.cancelled_caught:
            raise HmmfsError(errno.EINTR, "A signal came.")

    def poll(self, handle: pyfuse3.PollHandle | None) -> int:
        if self._rest or self._trace.wake(-1) > self._cursor:
            return READY
        if handle is not None and self._tracing.tell(self, handle, self._cursor):
            return READY
        return 0

    def interrupt(self, *, waits: bool = False) -> None:
        """A program that waits got a signal; the kernel does not say which, if several do. `waits`:
        if no read has begun here, one is on its way."""
        for scope in self._waiting:
            scope.cancel()
        if not self._waiting:
            self._interrupted = waits

    def close(self) -> None:
        self.interrupt()
        self._tracing.closed(self)


def _kinds(value: str) -> tuple[str, ...]:
    asked = value.split(",")
    for name in asked:
        if name not in KINDS:
            raise UsageError(f"{name[:80]!r} is not an event. Use {', '.join(KINDS)}.")
    return tuple(kind for kind in KINDS if kind in asked)


def _name(word: str) -> bytes:
    name = unescaped(word.encode())
    if not name or b"/" in name or b"\0" in name:
        raise UsageError(f"{word[:80]!r} is not a region's name. Give names of files in regions/.")
    return name


def _listed(name: bytes) -> str:
    return escaped(name).replace(",", r"\054")


assert LINE <= MAX_READ
