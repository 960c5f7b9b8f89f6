"""Read-mostly pages: copies on devices, and every way in which they end, on real mounts."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import MountFactory

import hmmfs

PAGE, M = 4096, 1 << 20


@pytest.fixture
def machine(mount_factory: MountFactory) -> Iterator[hmmfs.Machine]:
    yield hmmfs.connect(mount_factory(vram="8M", devices=3, host="32M").path)
    gc.collect()


def copies(region: hmmfs.Region) -> int:
    return region.residency()["copies"]


def look(a: np.ndarray[Any, Any]) -> int:
    return int(a[::PAGE].sum())


def store(a: np.ndarray[Any, Any], page: int) -> None:
    a[page * PAGE] = 9


def mostly_read(machine: hmmfs.Machine, size: int = 4 * M) -> hmmfs.Region:
    """A region full of ones, that no program has open."""
    region = machine.region("a", size)
    with open(region.path, "r+b") as file:
        file.write(b"\1" * size)
    region.advise("read_mostly")
    return region


@contextlib.contextmanager
def mapped(region: hmmfs.Region, *, writable: bool = False) -> Iterator[Any]:
    """The region in this program's page tables, as a file open for that and no more."""
    fd = os.open(region.path, os.O_RDWR if writable else os.O_RDONLY)
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        with mmap.mmap(fd, region.nbytes, mmap.MAP_SHARED, protection) as map_:
            yield map_
    finally:
        os.close(fd)


def test_every_reader_gets_a_copy(machine: hmmfs.Machine) -> None:
    region = mostly_read(machine)
    with mapped(region) as program:
        for n in range(3):
            for device in machine.devices:
                assert device.launch(look, hmmfs.reads(region)).wait() == 1024, n
            assert sum(program[::PAGE]) == 1024
            assert copies(region) == 3 * 1024
    assert copies(machine.region("a")) == 3 * 1024, "naming it opens nothing for writing"
    assert region.residency()["pages_host"] == 1024
    for device in machine.devices:
        stats = device.stats()
        assert (stats["copies_begun"], stats["copies_ended"]) == (1024, 0)
        assert (stats["used"], stats["pages_in"]) == (1024, 0)
    assert machine.stats()["cpu_faults"] == 0
    assert machine.audit() == "ok"


def test_a_hole_that_a_program_looks_at_is_nobodys(machine: hmmfs.Machine) -> None:
    """Its zeros are in the page cache, and no bytes anywhere that could be copied."""
    region = machine.region("a", M)
    region.advise("read_mostly")
    with mapped(region) as program:
        assert sum(program[::PAGE]) == 0
        assert machine.dev0.launch(look, hmmfs.reads(region), limit=20).wait() == 0
        assert sum(program[::PAGE]) == 0
        assert machine.dev1.launch(look, hmmfs.reads(region), limit=20).wait() == 0
    assert machine.audit() == "ok"


def test_a_store_of_a_device_ends_the_others_copies(machine: hmmfs.Machine) -> None:
    region = mostly_read(machine)
    for device in machine.devices:
        assert device.launch(look, hmmfs.reads(region)).wait() == 1024
    machine.dev1.launch(store, hmmfs.updates(region), 700).wait()
    found = region.residency()
    assert found["copies"] == 3 * 1024 - 3 * (1024 - found["pages_host"])
    assert 1 <= found["pages_dev1"] == 1024 - found["pages_host"] <= 512
    assert machine.dev1.stats()["copies_made"] == 0, "it had the bytes already"
    assert machine.audit() == "ok"
    for device in machine.devices:
        assert device.launch(look, hmmfs.reads(region)).wait() == 1024 + 8
    assert region.cpu[700 * PAGE] == 9
    assert machine.audit() == "ok"


def test_a_write_ends_the_copies_it_covers(machine: hmmfs.Machine) -> None:
    region = mostly_read(machine)
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
    fd = os.open(region.path, os.O_RDWR)
    try:
        assert copies(region) == 0, "who may store ends them all"
        assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
        assert copies(region) == 1024
        os.pwrite(fd, b"\5" * 3 * PAGE, 10 * PAGE)
        assert copies(region) == 1024 - 3
        assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024 + 3 * 4
        assert os.pread(fd, 1, 20 * PAGE) == b"\1"
        assert copies(region) < 1024, "what is read may be mapped, and stored to unannounced"
    finally:
        os.close(fd)
    assert machine.audit() == "ok"


def test_a_store_through_a_mapping_is_never_missed(machine: hmmfs.Machine) -> None:
    """The kernel does not announce it: pages in its cache have no copies while it could happen."""
    region = mostly_read(machine)
    with mapped(region, writable=True) as program:
        for value in range(2, 60):
            page = value * 7 % 1024
            assert program[page * PAGE] == 1
            assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
            program[page * PAGE] = 2  # no load before it: the first touch since the copy
            assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024 + 1
            program[page * PAGE] = 1
            assert machine.dev1.launch(look, hmmfs.reads(region)).wait() == 1024
    assert machine.audit() == "ok"


STORE = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
map = mmap.mmap(fd, 0)
os.close(fd)
print(map[0], flush=True)
for line in sys.stdin:
    map[0] = int(line)
    print(map[0], flush=True)
"""


def test_a_mapping_whose_file_is_closed_may_be_stored_to(machine: hmmfs.Machine) -> None:
    region = mostly_read(machine)
    with subprocess.Popen(
        [sys.executable, "-c", STORE, str(region.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        for value in range(2, 30):
            before = machine.dev0.launch(look, hmmfs.reads(region)).wait()
            other.stdin.write(f"{value}\n")
            other.stdin.flush()
            assert other.stdout.readline() == f"{value}\n"
            assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1023 + value != before
        other.stdin.close()
    assert machine.audit() == "ok"


def test_open_for_writing_ends_what_a_reader_has_cached(machine: hmmfs.Machine) -> None:
    region = mostly_read(machine)
    with mapped(region) as reader:
        assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
        assert sum(reader[::PAGE]) == 1024
        assert copies(region) == 1024
        with mapped(region, writable=True) as writer:
            assert copies(region) == 0
            writer[5 * PAGE] = 7
            assert reader[5 * PAGE] == 7
            assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024 + 6
            assert reader[5 * PAGE] == 7
        assert machine.dev1.launch(look, hmmfs.reads(region)).wait() == 1024 + 6
    assert machine.audit() == "ok"


def test_concurrent_writers_and_readers_see_nothing_stale(machine: hmmfs.Machine) -> None:
    """Each writer stores a number that only grows to a page of its own; no reader may ever see it
    go back, nor miss what had been stored before it began to look."""
    region, seconds = mostly_read(machine, 2 * M), 6.0
    end = time.monotonic() + seconds
    done = np.zeros(4, dtype=np.int64)  # stored, by writer
    failures: list[str] = []

    def write(who: int, how: str) -> None:
        page, value = who * 100, 0
        with mapped(region, writable=True) as map_:
            fd = os.open(region.path, os.O_RDWR)
            while time.monotonic() < end:
                value += 1
                data = value.to_bytes(8, "little")
                if how == "store":
                    map_[page * PAGE : page * PAGE + 8] = data
                else:
                    os.pwrite(fd, data, page * PAGE)
                done[who] = value
            os.close(fd)

    def read(device: hmmfs.Device) -> None:
        seen = np.zeros(4, dtype=np.int64)
        while time.monotonic() < end:
            before = done.copy()
            now = np.array(device.launch(peek, hmmfs.reads(region)).wait(60))
            if (now < before).any() or (now < seen).any():
                failures.append(f"{device.name}: {now} after {before} and {seen}")
            seen = now

    def peek(a: np.ndarray[Any, Any]) -> list[int]:
        return [int(a[w * 100 * 4096 :][:8].view("int64")[0]) for w in range(4)]

    with mapped(region, writable=True) as map_:
        for who in range(4):
            map_[who * 100 * PAGE : who * 100 * PAGE + 8] = bytes(8)
    threads = [
        threading.Thread(target=write, args=(who, how))
        for who, how in enumerate(["store", "write", "store", "write"])
    ] + [threading.Thread(target=read, args=(device,)) for device in machine.devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    assert (done > 10).all(), done
    assert sum(device.stats()["copies_begun"] for device in machine.devices) > 100
    assert machine.audit() == "ok"


def test_copies_are_reserved_and_released(machine: hmmfs.Machine) -> None:
    """They count, they are dropped without a copy when others need the memory."""
    region = mostly_read(machine, 8 * M)
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 2048
    assert machine.dev0.stats()["used"] == 2048 == copies(region)
    other = machine.region("b", 4 * M)
    other.cpu[:] = 3
    other.migrate(machine.dev0)
    stats = machine.dev0.stats()
    assert (stats["used"], stats["peak"], copies(region)) == (2048, 2048, 1024)
    assert stats["copy_out_ns"] == 0
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 2048
    assert machine.audit() == "ok"
    other.unlink()


@pytest.mark.parametrize("how", ["touched", "asked for"])
def test_a_page_moves_where_the_host_is_full(mount_factory: MountFactory, how: str) -> None:
    """A copy takes that the page is the host's. Those that are by now are copied."""
    machine = hmmfs.connect(mount_factory(vram="8M", devices=2, host="4M").path)
    region = mostly_read(machine, 2 * M)
    region.advise("unset_read_mostly")
    region.migrate(machine.dev1, slice(0, M))
    region.advise("read_mostly")
    machine.region("full", 3 * M).path.write_bytes(b"f" * (3 * M))
    held = region.residency()
    assert [held[f"pages_{node}"] for node in ("host", "dev0", "dev1")] == [256, 0, 256]
    if how == "touched":
        assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 512
    else:
        region.migrate(machine.dev0)
    now = region.residency()
    assert [now[f"pages_{node}"] for node in ("host", "dev0", "dev1")] == [256, 256, 0]
    assert now["copies"] == 256
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 512
    assert machine.audit() == "ok"
    del region
    gc.collect()


def test_asking_for_them_makes_copies(machine: hmmfs.Machine) -> None:
    """As cudaMemPrefetchAsync does of read-mostly memory."""
    region = mostly_read(machine)
    for device in (machine.dev0, machine.dev2):
        region.migrate(device)
    found = region.residency()
    assert (found["pages_host"], found["copies"]) == (1024, 2048)
    assert machine.dev2.launch(look, hmmfs.reads(region)).wait() == 1024
    assert machine.dev2.stats()["faults"] == 0


def test_who_had_the_page_keeps_a_copy(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 4 * M)
    machine.dev0.submit("fill a 1")
    assert region.residency()["pages_dev0"] == 1024
    region.advise("read_mostly")
    assert machine.dev1.launch(look, hmmfs.reads(region)).wait() == 1024
    found = region.residency()
    assert (found["pages_host"], found["copies"]) == (1024, 2048)
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
    assert machine.dev0.stats()["faults"] == 0
    assert machine.dev1.submit("checksum a") == machine.dev0.submit("checksum a")
    machine.dev0.submit("fill a:0+1M 2")
    found = region.residency()
    assert (found["pages_dev0"], found["copies"]) == (256, 2 * 768)
    assert machine.dev1.launch(look, hmmfs.reads(region)).wait() == 1024 + 256
    assert machine.audit() == "ok"


def test_a_store_remotely_ends_copies_made_before(machine: hmmfs.Machine) -> None:
    """Pages are said to stay on the host while devices have copies of them."""
    region = mostly_read(machine)
    assert machine.dev1.launch(look, hmmfs.reads(region)).wait() == 1024
    region.advise("no_migrate")
    machine.dev0.submit("fill a:0+1M 3")
    assert copies(region) == 768
    assert machine.dev1.launch(look, hmmfs.reads(region)).wait() == 1024 + 2 * 256
    assert machine.audit() == "ok"


def test_the_end_of_the_advice_ends_them(machine: hmmfs.Machine) -> None:
    region = mostly_read(machine)
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
    os.truncate(region.path, 2 * M)
    assert copies(region) == 512
    os.truncate(region.path, 2 * M - 1)
    assert copies(region) == 511, "the rest of its last page was zeroed"
    region.advise("unset_read_mostly")
    assert copies(region) == 0 == machine.dev0.stats()["used"]
    assert machine.dev0.launch(look, hmmfs.reads(machine.region("a"))).wait() == 512
    assert machine.region("a").residency()["pages_dev0"] == 512
    region.unlink()
