"""Programs whose own memory goes to devices and comes home, whatever they do to it meanwhile."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from conftest import HMMFS, Mount, MountFactory, ended, fails, wait_until

from hmmfs.inspect.accounts import disagreements

SOURCES = Path(__file__).with_name("programs")
PAGE = mmap.PAGESIZE
BLOCK = 2 << 20
SOME_S = 12  # for what takes a moment

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="pages move for root's programs only")
pytestmark = root_only


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the compiled programs, which others can read, too."""
    base = tmp_path_factory.mktemp("programs")
    for name in ("calls", "crowd", "families", "mappings", "structures"):
        subprocess.run(
            ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
            + ["-o", base / name, SOURCES / f"{name}.c"],
            check=True,
        )
    return base


@pytest.fixture
def machine(mount_factory: MountFactory) -> Mount:
    return mount_factory(vram="32M", devices=2, host="64M")


# ---- programs


class Program:
    """One under hmmfs run. Whatever a test does, it is ended and waited for."""

    def __init__(self, mount: Mount, *command: str | Path, **options: object) -> None:
        self.process = subprocess.Popen(
            [*HMMFS, "run", str(mount.path), "--", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        self.pid = self.process.pid

    def line(self, seconds: float = SOME_S) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"nothing was said: {where(self.pid)}"
        return self.process.stdout.readline().rstrip("\n")

    def where(self) -> tuple[int, int, int]:
        """The line in which a program says where its memory is."""
        line = self.line()
        found = re.fullmatch(r"(\d+)@0x([0-9a-f]+)\+(\d+)", line)
        assert found, line + self.end()
        return int(found[1]), int(found[2], 16), int(found[3])

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.line()

    def finish(self, seconds: float = 20) -> tuple[str, str]:
        """What it writes till its end."""
        try:
            return self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs: {where(self.pid)}") from None

    def end(self) -> str:
        self.process.kill()
        return self.process.communicate()[1]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for pid in [*descendants(self.pid), self.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.communicate()


def tasks(pid: int) -> list[Path]:
    try:
        return sorted(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def where(pid: int) -> str:
    """In what a program's threads are, for a failure's sake."""
    said = []
    for task in tasks(pid):
        with contextlib.suppress(OSError):
            said.append(f"{(task / 'comm').read_text().strip()}: {(task / 'stack').read_text()}")
    return "\n".join(said)


def descendants(pid: int) -> list[int]:
    found = []
    for task in tasks(pid):
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found + [one for child in found for one in descendants(child)]


# ---- devices that never rest

Target = tuple[int, int, int]  # pid, address, length


def anonymous(pid: int) -> Iterator[Target]:
    """What of a program and of its children devices can have."""
    for one in [pid, *descendants(pid)]:
        try:
            maps = Path(f"/proc/{one}/maps").read_text().splitlines()
        except OSError:
            continue
        for line in maps:
            field = line.split()
            if field[1][3] != "p" or field[4] != "0" or field[1][0] != "r":
                continue
            if len(field) > 5 and field[5] not in ("[heap]", "[stack]"):
                continue
            low, high = (int(end, 16) for end in field[0].split("-"))
            yield one, low, high - low


class Driver(threading.Thread):
    """Has a device migrate what `targets` gives, in pieces of all sizes, over and over."""

    def __init__(
        self, mount: Mount, device: int, targets: Callable[[], Iterable[Target]], piece: int
    ) -> None:
        super().__init__()
        self.device, self.targets, self.piece = device, targets, piece
        self.over = threading.Event()
        self.done = 0
        self.refused: Counter[str] = Counter()
        self.fd = os.open(mount.path / f"devices/dev{device}/submit", os.O_RDWR)

    def run(self) -> None:
        chance = random.Random(self.device)
        while not self.over.is_set():
            for pid, at, left in self.targets():
                while left > 0 and not self.over.is_set():
                    length = min(left, chance.choice((1, 3, 16, 64, self.piece)) * PAGE)
                    self.submit(f"migrate {pid}@{at:#x}+{length} to dev{self.device}")
                    at += length
                    left -= length
            time.sleep(0)

    def submit(self, line: str) -> None:
        try:
            os.write(self.fd, line.encode() + b"\n")
            self.done += 1
        except OSError as error:
            self.refused[errno.errorcode[error.errno or 0]] += 1


@contextlib.contextmanager
def driven(
    mount: Mount, targets: Callable[[], Iterable[Target]], piece: int = 256
) -> Iterator[list[Driver]]:
    drivers = [Driver(mount, device, targets, piece) for device in (0, 1)]
    try:
        for driver in drivers:
            driver.start()
        yield drivers
    finally:
        for driver in drivers:
            driver.over.set()
        for driver in drivers:
            driver.join(SOME_S)
            assert not driver.is_alive(), "a device waits for ever"
            os.close(driver.fd)


def settled(mount: Mount) -> None:
    """Nothing is left of any program."""
    assert wait_until(lambda: not os.listdir(mount.path / "state")), os.listdir(
        mount.path / "state"
    )
    for device in (0, 1):
        used = mount.path / f"devices/dev{device}/vram/used"
        assert wait_until(lambda used=used: used.read_text() == "0\n"), used.read_text()
    assert mount.audit() == "ok"
    assert disagreements(mount.path) == []


def moved(mount: Mount) -> tuple[int, int]:
    stats = mount.values("stats")
    return stats["host_pages_out"], stats["host_pages_in"]


def stressed(mount: Mount, *command: str | Path, whole: bool = False, **options: object) -> None:
    """Run a program that checks itself while both devices pull at its memory."""
    before = moved(mount)
    with Program(mount, *command, **options) as program:
        target = program.where()

        def children() -> Iterator[Target]:
            if whole:
                yield from anonymous(program.pid)
            for pid in [program.pid, *descendants(program.pid)]:
                yield pid, *target[1:]

        with driven(mount, children) as drivers:
            out, err = program.finish()
        assert (out, program.process.returncode) == ("ok\n", 0), (out, err)
        assert err == ""
        print([(driver.done, driver.refused) for driver in drivers])
    after = moved(mount)
    print(before, after)
    assert after[0] > before[0] + 50
    assert after[1] > before[1] + 50
    settled(mount)


# ---- what they do to their memory

MS = "1200"


@pytest.mark.parametrize("mode", ["again", "dontneed", "free", "mremap", "mprotect"])
def test_mappings_change_while_devices_take_them(
    machine: Mount, binaries: Path, mode: str
) -> None:
    stressed(machine, binaries / "mappings", mode, MS)


@pytest.mark.parametrize("mode", ["fork", "raw", "spawn"])
def test_families_have_their_data_as_of_the_fork(
    machine: Mount, binaries: Path, mode: str
) -> None:
    stressed(machine, binaries / "families", mode, MS)


@pytest.mark.parametrize(
    "mode", ["files", "direct", "pipes", "futexes", "signals", "stack", "brk", "others"]
)
def test_the_kernel_uses_memory_that_devices_have(
    machine: Mount, binaries: Path, tmp_path: Path, mode: str
) -> None:
    environment = {**os.environ, "SCRATCH_FILE": str(tmp_path / "scratch")}
    whole = mode in ("stack", "brk")
    stressed(machine, binaries / "calls", mode, MS, whole=whole, env=environment)
