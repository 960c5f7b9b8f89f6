"""Whether a mount's numbers agree with each other, by its files alone.

What came to a node is there or went; what moved by pair of nodes, and by what it was for, is all
that moved; so with faults; the map, the blocks and the NUMA maps of a region count the pages that
its residency does; the bytes of links and those of the trace are those of the pairs. All of it
holds at rest; while something runs, files are read at different moments. What regions without a
name have is not known: while there are some, no less may have come than is there.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TRIGGERS = ("cpu_fault", "device_fault", "prefetch", "eviction", "operation")
BECAME = (
    *("migrated", "populated", "mapped", "copied", "upgraded"),
    *("duplicate", "stale", "failed", "pending"),
)


def disagreements(mount: Path) -> list[str]:
    """A sentence for each sum that is wrong; empty if all agree."""
    nodes = ["host", *sorted((path.name for path in (mount / "devices").iterdir()), key=_number)]
    stats = _values(mount / "stats")
    books = {"host": {key[5:]: n for key, n in stats.items() if key.startswith("host_")}}
    books |= {name: _values(mount / "devices" / name / "stats") for name in nodes[1:]}
    regions = list((mount / "state").iterdir())
    residency = {path: _values(path / "residency") for path in regions}
    checks = itertools.chain(
        _nodes(nodes, stats, books, list(residency.values())),
        _faults(mount, nodes[1:], books),
        *(_region(path, nodes, found) for path, found in residency.items()),
        _links(mount, nodes, stats),
        _trace(mount, nodes, stats),
    )
    return [f"{what}: {one} is not {other}." for what, one, other in checks if one != other]


Check = tuple[str, object, object]


def _nodes(
    nodes: list[str],
    stats: dict[str, int],
    books: dict[str, dict[str, int]],
    residency: list[dict[str, int]],
) -> Iterator[Check]:
    for name in nodes:
        book = books[name]
        resident = sum(found[f"pages_{name}"] for found in residency)
        came = book["pages_in"] + book["populated_pages"]
        went = book["pages_out"] + book["dropped_pages"]
        here = went + resident
        if stats["regions"] > len(residency):
            here = max(here, came)
        yield f"pages that came to {name}, and those that went or are there", came, here
        others = [other for other in nodes if other != name]
        into = sum(stats[f"pages_{other}_{name}"] for other in others)
        out = sum(stats[f"pages_{name}_{other}"] for other in others)
        yield f"pages into {name} by node", into, book["pages_in"]
        yield f"pages out of {name} by node", out, book["pages_out"]
        yield (
            f"pages into {name} by trigger",
            sum(book[f"in_{why}"] for why in TRIGGERS),
            book["pages_in"],
        )
        yield (
            f"pages out of {name} by trigger",
            sum(book[f"out_{why}"] for why in TRIGGERS),
            book["pages_out"],
        )


def _faults(mount: Path, devices: list[str], books: dict[str, dict[str, int]]) -> Iterator[Check]:
    for name in devices:
        found = _values(mount / "devices" / name / "faults")
        yield f"faults of {name}", found["total"], books[name]["faults"]
        yield f"faults of {name} by access", found["read"] + found["write"], found["total"]
        yield f"faults of {name} by cause", sum(found[word] for word in BECAME), found["total"]
        yield f"faults of {name} that wait", found["pending"], 0


def _region(path: Path, nodes: list[str], residency: dict[str, int]) -> Iterator[Check]:
    pages = Counter({name: n for name in nodes if (n := residency[f"pages_{name}"])})
    drawn: Counter[str] = Counter()
    for line in _lines(path / "map"):
        for word in line.split()[2:]:
            node, _, count = word.partition("=")
            drawn[node] += int(count)
    yield f"the map of {path.name!r}", drawn, pages
    listed: Counter[str] = Counter()
    dirty = 0
    for line in _lines(path / "blocks"):
        numbers = list(map(int, line.split()))
        listed.update({node: n for node, n in zip(nodes, numbers[1:], strict=False) if n})
        dirty += numbers[1 + len(nodes)]
    yield f"the blocks of {path.name!r}", listed, pages
    said = residency["dirty_host"] + residency["dirty_device"]
    yield f"the dirty pages of {path.name!r}", dirty, said
    numa: Counter[str] = Counter()
    for line in _lines(path / "numa_maps"):
        for number, count in re.findall(r" N(\d+)=(\d+)", line):
            numa[nodes[int(number)]] += int(count)
    yield f"the NUMA maps of {path.name!r}", numa, pages


def _links(mount: Path, nodes: list[str], stats: dict[str, int]) -> Iterator[Check]:
    """Between devices without a link copies take those of both to the host."""
    took: Counter[tuple[str, str]] = Counter()
    found = {
        (one, two): _words(mount / "devices" / one / "links" / two)
        for one in nodes[1:]
        for two in nodes
        if one != two
    }
    for one, two in itertools.permutations(nodes, 2):
        carried = stats[f"bytes_{one}_{two}"]
        direct = "host" in (one, two) or found[one, two]["type"] != "host"
        for pair in [(one, two)] if direct else [(one, "host"), ("host", two)]:
            took[pair] += carried
    for (one, two), link in found.items():
        if link["type"] != "host":
            yield (
                f"bytes from {two} to {one} over their link",
                int(link["bytes_in"]),
                took[two, one],
            )
            yield (
                f"bytes from {one} to {two} over their link",
                int(link["bytes_out"]),
                took[one, two],
            )


def _trace(mount: Path, nodes: list[str], stats: dict[str, int]) -> Iterator[Check]:
    """Where it has all that happened."""
    kept = int((mount / "trace_size").read_text())
    whole = (mount / "trace_filter").read_text() == "all\n"
    lines = list(_lines(mount / "trace"))
    if not whole or stats["trace_recorded"] > kept or len(lines) < stats["trace_recorded"]:
        return
    seen: Counter[tuple[str, str]] = Counter()
    begun: set[tuple[str, str, str, int]] = set()
    ended: set[tuple[str, str, str, int]] = set()
    for line in lines:
        time, device, event, region, _, one, two, _, count, took, _ = line.split(" ")
        if int(count):
            seen[one, two] += int(count)
        what, _, end = event.rpartition("_")
        if what in ("page_fault", "migrate"):  # an end says for how long it was under way
            since = _ns(time) - (_ns(took) if end == "end" else 0)
            (begun if end == "start" else ended).add((what, device, region, since))
    for what, device, region, since in begun ^ ended:
        yield f"the {what} of {device} on {region} that began at {since} ns", "one", "whole"
    for one, two in itertools.permutations(nodes, 2):
        told = stats[f"bytes_{one}_{two}"]
        yield f"bytes from {one} to {two} in the trace", seen[one, two], told


# ---- files


def _ns(decimal: str) -> int:
    """Of seconds with 9 decimals, or of microseconds with 3."""
    return int(decimal.replace(".", ""))


def _number(name: str) -> int:
    return int(name.removeprefix("dev"))


def _lines(path: Path) -> Iterator[str]:
    text = path.read_text(errors="surrogateescape")
    return (line for line in text.splitlines() if not line.startswith("#"))


def _words(path: Path) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in path.read_text().splitlines())


def _values(path: Path) -> dict[str, int]:
    return {key: int(value) for key, value in _words(path).items()}
