"""``hmmfs report``: a recording as one HTML page that needs nothing else.

The page's data are one JSON object, which report.js draws. Names come from outside, so they only
ever get into the page as text: here by escaping, there by textContent.
"""

from __future__ import annotations

import html
import json
import shlex
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from hmmfs.common.names import printable
from hmmfs.common.units import format_size
from hmmfs.inspect.mount.thrash import remedy
from hmmfs.inspect.mount.trace import Event
from hmmfs.inspect.record.progress import bar
from hmmfs.inspect.record.recording import Recording, Sample
from hmmfs.inspect.report.summary import Summary, Thrash, Thrashed, summarize

REGIONS = 24  # drawn, the busiest; the others are one area
ROWS = 50  # of a table whose length the recording decides
BLOCKS = 20
LONGEST_COMMAND = 2000  # characters

Json = dict[str, Any]


def report(recording: str, path: str) -> None:
    """Write the page to ``path``. OSError, HmmfsError: one of the files can't be used."""
    with Recording(recording) as opened, bar("Reading the recording") as show:
        summary = summarize(opened, show)
        data = page_data(summary, opened.broken)
    page = render(data)
    with open(path, "w", encoding="utf-8") as file:
        file.write(page)


def render(data: Json) -> str:
    """The page. Nothing in ``data`` can end the script that holds it: no "<" stays one."""
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(f"hmmfs: {data['command']}"),
        "style": _part("report.css"),
        "script": _part("report.js"),
        "data": embedded,
    }
    before, *rest = _part("report.html").split("{{")
    return before + "".join(
        parts[name] + text for name, _, text in (piece.partition("}}") for piece in rest)
    )


def page_data(summary: Summary, broken: int) -> Json:
    """What report.js reads. Times are in seconds since the command began."""
    header, end = summary.header, summary.end
    samples = summary.shown_samples()
    return {
        "command": printable(shlex.join(header.command))[:LONGEST_COMMAND],
        "status": end.status if end else None,
        "complete": end is not None,
        "version": printable(header.version),
        "mount": printable(header.mount),
        "started": _day(header.started),
        "duration": round(summary.duration, 9),
        "nodes": header.nodes,
        "capacity": [header.capacity.get(node, 0) for node in header.nodes],
        "topology": _matrix(header.topology),
        "notes": _notes(summary, broken, len(samples)),
        "events_recorded": summary.events,
        "lost": summary.lost,
        "faults": _faults(summary),
        "ways": _tallies(
            [([printable(a), printable(b)], tally) for (a, b), tally in summary.ways.items()]
        ),
        "triggers": _tallies(
            [([printable(trigger)], tally) for trigger, tally in summary.triggers.items()]
        ),
        "evictions": summary.evictions,
        "evicted_pages": summary.evicted_pages,
        "evicted_spans": summary.evicted_spans,
        "peak": [summary.peak.get(node, 0) for node in header.nodes],
        "thrashing": [
            _verdict(summary, key, found)
            for key, found in sorted(
                summary.thrashing.items(), key=lambda item: (-item[1].pages, item[0])
            )[:ROWS]
        ],
        "blocks": _blocks(summary),
        "samples": _samples(summary, samples),
        **_events(summary, summary.shown_events()),
    }


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _day(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return ""


def _matrix(text: str) -> list[list[str]]:
    return [[printable(word) for word in line.split()[:65]] for line in text.splitlines()[:65]]


def _notes(summary: Summary, broken: int, samples: int) -> list[str]:
    """What a reader must know to trust the page; sentences."""
    notes = []
    if summary.end is None:
        notes.append(
            "The recording has no end: the recorder was killed or the mount went away, "
            "so the last moments may be missing."
        )
    traced = {summary.header.trace, summary.end.trace if summary.end else "all"} - {"all"}
    if traced:
        notes.append(
            f"The mount's trace kept {printable(' and '.join(sorted(traced)))}: other events are "
            "not in the recording, nor in figures that count events."
        )
    if summary.lost:
        notes.append(
            f"{summary.lost:,} events were lost while recording, so counts of events are too low; "
            "a larger trace_size holds more."
        )
    if broken:
        notes.append(f"{broken:,} lines of the recording could not be understood and are left out.")
    if samples < summary.samples.seen:
        notes.append(f"Of {summary.samples.seen:,} samples, {samples:,} are drawn, evenly spread.")
    for what, kept in (
        ("evictions and thrashing events", summary.marks),
        ("other events", summary.others),
    ):
        if len(kept.kept()) < kept.seen:
            notes.append(
                f"Of {kept.seen:,} {what}, {len(kept.kept()):,} are listed, evenly spread; "
                "all figures count all of them."
            )
    if len(_names(summary)) > REGIONS:
        notes.append(
            f"Of {len(_names(summary)):,} regions, the {REGIONS} with most pages moved are drawn."
        )
    return notes


def _faults(summary: Summary) -> list[Json]:
    accessors = sorted({device for device, _ in summary.faults}, key=lambda name: (len(name), name))
    return [
        {
            "accessor": printable(device),
            "read": summary.faults[device, "read"],
            "write": summary.faults[device, "write"],
            "total": sum(count for (who, _), count in summary.faults.items() if who == device),
            "us": round(summary.fault_us[device], 3),
        }
        for device in accessors[:ROWS]
    ]


def _tallies(found: list[tuple[list[str], Any]]) -> list[Json]:
    """Most bytes first."""
    return [
        {
            "name": names,
            "moves": tally.moves,
            "bytes": tally.bytes,
            "us": round(tally.us, 3),
            "sim_us": round(tally.sim_us, 3),
        }
        for names, tally in sorted(
            found, key=lambda item: (-item[1].bytes, -item[1].moves, item[0])
        )[:ROWS]
    ]


def _verdict(summary: Summary, key: Thrash, found: Thrashed) -> Json:
    region, device = printable(key.region), printable(key.device)
    clock = summary.header.clock
    return {
        "region": region,
        "device": device,
        "cause": printable(key.cause),
        "events": found.events,
        "pages": found.pages,
        "first": _since(found.first, clock),
        "last": _since(found.last, clock),
        "why": _why(summary, key),
        "advice": _advice(summary, key),
    }


def _why(summary: Summary, key: Thrash) -> str:
    device = printable(key.device)
    if key.cause == "capacity":
        size = format_size(summary.header.capacity.get(key.device, 0))
        return (
            f"Pages were evicted from {device} and wanted back: what kernels use there by turns is "
            f"more than its {size} hold."
        )
    if key.cause == "sharing":
        other = "a device" if device == "cpu" else device
        return f"Programs on the CPU and {other} kept taking the same pages from each other."
    return f"The cause that the trace gives is {printable(key.cause) or 'none'}."


def _advice(summary: Summary, key: Thrash) -> str:
    what, command = remedy(key.cause, summary.header.mount, key.region, key.device)
    return f"{what[0].upper()}{what[1:]}: {command}"


def _blocks(summary: Summary) -> list[Json]:
    busiest = sorted(
        summary.blocks.items(),
        key=lambda item: (-item[1].moves - item[1].faults, -item[1].evictions, item[0]),
    )
    return [
        {
            "region": printable(region),
            "block": block,
            "moves": activity.moves,
            "faults": activity.faults,
            "evictions": activity.evictions,
        }
        for (region, block), activity in busiest[:BLOCKS]
    ]


def _names(summary: Summary) -> list[str]:
    """Regions that a drawn sample or the last one knows, the busiest first."""
    moves: dict[str, int] = {}
    for (region, _), activity in summary.blocks.items():
        moves[region] = moves.get(region, 0) + activity.moves + activity.faults
    names = {name for sample in summary.shown_samples() for name in sample.regions}
    return sorted(names, key=lambda name: (-moves.get(name, 0), name))


def _samples(summary: Summary, samples: list[Sample]) -> Json:
    """Columns: what is cumulative counts from the first sample on."""
    nodes, clock = summary.header.nodes, summary.header.clock
    first = samples[0] if samples else None
    links = sorted({name for sample in samples for name in sample.links})[:ROWS]
    names = _names(summary)

    def since(sample: Sample, link: str, way: str) -> int:
        before = first.links.get(link, {}).get(way, 0) if first else 0
        return max(0, sample.links.get(link, {}).get(way, 0) - before)

    def resident(sample: Sample, chosen: list[str], node: str) -> int:
        return sum(sample.regions.get(name, {}).get(node, 0) for name in chosen)

    groups = [(printable(name), [name]) for name in names[:REGIONS]]
    if names[REGIONS:]:
        groups.append((f"{len(names) - REGIONS} other regions", names[REGIONS:]))
    return {
        "t": [_since(sample.t, clock) for sample in samples],
        "used": [[sample.used.get(node, 0) for sample in samples] for node in nodes],
        "regions": [
            {
                "name": title,
                "size": [resident(sample, chosen, "size") for sample in samples],
                "pages": [[resident(sample, chosen, node) for sample in samples] for node in nodes],
            }
            for title, chosen in groups
        ],
        "links": [
            {
                "name": printable(link),
                "forward": [since(sample, link, "forward") for sample in samples],
                "back": [since(sample, link, "back") for sample in samples],
            }
            for link in links
        ],
        "faults": [
            {
                "accessor": printable(accessor),
                "count": [
                    max(0, sample.faults.get(accessor, 0) - samples[0].faults.get(accessor, 0))
                    for sample in samples
                ],
            }
            for accessor in (list(first.faults)[:ROWS] if first else [])
        ],
    }


def _events(summary: Summary, events: list[Event]) -> Json:
    """Rows of numbers; those that stand for words are places in ``words``."""
    places: dict[str, int] = {}

    def place(word: str) -> int:
        return places.setdefault(printable(word), len(places))

    clock = summary.header.clock
    rows = [
        [
            _since(event.t, clock),
            place(event.device),
            place(event.event),
            place(event.region),
            event.first,
            event.pages,
            place(event.origin),
            place(event.target),
            place(event.trigger),
            event.bytes,
            event.us,
            event.sim_us,
        ]
        for event in events
    ]
    return {"events": rows, "words": list(places)}


def _since(t: float, clock: float) -> float:
    return round(max(0.0, t - clock), 9)
