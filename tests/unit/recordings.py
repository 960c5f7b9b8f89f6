"""Recordings made up for tests: a device with too little memory for what it sweeps over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = 4096
BLOCK = 512  # pages
CLOCK = 7000.0
CAPACITY = 2 * BLOCK  # pages of dev0
BLOCKS = 4  # of the region
STEP = 0.125  # seconds between two faults
ROUNDS = 3
# The device holds two blocks, so from the third fault on each evicts the block before the last.
EVICTIONS = ROUNDS * BLOCKS - 2
FIRST_EVICTION = 3 * STEP - 0.0625
COUNTERS = {"pid": 1, "trace_recorded": 0}

Json = dict[str, Any]


def header(**changes: object) -> Json:
    return {
        "type": "header",
        "schema": 1,
        "hmmfs": "0.1.0",
        "mount": "/mnt/hm",
        "command": ["python", "sweep.py", "/mnt/hm"],
        "started": 1_780_000_000.0,
        "clock": CLOCK,
        "nodes": ["host", "dev0"],
        "capacity": {"host": 1 << 30, "dev0": CAPACITY * PAGE},
        "topology": "- host dev0\nhost X pcie3\ndev0 pcie3 X\n",
        "stats": COUNTERS,
        "devices": {"dev0": {"evicted_pages": 512}},
        **changes,
    }


def event(t: float, name: str, **changes: object) -> Json:
    """One of dev0 in the first block of region a; ``t`` in seconds since the command began."""
    found = {
        "type": "event",
        "t": CLOCK + t,
        "device": "dev0",
        "event": name,
        "region": "a",
        "first": 0,
        "pages": BLOCK,
        "from": "",
        "to": "",
        "trigger": "",
        "bytes": 0,
        "us": 0.0,
        "sim_us": 0.0,
    }
    assert not set(changes) - set(found) - {"origin", "target"}
    if "origin" in changes:
        changes |= {"from": changes.pop("origin"), "to": changes.pop("target")}
    return found | changes


def sample(
    t: float, resident: list[int], moved: tuple[int, int] = (0, 0), region: str = "a"
) -> Json:
    return {
        "type": "sample",
        "t": CLOCK + t,
        "used": {"dev0": len(resident) * BLOCK * PAGE},
        "regions": {
            region: {
                "size": BLOCKS * BLOCK * PAGE,
                "host": (BLOCKS - len(resident)) * BLOCK,
                "dev0": len(resident) * BLOCK,
            }
        },
        "links": {"host-dev0": {"forward": moved[0], "back": moved[1], "busy_ns": 1000}},
        "faults": {"cpu": 5, "dev0": 7},
    }


def end(t: float, status: int = 0, evicted: int = 512 + EVICTIONS * BLOCK) -> Json:
    return {
        "type": "end",
        "t": CLOCK + t,
        "status": status,
        "stats": COUNTERS,
        "devices": {"dev0": {"evicted_pages": evicted}},
    }


def sweeps(rounds: int = ROUNDS, region: str = "a") -> Iterator[Json]:
    """dev0 touches the region's blocks in turn: each comes in whole, and the oldest leaves."""
    yield header()
    yield sample(0, [], region=region)
    resident: list[int] = []
    t, forward, back = 0.0, 0, 0
    whole = BLOCK * PAGE
    for number in range(rounds * BLOCKS):
        t, block = t + STEP, number % BLOCKS
        place = {"region": region, "first": block * BLOCK}
        yield event(t - 0.1, "page_fault_start", **place, trigger="write")
        if len(resident) * BLOCK == CAPACITY:
            gone = {"region": region, "first": resident.pop(0) * BLOCK}
            way = {"origin": "dev0", "target": "host", "trigger": "eviction"}
            yield event(t - 0.09, "migrate_start", **gone, **way)
            yield event(
                t - 0.0625, "migrate_end", **gone, **way, bytes=whole, us=27500.0, sim_us=161
            )
            back += whole
            if number >= BLOCKS:
                yield event(t - 0.06, "thrashing", **place, trigger="capacity")
        way = {"origin": "host", "target": "dev0", "trigger": "device_fault"}
        yield event(t - 0.05, "migrate_start", **place, **way)
        yield event(t - 0.01, "migrate_end", **place, **way, bytes=whole, us=40000.0, sim_us=161)
        yield event(t, "page_fault_end", **place, trigger="write", us=100000.0, sim_us=45)
        resident.append(block)
        forward += whole
        yield sample(t + 0.005, resident, (forward, back), region)
    yield end(t + 0.01)


def save(path: Path, records: Iterator[Json] | list[Json]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
