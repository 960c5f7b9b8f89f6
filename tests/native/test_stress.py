"""The native core under each sanitizer: stress.c on a real mount, device.c with a worker of a
device and its page faults, order.c by itself."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

from hmmfs import mountinfo
from hmmfs.filesystem import linux
from hmmfs.filesystem.watchdog import abort

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "native"
PRELOADED = ("helper.c", "preload.c")  # the library of hmmfs run
SECONDS = 5
LIMIT = 60.0
SANITIZERS = {
    "plain": ["-O2"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount without a helper")


def build(directory: Path, name: str, sanitizer: str) -> Path:
    """name.c and the core, built with one sanitizer."""
    path = directory / f"{name}-{sanitizer}"
    core = [path for path in sorted(NATIVE.glob("*.c")) if path.name not in PRELOADED]
    sources = [str(HERE / f"{name}.c"), *map(str, core)]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-pthread", *SANITIZERS[sanitizer]]
    subprocess.run(["gcc", *flags, "-o", str(path), *sources, "-lz"], check=True)
    return path


@pytest.fixture(scope="module", params=SANITIZERS)
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("device"), "device", request.param)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 3])
def test_device_faults(device: Path, prefetch: int) -> None:
    command = ["setarch", "-R", str(device), "3", "5", str(prefetch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer" not in done.stderr
    found = re.search(r"faults (\d+) .* refused (\d+)", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 100
    if prefetch < 3:
        assert (int(found[2]) > 0) == (prefetch == 1), "VRAM is full only with whole blocks"


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("stress"), "stress", request.param)


def test_order_of_writes(tmp_path: Path) -> None:
    done = subprocess.run([build(tmp_path, "order", "address")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def free(directory: Path) -> bool:
    """Abort and detach what is still mounted; whether there was something."""
    entry = mountinfo.find(str(directory))
    if entry is None:
        return False
    abort(entry.minor)
    linux.umount(str(directory), linux.MNT_DETACH)
    return True


@pytest.mark.parametrize(("seed", "express", "advise"), [(2, 1, 0), (3, 0, 0), (4, 1, 1)])
def test_storm(program: Path, tmp_path: Path, seed: int, express: int, advise: int) -> None:
    directory = tmp_path / "mnt"
    directory.mkdir()
    # ThreadSanitizer can't live with all the address space randomisation of new kernels.
    command = ["setarch", "-R", program, directory, SECONDS, seed, express, advise]
    child = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    timer = threading.Timer(LIMIT, free, [directory])
    timer.start()
    try:
        said, _ = child.communicate(timeout=LIMIT + 20)
    finally:
        timer.cancel()
        left = free(directory)
        if child.poll() is None:
            child.kill()
            child.wait()
    assert child.returncode == 0, said
    assert not left, "the mount was left behind"
    assert "WARNING: ThreadSanitizer" not in said
    assert said.startswith("adds "), said
