"""The main job in small: a program and a device on the same pages."""

import zlib

import numpy as np
from conftest import Mount


def test_program_and_device_see_the_same_bytes(mount: Mount) -> None:
    path = mount.region("a", 16 << 20)  # twice the VRAM
    a = np.memmap(path, dtype=np.uint8, mode="r+")
    a[:] = np.random.default_rng(1).integers(0, 256, a.size, dtype=np.uint8)
    want = a.copy()
    assert mount.submit(0, "checksum a") == f"{zlib.crc32(want):08x}"
    mount.submit(0, "fill a:1M+3M 9")
    want[1 << 20 : 4 << 20] = 9
    assert np.array_equal(a, want)
    stats = mount.values("devices/dev0/stats")
    assert stats["evicted_pages"] >= 2048  # what did not fit
    assert stats["peak"] <= stats["capacity"]
