"""The test keeps its own books of the traffic, and compares every number of every view with them.
The amounts differ by direction and by device, and there are as many devices as there may be."""

from __future__ import annotations

import csv
import io
import json
import mmap
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, Mount, mounted, run
from test_metrics import key, scrape

import hmmfs
from hmmfs.inspect.smi.query import FIELDS

PAGE = 4096
BLOCK = 512 * PAGE
DEVICES = 15
NODES = ["host", *(f"dev{number}" for number in range(DEVICES))]
VRAM = 512  # pages
HOST = 16384
Fields = dict[str, int]


class Books:
    """What the traffic is to have made of each node, and of each pair."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[str]] = defaultdict(Counter)
        self.pages: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[tuple[str, str]] = Counter()
        self.here: dict[str, Counter[str]] = defaultdict(Counter)

    def move(self, region: str, one: str, two: str, pages: int, why: str, copies: int = 1) -> None:
        self.pages[one, two] += pages
        self.copies[one, two] += copies
        self.here[region].update({one: -pages, two: pages})
        self.of[one][f"out_{why}"] += pages
        self.of[two][f"in_{why}"] += pages

    def populate(self, region: str, node: str, pages: int) -> None:
        self.here[region][node] += pages
        self.of[node]["populated_pages"] += pages

    def drop(self, region: str, node: str, pages: int) -> None:
        self.here[region][node] -= pages
        self.of[node]["dropped_pages"] += pages

    def used(self, node: str) -> int:
        return sum(here[node] for here in self.here.values())

    def into(self, node: str) -> int:
        return sum(pages for (_, two), pages in self.pages.items() if two == node)

    def out_of(self, node: str) -> int:
        return sum(pages for (one, _), pages in self.pages.items() if one == node)


def some(a: np.ndarray[Any, Any], first: int, loads: int, stores: int) -> None:
    """Load from as many pages from the first on, and store to those behind them."""
    for page in range(first, first + loads):
        assert a[page * PAGE] == ord("a")
    for page in range(first + loads, first + loads + stores):
        a[page * PAGE] = 1


def at(device: int) -> int:
    """The bytes of region a that are the device's to begin with, and some of the host's."""
    return device * BLOCK


def traffic(mount: Mount) -> Books:
    books = Books()
    machine = hmmfs.connect(mount.path)
    machine.region("a", DEVICES * BLOCK)
    path = mount.regions / "a"
    path.write_bytes(b"a" * (DEVICES * BLOCK))
    books.populate("a", "host", DEVICES * VRAM)
    for device in range(DEVICES):
        name = f"dev{device}"
        mount.submit(device, f"migrate a:{at(device)}+{(20 + device) * PAGE} to {name}")
        books.move("a", "host", name, 20 + device, "prefetch")
    for device in range(DEVICES):
        mount.submit(device, f"migrate a:{at(device)}+{(1 + device) * PAGE} to host")
        books.move("a", f"dev{device}", "host", 1 + device, "prefetch")
    mount.submit(1, f"migrate a:{at(0) + PAGE}+{3 * PAGE} to dev1")
    books.move("a", "dev0", "dev1", 3, "prefetch")
    programs(mount, books)
    faults(machine, books)
    operations(mount, books)
    return books


def programs(mount: Mount, books: Books) -> None:
    """Load five pages of dev3, and write two of dev4."""
    with (mount.regions / "a").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory.madvise(mmap.MADV_RANDOM)
        for page in range(5):
            assert memory[at(3) + (10 + page) * PAGE] == ord("a")
        for page in range(2):
            os.pwrite(file.fileno(), b"w" * PAGE, at(4) + (10 + page) * PAGE)
    books.move("a", "dev3", "host", 5, "cpu_fault", 5)
    books.move("a", "dev4", "host", 2, "cpu_fault", 2)
    books.of["host"].update({"cpu_faults": 7, "cpu_read_faults": 5, "cpu_write_faults": 2})


def faults(machine: hmmfs.Machine, books: Books) -> None:
    """A kernel on dev2 loads from four pages of the host, and stores to six."""
    region = machine.region("a", DEVICES * BLOCK)
    machine.dev2.launch(some, hmmfs.updates(region), at(2) // PAGE + 256, 4, 6).wait()
    books.move("a", "host", "dev2", 10, "device_fault", 10)
    books.of["dev2"].update({"faults": 10, "read": 4, "write": 6, "migrated": 10})


def operations(mount: Mount, books: Books) -> None:
    """dev5 fills new pages, and the test cuts half of them; dev6 evicts to fill a region."""
    mount.region("b", 16 * PAGE)
    mount.submit(5, "fill b 7")
    books.populate("b", "dev5", 16)
    os.truncate(mount.regions / "b", 8 * PAGE)
    books.drop("b", "dev5", 8)
    mount.region("c", VRAM * PAGE)
    mount.submit(6, "fill c 1")
    books.move("a", "dev6", "host", books.here["a"]["dev6"], "eviction")
    books.populate("c", "dev6", VRAM)
    books.of["dev6"].update(
        {"evicted_blocks": 1, "evicted_pages": books.of["dev6"]["out_eviction"]}
    )
    mount.submit(7, f"checksum a:{at(7) + 100 * PAGE}+{11 * PAGE}")
    books.move("a", "host", "dev7", 11, "operation")
    books.of["dev5"]["operations"] = books.of["dev6"]["operations"] = 1
    books.of["dev7"]["operations"] = 1


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Books]]:
    sizes = {"devices": DEVICES, "vram": VRAM * PAGE, "host": HOST * PAGE}
    exact = {"prefetch": "none", "keep_clean": "off", "metrics_port": 0}
    with mounted(tmp_path_factory.mktemp("numbers"), PATIENCE_S, **sizes, **exact) as mount:
        yield mount, traffic(mount)


WHY = ("cpu_fault", "device_fault", "prefetch", "eviction", "operation")


def expected(books: Books, node: str) -> Fields:
    of = books.of[node]
    found = {
        "capacity": VRAM if node != "host" else HOST,
        "used": books.used(node),
        "pages_in": books.into(node),
        "pages_out": books.out_of(node),
        **{f"{way}_{why}": of[f"{way}_{why}"] for way in ("in", "out") for why in WHY},
    }
    words = ("populated_pages", "dropped_pages", "evicted_pages", "evicted_blocks")
    return found | {word: of[word] for word in words}


@pytest.mark.parametrize("node", NODES)
def test_stats(worked: tuple[Mount, Books], node: str) -> None:
    mount, books = worked
    if node == "host":
        stats = mount.values("stats")
        found = {name[5:]: n for name, n in stats.items() if name.startswith("host_")}
    else:
        found = mount.values(f"devices/{node}/stats")
        said = mount.values(f"devices/{node}/faults")
        assert found["faults"] == said["total"] == books.of[node]["faults"]
        for word in ("read", "write", "migrated"):
            assert said[word] == books.of[node][word], word
        assert found["operations"] == books.of[node]["operations"]
    right = expected(books, node)
    assert {name: found[name] for name in right} == right


def test_pairs(worked: tuple[Mount, Books]) -> None:
    mount, books = worked
    stats = mount.values("stats")
    for one in NODES:
        for two in NODES:
            if one != two:
                pages = books.pages[one, two]
                assert stats[f"pages_{one}_{two}"] == pages
                assert stats[f"bytes_{one}_{two}"] == pages * PAGE
    for word in ("cpu_faults", "cpu_read_faults", "cpu_write_faults"):
        assert stats[word] == books.of["host"][word]
    assert stats["written_bytes"] == DEVICES * BLOCK + 2 * PAGE
    assert stats["regions"] == 3


Pairs = Counter[tuple[str, str]]


def over_links(books: Books) -> tuple[Pairs, Pairs]:
    """Pages and copies: between devices without a link they take those of both to the host."""
    return (
        books.pages + Counter({("dev0", "host"): 3, ("host", "dev1"): 3}),
        books.copies + Counter({("dev0", "host"): 1, ("host", "dev1"): 1}),
    )


def test_links(worked: tuple[Mount, Books]) -> None:
    mount, books = worked
    carried, copies = over_links(books)
    for name in NODES[1:]:
        text = (mount.path / f"devices/{name}/links/host").read_text()
        link = dict(line.split(" ", 1) for line in text.splitlines())
        assert int(link["bytes_in"]) == carried["host", name] * PAGE
        assert int(link["bytes_out"]) == carried[name, "host"] * PAGE
        assert int(link["copies_in"]) == copies["host", name]
        assert int(link["copies_out"]) == copies[name, "host"]


def test_regions(worked: tuple[Mount, Books]) -> None:
    mount, books = worked
    for region, here in books.here.items():
        found = mount.residency(region)
        assert {node: found[f"pages_{node}"] for node in NODES} == {
            node: here[node] for node in NODES
        }
        status = os.stat(mount.regions / region)
        assert status.st_blocks * 512 == sum(here.values()) * PAGE
        assert status.st_size == found["size"]
    assert [mount.residency(region)["size"] for region in "abc"] == [
        DEVICES * BLOCK,
        8 * PAGE,
        VRAM * PAGE,
    ]


def test_smi(worked: tuple[Mount, Books]) -> None:
    mount, books = worked
    carried, copies = over_links(books)
    text = run("smi", str(mount.path), "--query", ",".join(FIELDS)).stdout
    head, *rows = csv.reader(io.StringIO(text))
    assert [row[0] for row in rows] == NODES[1:]
    for node, cells in zip(NODES[1:], rows, strict=True):
        row = dict(zip((cell.partition(" [")[0] for cell in head), cells, strict=True))
        of, used = books.of[node], books.used(node)
        right = {
            "memory.total": f"{VRAM * PAGE} B",
            "memory.used": f"{used * PAGE} B",
            "memory.free": f"{(VRAM - used) * PAGE} B",
            "utilization.memory": f"{100 * used / VRAM:.1f} %",
            "faults": str(of["faults"]),
            "faults.read": str(of["read"]),
            "faults.write": str(of["write"]),
            "faults.migrated": str(of["migrated"]),
            "pages.in": f"{books.into(node)} pages",
            "pages.out": f"{books.out_of(node)} pages",
            "pages.populated": f"{of['populated_pages']} pages",
            "pages.dropped": f"{of['dropped_pages']} pages",
            "evicted.pages": f"{of['evicted_pages']} pages",
            "evicted.blocks": f"{of['evicted_blocks']} blocks",
            "queue.length": "0",
            "policy.prefetch": "none",
            "link.bytes_in": f"{carried['host', node] * PAGE} B",
            "link.bytes_out": f"{carried[node, 'host'] * PAGE} B",
            "link.copies_in": str(copies["host", node]),
            "link.copies_out": str(copies[node, "host"]),
        }
        for way in ("in", "out"):
            right |= {f"{way}.{why}": f"{of[f'{way}_{why}']} pages" for why in WHY}
        assert {name: row[name] for name in right} == right


def test_the_tables(worked: tuple[Mount, Books]) -> None:
    """As people read them: memory, faults and what moved, of each device."""
    mount, books = worked
    found = json.loads(run("smi", str(mount.path), "--json").stdout)
    for device in found["devices"]:
        right = expected(books, device["name"])
        assert {name: device["stats"][name] for name in right} == right
    for region in found["regions"]:
        here = books.here[region["name"]]
        assert {node: region["residency"][f"pages_{node}"] for node in NODES} == {
            node: here[node] for node in NODES
        }
    status = json.loads(run("status", str(mount.path), "--json").stdout)
    assert [one["vram"] for one in status["devices"]] == [
        {"total": VRAM * PAGE, "used": books.used(node) * PAGE} for node in NODES[1:]
    ]


def test_metrics(worked: tuple[Mount, Books]) -> None:
    mount, books = worked
    found = scrape(mount)
    for node in NODES:
        of = books.of[node]
        capacity = VRAM if node != "host" else HOST
        assert found[key("node_capacity_bytes", node=node)] == capacity * PAGE
        assert found[key("node_used_bytes", node=node)] == books.used(node) * PAGE
        for way, pages in (("in", books.into(node)), ("out", books.out_of(node))):
            assert found[key("node_pages_total", node=node, direction=way)] == pages
            for why in WHY:
                labels = {"node": node, "direction": way, "trigger": why}
                assert found[key("node_pages_by_trigger_total", **labels)] == of[f"{way}_{why}"]
        assert found[key("node_evicted_pages_total", node=node)] == of["evicted_pages"]
        for other in NODES:
            if other != node:
                labels = {"from": node, "to": other}
                assert found[key("moved_pages_total", **labels)] == books.pages[node, other]
                carried = books.pages[node, other] * PAGE
                assert found[key("copied_bytes_total", **labels)] == carried
        for region, here in books.here.items():
            resident = found[key("region_resident_bytes", region=region, node=node)]
            assert resident == here[node] * PAGE
