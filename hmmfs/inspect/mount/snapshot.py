"""One reading of everything that a mount says in numbers: what `hmmfs smi --json` promises."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from hmmfs.common.names import unescape
from hmmfs.inspect.mount.reading import PATIENCE_S, Values, ask, line, number, text, values
from hmmfs.inspect.mount.status import by_number, usage

SCHEMA = 1

Snapshot = dict[str, Any]
DEVICE_POLICIES = ("prefetch", "eviction", "placement", "watermark")
HOST_POLICIES = ("prefetch", "thrashing")


def read_snapshot(path: str, patience_s: float = PATIENCE_S) -> Snapshot:
    """The mount on ``path`` at about one moment. HmmfsError: it does not answer, or is none.

    ``monotonic_ns`` is when it was read, on the clock of ``DIR/trace``.
    """
    return dict(ask(path, _collect, patience_s))


def links(point: str) -> dict[str, dict[str, Values]]:
    """What every device's links say, by device and the node at their other end."""
    return {
        device: {
            node: values(point, "devices", device, "links", node)
            for node in by_number(os.listdir(os.path.join(point, "devices", device, "links")))
        }
        for device in by_number(os.listdir(os.path.join(point, "devices")))
    }


def thrashing(listed: str) -> list[Snapshot]:
    """The lines of ``DIR/thrashing``: region, device, cause, pages, seconds_ago."""
    return [_thrashing(each) for each in listed.split("\n") if each]


def queue(listed: str) -> list[Snapshot]:
    """The lines of a device's queue: name (None without), verb, state, and pages done of total."""
    found = []
    for each in filter(None, listed.split("\n")):
        name, verb, state, done, total = each.rsplit(" ", 4)
        found.append(
            {
                "name": None if name == "-" else name,
                "verb": verb,
                "state": state,
                "done": int(done),
                "total": int(total),
            }
        )
    return found


def _collect(point: str) -> Snapshot:
    stats = values(point, "stats")
    return {
        "schema": SCHEMA,
        "path": point,
        "version": line(point, "version"),
        "monotonic_ns": time.monotonic_ns(),
        "stats": stats,
        "host": {
            "stats": {
                key.removeprefix("host_"): value
                for key, value in stats.items()
                if key.startswith("host_")
            },
            "policy": {name: line(point, "policy", name) for name in HOST_POLICIES},
        },
        "devices": list(_devices(point)),
        "regions": list(_regions(point)),
        "thrashing": thrashing(text(point, "thrashing")),
    }


def _devices(point: str) -> Iterator[Snapshot]:
    links_of = links(point)
    for name, found in links_of.items():
        here = os.path.join(point, "devices", name)
        yield {
            "name": name,
            "type": line(here, "type"),
            "vram": {key: number(line(here, "vram", key)) for key in ("total", "used", "visible")},
            "stats": values(here, "stats"),
            "faults": values(here, "faults"),
            "links": found,
            "queue": queue(text(here, "queue")),
            "policy": {each: line(here, "policy", each) for each in DEVICE_POLICIES},
            "excluded": line(here, "excluded") == "on",
        }


def _regions(point: str) -> Iterator[Snapshot]:
    for name, of in usage(point):
        yield {"name": name, **of}


def _thrashing(each: str) -> Snapshot:
    region, device, cause, *rest = each.split(" ")
    more = dict(word.split("=", 1) for word in rest)
    return {
        "region": unescape(region),
        "device": device,
        "cause": cause,
        "pages": int(more["pages"]),
        "stay_with_twice": int(more.get("stay_with_twice", 0)),
        "seconds_ago": float(more["seconds_ago"]),
    }
