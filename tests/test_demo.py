"""scripts/demo does what it says, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUMS = re.compile(r"checksum: program (\w{8}), device (\w{8}), expected (\w{8}): equal")


def row(text: str, name: str) -> int:
    found = re.search(rf"│ +{re.escape(name)} +│ +(\d+) │", text)
    assert found, f"no row «{name}» in {text}"
    return int(found[1])


def no_mounts(top: Path) -> bool:
    return str(top) not in Path("/proc/self/mountinfo").read_text() and not list(top.iterdir())


@pytest.mark.timeout(300)
def test_the_demo_ends_well(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts/demo"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sums = SUMS.findall(done.stdout)
    assert len(sums) == 3
    assert all(len(set(each)) == 1 for each in sums)
    assert len({each[0] for each in sums}) == 3  # each step changed something
    assert row(done.stdout, "in blocks of 2 MiB") > 0
    peak = row(done.stdout, "most VRAM used at any moment")
    assert 0 < peak <= row(done.stdout, "VRAM there is") == (64 << 20) // 4096
    back = row(done.stdout, "moved back to the host")
    copied = row(done.stdout, "of these copied")
    assert copied + row(done.stdout, "of these clean there, so no copy") == back
    assert no_mounts(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_no_mount(tmp_path: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen(
        [sys.executable, ROOT / "scripts/demo.py"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while no_mounts(tmp_path) or not list(tmp_path.glob("*/regions/a")):
            assert demo.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        demo.send_signal(number)
        said = demo.communicate(timeout=60)[1]
    finally:
        demo.kill()
        demo.wait()
    assert (demo.returncode, said) == (128 + number, "")
    assert no_mounts(tmp_path)
