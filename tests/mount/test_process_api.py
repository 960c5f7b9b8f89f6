"""`machine.process(pid)`: the memory of a program by the Python API."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import Mount, fails, moves_programs, wait_until
from test_programs import Program

import hmmfs
from hmmfs import Hmadvise, View
from hmmfs.api.program import Process

pytestmark = moves_programs

PAGE, M = 4096, 1 << 20
# Its memory, and then what it is asked: the number at an index, or to set one.
SCRIPT = f"""
import ctypes, mmap, os, sys
memory = mmap.mmap(-1, {4 * M}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
array = (ctypes.c_uint32 * {M}).from_buffer(memory)
for at in range({M}):
    array[at] = at
print(f"{{os.getpid()}}@{{ctypes.addressof(array):#x}}+{4 * M}", flush=True)
for line in sys.stdin:
    print(array[int(line)], flush=True)
"""


class Counting(Program):
    """2^20 numbers, each its index; `ask(index)` says what is there."""

    def __init__(self, mount: Mount) -> None:
        super().__init__(mount, "python3", "-c", SCRIPT)
        _, self.address, _ = self.where()


@pytest.fixture
def program(mount: Mount) -> Iterator[Counting]:
    with Counting(mount) as program:
        yield program


@pytest.fixture
def process(mount: Mount, program: Counting) -> Process:
    return hmmfs.connect(mount.path).process(program.pid)


def pages(process: Process) -> list[int]:
    found = process.residency()
    return [found["pages_dev0"], found["pages_dev1"]]


def test_a_kernel_on_a_part(process: Process, program: Counting) -> None:
    """It begins inside a page and ends inside one: nothing beside it changes."""
    first, count = 1500, 3000
    view = process.view(program.address + 4 * first, (count // 10, 10), "uint32")
    assert type(view) is View
    assert (view.shape, view.nbytes) == ((300, 10), 12000)
    assert view.offset % PAGE == (program.address + 4 * first) % PAGE
    dev0 = process.machine.dev0
    assert dev0.launch("hmmfs.kernels:scale", hmmfs.updates(view), 10).wait(60) is None
    for at, value in (
        (first - 1, first - 1),
        (first, 10 * first),
        (first + count - 1, 10 * (first + count - 1)),
        (first + count, first + count),
    ):
        assert program.ask(str(at)) == str(value)


def test_moving_and_detaching(process: Process, program: Counting) -> None:
    view = process.view(program.address + 5 * PAGE, 20 * PAGE)
    assert process.devices == ["dev0", "dev1"]
    view.migrate("dev1")
    assert pages(process) == [0, 20]
    view.prefetch(process.machine.dev0).wait(60)
    assert pages(process) == [20, 0]
    process.view(program.address + 5 * PAGE, 4 * PAGE).migrate("host")
    assert pages(process) == [16, 0]
    process.detach("dev0")
    assert (process.devices, pages(process)) == (["dev1"], [0, 0])
    fails(errno.EPERM, lambda: view.migrate("dev0"))
    with pytest.raises(hmmfs.HmmfsError) as caught:
        process.machine.dev0.launch("hmmfs.kernels:fill", hmmfs.writes(view), 1).wait(60)
    assert caught.value.errno == errno.EPERM
    view.migrate("dev1")
    process.detach("dev1")
    assert (process.devices, pages(process)) == ([], [0, 0])
    process.attach(process.machine.dev0, "dev1")
    assert process.devices == ["dev0", "dev1"]
    view.migrate("dev0")
    assert pages(process) == [20, 0]
    assert program.ask(str(6 * PAGE // 4)) == str(6 * PAGE // 4)


def test_home(process: Process, program: Counting) -> None:
    view = process.view(program.address, 8 * PAGE)
    view.migrate("dev0")
    process.home(once=True)
    assert (process.devices, pages(process)) == (["dev0", "dev1"], [0, 0])
    view.migrate("dev0")
    process.home()
    assert (process.devices, pages(process)) == ([], [0, 0])


def test_hmadvise(process: Process, program: Counting) -> None:
    assert [int(one) for one in Hmadvise] == [4, 0x1000, 0x1001, 0x1002]
    address, machine = program.address, process.machine
    process.hmadvise(Hmadvise.PREFETCH, address, 8 * PAGE, machine.dev0)
    assert pages(process) == [8, 0]
    process.hmadvise(0x1000, address, 2 * PAGE)
    assert pages(process) == [6, 0]
    process.hmadvise(Hmadvise.PINNED, address + 2 * PAGE, 2 * PAGE)
    advice = (machine.path / "state" / process.name / "advice").read_text()
    assert "pinned" in advice
    with pytest.raises(hmmfs.HmmfsError):
        process.view(address + 2 * PAGE, 2 * PAGE).migrate("dev1")
    process.hmadvise(Hmadvise.UNPINNED, address + 2 * PAGE, 2 * PAGE)
    process.view(address + 2 * PAGE, 2 * PAGE).migrate("dev1")
    assert pages(process) == [4, 2]
    process.hmadvise(Hmadvise.DONTNEED, address + 4 * PAGE, PAGE)
    assert pages(process) == [3, 2]
    assert program.ask(str(4 * PAGE // 4)) == "0"
    assert program.ask(str(5 * PAGE // 4)) == str(5 * PAGE // 4)
    with pytest.raises(hmmfs.HmmfsError, match="77 is not a behaviour: there") as caught:
        process.hmadvise(77, address, PAGE)
    assert caught.value.errno == errno.EINVAL


def test_what_is_no_memory(process: Process, program: Counting) -> None:
    nowhere = process.view(8, PAGE)
    nowhere.migrate("dev0")  # of what is not there nothing moves
    assert pages(process) == [0, 0]
    with pytest.raises(hmmfs.HmmfsError) as caught:
        process.machine.dev0.launch("hmmfs.kernels:fill", hmmfs.writes(nowhere), 1).wait(60)
    assert caught.value.errno == errno.EFAULT
    with pytest.raises(hmmfs.HmmfsError) as caught:
        process.machine.dev0.submit(f"read {nowhere.place}")
    assert caught.value.errno == errno.EFAULT
    for address in (-1, 1 << 56):
        with pytest.raises(hmmfs.HmmfsError, match="is not an address of 4096 bytes"):
            process.view(address, PAGE)
    assert process.view(program.address, 0).nbytes == 0
    process.view(program.address, 0).migrate("dev0")
    assert pages(process) == [0, 0]


def test_the_program_ends(mount: Mount) -> None:
    machine = hmmfs.connect(mount.path)
    with pytest.raises(hmmfs.HmmfsError, match="has not given its memory to") as caught:
        machine.process(os.getpid())
    assert caught.value.errno == errno.ESRCH
    with Counting(mount) as program:
        process = machine.process(program.pid)
        view = process.view(program.address, 4, np.dtype("float64"))
        assert view.nbytes == 32
    assert wait_until(lambda: not os.listdir(mount.path / "state"))
    for call in (
        lambda: process.detach("dev0"),
        lambda: process.hmadvise(Hmadvise.PINNED, 0, PAGE),
        lambda: view.migrate("dev0"),
    ):
        with pytest.raises(hmmfs.HmmfsError) as caught:
            call()
        assert caught.value.errno == errno.ESRCH
