"""Copies from and to the memory of programs that call an ioctl, which may be on devices."""

from __future__ import annotations

import ctypes
import errno
import os
import weakref

from hmmfs.errors import HmmfsError

Bytes = ctypes.Array[ctypes.c_char]


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _vectors = (ctypes.POINTER(_Vector), ctypes.c_ulong)
    _call.argtypes = [ctypes.c_int, *_vectors, *_vectors, ctypes.c_ulong]
    _call.restype = ctypes.c_ssize_t


class Memory:
    """Of whatever program has a number at the moment."""

    def load(self, pid: int, address: int, buffer: Bytes) -> None:
        """HmmfsError: EFAULT, or what else is wrong."""
        self._copy(pid, address, buffer, store=False)

    def store(self, pid: int, address: int, buffer: Bytes) -> None:
        self._copy(pid, address, buffer, store=True)

    def _copy(self, pid: int, address: int, buffer: Bytes, *, store: bool) -> None:
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

    def _some(self, pid: int, address: int, buffer: Bytes, done: int, store: bool) -> int:
        """Bytes, or -errno."""
        call = _libc.process_vm_writev if store else _libc.process_vm_readv
        length = len(buffer) - done
        here = _Vector(ctypes.addressof(buffer) + done, length)
        n = int(call(pid, here, 1, _Vector(address, length), 1, 0))
        return n if n >= 0 else -ctypes.get_errno()


class _Pinned(Memory):
    """Of the program that had the number when this was made. A daemon with more rights would reach
    by its number whatever program that is by now, such as a set-uid one. Nothing of it is away."""

    def __init__(self, pid: int, fd: int) -> None:
        self._pid, self._fd = pid, fd
        weakref.finalize(self, os.close, fd)

    def _some(self, pid: int, address: int, buffer: Bytes, done: int, store: bool) -> int:
        if pid != self._pid:
            return -errno.EPERM
        part = [memoryview(buffer).cast("B")[done:]]
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
