"""What a mount says of itself, read from its files; nothing here writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from hmmfs.common.names import unescape
from hmmfs.inspect.mount.reading import PATIENCE_S, Values, ask, line, number, text, values

SCHEMA = 1

Status = dict[str, Any]


def read_status(path: str, patience_s: float = PATIENCE_S) -> Status:
    """The state of the mount on ``path``, in the form that ``hmmfs status --json`` promises."""
    return dict(ask(path, _collect, patience_s))


def by_number(names: list[str]) -> list[str]:
    """Devices in their order: dev10 after dev9."""
    return sorted(names, key=lambda name: (len(name), name))


def _collect(point: str) -> Status:
    return {
        "schema": SCHEMA,
        "path": point,
        "version": line(point, "version"),
        "stats": values(point, "stats"),
        "devices": list(_devices(point)),
        "regions": list(_regions(point)),
    }


def _devices(point: str) -> Iterator[Status]:
    for name in by_number(os.listdir(os.path.join(point, "devices"))):
        yield {
            "name": name,
            "vram": {
                key: number(line(point, "devices", name, "vram", key)) for key in ("total", "used")
            },
            "stats": values(point, "devices", name, "stats"),
        }


def _regions(point: str) -> Iterator[Status]:
    for name, of in usage(point):
        yield {"name": name, "residency": of["residency"]}


def usage(point: str) -> Iterator[tuple[str, dict[str, Values]]]:
    """Of each region by name what its files `residency` and `faults` say, all from one file."""
    head, *rows = text(point, "usage").rstrip("\n").split("\n")
    columns = [word.split(".", 1) for word in head.split(" ")[2:]]
    found = []
    for row in rows:
        name, *numbers = row.split(" ")
        of: dict[str, Values] = {"residency": {}, "faults": {}}
        for (kind, key), value in zip(columns, numbers, strict=True):
            of[kind][key] = int(value)
        found.append((unescape(name), of))
    yield from sorted(found)
