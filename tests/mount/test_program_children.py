"""Children of a program get what devices have of it, whatever they do meanwhile, and hold up nobody
for that."""

from __future__ import annotations

import errno
import subprocess
import time
from pathlib import Path

import pytest
from conftest import MountFactory, moves_programs
from test_programs import COMPILE, SOURCES, Program

pytestmark = moves_programs

STORM_MS = 4000
WAIT_S = 3  # more than a device waits for a program, less than the storm lasts


@pytest.fixture
def restless(tmp_path: Path) -> Path:
    path = tmp_path / "restless"
    subprocess.run([*COMPILE, "-o", path, SOURCES / "restless.c"], check=True)
    return path


def test_a_child_that_never_rests_holds_up_nobody(
    mount_factory: MountFactory, restless: Path
) -> None:
    """Its threads discard memory without a pause, from before it has all that it is to have."""
    machine = mount_factory(vram="80M", devices=2, host="128M")
    with Program(machine, restless, str(STORM_MS)) as program:
        pid, at, length = program.where()
        machine.submit(0, f"migrate {pid}@{at:#x}+{length} to dev0")
        assert program.ask("") == "forked"
        over = time.monotonic() + STORM_MS / 1000 - WAIT_S
        while time.monotonic() < over:
            began = time.monotonic()
            try:
                machine.submit(1, f"read {pid}@{at:#x}+64")
            except OSError as error:
                assert error.errno == errno.EBUSY  # noqa: PT017
            assert time.monotonic() - began < WAIT_S
        assert program.finish(60) == ("child 0, right\n", "")
