"""Copies from and to the memory of programs that call an ioctl, which may be on devices."""

from __future__ import annotations

import errno
import os
import weakref

from hmmfs.common import linux
from hmmfs.errors import HmmfsError


class Memory:
    """Of whatever program has a number at the moment."""

    def load(self, pid: int, address: int, buffer: memoryview) -> None:
        """HmmfsError: EFAULT, or what else is wrong."""
        self._copy(pid, address, buffer, store=False)

    def store(self, pid: int, address: int, buffer: memoryview) -> None:
        self._copy(pid, address, buffer, store=True)

    def _copy(self, pid: int, address: int, buffer: memoryview, *, store: bool) -> None:
        done, length = 0, len(buffer)
        while done < length:
            n = self._some(pid, address + done, buffer, done, store)
            if n <= 0:
                number = -n or errno.EFAULT
                raise HmmfsError(
                    number,
                    f"The memory of process {pid} at {address + done:#x} can't be had: "
                    f"{os.strerror(number)}.",
                )
            done += n

    def _some(self, pid: int, address: int, buffer: memoryview, done: int, store: bool) -> int:
        """Bytes, or -errno."""
        try:
            return linux.copy_memory(pid, address, buffer[done:], store=store)
        except OSError as error:
            return -(error.errno or errno.EFAULT)


class _Pinned(Memory):
    """Of the program that had the number when this was made. A daemon with more rights would reach
    by its number whatever program that is by now, such as a set-uid one. Nothing of it is away."""

    def __init__(self, pid: int, fd: int) -> None:
        self._pid, self._fd = pid, fd
        weakref.finalize(self, os.close, fd)

    def _some(self, pid: int, address: int, buffer: memoryview, done: int, store: bool) -> int:
        if pid != self._pid:
            return -errno.EPERM
        part = [buffer[done:]]
        try:
            return (os.pwritev if store else os.preadv)(self._fd, part, address)
        except OverflowError:
            return -errno.EFAULT
        except OSError as error:
            return -errno.EFAULT if error.errno == errno.EIO else -(error.errno or errno.EFAULT)


def of(pid: int) -> Memory:
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return Memory()  # we have no more rights than it
    pinned = _Pinned(pid, fd)
    return Memory() if is_ours(pid) else pinned


def is_ours(pid: int) -> bool:
    """Whether its user is this one, whatever rights it has given up."""
    try:
        with open(f"/proc/{pid}/status") as status:
            users = next(line.split()[1:5] for line in status if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return False
    return set(users) == {str(os.geteuid())}
