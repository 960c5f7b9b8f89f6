"""The native core's books: what moved, why, over which links, and what became of faults.

Sums since the mount, as numpy arrays by node (0 is the host); pages unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmmfs._native import ffi, lib
from hmmfs.errors import check
from hmmfs.memory.core import Core, Region, dtype_of
from hmmfs.memory.types import BlockKey, FaultCount, Touch

CENSUS_DTYPE = dtype_of("hm_census")
CENSUS_BATCH = 256
Counts = NDArray[np.uint64]


class Flows(NamedTuple):
    """struct hm_flows."""

    moved: Counts  # [from, to]
    carried: Counts  # [from, to]
    linked: Counts  # [from, to], by link
    copies: Counts  # [from, to], by link
    link_ns: Counts  # [from, to], by link
    into: Counts  # [node, Trigger]
    out: Counts  # [node, Trigger]
    faults: Counts  # [node, FaultCount]


class RegionFlows(NamedTuple):
    """struct hm_region_flows, by node."""

    faults: Counts  # [node, FaultCount]
    evicted: Counts
    refaulted: Counts
    thrashed: Counts
    shared: Counts
    refaulted_at: Counts  # CLOCK_MONOTONIC, ns; 0: never
    shared_at: Counts


def flows(core: Core) -> Flows:
    out = ffi.new("struct hm_flows *")
    check(lib.hm_flows_get(core.handle, out), "Reading what moved")
    return Flows(*_fields(out))


def region_flows(core: Core, region: Region) -> RegionFlows:
    out = ffi.new("struct hm_region_flows *")
    check(lib.hm_region_flows_get(core.handle, region.ino, out), "Reading what moved")
    return RegionFlows(*_fields(out))


def faults(counts: Counts) -> dict[str, int]:
    """A device's faults as the files say them: `pending` is what still waits."""
    named = {what.name.lower(): int(counts[what]) for what in FaultCount}
    total = named["read"] + named["write"]
    became = sum(named.values()) - total
    return {"total": total, **named, "pending": max(0, total - became)}


def faults_failed(core: Core, node: int, key: BlockKey, touch: Touch) -> None:
    """Faults of a worker end for good without having been served."""
    pages = ffi.new("uint64_t[8]")
    ffi.memmove(pages, touch.pages, 64)
    ret = lib.hm_faults_failed(core.handle, node, key.ino, key.block, pages, touch.since)
    check(ret, "Entering a fault")


def census(core: Core, region: Region) -> Iterator[NDArray[np.void]]:
    """The touched blocks in order, as arrays of CENSUS_DTYPE, some at a time."""
    first = 0
    while True:
        batch = np.zeros(CENSUS_BATCH, dtype=CENSUS_DTYPE)
        out = ffi.cast("struct hm_census *", ffi.from_buffer(batch))
        n = check(
            lib.hm_region_census(core.handle, region.ino, first, out, CENSUS_BATCH),
            "Counting a region's pages",
        )
        yield batch[:n]
        if n < CENSUS_BATCH:
            return
        first = int(batch[-1]["block"]) + 1


def _fields(struct: Any) -> Iterator[Counts]:
    for name, field in ffi.typeof(struct[0]).fields:
        flat = np.frombuffer(ffi.buffer(ffi.addressof(struct[0], name)), dtype=np.uint64)
        ctype, shape = field.type, []
        while ctype.kind == "array":
            shape.append(ctype.length)
            ctype = ctype.item
        yield flat.reshape(shape).copy()
