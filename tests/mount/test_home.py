"""Who looks at a program's memory from outside: debuggers, gcore, /proc/PID/mem. What devices have
of it is brought home for them, also while the program is stopped."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HMMFS, Mount, fails, mounted, moves_programs, run, wait_until
from test_programs import Program

import hmmfs

SOURCE = Path(__file__).parent / "programs" / "hold.c"
PAGE = 4096
BYTES = 4 << 20

pytestmark = moves_programs


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home") / "hold"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-pthread", "-o", path, SOURCE], check=True)
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    base = tmp_path_factory.mktemp("home")
    with mounted(base, 300, vram="16M", devices=2, host="64M") as mount:
        yield mount


class Held:
    """A program of whose memory each device has a half."""

    def __init__(self, mount: Mount, program: Program) -> None:
        self.mount, self.program, self.pid = mount, program, program.pid
        _, self.address, _ = program.where()
        self.take()

    @property
    def place(self) -> str:
        return f"{self.pid}@{self.address:#x}+{BYTES}"

    def take(self) -> None:
        half = BYTES // 2
        for device, at in ((0, self.address), (1, self.address + half)):
            self.mount.submit(device, f"migrate {self.pid}@{at:#x}+{half} to dev{device}")
        assert self.away() == BYTES // PAGE

    def away(self) -> int:
        pages = self.mount.residency(f"@{self.pid}")
        return pages["pages_dev0"] + pages["pages_dev1"]

    def read(self, at: int, length: int) -> bytes:
        """As a debugger does."""
        fd = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY)
        try:
            return os.pread(fd, length, self.address + at)
        finally:
            os.close(fd)

    def finish(self) -> None:
        assert self.program.ask("check 1") == "right"
        self.program.tell("quit")
        _, err = self.program.finish()
        assert (self.program.process.returncode, err) == (0, "")


@pytest.fixture
def held(machine: Mount, binary: Path) -> Iterator[Held]:
    with Program(machine, binary, str(BYTES)) as program:
        yield Held(machine, program)


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "Tt"


@contextlib.contextmanager
def stop(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        assert wait_until(lambda: stopped(pid))
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_what_is_away_can_not_be_read(held: Held) -> None:
    """Why there is such a command: the kernel has no page, and asks nobody."""
    fails(errno.EIO, lambda: held.read(0, 8))
    held.finish()


def test_everything_comes_home_and_stays(held: Held) -> None:
    run("home", str(held.mount.path), str(held.pid))
    assert held.away() == 0
    assert (held.mount.path / f"state/@{held.pid}/devices").read_text() == ""
    fails(errno.EPERM, lambda: held.mount.submit(0, f"migrate {held.place} to dev0"))
    assert held.away() == 0
    assert len(held.read(0, BYTES)) == BYTES
    run("home", str(held.mount.path), str(held.pid), "--end")
    held.take()
    held.finish()


def test_once(held: Held) -> None:
    run("home", str(held.mount.path), str(held.pid), "--once")
    assert held.away() == 0
    held.take()
    held.finish()


def test_in_python(held: Held) -> None:
    process = hmmfs.connect(held.mount.path).process(held.pid)
    process.home(once=True)
    assert held.away() == 0
    assert process.devices == ["dev0", "dev1"]
    held.take()
    process.home()
    assert (held.away(), process.devices) == (0, [])
    process.attach("dev1")
    assert process.devices == ["dev1"]
    held.finish()


def test_a_stopped_program(held: Held) -> None:
    """Its own threads can do nothing, and need not."""
    with stop(held.pid):
        run("home", str(held.mount.path), str(held.pid))
        assert held.away() == 0
        assert len(held.read(0, BYTES)) == BYTES
    held.finish()


def gdb(pid: int, *commands: str) -> str:
    words = [word for command in commands for word in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-batch", "-nx", "-p", str(pid), *words], capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


def test_gdb_attaches_and_then_everything_comes_home(held: Held) -> None:
    home = f"shell {' '.join(HMMFS)} home {held.mount.path} {held.pid}"
    said = gdb(
        held.pid,
        f"x/gx {held.address}",
        home,
        f"x/gx {held.address}",
        f"set var *(long *){held.address + 8} = *(long *){held.address + 8}",
        "detach",
    )
    assert said.count("Cannot access memory") == 1, said
    assert f"{held.address:#x}:\t0x" in said.replace("\\t", "\t"), said
    assert held.away() == 0
    held.finish()


def test_gcore(held: Held, tmp_path: Path) -> None:
    run("home", str(held.mount.path), str(held.pid))
    wanted = held.read(0, BYTES)
    core = tmp_path / "core"
    said = gdb(held.pid, f"generate-core-file {core}")
    assert wanted in core.read_bytes(), said
    held.finish()


def test_a_device_that_is_using_it_gets_no_more(held: Held) -> None:
    """A kernel under way would take pages back as it touches them: it fails instead."""
    view = hmmfs.connect(held.mount.path).process(held.pid).view(held.address, BYTES)
    device = view.machine.dev0

    def touch(array, once):  # type: ignore[no-untyped-def]
        import time

        for _ in range(once):
            array[::4096] += 0
            time.sleep(0.001)

    handle = device.launch(touch, hmmfs.updates(view), 10**6, limit=60)
    assert wait_until(
        lambda: held.mount.residency(f"@{held.pid}")["pages_dev0"] > BYTES // PAGE // 2
    )
    run("home", str(held.mount.path), str(held.pid))
    assert held.away() == 0
    with pytest.raises(hmmfs.HmmfsError) as caught:
        handle.wait()
    assert "detached" in str(caught.value)
    assert held.away() == 0
    held.finish()


def test_mistakes(machine: Mount, held: Held) -> None:
    top = str(machine.path)
    nobody = run("home", top, str(os.getpid()), check=False)
    assert nobody.returncode == 1
    assert nobody.stderr == (
        f"hmmfs: Process {os.getpid()} has not given its memory to {top}. "
        "Start it with hmmfs run.\n"
    )
    for wrong in ("x", "0", "-5"):
        assert run("home", top, wrong, check=False).returncode == 2
    both = run("home", top, str(held.pid), "--once", "--end", check=False)
    assert (both.returncode, both.stderr.count("\n")) == (2, 1)
    control = machine.path / f"state/@{held.pid}/devices"
    for word in ("home twice", "homes", "once"):
        fails(errno.EINVAL, lambda word=word: control.write_text(word))
    assert held.away() == BYTES // PAGE
    held.finish()
