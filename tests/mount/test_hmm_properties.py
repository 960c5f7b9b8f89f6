"""What Linux promises of devices that share a program's memory (hmmfs/program/HMM.md numbers it),
where no row of its tests shows it: programs/properties.c, in the memory of a program under
hmmfs run."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HMMFS, Mount, mounted, moves_programs, wait_until

PROGRAM = Path(__file__).parent / "programs" / "properties.c"
SECONDS = 30
PROPERTIES = (
    "invalidated",
    "copied_on_write",
    "replaced_during_faults",
    "snapshot_has_no_effect",
    "write_only_mapping",
    "stored_before_an_error",
    "last_data_of_the_device",
    "touched_by_the_program",
    "freed_with_the_last_mapping",
    "counting_while_they_migrate",
    "two_devices_take_turns",
    "counting_in_huge_pages",
    "nothing_of_others",
    "first_touch",
    "read_only_stays_so",
    "any_file_that_closes",
    "exclusive_for_another",
    "exclusive_of_a_huge_page",
    "many_readers_of_one_page",
)
pytestmark = moves_programs
KINDS = pytest.mark.parametrize("devices", [(0, 1), (2, 3)], ids=["private", "coherent"])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("properties") / "properties"
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", path, PROGRAM], check=True)
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    kinds = "private+private+coherent+coherent"
    base = tmp_path_factory.mktemp("properties")
    with mounted(base, 600, vram="64M", devices=4, type=kinds) as mount:
        yield mount


def ran(
    machine: Mount, program: Path, name: str, devices: tuple[int, int]
) -> subprocess.CompletedProcess[str]:
    command = [*HMMFS, "run", str(machine.path), "--", program, name, *map(str, devices)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


def test_every_property_is_named(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.stdout.split() == [*PROPERTIES, "killed"]


@KINDS
@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name: str, devices: tuple[int, int], program: Path, machine: Mount) -> None:
    done = ran(machine, program, name, devices)
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)
    assert wait_until(lambda: machine.audit() == "ok"), machine.audit()


@KINDS
def test_killed(devices: tuple[int, int], program: Path, machine: Mount) -> None:
    """Pages of a program that is gone are nobody's, and they are released."""
    done = ran(machine, program, "killed", devices)
    assert (done.stdout, done.returncode) == ("ok\n", -signal.SIGKILL)
    stats = f"devices/dev{devices[0]}/stats"
    assert wait_until(lambda: machine.values(stats)["used"] == 0)
    assert wait_until(lambda: machine.audit() == "ok"), machine.audit()
