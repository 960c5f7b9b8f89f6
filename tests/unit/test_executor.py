"""Device operations: the arithmetic, then whole operations on a native core without a mount."""

import errno
import zlib
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hmmfs.device.executor import Executor, Span, merged, parse_all, spans
from hmmfs.device.zeros import crc32_zeros
from hmmfs.errors import HmmfsError
from hmmfs.filesystem.submit import Submission
from hmmfs.memory import (
    BLOCK_BYTES,
    BLOCK_DTYPE,
    CANDIDATE_DTYPE,
    Core,
    RegionTable,
    Trace,
    page_set,
)
from hmmfs.policy import Policies
from hmmfs.program.processes import Processes
from hmmfs.service import Doomed, Events, FaultService, Jobs, Reservations
from hmmfs.service.blocks import Blocks

M = 1 << 20


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 1 << 16))
def test_crc_of_zeros(crc: int, length: int) -> None:
    assert crc32_zeros(crc, length) == zlib.crc32(bytes(length), crc)


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_crc_of_zeros_adds_up(crc: int, one: int, two: int) -> None:
    assert crc32_zeros(crc32_zeros(crc, one), two) == crc32_zeros(crc, one + two)


@given(st.integers(0, 8 * M), st.integers(0, 8 * M))
def test_spans_cover_a_range_once(start: int, length: int) -> None:
    at = start
    for span in spans(start, start + length):
        assert span.start == at
        assert 0 < span.length <= BLOCK_BYTES - span.offset
        at += span.length
    assert at == start + length


def test_spans_end_at_block_boundaries() -> None:
    got = list(spans(BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 1))
    assert got == [Span(0, BLOCK_BYTES - 1, 1), Span(1, 0, BLOCK_BYTES), Span(2, 0, 1)]


def test_ranges_that_meet_are_joined() -> None:
    assert merged([(8, 9), (0, 2), (2, 4), (3, 5)]) == [(0, 5), (8, 9)]


def test_records_have_the_native_layout() -> None:
    assert BLOCK_DTYPE.itemsize == 1024
    assert CANDIDATE_DTYPE["pages"] == np.dtype("u4")
    words = np.zeros(8, np.uint64)
    words[1] = 1 << 2
    assert list(np.flatnonzero(page_set(words))) == [66]


# ---- on a native core: devices only, no CPU


class Machine:
    def __init__(self, core: Core) -> None:
        self.core = core
        self.table = RegionTable(core)
        self.events = Events(core)
        jobs = Jobs(core, self.events)
        policies = Policies(core)
        reservations = Reservations(
            core, jobs, self.table, policies, Trace(core, 0), Doomed(core, self.events, self.table)
        )
        blocks = Blocks(jobs, reservations, self.table)
        processes = Processes(core, self.table, blocks, shared=False)
        self.executors = [
            Executor(core, blocks, self.table, processes, node, "/nowhere")
            for node in range(1, core.nodes)
        ]
        FaultService(
            core,
            self.events,
            jobs,
            reservations,
            self.table,
            policies,
            on_lost=lambda node, number, error: None,
        )

    async def do(self, text: str, device: int = 0) -> list[str]:
        answers: list[str] = []
        await self.executors[device].run(parse_all(text), answers.append)
        return answers


def on_machine(
    program: Callable[[Machine], Awaitable[None]], *vram: int, host: int = 16 * M
) -> None:
    async def main(core: Core) -> None:
        machine = Machine(core)
        async with trio.open_nursery() as nursery:
            await nursery.start(machine.events.run)
            await program(machine)
            nursery.cancel_scope.cancel()

    with Core([size // 4096 for size in (host, *(vram or (4 * M,)))]) as core:
        failure: list[BaseException] = []

        async def guarded() -> None:
            try:
                await main(core)
            except* (AssertionError, HmmfsError) as group:
                failure.extend(group.exceptions)

        trio.run(guarded)
        if failure:
            raise failure[0]
        assert core.audit() is None


def make(machine: Machine, name: bytes, size: int) -> None:
    machine.table.create(name, 0o100644, 0, 0).truncate(size)


def test_write_read_fill_and_checksum() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 8 * M)
        shadow = bytearray(8 * M)
        shadow[5 : 3 * M] = b"\7" * (3 * M - 5)
        shadow[2 * M - 2 : 2 * M + 2] = b"\1\2\3\4"
        answers = await machine.do(
            f"fill a:5+{3 * M - 5} 7\nwrite a:{2 * M - 2} 01020304\n"
            f"read a:{2 * M - 3}+6\nchecksum a\nread a:{6 * M}+2"
        )
        assert answers == ["070102030407", f"{zlib.crc32(shadow):08x}", "0000"]

    on_machine(program)


def test_a_region_larger_than_vram_and_host_together_fails_with_nothing_lost() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 64 * M)
        with pytest.raises(HmmfsError) as caught:
            await machine.do("fill a 1")
        assert caught.value.errno == errno.ENOSPC
        region = machine.table.get(b"a")
        assert region is not None
        for node in range(2):
            assert machine.core.used(node) <= machine.core.capacity[node]
        assert await machine.do("read a:0+2") == ["0101"]

    on_machine(program, 4 * M, host=8 * M)


def test_swap_when_host_and_device_are_full() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 12 * M)
        await machine.do("fill a 9")
        expected = f"{zlib.crc32(bytes([9]) * 12 * M):08x}"
        for _ in range(3):
            assert await machine.do("checksum a") == [expected]
        assert sum(machine.core.used(node) for node in range(2)) == 12 * M // 4096

    on_machine(program, 4 * M, host=8 * M)


def test_copy_and_compare() -> None:
    async def program(machine: Machine) -> None:
        for name in (b"a", b"b"):
            make(machine, name, 6 * M)
        await machine.do(f"fill a:{M}+{2 * M} 1\nwrite a:{3 * M} 0203\ncopy a to b")
        assert await machine.do("compare a with b") == ["equal"]
        await machine.do(f"copy a:{M}+{3 * M} to a:{2 * M}")
        assert await machine.do(f"compare a:{2 * M}+{3 * M} with b:{M}+{3 * M}") == ["equal"]
        assert await machine.do(f"read a:{4 * M}+2\ncompare a with b") == [
            "0203",
            f"differ at {3 * M}",
        ]

    on_machine(program)


def test_what_nobody_touched_costs_nothing() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 1 << 40)
        make(machine, b"b", 1 << 40)
        assert await machine.do("checksum a:0+4096") == [f"{zlib.crc32(bytes(4096)):08x}"]
        assert await machine.do("copy a to b\ncompare a with b\nmigrate a to dev0") == ["equal"]
        assert machine.core.stats()["pages_touched"] == 0

    on_machine(program)


def test_migration_between_devices() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 4 * M)
        region = machine.table.get(b"a")
        assert region is not None
        await machine.do("fill a 3")
        await machine.do("migrate a:0+2M to dev1", device=1)
        assert region.residency().pages == (0, 512, 512)
        await machine.do("migrate a to host")
        assert region.residency().pages == (1024, 0, 0)
        assert await machine.do("read a:2M+1", device=1) == ["03"]

    on_machine(program, 4 * M, 4 * M)


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("checksum nothing", errno.ENOENT),
        ("read a:4096+1", errno.ERANGE),
        ("fill a:4095+2 0", errno.ERANGE),
        ("copy a to b:1", errno.ERANGE),
        ("migrate a to dev1", errno.ENODEV),
    ],
)
def test_operations_that_cannot_be(line: str, number: int) -> None:
    async def program(machine: Machine) -> None:
        for name in (b"a", b"b"):
            make(machine, name, 4096)
        with pytest.raises(HmmfsError) as caught:
            await machine.do(line)
        assert caught.value.errno == number

    on_machine(program)


def test_a_removed_region_lives_until_its_operation_has_ended() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 4 * M)
        region = machine.table.get(b"a")
        assert region is not None
        with machine.table.using(region):
            machine.table.unlink(b"a")
            assert machine.core.stats()["regions"] == 1
        assert machine.core.stats()["regions"] == 0

    on_machine(program)


# ---- one open `submit` file


def test_answers_are_read_from_where_the_write_ended_or_from_0() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 4096)
        submission = Submission(machine.executors[0])
        line = b"checksum a\nread a:0+2\n"
        assert await submission.write(0, line) == len(line)
        answer = f"{zlib.crc32(bytes(4096)):08x}\n0000\n".encode()
        end = len(line)
        assert submission.read(end, 4) == answer[:4]  # read(2) after write(2)
        assert submission.read(end + 4, 100) == answer[4:]
        assert submission.read(end + len(answer), 100) == b""
        got = b""
        while chunk := submission.read(len(got), 3):  # pread(2) from 0, past where the write ended
            got += chunk
        assert got == answer
        assert submission.read(0, 100) == answer
        assert submission.read(end, 100) == answer  # again from the start

    on_machine(program)


def test_who_reads_from_0_comes_past_where_the_write_ended() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 4096)
        submission = Submission(machine.executors[0])
        line = b"read a:0+100\n"
        assert await submission.write(0, line) == len(line)
        answer = b"0" * 200 + b"\n"
        assert submission.read(0, len(line)) == answer[: len(line)]
        assert submission.read(len(line), 1000) == answer[len(line) :]

    on_machine(program)


def test_the_answers_of_a_failed_write_end_with_its_sentence() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 4096)
        submission = Submission(machine.executors[0])
        with pytest.raises(HmmfsError) as caught:
            await submission.write(0, b"read a:0+2\nread b:0+2\n")
        assert submission.read(0, 100) == f"0000\nerror: {caught.value.sentence}\n".encode()
        await submission.write(0, b"read a:0+1\n")
        assert submission.read(0, 100) == b"00\n"

    on_machine(program)


def test_a_signal_before_the_write_has_begun_cancels_that_one_alone() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 4096)
        submission = Submission(machine.executors[0])
        submission.interrupt(waits=False)
        await submission.write(0, b"fill a 1\n")
        submission.interrupt(waits=True)
        with pytest.raises(HmmfsError) as caught:
            await submission.write(0, b"fill a 2\n")
        assert caught.value.errno == errno.EINTR
        await submission.write(0, b"read a:0+1\n")
        assert submission.read(0, 100) == b"01\n"

    on_machine(program)


def test_one_transaction_at_a_time_on_an_open_file() -> None:
    async def program(machine: Machine) -> None:
        make(machine, b"a", 16 * M)
        submission = Submission(machine.executors[0])
        numbers: list[int | None] = []

        async def first() -> None:
            with pytest.raises(HmmfsError) as caught:
                await submission.write(0, b"fill a 1\n" * 100)
            numbers.append(caught.value.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.sleep(0.01)
            with pytest.raises(HmmfsError) as caught:
                await submission.write(0, b"fill a 1\n")
            numbers.append(caught.value.errno)
            submission.interrupt()
        assert numbers == [errno.EBUSY, errno.EINTR]
        assert await submission.write(0, b"read a:0+1\n") == 11

    on_machine(program)
