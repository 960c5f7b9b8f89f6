"""The native core under each sanitizer: stress.c on a real mount, device.c with a worker of a
device and its page faults, program.c with programs whose own memory devices take, order.c and
reservations.c by themselves."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from core_build import FLAGS, HERE, SOURCES, compile_into, source_of

from hmmfs.cli.preload import LIBRARY, preloading
from hmmfs.common import linux, mountinfo
from hmmfs.daemon.watchdog import abort
from tests.stacks import run, stacks

SECONDS = 5
LIMIT = 60.0
SANITIZERS = {
    "plain": ["-O2"],
    "address": ["-O1", "-fsanitize=address,undefined,bounds-strict", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}

# Of stress.c: its seed, whether there is an express path, whether there is advice. Without a
# sanitizer test_conformance.py runs them.
STORMS = [(2, 1, 0), (3, 0, 0), (4, 1, 1)]

# What a program of these makes fail: its own and the core's calls, not the C library's.
WRAPPED = {
    "mappings": ("ioctl",),
    "memory": ("malloc", "calloc", "realloc", "mmap", "memfd_create", "pthread_create"),
}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount without a helper")


Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """build(name, sanitizer, more): name.c and the core, with what is to be linked beside them. The
    core is built once for all that use it."""
    directory = tmp_path_factory.mktemp("native")

    @functools.cache
    def core(sanitizer: str) -> list[Path]:
        return compile_into(directory / sanitizer, ["-g", *SANITIZERS[sanitizer]], SOURCES)

    def built(name: str, sanitizer: str, more: Sequence[str] = ()) -> Path:
        path = directory / f"{name}-{sanitizer}{len(more)}"
        flags = [*FLAGS, "-g", *SANITIZERS[sanitizer]]
        beside = [str(HERE / word) if word.endswith(".c") else word for word in more]
        sources = [str(HERE / f"{name}.c"), *beside, *map(str, core(sanitizer)), "-lz"]
        sources += [f"-Wl,--wrap={function}" for function in WRAPPED.get(name, ())]
        subprocess.run(["gcc", *flags, "-o", str(path), *sources], check=True)
        return path

    return built


@pytest.fixture(scope="module", params=SANITIZERS)
def device(request: pytest.FixtureRequest, build: Build) -> Path:
    return build("device", request.param)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 3])
def test_device_faults(device: Path, prefetch: int) -> None:
    command = ["setarch", "-R", str(device), "3", "5", str(prefetch)]
    done = run(command, LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer" not in done.stderr
    found = re.search(r"faults (\d+) .* refused (\d+)", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 100
    if prefetch < 3:
        assert (int(found[2]) > 0) == (prefetch == 1), "VRAM is full only with whole blocks"


# By enum hm_eviction_kind: lru, clock, random, tree, and the two that go by pages.
@pytest.mark.parametrize("eviction", [0, 5, 6, 7, 8, 9])
def test_device_faults_that_evict(device: Path, eviction: int) -> None:
    """Movers evict by themselves; who finds the other block in use tries again."""
    command = ["setarch", "-R", str(device), "2", "5", "1", str(eviction)]
    done = run(command, LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer" not in done.stderr
    found = re.search(r"faults (\d+) .* evicted (\d+)", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 100
    assert int(found[2]) > 500


@pytest.mark.parametrize("prefetch", [0, 1])
def test_device_faults_while_calls_fail(build: Build, prefetch: int) -> None:
    program = build("device", "address", ("uffd_faults.c", "-Wl,--wrap=ioctl"))
    command = ["setarch", "-R", str(program), "3", "5", str(prefetch)]
    done = run(command, LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"failed (\d+) of (\d+)", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 100


@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 8),
    reason="UFFDIO_MOVE is of Linux 6.8",
)
@pytest.mark.parametrize(
    ("sanitizer", "only"), [(name, "") for name in SANITIZERS] + [("plain", "moves")]
)
def test_memory_of_programs(build: Build, tmp_path: Path, sanitizer: str, only: str) -> None:
    child = tmp_path / "child"
    flags = ["-std=gnu11", "-O1", "-g", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", child, HERE / "program_child.c"], check=True)
    environment = os.environ | preloading(LIBRARY, {})
    library = environment.pop("LD_PRELOAD")  # for the children
    command = ["setarch", "-R", build("program", sanitizer), SECONDS, 5, library, child]
    command += [only] if only else []
    done = run(command, LIMIT, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer" not in done.stderr
    # Programs that end before they are asked, and their children, say there what is wrong.
    found = re.fullmatch(r"programs (\d+) .* in (\d+) out (\d+) .*\n", done.stdout)
    assert found, done.stdout + done.stderr
    assert int(found[1]) > (2 if only else 10)
    assert int(found[2]) > 500
    assert int(found[3]) > 500


def test_order_of_writes(build: Build) -> None:
    done = run([build("order", "address")], LIMIT)
    assert done.returncode == 0, done.stderr


def test_the_audit_finds_each_kind_of_damage(build: Build) -> None:
    """Every sentence that it has is said of some damage, and of nothing else."""
    done = run([build("audit", "address")], LIMIT)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    source = "".join(source_of(name).read_text() for name in ("audit.c", "counters.c"))
    calls = re.findall(r"\b(?:AUDIT|AGREE)\((?!a, cond|cond)(.*?)\);\n", source, re.DOTALL)
    sentences = ["".join(re.findall(r'"([^"]*)"', call)) for call in calls]
    assert len(sentences) > 15
    for sentence in sentences:
        pattern = re.sub("%(?:ll)?u", r"\\d+", re.escape(sentence))
        assert any(re.fullmatch(pattern, line) for line in said), sentence


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_opens_while_copies_end(build: Build, sanitizer: str) -> None:
    command = ["setarch", "-R", build("copies", sanitizer)]
    done = run(command, LIMIT)
    assert done.returncode == 0, done.stderr
    assert "WARNING: ThreadSanitizer" not in done.stderr


def test_nothing_is_lost_without_memory(build: Build) -> None:
    done = run([build("memory", "address")], 2 * LIMIT - 20)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"allocations (\d+)\n", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 8


def test_mappings(build: Build, tmp_path: Path) -> None:
    done = run([build("mappings", "address"), tmp_path], LIMIT)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"mappings (\d+)\n", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 20


def test_refusals(build: Build) -> None:
    done = run([build("refusals", "address")], LIMIT)
    assert done.returncode == 0, done.stderr


def test_thrashing_at_its_bounds(build: Build) -> None:
    done = run([build("thrash", "address")], LIMIT)
    assert done.returncode == 0, done.stderr


def test_reservations(build: Build) -> None:
    done = run([build("reservations", "address")], LIMIT)
    assert done.returncode == 0, done.stderr


def test_what_a_worker_sends_is_served_or_refused(build: Build) -> None:
    command = ["setarch", "-R", build("hostile", "address"), "2", "7"]
    done = run(command, LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(r"sound (\d+) refused (\d+)\n", done.stdout)
    assert found, done.stdout
    assert min(map(int, found.groups())) > 3


def free(directory: Path) -> bool:
    """Abort and detach what is still mounted; whether there was something."""
    entry = mountinfo.find(str(directory))
    if entry is None:
        return False
    abort(entry.minor)
    linux.umount(str(directory), linux.MNT_DETACH)
    return True


def storm(program: Path, base: Path, seed: int, express: int, advise: int) -> None:
    """Run stress.c on a mount in a directory of its own below `base`."""
    directory = base / "mnt"
    directory.mkdir()
    # ThreadSanitizer can't live with all the address space randomisation of new kernels.
    command = ["setarch", "-R", program, directory, SECONDS, seed, express, advise]
    child = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    hung = []

    def end() -> None:
        hung.append(stacks(child.pid))
        free(directory)

    timer = threading.Timer(LIMIT, end)
    timer.start()
    try:
        said, _ = child.communicate(timeout=LIMIT + 60)
    finally:
        timer.cancel()
        left = free(directory)
        if child.poll() is None:
            child.kill()
            child.wait()
    assert child.returncode == 0, "\n".join([said, *hung])
    assert not left, "the mount was left behind"
    assert "WARNING: ThreadSanitizer" not in said
    assert said.startswith("adds "), said


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize(("seed", "express", "advise"), STORMS)
def test_storm(
    build: Build, tmp_path: Path, sanitizer: str, seed: int, express: int, advise: int
) -> None:
    storm(build("stress", sanitizer), tmp_path, seed, express, advise)
