"""What a program under `hmmfs run` and the daemon say to each other at first, and who it is:
the twin of native/preload/preload.h."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

import trio

from hmmfs.errors import HmmfsError
from hmmfs.memory import BLOCK_BYTES
from hmmfs.memory.programs import Attachment

HELLO = struct.Struct("<QIIQQQQ")
WELCOME = struct.Struct("<iI")
MAGIC, VERSION = 0x68656C6C6F6D6D68, 2
MIGRATES, LEAVES = 1, 2
CREDENTIALS = struct.Struct("3i")
SO_PEERPIDFD = 77  # Linux 6.5, on all machines that have the library of hmmfs run


def credentials(peer: trio.socket.SocketType) -> tuple[int, int]:
    """The pid of who connected, 0 if it is in no namespace of ours, and its user."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    assert isinstance(raw, bytes)
    pid, uid, _ = CREDENTIALS.unpack(raw)
    return pid, uid


async def hear(peer: trio.socket.SocketType) -> tuple[bytes, list[int]]:
    """A hello, or whatever is sent, and the descriptors with it, which the caller closes."""
    data, ancillary, _, _ = await peer.recvmsg(
        HELLO.size + 1, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC
    )
    return data, [
        fd
        for level, kind, rights in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (fd,) in struct.iter_unpack("i", rights[: len(rights) // 4 * 4])
    ]


async def welcome(peer: trio.socket.SocketType, error: int, files: list[int]) -> None:
    """error: -errno, or 0. Raises OSError: it has gone."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(files)}i", *files))
    await peer.sendmsg([WELCOME.pack(error, VERSION)], [rights] if files else [])


def leaves(data: bytes, fds: list[int]) -> bool:
    """Whether it is the hello of a program that is not to be attached any longer."""
    if len(data) != HELLO.size or fds:
        return False
    magic, version, flags, *_ = HELLO.unpack(data)
    return bool((magic, version, flags) == (MAGIC, VERSION, LEAVES))


def checked(data: bytes, fds: list[int]) -> Attachment:
    """What a hello says; HmmfsError: it is none."""
    if len(data) != HELLO.size:
        raise HmmfsError(errno.EPROTO, f"{len(data)} bytes are not a hello of hmmfs run.")
    magic, version, flags, least, own, own_bytes, scratch = HELLO.unpack(data)
    if magic != MAGIC or version != VERSION:
        raise HmmfsError(
            errno.EPROTO,
            f"Its library speaks version {version}, and this daemon {VERSION}. Use one release.",
        )
    if len(fds) != 1 + (flags & MIGRATES) or own + own_bytes >= 1 << 64:
        raise HmmfsError(errno.EPROTO, f"A hello came with {len(fds)} descriptors.")
    if flags & MIGRATES and (scratch % BLOCK_BYTES or not own <= scratch < own + own_bytes):
        raise HmmfsError(errno.EPROTO, "A hello names a scratch that is not its own.")
    uffd = -1
    if flags & MIGRATES:
        uffd = fds[1]
        if os.readlink(f"/proc/self/fd/{uffd}") != "anon_inode:[userfaultfd]":
            raise HmmfsError(errno.EPROTO, "A hello came without a userfaultfd.")
    return Attachment(
        uffd=uffd, control=fds[0], least=least, own=own, own_bytes=own_bytes, scratch=scratch
    )


def open_pidfd(pid: int) -> int:
    """ESRCH: there is no such process."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise HmmfsError(error.errno or errno.ESRCH, f"There is no process {pid}.") from None


def pidfd_of(peer: trio.socket.SocketType, pid: int) -> int:
    """A pidfd of who connected, which need not be who has that number now. Before Linux 6.5 it may
    be another, if a child of the first has kept the connection."""
    try:
        return peer.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise ended(pid) from None
    return open_pidfd(pid)


def has_ended(peer: trio.socket.SocketType, pidfd: int) -> bool:
    """Or has become another program: its library's connection is closed then."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(peer.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def ended(pid: int) -> HmmfsError:
    return HmmfsError(errno.ESRCH, f"Process {pid} has ended, or runs another program.")
