"""What the control files say of nodes, links and regions. Only reads."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hmmfs.common.names import escaped
from hmmfs.common.units import LARGEST
from hmmfs.device.links import Topology
from hmmfs.errors import HmmfsError
from hmmfs.filesystem.advice import node_name
from hmmfs.memory import (
    BLOCK_BYTES,
    BLOCK_PAGES,
    HOST,
    PAGE_SIZE,
    Advice,
    Core,
    NumaMode,
    Region,
    RegionTable,
    Trigger,
    accounts,
)

# One character of a map is so many pages that the whole region has no more characters than these.
MAP_CHARACTERS = 4096
MAP_ROW = 64
MAP_NODES = "h0123456789abcde"
USAGE = ("residency", "faults")  # files of state/NAME
# Blanks, control characters, the backslash, and U+2028 and U+2029, where some readers end a line.
_NUMA_WORDS = {
    NumaMode.DEFAULT: "default",
    NumaMode.BIND: "bind:",
    NumaMode.PREFERRED: "prefer:",
    NumaMode.INTERLEAVE: "interleave:",
}


def table(values: Mapping[str, int | str]) -> str:
    return "".join(f"{key} {value}\n" for key, value in values.items())


# ---- nodes and links


def stats(core: Core, pid: int, born_ns: int) -> dict[str, int]:
    """The whole mount, in the manner of /proc/vmstat."""
    flows = accounts.flows(core)
    values = {"pid": pid, "uptime_ns": time.monotonic_ns() - born_ns, **core.stats()}
    for one in range(core.nodes):
        for two in range(core.nodes):
            if one != two:
                pair = f"{node_name(one)}_{node_name(two)}"
                values[f"pages_{pair}"] = int(flows.moved[one, two])
                values[f"bytes_{pair}"] = int(flows.carried[one, two]) * PAGE_SIZE
    return values | {f"host_{key}": value for key, value in node_stats(core, HOST).items()}


def node_stats(core: Core, node: int) -> dict[str, int]:
    """A node's counters, and what came and went by what it was for."""
    flows = accounts.flows(core)
    values = core.node_stats(node)
    for word, counts in (("in", flows.into), ("out", flows.out)):
        values |= {f"{word}_{why.name.lower()}": int(counts[node, why]) for why in Trigger}
    return values


def node_faults(core: Core, node: int) -> dict[str, int]:
    return accounts.faults(accounts.flows(core).faults[node])


def link(core: Core, topology: Topology, node: int, other: int) -> dict[str, int | str]:
    """The link of two nodes as `node` sees it; where there is none, copies go through the host, and
    are counted by the links that they take."""
    found, flows = topology.between(node, other), accounts.flows(core)
    latency, long = (topology.run_ns(node, other, pages) for pages in (1, BLOCK_PAGES))
    return {
        "type": found.name if found else "host",
        "latency_ns": latency,
        "bandwidth": round(BLOCK_PAGES * PAGE_SIZE / long * 1e9) if long else 0,
        "bytes_in": int(flows.linked[other, node]) * PAGE_SIZE,
        "bytes_out": int(flows.linked[node, other]) * PAGE_SIZE,
        "copies_in": int(flows.copies[other, node]),
        "copies_out": int(flows.copies[node, other]),
        "busy_ns": int(flows.link_ns[other, node] + flows.link_ns[node, other]),
    }


def thrashing(core: Core, regions: RegionTable) -> str:
    """A line for each region, device and cause, most pages first."""
    now, found = time.monotonic_ns(), []
    for name, region in regions.listed():
        flows = accounts.region_flows(core, region)
        for cause, pages, last in (
            ("capacity", flows.refaulted, flows.refaulted_at),
            ("sharing", flows.shared, flows.shared_at),
        ):
            for node in np.flatnonzero(pages[: core.nodes]):
                words = f"pages={pages[node]}"
                if cause == "capacity":
                    words += f" stay_with_twice={flows.thrashed[node]}"
                words += f" seconds_ago={max(0, now - int(last[node])) / 1e9:.1f}"
                found.append((-int(pages[node]), escaped(name), int(node), cause, words))
    found.sort()
    return "".join(
        f"{name} {node_name(node)} {cause} {words}\n" for _, name, node, cause, words in found
    )


# ---- regions


def residency(core: Core, region: Region) -> dict[str, int]:
    found = region.residency()
    values = {f"pages_{node_name(node)}": pages for node, pages in enumerate(found.pages)}
    return values | {
        "dirty_host": found.dirty_host,
        "dirty_device": found.dirty_device,
        "cpu_cached": found.cpu_cached,
        "kept": found.kept,
        "copies": found.copies,
        "reserved": found.reserved,
        "size": region.size,
    }


def region_faults(core: Core, region: Region) -> dict[str, int]:
    flows = accounts.region_flows(core, region)
    cpu = accounts.faults(flows.faults[HOST])
    values = {"cpu": cpu["total"], "cpu_read": cpu["read"], "cpu_write": cpu["write"]}
    for node in range(1, core.nodes):
        name = node_name(node)
        by = accounts.faults(flows.faults[node])
        values[name] = by.pop("total")
        values |= {f"{name}_{what}": count for what, count in by.items()}
        for what in ("evicted", "refaulted", "thrashed", "shared"):
            values[f"{name}_{what}"] = int(getattr(flows, what)[node])
    return values


def usage(core: Core, regions: RegionTable) -> str:
    """A row for each region: its name, and what its residency and its faults say."""
    rows: list[str] = []
    head = "# region"
    for name, region in regions.listed():
        try:
            found = (residency(core, region), region_faults(core, region))
        except HmmfsError:  # it has gone: this runs in a thread
            continue
        if not rows:
            words = (f"{kind}.{key}" for kind, of in zip(USAGE, found, strict=True) for key in of)
            head = " ".join([head, *words])
        counts = (str(count) for of in found for count in of.values())
        rows.append(" ".join([escaped(name), *counts]))
    return "".join(f"{row}\n" for row in [head, *rows])


def blocks(core: Core, region: Region) -> str:
    """A row for each touched block."""
    names = [node_name(node) for node in range(core.nodes)]
    counts = ("dirty", "cached", "kept", "cpu_faults", "device_faults", "evictions")
    rows = [" ".join(["#", "block", *names, *counts])]
    for batch in accounts.block_counts(core, region):
        for one in batch:
            numbers = [one["block"], *one["pages"][: core.nodes], *(one[key] for key in counts)]
            rows.append(" ".join(map(str, numbers)))
    return "\n".join(rows) + "\n"


def pages_a_character(size: int) -> int:
    """Of a region that has pages up to so many bytes: a power of two."""
    pages = -(-size // PAGE_SIZE)
    return 1 << max(0, (-(-pages // MAP_CHARACTERS) - 1).bit_length())


def map_text(core: Core, region: Region) -> str:
    """Which nodes have pages, a character for a range of pages; rows without pages are left out."""
    touched = [one for batch in accounts.block_counts(core, region) for one in batch]
    # There may be pages past the end: fallocate can do without making a file longer.
    extent = max(region.size, (int(touched[-1]["block"]) + 1) * BLOCK_BYTES if touched else 0)
    width = pages_a_character(extent)
    counts = np.zeros((core.nodes, MAP_CHARACTERS), dtype=np.int64)
    for one in touched:
        _add_to_map(counts, one, width)
    lines = [
        f"# one character is {width} pages: . nothing, h host, 0-9 a-e device, + several nodes"
    ]
    used = np.flatnonzero(counts.any(0))
    end = max(-(-region.size // (width * PAGE_SIZE)), int(used[-1]) + 1 if len(used) else 0)
    for first in range(0, MAP_CHARACTERS, MAP_ROW):
        row = counts[:, first : first + MAP_ROW]
        if row.any():
            shown = _characters(row)[: end - first]
            totals = (
                f"{node_name(node)}={total}" for node, total in enumerate(row.sum(1)) if total
            )
            lines.append(f"{first * width * PAGE_SIZE:012x} {shown} {' '.join(totals)}")
    return "\n".join(lines) + "\n"


def _add_to_map(counts: NDArray[np.int64], block: np.void, width: int) -> None:
    nodes = len(counts)
    first = int(block["block"]) * BLOCK_PAGES // width
    if width >= BLOCK_PAGES:
        counts[:, first] += block["pages"][:nodes]
        return
    bits = np.unpackbits(block["on"][:nodes].view(np.uint8), axis=1, bitorder="little")
    cells = bits.reshape(nodes, BLOCK_PAGES // width, width).sum(2, dtype=np.int64)
    counts[:, first : first + cells.shape[1]] += cells


def _characters(row: NDArray[np.int64]) -> str:
    several = (row > 0).sum(0)
    most = row.argmax(0)
    return "".join(
        "." if not n else MAP_NODES[node] if n == 1 else "+"
        for n, node in zip(several, most, strict=True)
    )


def numa_maps(core: Core, region: Region) -> str:
    """As /proc/PID/numa_maps: a line for each range that something else was said of. N0 is the
    host, N1 dev0 and so on."""
    ranges = list(_ranges(region))
    counts = [np.zeros(core.nodes + 1, dtype=np.int64) for _ in ranges]
    for batch in accounts.block_counts(core, region):
        for one in batch:
            _add_to_ranges(ranges, counts, one, core.nodes)
    name = escaped(region.name)
    lines = []
    for (first, _, policy), found in zip(ranges, counts, strict=True):
        words = [f"{first * PAGE_SIZE:012x}", policy, f"file=/regions/{name}"]
        pages = int(found[:-1].sum())
        if first * PAGE_SIZE >= max(1, region.size) and not pages:
            continue
        if pages:
            words.append(f"mapped={pages}")
        if found[-1]:
            words.append(f"dirty={found[-1]}")
        words += [f"N{node}={n}" for node, n in enumerate(found[:-1]) if n]
        lines.append(" ".join([*words, f"kernelpagesize_kB={PAGE_SIZE // 1024}"]))
    return "".join(f"{line}\n" for line in lines)


def _ranges(region: Region) -> Iterator[tuple[int, int, str]]:
    """(first page, end, policy) of all that the file has, and may have past its end."""
    end, at = LARGEST // PAGE_SIZE, 0
    mode, nodes = region.numa
    default = _NUMA_WORDS[mode] + ",".join(map(str, nodes))
    for one in region.advice():
        if one.first > at:
            yield at, min(one.first, end), default
        if one.first < end:
            yield max(one.first, at), min(one.first + one.count, end), _policy(one, default)
        at = max(at, one.first + one.count)
        if at >= end:
            return
    if at < end:
        yield at, end, default


def _policy(one: Advice, default: str) -> str:
    return default if one.preferred is None else f"prefer:{one.preferred}"


def _add_to_ranges(
    ranges: list[tuple[int, int, str]], counts: list[NDArray[np.int64]], block: np.void, nodes: int
) -> None:
    base = int(block["block"]) * BLOCK_PAGES
    words = np.concatenate([block["on"][:nodes], block["dirty_on"][None, :]])
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    at = bisect.bisect_right(ranges, base, key=lambda one: one[0]) - 1
    while at < len(ranges) and ranges[at][0] < base + BLOCK_PAGES:
        low, high = max(ranges[at][0] - base, 0), min(ranges[at][1] - base, BLOCK_PAGES)
        counts[at] += bits[:, low:high].sum(1, dtype=np.int64)
        at += 1
