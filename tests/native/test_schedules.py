"""Small programs on one block in many schedules, each had again by its seed (schedules.c): no load
misses a store, nothing waits for ever, the books agree, and the model allows each step."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from core_build import HERE, SOURCES, TELLING, compile_into, link
from mistakes import spoilt

from tests.model.conformance import complaints
from tests.stacks import run

# What the core calls and coroutines.h, or schedules.c, answers.
WRAPPED = sorted(
    set(
        re.findall(
            r"^\w+ \*?__wrap_(\w+)\(",
            "".join(
                (HERE / name).read_text() for name in ("coroutines.h", "faults.h", "schedules.c")
            ),
            re.MULTILINE,
        )
    )
)
COUNT = 40_000  # some 15 s
LIMIT_S = 250.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schedules")


@pytest.fixture(scope="module")
def objects(directory: Path) -> list[Path]:
    sources = [*SOURCES, HERE / "steps.c", HERE / "schedules.c"]
    return compile_into(directory / "objects", TELLING, sources)


def play(program: Path, steps: Path, first: int, count: int) -> subprocess.CompletedProcess[str]:
    return run([program, first, count], LIMIT_S, os.environ | {"HMMFS_STEPS": str(steps)})


def check(program: Path, base: Path, first: int, count: int) -> None:
    done = play(program, base / "steps", first, count)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"schedules {count}\n"
    assert complaints(base, 1000) == ""


@pytest.mark.timeout(300)
def test_schedules(objects: list[Path], tmp_path: Path) -> None:
    assert len(WRAPPED) > 10
    check(link(tmp_path / "schedules", objects, WRAPPED), tmp_path, 1, COUNT)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_other_schedules(objects: list[Path], tmp_path: Path) -> None:
    """As many others at a time, for as long as there is time."""
    program = link(tmp_path / "schedules", objects, WRAPPED)
    end = time.monotonic() + float(os.environ.get("HMMFS_LONG_SECONDS", "3600"))
    first = int(time.time()) << 20
    while time.monotonic() < end:
        print("from", first)
        check(program, tmp_path, first, COUNT)
        for path in tmp_path.glob("steps.*"):
            path.unlink()
        first += COUNT


# Those that some schedule of the first few thousand shows; by what, as it is said.
FOUND = {
    "no_retry": "",
    "park_in_recall": "",  # some wait for each other, or go round for ever
    "inval_hull": "nobody can go on",
    "wide_waits": "",
    "no_drain": "",
    "no_generation": "",
    "punch_first": "which had completed",
    "blind_read": "audit",
    "blind_load": "audit",
    "blind_store": "audit",
    "keep_written": "which had completed",
    "read_keeps_copies": "audit",
    "write_keeps_copies": "",  # the audit, or a worker loads the old bytes
    "open_keeps_copies": "which had completed",
    "flip_keeps_copies": "which had completed",
    "copy_unrecalled": "audit",
    "copy_of_a_cut_page": "audit",
    "failed_write_stays": "audit",
    "read_of_a_part": "",
    "copy_of_a_part": "which had completed",
    "signal_ends_a_copy": "fails with -4",
}


@pytest.mark.parametrize("mistake", FOUND)
def test_a_mistake_is_found_and_found_again(
    objects: list[Path], tmp_path: Path, mistake: str
) -> None:
    core = spoilt(mistake, tmp_path, TELLING, objects)
    program = link(tmp_path / "schedules", core, WRAPPED)
    first = play(program, tmp_path / "steps", 1, COUNT)
    assert first.returncode == 1, "no schedule shows it"
    assert FOUND[mistake] in first.stderr
    seed = re.search(r"^seed (\d+)$", first.stderr, re.MULTILINE)
    assert seed, first.stderr
    again = play(program, tmp_path / "steps", int(seed[1]), 1)
    assert again.returncode == 1
    assert history(again.stderr) == history(first.stderr)


def history(said: str) -> list[str]:
    """Who went on at which point."""
    return re.findall(r"^ *\d+ .*: .*$", said, re.MULTILINE)
