"""Memory of callers that may not be ours: real processes, no mount."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import takes_root, wait_until

from hmmfs.errors import HmmfsError
from hmmfs.program import user_memory

pytestmark = takes_root("only root serves other users")


def stack(pid: int) -> int:
    found = re.search(r"^(\w+)-.*\[stack\]", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    assert found
    return int(found[1], 16)


def test_memory_is_of_the_program_that_it_was_taken_of() -> None:
    becomes = ["/bin/sh", "-c", "x=$(echo heap); echo $x; read y; exec sleep 60"]
    with subprocess.Popen(
        becomes, user=65534, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"heap\n"
            memory, address = user_memory.of(process.pid), stack(process.pid)
            buffer = memoryview(bytearray(64))
            with open(f"/proc/{process.pid}/mem", "rb") as file:
                file.seek(address)
                there = file.read(64)
            memory.load(process.pid, address, buffer)
            assert bytes(buffer) == there
            memory.store(process.pid, address, buffer)
            for pid, at, number in (
                (os.getpid(), address, errno.EPERM),
                (process.pid, 8, errno.EFAULT),
                (process.pid, 1 << 63, errno.EFAULT),
            ):
                with pytest.raises(HmmfsError) as caught:
                    memory.load(pid, at, buffer)
                assert caught.value.errno == number
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
            assert user_memory.of(process.pid).load(process.pid, stack(process.pid), buffer) is None
            with pytest.raises(HmmfsError):
                memory.load(process.pid, stack(process.pid), buffer)
        finally:
            process.kill()


def test_our_own_programs_are_had_by_number() -> None:
    assert type(user_memory.of(os.getpid())) is user_memory.Memory
