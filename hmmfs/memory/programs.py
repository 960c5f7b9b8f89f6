"""Programs whose own memory devices work on, as the native core knows them: each is a region of no
file, whose offsets are addresses modulo the size that a region can have."""

from __future__ import annotations

import enum
import errno
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmmfs._native import ffi, lib
from hmmfs.common.units import LARGEST
from hmmfs.errors import HmmfsError, UsageError, check
from hmmfs.memory.core import Core
from hmmfs.memory.region import Region
from hmmfs.memory.types import page_set, page_words

OFFSETS = LARGEST  # addresses that are so far apart are one offset; see hm_process_offset
OWNER = int(lib.HM_LOOK_OWNER)


class State(enum.IntFlag):
    """What is at a page of a program: enum hm_look."""

    VMA = lib.HM_LOOK_VMA
    READ = lib.HM_LOOK_READ
    WRITE = lib.HM_LOOK_WRITE
    ANON = lib.HM_LOOK_ANON
    SHARED = lib.HM_LOOK_SHARED
    SPECIAL = lib.HM_LOOK_SPECIAL
    PRESENT = lib.HM_LOOK_PRESENT
    SWAPPED = lib.HM_LOOK_SWAPPED
    ZERO = lib.HM_LOOK_ZERO
    HUGE = lib.HM_LOOK_HUGE
    EXCLUSIVE = lib.HM_LOOK_EXCLUSIVE
    HUGETLB = lib.HM_LOOK_HUGETLB


class Look(NamedTuple):
    """Pages side by side: bits of `State`, and from bit OWNER on the node that has the page, 0 for
    the program itself; page frames, 0 where there is none or it may not be known."""

    state: NDArray[np.uint16]
    pfn: NDArray[np.uint64]

    def all(self, bits: State) -> NDArray[np.bool_]:
        """The pages that have all of these."""
        found: NDArray[np.bool_] = (self.state & np.uint16(bits)) == np.uint16(bits)
        return found

    @property
    def owner(self) -> NDArray[np.uint16]:
        """Nodes; the host's pages are the program's own memory."""
        return self.state >> np.uint16(OWNER)

    def part(self, first: int, end: int) -> Look:
        return Look(self.state[first:end], self.pfn[first:end])


class Attachment(NamedTuple):
    """What a program's library sent: descriptors, -1 for none, and its own memory."""

    uffd: int = -1
    socket: int = -1
    control: int = -1
    least: int = 0  # bytes of the smallest mapping that may move
    own: int = 0
    own_bytes: int = 0
    scratch: int = 0


def attach(
    core: Core, region: Region, pid: int, pidfd: int, sent: Attachment, *, foreign: bool
) -> None:
    """The core takes all descriptors over if this succeeds. foreign: it is of another user."""
    config = ffi.new(
        "struct hm_process_config *",
        {"pid": pid, "pidfd": pidfd, "foreign": foreign, **sent._asdict()},
    )
    ret = lib.hm_process_attach(core.handle, region.ino, config)
    if ret == -errno.ESRCH:
        raise HmmfsError(errno.ESRCH, f"There is no process {pid}, or it has just ended.")
    if ret == -errno.EACCES:
        raise HmmfsError(errno.EPERM, f"The memory of process {pid} is somebody else's.")
    check(ret, f"Attaching process {pid}")


def detach(core: Core, region: Region, *, home: bool) -> None:
    """With home, all its pages are given back first. Waits: call it from a thread."""
    ret = lib.hm_process_detach(core.handle, region.ino, home)
    if ret != -errno.ENOENT:
        check(ret, "Detaching a process")


def offset(core: Core, region: Region, address: int, length: int) -> int:
    """Where an address is in the program's region."""
    ret = -errno.EFAULT
    if address >> 64 == 0 and length >> 64 == 0:
        ret = int(lib.hm_process_offset(core.handle, region.ino, address, length))
    if ret == -errno.EFAULT:
        raise HmmfsError(
            errno.EFAULT, f"No program has {length} bytes at address {address:#x}. See its maps."
        )
    if ret == -errno.EADDRINUSE:
        raise HmmfsError(
            errno.EADDRINUSE,
            f"Address {address:#x} can't be told from another that is in use, {OFFSETS >> 40} TiB "
            "or a multiple of that away.",
        )
    return check(ret, "Finding an address")


def forget(core: Core, region: Region, address: int, length: int) -> bool:
    """Drop what devices have of whole pages, where the program finds zeros then. False: some of it
    is moving at the moment."""
    ret = lib.hm_process_forget(core.handle, region.ino, address, length)
    if ret == -errno.EINVAL:
        raise UsageError(f"{address:#x}+{length} is not in whole pages of 4096 bytes.")
    if ret == -errno.EBUSY:
        return False
    check(ret, "Forgetting pages")
    return True


def close(core: Core, region: Region, node: int, *, closed: bool) -> None:
    """Whether the node gets none of its pages from now on. What it has stays there."""
    ret = lib.hm_process_close(core.handle, region.ino, node, closed)
    if ret != -errno.ESRCH:
        check(ret, "Closing a program to a device")


def look(core: Core, region: Region, address: int, pages: int) -> Look:
    """Without touching any of them. Waits for the program's own changes of its mappings."""
    found = Look(np.zeros(pages, dtype=np.uint16), np.zeros(pages, dtype=np.uint64))
    ret = lib.hm_process_look(
        core.handle,
        region.ino,
        address,
        pages,
        ffi.cast("uint16_t *", ffi.from_buffer(found.state)),
        ffi.cast("uint64_t *", ffi.from_buffer(found.pfn)),
    )
    if ret == -errno.ESRCH:
        raise HmmfsError(errno.ESRCH, "The program has ended.")
    check(ret, "Looking at a program")
    return found


def set_exclusive(
    core: Core, region: Region, node: int, block: int, pages: NDArray[np.bool_]
) -> None:
    """Of pages of a block that the device has: they are its alone, until they leave it."""
    words = np.frombuffer(page_words(pages), dtype=np.uint64)
    ret = lib.hm_process_exclusive(
        core.handle,
        region.ino,
        node,
        block,
        ffi.cast("uint64_t *", ffi.from_buffer(words)),
        ffi.NULL,
    )
    check(ret, "Holding pages")


def set_huge(core: Core, region: Region, node: int, block: int) -> None:
    """Of a block that the device has all of: it is one huge page, until some of it leaves."""
    check(lib.hm_process_set_huge(core.handle, region.ino, node, block), "Joining pages")


def exclusive(core: Core, region: Region, node: int, block: int) -> NDArray[np.bool_]:
    """The pages of a block that the device has for itself."""
    words = np.zeros(8, dtype=np.uint64)
    ret = lib.hm_process_exclusive(
        core.handle,
        region.ino,
        node,
        block,
        ffi.NULL,
        ffi.cast("uint64_t *", ffi.from_buffer(words)),
    )
    check(ret, "Listing held pages")
    return page_set(words)
