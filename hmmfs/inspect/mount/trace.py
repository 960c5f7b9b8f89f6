"""The lines of ``DIR/trace`` and ``DIR/trace_pipe``, and names as they stand in them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from hmmfs.common.names import unescape

NOTHING = "-"
COLUMNS = 11
LARGEST = (1 << 63) - 1  # of any number in a line

EVICTION = "eviction"
THRASHING = "thrashing"

_PAGES = re.compile(r"(\d{1,19})\+(\d{1,19})", re.ASCII)
_LOST = re.compile(r"# lost (\d{1,19}) events?", re.ASCII)


class Event(NamedTuple):
    """One line. What the line says is not there ("-") is an empty string.

    ``t`` is in seconds of CLOCK_MONOTONIC; ``first`` and ``pages`` are a span of 4 KiB pages, of
    which not every one need be concerned; ``us`` are microseconds on this machine, ``sim_us`` what
    the simulated clock was charged. ``origin`` and ``target`` are nodes, FROM and TO of the line.
    """

    t: float
    device: str
    event: str
    region: str
    first: int
    pages: int
    origin: str
    target: str
    trigger: str
    bytes: int
    us: float
    sim_us: float

    @property
    def evicts(self) -> bool:
        """Whether pages left a full device: told once, when they have left. One that failed ends
        where it began."""
        told = self.event == "migrate_end" and self.trigger == EVICTION
        return told and self.origin != self.target


class Lost(NamedTuple):
    """So many events were overwritten before they were read."""

    events: int


class Lines:
    """Puts together what a pipe hands over in pieces.

    ``malformed`` counts whole lines that are neither events nor comments.
    """

    def __init__(self) -> None:
        self.malformed = 0
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Event | Lost]:
        """What the lines completed by ``data`` say; a half-written end waits for the next call."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            try:
                found = parse_line(line)
            except ValueError:
                self.malformed += 1
                continue
            if found is not None:
                yield found


def parse(data: bytes) -> Iterator[Event | Lost]:
    """What a snapshot of ``DIR/trace`` says; an end without a newline is left out."""
    return Lines().feed(data)


def parse_line(line: bytes) -> Event | Lost | None:
    """One line without its newline; None of a comment. Columns after the known ones are ignored.

    Raises ValueError if it is not a line of a trace.
    """
    text = os.fsdecode(line)
    if not text or text.startswith("#"):
        lost = _LOST.fullmatch(text)
        return Lost(int(lost[1])) if lost else None
    columns = text.split(" ")
    if len(columns) < COLUMNS:
        raise ValueError(f"{len(columns)} columns instead of {COLUMNS}")
    t, device, event, region, pages, origin, target, trigger, size, us, sim_us = columns[:COLUMNS]
    return Event(
        _seconds(t),
        unescape(device),
        event,
        "" if region == NOTHING else unescape(region),
        *_span(pages),
        "" if origin == NOTHING else origin,
        "" if target == NOTHING else target,
        "" if trigger == NOTHING else trigger,
        _count(size),
        _seconds(us),
        _seconds(sim_us),
    )


def _span(text: str) -> tuple[int, int]:
    if text == NOTHING:
        return 0, 0
    match = _PAGES.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not FIRST+COUNT")
    return _count(match[1]), _count(match[2])


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20) or int(text) > LARGEST:
        raise ValueError(f"{text!r} is not a count")
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{text!r} is not a time")
    return value
