"""Carries out the operations of one device, block by block, as native jobs.

A job on one block migrates what it needs by itself. When the device is full it says so. Then
capacity is freed and reserved, and the job is sent again with the reservation.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import trio

from hmmfs.device.launcher import Worker, check_sizes
from hmmfs.device.zeros import crc32_zeros
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import (
    BLOCK_BYTES,
    BLOCK_PAGES,
    PAGE_SIZE,
    AdviceField,
    Core,
    Job,
    JobFlag,
    JobKind,
    Region,
    RegionTable,
    programs,
)
from hmmfs.memory.regions import show
from hmmfs.program.processes import Process, Processes
from hmmfs.service.blocks import Blocks, Span, spans
from hmmfs.wire import commands
from hmmfs.wire.commands import Operation, Range
from hmmfs.wire.launches import Launch, Use

IN_FLIGHT = 4  # blocks at a time where order does not matter


def touched_spans(region: Region, start: int, end: int) -> Iterator[Span]:
    """Those of them whose block somebody has touched; the bytes between are zeros. Of a program's
    memory all: it touches it without our knowing."""
    if region.pid:
        yield from spans(start, end)
        return
    for block in region.touched(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
        low = max(start, block * BLOCK_BYTES)
        high = min(end, (block + 1) * BLOCK_BYTES)
        yield Span(block, low - block * BLOCK_BYTES, high - low)


def pages(places: Iterator[Span]) -> int:
    """Pages that spans touch."""
    return sum(
        (span.offset + span.length - 1) // PAGE_SIZE - span.offset // PAGE_SIZE + 1
        for span in places
    )


def _migration(region: Region, span: Span, node: int, flags: JobFlag) -> Job:
    first = span.offset // PAGE_SIZE
    last = (span.offset + span.length - 1) // PAGE_SIZE
    return Job(
        JobKind.MIGRATE,
        region.ino,
        span.block,
        node=node,
        flags=flags,
        first=first,
        count=last - first + 1,
    )


def merged(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (start, end) in order, those that meet joined."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(pieces):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


@dataclass(slots=True)
class Entry:
    """A submission that waits for the device or runs on it; done and total are pages, both 0 where
    an operation can't tell."""

    name: str  # to cancel it by; empty: nobody can
    verb: str  # of its first operation, then of the one that runs
    scope: trio.CancelScope
    running: bool = False
    done: int = 0
    total: int = 0


class Executor:
    """One device. Submissions run one after the other, in the order in which they come."""

    def __init__(
        self,
        core: Core,
        blocks: Blocks,
        regions: RegionTable,
        processes: Processes,
        node: int,
        path: str,
    ) -> None:
        self._core = core
        self._blocks = blocks
        self._processes = processes
        self._regions = regions
        self._node = node
        self.worker = Worker(core, node, path)
        self._turn = trio.Lock()
        self.queue: list[Entry] = []  # in the order in which they came
        self._entry: Entry  # whose turn it is
        self._in_flight = max(1, min(IN_FLIGHT, core.capacity[node] // BLOCK_PAGES))

    async def run(
        self, operations: list[Operation], answer: Callable[[str], None], name: str = ""
    ) -> None:
        """Run operations in order, handing over the answer of each that has one. Raises HmmfsError
        at the first that fails; what was done by then stays done. A cancel does not wait."""
        for operation in operations:
            if isinstance(operation, commands.Cancel):
                self._cancel(operation.name)
        if all(isinstance(operation, commands.Cancel) for operation in operations):
            return
        with trio.CancelScope() as scope:
            entry = Entry(name, operations[0].verb, scope)
            self.queue.append(entry)
            try:
                async with self._turn:
                    entry.running = True
                    await self._run_all(operations, answer, entry)
            finally:
                self.queue.remove(entry)
        if scope.cancelled_caught:
            raise HmmfsError(errno.ECANCELED, f"The {entry.verb} was cancelled.")

    def _cancel(self, name: str) -> None:
        found = [entry for entry in self.queue if entry.name == name]
        if not found:
            raise HmmfsError(errno.ENOENT, f"There is no call {name}, or it has ended. See queue.")
        for entry in found:
            entry.scope.cancel()

    async def _run_all(
        self, operations: list[Operation], answer: Callable[[str], None], entry: Entry
    ) -> None:
        for number, operation in enumerate(operations, 1):
            entry.verb, entry.done, entry.total = operation.verb, 0, 0
            self._entry = entry
            try:
                text = await self._run(operation)
            except HmmfsError as error:
                line = f" in line {number}" if len(operations) > 1 else ""
                raise HmmfsError(
                    error.errno or errno.EIO, f"{operation.verb}{line}: {error.sentence}"
                ) from error
            if text is not None:
                answer(text)

    async def _run(self, operation: Operation) -> str | None:
        match operation:
            case commands.Read(source):
                return await self._read(*self._bounds(source))
            case commands.Write(target, data):
                region, start, _ = self._bounds(target)
                await self.store(region, start, data)
            case commands.Fill(target, byte):
                await self._fill(*self._bounds(target), byte)
            case commands.Checksum(source):
                return await self._checksum(*self._bounds(source))
            case commands.Migrate(source, node):
                await self._migrate(*self._bounds(source), node)
            case commands.Copy(source, target):
                await self._copy(source, target)
            case commands.Compare(left, right):
                return await self._compare(left, right)
            case Launch():
                return await self._launch(operation)
        return None

    def _bounds(self, place: Range) -> tuple[Region, int, int]:
        """The region and the bytes [start, end) meant."""
        if place.pid:
            process = self._program(place.pid)
            length = place.length or 0
            start = process.offset(place.offset, length)
            return process.region, start, start + length
        region = self._regions.file(place.region)
        if region is None:
            raise HmmfsError(
                errno.ENOENT,
                f"There is no region named {show(place.region)}: make it in regions/ first.",
            )
        size = region.size
        length = place.length if place.length is not None else size - place.offset
        if place.offset > size or place.offset + length > size:
            raise HmmfsError(
                errno.ERANGE,
                f"Region {show(place.region)} ends at byte {size}. Stay below that, or grow it.",
            )
        return region, place.offset, place.offset + length

    # ---- operations

    async def _read(self, region: Region, start: int, end: int) -> str:
        return (await self.load(region, start, end)).hex()

    def _stays(self, region: Region) -> bool:
        """Whether it is memory of a program that can only be reached where it is."""
        return region.pid != 0 and not self._processes.of(region).migrates

    async def _fill(self, region: Region, start: int, end: int, byte: int) -> None:
        bytes_ = bytes([byte]) * min(end - start, BLOCK_BYTES) if self._stays(region) else None

        def job(span: Span) -> Job:
            if bytes_ is not None:
                buffer = memoryview(bytes_)[: span.length]
                return self._job(JobKind.WRITE, region, span, buffer=buffer)
            return self._job(JobKind.FILL, region, span, byte=byte)

        with self._regions.using(region):
            await self._each(spans(start, end), job, pages(spans(start, end)))

    async def _migrate(self, region: Region, start: int, end: int, node: int) -> None:
        if node >= self._core.nodes:
            raise HmmfsError(
                errno.ENODEV,
                f"There is no dev{node - 1}: this mount has {self._core.nodes - 1} device(s), "
                "counted from dev0.",
            )

        def job(span: Span) -> Job:
            return _migration(region, span, node, JobFlag.ASKED)

        first, stop = start // PAGE_SIZE, -(-end // PAGE_SIZE)
        if first < stop:
            # Where there are too many ranges to remember, this one is forgotten.
            with contextlib.suppress(HmmfsError):
                region.advise(first, stop - first, AdviceField.PREFETCHED, 1 + node)
        with self._regions.using(region):
            places = touched_spans(region, start, end)
            await self._each(places, job, pages(touched_spans(region, start, end)))

    async def _checksum(self, region: Region, start: int, end: int) -> str:
        """In order, since each block's CRC continues the last; the next block is fetched
        meanwhile."""
        if self._stays(region):
            return f"{zlib.crc32(await self._load(region, start, end)):08x}"
        crc, at = 0, start
        failure: HmmfsError | None = None
        places = touched_spans(region, start, end)
        with self._regions.using(region):
            span = next(places, None)
            async with trio.open_nursery() as nursery:
                try:
                    while span is not None:
                        following = next(places, None)
                        if following is not None and self._in_flight > 1:
                            nursery.start_soon(self._fetch, region, following)
                        crc = crc32_zeros(crc, span.start - at)
                        job = self._job(JobKind.CRC, region, span, byte=crc)
                        crc = (await self._blocks.run(job)).crc
                        at = span.start + span.length
                        span = following
                except HmmfsError as error:
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return f"{crc32_zeros(crc, end - at):08x}"

    async def _copy(self, source: Range, target: Range) -> None:
        region, start, end = self._bounds(source)
        to, at, _ = self._bounds(replace(target, length=end - start))
        # As memmove does: from the end when a block would be overwritten before it is read.
        backward = region is to and start < at < end
        with self._regions.using(region, to):
            pieces = list(self._pieces(region, start, to, at, end - start))
            for low, high in reversed(pieces) if backward else pieces:
                data = await self._load(region, start + low, start + high)
                await self._store(to, at + low, data)

    async def _compare(self, left: Range, right: Range) -> str:
        one, start, end = self._bounds(left)
        two, at, stop = self._bounds(
            replace(right, length=left.length) if right.length is None else right
        )
        if left.length is None and right.length is not None:
            one, start, end = self._bounds(replace(left, length=right.length))
        length = min(end - start, stop - at)
        with self._regions.using(one, two):
            for low, high in self._pieces(one, start, two, at, length):
                a = np.frombuffer(await self._load(one, start + low, start + high), np.uint8)
                b = np.frombuffer(await self._load(two, at + low, at + high), np.uint8)
                if not np.array_equal(a, b):
                    return f"differ at {low + int(np.flatnonzero(a != b)[0])}"
        return "equal" if end - start == stop - at else f"differ at {length}"

    async def _launch(self, launch: Launch) -> str:
        """The pickle of what the kernel returned, in base64."""
        regions = []
        for use in launch.uses:
            if use.pid:
                regions.append(self._memory(use))
                continue
            region, _, _ = self._bounds(Range(use.region))
            regions.append(region)
        check_sizes(regions, launch)
        with self._regions.using(*regions):
            return base64.b64encode(await self.worker.launch(regions, launch)).decode()

    def _memory(self, use: Use) -> Region:
        """The own memory of a program that a launch uses."""
        length = use.end - use.address % programs.OFFSETS
        process = self._program(use.pid)
        if length < 0 or process.offset(use.address, length) + length != use.end:
            raise HmmfsError(errno.EFAULT, f"Process {use.pid} has no memory up to {use.end:#x}.")
        if not process.migrates:
            raise HmmfsError(
                errno.EOPNOTSUPP,
                f"The memory of process {use.pid} does not move, so no kernel can use it. Run the "
                "program as root or with CAP_SYS_PTRACE, or use operations such as read and fill.",
            )
        return process.region

    def _program(self, pid: int) -> Process:
        process = self._processes.named(pid)
        process.check_attached(self._node)
        return process

    # ---- also for a dmirror, whose turn it need not be

    async def load(self, region: Region, start: int, end: int) -> bytearray:
        """Bytes as the device sees them."""
        with self._regions.using(region):
            return await self._load(region, start, end)

    async def store(self, region: Region, start: int, data: bytes) -> None:
        with self._regions.using(region):
            await self._store(region, start, data)

    async def move(self, region: Region, start: int, end: int, node: int) -> None:
        """Pages that have bytes, to any node."""
        with self._regions.using(region):
            for span in touched_spans(region, start, end):
                await self._blocks.run(_migration(region, span, node, JobFlag.ASKED))

    # ---- pieces of two regions

    @staticmethod
    def _pieces(
        one: Region, start: int, two: Region, at: int, length: int
    ) -> Iterator[tuple[int, int]]:
        """Relative ranges (low, high) in order, each at most a block: what is touched in either
        region. All else is zeros on both sides."""
        touched = merged(
            [
                (span.start - base, span.start - base + span.length)
                for region, base in ((one, start), (two, at))
                for span in touched_spans(region, base, base + length)
            ]
        )
        for low, high in touched:
            for piece in range(low, high, BLOCK_BYTES):
                yield piece, min(piece + BLOCK_BYTES, high)

    async def _load(self, region: Region, start: int, end: int) -> bytearray:
        data = bytearray(end - start)
        for span in touched_spans(region, start, end):
            low = span.start - start
            view = memoryview(data)[low : low + span.length]
            await self._blocks.run(self._job(JobKind.READ, region, span, buffer=view))
        return data

    async def _store(self, region: Region, start: int, data: bytes | bytearray) -> None:
        for span in spans(start, start + len(data)):
            low = span.start - start
            view = memoryview(data)[low : low + span.length]
            await self._blocks.run(self._job(JobKind.WRITE, region, span, buffer=view))

    # ---- blocks

    def _job(
        self,
        kind: JobKind,
        region: Region,
        span: Span,
        *,
        byte: int = 0,
        buffer: memoryview | None = None,
    ) -> Job:
        reads_or_writes = kind in (JobKind.READ, JobKind.WRITE)
        return Job(
            kind,
            region.ino,
            span.block,
            node=self._node,
            flags=JobFlag.REMOTE if reads_or_writes and self._stays(region) else JobFlag.NONE,
            offset=span.offset,
            length=span.length,
            byte=byte,
            buffer=buffer,
        )

    async def _each(self, places: Iterator[Span], job: Callable[[Span], Job], total: int) -> None:
        """Run a job on each span, several at a time. The first failure ends the others."""
        entry, slots = self._entry, trio.Semaphore(self._in_flight)
        entry.total = total
        failures: list[HmmfsError] = []

        async def one(span: Span) -> None:
            try:
                await self._blocks.run(job(span))
                entry.done += pages(iter((span,)))
            except HmmfsError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()
            finally:
                slots.release()

        async with trio.open_nursery() as nursery:
            for span in places:
                await slots.acquire()
                nursery.start_soon(one, span)
        if failures:
            raise failures[0]

    async def _fetch(self, region: Region, span: Span) -> None:
        """Bring what a later job will need. It may fail: then that job brings it itself."""
        with contextlib.suppress(HmmfsError):
            await self._blocks.run(_migration(region, span, self._node, JobFlag.PLACED))


def parse_all(text: str) -> list[Operation]:
    """Each line of a submission that is not blank, parsed before the first of them runs."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise UsageError("There is no operation in that. Write one a line.")
    return [commands.parse(line) for line in lines]
