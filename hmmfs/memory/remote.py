"""What maps the host's pages in a device's worker."""

from __future__ import annotations

from hmmfs._native import ffi, lib
from hmmfs.errors import check


class Remote:
    """In a worker: the native thread that maps files of the mount over parts of its windows, for
    as long as a launch lasts."""

    def __init__(self, socket: int, uffd: int) -> None:
        out = ffi.new("struct hm_remote **")
        check(lib.hm_remote_start(socket, uffd, out), "Starting the mapper")
        self._handle = out[0]

    def allow(self, ino: int, address: int, size: int, path: bytes, *, writable: bool) -> None:
        ret = lib.hm_remote_allow(self._handle, ino, address, size, path, writable)
        check(ret, "Telling of a region's file")

    def in_child(self) -> None:
        """In a child that a kernel forked: it keeps no file of the mount open."""
        lib.hm_remote_child(self._handle)

    def end(self) -> bool:
        """Close the files. Whether something was mapped of any."""
        return bool(lib.hm_remote_end(self._handle))
