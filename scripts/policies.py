"""What `scripts/bench --policies` prints: access patterns under prefetch and eviction policies.

Every number is counted on a real mount, by a kernel that touches pages one after the other; with
one thread and one order of accesses they are the same on any machine. The time is simulated: 45 us
a fault and PCIe 3's curve for copies, added up.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import hmmfs
from hmmfs import kernels

PAGE = 4096
PAGES = 2048  # of each pattern's footprint: 8 MiB, four blocks
SHARES = (150, 100, 75, 50)  # VRAM in percent of the footprint
PREFETCH = ("none", "next", "density")
EVICTION = ("lru", "lru-page", "random", "tree", "optimal")


def streaming() -> list[int]:
    """Two passes over everything: no page is used again before all others were."""
    return list(range(PAGES)) * 2


def scattered() -> list[int]:
    """Any page, twice as many times as there are pages."""
    return np.random.default_rng(1).integers(0, PAGES, 2 * PAGES).tolist()


def strided() -> list[int]:
    """Every 32nd page, then the ones after those: 128 KiB apart."""
    return [page for first in range(32) for page in range(first, PAGES, 32)]


def stencil() -> list[int]:
    """Four sweeps over a grid of rows of 16 pages, with the rows above and below."""
    sweep = []
    for row in range(1, PAGES // 16 - 1):
        for column in range(16):
            sweep += [(row + d) * 16 + column for d in (-1, 0, 1)]
    return sweep * 4


def gemm() -> list[int]:
    """C = A @ B by tiles of 16 pages: for each tile of C a row of A's and a column of B's."""
    side, tile = 6, 16
    third = PAGES // 3 // tile * tile
    order: list[int] = []
    for i, j in itertools.product(range(side), repeat=2):
        for k in range(side):
            for matrix, row, column in ((0, i, k), (1, k, j), (2, i, j)):
                first = matrix * third + (row * side + column) * tile
                order += range(first, first + tile)
    return order


def bfs() -> list[int]:
    """Breadth first over a random graph: a vertex's page, then those of 6 neighbours."""
    rng = np.random.default_rng(2)
    neighbours = rng.integers(0, PAGES, (PAGES, 6))
    seen, queue, order = {0}, [0], []
    for vertex in queue:
        order.append(vertex)
        for other in neighbours[vertex].tolist():
            order.append(other)
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return order


PATTERNS: dict[str, Callable[[], list[int]]] = {
    "streaming": streaming,
    "random": scattered,
    "strided": strided,
    "stencil": stencil,
    "GEMM": gemm,
    "BFS": bfs,
}


class Runs:
    """One mount with so much VRAM."""

    def __init__(self, machine: hmmfs.Machine, work: Path) -> None:
        self.machine, self.work = machine, work

    def run(self, pages: list[int], prefetch: str, eviction: str) -> dict[str, int]:
        """What a device counted while it touched those pages of a region that the host had."""
        machine, trace = self.machine, self.work / "trace"
        if eviction == "optimal":
            trace.write_text("".join(f"{page // 512} {page % 512}\n" for page in pages))
            eviction = f"optimal trace={trace}"
        region = machine.region("a", PAGES * PAGE)
        with open(region.path, "r+b") as file:
            file.write(b"\1" * region.nbytes)
        files = machine.path / "devices/dev0/policy"
        (files / "prefetch").write_text(prefetch)
        (files / "eviction").write_text(eviction)
        before = machine.dev0.stats()
        accesses = [(page * PAGE, False) for page in pages]
        total = machine.dev0.launch(kernels.touch, hmmfs.reads(region), accesses).wait()
        after = machine.dev0.stats()
        region.unlink()
        if total != len(pages):
            raise SystemExit(f"bench: {len(pages)} loads saw a sum of {total}")
        return {name: after[name] - before[name] for name in after}


def rows(work: Path, patterns: list[str]) -> list[tuple[str, ...]]:
    found = []
    for share in SHARES:
        with hmmfs.mount(vram=PAGES * PAGE * share // 100, host="64M", log="/dev/null") as machine:
            runs = Runs(machine, work)
            for name in patterns:
                pages = PATTERNS[name]()
                # Where everything fits nothing is evicted.
                for prefetch in PREFETCH:
                    for eviction in EVICTION if share < 100 else ("-",):
                        did = runs.run(pages, prefetch, "lru" if eviction == "-" else eviction)
                        us = sum(did[key] for key in ("fault_ns", "copy_in_ns", "copy_out_ns"))
                        found.append(
                            (
                                name,
                                f"{share} %",
                                prefetch,
                                eviction,
                                f"{did['faults']:,}",
                                f"{did['pages_in'] * 4:,}",
                                f"{did['pages_out'] * 4:,}",
                                f"{did['thrashed_pages'] * 4:,}",
                                f"{us / 1e6:,.2f}",
                            )
                        )
    return found


SHARED = 4  # pages that a program and a device store to by turns
APART = 512 * PAGE  # out of the reach of the kernel's readahead, which takes what it likes
TURNS = 100
SHARING: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "first-touch": ({}, ()),
    "first-touch, thrashing uvm": ({"thrashing": "uvm"}, ()),
    "access-counter threshold=8": ({"placement": "access-counter threshold=8"}, ()),
    "never": ({"placement": "never"}, ()),
    "advice: accessed_by": ({}, ("accessed_by=dev0",)),
    "advice: preferred on the device": ({"thrashing": "uvm"}, ("preferred_location=dev0",)),
}


def sharing(options: dict[str, str], words: tuple[str, ...]) -> tuple[str, ...]:
    """What a program and a device that store to the same pages by turns cost each other."""
    mounted = hmmfs.mount(vram="64M", host="64M", prefetch="none", log="/dev/null", **options)
    with mounted as machine:
        region = machine.region("a", SHARED * APART)
        if words:
            region.advise(*words)
        places = [n * APART for n in range(SHARED)]
        accesses = [(place, True) for place in places]
        for _ in range(TURNS):
            for place in places:
                region.cpu[place] += 1
            machine.dev0.launch(kernels.touch, hmmfs.updates(region), accesses).wait()
        device, whole = machine.dev0.stats(), machine.stats()
        del region
    us = sum(device[key] + whole[f"host_{key}"] for key in ("fault_ns", "throttle_ns"))
    us += device["copy_in_ns"] + device["copy_out_ns"]
    throttles = device["throttles"] + whole["host_throttles"]
    pins = device["thrash_pins"] + whole["host_thrash_pins"]
    moved = device["pages_in"] + device["pages_out"]
    return (
        f"{device['faults']:,}",
        f"{whole['cpu_faults']:,}",
        f"{moved * 4:,}",
        f"{throttles:,}",
        f"{pins:,}",
        f"{us / 1e6:,.2f}",
    )


def sharing_table() -> Table:
    table = Table(title=f"{SHARED} pages that a program and a device store to, {TURNS} turns each")
    table.add_column("policy")
    for heading in (
        "device faults",
        "CPU faults",
        "KiB moved",
        "throttles",
        "pins",
        "simulated ms",
    ):
        table.add_column(heading, justify="right")
    for name, (options, words) in SHARING.items():
        table.add_row(name, *sharing(options, words))
    return table


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench --policies", description=__doc__)
    parser.add_argument("--patterns", default=",".join(PATTERNS), help="some of them, by commas")
    patterns = parser.parse_args(words).patterns.split(",")
    table = Table(title=f"{PAGES * 4} KiB touched page by page on one device")
    for heading in ("pattern", "VRAM", "prefetch", "eviction"):
        table.add_column(heading)
    for heading in ("faults", "KiB in", "KiB out", "KiB thrashed", "simulated ms"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory(prefix="hmmfs-bench-") as work:
        found = rows(Path(work), patterns)
    order = {name: at for at, name in enumerate(PATTERNS)}
    last = None
    for row in sorted(found, key=lambda row: order[row[0]]):
        if last not in (None, row[:2]):
            table.add_section()
        table.add_row(*row)
        last = row[:2]
    console = Console(width=110)
    console.print(table)
    console.print(sharing_table())
