"""The native core's books: what moved, why, over which links, and what became of faults.

Sums since the mount, as numpy arrays by node (0 is the host); pages unless a name says otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmmfs._native import ffi, lib
from hmmfs.errors import check
from hmmfs.memory.core import Core
from hmmfs.memory.region import Region, dtype_of
from hmmfs.memory.types import BlockKey, DeviceFault, FaultCount

BLOCK_COUNTS_DTYPE = dtype_of("hm_block_counts")
BATCH = 256  # blocks in one call
Counts = NDArray[np.uint64]
FAULT_WORDS = [(what.name.lower(), int(what)) for what in FaultCount]


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
    numbers = counts.tolist()
    named = {name: numbers[what] for name, what in FAULT_WORDS}
    total = named["read"] + named["write"]
    became = sum(named.values()) - total
    return {"total": total, **named, "pending": max(0, total - became)}


def faults_failed(core: Core, node: int, key: BlockKey, fault: DeviceFault) -> None:
    """Faults of a worker end for good without having been served."""
    pages = ffi.new("uint64_t[8]")
    ffi.memmove(pages, fault.pages, 64)
    stores = any(fault.stores)
    ret = lib.hm_faults_failed(core.handle, node, key.ino, key.block, pages, stores, fault.since)
    check(ret, "Entering a fault")


def block_counts(core: Core, region: Region) -> Iterator[NDArray[np.void]]:
    """The counts of touched blocks in order, as arrays of BLOCK_COUNTS_DTYPE, some at a time."""
    first = 0
    while True:
        batch = np.zeros(BATCH, dtype=BLOCK_COUNTS_DTYPE)
        out = ffi.cast("struct hm_block_counts *", ffi.from_buffer(batch))
        n = check(
            lib.hm_region_block_counts(core.handle, region.ino, first, out, BATCH),
            "Counting a region's pages",
        )
        yield batch[:n]
        if n < BATCH:
            return
        first = int(batch[-1]["block"]) + 1


def _fields(struct: Any) -> Iterator[Counts]:
    """Each field as an array of its own; nothing holds the struct."""
    flat = np.frombuffer(ffi.buffer(struct), dtype=np.uint64).copy()
    for first, end, shape in _layout(ffi.typeof(struct[0])):
        yield flat[first:end].reshape(shape)


@functools.cache
def _layout(ctype: Any) -> list[tuple[int, int, list[int]]]:
    """Of a struct of numbers of 8 bytes: first, end and shape of each field."""
    found = []
    for _, field in ctype.fields:
        of, shape = field.type, []
        while of.kind == "array":
            shape.append(of.length)
            of = of.item
        first = field.offset // 8
        found.append((first, first + math.prod(shape), shape))
    return found
