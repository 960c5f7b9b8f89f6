"""What a mount says of itself, read from its files; nothing here writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from hmmfs.inspect.reading import PATIENCE_S, ask, line, number, values

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
    for name in sorted(os.listdir(os.path.join(point, "state"))):
        try:
            yield {"name": name, "residency": values(point, "state", name, "residency")}
        except FileNotFoundError:  # unlinked since it was listed
            continue
