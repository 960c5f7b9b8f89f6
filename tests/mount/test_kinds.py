"""Coherent and DAX memory: used by programs and devices at the same time, on real mounts."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MountFactory, fails, let_others_reach, passes_through, run, wait_until

import hmmfs
from hmmfs import kernels
from hmmfs.device.links import link

pytestmark = passes_through

PAGE, M = 4096, 1 << 20
KINDS = ["coherent", "dax"]


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, mount_factory: MountFactory) -> Iterator[hmmfs.Machine]:
    path = mount_factory(vram="8M", devices=2, host="16M", type=request.param).path
    yield hmmfs.connect(path)
    gc.collect()  # frames of exceptions that a test caught hold its maps


def labels(region: hmmfs.Region) -> list[int]:
    """Pages by node."""
    found = region.residency()
    return [found[f"pages_{node}"] for node in ("host", "dev0", "dev1")]


def used(machine: hmmfs.Machine) -> list[int]:
    return [machine.stats()["host_used"], *(dev.stats()["used"] for dev in machine.devices)]


def test_a_touch_moves_nothing(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 4 * M // 8, "int64")
    home = labels(region)
    assert sorted(home) == [0, 0, 1024]
    region.cpu[:] = np.arange(region.shape[0])

    def add(a: np.ndarray[Any, Any]) -> int:
        a += 1
        return int(a.sum())

    wanted = int(np.arange(region.shape[0]).sum())
    assert (machine.path / "devices/dev0/type").read_text() in ("coherent\n", "dax\n")
    for n, device in enumerate([*machine.devices, *machine.devices], 1):
        assert device.launch(add, hmmfs.updates(region)).wait() == wanted + n * region.shape[0]
        assert int(np.asarray(region.cpu).sum()) == wanted + n * region.shape[0]
        assert device.submit("read a:0+8") == f"{n:02x}" + "00" * 7
    assert labels(region) == home
    stats = machine.stats()
    assert (stats["cpu_faults"], stats["reads"], stats["writes"], stats["recalls"]) == (0, 0, 0, 0)
    assert machine.dev0.stats()["faults"] == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("kernel") / "kernel.so")
    source = str(Path(__file__).with_name("adder_kernel.c"))
    subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", path, source], check=True)
    return path


def call(a: np.ndarray[Any, Any], library: str, name: str, *arguments: int) -> int:
    function = getattr(ctypes.CDLL(library), name)
    function.restype = ctypes.c_uint64
    words = ctypes.c_void_p(a.ctypes.data)
    return int(function(words, *map(ctypes.c_uint64, arguments)))


@pytest.mark.parametrize("kind", KINDS)
def test_atomics_of_programs_and_devices_add_up(
    mount_factory: MountFactory, library: str, kind: str
) -> None:
    """All at once, while the pages are migrated, where they can be."""
    path = mount_factory(vram="8M", devices=3, host="16M", type=kind).path
    machine = hmmfs.connect(path)
    region, times = machine.region("a", 64 * 512, "uint64"), 3_000_000
    arguments = hmmfs.updates(region), library, "add", 64 * 512, times
    running = [machine.devices[n].launch(call, *arguments, n + 1) for n in (0, 1)]
    threads = [
        threading.Thread(target=call, args=(region.cpu, library, "add", 64 * 512, times, n))
        for n in (3, 4)
    ]
    for thread in threads:
        thread.start()
    moved = 0
    while not all(handle.done for handle in running):
        if kind == "coherent":
            machine.dev2.submit(f"migrate a to {('dev2', 'dev1', 'host')[moved % 3]}")
        moved += 1
    for handle in running:
        handle.wait()
    for thread in threads:
        thread.join()
    assert int(np.asarray(region.cpu).sum()) == 4 * times
    assert moved > 3


def test_messages_between_a_program_and_a_kernel(machine: hmmfs.Machine, library: str) -> None:
    region, rounds = machine.region("a", 3 * 512, "uint64"), 2000
    handle = machine.dev0.launch(call, hmmfs.updates(region), library, "pass", rounds, 0)
    assert call(region.cpu, library, "pass", rounds, 1) == 0
    assert handle.wait(60) == 0
    stale = machine.region("b", 3 * 512, "uint64")
    ping = machine.dev0.launch(call, hmmfs.updates(stale), library, "pass", rounds, 1)
    pong = machine.dev1.launch(call, hmmfs.updates(stale), library, "pass", rounds, 0)
    assert (ping.wait(60), pong.wait(60)) == (0, 0)


def test_migration_relabels(mount_factory: MountFactory) -> None:
    path = mount_factory(vram="8M", devices=2, host="16M", type="coherent", link="pcie5").path
    machine = hmmfs.connect(path)
    region = machine.region("a", 4 * M)
    region.cpu[:] = np.arange(region.nbytes) % 251
    region.migrate(machine.dev0, slice(0, 3 * M))
    assert labels(region) == [256, 768, 0]
    assert used(machine) == [256, 768, 0]
    ns = link("pcie5").run_ns
    assert machine.dev0.stats()["copy_in_ns"] == ns[512] + ns[256]
    region.migrate(machine.dev1, slice(0, M))
    assert labels(region) == [256, 512, 256]
    region.migrate("host")
    assert labels(region) == used(machine) == [1024, 0, 0]
    assert np.array_equal(region.cpu, np.arange(region.nbytes) % 251)


def test_pressure_relabels(mount_factory: MountFactory) -> None:
    """A device's memory is no larger for being coherent: the least recently migrated leave."""
    path = mount_factory(vram="4M", devices=1, host="16M", type="coherent", eviction="lrm").path
    machine = hmmfs.connect(path)
    region = machine.region("a", 8 * M)
    for part in (0, 2, 4):
        region.migrate(machine.dev0, slice(part * M, (part + 2) * M))
    assert used(machine)[1] == 1024
    assert machine.dev0.stats()["evicted_pages"] == 512
    region.migrate("host", slice(0, 2 * M))
    assert used(machine)[1] == 1024, "the first block had left"


@pytest.mark.parametrize("passthrough", ["on", "off"])
def test_pinned_labels_stay(mount_factory: MountFactory, passthrough: str) -> None:
    options = {"vram": "4M", "devices": 1, "host": "16M", "type": "coherent"}
    machine = hmmfs.connect(mount_factory(**options, passthrough=passthrough).path)
    region, other = machine.region("a", 4 * M), machine.region("b", 3 * M)
    region.cpu[:] = other.cpu[:3] = 1
    region.cpu.flush()
    region.migrate(machine.dev0)
    region.advise("pinned", part=slice(0, 2 * M))
    with pytest.raises(OSError, match="stay where") as caught:
        region.migrate("host")
    assert caught.value.errno == errno.EBUSY
    other.cpu[:] = 2
    other.cpu.flush()
    with contextlib.suppress(OSError):
        other.migrate(machine.dev0)
    assert region.residency()["pages_dev0"] == 512, "what is pinned, and no more"
    assert machine.dev0.stats()["used"] <= 1024
    region.advise("unset_pinned")
    region.migrate("host")
    assert region.residency()["pages_dev0"] == 0
    assert int(region.cpu.sum()) == 4 * M
    del region, other, caught
    gc.collect()


def test_dax_memory_never_moves(mount_factory: MountFactory) -> None:
    path = mount_factory(vram="4M", devices=2, host="64M", type="dax").path
    machine = hmmfs.connect(path)
    one, two = machine.region("a", 3 * M), machine.region("b", 3 * M)
    assert labels(one) == [0, 768, 0]
    assert labels(two) == [0, 0, 768], "the device with the most free"
    for place in ("dev1", "host"):
        with pytest.raises(OSError, match="never moves") as caught:
            one.migrate(place)
        assert caught.value.errno == errno.EOPNOTSUPP
    one.migrate("dev0")
    fails(errno.ENOSPC, lambda: machine.region("c", 2 * M))
    assert "dax memory reserves all" in (machine.path / "last_error").read_text()
    assert (machine.path / "regions/c").stat().st_size == 0
    assert used(machine) == [0, 768, 768]
    two.unlink()
    assert wait_until(lambda: used(machine) == [0, 768, 0])
    assert machine.region("c", 2 * M).nbytes == 2 * M
    del one, two


def test_a_region_reserves_by_its_size(machine: hmmfs.Machine) -> None:
    """8 MiB of each device, or 16 MiB of the host and then of devices."""
    region = machine.region("a", 6 * M)
    before = sum(used(machine))
    assert before == 1536
    os.truncate(region.path, 5 * PAGE + 1)
    assert sum(used(machine)) == 6
    os.truncate(region.path, 0)
    assert sum(used(machine)) == 0
    fails(errno.ENOSPC, lambda: os.truncate(region.path, 64 * M))
    assert region.path.stat().st_size == 0
    with open(region.path, "wb") as file:
        file.write(b"x" * (2 * M + 5))
        file.flush()
        assert os.fstat(file.fileno()).st_size == 2 * M + 5
    assert region.path.read_bytes() == b"x" * (2 * M + 5)
    assert sum(used(machine)) == 513
    assert machine.audit() == "ok"
    region.unlink()
    assert wait_until(lambda: sum(used(machine)) == 0)


def test_files_behave_as_files_do(machine: hmmfs.Machine) -> None:
    path = machine.path / "regions/a"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.truncate(path, 10 * PAGE)
        assert os.pread(fd, 100, 10 * PAGE - 10) == bytes(10), "it ends where it ends"
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        os.pwrite(fd, b"data", 5 * PAGE)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 5 * PAGE
        assert os.lseek(fd, 5 * PAGE, os.SEEK_HOLE) == 6 * PAGE
        with mmap.mmap(fd, 10 * PAGE) as mapped:
            assert mapped[5 * PAGE : 5 * PAGE + 4] == b"data"
            os.rename(path, machine.path / "regions/b")
            os.unlink(machine.path / "regions/b")
            mapped[0] = 1
            assert os.pread(fd, 1, 0) == b"\1"
        assert sum(used(machine)) == 10, "open still"
    finally:
        os.close(fd)
    with open(path, "wb") as one, open(path, "ab") as two:
        one.write(b"1")
        one.flush()
        two.write(b"2")
    assert path.read_bytes() == b"12"


def test_a_kernel_past_the_end(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 4 * M)
    region.cpu[:] = 1

    def slow(a: np.ndarray[Any, Any], path: str) -> int:
        os.truncate(path, M)
        return int(a[3 << 20])

    with pytest.raises(OSError, match="past the end of a region") as caught:
        machine.dev0.launch(slow, hmmfs.reads(region), str(region.path)).wait(30)
    assert caught.value.errno == errno.EREMOTEIO
    os.truncate(region.path, 4 * M)
    assert machine.dev0.launch(kernels.reduce, hmmfs.reads(region)).wait() == M


def test_only_root_gets_memory_passed_through(tmp_path: Path) -> None:
    let_others_reach(tmp_path)
    tmp_path.chmod(0o777)
    # The modules are there before it becomes another: it may not reach the checkout.
    code = "import os, sys, hmmfs.daemon.daemon; from hmmfs.cli import main as cli; "
    code += "os.setgroups([]); os.setgid(65534); os.setuid(65534); "
    words = ["mount", str(tmp_path), "-o", "type=dax"]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(cli.main())", *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "type=dax needs root" in done.stderr
    done = run("mount", str(tmp_path), "-o", "type=dax,devices=0", check=False)
    assert "needs a device" in done.stderr
    done = run("mount", str(tmp_path), "-o", "type=shared", check=False)
    assert "type takes private, coherent or dax" in done.stderr


def test_a_full_device_makes_way_for_labels(mount_factory: MountFactory) -> None:
    """A third block is said to be on a device that has two: the first is the host's again."""
    path = mount_factory(vram="4M", host="32M", type="coherent", passthrough="off").path
    machine = hmmfs.connect(path)
    region = machine.region("a", 6 * M)
    region.cpu[:] = 1
    for first in range(0, 6 * M, 2 * M):
        region.migrate("dev0", slice(first, first + 2 * M))
    found = region.residency()
    assert (found["pages_dev0"], found["pages_host"]) == (1024, 512)
    assert machine.dev0.stats()["evicted_pages"] == 512
    assert (np.asarray(region.cpu) == 1).all()
