"""Words of madvise, mmap and their kin over pages that devices have: what a program finds then is
what it finds without devices."""

from __future__ import annotations

import contextlib
import errno
import mmap
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HMMFS, PATIENCE_S, Mount, fails, mounted, moves_programs

pytestmark = moves_programs

SOURCE = Path(__file__).with_name("programs") / "words.c"
WORDS = re.findall(r'\{"(\w+)", \w+\}', SOURCE.read_text())
WHERE = re.compile(r"(\d+)@0x([0-9a-f]+)\+\d+\n")
PAGE = mmap.PAGESIZE
LIMIT_S = 20
SOME_S = 3  # one operation that waits for a program takes a second


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words"
    command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path, SOURCE]
    subprocess.run(command, check=True)
    return path


def said(command: list[str | Path], mount: Mount | None) -> Iterator[str]:
    """The lines of a program; where it offers memory, a device takes it."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdin
        assert process.stdout
        for line in process.stdout:
            if not WHERE.fullmatch(line):
                yield line.rstrip("\n")
                continue
            if mount:
                mount.submit(0, f"migrate {line.strip()} to dev0")
            process.stdin.write("\n")
            process.stdin.flush()
        yield f"ended {process.wait(LIMIT_S)}"
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One for all of them: a word takes a moment."""
    with mounted(tmp_path_factory.mktemp("mounts"), 3 * PATIENCE_S, vram="8M", host="64M") as mount:
        yield mount


def pages_out(mount: Mount) -> int:
    return mount.values("stats")["host_pages_out"]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_means_what_it_means_alone(machine: Mount, words: Path, word: str) -> None:
    before = pages_out(machine)
    alone = list(said([words, word], None))
    assert alone[-1] == "ended 0"
    beside = list(said([*HMMFS, "run", str(machine.path), "--", words, word], machine))
    assert beside == alone
    assert pages_out(machine) > before + 30
    assert machine.audit() == "ok"


@contextlib.contextmanager
def stopped_at(machine: Mount, words: Path, word: str, number: int) -> Iterator[tuple[int, int]]:
    """A program that waits where it offers its memory for that time; its pid, and where."""
    command = [*HMMFS, "run", str(machine.path), "--", words, word]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin
        assert process.stdout
        for line in process.stdout:
            found = WHERE.fullmatch(line)
            if found:
                number -= 1
                if not number:
                    yield int(found[1]), int(found[2], 16)
                    return
                machine.submit(0, f"migrate {line.strip()} to dev0")
                process.stdin.write("\n")
                process.stdin.flush()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("word", ["guard", "raw_guard"])
def test_devices_have_nothing_of_guards(machine: Mount, words: Path, word: str) -> None:
    """They are told so at once, and have what is beside them."""
    with stopped_at(machine, words, word, 2) as (pid, at):
        guards = f"{pid}@{at + 2 * PAGE:#x}+{3 * PAGE}"
        around = f"{pid}@{at:#x}+{8 * PAGE}"
        began = time.monotonic()
        for operation in (
            f"fill {guards} 1",
            f"read {guards}",
            f"checksum {guards}",
            f"checksum {around}",
            f"write {pid}@{at + 4 * PAGE:#x} abcd",
            f"copy {guards} to {pid}@{at + 16 * PAGE:#x}",
        ):
            fails(errno.EFAULT, lambda operation=operation: machine.submit(0, operation))
            said = (machine.path / "devices/dev0/last_error").read_text()
            assert f"Process {pid} has no memory there that a device may have" in said
            assert "guard" in said
        assert time.monotonic() - began < SOME_S
        before = pages_out(machine)
        machine.submit(0, f"migrate {around} to dev0")
        assert pages_out(machine) == before + 5
        assert machine.submit(0, f"read {pid}@{at + 5 * PAGE:#x}+8") == (
            (9 + 5 * PAGE // 8).to_bytes(8, "little").hex()
        )
