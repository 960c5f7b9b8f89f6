"""What a device sees of a program's memory: the interface that dmirror.py is written against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hmmfs.memory.programs import Look


class Process(Protocol):
    """One program's address space. Addresses and lengths are whole pages, but for copy_*. Every
    method raises HmmfsError, and ESRCH once the address space is gone. Each can be cancelled, for
    it may wait for the program, which may be about to end."""

    @property
    def pid(self) -> int: ...

    @property
    def migrates(self) -> bool:
        """Whether pages can move to devices at all; if not, devices reach them remotely only."""
        ...

    async def look(self, address: int, pages: int) -> Look:
        """Faults nothing in, and changes nothing."""
        ...

    async def read(self, node: int, address: int, length: int) -> bytearray:
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

    async def set_huge(self, node: int, address: int) -> None:
        """The 2 MiB from the address on, which the device has, are one huge page, until some of it
        leaves. In pieces of several mappings they are not."""
        ...

    async def exclusive(self, node: int, address: int, pages: int) -> NDArray[np.bool_]: ...

    async def copy_to_user(self, pid: int, address: int, data: bytes | bytearray) -> None:
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
        """To be given to `close`. ESRCH, EPERM: there is no such program, or it is somebody
        else's."""
        ...

    async def close(self, process: Process) -> None: ...

    def all(self) -> Sequence[Process]: ...
