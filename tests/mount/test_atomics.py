"""Atomic adds of a program on pages that devices take away as fast as they can: none is lost, and
none that had been seen before a device reads is missing in what it reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import MountFactory

PAGES = 6


@pytest.fixture(scope="module")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adder") / "adder"
    source = Path(__file__).with_name("adder.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-pthread", "-o", path, source], check=True)
    return path


@pytest.mark.parametrize("express", ["on", "off"])
def test_the_sum_is_exact(mount_factory: MountFactory, adder: Path, express: str) -> None:
    mount = mount_factory(vram="4M", devices=2, host="16M", express=express)
    path = mount.region("sums", 2 << 20)
    seen = np.memmap(path, dtype=np.uint64, mode="r", shape=(PAGES * 512,))
    command = [adder, path, str(PAGES), "3", "4", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        rounds = 0
        while child.poll() is None:
            mount.submit(rounds % 2, f"migrate sums to dev{rounds % 2}")
            mount.submit(rounds % 2, f"fill sums:{PAGES * 4096}+4K {rounds % 256}")
            if rounds % 3 == 0:
                mount.submit(0, "migrate sums to host")
            word = rounds * 997 % (PAGES * 512)
            before = int(seen[word])
            said = mount.submit(rounds % 2, f"read sums:{word * 8}+8")
            assert before <= int.from_bytes(bytes.fromhex(said), "little") <= int(seen[word])
            rounds += 1
        assert child.stdout is not None
        adds = int(child.stdout.read())
    assert child.returncode == 0
    assert rounds > 20
    words = np.fromfile(path, dtype=np.uint64, count=PAGES * 512)
    assert int(words.sum()) == adds
    assert mount.values("devices/dev0/stats")["pages_in"] > PAGES
    assert mount.values("stats")["cpu_faults"] > 0
