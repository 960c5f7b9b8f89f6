"""What a device sees of a program's memory: the interface that dmirror.py is written against."""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

OWNER_SHIFT = 12  # the bits of a page's state from here on are the node that owns it


class State(enum.IntFlag):
    """Of one page; its owner's number is in the bits above."""

    VMA = 1  # something is mapped there
    READ = 2  # the rights of the mapping
    WRITE = 4
    ANON = 8  # private anonymous memory
    SHARED = 16  # shared memory, or a file's
    SPECIAL = 32  # a driver's: no memory that could be had
    PRESENT = 64
    SWAPPED = 128
    ZERO = 256  # the page of zeros that is everybody's
    HUGE = 512  # mapped by one entry with all of its 2 MiB
    EXCLUSIVE = 1024  # nobody shares it by copy-on-write


class Look(NamedTuple):
    """A moment of some pages, an entry each."""

    state: NDArray[np.uint16]
    pfn: NDArray[np.uint64]  # the page frame; 0: unknown, or none

    def all(self, bits: State) -> NDArray[np.bool_]:
        """The pages of which all of that is true."""
        found: NDArray[np.bool_] = (self.state & np.uint16(bits)) == np.uint16(bits)
        return found

    @property
    def owner(self) -> NDArray[np.uint16]:
        """Nodes; the host's pages are the program's own memory."""
        return self.state >> np.uint16(OWNER_SHIFT)

    def part(self, first: int, end: int) -> Look:
        return Look(self.state[first:end], self.pfn[first:end])


class Process(Protocol):
    """One program's address space. Addresses and lengths are whole pages, but for copy_*. Every
    method raises HmmfsError, and ESRCH once the address space is gone. Each can be cancelled, for
    it may wait for the program, which may be about to end."""

    @property
    def pid(self) -> int: ...

    @property
    def migrates(self) -> bool:
        """Whether pages can move to devices at all; if not, devices reach them from afar only."""
        ...

    async def look(self, address: int, pages: int) -> Look:
        """Faults nothing in, and changes nothing."""
        ...

    async def read(self, node: int, address: int, length: int) -> bytes:
        """As the device sees it. EFAULT: something there can't be read."""
        ...

    async def write(self, node: int, address: int, data: bytes) -> None:
        """EPERM: a mapping may not be stored to. EFAULT: nothing is mapped."""
        ...

    async def migrate(self, node: int, address: int, pages: int) -> None:
        """To a device, where holes become zeros, or to the host. Pages that can't move stay."""
        ...

    async def set_exclusive(self, node: int, address: int, pages: int) -> None:
        """Mark pages of the device as its alone; the mark goes when the page goes."""
        ...

    async def exclusive(self, node: int, address: int, pages: int) -> NDArray[np.bool_]: ...

    async def copy_to_user(self, pid: int, address: int, data: bytes) -> None:
        """Into the memory of a program, which need not be this one. EFAULT."""
        ...

    async def copy_from_user(self, pid: int, address: int, length: int) -> bytes: ...

    async def evict_all(self, node: int) -> None:
        """Bring every page home that the device has of this program."""
        ...


class Processes(Protocol):
    """The programs whose memory devices use."""

    def get(self, pid: int) -> Process | None: ...

    async def open(self, pid: int) -> Process:
        """ESRCH, EPERM: there is no such program, or it is somebody else's."""
        ...

    def all(self) -> list[Process]: ...
