"""Full memories: ENOSPC, or a swap where one is possible, never a lost byte."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import Mount, MountFactory

MIB = 1 << 20


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
