"""The process of one device: runs kernels on arrays over region memory, with page faults.

Started by the daemon with one end of a stream socket (see launcher.py). Each message is a pickle
with its length before it, and may carry a descriptor; every one gets an answer:

    ("map", ino, bytes, faults) + the pool
                                    ->  the address of the new window; without faults all of it is
                                        there at any time
    ("unmap", ino)                  ->  None
    ("launch", inos, payload, files)
                                    ->  (("done", pickle) or ("raised", one line, traceback),
                                        whether a window has parts mapped remotely,
                                        whether files of the mount are open)

The window is the device's VRAM itself, mapped and registered with userfaultfd: whatever is not
there is brought by the daemon while the access waits. A kernel can't tell. Or it is mapped
remotely, from the region's file in the mount (native/worker/remote.c): `files` says which that is.
Where a launch did so, all windows are to be unmapped before the next.
A process that a kernel left with files of the mount open is to end: it would keep the mount busy,
and the capacity of what is removed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from hmmfs.common import linux, user_files
from hmmfs.memory import Remote
from hmmfs.wire.launches import Array

HEADER = struct.Struct("<Q")
WORKING = b"/proc/self/cwd"
LINE, TRACE = 1000, 1 << 16  # characters of what an exception says, and of its traceback


class Windows:
    """The regions mapped here, by inode number."""

    def __init__(self, uffd: int) -> None:
        self._uffd = uffd
        self._at: dict[int, tuple[int, int]] = {}

    def map(self, ino: int, size: int, faults: bool, pool: int) -> int:
        address = linux.map_window(pool, size, self._uffd if faults else -1)
        self._at[ino] = (address, size)
        return address

    def unmap(self, ino: int) -> None:
        linux.unmap_window(*self._at.pop(ino))

    def array(self, ino: int, array: Array) -> np.ndarray[Any, Any]:
        if not math.prod(array.shape) * np.dtype(array.dtype).itemsize:  # nothing may be mapped
            return np.empty(array.shape, dtype=array.dtype)
        address, size = self._at[ino]
        memory = linux.memory_at(address + array.offset, size - array.offset)
        view: np.ndarray[Any, Any]
        view = np.ndarray(array.shape, dtype=array.dtype, buffer=memory)
        view.flags.writeable = array.use != "reads"
        return view

    def allow(self, remote: Remote, files: list[tuple[int, bytes, bool]]) -> None:
        for ino, path, writable in files:
            if ino in self._at:
                remote.allow(ino, *self._at[ino], path, writable=writable)


def function_of(target: Any) -> Callable[..., Any]:
    """A callable as it is, ``module:name``, or ``file.py:name``."""
    if callable(target):
        return target  # type: ignore[no-any-return]
    where, _, name = target.rpartition(":")
    module = user_files.load(where) if where.endswith(".py") else importlib.import_module(where)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def run(windows: Windows, inos: list[int], payload: bytes) -> tuple[str, ...]:
    """A kernel, and what became of it. Its arrays are gone when this returns."""
    worker = os.getpid()
    try:
        return _run(windows, inos, payload)
    finally:
        if os.getpid() != worker:
            os._exit(0)  # a child that the kernel forked: the daemon is not to hear of it


def _run(windows: Windows, inos: list[int], payload: bytes) -> tuple[str, ...]:
    try:
        parcel = pickle.loads(payload)
        sys.path += [entry for entry in parcel["path"] if entry not in sys.path]
        call = pickle.loads(parcel["call"])
        function = function_of(call["target"])
        arguments = [
            windows.array(inos[argument.index], argument)
            if isinstance(argument, Array)
            else argument
            for argument in call["arguments"]
        ]
        return ("done", pickle.dumps(function(*arguments)))  # type: ignore[return-value]
    except BaseException as error:
        line = " ".join(traceback.format_exception_only(error)[-1].split())
        return ("raised", _plain(line, LINE), _plain(traceback.format_exc(), TRACE))


def _plain(text: str, most: int) -> str:
    """Text that can be printed and sent, and no more of it than that."""
    text = text if len(text) <= most else f"{text[:most]}..."
    return text.encode(errors="backslashreplace").decode()


def holds(mount: bytes, first: bytes) -> bool:
    """Whether a file of the mount is open here, or the working directory is there. first: what the
    working directory was, which may lie below the mount that covers it now."""
    try:
        links = [b"/proc/self/fd/%s" % fd for fd in os.listdir(b"/proc/self/fd")]
        directory = os.readlink(WORKING)
    except OSError:  # a kernel has used up all descriptors
        return True
    paths = [] if directory == first else [directory]
    for link in links:
        with contextlib.suppress(FileNotFoundError):  # what listed them
            paths.append(os.readlink(link))
    return any(path == mount or path.startswith(mount + b"/") for path in paths)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return bytes(data)


def main() -> None:
    linux.signal_on_parent_death(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: the daemon decides
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Or the daemon would not hear of our end while a child of a kernel lives.
    os.register_at_fork(after_in_child=channel.close)
    uffd = linux.open_userfaultfd()
    socket.send_fds(channel, [HEADER.pack(0)], [uffd])
    windows = Windows(uffd)
    remote = Remote(int(sys.argv[2]), uffd)
    os.register_at_fork(after_in_child=remote.in_child)
    mount, first = os.fsencode(sys.argv[3]), os.readlink(WORKING)
    errors = os.dup(2)
    while True:
        header, fds, _, _ = socket.recv_fds(channel, HEADER.size, 1)
        if not header:
            return
        header += _exactly(channel, HEADER.size - len(header))
        kind, *rest = pickle.loads(_exactly(channel, HEADER.unpack(header)[0]))
        answer: object = None
        if kind == "map":
            ino, size, faults = rest
            answer = windows.map(ino, size, faults, fds[0])
        elif kind == "unmap":
            windows.unmap(*rest)
        else:
            inos, payload, files = rest
            os.dup2(errors, 2)  # whatever the last kernel has done to it
            windows.allow(remote, files)
            outcome = run(windows, inos, payload)
            mapped, left = remote.end(), holds(mount, first)
            if left:
                gc.collect()  # what only a cycle keeps open is not meant to stay
                left = holds(mount, first)
            answer = outcome, mapped, left
        for fd in fds:
            os.close(fd)
        data = pickle.dumps(answer)
        channel.sendall(HEADER.pack(len(data)) + data)
