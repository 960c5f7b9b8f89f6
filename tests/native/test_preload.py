"""The library that hmmfs run preloads, with a stand-in for the daemon at the other end of its
socket. The userfaultfd is a real one, and so is the program's memory."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hmmfs.cli.preload import LIBRARY, preloading

ROOT = Path(__file__).resolve().parents[2]
PRELOADING = preloading(LIBRARY, {})
PAGE = mmap.PAGESIZE
SECONDS = 5.0

MAGIC, VERSION, MIGRATES = 0x68656C6C6F6D6D68, 2, 1
FREE, PENDING, TAKEN, DONE = range(4)
MOVE, DROP, PRIVATE, RELEASE = range(4)
SLOTS, RUNS = 16, 32
HELLO, SLOT = struct.Struct("QIIQQQQ"), struct.Struct("IIiIII")
SLOT_BYTES = SLOT.size + 16 * RUNS
DISCARDING = 64 * 16  # bytes of what is being discarded, behind the slots
CHANGES = SLOTS * SLOT_BYTES + DISCARDING + 8  # where changes of mappings are counted
BLOCK = 2 << 20

# linux/userfaultfd.h
REGISTER, COPY = 0xC020AA00, 0xC028AA03
ZEROPAGE, WRITEPROTECT = 0xC020AA04, 0xC018AA06
MISSING, WP = 1, 2
FAULT, FORK, _REMAP, REMOVE, UNMAP = range(0x12, 0x17)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="a userfaultfd that migrates takes CAP_SYS_PTRACE"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preload") / "preloaded"
    source = Path(__file__).with_name("preloaded.c")
    subprocess.run(
        ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-o", path, source],
        check=True,
    )
    return path


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Part(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


LIBC = ctypes.CDLL(None, use_errno=True)


class Attached:
    """One program as its daemon has it: its userfaultfd, and the requests to its helper."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.credentials = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        hello, fds, _, _ = socket.recv_fds(connection, 256, 8)
        self.magic, self.version, self.flags, self.least, *own = HELLO.unpack(hello)
        self.own, self.own_bytes, self.scratch = own
        self.uffd = fds[1] if len(fds) > 1 else -1
        self.seals = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
        self.control = mmap.mmap(fds[0], 0)
        os.close(fds[0])
        self.away: dict[int, bytes] = {}
        self.forks: list[int] = []
        self.events: Counter[int] = Counter()
        self._serves = False
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)

    def welcome(self, error: int = 0, version: int = VERSION) -> Attached:
        self.socket.send(struct.pack("iI", error, version))
        return self

    def serve(self) -> Attached:
        self._serves = True
        self._thread.start()
        return self

    def register(self, start: int, pages: int) -> None:
        fcntl.ioctl(self.uffd, REGISTER, struct.pack("4Q", start, pages * PAGE, MISSING | WP, 0))

    def protect(self, start: int, pages: int) -> None:
        fcntl.ioctl(self.uffd, WRITEPROTECT, struct.pack("3Q", start, pages * PAGE, 1))

    def take(self, start: int, pages: int) -> None:
        """As if a device took pages that each begin with a byte that is not 0."""
        for block in range(start, start + pages * PAGE, BLOCK):
            length = min(BLOCK, start + pages * PAGE - block)
            assert self.ask(0, MOVE, [(block, length)]) == 0
            data = self.read(self.scratch + block % BLOCK, length)
            self.away |= {block + at: data[at : at + PAGE] for at in range(0, length, PAGE)}
            self.release(0)

    def release(self, slot: int) -> None:
        assert self.ask(slot, RELEASE, []) == 0

    def read(self, address: int, length: int) -> bytes:
        data = ctypes.create_string_buffer(length)
        local, remote = Part(ctypes.addressof(data), length), Part(address, length)
        parts = ctypes.byref(local), 1, ctypes.byref(remote), 1, 0
        assert LIBC.process_vm_readv(self.credentials[0], *parts) == length
        return data.raw

    def pages(self, address: int, count: int) -> str:
        """A letter for each: p for one that is present, w if it is write-protected, too; a for a
        marker; - for nothing."""
        with open(f"/proc/{self.credentials[0]}/pagemap", "rb") as pagemap:
            pagemap.seek(address // PAGE * 8)
            entries = struct.unpack(f"{count}Q", pagemap.read(8 * count))
        letters = {0: "-", 1: "p", 3: "w", 6: "a"}  # bits 63, 57 and 62
        return "".join(letters[e >> 63 | (e >> 57 & 1) << 1 | (e >> 62 & 1) << 2] for e in entries)

    def scratch_pages(self, slot: int, count: int = 16) -> str:
        return self.pages(self.scratch + slot * BLOCK, count)

    def changes(self) -> tuple[int, int]:
        """Those that have begun, and that have ended."""
        begun, ended = struct.unpack_from("2I", self.control, CHANGES)
        return begun, ended

    def request(
        self,
        slot: int,
        kind: int,
        runs: list[tuple[int, int]],
        count: int | None = None,
        changes: int | None = None,
    ) -> None:
        flat = [number for run in runs for number in run]
        at = slot * SLOT_BYTES
        struct.pack_into(f"{len(flat)}Q", self.control, at + SLOT.size, *flat)
        count = len(runs) if count is None else count
        changes = self.changes()[0] if changes is None else changes
        SLOT.pack_into(self.control, at, PENDING, kind, 99, count, changes, 0)
        self.socket.send(struct.pack("I", slot))

    def state(self, slot: int) -> int:
        return int(struct.unpack_from("I", self.control, slot * SLOT_BYTES)[0])

    def ask(self, slot: int, kind: int, runs: list[tuple[int, int]], **more: int) -> int:
        """As request. The result: 0 or -errno."""
        self.request(slot, kind, runs, **more)
        until(lambda: self.state(slot) == DONE)
        return int(SLOT.unpack_from(self.control, slot * SLOT_BYTES)[2])

    def free(self, slot: int) -> None:
        struct.pack_into("I", self.control, slot * SLOT_BYTES, FREE)

    def leave(self) -> None:
        struct.pack_into("I", self.control, SLOTS * SLOT_BYTES + DISCARDING, 1)
        self.vanish()

    def vanish(self) -> None:
        """As if the daemon were killed, unless it said that it leaves."""
        if self._serves:
            os.write(self._stopped, b"x")
            self._thread.join()
            self._serves = False
        for fd in (self.uffd, *self.forks, self._stop, self._stopped):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.uffd, self.forks, self._stop, self._stopped = -1, [], -1, -1
        self.socket.close()

    def read_event(self) -> bytes:
        select.select([self.uffd], [], [], SECONDS)
        return os.read(self.uffd, 32)

    def _serve(self) -> None:
        poll = select.poll()
        for fd in (self.uffd, self._stop):
            poll.register(fd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._stop in ready:
                return
            for fd in ready:
                with contextlib.suppress(BlockingIOError):
                    event = os.read(fd, 32)
                    self.events[event[0]] += 1
                    if event[0] == FORK:
                        self.forks.append(struct.unpack_from("I", event, 8)[0])
                        poll.register(self.forks[-1], select.POLLIN)
                    elif event[0] == FAULT:
                        self._answer(fd, *struct.unpack_from("QQ", event, 8))

    def _answer(self, uffd: int, flags: int, address: int) -> None:
        page = address & -PAGE
        with contextlib.suppress(FileExistsError, ProcessLookupError):
            if flags & 2:
                fcntl.ioctl(uffd, WRITEPROTECT, struct.pack("3Q", page, PAGE, 0))
            elif page in self.away:
                bytes_ = ctypes.create_string_buffer(self.away[page], PAGE)
                request = struct.pack("4Qq", page, ctypes.addressof(bytes_), PAGE, 0, 0)
                fcntl.ioctl(uffd, COPY, request)
            else:
                fcntl.ioctl(uffd, ZEROPAGE, struct.pack("3Qq", page, PAGE, 0, 0))


class Running:
    """The program, and what it answers."""

    def __init__(self, command: list[str | Path], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.hear()

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        assert ready, "no answer"
        return self.process.stdout.readline().rstrip("\n")

    def address(self) -> int:
        return int(self.hear().split()[-2])

    def end(self) -> str:
        """What it said on standard error."""
        _, errors = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == 0
        return errors


class Daemon:
    """Where programs connect."""

    def __init__(self) -> None:
        self.name = f"hmmfs-test-{uuid.uuid4().hex}"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind("\0" + self.name)
        self.listener.listen()
        self.listener.settimeout(SECONDS)
        self.attached: list[Attached] = []
        self.running: list[Running] = []

    def start(self, program: Path, **settings: str) -> Running:
        environment = {**PRELOADING, "HMMFS_SOCKET": self.name, **settings}
        self.running.append(Running([program], environment))
        return self.running[-1]

    def accept(self) -> Attached:
        connection, _ = self.listener.accept()
        try:
            self.attached.append(Attached(connection))
        except BaseException:
            connection.close()  # left open, it would fail whichever test is next to collect garbage
            raise
        return self.attached[-1]

    def close(self) -> None:
        for running in self.running:
            running.process.kill()
            running.process.wait()
            for file in (running.process.stdin, running.process.stdout, running.process.stderr):
                assert file
                with contextlib.suppress(BrokenPipeError):
                    file.close()
        for attached in self.attached:
            attached.vanish()
            attached.control.close()
        self.listener.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.close()


def begin(daemon: Daemon, program: Path, **settings: str) -> tuple[Running, Attached, int]:
    """A program with its 16 pages registered, and a daemon that answers its faults."""
    running = daemon.start(program, **settings)
    attached = daemon.accept().welcome()
    start = running.address()
    attached.register(start, 16)
    attached.serve()
    return running, attached, start


def test_hello(daemon: Daemon, program: Path) -> None:
    running = daemon.start(program, HMMFS_LEAST="123456")
    attached = daemon.accept().welcome()
    assert (attached.magic, attached.version) == (MAGIC, VERSION)
    assert attached.flags == MIGRATES
    assert attached.least == 123456
    assert attached.credentials[0] == running.process.pid
    assert len(attached.control) == SLOTS * SLOT_BYTES + DISCARDING + 32
    assert attached.seals & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    assert attached.scratch % BLOCK == 0
    assert attached.own <= attached.scratch
    assert attached.scratch + SLOTS * BLOCK <= attached.own + attached.own_bytes
    running.address()
    assert running.end() == ""


def own_pages(running: Running) -> int:
    """Of its memory, those that are not a file's."""
    running.ask("state")  # its first line from us takes it a buffer
    rollup = Path(f"/proc/{running.process.pid}/smaps_rollup").read_text()
    return int(rollup.split("Anonymous:")[1].split()[0]) * 1024 // PAGE


def huge_pages(running: Running, address: int) -> int:
    """KiB of huge pages in the mapping that begins there."""
    smaps = Path(f"/proc/{running.process.pid}/smaps").read_text()
    mapping = smaps.partition(f"\n{address:x}-")[2]
    return int(mapping.partition("AnonHugePages:")[2].split()[0])


def test_take_and_fetch(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    attached.take(start + PAGE, 3)
    assert attached.pages(start, 5) == "paaap"
    assert [running.ask(f"touch {page}") for page in (0, 1, 2, 3, 4)] == ["1", "2", "3", "4", "5"]
    assert running.ask("store 1 77") == "77"
    assert attached.events[FAULT] == 3
    assert running.end() == ""


def test_move_leaves_holes_out(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    before = own_pages(running)
    assert attached.ask(15, MOVE, [(start + PAGE, 9 * PAGE), (start + 12 * PAGE, PAGE)]) == 0
    assert attached.pages(start, 16) == "paaaaaaaaa--a---"
    assert attached.scratch_pages(15) == "-ppppppp--------"
    assert attached.read(attached.scratch + 15 * BLOCK + 3 * PAGE, 2) == b"\x04\x00"
    assert own_pages(running) == before
    attached.release(15)
    assert attached.scratch_pages(15) == "-" * 16
    assert own_pages(running) == before - 7
    assert attached.ask(2, MOVE, [(start, 16 * PAGE)]) == 0, "again, with markers among them"
    assert attached.scratch_pages(2) == "p" + "-" * 15
    assert attached.pages(start, 16) == "a" * 16
    assert attached.ask(2, RELEASE, []) == attached.ask(2, RELEASE, []) == 0


def test_move_a_huge_page(daemon: Daemon, program: Path) -> None:
    running, attached, _ = begin(daemon, program)
    for first, count in ((0, 512), (3, 509)):
        start = int(running.ask("huge"))
        if not huge_pages(running, start):
            pytest.skip("the kernel has no huge page to give")
        attached.register(start, 512)
        before = own_pages(running)
        assert attached.ask(1, MOVE, [(start + first * PAGE, count * PAGE)]) == 0
        assert attached.pages(start, 512) == "p" * first + "a" * count
        assert attached.scratch_pages(1, 512) == "-" * first + "p" * count
        assert (huge_pages(running, attached.scratch + BLOCK) == 2048) == (count == 512), "split"
        assert attached.read(attached.scratch + BLOCK + first * PAGE, 2) == b"\x05\x05"
        attached.release(1)
        assert own_pages(running) == before - count


def test_move_what_is_shared_with_a_fork(daemon: Daemon, program: Path) -> None:
    """Not before they are the program's alone; also write-protected ones, without a fault."""
    running, attached, start = begin(daemon, program)
    running.tell("fork")
    child = daemon.accept().welcome()
    assert running.hear() == "child"
    attached.protect(start + 2 * PAGE, 2)
    assert attached.ask(0, MOVE, [(start, 4 * PAGE)]) == -errno.EBUSY
    assert attached.pages(start, 16) == "w" * 4 + "p" * 4 + "-" * 8
    assert attached.ask(0, PRIVATE, [(start, 6 * PAGE), (start + 6 * PAGE, 2 * PAGE)]) == 0
    assert attached.pages(start, 16) == "p" * 8 + "-" * 8
    assert attached.ask(0, MOVE, [(start, 16 * PAGE)]) == 0
    assert attached.pages(start, 16) == "a" * 16
    assert attached.scratch_pages(0) == "p" * 8 + "-" * 8
    assert child.pages(start, 16) == "p" * 8 + "-" * 8
    for page in range(8):
        assert attached.read(attached.scratch + page * PAGE, 1)[0] == page + 1
        assert running.ask(f"touch {page}") == f"{page + 1}"
    assert attached.events[FAULT] == 0


def test_read_only_pages_are_dropped_instead(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    assert running.ask("readonly") == "0"
    assert attached.ask(0, MOVE, [(start, 10 * PAGE)]) == -errno.EINVAL
    assert attached.pages(start, 12) == "wwwwwwwwaa--"
    assert attached.scratch_pages(0) == "-" * 16
    attached.release(0)
    attached.away = {start + PAGE: attached.read(start + PAGE, PAGE)}
    before = own_pages(running)
    assert attached.ask(0, DROP, [(start + PAGE, PAGE), (start + 11 * PAGE, PAGE)]) == 0
    assert attached.pages(start, 12) == "wawwwwwwaa-a"
    assert own_pages(running) == before - 1
    assert running.ask("touch 1") == "2"
    assert running.ask("touch 2") == "3"


def test_nothing_is_dropped_after_a_mapping_has_changed(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    begun, ended = attached.changes()
    assert begun == ended
    assert running.ask("unmap 4") == "0"
    assert attached.changes() == (begun + 1, ended + 1)
    assert attached.ask(0, DROP, [(start, PAGE)], changes=begun) == -errno.EBUSY
    assert attached.pages(start, 2) == "pp"
    assert attached.ask(0, DROP, [(start, PAGE)]) == 0
    assert attached.pages(start, 2) == "ap"
    assert running.ask("unmap 5") == "0", "nobody holds it up any more"


def test_mappings_do_not_change_while_pages_are_dropped(daemon: Daemon, program: Path) -> None:
    running = daemon.start(program)
    attached = daemon.accept().welcome()
    start = running.address()
    attached.register(start, 16)
    attached.request(0, DROP, [(start, 2 * PAGE)])
    select.select([attached.uffd], [], [], SECONDS)
    running.tell("unmap 1")
    until(lambda: len(set(attached.changes())) == 2)
    time.sleep(0.05)
    assert attached.pages(start, 3) == "ppp", "it waits"
    assert attached.read_event()[0] == REMOVE
    until(lambda: attached.state(0) == DONE)
    assert attached.read_event()[0] == UNMAP
    assert running.hear() == "0"
    assert attached.pages(start, 3) == "a-p"
    assert len(set(attached.changes())) == 1


def test_move_nothing_from_where_nothing_is_mapped(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    assert running.ask("unmap 4") == "0"
    until(lambda: attached.events[UNMAP] == 1)
    assert attached.ask(0, MOVE, [(start + 4 * PAGE, PAGE), (start, PAGE)]) == -errno.ENOENT
    assert attached.pages(start, 6) == "appp-p"
    assert attached.ask(1, MOVE, [(start + 3 * PAGE, 3 * PAGE)]) == -errno.EINVAL
    assert attached.scratch_pages(1) == "-" * 16


def test_move_nothing_while_the_address_space_changes(daemon: Daemon, program: Path) -> None:
    running = daemon.start(program)
    attached = daemon.accept().welcome()
    start = running.address()
    attached.register(start, 16)
    running.tell("discard 12")
    select.select([attached.uffd], [], [], SECONDS)
    assert attached.ask(0, MOVE, [(start + PAGE, BLOCK), (start, 16 * PAGE)]) == -errno.EAGAIN
    assert attached.pages(start, 16) == "p" * 8 + "-" * 8
    assert attached.read_event()[0] == REMOVE
    assert running.hear() == "0"
    assert attached.ask(0, MOVE, [(start, 16 * PAGE)]) == 0
    assert attached.pages(start, 16) == "a" * 16


def test_wrong_requests(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    for number in (struct.pack("I", SLOTS), struct.pack("I", 0xFFFFFFFF), b"", b"xy", b"x" * 99):
        attached.socket.send(number)
    wrong = [
        (start, BLOCK + PAGE),
        (start + PAGE, BLOCK),
        (start, -PAGE & 2**64 - 1),
        (start + 1, PAGE),
        (start, PAGE + 1),
    ]
    for kind in (MOVE, DROP, PRIVATE):
        for run in wrong:
            assert attached.ask(1, kind, [run]) == -errno.EINVAL
        assert attached.ask(2, kind, [], count=RUNS + 1) == -errno.EINVAL
        assert attached.ask(3, kind, []) == 0
    for kind in (RELEASE + 1, 2**32 - 1):
        assert attached.ask(4, kind, [(start, PAGE)]) == -errno.EINVAL
    attached.free(5)
    attached.socket.send(struct.pack("I", 5))
    assert attached.pages(start, 16) == "p" * 8 + "-" * 8
    runs = [(start + page * PAGE, PAGE) for page in (0, 1, 3)]
    assert attached.ask(6, MOVE, [wrong[0], *runs]) == -errno.EINVAL, "of the first"
    assert attached.pages(start, 4) == "aapa"
    assert attached.state(5) == FREE
    assert running.ask("touch 2") == "3"


def test_a_killed_daemon_leaves_no_zeros(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    attached.take(start, 2)
    attached.protect(start + 4 * PAGE, 1)
    attached.vanish()
    assert running.ask("touch 0") == "SIGBUS"
    assert running.ask("store 1 5") == "SIGBUS"
    assert running.ask("touch 2") == "3"
    assert running.ask("store 3 9") == "9"
    assert running.ask("store 4 9") == "9", "write-protected"
    assert running.ask("touch 12") == "0"
    assert running.ask("store 13 8") == "8"
    assert running.end() == (
        "hmmfs run: The daemon is gone: touching memory that was on a device is a SIGBUS "
        "from now on.\n"
    )


def test_who_waited_for_a_killed_daemon_is_woken(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    attached.take(start, 1)
    os.write(attached._stopped, b"x")
    attached._thread.join()
    attached._serves = False
    running.tell("touch 0")
    assert attached.read_event()[0] == FAULT
    attached.vanish()
    assert running.hear() == "SIGBUS"


def test_a_daemon_killed_while_pages_are_dropped(daemon: Daemon, program: Path) -> None:
    """The helper is in madvise, which waits for the daemon; no page has a marker."""
    running = daemon.start(program)
    attached = daemon.accept().welcome()
    start = running.address()
    attached.register(start, 16)
    attached.request(7, DROP, [(start + PAGE, PAGE)])
    until(lambda: attached.state(7) == TAKEN)
    attached.vanish()
    until(lambda: attached.state(7) == DONE)
    assert running.ask("touch 1") == "SIGBUS"
    assert running.ask("touch 0") == "1"
    assert running.ask("touch 9") == "0"


def test_a_daemon_killed_while_pages_are_moved(daemon: Daemon, program: Path) -> None:
    """Others of the slot's pages may have no marker yet; those it had before do not matter."""
    running, attached, start = begin(daemon, program)
    attached.take(start + 2 * PAGE, 1)
    assert running.ask("touch 2") == "3"
    assert running.ask("discard 2") == "0"
    assert attached.state(0) == DONE
    assert attached.ask(1, MOVE, [(start, 2 * PAGE)]) == 0
    assert running.ask("touch 9") == "0"
    attached.vanish()
    assert running.ask("touch 0") == "SIGBUS"
    assert running.ask("touch 1") == "SIGBUS"
    assert running.ask("touch 2") == "0"
    assert running.ask("touch 3") == "4"
    assert running.ask("touch 10") == "0"


def test_forks_of_the_abandoned_see_no_zeros_either(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    attached.take(start, 2)
    attached.vanish()
    assert running.ask("touch 9") == "0"
    assert running.ask("fork") == "child"
    assert running.ask("touch 0") == "SIGBUS"
    assert running.ask("touch 2") == "3"
    assert running.ask("touch 10") == "0"
    assert running.ask("fork") == "child"
    assert running.ask("touch 1") == "SIGBUS"
    assert running.end().count("\n") == 1


def test_a_storm_among_the_abandoned(daemon: Daemon, program: Path) -> None:
    """A page that is away is a SIGBUS to threads and forks, whatever they do meanwhile."""
    running, attached, _ = begin(daemon, program)
    many = int(running.ask("many"))
    attached.register(many, 2048)
    attached.take(many, 2048)
    daemon.listener.close()
    attached.vanish()
    assert running.ask("storm") == "wrong 0"


def test_many_forks_of_the_abandoned(daemon: Daemon, program: Path) -> None:
    """More than are served at a time, one after the other."""
    running, attached, start = begin(daemon, program)
    attached.take(start, 1)
    daemon.listener.close()
    attached.vanish()
    assert running.ask("forks 600") == "600"
    assert running.ask("touch 0") == "SIGBUS"


def test_leaving_changes_nothing(daemon: Daemon, program: Path) -> None:
    running, attached, _ = begin(daemon, program)
    threads = Path(f"/proc/{running.process.pid}/task")
    assert len(list(threads.iterdir())) == 3
    attached.leave()
    until(lambda: len(list(threads.iterdir())) == 1)
    assert running.ask("touch 0") == "1"
    assert running.ask("touch 12") == "0"
    assert "uffd" not in Path(f"/proc/{running.process.pid}/smaps").read_text()
    assert running.ask("fork") == "child"
    assert running.ask("touch 3") == "4"
    assert running.end() == ""


def test_no_daemon(program: Path) -> None:
    environment = {**PRELOADING, "HMMFS_SOCKET": f"hmmfs-{uuid.uuid4().hex}"}
    running = Running([program], environment)
    assert running.hear().endswith(" 0"), "errno"
    assert running.ask("state") == "single 1 blocked 0"
    assert running.end() == (
        "hmmfs run: The daemon of its mount can't be reached (Connection refused): the program "
        "runs on without devices.\n"
    )


def test_a_refusal(daemon: Daemon, program: Path) -> None:
    for error, version, sentence in (
        (-errno.ENOSPC, VERSION, "refused it (No space left on device)"),
        (0, VERSION + 1, "speaks another language. Run the same hmmfs (Protocol error)"),
    ):
        running = daemon.start(program)
        daemon.accept().welcome(error, version)
        running.address()
        assert running.end() == (
            f"hmmfs run: The daemon of its mount {sentence}: the program runs on without devices.\n"
        )
    running = daemon.start(program)
    daemon.accept().vanish()
    running.address()
    assert "did not answer (Connection reset by peer)" in running.end()


def test_without_privilege_it_is_attached_all_the_same(daemon: Daemon, program: Path) -> None:
    running = Running(
        ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", "--", program],
        {**PRELOADING, "HMMFS_SOCKET": daemon.name},
    )
    daemon.running.append(running)
    daemon.accept().welcome()  # setpriv itself
    attached = daemon.accept().welcome()
    assert (attached.flags, attached.uffd) == (0, -1)
    running.address()
    threads = Path(f"/proc/{running.process.pid}/task")
    assert len(list(threads.iterdir())) == 2
    attached.vanish()
    until(lambda: len(list(threads.iterdir())) == 1)
    assert running.end() == (
        "hmmfs run: Devices can read and write its memory but not migrate it (Operation not "
        "permitted): that takes root or CAP_SYS_PTRACE, and Linux 6.8 or later.\n"
    )


# Has a filter refuse one system call, or one kind of clone, and becomes the program.
REFUSE = """
import ctypes, os, struct, sys
number, flag, refusal = int(sys.argv[1]), int(sys.argv[2]), 0x50000 | int(sys.argv[3])
code = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x45, 0, 1, flag),
        (6, 0, 0, refusal), (6, 0, 0, 0x7FFF0000)]
if not flag:
    code[2:4] = [(0x06, 0, 0, refusal)] * 2
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
all = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 6, ctypes.addressof(code)))
libc = ctypes.CDLL(None)
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.addressof(all), 0, 0):
    sys.exit("no filter")
environment = dict(pair.split("=", 1) for pair in sys.argv[5:])
os.execve(sys.argv[4], [sys.argv[4]], {**os.environ, **environment})
"""
CLOSE_RANGE, CLONE, MEMFD_CREATE, SOCKET = 436, 56, 319, 41  # x86-64
CLONE_VM, CLONE_FILES = 0x100, 0x400
NO_THREAD = "No thread can be started for the daemon's requests"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls")
@pytest.mark.parametrize(
    ("number", "flag", "refusal", "sentence"),
    [
        (CLOSE_RANGE, 0, errno.ENOSYS, f"{NO_THREAD} (Function not implemented)"),
        (CLONE, CLONE_FILES, errno.EAGAIN, f"{NO_THREAD} (Resource temporarily unavailable)"),
        (CLONE, CLONE_VM, errno.EPERM, f"{NO_THREAD} (Operation not permitted)"),
        (MEMFD_CREATE, 0, errno.EPERM, "no memory for talking to the daemon (Operation not perm"),
        (SOCKET, 0, errno.EPERM, "The daemon of its mount can't be reached (Operation not perm"),
    ],
    ids=["close_range", "guard", "helper", "memfd", "socket"],
)
def test_what_the_kernel_refuses_costs_a_sentence(
    daemon: Daemon, program: Path, number: int, flag: int, refusal: int, sentence: str
) -> None:
    """Also when the helper runs already: it is off its stack before that goes."""
    environment = {**PRELOADING, "HMMFS_SOCKET": daemon.name}
    settings = [f"{name}={value}" for name, value in environment.items()]
    wanted = [str(word) for word in (number, flag, refusal)]
    for _ in range(20 if number in (CLOSE_RANGE, CLONE) else 1):
        running = Running([sys.executable, "-c", REFUSE, *wanted, program, *settings], {})
        daemon.running.append(running)
        if number in (CLOSE_RANGE, CLONE):
            daemon.accept().welcome()
        assert running.hear().endswith(" 0"), "errno"
        assert running.ask("touch 3") == "4"
        tasks = Path(f"/proc/{running.process.pid}/task")
        until(lambda tasks=tasks: len(list(tasks.iterdir())) == 1)  # a thread takes a while to go
        said = running.end()
        assert sentence in said
        assert said.endswith("the program runs on without devices.\n")
        assert said.count("\n") == 1


def test_without_hmmfs_run_it_does_nothing(program: Path) -> None:
    running = Running([program], {**PRELOADING, "HMMFS_SOCKET": ""})
    running.address()
    assert len(os.listdir(f"/proc/{running.process.pid}/task")) == 1
    assert running.ask("open /dev/hmm_dmirror0") == "No such file or directory"
    assert running.end() == ""


def test_nothing_of_the_program_changes(daemon: Daemon, program: Path, tmp_path: Path) -> None:
    running = daemon.start(program)
    daemon.accept().welcome()
    assert running.hear().endswith(" 0"), "errno"
    assert running.ask("state") == "single 1 blocked 0"
    assert sorted(os.listdir(f"/proc/{running.process.pid}/fd")) == ["0", "1", "2"]
    (tmp_path / "file").write_text("text")
    assert running.ask(f"open {tmp_path / 'file'}") == "3 text"
    tasks = Path(f"/proc/{running.process.pid}/task")
    names = {"preloaded", "hmmfs helper", "hmmfs guard"}
    until(lambda: {path.read_text().strip() for path in tasks.glob("*/comm")} == names)
    for task in tasks.iterdir():
        kept = list((task / "fd").iterdir())
        assert len(kept) == (3 if int(task.name) == running.process.pid else 2)
    running.tell("leave")
    assert running.end() == "", "main's pthread_exit ends it"


def test_device_files_of_the_kernel_tests(daemon: Daemon, program: Path, tmp_path: Path) -> None:
    (tmp_path / "devices/dev1").mkdir(parents=True)
    (tmp_path / "devices/dev1/dmirror").write_text("mirror")
    running = daemon.start(program, HMMFS_DIR=str(tmp_path))
    daemon.accept().welcome()
    running.address()
    assert running.ask("open /dev/hmm_dmirror1") == "3 mirror"
    for other in ("/dev/hmm_dmirror", "/dev/hmm_dmirror01", "/dev/hmm_dmirror1x"):
        assert running.ask(f"open {other}") == "No such file or directory"
    script = "import os; print(open('/dev/hmm_dmirror1').read())"
    done = subprocess.run(
        ["python3", "-c", script],
        env={**os.environ, **PRELOADING, "HMMFS_SOCKET": "?", "HMMFS_DIR": tmp_path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "mirror\n"


def test_a_fork_is_attached(daemon: Daemon, program: Path) -> None:
    running, attached, start = begin(daemon, program)
    attached.take(start, 1)
    running.tell("fork")
    child = daemon.accept()
    assert child.flags == MIGRATES
    child.welcome()
    assert running.hear() == "child"
    assert child.credentials[0] not in (0, running.process.pid)
    assert running.ask("touch 0") == "1", "answered by the daemon, by the parent's descriptor"
    assert running.ask("state") == "single 1 blocked 0"
    assert child.ask(4, MOVE, []) == attached.ask(4, MOVE, []) == 0
    assert running.end() == ""


def test_a_program_that_takes_its_place_is_attached(daemon: Daemon, program: Path) -> None:
    running, _, _ = begin(daemon, program)
    running.tell("exec")
    again = daemon.accept().welcome()
    assert again.credentials[0] == running.process.pid
    assert running.hear().startswith("again ")
    assert again.ask(0, MOVE, []) == 0
    assert running.end() == ""


def test_mremap_of_what_is_registered_in_part(daemon: Daemon, program: Path) -> None:
    running = daemon.start(program)
    attached = daemon.accept().welcome()
    start = running.address()
    attached.register(start + 4 * PAGE, 4)
    attached.serve()
    attached.take(start + 5 * PAGE, 1)
    attached.away = {}
    answer = running.ask("grow")
    assert answer.isdigit(), answer
    assert running.ask("touch 4") == "5"
    assert running.ask("touch 20") == "0"


def test_helper_refers_to_nothing_else(tmp_path: Path) -> None:
    """It has no thread control block: a call of the C library could crash."""
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-fno-stack-protector"]
    command += [
        "-fvisibility=hidden",
        f"-I{ROOT / 'native'}",
        "-c",
        str(ROOT / "native/preload/helper.c"),
    ]
    subprocess.run([*command, "-o", tmp_path / "helper.o"], check=True)
    listed = subprocess.run(["nm", "-u", tmp_path / "helper.o"], capture_output=True, text=True)
    assert set(listed.stdout.split()) <= {"U", "_GLOBAL_OFFSET_TABLE_"}


def test_starting_takes_no_time(daemon: Daemon, program: Path) -> None:
    """A few milliseconds at the most, and most is this process."""
    stop = threading.Event()

    def welcome() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                daemon.accept().welcome()

    def run(environment: dict[str, str]) -> float:
        before = time.perf_counter()
        subprocess.run(
            [program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **environment},
            check=True,
        )
        return time.perf_counter() - before

    daemon.listener.settimeout(0.1)
    thread = threading.Thread(target=welcome)
    thread.start()
    try:
        bare = min(run({}) for _ in range(10))
        attached = min(run({**PRELOADING, "HMMFS_SOCKET": daemon.name}) for _ in range(10))
    finally:
        stop.set()
        thread.join()
    print(f"{(attached - bare) * 1e3:.1f} ms")
    assert attached - bare < 0.05
