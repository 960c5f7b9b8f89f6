"""devices/devN/dmirror: the ioctls of Linux's test_hmm (lib/test_hmm.c) on a device of ours.

An open file mirrors the memory of the program that opened it, wherever the file goes afterwards:
a forked child that has it still sees its parent's. What an ioctl does, in which steps and with
which errors, follows the kernel's driver; where that is known to be wrong (it may report pages as
migrated that were not, and crashes on its own after an invalidation), this does what it means to.
"""

from __future__ import annotations

import enum
import errno
import logging
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import trio

from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import HOST, PAGE_SIZE
from hmmfs.memory.programs import Look, State
from hmmfs.program.page_table import (
    ATOMIC,
    VALID,
    WRITE,
    Entries,
    Mask,
    Table,
    View,
    migratable,
    readable,
)
from hmmfs.program.protocol import Process, Processes

log = logging.getLogger(__name__)

LAYOUT = struct.Struct("<5Q")  # struct hmm_dmirror_cmd
MAGIC = ord("H")
IOWR = 3 << 30 | LAYOUT.size << 16 | MAGIC << 8  # _IOWR('H', 0, struct hmm_dmirror_cmd)
END = 1 << 64  # addresses wrap there
WINDOW = 512  # pages that migrate at a time: an error leaves those before it where they came to be
PIECE = 1 << 12  # pages of a longer copy that are in the daemon at a time: 16 MiB
FAIL_ALLOC = 1
BUSY_S = (0.002, 0.01, 0.05)  # before pages that stayed are tried again

T = TypeVar("T")


class Number(enum.IntEnum):
    READ = 0
    WRITE = 1
    MIGRATE_TO_DEV = 2
    MIGRATE_TO_SYS = 3
    SNAPSHOT = 4
    EXCLUSIVE = 5
    CHECK_EXCLUSIVE = 6
    RELEASE = 7
    FLAGS = 8
    READ_UNLOCKED = 9


@dataclass(frozen=True, slots=True)
class Command:
    """struct hmm_dmirror_cmd: what is asked for, and in cpages and faults what became of it."""

    address: int
    pointer: int  # of the caller's buffer
    npages: int
    cpages: int = 0
    faults: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Command:
        command = cls(*LAYOUT.unpack(data)[:3])
        if command.address % PAGE_SIZE:
            raise UsageError(
                f"Address {command.address:#x} is inside a page. Give the start of one."
            )
        if not command.pages or command.address + command.pages * PAGE_SIZE >= END:
            raise UsageError(
                f"{command.npages} pages from {command.address:#x} on are none, or wrap. Ask for "
                "at least one, below the end of memory."
            )
        return command

    @property
    def pages(self) -> int:
        """As the driver has it, in whose bytes the highest bits are lost."""
        return self.npages * PAGE_SIZE % END // PAGE_SIZE

    def packed(self) -> bytes:
        return LAYOUT.pack(self.address, self.pointer, self.npages, self.cpages, self.faults)


def windows(address: int, pages: int, size: int = WINDOW) -> Iterator[tuple[int, int]]:
    """(address, pages) of each, which has `size` pages but for the last."""
    for first in range(0, pages, size):
        yield address + first * PAGE_SIZE, min(size, pages - first)


def leading(good: Mask) -> int:
    """How many there are before the first that is not."""
    return len(good) if good.all() else int(np.argmin(good))


def runs(pages: Mask) -> Iterator[tuple[int, int]]:
    """(first, count) of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], pages.astype(np.int8), [0]))))
    for first, end in edges.reshape(-1, 2).tolist():
        yield first, end - first


def _is_window(address: int, look: Look) -> bool:
    """Whether these are the pages that a huge one would be."""
    return len(look.state) == WINDOW and not address // PAGE_SIZE % WINDOW


def _can_be_huge(address: int, look: Look) -> bool:
    """Whether a device gets it as one huge page: because it is one, or there is nothing yet."""
    if not _is_window(address, look) or (look.owner != HOST).any():
        return False
    some = look.state & np.uint16(State.PRESENT | State.SWAPPED) != 0
    return bool(look.all(State.HUGE).all() or not some.any())


def _unmapped(address: int, number: int = errno.EFAULT) -> HmmfsError:
    return HmmfsError(
        number, f"The program has nothing mapped at {address:#x} that a device could read."
    )


class Device:
    """One device as test_hmm has it: all open files of one dmirror."""

    def __init__(
        self,
        processes: Processes,
        node: int,
        coherent: frozenset[int],
        regions: Callable[[Process], Process] = lambda process: process,
    ) -> None:
        """`regions` knows the parts of a program's memory that are regions of the mount."""
        self._processes = processes
        self._regions = regions
        self.view = View(node, coherent)

    async def open(self, pid: int) -> OpenFile:
        """Opens the memory of a program, for a file that it opens."""
        program = await self._processes.open(pid)
        try:
            return OpenFile(self, self._regions(program), program)
        except BaseException:
            await self._processes.close(program)
            raise

    async def close(self, file: OpenFile) -> None:
        """The file is closed, and with it all that the device has goes home."""
        await self.evict()
        await self._processes.close(file.program)

    async def evict(self) -> None:
        """Every page of the device goes home, no matter who brought it: at the end of any of its
        files, and when the device's memory is released."""
        for process in self._processes.all():
            try:
                await process.evict_all(self.view.node)
            except HmmfsError as error:
                if error.errno != errno.ESRCH:  # the end of a program takes its pages along
                    log.warning("Pages of process %d: %s", process.pid, error.sentence)


class OpenFile:
    """One open file. Ioctls on it may run at the same time, since a fault in the program's memory
    may wait for another of its threads; only what lies between two awaits is atomic."""

    def __init__(self, device: Device, process: Process, program: Process) -> None:
        """`process` is `program` with what the mount knows of its files."""
        self.program = program
        self._device = device
        self._view = device.view
        self._node = device.view.node
        self._process = process
        self._table = Table()
        self._flags = 0

    @property
    def pid(self) -> int:
        """Whose memory it is."""
        return self._process.pid

    async def ioctl(self, command: int, data: bytes, caller: int) -> bytes:
        """What the caller's struct becomes. With an error it stays as it is."""
        if command >> 8 & 0xFF != MAGIC:
            raise HmmfsError(errno.ENOTTY, f"Ioctl {command:#x} is none of a dmirror's.")
        if command - IOWR not in set(Number) or len(data) != LAYOUT.size:
            raise UsageError(
                f"Ioctl {command:#x} is none of a dmirror's: there are _IOWR('H', 0 to 9) with "
                f"{LAYOUT.size} bytes."
            )
        number = Number(command - IOWR)
        try:
            done = await self._run(number, Command.parse(data), caller)
        except HmmfsError as error:
            if error.errno != errno.ESRCH:
                raise
            copies = number in (Number.READ, Number.WRITE, Number.READ_UNLOCKED)
            raise HmmfsError(
                errno.EFAULT if copies else errno.EINVAL,
                f"The memory of process {self.pid} is gone, which this file mirrors. "
                "Open the device again.",
            ) from error
        return done.packed()

    async def _run(self, number: Number, command: Command, caller: int) -> Command:
        match number:
            case Number.READ | Number.READ_UNLOCKED:
                return await self._read(command, caller)
            case Number.WRITE:
                return await self._write(command, caller)
            case Number.MIGRATE_TO_DEV:
                return await self._to_device(command, caller)
            case Number.MIGRATE_TO_SYS:
                return await self._to_system(command)
            case Number.SNAPSHOT:
                return await self._snapshot(command, caller)
            case Number.EXCLUSIVE:
                return await self._exclusive(command, caller)
            case Number.CHECK_EXCLUSIVE:
                await self._check_exclusive(command)
            case Number.RELEASE:
                await self._device.evict()
            case Number.FLAGS:
                self._flags = command.npages  # sic
        return command

    # ---- loads and stores of the device

    async def _read(self, command: Command, caller: int) -> Command:
        faults = 0
        if command.pages > PIECE:  # or the error would come when some was copied
            await self._check(command.address, command.pages)
        for address, pages in windows(command.address, command.pages, PIECE):
            known = leading(await self._held(address, pages))
            data = await self._load(address, known)
            if known < pages:
                more = await self._read_rest(address + known * PAGE_SIZE, pages - known)
                data = data + more if known else more
                faults = 1
            await self._to_user(command, caller, address, data)
        return replace(command, cpages=command.pages, faults=faults)

    async def _read_rest(self, address: int, pages: int) -> bytearray:
        return await self._fault(address, pages, lambda: self._load(address, pages))

    async def _write(self, command: Command, caller: int) -> Command:
        """Not atomic: what the device has mapped for writing is stored to before a fault on the
        rest may fail."""
        faults, end = 0, command.address + command.pages * PAGE_SIZE
        for address, pages in windows(command.address, command.pages, PIECE):
            if command.pages > PIECE:  # all of the buffer can be read, or nothing is stored
                await self._from_user(command, caller, address, pages)
        for address, pages in windows(command.address, command.pages, PIECE):
            data = await self._from_user(command, caller, address, pages)
            known = leading(await self._held(address, pages, WRITE))
            if known:
                await self._process.write(self._node, address, data[: known * PAGE_SIZE])
            if known < pages:
                rest = address + known * PAGE_SIZE
                if not faults:  # where it begins, a fault is on all that is left
                    await self._check(rest, (end - rest) // PAGE_SIZE, State.WRITE)
                await self._write_rest(rest, pages - known, data[known * PAGE_SIZE :])
                faults = 1
        return replace(command, cpages=command.pages, faults=faults)

    async def _write_rest(self, address: int, pages: int, data: bytes) -> None:
        store = self._process.write
        await self._fault(address, pages, lambda: store(self._node, address, data), State.WRITE)

    async def _from_user(self, command: Command, caller: int, address: int, pages: int) -> bytes:
        """What the caller has for these pages of the command's."""
        at = command.pointer + address - command.address
        return await self._process.copy_from_user(caller, at, pages * PAGE_SIZE)

    async def _to_user(
        self, command: Command, caller: int, address: int, data: bytes | bytearray
    ) -> None:
        at = command.pointer + address - command.address
        await self._process.copy_to_user(caller, at, data)

    async def _send(self, command: Command, caller: int) -> None:
        """All pages of the command, as the device sees them, go to the caller."""
        for address, pages in windows(command.address, command.pages, PIECE):
            await self._to_user(command, caller, address, await self._load(address, pages))

    async def _held(self, address: int, pages: int, flag: int = VALID) -> Mask:
        """What the device has mapped, and may use so. Entries that don't hold any more go."""
        look = await self._process.look(address, pages)
        first = address // PAGE_SIZE
        there = self._table.get(first, pages)
        holds = self._view.holds(there, look)
        self._table.drop(first, (there.flags != 0) & ~holds)
        if flag == WRITE:
            holds &= look.all(State.WRITE) & (self._view.entries(look).flags & WRITE != 0)
        found: Mask = holds & (there.flags & flag != 0)
        return found

    async def _fault(
        self, address: int, pages: int, use: Callable[[], Awaitable[T]], right: State = State.READ
    ) -> T:
        """One round of faults on all of a range: `use` touches every page of it, and the table
        gets what is there then."""
        look = await self._process.look(address, pages)
        self._check_look(address, look, right)
        alone = await self._alone(address, pages, look)
        # As a fault of anybody else does, it ends what was the device's alone.
        await self._migrate(HOST, address, alone)
        result = await use()
        self._map(address, await self._process.look(address, pages))
        return result

    async def _check(self, address: int, pages: int, right: State = State.READ) -> None:
        """Raises what a fault on all of a range would."""
        for at, count in windows(address, pages, PIECE):
            self._check_look(at, await self._process.look(at, count), right)

    @staticmethod
    def _check_look(address: int, look: Look, right: State) -> None:
        reached = readable(look)
        good = leading(reached & look.all(right))
        at = address + good * PAGE_SIZE
        if good < len(reached) and not reached[good]:
            raise _unmapped(at)
        if good < len(reached):
            raise HmmfsError(errno.EPERM, f"The program's mapping at {at:#x} is read-only.")

    def _map(self, address: int, look: Look) -> None:
        self._table.put(address // PAGE_SIZE, self._view.entries(look))

    async def _load(self, address: int, pages: int) -> bytearray:
        if not pages:
            return bytearray()
        return await self._process.read(self._node, address, pages * PAGE_SIZE)

    # ---- migration

    async def _migrate(self, node: int, address: int, pages: Mask) -> None:
        """Those of the pages from an address on."""
        for first, count in runs(pages):
            await self._process.migrate(node, address + first * PAGE_SIZE, count)

    async def _to_device(self, command: Command, caller: int) -> Command:
        pauses = () if self._flags & FAIL_ALLOC else BUSY_S
        for address, pages in windows(command.address, command.pages):
            look = await self._process.look(address, pages)
            good = leading(migratable(look))
            if good:
                await self._bring(address, look.part(0, good))
            if good < pages:
                raise _unmapped(address + good * PAGE_SIZE, errno.EINVAL)
        for pause in pauses:
            if not await self._bring_late(command, pause):
                break
        await self._check_mine(command)
        for address, pages in windows(command.address, command.pages, PIECE):
            self._keep_atomic(address, await self._process.look(address, pages))
        await self._send(command, caller)
        return replace(command, cpages=command.pages)

    async def _check_mine(self, command: Command) -> None:
        """Raises HmmfsError: some are not on the device."""
        elsewhere = 0
        for address, pages in windows(command.address, command.pages, PIECE):
            look = await self._process.look(address, pages)
            elsewhere += int((~self._view.mine(look)).sum())
        if elsewhere:
            raise self._elsewhere(command, elsewhere)

    async def _bring(self, address: int, look: Look) -> None:
        """The program's own pages of a window come to the device; another device's stay there."""
        wanted = look.owner == HOST
        whole = _can_be_huge(address, look)
        if wanted.any() and self._fail_once():
            wanted[int(np.argmax(wanted))] &= whole
            whole = False
        await self._migrate(self._node, address, wanted)
        if whole:
            await self._process.set_huge(self._node, address)

    async def _bring_late(self, command: Command, pause: float) -> bool:
        """Pages that were in somebody's hands for a moment get another chance, as in the kernel's
        migration. False: there are none."""
        if not self._process.migrates:
            return False
        paused = False
        for address, pages in windows(command.address, command.pages, PIECE):
            look = await self._process.look(address, pages)
            left = look.all(State.ANON) & readable(look) & (look.owner == HOST)
            if left.any() and not paused:
                await trio.sleep(pause)
                paused = True
            await self._migrate(self._node, address, left)
        return paused

    def _fail_once(self) -> bool:
        """Whether one allocation is to fail. A huge page is then done in small ones, anything else
        stays where it is."""
        fails = bool(self._flags & FAIL_ALLOC)
        self._flags &= ~FAIL_ALLOC
        return fails

    def _elsewhere(self, command: Command, pages: int) -> HmmfsError:
        if not self._process.migrates:
            return HmmfsError(
                errno.ENOENT,
                f"The memory of process {self.pid} can't migrate, and a device only reaches it "
                "remotely. Start the program with hmmfs run.",
            )
        return HmmfsError(
            errno.ENOENT,
            f"{pages} of {command.pages} pages from {command.address:#x} on did not come to the "
            "device: shared, pinned and locked ones and those of other devices stay, and what is "
            "more than its memory.",
        )

    def _keep_atomic(self, address: int, look: Look) -> None:
        """Map pages of the device. Those that it has alone stay so."""
        first, new = address // PAGE_SIZE, self._view.entries(look)
        there = self._table.get(first, len(look.state))
        kept = (there.flags & ATOMIC != 0) & self._view.holds(there, look)
        self._table.put(
            first, Entries(np.where(kept, there.flags, new.flags).astype(np.uint8), new.place)
        )

    async def _to_system(self, command: Command) -> Command:
        moved = 0
        for address, pages in windows(command.address, command.pages):
            look = await self._process.look(address, pages)
            good = leading(migratable(look))
            if good:
                moved += await self._send_home(address, look.part(0, good))
            if good < pages:
                raise _unmapped(address + good * PAGE_SIZE, errno.EINVAL)
        return replace(command, cpages=moved)

    async def _send_home(self, address: int, look: Look) -> int:
        """How many entries of the page table moved: one for a huge page that moved in one piece."""
        pages = len(look.state)
        mine = self._view.mine(look) & ~await self._alone(address, pages, look)
        if not mine.any():
            return 0
        huge = _is_window(address, look) and bool((mine & look.all(State.HUGE)).all())
        if self._fail_once():
            first = int(np.argmax(mine))
            if huge:  # what has lost a page is not a huge one any more
                await self._process.migrate(HOST, address, 1)
            mine[first] &= huge
            huge = False
        await self._migrate(HOST, address, mine)
        after = await self._process.look(address, pages)
        gone = int((mine & ~self._view.mine(after)).sum())
        return 1 if huge and gone == pages else gone

    # ---- what is where

    async def _snapshot(self, command: Command, caller: int) -> Command:
        for address, pages in windows(command.address, command.pages):
            look = await self._process.look(address, pages)
            alone = await self._alone(address, pages, look)
            at = command.pointer + (address - command.address) // PAGE_SIZE
            seen = self._view.snapshot(look, alone).tobytes()
            await self._process.copy_to_user(caller, at, seen)
        return replace(command, cpages=command.pages)

    # ---- exclusive access

    async def _alone(self, address: int, pages: int, look: Look) -> Mask:
        """Pages that the device has for itself."""
        if not self._view.mine(look).any():
            return np.zeros(pages, np.bool_)
        return await self._process.exclusive(self._node, address, pages)

    async def _exclusive(self, command: Command, caller: int) -> Command:
        """Page by page: those before an error stay the device's alone."""
        for address, pages in windows(command.address, command.pages):
            look = await self._process.look(address, pages)
            reached = readable(look) & look.all(State.WRITE)
            good = leading(reached & look.all(State.ANON))
            if good and self._process.migrates:
                await self._take(address, look.part(0, good))
            at = address + good * PAGE_SIZE
            if good < pages and not reached[good]:
                raise HmmfsError(
                    errno.EFAULT,
                    f"The program has nothing mapped at {at:#x} that it may store to.",
                )
            if good < pages or not self._process.migrates:
                raise HmmfsError(
                    errno.EOPNOTSUPP,
                    "A device can have only private anonymous memory for itself, of a program "
                    "started with hmmfs run.",
                )
        await self._send(command, caller)
        return replace(command, cpages=command.pages)

    async def _take(self, address: int, look: Look) -> None:
        pages = len(look.state)
        await self._migrate(HOST, address, (look.owner != HOST) & ~self._view.mine(look))
        await self._process.migrate(self._node, address, pages)
        await self._process.set_exclusive(self._node, address, pages)
        look = await self._process.look(address, pages)
        alone = await self._alone(address, pages, look)
        new = self._view.entries(look)
        flags = np.where(alone, VALID | ATOMIC, 0).astype(np.uint8)
        self._table.put(address // PAGE_SIZE, Entries(flags, new.place))
        if not alone.all():
            at = address + leading(alone) * PAGE_SIZE
            raise HmmfsError(
                errno.EBUSY, f"The page at {at:#x} could not be taken from the program. Try again."
            )

    async def _check_exclusive(self, command: Command) -> None:
        """Inverted, as in the kernel: an error if some are still the device's alone."""
        for page in self._table.atomic(command.address // PAGE_SIZE, command.pages):
            alone = await self._process.exclusive(self._node, page * PAGE_SIZE, 1)
            if alone.any():
                raise HmmfsError(
                    errno.EPERM, f"The page at {page * PAGE_SIZE:#x} is still the device's alone."
                )
