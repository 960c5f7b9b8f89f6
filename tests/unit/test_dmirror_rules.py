"""The ioctls of a dmirror, against a program's memory that is a few arrays."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory.programs import OWNER as OWNER_SHIFT
from hmmfs.memory.programs import Look, State
from hmmfs.program import dmirror
from hmmfs.program.dmirror import IOWR, LAYOUT, Command, Device, Number, leading, runs
from hmmfs.program.page_table import ATOMIC, Entries, Table
from hmmfs.program.protocol import Process

PAGE = 4096
BASE = 1 << 30  # where the program's pages begin
USER = 1 << 40  # where the caller's buffer does
ANON = State.VMA | State.ANON
RW = ANON | State.READ | State.WRITE
RO = ANON | State.READ
SHARED = State.VMA | State.SHARED | State.READ | State.WRITE
BUFFER = 2048  # pages


@pytest.fixture(scope="module", params=[dmirror.PIECE, 3], autouse=True)
def piece(request: pytest.FixtureRequest) -> Iterator[None]:
    """What goes through the daemon in one piece has the same rules as what does not."""
    before, dmirror.PIECE = dmirror.PIECE, request.param
    yield
    dmirror.PIECE = before


def error(number: int) -> HmmfsError:
    return HmmfsError(number, errno.errorcode[number])


class Memory:
    """A program with `pages` pages at BASE, and a buffer at USER. Pages in `stuck` never move."""

    def __init__(self, pages: int, kind: State = RW, *, migrates: bool = True) -> None:
        self.pid = 1
        self.migrates = migrates
        self.kind = np.full(pages, kind, np.uint16)
        self.frame = np.zeros(pages, np.uint64)
        self.owner = np.zeros(pages, np.uint16)
        self.alone = np.zeros(pages, np.bool_)
        self.stuck = np.zeros(pages, np.bool_)
        self.zero = np.zeros(pages, np.bool_)
        self.data = np.zeros((pages, PAGE), np.uint8)
        self.user = bytearray(b"\xee") * (BUFFER * PAGE)
        self.gone = False
        self._frames = 100

    # ---- the program

    def at(self, address: int, pages: int) -> slice:
        first = (address - BASE) // PAGE
        return slice(first, first + pages)

    def touch(self, page: int, value: int | None = None) -> None:
        """The program loads, or stores."""
        if self.owner[page]:
            self.owner[page], self.alone[page], self.frame[page] = 0, False, 0
        if not self.frame[page] or (self.zero[page] and value is not None):
            self._frames += 1
            self.zero[page] = value is None and not self.data[page].any()
            self.frame[page] = 7 if self.zero[page] else self._frames
        if value is not None:
            self.data[page] = value

    def unmap(self, page: int) -> None:
        self.kind[page] = self.owner[page] = self.frame[page] = 0
        self.data[page] = 0

    def fill(self) -> None:
        for page in range(len(self.kind)):
            self.touch(page, page % 250 + 1)

    # ---- what devices see

    async def look(self, address: int, pages: int) -> Look:
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise error(errno.ESRCH)
        at = self.at(address, pages)
        here = self.frame[at] != 0
        state = self.kind[at] | self.owner[at] << OWNER_SHIFT
        own = here & ~self.zero[at] & (self.kind[at] & State.ANON != 0)
        for bit, true in (
            (State.PRESENT, here),
            (State.ZERO, self.zero[at] & here),
            (State.EXCLUSIVE, own),
        ):
            state = state | np.where(true, bit, 0)
        missing = pages - len(state)
        out = np.pad(state, (0, missing)).astype(np.uint16)
        return Look(out, np.pad(self.frame[at], (0, missing)))

    async def read(self, node: int, address: int, length: int) -> bytearray:
        await trio.lowlevel.checkpoint()
        at = self.at(address, length // PAGE)
        for page in range(at.start, at.stop):
            if self.owner[page] != node:
                self.touch(page)
        return bytearray(self.data[at].tobytes())

    async def write(self, node: int, address: int, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        at = self.at(address, len(data) // PAGE)
        if not (self.kind[at] & State.WRITE).all():
            raise error(errno.EPERM)
        for page, values in zip(range(at.start, at.stop), self.pages(data), strict=True):
            if self.owner[page] != node:
                self.touch(page, 0)
            self.data[page] = values

    @staticmethod
    def pages(data: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(data, np.uint8).reshape(-1, PAGE)

    async def migrate(self, node: int, address: int, pages: int) -> None:
        await trio.lowlevel.checkpoint()
        if not self.migrates:
            return
        at = self.at(address, pages)
        for page in range(at.start, at.stop):
            moves = self.kind[page] & State.ANON and not self.stuck[page]
            if moves and self.owner[page] != node:
                self.owner[page], self.alone[page] = node, False
                self.frame[page], self.zero[page] = 0, False
                if not node:
                    self.touch(page, None)

    async def set_exclusive(self, node: int, address: int, pages: int) -> None:
        at = self.at(address, pages)
        self.alone[at] = self.owner[at] == node

    async def set_huge(self, node: int, address: int) -> None:
        self.kind[self.at(address, 512)] |= np.uint16(State.HUGE)

    async def exclusive(self, node: int, address: int, pages: int) -> NDArray[np.bool_]:
        at = self.at(address, pages)
        return self.alone[at] & (self.owner[at] == node)

    async def copy_to_user(self, pid: int, address: int, data: bytes | bytearray) -> None:
        await trio.lowlevel.checkpoint()
        at = address - USER
        if at < 0 or at + len(data) > len(self.user):
            raise error(errno.EFAULT)
        self.user[at : at + len(data)] = data

    async def copy_from_user(self, pid: int, address: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        at = address - USER
        if at < 0 or at + length > len(self.user):
            raise error(errno.EFAULT)
        return bytes(self.user[at : at + length])

    async def evict_all(self, node: int) -> None:
        for page in np.flatnonzero(self.owner == node):
            self.touch(int(page))


class All:
    def __init__(self, *processes: Memory) -> None:
        self._processes = processes

    def get(self, pid: int) -> Process | None:
        return self._processes[0]

    async def open(self, pid: int) -> Process:
        return self._processes[0]

    def all(self) -> list[Process]:
        return list(self._processes)


class Programs:
    """Ioctls on two devices, as a program would call them; each gives (cpages, faults)."""

    def __init__(self, memory: Memory, coherent: frozenset[int] = frozenset()) -> None:
        self.memory = memory
        self.devices = [Device(All(memory), node, coherent) for node in (1, 2)]
        self.files = [trio.run(device.open, 1) for device in self.devices]

    def __call__(
        self, number: int, first: int = 0, pages: int | None = None, device: int = 0, **other: int
    ) -> tuple[int, int]:
        pages = len(self.memory.kind) if pages is None else pages
        address = other.get("address", BASE + first * PAGE)
        data = LAYOUT.pack(address, other.get("ptr", USER), pages, 91, 92)
        answer = run(self.files[device].ioctl, IOWR + number, data, 1)
        back = LAYOUT.unpack(answer)
        assert back[:3] == (address, other.get("ptr", USER), pages)
        return back[3:]

    def fails(self, errno_: int, *args: int, **more: int) -> None:
        with pytest.raises(HmmfsError) as caught:
            self(*args, **more)
        assert caught.value.errno == errno_, caught.value.sentence

    def snapshot(self, device: int = 0) -> str:
        pages = len(self.memory.kind)
        assert self(Number.SNAPSHOT, device=device) == (pages, 0)
        return bytes(self.memory.user[:pages]).hex(" ")

    def buffer(self, page: int) -> int:
        values = set(self.memory.user[page * PAGE : (page + 1) * PAGE])
        assert len(values) == 1
        return values.pop()


def run(call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return trio.run(call, *args)


def program(pages: int, kind: State = RW, **more: Any) -> tuple[Memory, Programs]:
    memory = Memory(pages, kind, **more)
    return memory, Programs(memory)


# ---- the struct


@pytest.mark.parametrize(
    ("address", "pages"),
    [
        (BASE + 1, 1),
        (BASE, 0),
        (BASE, 1 << 52),
        ((1 << 64) - PAGE, 1),
        ((1 << 64) - PAGE, 2),
        (BASE, (1 << 52) - 1),
    ],
)
@pytest.mark.parametrize("number", list(Number))
def test_ranges_that_are_none(number: Number, address: int, pages: int) -> None:
    _, ioctl = program(4)
    ioctl.fails(errno.EINVAL, number, 0, pages, address=address)


@pytest.mark.parametrize(
    ("command", "size", "number"),
    [
        (IOWR + 10, 40, errno.EINVAL),
        (IOWR + 255, 40, errno.EINVAL),
        (IOWR - (1 << 30), 40, errno.EINVAL),  # _IOR
        (IOWR + (8 << 16), 48, errno.EINVAL),
        (IOWR, 39, errno.EINVAL),
        (0x5401, 0, errno.ENOTTY),
        (IOWR + (1 << 8), 40, errno.ENOTTY),
    ],
)
def test_other_ioctls(command: int, size: int, number: int) -> None:
    _, ioctl = program(4)
    with pytest.raises(HmmfsError) as caught:
        run(ioctl.files[0].ioctl, command, bytes(size), 1)
    assert caught.value.errno == number


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_a_range_is_what_the_driver_takes_it_for(address: int, pages: int) -> None:
    size = pages << 12 & (1 << 64) - 1
    good = not address % PAGE and address < (address + size & (1 << 64) - 1)
    try:
        command = Command.parse(LAYOUT.pack(address, 0, pages, 0, 0))
        assert command.pages * PAGE == size
        taken = True
    except UsageError:
        taken = False
    assert taken == good


def test_the_program_is_gone() -> None:
    memory, ioctl = program(4)
    memory.gone = True
    for number in (Number.READ, Number.WRITE, Number.READ_UNLOCKED):
        ioctl.fails(errno.EFAULT, number)
    for number in (Number.MIGRATE_TO_DEV, Number.MIGRATE_TO_SYS, Number.SNAPSHOT, Number.EXCLUSIVE):
        ioctl.fails(errno.EINVAL, number)


# ---- READ and WRITE


@pytest.mark.parametrize("number", [Number.READ, Number.READ_UNLOCKED])
def test_read(number: Number) -> None:
    memory, ioctl = program(8)
    memory.touch(1)
    for page in range(2, 8):
        memory.touch(page, page)
    assert ioctl(number) == (8, 1)
    assert [ioctl.buffer(page) for page in range(8)] == [0, 0, 2, 3, 4, 5, 6, 7]
    assert ioctl(number) == (8, 0)


def test_faults_are_rounds() -> None:
    memory, ioctl = program(1024)
    assert ioctl(Number.READ) == (1024, 1)
    assert ioctl(Number.READ) == (1024, 0)
    memory.frame[[3, 700]] = 0
    assert ioctl(Number.READ) == (1024, 1)


def test_a_fault_of_the_range_so_far() -> None:
    _, ioctl = program(8)
    assert ioctl(Number.READ, 0, 4) == (4, 1)
    assert ioctl(Number.READ, 0, 8) == (8, 1)
    assert ioctl(Number.READ, 2, 6) == (6, 0)


def test_read_sees_what_moved() -> None:
    memory, ioctl = program(4)
    memory.fill()
    ioctl(Number.READ)
    memory.frame[2] = 0
    memory.touch(2, 99)
    assert ioctl(Number.READ) == (4, 1)
    assert ioctl.buffer(2) == 99


@pytest.mark.parametrize("kind", [State(0), ANON, ANON | State.WRITE, RW | State.SPECIAL])
def test_read_what_cannot_be(kind: State) -> None:
    memory, ioctl = program(4)
    memory.fill()
    memory.kind[2] = kind
    ioctl.fails(errno.EFAULT, Number.READ)
    assert set(memory.user) == {0xEE}
    assert ioctl(Number.READ, 0, 2) == (2, 1)


def test_a_right_that_is_taken_away() -> None:
    memory, ioctl = program(4)
    memory.fill()
    assert ioctl(Number.WRITE) == (4, 1)
    assert ioctl(Number.WRITE) == (4, 0)
    memory.kind[:] = RO
    ioctl.fails(errno.EPERM, Number.WRITE)
    assert ioctl(Number.READ) == (4, 0)
    memory.kind[:] = ANON
    ioctl.fails(errno.EFAULT, Number.READ)


def test_a_buffer_that_is_none() -> None:
    memory, ioctl = program(4)
    for number in (Number.READ, Number.WRITE, Number.SNAPSHOT, Number.MIGRATE_TO_DEV):
        ioctl.fails(errno.EFAULT, number, ptr=USER - PAGE)
    assert not memory.data.any()


def test_more_than_there_is() -> None:
    """No length is refused for being long, and none is copied as a whole."""
    _, ioctl = program(4)
    ioctl.fails(errno.EFAULT, Number.READ, 0, 1 << 40)
    ioctl.fails(errno.EFAULT, Number.WRITE, 0, 1 << 40)
    ioctl.fails(errno.EINVAL, Number.MIGRATE_TO_DEV, 0, 1 << 40)
    ioctl.fails(errno.EFAULT, Number.EXCLUSIVE, 0, 1 << 40)


def test_long_copies_are_in_the_daemon_piece_by_piece() -> None:
    pages = 3 * dmirror.PIECE if dmirror.PIECE < 100 else 10
    memory, ioctl = program(pages)
    memory.fill()
    largest = 0
    copy = memory.copy_to_user

    async def copy_to_user(pid: int, address: int, data: bytes | bytearray) -> None:
        nonlocal largest
        largest = max(largest, len(data))
        await copy(pid, address, data)

    memory.copy_to_user = copy_to_user  # type: ignore[method-assign]
    for number in (Number.READ, Number.MIGRATE_TO_DEV, Number.EXCLUSIVE):
        memory.user[:] = bytes(len(memory.user))
        assert ioctl(number)[0] == pages
        assert [ioctl.buffer(page) for page in range(pages)] == [*range(1, pages + 1)]
    assert largest == min(dmirror.PIECE, pages) * PAGE


def test_an_error_at_the_end_of_a_long_copy() -> None:
    memory, ioctl = program(10)
    memory.fill()
    memory.kind[9] = ANON
    before = bytes(memory.user)
    ioctl.fails(errno.EFAULT, Number.READ)
    assert memory.user == before
    memory.kind[9] = RW
    memory.stuck[9] = True
    ioctl.fails(errno.ENOENT, Number.MIGRATE_TO_DEV)
    assert memory.user == before


def test_nothing_is_stored_of_a_buffer_that_ends() -> None:
    memory, ioctl = program(10)
    ioctl.fails(errno.EFAULT, Number.WRITE, ptr=USER + (BUFFER - 9) * PAGE)
    assert not memory.data.any()


def test_write() -> None:
    memory, ioctl = program(4)
    assert ioctl(Number.READ) == (4, 1)
    memory.user[: 4 * PAGE] = bytes(range(1, 5)) * PAGE
    assert ioctl(Number.WRITE) == (4, 1)  # what was read is the page of zeros
    assert memory.data.tobytes() == bytes(range(1, 5)) * PAGE
    assert ioctl(Number.WRITE) == (4, 0)


def test_write_is_not_atomic() -> None:
    memory, ioctl = program(4)
    memory.kind[2] = RO
    ioctl(Number.WRITE, 0, 2)
    memory.data[:] = 0
    ioctl.fails(errno.EPERM, Number.WRITE)
    assert memory.data[:2].all()
    assert not memory.data[2:].any()


def test_write_needs_a_fault_first() -> None:
    memory, ioctl = program(4)
    memory.kind[2] = RO
    ioctl.fails(errno.EPERM, Number.WRITE)
    memory.kind[2] = 0
    ioctl.fails(errno.EFAULT, Number.WRITE)
    assert not memory.data.any()


# ---- migration


def test_migrate() -> None:
    memory, ioctl = program(1024)
    memory.fill()
    assert ioctl(Number.MIGRATE_TO_DEV) == (1024, 0)
    assert (memory.owner == 1).all()
    assert ioctl.buffer(1000) == 1
    assert ioctl(Number.MIGRATE_TO_DEV) == (1024, 0)
    assert ioctl(Number.READ) == (1024, 0)
    for page in range(512):
        memory.touch(page)
    assert ioctl(Number.MIGRATE_TO_DEV) == (1024, 0)
    assert ioctl(Number.MIGRATE_TO_SYS, 0, 1000) == (1000, 0)
    assert ioctl(Number.MIGRATE_TO_SYS) == (24, 0)
    assert ioctl(Number.MIGRATE_TO_SYS) == (0, 0)


def test_migrate_holes_and_read_only() -> None:
    memory, ioctl = program(4, RO)
    memory.touch(1)
    assert ioctl(Number.MIGRATE_TO_DEV) == (4, 0)
    assert [ioctl.buffer(page) for page in range(4)] == [0] * 4
    assert ioctl.snapshot() == "21 21 21 21"


def test_an_error_leaves_what_was_before() -> None:
    memory, ioctl = program(1100)
    memory.unmap(1050)
    ioctl.fails(errno.EINVAL, Number.MIGRATE_TO_DEV)
    assert (memory.owner[:1050] == 1).all()
    assert not memory.owner[1050:].any()
    assert set(memory.user) == {0xEE}
    ioctl.fails(errno.EINVAL, Number.MIGRATE_TO_SYS)
    assert not memory.owner.any()


def test_what_does_not_move() -> None:
    memory, ioctl = program(4)
    memory.stuck[2] = True
    ioctl.fails(errno.ENOENT, Number.MIGRATE_TO_DEV)
    assert memory.owner.tolist() == [1, 1, 0, 1]
    memory.kind[:] = SHARED
    memory, ioctl = program(4, SHARED)
    ioctl.fails(errno.ENOENT, Number.MIGRATE_TO_DEV)
    ioctl(Number.READ)
    ioctl.fails(errno.ENOENT, Number.MIGRATE_TO_DEV)  # test_hmm says 0, and moves nothing


def test_a_program_whose_pages_stay() -> None:
    memory, ioctl = program(4, migrates=False)
    memory.fill()
    ioctl.fails(errno.ENOENT, Number.MIGRATE_TO_DEV)
    assert ioctl(Number.MIGRATE_TO_SYS) == (0, 0)
    ioctl.fails(errno.EOPNOTSUPP, Number.EXCLUSIVE)
    assert not memory.owner.any()


def test_two_devices() -> None:
    """migrate_mixed and double_map."""
    memory, ioctl = program(6, RO)
    memory.fill()
    memory.kind[0] = ANON
    memory.unmap(1)
    ioctl.fails(errno.EINVAL, Number.MIGRATE_TO_DEV, device=1)
    ioctl.fails(errno.EINVAL, Number.MIGRATE_TO_DEV, 1, 5, device=1)
    assert ioctl(Number.MIGRATE_TO_DEV, 2, 4, device=1) == (4, 0)
    ioctl.fails(errno.ENOENT, Number.MIGRATE_TO_DEV, 5, 1)
    assert memory.owner[5] == 2
    assert ioctl(Number.MIGRATE_TO_SYS, 2, 4) == (0, 0)
    assert ioctl(Number.READ, 2, 4) == (4, 1)
    assert not memory.owner.any()
    assert ioctl.buffer(0) == 3


def test_read_on_the_device_after_its_mapping_was_invalidated() -> None:
    """Here test_hmm crashes."""
    memory, ioctl = program(4)
    memory.fill()
    ioctl(Number.MIGRATE_TO_DEV)
    memory.kind[:] = RO
    ioctl.fails(errno.ENOENT, Number.MIGRATE_TO_DEV, device=1)
    assert ioctl(Number.READ) == (4, 0)
    assert ioctl.buffer(3) == 4
    ioctl.fails(errno.EPERM, Number.WRITE)


def test_closing_any_file_and_release() -> None:
    memory, ioctl = program(4)
    for end in (ioctl.devices[0].evict, lambda: ioctl.files[0].ioctl(*RELEASE)):
        ioctl(Number.MIGRATE_TO_DEV, 0, 2)
        ioctl(Number.MIGRATE_TO_DEV, 2, 2, device=1)
        run(end)
        assert memory.owner.tolist() == [0, 0, 2, 2]
        ioctl(Number.MIGRATE_TO_SYS, 2, 2, device=1)


RELEASE = (IOWR + Number.RELEASE, LAYOUT.pack(BASE, 0, 1, 5, 5), 1)


def test_a_huge_page_counts_once_on_its_way_home() -> None:
    _, ioctl = program(1024, RW | State.HUGE)
    assert ioctl(Number.MIGRATE_TO_DEV) == (1024, 0)
    assert ioctl(Number.MIGRATE_TO_SYS) == (2, 0)
    ioctl(Number.MIGRATE_TO_DEV)
    assert ioctl(Number.MIGRATE_TO_SYS, 0, 600) == (1 + 88, 0)
    assert ioctl(Number.MIGRATE_TO_SYS) == (512 - 88, 0)


# ---- FLAGS


def test_one_allocation_fails() -> None:
    memory, ioctl = program(4)
    assert ioctl(Number.FLAGS, 0, 1) == (0, 0)
    ioctl.fails(errno.ENOENT, Number.MIGRATE_TO_DEV)
    assert memory.owner.tolist() == [0, 1, 1, 1]
    assert ioctl(Number.MIGRATE_TO_DEV) == (4, 0)
    ioctl(Number.FLAGS, 0, 1)
    assert ioctl(Number.MIGRATE_TO_SYS) == (3, 0)
    assert ioctl(Number.MIGRATE_TO_SYS) == (1, 0)


def test_flags_are_the_number_of_pages() -> None:
    _, ioctl = program(4)
    ioctl.fails(errno.EINVAL, Number.FLAGS, 0, 0)
    ioctl(Number.FLAGS, 0, 3)
    ioctl(Number.FLAGS, 0, 2)
    assert ioctl(Number.MIGRATE_TO_DEV) == (4, 0)


def test_a_huge_page_is_done_in_small_ones() -> None:
    _, ioctl = program(512, RW | State.HUGE)
    ioctl(Number.FLAGS, 0, 1)
    assert ioctl(Number.MIGRATE_TO_DEV) == (512, 0)
    ioctl(Number.FLAGS, 0, 1)
    assert ioctl(Number.MIGRATE_TO_SYS) == (512, 0)


# ---- SNAPSHOT


def test_snapshot() -> None:
    memory, ioctl = program(9)
    memory.kind[[0, 8]] = ANON, RW | State.SPECIAL
    memory.unmap(1)
    memory.touch(2)
    memory.touch(3, 1)
    memory.kind[3] = RO
    memory.touch(4, 1)
    ioctl(Number.MIGRATE_TO_DEV, 5, 1)
    ioctl(Number.MIGRATE_TO_DEV, 6, 1, device=1)
    before = memory.frame.copy()
    assert ioctl.snapshot() == "ff ff 11 01 02 22 00 00 ff"
    assert ioctl.snapshot(device=1) == "ff ff 11 01 02 00 22 00 ff"
    assert (memory.frame == before).all(), "a snapshot faults nothing in"


def test_snapshot_of_coherent_devices() -> None:
    memory = Memory(4)
    ioctl = Programs(memory, frozenset({1, 2}))
    memory.touch(0, 1)
    ioctl(Number.MIGRATE_TO_DEV, 1, 1)
    ioctl(Number.MIGRATE_TO_DEV, 2, 1, device=1)
    assert ioctl.snapshot() == "02 42 52 00"
    memory.kind[:] = RO
    assert ioctl.snapshot(device=1) == "01 51 41 00"


def test_snapshot_of_huge_pages() -> None:
    memory, ioctl = program(512, RW | State.HUGE)
    memory.fill()
    assert set(ioctl.snapshot().split()) == {"06"}
    ioctl(Number.MIGRATE_TO_DEV)
    assert set(ioctl.snapshot().split()) == {"26"}


def test_what_comes_to_be_a_huge_page() -> None:
    """Where there is nothing yet, in the place of a huge page and as a whole."""
    memory, ioctl = program(1536)
    memory.touch(1, 1)
    ioctl(Number.MIGRATE_TO_DEV, 0, 1024)
    ioctl(Number.MIGRATE_TO_DEV, 1024, 500)
    ioctl(Number.MIGRATE_TO_DEV, 1524, 12)
    assert ioctl.snapshot().split() == ["22"] * 512 + ["26"] * 512 + ["22"] * 512


def test_snapshot_of_several_windows() -> None:
    memory, ioctl = program(1500)
    memory.touch(1300, 1)
    assert [page for page, byte in enumerate(ioctl.snapshot().split()) if byte != "00"] == [1300]


# ---- EXCLUSIVE


def test_exclusive() -> None:
    memory, ioctl = program(4)
    memory.fill()
    ioctl(Number.MIGRATE_TO_DEV, 3, 1, device=1)
    assert ioctl(Number.CHECK_EXCLUSIVE) == (0, 0)
    assert ioctl(Number.EXCLUSIVE) == (4, 0)
    assert ioctl.buffer(3) == 4
    assert ioctl.snapshot() == "00 00 00 00"
    ioctl.fails(errno.EPERM, Number.CHECK_EXCLUSIVE)
    assert ioctl(Number.READ) == (4, 0)
    assert ioctl(Number.MIGRATE_TO_SYS) == (0, 0)
    assert ioctl(Number.MIGRATE_TO_DEV) == (4, 0)
    ioctl.fails(errno.EPERM, Number.CHECK_EXCLUSIVE)
    for page in range(3):
        memory.touch(page, 9)
    assert ioctl(Number.CHECK_EXCLUSIVE, 0, 3) == (0, 0)
    ioctl.fails(errno.EPERM, Number.CHECK_EXCLUSIVE, 0, (1 << 52) - 1 - (BASE >> 12))


def test_a_store_of_the_device_ends_it() -> None:
    memory, ioctl = program(4)
    ioctl(Number.EXCLUSIVE)
    assert ioctl(Number.WRITE) == (4, 1)
    assert ioctl(Number.CHECK_EXCLUSIVE) == (0, 0)
    ioctl(Number.EXCLUSIVE)
    memory.kind[:] = RO
    ioctl.fails(errno.EPERM, Number.WRITE)


def test_the_other_device_takes_it() -> None:
    memory, ioctl = program(4)
    memory.fill()
    ioctl(Number.EXCLUSIVE)
    assert ioctl(Number.EXCLUSIVE, device=1) == (4, 0)
    assert ioctl(Number.CHECK_EXCLUSIVE) == (0, 0)
    ioctl.fails(errno.EPERM, Number.CHECK_EXCLUSIVE, device=1)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (State(0), errno.EFAULT),
        (RO, errno.EFAULT),
        (ANON, errno.EFAULT),
        (SHARED, errno.EOPNOTSUPP),
    ],
)
def test_what_cannot_be_exclusive(kind: State, number: int) -> None:
    memory, ioctl = program(4)
    memory.kind[2] = kind
    ioctl.fails(number, Number.EXCLUSIVE)
    assert memory.alone.tolist() == [True, True, False, False], "page by page"


def test_a_page_that_is_not_had() -> None:
    memory, ioctl = program(4)
    memory.stuck[1] = True
    ioctl.fails(errno.EBUSY, Number.EXCLUSIVE)


# ---- the table, and sets of pages


@given(st.lists(st.tuples(st.integers(0, 1600), st.integers(1, 700), st.integers(0, 7))))
def test_the_table_is_an_array(puts: list[tuple[int, int, int]]) -> None:
    table, flags, place = Table(), np.zeros(2400, np.uint8), np.zeros(2400, np.uint64)
    for number, (first, count, bits) in enumerate(puts, 1):
        new = Entries(np.full(count, bits, np.uint8), np.full(count, number, np.uint64))
        table.put(first, new)
        flags[first : first + count], place[first : first + count] = bits, number
        table.drop(first, new.flags == 3)
        flags[first : first + count][new.flags == 3] = 0
    got = table.get(0, 2400)
    assert (got.flags == flags).all()
    assert (got.place == place)[flags != 0].all()
    assert table.atomic(5, 2000) == [page for page in range(5, 2005) if flags[page] & ATOMIC]


@given(st.lists(st.booleans(), max_size=40))
def test_runs(pages: list[bool]) -> None:
    mask = np.array(pages, np.bool_)
    back = np.zeros(len(pages), np.bool_)
    for first, count in runs(mask):
        assert not back[first : first + count].any()
        back[first : first + count] = True
        assert first + count == len(pages) or not mask[first + count]
    assert (back == mask).all()
    assert leading(mask) == next((n for n, one in enumerate(pages) if not one), len(pages))
