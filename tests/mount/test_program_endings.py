"""What the kernel does with a program's memory by itself, for threads that end and for ps, it does
under hmmfs run, too: those pages stay at home, and devices use them there."""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HMMFS, PATIENCE_S, Mount, mounted, moves_programs

pytestmark = moves_programs

SOURCE = Path(__file__).with_name("programs") / "endings.c"
LIMIT_S = 25  # more than a program's alarm
WHERE = re.compile(r"(\d+)@0x([0-9a-f]+)\+(\d+)\n")


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("endings") / "endings"
    command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([*command, "-o", path, SOURCE], check=True)
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(tmp_path_factory.mktemp("mounts"), 3 * PATIENCE_S, vram="8M", host="64M") as mount:
        yield mount


class Ending:
    """A program under hmmfs run; where it offers memory a device takes what it may have."""

    def __init__(self, machine: Mount, *command: str | Path, **options: object) -> None:
        self.machine = machine
        self.process = subprocess.Popen(
            [*HMMFS, "run", str(machine.path), "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        self.said: list[str] = []  # lines that are not offers

    def offered(self) -> tuple[int, int, int]:
        """How many pages of the next offer went; its pid and where it is."""
        assert self.process.stdout
        for line in self.process.stdout:
            found = WHERE.fullmatch(line)
            if not found:
                self.said.append(line.rstrip("\n"))
                continue
            went, more = 0, 1
            while more:  # the kernel may have a page of its own business for a moment: it stays
                before = self.machine.values("stats")["host_pages_out"]
                self.machine.submit(0, f"migrate {line.strip()} to dev0")
                more = self.machine.values("stats")["host_pages_out"] - before
                went += more
            return went, int(found[1]), int(found[2], 16)
        raise AssertionError(self.said)

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> list[str]:
        out, _ = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0
        return [*self.said, *out.splitlines()]

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("kind", ["plain", "inherit"])
def test_robust_mutexes_of_a_thread_that_ends_are_given_up(
    machine: Mount, endings: Path, kind: str
) -> None:
    """Of 16 pages with a mutex each the 8 stay that are locked, though they were away before."""
    with Ending(machine, endings, kind) as program:
        assert program.offered()[0] == 16
        program.go_on()
        assert program.offered()[0] == 8
        program.go_on()
        assert program.finish() == ["mutex: given up"] * 8


def test_a_killed_process_gives_up_what_another_waits_for(machine: Mount, endings: Path) -> None:
    with Ending(machine, endings, "killed") as program:
        for _ in range(2):
            assert program.offered()[0] == 0
            program.go_on()
        assert program.finish() == ["shared: given up"]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the program has assembly")
def test_who_joins_a_thread_is_woken(machine: Mount, endings: Path) -> None:
    """What the C library keeps of a thread stays; its stack, below, does not."""
    with Ending(machine, endings, "join") as program:
        went, pid, at = program.offered()
        assert went == 0
        place = f"{pid}@{at:#x}+4096"
        data = bytes.fromhex(program.machine.submit(0, f"read {place}"))
        assert machine.submit(0, f"checksum {place}") == f"{zlib.crc32(data):08x}"
        machine.submit(0, f"write {pid}@{at:#x} 0102")
        machine.submit(0, f"fill {pid}@{at + 2:#x}+2 3")
        assert machine.submit(0, f"read {pid}@{at:#x}+4") == "01020303"
        machine.submit(0, f"write {pid}@{at:#x} {data[:4].hex()}")
        below = machine.values("stats")["host_pages_out"]
        machine.submit(0, f"migrate {pid}@{at - 65536:#x}+65536 to dev0")
        assert machine.values("stats")["host_pages_out"] > below
        program.go_on()
        assert program.finish() == ["joined"]


def shown(pid: int) -> list[str]:
    """What ps shows of a program: its arguments, and its environment."""
    files = (Path(f"/proc/{pid}/{name}") for name in ("cmdline", "environ"))
    return b"".join(file.read_bytes() for file in files).decode().split("\0")


def test_ps_shows_arguments_and_environment(machine: Mount, endings: Path) -> None:
    """Also when they are elsewhere later."""
    environment = {**os.environ, "HMMFS_TESTED": "yes"}
    with Ending(machine, endings, "title", "argument", env=environment) as program:
        went, pid, _ = program.offered()
        assert went == 0
        with open(f"/proc/{pid}/maps") as maps:
            (stack,) = (line.split()[0].split("-") for line in maps if "[stack]" in line)
        low, high = (int(end, 16) for end in stack)
        machine.submit(0, f"migrate {pid}@{low:#x}+{high - low} to dev0")
        assert shown(pid)[:3] == [str(endings), "title", "argument"]
        assert "HMMFS_TESTED=yes" in shown(pid)
        program.go_on()
        assert program.offered()[0] == 0
        assert program.said == ["set"]
        assert shown(pid)[0] == "another name"
        assert "HMMFS_TESTED=yes" in shown(pid)
        program.go_on()
        assert program.finish() == ["set", "another name"]
