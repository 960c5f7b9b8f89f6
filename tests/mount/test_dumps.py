"""Core dumps have all memory of a program, wherever its pages are when it dies."""

from __future__ import annotations

import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Mount, mounted, moves_programs, wait_until
from test_programs import Program, driven

SOURCE = Path(__file__).parent / "programs" / "hold.c"
PAGE = 4096
BYTES = 4 << 20
READER = (
    "import os, sys; assert os.pread(os.open(f'/proc/{sys.argv[1]}/mem', os.O_RDONLY), 1, "
    "int(sys.argv[2])) == bytes(1)"
)
PATTERN = Path("/proc/sys/kernel/core_pattern").read_text().strip()
PLAIN = not PATTERN.startswith(("|", "@", "/"))

pytestmark = [
    moves_programs,
    pytest.mark.skipif(not PLAIN, reason=f"core dumps go elsewhere: core_pattern is {PATTERN}"),
]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dumps") / "hold"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-pthread", "-o", path, SOURCE], check=True)
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    base = tmp_path_factory.mktemp("dumps")
    with mounted(base, 300, vram="16M", devices=2, host="64M") as mount:
        yield mount


class Doomed(Program):
    """A program that may dump core, into a directory of its own."""

    def __init__(self, mount: Mount, binary: Path, where: Path, filters: str = "0x33") -> None:
        self.mount, self.where_it_dumps = mount, where

        def prepare() -> None:
            hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
            resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
            Path("/proc/self/coredump_filter").write_text(filters)

        super().__init__(mount, binary, str(BYTES), cwd=where, preexec_fn=prepare)
        _, self.address, _ = self.where()
        self.memory = self.peek(self.address, BYTES)

    def peek(self, address: int, length: int) -> bytes:
        fd = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY)
        try:
            return os.pread(fd, length, address)
        finally:
            os.close(fd)

    def take(self) -> None:
        half = BYTES // 2
        for device, at in ((0, self.address), (1, self.address + half)):
            self.mount.submit(device, f"migrate {self.pid}@{at:#x}+{half} to dev{device}")
        assert self.away() == BYTES // PAGE

    def away(self) -> int:
        pages = self.mount.residency(f"@{self.pid}")
        return pages["pages_dev0"] + pages["pages_dev1"]

    def die(self, number: signal.Signals = signal.SIGABRT) -> bytes:
        """What its dump has of its memory."""
        os.kill(self.pid, number)
        assert self.process.wait(60) == -number
        (core,) = self.where_it_dumps.glob("core*")
        found = loaded(core.read_bytes(), self.address, BYTES)
        core.unlink()
        return found


def loaded(core: bytes, address: int, length: int) -> bytes:
    """What an ELF core has of a range, which lies in one segment."""
    offset, count = struct.unpack_from("<Q", core, 32)[0], struct.unpack_from("<H", core, 56)[0]
    for at in range(offset, offset + 56 * count, 56):
        kind, _, start, begin, _, size, _, _ = struct.unpack_from("<IIQQQQQQ", core, at)
        if kind == 1 and begin <= address < begin + size:
            return core[start + address - begin :][:length]
    raise AssertionError(f"{address:#x} is in no segment")


# Bit 4, headers of libraries, tells the kernel to look at files before it writes anything.
@pytest.mark.parametrize("filters", ["0x33", "0x7f", "0x1", "0x7"])
def test_all_of_it_is_there(machine: Mount, binary: Path, tmp_path: Path, filters: str) -> None:
    with Doomed(machine, binary, tmp_path, filters) as program:
        program.take()
        assert program.die() == program.memory
    assert wait_until(lambda: not os.listdir(machine.path / "state"))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGQUIT])
def test_any_signal(machine: Mount, binary: Path, tmp_path: Path, number: signal.Signals) -> None:
    with Doomed(machine, binary, tmp_path) as program:
        program.take()
        assert program.die(number) == program.memory


def test_while_devices_take_pages(machine: Mount, binary: Path, tmp_path: Path) -> None:
    """Whatever is on its way when the program dies comes home, too."""
    for _ in range(5):
        with Doomed(machine, binary, tmp_path) as program:
            target = (program.pid, program.address, BYTES)
            with driven(machine, lambda target=target: [target]) as drivers:
                assert wait_until(lambda drivers=drivers: all(one.done > 50 for one in drivers))
                began = time.monotonic()
                assert program.die() == program.memory
                assert time.monotonic() - began < 8


def test_without_dumps_pages_stay_where_they_are(
    machine: Mount, binary: Path, tmp_path: Path
) -> None:
    before = machine.values("stats")["host_pages_in"]
    with Doomed(machine, binary, tmp_path) as program:
        program.take()
        resource.prlimit(program.pid, resource.RLIMIT_CORE, (0, 0))
        os.kill(program.pid, signal.SIGABRT)
        assert program.process.wait(60) == -signal.SIGABRT
    assert not list(tmp_path.glob("core*"))
    assert machine.values("stats")["host_pages_in"] == before


# ---- others who read what only the kernel is to read


@pytest.fixture
def doomed(machine: Mount, binary: Path, tmp_path: Path) -> Iterator[Doomed]:
    with Doomed(machine, binary, tmp_path) as program:
        program.take()
        yield program


def watched(pid: int) -> list[tuple[int, str]]:
    """Addresses and rights of the pages that the daemon watches."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    found = [re.fullmatch(r"(\w+)-\w+ (\S+) \S+ \S+ \d+ +/(\d+)", line) for line in lines]
    return [(int(one[1], 16), one[2]) for one in found if one]


def test_what_is_mapped(doomed: Doomed) -> None:
    lowest, page = watched(doomed.pid)
    assert lowest == (0x10000, "---p")
    assert page[1] == "r--p"
    assert doomed.away() == BYTES // PAGE


def test_who_reads_it_has_all_pages_come_home(doomed: Doomed) -> None:
    """Each time; and no device is detached."""
    page = watched(doomed.pid)[1][0]
    for _ in range(2):
        assert wait_until(lambda: doomed.peek(page, 1) == b"\0" and doomed.away() == 0)
        assert doomed.peek(doomed.address, BYTES) == doomed.memory
        doomed.take()
        assert wait_until(lambda: doomed.peek(page, 1) == b"\0" and doomed.away() == 0)
        assert doomed.away() == 0
        doomed.take()
    assert doomed.die() == doomed.memory


def test_a_reader_that_holds_up_the_program(doomed: Doomed) -> None:
    """One of /proc/PID/mem has the program's mmap_lock until it is answered. A thread that maps
    memory waits for it, and the daemon, which would bring pages home, for that thread: nothing
    comes home until the reader is answered, and then all does."""
    page = watched(doomed.pid)[1][0]
    assert doomed.ask("change") == "changes"
    command = [sys.executable, "-c", READER, str(doomed.pid), str(page)]

    def read() -> bool:
        """In a process that is left to itself when it waits too long: nothing but the program's
        end would end that."""
        return subprocess.Popen(command).wait(20) == 0

    for _ in range(3):
        assert wait_until(lambda: read() and doomed.away() == 0)
        assert doomed.peek(doomed.address, BYTES) == doomed.memory
        doomed.take()
    assert doomed.die() == doomed.memory


def test_mlockall(doomed: Doomed) -> None:
    assert doomed.ask("mlockall") == "0"
    assert doomed.ask("check 1") == "right"
    assert doomed.die() == doomed.memory


def test_forks_have_their_own(machine: Mount, doomed: Doomed) -> None:
    assert doomed.ask("fork 1") == "child 0"
    assert len(watched(doomed.pid)) == 2
    doomed.tell("quit")
    doomed.finish()
    assert doomed.process.returncode == 0
