"""A program's memory where parts are regions of the mount: these a device uses by file and
offset, wherever they are mapped, and all else as the program has it.

Only the device's own pages are read and written on it. Those elsewhere are reached as the program
would reach them, through its mapping, so that a page of another device comes home.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import trio
from numpy.typing import NDArray

from hmmfs.device.executor import Executor
from hmmfs.device.maps import Mapping, Maps
from hmmfs.errors import HmmfsError
from hmmfs.memory import (
    BLOCK_PAGES,
    FIRST_REGION_INO,
    HOST,
    PAGE_SIZE,
    Region,
    RegionTable,
    page_set,
)
from hmmfs.memory.programs import OWNER, Look, State
from hmmfs.program.protocol import Process

# In place of a page frame: bits above those of any, the region, the page.
FRAME, REGION_SHIFT = 1 << 62, 32
THREADS = 8  # that may wait for the program, whose faults may wait for the mount


class Segment(NamedTuple):
    """Pages from `first` on of a range, which are the region's from byte `offset` on."""

    first: int
    pages: int
    region: Region | None  # None: other memory
    offset: int = 0


@contextlib.contextmanager
def _past_the_end() -> Iterator[None]:
    """What was cut off meanwhile is not memory any more."""
    try:
        yield
    except HmmfsError as error:
        if error.errno in (errno.ERANGE, errno.ENOENT):
            raise HmmfsError(errno.EFAULT, error.sentence) from error
        raise


def owners(region: Region, first: int, count: int) -> tuple[NDArray[np.bool_], NDArray[np.uint16]]:
    """Which pages of a region have bytes, and the node of each of them."""
    present, owner = np.zeros(count, np.bool_), np.zeros(count, np.uint16)
    for block in region.touched(first // BLOCK_PAGES, -(-(first + count) // BLOCK_PAGES)):
        record = region.blocks(block, 1)[0]
        low, high = max(first, block * BLOCK_PAGES), min(first + count, (block + 1) * BLOCK_PAGES)
        here = slice(low - first, high - first)
        there = slice(low - block * BLOCK_PAGES, high - block * BLOCK_PAGES)
        present[here] = page_set(record["present"].copy())[there]
        owner[here] = np.where(present[here], record["owner"][there], HOST)
    return present, owner


class MappedRegions:
    """Implements Process for the device of an executor."""

    def __init__(
        self, process: Process, regions: RegionTable, executor: Executor, device: str
    ) -> None:
        """`device`: the mount's number, as in /proc/PID/maps."""
        self._process = process
        self._regions = regions
        self._executor = executor
        self._device = device
        self._maps = Maps(process.pid)
        self._threads = trio.CapacityLimiter(THREADS)
        self.pid = process.pid

    @property
    def migrates(self) -> bool:
        return self._process.migrates

    async def _mappings(self, address: int, end: int) -> list[Mapping]:
        """Of files of this mount."""
        maps = await trio.to_thread.run_sync(
            self._maps.read, address, end, abandon_on_cancel=True, limiter=self._threads
        )
        return [one for one in maps if one.device == self._device]

    async def _segments(self, address: int, pages: int) -> list[Segment]:
        """The whole range, in order."""
        end = address + pages * PAGE_SIZE
        return self._parts(await self._mappings(address, end), address, end)

    def _parts(self, maps: list[Mapping], address: int, end: int) -> list[Segment]:
        at = address
        found: list[Segment] = []
        for one in maps:
            low, high = max(address, one.start), min(end, one.end)
            region = None if one.private else self._regions.by_ino(one.ino)
            if low < high and region is not None and one.ino >= FIRST_REGION_INO:
                found += self._other(address, at, low)
                offset = one.offset + low - one.start
                first, count = (low - address) // PAGE_SIZE, (high - low) // PAGE_SIZE
                found.append(Segment(first, count, region, offset))
                at = high
        return [*found, *self._other(address, at, end)]

    @staticmethod
    def _other(address: int, low: int, high: int) -> Iterator[Segment]:
        if low < high:
            yield Segment((low - address) // PAGE_SIZE, (high - low) // PAGE_SIZE, None)

    async def _pieces(self, node: int, address: int, pages: int) -> list[Segment]:
        """The same; of the regions only what is on the node."""
        found: list[Segment] = []
        for part in await self._segments(address, pages):
            if part.region is None:
                found.append(part)
                continue
            _, owner = owners(part.region, part.offset // PAGE_SIZE, part.pages)
            edges = np.flatnonzero(np.diff(owner == node)) + 1
            for low, high in zip([0, *edges], [*edges, part.pages], strict=True):
                region = part.region if owner[low] == node else None
                offset = part.offset + int(low) * PAGE_SIZE
                found.append(Segment(part.first + int(low), int(high - low), region, offset))
        return found

    async def look(self, address: int, pages: int) -> Look:
        look = await self._process.look(address, pages)
        state, frames = look.state.copy(), look.pfn.copy()
        end = address + pages * PAGE_SIZE
        maps = await self._mappings(address, end)
        for one in maps:
            if one.private and one.ino < FIRST_REGION_INO:  # a dmirror has pages of its own
                low, high = max(address, one.start) - address, min(end, one.end) - address
                state[low // PAGE_SIZE : high // PAGE_SIZE] |= np.uint16(State.PRESENT)
        for part in self._parts(maps, address, end):
            if part.region is None:
                continue
            here = slice(part.first, part.first + part.pages)
            first = part.offset // PAGE_SIZE
            present, owner = owners(part.region, first, part.pages)
            rights = state[here] & np.uint16(State.VMA | State.READ | State.WRITE)
            has = np.where(present, np.uint16(State.PRESENT | State.EXCLUSIVE), np.uint16(0))
            state[here] = rights | np.uint16(State.SHARED) | has | owner << np.uint16(OWNER)
            frame = FRAME | (part.region.ino - FIRST_REGION_INO) << REGION_SHIFT | first
            numbers = np.arange(frame, frame + part.pages, dtype=np.uint64)
            frames[here] = np.where(present, numbers, np.uint64(0))
        return Look(state, frames)

    async def read(self, node: int, address: int, length: int) -> bytearray:
        parts = await self._pieces(node, address, length // PAGE_SIZE)
        if len(parts) == 1 and parts[0].region is None:
            return await self._process.read(node, address, length)
        out = bytearray(length)
        for part in parts:
            at, size = part.first * PAGE_SIZE, part.pages * PAGE_SIZE
            if part.region is None:
                out[at : at + size] = await self._process.read(node, address + at, size)
            else:
                end = min(part.offset + size, part.region.size)
                with _past_the_end():
                    data = await self._executor.load(part.region, part.offset, end)
                out[at : at + len(data)] = data
        return out

    async def write(self, node: int, address: int, data: bytes) -> None:
        for part in await self._pieces(node, address, len(data) // PAGE_SIZE):
            at, size = part.first * PAGE_SIZE, part.pages * PAGE_SIZE
            if part.region is None:
                await self._process.write(node, address + at, data[at : at + size])
            else:
                size = min(size, part.region.size - part.offset)
                with _past_the_end():
                    await self._executor.store(part.region, part.offset, data[at : at + size])

    async def migrate(self, node: int, address: int, pages: int) -> None:
        for part in await self._segments(address, pages):
            if part.region is None:
                await self._process.migrate(node, address + part.first * PAGE_SIZE, part.pages)
            else:
                await self._move(part.region, part.offset, part.pages * PAGE_SIZE, node)

    async def _move(self, region: Region, offset: int, length: int, node: int) -> None:
        end = min(offset + length, -(-region.size // PAGE_SIZE) * PAGE_SIZE)
        if end <= offset:
            return
        try:
            if node != HOST:
                await trio.to_thread.run_sync(region.allocate, offset, end - offset)
            await self._executor.move(region, offset, end, node)
        except HmmfsError as error:
            # Pinned pages, and DAX memory: what does not move is left where it is.
            if error.errno not in (errno.EBUSY, errno.EOPNOTSUPP):
                raise

    async def set_exclusive(self, node: int, address: int, pages: int) -> None:
        """Only private anonymous memory can be a device's alone, and that is not a region."""
        await self._process.set_exclusive(node, address, pages)

    async def set_huge(self, node: int, address: int) -> None:
        """Of regions nobody says how large their pages are."""
        await self._process.set_huge(node, address)

    async def exclusive(self, node: int, address: int, pages: int) -> NDArray[np.bool_]:
        return await self._process.exclusive(node, address, pages)

    async def copy_to_user(self, pid: int, address: int, data: bytes | bytearray) -> None:
        await self._process.copy_to_user(pid, address, data)

    async def copy_from_user(self, pid: int, address: int, length: int) -> bytes:
        return await self._process.copy_from_user(pid, address, length)

    async def evict_all(self, node: int) -> None:
        """Regions stay: they are not a program's."""
        await self._process.evict_all(node)
