"""Who is taken in is who connected, one after the other."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator

import pytest
from conftest import Mount, MountFactory, moves_programs, wait_until
from test_programs import HELLO, MAGIC, SOME_S, VERSION, connect, memory_file

pytestmark = moves_programs

CLONE3 = 435
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def machine(mount_factory: MountFactory) -> Mount:
    return mount_factory(vram="8M", host="64M")


def say_hello(peer: socket.socket, control: int) -> None:
    """Of a program whose memory does not move."""
    socket.send_fds(peer, [HELLO.pack(MAGIC, VERSION, 0, 0, 1 << 32, 1 << 20, 1 << 32)], [control])


def answer(peer: socket.socket) -> int:
    """0, or an errno."""
    return -int(struct.unpack("<iI", peer.recv(64))[0])


def is_open(peer: socket.socket) -> bool:
    """Whether the daemon holds on to it."""
    return not select.select([peer], [], [], 0)[0]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def born(pid: int) -> bool:
    """Make a child of that number, which waits; False: there is one."""
    numbers = (ctypes.c_int * 1)(pid)
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
    # set_tid, set_tid_size, cgroup
    arguments = (ctypes.c_uint64 * 11)()
    arguments[4], arguments[8], arguments[9] = signal.SIGCHLD, ctypes.addressof(numbers), 1
    child = LIBC.syscall(CLONE3, arguments, ctypes.sizeof(arguments))
    if child == 0:
        while True:
            signal.pause()
    if child < 0 and ctypes.get_errno() == errno.EPERM:
        pytest.skip("choosing a process's number takes CAP_CHECKPOINT_RESTORE")
    return child == pid


def test_a_number_that_is_another_process_by_now(machine: Mount) -> None:
    """Who connected has ended, a child of it keeps the connection, and its number is given anew."""
    control = memory_file()
    heard, answers = os.pipe()
    name = (machine.path / "socket").read_text().strip()
    with stopped(machine.pid):
        first = os.fork()
        if first == 0:
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            peer.connect("\0" + name)
            say_hello(peer, control)
            if os.fork() == 0:
                os.write(answers, peer.recv(64))
            os._exit(0)
        os.waitpid(first, 0)
        other = born(first)
    try:
        ready, _, _ = select.select([heard], [], [], SOME_S)
        assert ready
        assert os.read(heard, 64) == struct.pack("<iI", -errno.ESRCH, VERSION)
        assert not (machine.path / f"state/@{first}").exists()
    finally:
        if other:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
        for fd in (control, heard, answers):
            os.close(fd)
    assert other, "somebody else was given the number"


def test_of_greetings_by_one_number_the_last_one_stays(machine: Mount) -> None:
    control = memory_file()
    state = machine.path / f"state/@{os.getpid()}"
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, control)
        old = stack.enter_context(connect(machine))
        say_hello(old, control)
        assert answer(old) == 0
        assert is_open(old)
        peers = [stack.enter_context(connect(machine)) for _ in range(4)]
        with stopped(machine.pid):
            for peer in peers:
                say_hello(peer, control)
        assert [answer(peer) for peer in peers] == [0] * 4
        assert wait_until(lambda: not is_open(old))
        assert wait_until(lambda: sum(map(is_open, peers)) == 1), [*map(is_open, peers)]
        assert state.exists()
        next(peer for peer in peers if is_open(peer)).close()
        assert wait_until(lambda: not state.exists())
