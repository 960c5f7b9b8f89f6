"""devices/devN/dmirror on a real mount: ioctls reach the device, no matter who sends them, and see
the memory of the program that opened the file."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from conftest import Mount, MountFactory, fails, passes_through, takes_root

from hmmfs.program.dmirror import IOWR, LAYOUT, Number

PAGE = 4096


@dataclass
class Buffer:
    """Private anonymous memory of this process."""

    memory: mmap.mmap
    address: int

    def __setitem__(self, page: int, value: int) -> None:
        self.memory[page * PAGE : (page + 1) * PAGE] = bytes([value]) * PAGE

    def __getitem__(self, page: int) -> int:
        (value,) = set(self.memory[page * PAGE : (page + 1) * PAGE])
        return value


@contextmanager
def buffer(pages: int, flags: int = mmap.MAP_PRIVATE) -> Iterator[Buffer]:
    memory = mmap.mmap(-1, pages * PAGE, flags=flags | mmap.MAP_ANONYMOUS)
    pointer = ctypes.c_char.from_buffer(memory)
    yield Buffer(memory, ctypes.addressof(pointer))
    del pointer
    memory.close()


@contextmanager
def opened(mount: Mount, device: int = 0) -> Iterator[int]:
    fd = os.open(mount.path / f"devices/dev{device}/dmirror", os.O_RDWR)
    yield fd
    os.close(fd)


def ioctl(fd: int, number: int, address: int, pointer: int, pages: int) -> tuple[int, int]:
    """(cpages, faults)."""
    data = bytearray(LAYOUT.pack(address, pointer, pages, 91, 92))
    try:
        fcntl.ioctl(fd, IOWR + number, data, True)
    except OSError:
        assert LAYOUT.unpack(data)[3:] == (91, 92), "with an error the struct stays as it was"
        raise
    return LAYOUT.unpack(data)[3:]


def last_error(mount: Mount) -> str:
    return (mount.path / "devices/dev0/last_error").read_text()


@takes_root("only root is told which page is mapped, without which no entry holds")
def test_read_and_write(mount: Mount) -> None:
    with buffer(300) as memory, buffer(300) as mirror, opened(mount) as fd:
        memory[2], memory[299] = 5, 6
        assert ioctl(fd, Number.READ, memory.address, mirror.address, 300) == (300, 1)
        assert [mirror[page] for page in (0, 1, 2, 299)] == [0, 0, 5, 6]
        assert ioctl(fd, Number.READ, memory.address, mirror.address, 300) == (300, 0)
        mirror[0], mirror[1] = 7, 8
        assert ioctl(fd, Number.WRITE, memory.address, mirror.address, 2) == (2, 1)
        assert ioctl(fd, Number.WRITE, memory.address, mirror.address, 2) == (2, 0)
        assert [memory[page] for page in (0, 1, 2)] == [7, 8, 5]


def test_snapshot(mount: Mount) -> None:
    with buffer(4) as memory, buffer(1) as mirror, opened(mount) as fd:
        memory[0] = 1
        assert memory[1] == 0  # maps the page of zeros
        assert ioctl(fd, Number.SNAPSHOT, memory.address, mirror.address, 4) == (4, 0)
        assert mirror.memory[:4].hex(" ") == "02 11 00 00"
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(memory.address), 2 * PAGE, mmap.PROT_READ)
        ioctl(fd, Number.SNAPSHOT, memory.address, mirror.address, 4)
        assert mirror.memory[:4].hex(" ") == "01 11 00 00"
        fails(
            errno.EPERM,
            lambda: ioctl(fd, Number.WRITE, memory.address, mirror.address, 1),
        )
        assert memory[0] == 1
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(memory.address), PAGE, 0)
        ioctl(fd, Number.SNAPSHOT, memory.address, mirror.address, 2)
        assert mirror.memory[:2].hex(" ") == "ff 11"
        fails(errno.EFAULT, lambda: ioctl(fd, Number.READ, memory.address, mirror.address, 2))
        assert mirror.memory[:2].hex(" ") == "ff 11"


def test_shared_memory(mount: Mount) -> None:
    with buffer(4, mmap.MAP_SHARED) as memory, buffer(4) as mirror, opened(mount) as fd:
        mirror[3] = 9
        assert ioctl(fd, Number.WRITE, memory.address, mirror.address, 4) == (4, 1)
        assert memory[3] == 9
        fails(
            errno.ENOENT,
            lambda: ioctl(fd, Number.MIGRATE_TO_DEV, memory.address, mirror.address, 4),
        )
        fails(
            errno.EOPNOTSUPP,
            lambda: ioctl(fd, Number.EXCLUSIVE, memory.address, mirror.address, 4),
        )


@contextmanager
def mapped(mount: Mount, pages: int) -> Iterator[Buffer]:
    """A region of the mount, `a`, all of it."""
    with open(mount.region("a", pages * PAGE), "r+b") as file:
        memory = mmap.mmap(file.fileno(), pages * PAGE)
    pointer = ctypes.c_char.from_buffer(memory)
    yield Buffer(memory, ctypes.addressof(pointer))
    del pointer
    memory.close()


def test_a_mapped_region(mount: Mount) -> None:
    """Pages that the program would fault in from this daemon."""
    with mapped(mount, 64) as memory, buffer(64) as mirror, opened(mount) as fd:
        mount.submit(1, "fill a 7")
        here = memory.address, mirror.address
        assert ioctl(fd, Number.SNAPSHOT, *here, 64) == (64, 0)
        assert mirror.memory[:64] == bytes(64), "another device's"
        assert ioctl(fd, Number.READ, *here, 64) == (64, 1)
        assert mirror[63] == 7
        assert ioctl(fd, Number.READ, *here, 64) == (64, 0)
        assert ioctl(fd, Number.SNAPSHOT, *here, 64) == (64, 0)
        assert mirror.memory[:64] == b"\x02" * 64
        mirror[0] = 8
        assert ioctl(fd, Number.WRITE, *here, 1) == (1, 0)
        assert memory[0] == 8


def test_a_region_migrates(mount: Mount) -> None:
    """By file and offset, though it is shared: migrate, migrate_fault, migrate_shared."""
    with mapped(mount, 1200) as memory, buffer(1200) as mirror, opened(mount) as fd:
        memory[0], memory[1199] = 5, 6
        start = memory.address + 100 * PAGE
        here = memory.address, mirror.address
        assert ioctl(fd, Number.MIGRATE_TO_DEV, *here, 1200) == (1200, 0)
        assert [mirror[page] for page in (0, 1, 1199)] == [5, 0, 6]
        assert mount.residency("a")["pages_dev0"] == 1200
        assert ioctl(fd, Number.SNAPSHOT, *here, 1200) == (1200, 0)
        assert mirror.memory[:1200] == b"\x22" * 1200
        mirror[0] = 9
        assert ioctl(fd, Number.WRITE, start, mirror.address, 1) == (1, 0)
        assert mount.residency("a")["pages_dev0"] == 1200
        assert memory[100] == 9
        home = mount.residency("a")["pages_host"]
        assert 1 <= home < 1200
        assert ioctl(fd, Number.MIGRATE_TO_DEV, *here, 1200) == (1200, 0)
        assert ioctl(fd, Number.MIGRATE_TO_SYS, start, mirror.address, 50) == (50, 0)
        assert ioctl(fd, Number.MIGRATE_TO_SYS, *here, 1200) == (1150, 0)
        assert mount.residency("a")["pages_host"] == 1200
        fails(errno.EOPNOTSUPP, lambda: ioctl(fd, Number.EXCLUSIVE, *here, 1))


def test_a_region_and_two_devices(mount: Mount) -> None:
    with mapped(mount, 8) as memory, buffer(8) as mirror, opened(mount) as fd:
        here = memory.address, mirror.address
        memory[3] = 4
        with opened(mount, 1) as other:
            assert ioctl(other, Number.MIGRATE_TO_DEV, *here, 8) == (8, 0)
            fails(errno.ENOENT, lambda: ioctl(fd, Number.MIGRATE_TO_DEV, *here, 8))
            assert ioctl(fd, Number.MIGRATE_TO_SYS, *here, 8) == (0, 0)
            assert ioctl(fd, Number.READ, *here, 8) == (8, 1)
        assert mirror[3] == 4
        assert mount.residency("a")["pages_host"] == 8


@passes_through
def test_coherent_regions(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="8M", devices=2, type="coherent")
    with mapped(mount, 8) as memory, buffer(8) as mirror, opened(mount) as fd:
        for page in range(8):
            memory[page] = page
        here = memory.address, mirror.address
        with opened(mount, 1) as other:
            assert ioctl(fd, Number.MIGRATE_TO_DEV, *here, 4) == (4, 0)
            assert ioctl(other, Number.MIGRATE_TO_DEV, here[0] + 4 * PAGE, here[1], 2) == (2, 0)
        ioctl(fd, Number.SNAPSHOT, *here, 8)
        assert mirror.memory[:8].hex(" ") == "42 42 42 42 52 52 02 02"
        assert ioctl(fd, Number.READ, *here, 8)[0] == 8
        assert [mirror[page] for page in range(8)] == list(range(8))


def test_the_end_of_a_region(mount: Mount) -> None:
    with mapped(mount, 8) as memory, buffer(8) as mirror, opened(mount) as fd:
        here = memory.address, mirror.address
        memory[0] = 1
        os.truncate(mount.regions / "a", 2 * PAGE + 100)
        fails(errno.EFAULT, lambda: ioctl(fd, Number.READ, *here, 8))
        fails(errno.ENOENT, lambda: ioctl(fd, Number.MIGRATE_TO_DEV, *here, 8))
        assert ioctl(fd, Number.MIGRATE_TO_DEV, *here, 3) == (3, 0)
        assert mirror[0] == 1
        mirror[2] = 5
        assert ioctl(fd, Number.WRITE, *here, 3) == (3, 0)
        os.truncate(mount.regions / "a", 3 * PAGE)
        assert memory.memory[2 * PAGE : 2 * PAGE + 101] == b"\5" * 100 + b"\0"


@pytest.mark.parametrize("number", list(Number))
def test_ranges_that_are_none(mount: Mount, number: Number) -> None:
    with buffer(2) as memory, opened(mount) as fd:
        for address, pages in ((memory.address + 1, 1), (memory.address, 0), (1 << 63, 1 << 51)):
            fails(
                errno.EINVAL,
                lambda a=address, n=pages: ioctl(fd, number, a, memory.address, n),
            )


def test_addresses_that_are_none(mount: Mount) -> None:
    with buffer(2) as memory, opened(mount) as fd:
        here = memory.address
        fails(errno.EFAULT, lambda: ioctl(fd, Number.READ, PAGE, here, 1))
        fails(errno.EFAULT, lambda: ioctl(fd, Number.READ, here, PAGE, 1))
        fails(errno.EFAULT, lambda: ioctl(fd, Number.WRITE, here, PAGE, 1))
        fails(errno.EINVAL, lambda: ioctl(fd, Number.MIGRATE_TO_DEV, PAGE, here, 1))
        assert "0x1000" in last_error(mount)
        fails(errno.EINVAL, lambda: ioctl(fd, Number.MIGRATE_TO_SYS, 1 << 62, here, 1))
        assert ioctl(fd, Number.SNAPSHOT, 1 << 62, here, 1) == (1, 0)
        assert memory.memory[0] == 0xFF


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (IOWR + 10, errno.EINVAL),
        (IOWR + 0x80, errno.EINVAL),
        (IOWR + (8 << 16), errno.EINVAL),
        (IOWR - (8 << 16), errno.EINVAL),
        (IOWR - (1 << 30), errno.EINVAL),  # written by the program only
        (IOWR & ~(1 << 30), errno.EINVAL),  # read by the program only
        (ord("H") << 8, errno.EINVAL),
        (IOWR + (25 << 16), errno.ENOTTY),  # 65 bytes
        (IOWR + (1 << 8), errno.ENOTTY),
        (0x5401, errno.ENOTTY),  # isatty
        ((1 << 14) - 1 << 16 | 3 << 30, errno.ENOTTY),
    ],
)
def test_other_ioctls(mount: Mount, command: int, number: int) -> None:
    with opened(mount) as fd:
        fails(number, lambda: fcntl.ioctl(fd, command, bytearray(1 << 14), True))


def test_other_files(mount: Mount) -> None:
    mount.region("a", PAGE)
    command = LAYOUT.pack(PAGE, PAGE, 1, 0, 0)
    for name in (
        "regions/a",
        "regions",
        "version",
        "state/a/residency",
        "devices/dev0/submit",
        "devices/dev0/policy/prefetch",
        "trace_pipe",
    ):
        fd = os.open(mount.path / name, os.O_RDONLY)
        fails(errno.ENOTTY, lambda fd=fd: fcntl.ioctl(fd, IOWR, bytearray(command), True))
        fails(errno.ENOTTY, lambda fd=fd: fcntl.ioctl(fd, IOWR + (60 << 16), bytearray(256), True))
        os.close(fd)


def test_the_file(mount: Mount) -> None:
    path = mount.path / "devices/dev1/dmirror"
    assert path.stat().st_mode == stat.S_IFREG | 0o666
    with opened(mount) as fd:
        fails(errno.EINVAL, lambda: os.read(fd, 10))
        fails(errno.EINVAL, lambda: os.write(fd, b"x"))
        assert (
            last_error(mount) == "dmirror: There is nothing to read or write here. Use ioctl(2).\n"
        )


def test_a_child_sees_its_parents_memory(mount: Mount) -> None:
    with buffer(1) as memory, buffer(1) as mirror, opened(mount) as fd:
        memory[0] = 1
        child = os.fork()
        if not child:
            memory[0] = 2  # its own copy
            done = ioctl(fd, Number.READ, memory.address, mirror.address, 1)
            os._exit(mirror[0] if done[0] == 1 else 99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert mirror[0] == 0, "the child's buffer"


def test_threads(mount: Mount) -> None:
    """A request names its thread; the memory is the process's, whichever thread opened the file."""
    wrong: list[object] = []

    def work(number: int) -> None:
        with buffer(8) as memory, buffer(8) as mirror, opened(mount) as fd:
            for step in range(20):
                memory[step % 8] = number
                done = ioctl(fd, Number.READ, memory.address, mirror.address, 8)
                if done[0] != 8 or mirror[step % 8] != number:
                    wrong.append((number, step, done))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Opens the file and forks; then the parent ends or becomes another program, which closes its end of
# the pipe, and the child, which has the file still, says what its ioctls come to.
HEIR = """
import fcntl, os, struct, sys

fd = os.open(sys.argv[1], os.O_RDWR)
reader, writer = os.pipe()
if os.fork():
    if sys.argv[2] == "executes":
        os.execv("/bin/sleep", ["sleep", "1"])
    os._exit(0)
os.close(writer)
os.read(reader, 1)
for number in (0, 1, 2, 3, 4, 5):
    try:
        fcntl.ioctl(fd, 0xC0284800 + number, struct.pack("<5Q", 1 << 20, 1 << 20, 1, 0, 0))
        print("done")
    except OSError as error:
        print(error.errno)
"""


@pytest.mark.parametrize("end", ["ends", "executes"])
def test_memory_that_is_gone(mount: Mount, end: str) -> None:
    path = mount.path / "devices/dev0/dmirror"
    heir = (sys.executable, "-c", HEIR, str(path), end)
    done = subprocess.run(heir, capture_output=True, text=True, timeout=30, check=True)
    fault, invalid = errno.EFAULT, errno.EINVAL
    assert [int(word) for word in done.stdout.split()] == [fault, fault, *[invalid] * 4]
    assert "is gone" in last_error(mount)


def test_signals_that_are_not_deadly(mount: Mount) -> None:
    """An ioctl goes on, however many come."""
    came = []
    before = signal.signal(signal.SIGALRM, lambda *_: came.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with buffer(2000) as memory, buffer(2000) as mirror, opened(mount) as fd:
            for step in range(50):
                memory[step] = 7
                done = ioctl(fd, Number.READ, memory.address, mirror.address, 2000)
                assert done[0] == 2000
                assert mirror[step] == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert came


# READ of memory that only this very program could provide, and never does.
WAITS = """
import ctypes, fcntl, mmap, os, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
uffd = libc.syscall(323, os.O_CLOEXEC)
assert uffd >= 0
fcntl.ioctl(uffd, 0xC018AA3F, struct.pack("<3Q", 0xAA, 0, 0))
memory = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(uffd, 0xC020AA00, struct.pack("<4Q", address, 4096, 1, 0))
fd = os.open(sys.argv[1], os.O_RDWR)
print("ready", flush=True)
fcntl.ioctl(fd, 0xC0284809, struct.pack("<5Q", address, address + 4096, 1, 0, 0))
print("done", flush=True)
"""


@takes_root("a userfaultfd for accesses of the kernel")
@pytest.mark.parametrize("signals", [(), (signal.SIGINT, signal.SIGINT)])
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are of x86-64")
def test_a_deadly_signal(mount: Mount, signals: tuple[int, ...]) -> None:
    path = str(mount.path / "devices/dev0/dmirror")
    waiting = subprocess.Popen([sys.executable, "-c", WAITS, path], stdout=subprocess.PIPE)
    with waiting:
        assert waiting.stdout
        assert waiting.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        for number in signals:
            waiting.send_signal(number)
            time.sleep(0.1)
        assert waiting.poll() is None
        waiting.kill()
        assert waiting.wait(10) == -signal.SIGKILL
        assert waiting.stdout.read() == b""
