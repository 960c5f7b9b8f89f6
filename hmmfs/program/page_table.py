"""The page table of one open file: what its device has mapped of a program's memory.

The kernel tells a driver when a mapping changes (mmu notifiers). Nobody tells a daemon, so an entry
remembers where its page was, and holds as long as the page is there and the mapping has its rights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmmfs.memory import BLOCK_PAGES
from hmmfs.memory.programs import Look, State

VALID, WRITE, ATOMIC = 1, 2, 4  # of an entry
ON_DEVICE = np.uint64(1 << 63)  # of a place: the node; without it the page frame

Mask = NDArray[np.bool_]

READABLE = State.VMA | State.READ


class Entries(NamedTuple):
    flags: NDArray[np.uint8]
    place: NDArray[np.uint64]  # 0: not known, so that the entry does not hold


def entries(count: int) -> Entries:
    return Entries(np.zeros(count, np.uint8), np.zeros(count, np.uint64))


def readable(look: Look) -> Mask:
    """What a device may fault on for reading."""
    found: Mask = look.all(READABLE) & ~look.all(State.SPECIAL)
    return found


def migratable(look: Look) -> Mask:
    """What may be asked to migrate, whether it can or not."""
    found: Mask = readable(look) & ~look.all(State.HUGETLB)
    return found


def storable(look: Look) -> Mask:
    """What can be stored to as it is: the page is a device's, or it is not shared for copy-on-write
    and has memory of its own."""
    own = look.all(State.PRESENT | State.EXCLUSIVE) & ~look.all(State.ZERO)
    found: Mask = readable(look) & look.all(State.WRITE) & ((look.owner != 0) | own)
    return found


class View:
    """One device's view of pages; `coherent`: the nodes whose memory is in reach of all."""

    def __init__(self, node: int, coherent: frozenset[int]) -> None:
        self.node = node
        self._coherent = np.array([number in coherent for number in range(16)])

    def mine(self, look: Look) -> Mask:
        found: Mask = look.owner == self.node
        return found

    def reached(self, look: Look) -> Mask:
        """What the device can use where it is, without a fault."""
        owner = look.owner
        host = (owner == 0) & look.all(State.PRESENT)
        found: Mask = readable(look) & (host | (owner == self.node) | self._coherent[owner])
        return found

    def entries(self, look: Look) -> Entries:
        """What a fault on all of these leaves in the table."""
        reached = self.reached(look)
        flags = np.where(reached, VALID, 0) | np.where(reached & storable(look), WRITE, 0)
        return Entries(flags.astype(np.uint8), np.where(reached, self._places(look), 0))

    def holds(self, entries: Entries, look: Look) -> Mask:
        """Which entries are of what is there now."""
        there = (entries.place != 0) & (entries.place == self._places(look))
        found: Mask = (entries.flags & VALID != 0) & there & self.reached(look)
        return found

    def snapshot(self, look: Look, exclusive: Mask) -> NDArray[np.uint8]:
        """A byte a page, of HMM_DMIRROR_PROT_*. What a device has alone counts as not mapped."""
        owner, reached = look.owner, self.reached(look) & ~exclusive
        place = np.where(look.all(State.ZERO), 0x10, 0)
        place = np.where(self._coherent[owner], 0x50, place)
        local = 0x40 if self._coherent[self.node] else 0x20
        place = np.where(owner == self.node, local, place)
        rights = np.where(storable(look), 0x02, 0x01)
        size = np.where(look.all(State.HUGE), 0x04, 0)
        seen = np.where(reached, place | rights | size, 0)
        return np.where(readable(look), seen, 0xFF).astype(np.uint8)

    def _places(self, look: Look) -> NDArray[np.uint64]:
        owner = look.owner.astype(np.uint64)
        return np.where(owner != 0, owner | ON_DEVICE, look.pfn)


class Table:
    """By page number; blocks of entries, made when something in them is first mapped."""

    def __init__(self) -> None:
        self._blocks: dict[int, Entries] = {}

    def get(self, first: int, count: int) -> Entries:
        """A copy of the entries."""
        out = entries(count)
        for block, inside, at in self._pieces(first, count):
            if block in self._blocks:
                out.flags[at] = self._blocks[block].flags[inside]
                out.place[at] = self._blocks[block].place[inside]
        return out

    def put(self, first: int, new: Entries) -> None:
        for block, inside, at in self._pieces(first, len(new.flags)):
            if block not in self._blocks:
                if not new.flags[at].any():
                    continue
                self._blocks[block] = entries(BLOCK_PAGES)
            there = self._blocks[block]
            there.flags[inside], there.place[inside] = new.flags[at], new.place[at]
            if not there.flags.any():
                del self._blocks[block]

    def drop(self, first: int, gone: Mask) -> None:
        """Forget entries that were found not to hold."""
        if gone.any():
            kept = self.get(first, len(gone))
            kept.flags[gone] = 0
            self.put(first, kept)

    def atomic(self, first: int, count: int) -> list[int]:
        """The pages in a range, however long it is, that were made the device's alone."""
        found: list[int] = []
        for block in sorted(self._blocks):
            pages = block * BLOCK_PAGES + np.flatnonzero(self._blocks[block].flags & ATOMIC)
            found += pages[(pages >= first) & (pages < first + count)].tolist()
        return found

    @staticmethod
    def _pieces(first: int, count: int) -> Iterator[tuple[int, slice, slice]]:
        """(block, slice of the block, slice of the range)."""
        at = 0
        while at < count:
            block, start = divmod(first + at, BLOCK_PAGES)
            length = min(BLOCK_PAGES - start, count - at)
            yield block, slice(start, start + length), slice(at, at + length)
            at += length
