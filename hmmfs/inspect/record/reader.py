"""The process that reads a mount for ``hmmfs record`` and writes its file."""

from __future__ import annotations

import functools
import json
import math
import os
import select
import time
from typing import IO, Any, Protocol

from hmmfs.inspect.mount.trace import Lines, Lost
from hmmfs.inspect.record.recording import SCHEMA, encode, encode_event
from hmmfs.inspect.record.sampling import Sampler

READ = 1 << 20  # bytes
REST_S = 0.003  # between two looks at the trace: long enough to cost nothing
FLUSH_S = 1.0  # at most so much is lost if all is killed
LIGHT = 4  # sampling may take one part in so many of the time
REPORT = 1 << 16  # events


class Say(Protocol):
    def __call__(self, **word: object) -> None: ...


class Reader:
    """Reads from before the command's start to its end.

    On ``control`` come the lines "start CLOCK TIME" and "end CLOCK STATUS"; an end of file there
    means that nobody waits any more, so there will be no end in the recording.
    """

    def __init__(
        self,
        point: str,
        file: IO[bytes],
        command: list[str],
        interval_s: float,
        control: int,
        say: Say,
    ) -> None:
        self._point = point
        self._file = file
        self._command = command
        self._interval_s = interval_s
        self._control = control
        self._say = say
        self._quoted = functools.lru_cache(maxsize=4096)(json.dumps)
        self._lines = Lines()
        self._start = self._stop = float("inf")  # CLOCK_MONOTONIC, of the command
        self._last: list[str] | None = None  # what control said of the end: nothing if it closed
        self._events = self._lost = 0
        self._drained = self._flushed = 0.0
        self._rest = b""

    def run(self) -> dict[str, object]:
        """The last word to say. OSError: something cannot be read or written."""
        self._trace = os.open(
            os.path.join(self._point, "trace_pipe"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )
        try:
            self._sampler = Sampler(self._point)
            self._machine = self._sampler.machine()
            self._drain()
            first = self._sampler.sample(self._drain)
            self._say(ready=True, trace=self._machine["trace"])
            word = self._hear(None)
            if not word:  # there is no such command
                return {}
            self._begin(float(word[1]), float(word[2]), first)
            self._follow()
            return self._finish(self._last or [])
        finally:
            os.close(self._trace)

    def _begin(self, clock: float, started: float, first: dict[str, Any]) -> None:
        self._start = clock
        header = {
            "type": "header",
            "schema": SCHEMA,
            "mount": self._point,
            "command": self._command,
            "started": started,
            "clock": clock,
        }
        self._file.write(encode(header | self._machine))
        self._file.write(encode({"type": "sample", "t": clock, **first}))
        self._flush()

    def _follow(self) -> None:
        """Until the command has ended."""
        poll = select.poll()
        poll.register(self._trace, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        due = self._start + self._interval_s
        while not self._ended(REST_S):
            poll.poll(max(0.0, due - time.monotonic()) * 1000)
            now = time.monotonic()
            if now >= due and not self._ended():
                self._write_sample()
                took = time.monotonic() - now
                due = max(due + self._interval_s, now + LIGHT * took)
            self._drain()
            if time.monotonic() - self._flushed > FLUSH_S:
                self._flush()

    def _ended(self, patience_s: float = 0) -> bool:
        """Whether the command has, or the recorder is gone."""
        if self._last is None and select.select([self._control], [], [], patience_s)[0]:
            self._last = self._hear(0)
            if self._last:
                self._stop = float(self._last[1])
        return self._last is not None

    def _finish(self, word: list[str]) -> dict[str, object]:
        if not word:
            self._drain(to_the_end=True)
            self._file.flush()
            return {}
        self._drain(to_the_end=True)
        self._write_sample(self._stop)
        end = {
            "type": "end",
            "t": self._stop,
            "status": int(word[2]),
            "trace": self._sampler.trace(),
            "stats": self._sampler.stats(),
            "devices": self._sampler.device_stats(),
        }
        self._file.write(encode(end))
        self._file.flush()
        return {"events": self._events, "lost": self._lost, "trace": end["trace"]}

    def _write_sample(self, at: float | None = None) -> None:
        t = time.monotonic() if at is None else at
        self._file.write(encode({"type": "sample", "t": t, **self._sampler.sample(self._between)}))

    def _between(self) -> None:
        if time.monotonic() - self._drained > REST_S:
            self._drain()

    def _drain(self, to_the_end: bool = False) -> None:
        """Everything that there is now.

        Programs that fill the ring faster than it is read hold this up for no longer than a sample
        is away; in the end, than it takes to reach an event that came later.
        """
        until = time.monotonic() + self._interval_s
        while to_the_end or time.monotonic() < until:
            try:
                data = os.read(self._trace, READ)
            except BlockingIOError:
                break
            # Asked after reading: a late reader has events in hand of after the end.
            if math.isfinite(self._start):
                self._ended()
            if not data or not self._write_events(data):
                break
        self._drained = time.monotonic()

    def _write_events(self, data: bytes) -> bool:
        """False once what was read is of after the command's end."""
        now, later = time.monotonic(), False
        for found in self._lines.feed(data):
            if isinstance(found, Lost):
                if self._start <= now:
                    self._lost += found.events
                    self._file.write(encode({"type": "lost", "t": now, "events": found.events}))
            elif found.t > self._stop:
                later = True
            elif found.t >= self._start:
                self._file.write(encode_event(found, self._quoted))
                self._events += 1
                if self._events % REPORT == 0:
                    self._say(written=self._events)
        return not later

    def _flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def _hear(self, patience_s: float | None) -> list[str]:
        """The next line of control as words; nothing if there will be none."""
        while b"\n" not in self._rest:
            if not select.select([self._control], [], [], patience_s)[0]:
                return []
            data = os.read(self._control, 4096)
            if not data:
                return []
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode().split()
