"""A recording in the trace-event format, which Perfetto, Chrome and Speedscope open.

A process is a device (the CPU is one), and a thread of it is a *slot*: what a device does at once
is spread over as many slots as it takes, so that on each the spans are apart or one within the
other. The machine is a process of its own, with counters for regions, devices and links.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hmmfs.common.names import printable
from hmmfs.common.units import PAGE
from hmmfs.inspect.mount.trace import Event
from hmmfs.inspect.record.recording import Counts, Gap, Header, Progress, Recording, Sample

MACHINE = 1  # the process of counters
CPU = 2
SPANS = {"page_fault_end": "page fault", "migrate_end": "migrate", "queue_restore": "wait for VRAM"}
STARTS = ("page_fault_start", "migrate_start", "queue_eviction")  # a span's end says when it began
INSTANTS = 0  # the slot of what takes no time
MOST = 500  # slots of a device; what finds none becomes an instant
THREADS = 1000  # tids of a device are its pid times this, and the slot: unique among all
APART_NS = 4  # readers round beginnings and lengths, each on its own

Trace = dict[str, Any]


def trace_events(path: str, progress: Progress) -> Iterator[Trace]:
    """The members of traceEvents: names, then everything in the recording's order.

    Read twice: a span is told of at its end, and its slot depends on those that began earlier.
    """
    with Recording(path) as recording:
        slots = _slots(recording, progress)
        names = _Names(recording.header)
    with Recording(path) as recording:
        yield from names.machine()
        first: Sample | None = None
        for record in recording.records(progress):
            if isinstance(record, Event):
                if record.event in STARTS:
                    continue
                slot = next(slots) if record.event in SPANS else INSTANTS
                pid, tid, told = names.thread(record.device, slot)
                yield from told
                yield _event(record, recording.header.clock, pid, tid, slot)
            elif isinstance(record, Sample):
                first = first or record
                yield from _counters(record, first, recording.header.clock)
            elif isinstance(record, Gap):
                at = _ns(record.t, recording.header.clock) / 1000
                name = f"{record.events} events lost"
                yield {"ph": "i", "name": name, "s": "g", "ts": at, "pid": MACHINE, "tid": MACHINE}


class Slots:
    """Which slot of a device a span goes to: the first in which it nests properly."""

    def __init__(self) -> None:
        # By slot, the ends of what is under way, outermost first.
        self._open: list[list[int]] = []

    def place(self, start: int, end: int) -> int:
        """The slot's number, from 1; INSTANTS if all are taken. Nanoseconds.

        Spans must come in order of their start, of those with the same the longest first.
        """
        for number, ends in enumerate(self._open, 1):
            while ends and ends[-1] + APART_NS <= start:
                ends.pop()
            if not ends or end + APART_NS <= ends[-1]:
                ends.append(end)
                return number
        if len(self._open) == MOST:
            return INSTANTS
        self._open.append([end])
        return len(self._open)


class _Names:
    """Numbers of processes and threads, and the events that name those once."""

    def __init__(self, header: Header) -> None:
        self._pids = {"cpu": CPU}
        for device in header.nodes[1:]:
            self._pids.setdefault(device, CPU + len(self._pids))
        self._told: set[int] = set()

    def machine(self) -> Iterator[Trace]:
        yield _name("process", MACHINE, MACHINE, "machine")

    def thread(self, device: str, slot: int) -> tuple[int, int, list[Trace]]:
        pid = self._pids.setdefault(device, CPU + len(self._pids))
        tid = pid * THREADS + slot
        told = []
        if pid not in self._told:
            told.append(_name("process", pid, tid, "CPU" if pid == CPU else printable(device)))
        if tid not in self._told:
            what = f"slot {slot}" if slot != INSTANTS else "moments"
            told += [_name("thread", pid, tid, what), _order(pid, tid, slot)]
        self._told |= {pid, tid}
        return pid, tid, told


def _slots(recording: Recording, progress: Progress) -> Iterator[int]:
    """The slots of the recording's spans, in its order."""
    starts, ends, whose = array("q"), array("q"), array("q")
    numbers: dict[str, int] = {}
    clock = recording.header.clock
    for record in recording.records(progress):
        if isinstance(record, Event) and record.event in SPANS:
            start, length = _span(record, clock)
            starts.append(start)
            ends.append(start + length)
            whose.append(numbers.setdefault(record.device, len(numbers)))
    devices = [Slots() for _ in numbers]
    found = array("q", bytes(8 * len(starts)))
    order: Iterable[int] = np.lexsort((-np.array(ends), np.array(starts))).tolist()
    for index in order:
        found[index] = devices[whose[index]].place(starts[index], ends[index])
    return iter(found)


def _ns(t: float, clock: float) -> int:
    return max(0, round((t - clock) * 1e9))


def _span(event: Event, clock: float) -> tuple[int, int]:
    """When it began and how long it took, in ns; nothing is before the command."""
    end = _ns(event.t, clock)
    length = min(end, round(event.us * 1000))
    return end - length, length


def _event(event: Event, clock: float, pid: int, tid: int, slot: int) -> Trace:
    args: Trace = {
        "region": printable(event.region),
        "first": event.first,
        "pages": event.pages,
        "from": printable(event.origin),
        "to": printable(event.target),
        "trigger": printable(event.trigger),
        "bytes": event.bytes,
        "sim_us": event.sim_us,
    }
    args = {key: value for key, value in args.items() if value != ""}
    found: Trace = {"pid": pid, "tid": tid, "cat": printable(event.event), "args": args}
    name = "evict" if event.evicts else SPANS.get(event.event, printable(event.event))
    start, length = _span(event, clock)
    if slot == INSTANTS:
        return {"ph": "i", "name": name, "s": "t", "ts": _ns(event.t, clock) / 1000, **found}
    return {"ph": "X", "name": name, "ts": start / 1000, "dur": length / 1000, **found}


def _counters(sample: Sample, first: Sample, clock: float) -> Iterator[Trace]:
    """Bytes: of devices and regions what is there now, of links what went over them since."""
    ts = _ns(sample.t, clock) / 1000

    def counter(name: str, values: Counts) -> Trace:
        return {
            "ph": "C", "name": name, "ts": ts, "pid": MACHINE, "tid": MACHINE, "args": values,
        }  # fmt: skip

    for device, used in sample.used.items():
        yield counter(f"VRAM of {printable(device)}", {"used": used})
    for region, found in sample.regions.items():
        pages = {printable(key): count * PAGE for key, count in found.items() if key != "size"}
        yield counter(f"region {printable(region)}", pages)
    for link, carried in sample.links.items():
        before = first.links.get(link, {})
        ways = {
            way: max(0, carried.get(way, 0) - before.get(way, 0)) for way in ("forward", "back")
        }
        yield counter(f"link {printable(link)}", ways)


def _name(what: str, pid: int, tid: int, name: str) -> Trace:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": tid, "args": {"name": name}}


def _order(pid: int, tid: int, slot: int) -> Trace:
    args = {"sort_index": slot}
    return {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": args}
