"""The native core's ring of events: what happened, one after the other."""

from __future__ import annotations

import errno
from typing import Any

from hmmfs._native import ffi, lib
from hmmfs.errors import check
from hmmfs.memory.core import Core
from hmmfs.memory.types import BLOCK_PAGES, BlockKey, Trigger

KINDS = tuple(
    ffi.string(lib.hm_trace_kind_name(kind)).decode() for kind in range(lib.HM_TRACE_PIN + 1)
)
LINE = int(lib.HM_TRACE_LINE)
MAX_EVENTS = 1 << 20


class Trace:
    """May be used from any thread. Events have numbers; a cursor is the number of the next one."""

    def __init__(self, core: Core, events: int) -> None:
        self._core = core
        self.size = 0
        self.resize(events)

    def resize(self, events: int) -> None:
        """So many events are kept, a power of two up to MAX_EVENTS, or none; those there are go."""
        check(lib.hm_trace_resize(self._core.handle, events), "Sizing the trace")
        self.size = events

    def keep(self, kinds: tuple[str, ...]) -> None:
        """Record events of these kinds only."""
        mask = sum(1 << KINDS.index(kind) for kind in kinds)
        check(lib.hm_trace_kinds(self._core.handle, mask), "Filtering the trace")

    def keep_region(self, ino: int, keep: bool) -> None:
        """Whether events of a region are recorded."""
        ret = lib.hm_trace_region(self._core.handle, ino, keep)
        if ret != -errno.ENOENT:
            check(ret, "Filtering the trace")

    def clear(self) -> None:
        lib.hm_trace_clear(self._core.handle)

    def oldest(self) -> int:
        return int(lib.hm_trace_oldest(self._core.handle))

    def text(self, cursor: int, size: int, until: int = (1 << 64) - 1) -> tuple[bytes, int]:
        """Lines of events from the cursor on, before `until`, `size` bytes of them at most, but
        always one; and the cursor behind them."""
        at = ffi.new("uint64_t *", cursor)
        out = ffi.new("char[]", max(size, LINE))
        n = check(
            lib.hm_trace_text(self._core.handle, at, until, out, len(out)), "Reading the trace"
        )
        return bytes(ffi.buffer(out, n)), int(at[0])

    def wake(self, cursor: int) -> int:
        """The number of the next event. If that is the cursor, EventKind.TRACE comes with it."""
        return int(lib.hm_trace_wake(self._core.handle, cursor & ((1 << 64) - 1)))

    def queue(self, key: BlockKey, node: int, trigger: Trigger, began: int = 0) -> int:
        """A device waits for capacity for a block; or, with the time when that began, it has it.
        Returns the time, CLOCK_MONOTONIC in ns."""
        event: Any = ffi.new("struct hm_trace_event *")
        kind = lib.HM_TRACE_QUEUE_RESTORE if began else lib.HM_TRACE_QUEUE_EVICTION
        event.kind, event.trigger, event.node = kind, trigger, node
        event.ino, event.page, event.count = key.ino, key.block * BLOCK_PAGES, BLOCK_PAGES
        setattr(event, "from", node)
        event.to = 255
        event.at_ns = now = lib.hm_trace_now()
        event.took_ns = now - began if began else 0
        ret = lib.hm_trace_record(self._core.handle, event)
        if ret != -errno.ENOENT:
            check(ret, "Recording an event")
        return int(now)
