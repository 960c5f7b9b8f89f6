"""Full memories: ENOSPC, or a swap where one is possible, never a lost byte."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Mount, MountFactory, fails, passes_through

MIB = 1 << 20
BIG = 256 * MIB


def fill(path: Path, rng: np.random.Generator) -> list[bytes]:
    """Write until memory is full; what was written."""
    written = []
    with open(path, "r+b", buffering=0) as file:
        while True:
            data = rng.bytes(256 * 1024)
            try:
                n = file.write(data)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                return written
            written.append(data[:n])


def test_both_full_is_enospc_and_keeps_every_byte(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="4M", devices=1, host="8M")
    path = mount.region("a", 64 * MIB)
    written = b"".join(fill(path, np.random.default_rng(3)))
    assert 10 * MIB <= len(written) <= 12 * MIB + 4 * MIB
    with open(path, "rb") as file:
        assert file.read(len(written)) == written
    os.truncate(path, MIB)
    with open(path, "r+b") as file:
        file.write(b"free again")


def used_by_pool(pid: int, node: int) -> int:
    """Bytes that the memfds of a node really hold."""
    total = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if f"/memfd:hmmfs-pool-{node} " in os.readlink(entry) + " ":
                total += os.stat(entry).st_blocks * 512
        except FileNotFoundError:
            continue
    return total


class Watch(threading.Thread):
    """Samples a device's memory, as the mount tells it and as the kernel does."""

    def __init__(self, mount: Mount) -> None:
        super().__init__()
        self.mount, self.pid, self.stop = mount, mount.pid, threading.Event()
        self.total = int((mount.path / "devices/dev0/vram/total").read_text())
        self.most = self.samples = 0

    def run(self) -> None:
        while not self.stop.is_set():
            told = int((self.mount.path / "devices/dev0/vram/used").read_text())
            self.most = max(self.most, told, used_by_pool(self.pid, 1))
            self.samples += 1


@pytest.mark.parametrize("express", ["on", "off"])
def test_swapping_two_full_memories(mount_factory: MountFactory, express: str) -> None:
    mount = mount_factory(vram="4M", devices=1, host="8M", express=express)
    path = mount.region("a", 11 * MIB)
    rng = np.random.default_rng(4)
    shadow = rng.integers(0, 256, 11 * MIB, dtype=np.uint8)
    watch = Watch(mount)
    watch.start()
    try:
        path.write_bytes(shadow.tobytes())
        for turn in range(30):
            at = int(rng.integers(0, 10)) * MIB
            mount.submit(0, f"fill a:{at}+512K {turn}")
            shadow[at : at + MIB // 2] = turn
            for page in rng.integers(0, 11 * 256, 40):
                a = np.memmap(path, dtype=np.uint8, mode="r+", shape=(11 * MIB,))
                assert a[page * 4096 + 7] == shadow[page * 4096 + 7]
                a[page * 4096] = shadow[page * 4096] = turn
                del a
    finally:
        watch.stop.set()
        watch.join()
    assert np.array_equal(np.fromfile(path, dtype=np.uint8), shadow)
    assert watch.samples > 20
    assert 0 < watch.most <= watch.total
    stats = mount.values("stats")
    assert stats["host_peak"] <= stats["host_capacity"] + 512


def truncate(file: int, source: int) -> None:
    os.ftruncate(file, BIG)


def write_the_end(file: int, source: int) -> None:
    assert os.pwrite(file, b"end", BIG - 3) == 3


def allocate(file: int, source: int) -> None:
    os.posix_fallocate(file, 0, BIG)


def copy(file: int, source: int) -> None:
    assert os.copy_file_range(source, file, 3, 0, BIG - 3) == 3


GROWTHS = [truncate, write_the_end, allocate, copy]


def replace_a_full_file(mount: Mount, grow: Callable[[int, int], None], rounds: int) -> None:
    """Fill the mount with one file after the other, removing the last and closing it just before
    the next grows."""
    source = mount.regions / "source"
    source.write_bytes(b"end")
    with open(source, "rb") as end:
        full = os.open(mount.region("0", 0), os.O_RDWR)
        grow(full, end.fileno())
        for number in range(1, rounds):
            (mount.regions / str(number - 1)).unlink()
            new = os.open(mount.region(str(number), 0), os.O_RDWR)
            os.close(full)
            grow(full := new, end.fileno())
            assert os.fstat(full).st_size == BIG
        os.close(full)


@passes_through
@pytest.mark.parametrize("kind", ["coherent", "dax"])
@pytest.mark.parametrize("grow", GROWTHS)
def test_what_nobody_has_any_more_makes_way_at_once(
    mount_factory: MountFactory, kind: str, grow: Callable[[int, int], None]
) -> None:
    """On a tmpfs the capacity of a removed file is free when its last close(2) returns. Here the
    kernel tells of that afterwards, and a thread destroys the region."""
    full, other = f"{BIG + 4 * MIB}", "8M"
    size = {"host": other, "vram": full} if kind == "dax" else {"host": full, "vram": other}
    mount = mount_factory(type=kind, devices=1, **size)
    replace_a_full_file(mount, grow, 20)


def test_what_nobody_has_any_more_makes_way_for_an_allocation(mount_factory: MountFactory) -> None:
    mount = mount_factory(devices=1, host="260M", vram="8M")
    replace_a_full_file(mount, allocate, 5)


@passes_through
def test_full_is_told_without_long_waits(mount_factory: MountFactory) -> None:
    """Also where a file without a name is in use: nobody knows how long."""
    mount = mount_factory(type="dax", devices=1, host="8M", vram="8M")
    path = mount.region("a", 6 * MIB)
    with open(path, "r+b"):
        path.unlink()
        path = mount.region("b", 0)
        began = time.monotonic()
        for _ in range(3):
            fails(errno.ENOSPC, lambda: os.truncate(path, 4 * MIB))
        with open(path, "r+b", buffering=0) as other:
            fails(errno.ENOSPC, lambda: os.pwrite(other.fileno(), b"x", 4 * MIB))
            fails(errno.ENOSPC, lambda: os.posix_fallocate(other.fileno(), 0, 4 * MIB))
        assert path.stat().st_size == 0
        assert time.monotonic() - began < 10  # 5 times 0.1 s, where nothing else runs
    os.truncate(path, 4 * MIB)
