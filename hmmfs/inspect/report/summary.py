"""What a recording comes to: figures from all of its events, and a part of them to be shown.

Memory is bounded whatever the recording's length, but for one entry per block that was touched.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from hmmfs.common.units import BLOCK, PAGE
from hmmfs.inspect.mount.trace import THRASHING, Event
from hmmfs.inspect.record.recording import (
    Counts,
    End,
    Gap,
    Header,
    Progress,
    Record,
    Recording,
    Sample,
)

SAMPLES = 1500  # at most so many are shown: more than a screen has columns
MARKS = 8000  # evictions and thrashing
OTHERS = 8000
BLOCK_PAGES = BLOCK // PAGE

# What a trace says twice: the end of it repeats all that its start says.
STARTS = ("page_fault_start", "migrate_start")

T = TypeVar("T")


class Thinned(Generic[T]):
    """Keeps at most about ``limit`` of what is added, evenly spread, the first one always."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stride = 1
        self._kept: list[T] = []
        self.seen = 0

    def add(self, item: T) -> None:
        if self.seen % self._stride == 0:
            self._kept.append(item)
            if len(self._kept) >= 2 * self._limit:
                del self._kept[1::2]
                self._stride *= 2
        self.seen += 1

    def kept(self) -> list[T]:
        """At most ``limit`` of them, in the order in which they were added."""
        step = 2 if len(self._kept) > self._limit else 1
        return self._kept[::step]


class Thrash(NamedTuple):
    region: str
    device: str
    cause: str


@dataclass
class Tally:
    """Of moves of one kind. ``us`` is time on this machine, ``sim_us`` on the simulated clock."""

    moves: int = 0
    bytes: int = 0
    us: float = 0.0
    sim_us: float = 0.0

    def add(self, event: Event) -> None:
        self.moves += 1
        self.bytes += event.bytes
        self.us += event.us
        self.sim_us += event.sim_us


@dataclass
class Activity:
    """Of a block."""

    moves: int = 0
    faults: int = 0
    evictions: int = 0


@dataclass
class Thrashed:
    """``first`` and ``last`` in seconds of the clock of events."""

    first: float
    last: float
    events: int = 0
    pages: int = 0


@dataclass
class Summary:
    header: Header
    end: End | None = None
    events: int = 0
    lost: int = 0
    last: float = 0.0  # the latest time of all
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)  # by accessor, read or write
    fault_us: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    ways: dict[tuple[str, str], Tally] = field(default_factory=lambda: defaultdict(Tally))
    triggers: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    blocks: dict[tuple[str, int], Activity] = field(default_factory=lambda: defaultdict(Activity))
    thrashing: dict[Thrash, Thrashed] = field(default_factory=dict)
    evicted_spans: int = 0  # pages, as events say: at least as many as were evicted
    peak: Counts = field(default_factory=dict)  # used VRAM, in bytes
    samples: Thinned[Sample] = field(default_factory=lambda: Thinned(SAMPLES))
    final: Sample | None = None
    marks: Thinned[Event] = field(default_factory=lambda: Thinned(MARKS))
    others: Thinned[Event] = field(default_factory=lambda: Thinned(OTHERS))
    starts: int = 0

    @property
    def duration(self) -> float:
        """Seconds; of a recording without an end, to the last thing in it."""
        return max(0.0, (self.end.t if self.end else self.last) - self.header.clock)

    @property
    def evictions(self) -> int:
        return self.triggers["eviction"].moves if "eviction" in self.triggers else 0

    @property
    def evicted_pages(self) -> int | None:
        """By the devices' counters; None without an end, where nobody has counted."""
        if self.end is None:
            return None
        before, after = self.header.devices, self.end.devices
        return sum(
            counts.get("evicted_pages", 0) - before.get(device, {}).get("evicted_pages", 0)
            for device, counts in after.items()
        )

    def add(self, record: Record) -> None:
        self.last = max(self.last, record.t)
        if isinstance(record, Event):
            self._add_event(record)
        elif isinstance(record, Sample):
            self.samples.add(record)
            self.final = record
            for device, used in record.used.items():
                self.peak[device] = max(self.peak.get(device, 0), used)
        elif isinstance(record, Gap):
            self.lost += record.events
        else:
            self.end = record

    def _add_event(self, event: Event) -> None:
        self.events += 1
        if event.event in STARTS:
            self.starts += 1
            return
        if event.event == "page_fault_end":
            self.faults[event.device, event.trigger] += 1
            self.fault_us[event.device] += event.us
            self._block(event).faults += 1
        elif event.event == "migrate_end":
            self.ways[event.origin, event.target].add(event)
            self.triggers[event.trigger].add(event)
            block = self._block(event)
            block.moves += 1
            if event.evicts:
                block.evictions += 1
                self.evicted_spans += event.pages
        elif event.event == THRASHING:
            self._add_thrashing(event)
        (self.marks if event.evicts or event.event == THRASHING else self.others).add(event)

    def _block(self, event: Event) -> Activity:
        return self.blocks[event.region, event.first // BLOCK_PAGES]

    def _add_thrashing(self, event: Event) -> None:
        key = Thrash(event.region, event.device, event.trigger)
        found = self.thrashing.setdefault(key, Thrashed(event.t, event.t))
        found.events += 1
        found.pages += event.pages
        found.first, found.last = min(found.first, event.t), max(found.last, event.t)

    def shown_samples(self) -> list[Sample]:
        """In order of time, the first and the last among them."""
        kept = self.samples.kept()
        if self.final is not None and kept[-1] is not self.final:
            kept.append(self.final)
        return sorted(kept, key=lambda sample: sample.t)

    def shown_events(self) -> list[Event]:
        return sorted([*self.marks.kept(), *self.others.kept()], key=lambda event: event.t)


def summarize(recording: Recording, progress: Progress) -> Summary:
    summary = Summary(recording.header)
    for record in recording.records(progress):
        summary.add(record)
    return summary
