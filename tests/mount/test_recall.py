"""Coherent memory without passthrough, alone and beside private memory, on real mounts."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MountFactory, run

import hmmfs
from hmmfs.device.links import link

PAGE, M = 4096, 1 << 20


def add(a: np.ndarray[Any, Any]) -> int:
    a[::4096] += 1
    return int(a[::4096].sum())


def pages(region: hmmfs.Region) -> list[int]:
    found = region.residency()
    return [value for key, value in found.items() if key.startswith("pages_")]


def used(machine: hmmfs.Machine) -> list[int]:
    return [machine.stats()["host_used"], *(device.stats()["used"] for device in machine.devices)]


def filled(machine: hmmfs.Machine, name: str = "a", size: int = 4 * M) -> hmmfs.Region:
    region = machine.region(name, size)
    region.cpu[:] = 1
    region.cpu.flush()
    return region


@pytest.fixture
def make(mount_factory: MountFactory) -> Iterator[Callable[..., hmmfs.Machine]]:
    def machine(**options: str) -> hmmfs.Machine:
        return hmmfs.connect(
            mount_factory(**{"vram": "8M", "devices": 2, "host": "32M"} | options).path
        )

    yield machine
    gc.collect()


@pytest.fixture
def machine(make: Callable[..., hmmfs.Machine]) -> hmmfs.Machine:
    return make(type="coherent", passthrough="off")


def test_a_touch_moves_nothing(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    assert [device.kind for device in machine.devices] == ["coherent recall"] * 2
    region.migrate(machine.dev1)
    assert pages(region) == used(machine) == [0, 0, 1024]
    for n, device in enumerate([*machine.devices, *machine.devices], 2):
        assert device.launch(add, hmmfs.updates(region)).wait() == n * 1024
        assert int(region.cpu[::PAGE].sum()) == n * 1024
        assert device.submit("read a:0+1") == f"{n:02x}"
    assert pages(region) == used(machine) == [0, 0, 1024]
    assert machine.stats()["cpu_faults"] == 0
    assert [device.stats()["fault_ns"] for device in machine.devices] == [0, 0]


def test_atomics_and_migrations_at_once(machine: hmmfs.Machine, tmp_path: Path) -> None:
    library = str(tmp_path / "kernel.so")
    source = str(Path(__file__).with_name("adder_kernel.c"))
    subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source], check=True)
    region, times = machine.region("a", 64 * 512, "uint64"), 2_000_000

    def call(a: np.ndarray[Any, Any], library: str, who: int) -> None:
        words = ctypes.c_void_p(a.ctypes.data)
        ctypes.CDLL(library).add(words, *map(ctypes.c_uint64, (64 * 512, times, who)))

    running = [machine.dev0.launch(call, hmmfs.updates(region), library, n) for n in (1,)]
    thread = threading.Thread(target=call, args=(region.cpu, library, 2))
    thread.start()
    moved = 0
    while not all(handle.done for handle in running):
        machine.dev1.submit(f"migrate a to {('dev0', 'dev1', 'host')[moved % 3]}")
        moved += 1
    for handle in running:
        handle.wait()
    thread.join()
    assert int(np.asarray(region.cpu).sum()) == 2 * times
    assert moved > 3


def test_migration_relabels_and_pressure_does(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    region.migrate(machine.dev0, slice(0, 3 * M))
    assert pages(region) == used(machine) == [256, 768, 0]
    ns = link("pcie3").run_ns
    assert machine.dev0.stats()["copy_in_ns"] == ns[512] + ns[256]
    region.migrate(machine.dev1, slice(0, M))
    assert pages(region) == used(machine) == [256, 512, 256]
    other = filled(machine, "b", 8 * M)
    other.migrate(machine.dev0)
    assert pages(region) == [768, 0, 256]
    assert pages(other) == [0, 2048, 0]
    assert machine.dev0.stats()["evicted_pages"] == 512
    region.migrate("host")
    assert pages(region) == [1024, 0, 0]
    os.truncate(other.path, 5 * M)
    assert used(machine) == [1024, 1280, 0]
    assert int(other.cpu[: 5 * M : PAGE].sum()) == 1280
    other.unlink()


def test_full_memories_swap(make: Callable[..., hmmfs.Machine]) -> None:
    machine = make(type="coherent", passthrough="off", vram="4M", host="4M", devices="1")
    region = filled(machine)
    region.migrate(machine.dev0)
    other = filled(machine, "b")
    assert used(machine) == [1024, 1024]
    region.migrate("host")
    assert [sum(both) for both in zip(pages(region), pages(other), strict=True)] == [1024, 1024]
    assert used(machine) == [1024, 1024]
    assert machine.dev0.stats()["pages_out"] >= 1024
    assert int(region.cpu[::PAGE].sum()) == int(other.cpu[::PAGE].sum()) == 1024
    third = machine.region("c", M)
    with pytest.raises(OSError, match="is full") as caught:
        machine.dev0.submit("fill c 1")
    assert caught.value.errno == errno.ENOSPC
    third.unlink()


def test_visible(make: Callable[..., hmmfs.Machine]) -> None:
    """Beyond what programs reach of it, coherent memory behaves as private memory."""
    machine = make(type="coherent", visible="1M")
    region = filled(machine)
    region.migrate(machine.dev0)
    assert pages(region) == [0, 1024, 0]
    assert machine.dev0.launch(add, hmmfs.updates(region)).wait() == 2048
    assert pages(region) == [0, 1024, 0]
    assert int(region.cpu[::PAGE].sum()) == 2048
    assert pages(region) == [768, 256, 0], "what could not be reached came home"
    assert machine.stats()["cpu_faults"] > 0
    assert machine.dev0.launch(add, hmmfs.updates(region)).wait() == 3072
    assert pages(region) == [768, 256, 0], "the device reaches all, and nothing moves"
    region.migrate(machine.dev1)
    region.migrate(machine.dev0)
    assert pages(region) == [0, 1024, 0]
    assert (machine.dev0.files / "vram/visible").read_text() == f"{M}\n"


def test_beside_a_private_device(make: Callable[..., hmmfs.Machine]) -> None:
    machine = make(type="coherent+private")
    assert [device.kind for device in machine.devices] == ["coherent recall", "private"]
    region = filled(machine)
    region.migrate(machine.dev0)
    assert pages(region) == [0, 1024, 0]
    assert machine.dev1.launch(add, hmmfs.updates(region)).wait() == 2048
    assert pages(region) == [0, 0, 1024], "a private device has to have them"
    assert used(machine)[1:] == [0, 1024]
    assert machine.dev0.launch(add, hmmfs.updates(region)).wait() == 3072
    assert pages(region) == [1024, 0, 0], "which a coherent one can't reach there"
    region.migrate(machine.dev1)
    region.migrate(machine.dev0)
    assert pages(region) == [0, 1024, 0]
    assert int(region.cpu[::PAGE].sum()) == 3072
    assert pages(region) == [0, 1024, 0]


def test_what_can_not_be_mixed(tmp_path: Path) -> None:
    def refused(options: str) -> str:
        done = run("mount", str(tmp_path), "-o", options, check=False)
        assert done.returncode == 2
        return str(done.stderr)

    assert "mixes dax with others" in refused("type=dax+private,devices=2")
    assert "names 2 devices" in refused("type=coherent+private")
    assert "visible= is of coherent memory" in refused("visible=1M")
    assert "type takes private" in refused("type=coherent+")
