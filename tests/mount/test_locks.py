"""flock(2), fcntl(2) locks and those of open file descriptions, on regions and on control files.

The kernel keeps these by itself: the mount offers it none. That is looked at here all the same, for
an offer that nobody serves would have every locker wait, or fail.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE_S, Mount, fails, mounted, wait_until

F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
LOCKER = """
import fcntl, os, struct, sys
how, path = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
record = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 10, 5, 0)
if how == "flock":
    fcntl.flock(fd, fcntl.LOCK_EX)
else:
    fcntl.fcntl(fd, {"posix": fcntl.F_SETLK, "ofd": 37}[how], record)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", params=["private", "coherent"])
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    base = tmp_path_factory.mktemp(request.param)
    with mounted(base, PATIENCE_S * 5, vram="4M", host="8M", type=request.param) as one:
        yield one


@pytest.fixture(params=["region", "control file"])
def path(request: pytest.FixtureRequest, kind: Mount) -> Path:
    if request.param == "control file":
        return kind.path / "trace_size"
    found = kind.regions / "a"
    found.write_bytes(bytes(100))
    return found


@pytest.fixture
def fds(path: Path) -> Iterator[tuple[int, int]]:
    """Two open file descriptions."""
    both = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    yield both
    for fd in both:
        with contextlib.suppress(OSError):
            os.close(fd)


def lock(kind: int, start: int, length: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def holder(
    fd: int, command: int = fcntl.F_GETLK, start: int = 0, length: int = 0
) -> tuple[int, ...]:
    """(kind, start, length, pid) of the lock that keeps us from the range; F_UNLCK: none."""
    found = fcntl.fcntl(fd, command, lock(fcntl.F_WRLCK, start, length))
    kind, _, start, length, pid = struct.unpack("hhqqi4x", found)
    return (kind, start, length, pid) if kind != fcntl.F_UNLCK else (kind,)


@contextlib.contextmanager
def locked_elsewhere(how: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another program that has a lock on the file, or on bytes 10 to 14."""
    child = subprocess.Popen(
        [sys.executable, "-c", LOCKER, how, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        yield child
        assert child.stdin is not None
        child.stdin.close()


def test_flock(fds: tuple[int, int]) -> None:
    one, two = fds
    fcntl.flock(one, fcntl.LOCK_SH)
    fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fails(errno.EAGAIN, lambda: fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB))
    fcntl.flock(two, fcntl.LOCK_UN)
    fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fails(errno.EAGAIN, lambda: fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB))
    os.close(one)
    fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_flock_lives_with_the_description(path: Path, fds: tuple[int, int]) -> None:
    one, two = fds
    copy = os.dup(one)
    fcntl.flock(one, fcntl.LOCK_EX)
    os.close(one)
    fails(errno.EAGAIN, lambda: fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB))
    os.close(copy)
    fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_descriptions_have_locks(fds: tuple[int, int]) -> None:
    one, two = fds
    fcntl.fcntl(one, F_OFD_SETLK, lock(fcntl.F_WRLCK, 0, 10))
    fails(errno.EAGAIN, lambda: fcntl.fcntl(two, F_OFD_SETLK, lock(fcntl.F_RDLCK, 9, 1)))
    fcntl.fcntl(two, F_OFD_SETLK, lock(fcntl.F_WRLCK, 10, 10))
    assert holder(two, F_OFD_GETLK) == (fcntl.F_WRLCK, 0, 10, -1)
    fails(errno.EAGAIN, lambda: fcntl.fcntl(one, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 0, 5)))
    os.close(one)
    fcntl.fcntl(two, F_OFD_SETLK, lock(fcntl.F_WRLCK, 0, 0))


def test_processes_have_locks(path: Path, fds: tuple[int, int]) -> None:
    """Gone when the process closes any of its descriptors of the file."""
    one, two = fds
    fcntl.fcntl(one, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 0, 0))
    fcntl.fcntl(two, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 0, 0))
    assert _other_process(path) == errno.EAGAIN
    os.close(two)
    assert _other_process(path) == 0


def _other_process(path: Path) -> int:
    """What another process gets that tries for a lock without waiting."""
    script = (
        "import fcntl, os, sys\n"
        "try: fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError as error: sys.exit(error.errno)"
    )
    return subprocess.run([sys.executable, "-c", script, path]).returncode


@pytest.mark.parametrize("end", ["exit", "kill"])
@pytest.mark.parametrize("how", ["flock", "posix", "ofd"])
def test_across_programs(path: Path, how: str, end: str) -> None:
    """A lock of another program is seen, waited for, and gone with it."""
    fd = os.open(path, os.O_RDWR)
    tries: Callable[[int], object] = {
        "flock": lambda wait: fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)),
        "posix": lambda wait: fcntl.fcntl(
            fd, fcntl.F_SETLKW if wait else fcntl.F_SETLK, lock(fcntl.F_WRLCK, 0, 11)
        ),
        "ofd": lambda wait: fcntl.fcntl(
            fd, F_OFD_SETLKW if wait else F_OFD_SETLK, lock(fcntl.F_WRLCK, 0, 11)
        ),
    }[how]
    try:
        with locked_elsewhere(how, path) as child:
            fails(errno.EAGAIN, lambda: tries(False))
            if how != "flock":
                pid = child.pid if how == "posix" else -1
                assert holder(fd) == (fcntl.F_WRLCK, 10, 5, pid)
                fcntl.fcntl(fd, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 15, 5))
            waits = threading.Thread(target=tries, args=(True,))
            waits.start()
            waits.join(0.05)
            assert waits.is_alive()
            if end == "kill":
                child.kill()
            else:
                assert child.stdin is not None
                child.stdin.close()
            waits.join(20)
            assert not waits.is_alive()
    finally:
        os.close(fd)


class _Interrupted(Exception):
    pass


WAITS: dict[str, Callable[[int], object]] = {
    "flock": lambda fd: fcntl.flock(fd, fcntl.LOCK_EX),
    "posix": lambda fd: fcntl.fcntl(fd, fcntl.F_SETLKW, lock(fcntl.F_WRLCK, 0, 0)),
    "ofd": lambda fd: fcntl.fcntl(fd, F_OFD_SETLKW, lock(fcntl.F_WRLCK, 0, 0)),
}


@pytest.mark.parametrize("how", ["flock", "posix", "ofd"])
def test_a_signal_ends_the_wait(path: Path, how: str) -> None:
    def handler(number: int, frame: object) -> None:
        raise _Interrupted

    fd, before = os.open(path, os.O_RDWR), signal.signal(signal.SIGALRM, handler)
    try:
        with locked_elsewhere(how, path):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            began = time.monotonic()
            with pytest.raises(_Interrupted):
                WAITS[how](fd)
            assert time.monotonic() - began < 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.close(fd)


def test_two_that_wait_for_each_other(path: Path, fds: tuple[int, int]) -> None:
    """The kernel sees it: EDEADLK for the second."""
    script = (
        "import fcntl, os, struct, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "lock = lambda start: struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, start, 1, 0)\n"
        "fcntl.fcntl(fd, fcntl.F_SETLKW, lock(1))\n"
        "print('locked', flush=True)\n"
        "fcntl.fcntl(fd, fcntl.F_SETLKW, lock(0))\n"
    )
    fcntl.fcntl(fds[0], fcntl.F_SETLKW, lock(fcntl.F_WRLCK, 0, 1))
    command = [sys.executable, "-c", script, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        waits = re.compile(rf"-> POSIX .* {child.pid} ")
        assert wait_until(lambda: bool(waits.search(Path("/proc/locks").read_text())))
        fails(
            errno.EDEADLK,
            lambda: fcntl.fcntl(fds[0], fcntl.F_SETLKW, lock(fcntl.F_WRLCK, 1, 1)),
        )
        fcntl.fcntl(fds[0], fcntl.F_SETLK, lock(fcntl.F_UNLCK, 0, 0))
        assert child.wait(20) == 0
