"""Full memories: ENOSPC, or a swap where one is possible, never a lost byte."""

from __future__ import annotations

import contextlib
import errno
import mmap
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
    with contextlib.ExitStack() as stack:
        end = stack.enter_context(open(source, "rb"))
        full = stack.enter_context(open(mount.region("0", 0), "r+b"))
        grow(full.fileno(), end.fileno())
        for number in range(1, rounds):
            (mount.regions / str(number - 1)).unlink()
            new = stack.enter_context(open(mount.region(str(number), 0), "r+b"))
            full.close()
            full = new
            grow(full.fileno(), end.fileno())
            assert os.fstat(full.fileno()).st_size == BIG


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


def write_a_page(file: int, mount: Mount) -> None:
    assert os.pwrite(file, b"x" * 4096, 0) == 4096


def write_all(file: int, mount: Mount) -> None:
    assert os.pwrite(file, b"x" * 8 * MIB, 0) == 8 * MIB


def store(file: int, mount: Mount) -> None:
    os.ftruncate(file, 4 * MIB)
    with mmap.mmap(file, 4 * MIB) as there:
        there[::4096] = b"x" * 1024


def reserve(file: int, mount: Mount) -> None:
    os.posix_fallocate(file, 0, 8 * MIB)


def fill_on_the_device(file: int, mount: Mount) -> None:
    os.ftruncate(file, MIB)
    mount.submit(0, "fill new:0+1M 7")


@pytest.mark.parametrize("use", [write_a_page, write_all, store, reserve, fill_on_the_device])
@pytest.mark.parametrize("placement", ["first-touch", "never"])
def test_what_nobody_has_any_more_makes_way_on_a_full_host(
    mount_factory: MountFactory, use: Callable[[int, Mount], None], placement: str
) -> None:
    mount = mount_factory(devices=1, host="8M", vram="8M", placement=placement)
    for _ in range(20):
        with open(mount.region("new", 0), "r+b") as new:
            with open(mount.region("old", 0), "r+b") as old:
                os.posix_fallocate(old.fileno(), 0, 8 * MIB)
                (mount.regions / "old").unlink()
            use(new.fileno(), mount)
        (mount.regions / "new").unlink()


SIZES = {
    "dax": {"host": "4M", "vram": "16M"},
    "coherent": {"host": "12M", "vram": "4M"},
    "private": {"host": "16M", "vram": "4M"},
}


@pytest.mark.parametrize("kind", [pytest.param("dax", marks=passes_through), *list(SIZES)[1:]])
@pytest.mark.parametrize("how", ["fallocate", "write"])
def test_programs_that_fill_all_of_it_together(
    mount_factory: MountFactory, kind: str, how: str
) -> None:
    """Each has its part of the capacity, and removes its file before it makes the next. So all of
    them fit at any moment, and none may get ENOSPC, or write less than it wanted."""
    mount = mount_factory(type=kind, devices=1, **SIZES[kind])
    part, data = 4 * MIB, b"x" * 4 * MIB
    short: list[object] = []

    def fill_again_and_again(name: str) -> None:
        path = mount.regions / name
        for number in range(60):
            file = os.open(path, os.O_RDWR | os.O_CREAT)
            try:
                if how == "fallocate":
                    os.posix_fallocate(file, 0, part)
                elif os.pwrite(file, data, 0) != part:
                    short.append(number)
            except OSError as error:
                short.append(error)
            path.unlink()
            os.close(file)

    threads = [threading.Thread(target=fill_again_and_again, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not short


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
