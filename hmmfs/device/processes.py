"""Programs' memory as devices reach it from afar: by process_vm_readv(2), and /proc/PID.

Not by /proc/PID/mem, where a page that a userfaultfd has to bring is an error. `maps` and `pagemap`
stay with the address space that they were opened in, so a program that ended or became another is
noticed, whoever has its number then.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from hmmfs.device.maps import Maps, open_proc
from hmmfs.device.processes_protocol import Look, Process, State
from hmmfs.errors import HmmfsError
from hmmfs.memory import PAGE_SIZE

T = TypeVar("T")

# The words of /proc/PID/pagemap.
FRAME = np.uint64((1 << 55) - 1)
PRESENT, SWAPPED, EXCLUSIVE = (np.uint64(1 << bit) for bit in (63, 62, 56))
THREADS = 64  # a program's memory may be another file system's, which takes its time


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _vectors = (ctypes.POINTER(_Vector), ctypes.c_ulong)
    _call.argtypes = [ctypes.c_int, *_vectors, *_vectors, ctypes.c_ulong]
    _call.restype = ctypes.c_ssize_t


def _copy(pid: int, address: int, buffer: ctypes.Array[ctypes.c_char], *, store: bool) -> None:
    call = _libc.process_vm_writev if store else _libc.process_vm_readv
    done, length = 0, len(buffer)
    while done < length:
        here = _Vector(ctypes.addressof(buffer) + done, length - done)
        n = call(pid, here, 1, _Vector(address + done, length - done), 1, 0)
        if n <= 0:
            number = ctypes.get_errno() if n else errno.EFAULT
            raise HmmfsError(
                number,
                f"The memory of process {pid} at {address + done:#x} can't be had: "
                f"{os.strerror(number)}.",
            )
        done += n


def _zero_frame() -> np.uint64:
    """The page of zeros; 0 for who may not know."""
    page = mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(here := ctypes.c_char.from_buffer(page))
    here.value  # noqa: B018  # a load maps it
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        word = np.frombuffer(os.pread(file.fileno(), 8, address // PAGE_SIZE * 8), np.uint64)[0]
    del here
    page.close()
    return np.uint64(word & FRAME)


class RemoteProcess:
    """A program whose pages stay where they are."""

    def __init__(self, pid: int, threads: trio.CapacityLimiter) -> None:
        self.pid = pid
        self.migrates = False
        self._threads = threads
        self._zero = _zero_frame()
        self._maps = Maps(pid)
        self._pagemap = open_proc(pid, "pagemap")
        weakref.finalize(self, os.close, self._pagemap)

    async def _apart(self, call: Callable[[], T]) -> T:
        """In a thread, which may stay for as long as the memory makes it wait."""
        self.check()
        result = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        self.check()
        return result

    def check(self) -> None:
        """ESRCH: the address space is gone."""
        if not os.pread(self._pagemap, 8, 0):
            raise HmmfsError(errno.ESRCH, f"Process {self.pid} has ended, or runs another program.")

    async def look(self, address: int, pages: int) -> Look:
        return await self._apart(lambda: self._look(address, pages))

    def _look(self, address: int, pages: int) -> Look:
        words = np.zeros(pages, np.uint64)
        raw = os.pread(self._pagemap, pages * 8, address // PAGE_SIZE * 8)
        words[: len(raw) // 8] = np.frombuffer(raw, np.uint64)
        present = words & PRESENT != 0
        pfn = np.where(present, words & FRAME, np.uint64(0))
        state = np.zeros(pages, np.uint16)
        for one in self._maps.read(address, address + pages * PAGE_SIZE):
            first, end = max(0, one.start - address), one.end - address
            state[first // PAGE_SIZE : end // PAGE_SIZE] = one.state
        for bits, there in (
            (State.PRESENT, present),
            (State.SWAPPED, words & SWAPPED != 0),
            (State.EXCLUSIVE, words & EXCLUSIVE != 0),
            (State.ZERO, present & (pfn == self._zero) & (pfn != 0)),
        ):
            state |= np.where(there, np.uint16(bits), np.uint16(0))
        return Look(state, pfn)

    async def read(self, node: int, address: int, length: int) -> bytes:
        return await self._apart(lambda: _load(self.pid, address, length))

    async def write(self, node: int, address: int, data: bytes) -> None:
        look = await self.look(address, -(-len(data) // PAGE_SIZE))
        if (look.all(State.VMA) & ~look.all(State.WRITE)).any():
            raise HmmfsError(errno.EPERM, f"Process {self.pid} may not store at {address:#x}.")
        await self._apart(lambda: _store(self.pid, address, data))

    async def migrate(self, node: int, address: int, pages: int) -> None:
        """Nothing moves."""

    async def set_exclusive(self, node: int, address: int, pages: int) -> None:
        """Nor does a device get anything for itself."""

    async def exclusive(self, node: int, address: int, pages: int) -> NDArray[np.bool_]:
        return np.zeros(pages, np.bool_)

    async def copy_to_user(self, pid: int, address: int, data: bytes) -> None:
        await self._apart(lambda: _store(pid, address, data))

    async def copy_from_user(self, pid: int, address: int, length: int) -> bytes:
        return await self._apart(lambda: _load(pid, address, length))

    async def evict_all(self, node: int) -> None:
        """There is nothing on any device."""


def _load(pid: int, address: int, length: int) -> bytes:
    buffer = ctypes.create_string_buffer(length)
    _copy(pid, address, buffer, store=False)
    return buffer.raw


def _store(pid: int, address: int, data: bytes) -> None:
    _copy(pid, address, ctypes.create_string_buffer(data, len(data)), store=True)


class RemoteProcesses:
    """Those whose memory somebody has a device's file open for."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(THREADS)
        self._by_pid: weakref.WeakValueDictionary[int, RemoteProcess] = (
            weakref.WeakValueDictionary()
        )

    def get(self, pid: int) -> Process | None:
        found = self._by_pid.get(pid)
        try:
            if found is not None:
                found.check()
        except HmmfsError:
            return None
        return found

    async def open(self, pid: int) -> Process:
        found = self.get(pid)
        if found is None:
            found = self._by_pid[pid] = RemoteProcess(pid, self._threads)
        return found

    def all(self) -> list[Process]:
        return list(self._by_pid.values())
