"""A file for each program under ``hmmfs run`` by which the kernel tells that it dumps its core.

While it writes a dump, the kernel asks no userfaultfd: pages that devices have would be zeros. But
before it writes anything it looks at the first bytes of each file that is mapped, for those of
libraries. So every program maps a file of ours, which nobody else reads: the kernel waits for these
bytes until all pages are home. No signal handler and no setting of the system takes part in that,
and it is the same for dumps into files and through pipes.

Somebody else who reads them may hold the program's mmap_lock meanwhile, as a reader of
/proc/PID/mem does. Then a thread of the program that maps memory waits for that reader, and who
brings pages home waits for that thread. So such a reader is answered when nothing comes home any
more.

The files are of a file system of its own, mounted nowhere, so that no program keeps the real mount
busy. It knows as much of FUSE as opening and reading such files takes.
"""

from __future__ import annotations

import enum
import errno
import itertools
import logging
import os
import stat
import struct
from typing import Protocol

import trio

from hmmfs.common import linux
from hmmfs.errors import HmmfsError
from hmmfs.memory import PAGE_SIZE

log = logging.getLogger(__name__)


class Watched(Protocol):
    """A program, by what is done when the kernel or somebody reads its file."""

    async def come_home(self) -> bool:
        """All of its pages. Whether there may be another reader."""

    def left(self) -> int | None:
        """How many pages are not home yet; None: the reader waits for all, however long."""


class Opcode(enum.IntEnum):
    """linux/fuse.h, as all of these numbers and structures."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    BATCH_FORGET = 42


REQUEST = struct.Struct("<IIQQIIIHH")  # struct fuse_in_header
REPLY = struct.Struct("<IiQ")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
ATTR = struct.Struct("<6Q10I")
ENTRY_OUT = struct.Struct("<QQQQII")
ATTR_OUT = struct.Struct("<QII")
OPEN_OUT = struct.Struct("<QII")
READ_IN = struct.Struct("<QQ")
INVALIDATE = struct.Struct("<IiQQqq")  # a notification of FUSE_NOTIFY_INVAL_INODE
MAJOR, MINOR = 7, 31
NO_FLUSH = 1 << 5  # of FOPEN_*
TOP = 1  # the directory's number
PRIVATE = 2  # the page that the library may have; to read another one is to wait
UNSENT = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)  # these get no reply
REQUEST_BYTES = 1 << 16
READ_S = 0.1  # for a reader to see the page that it was given, or it would ask again at once
STALL_S = 2.0  # a block of 2 MiB comes home in a few ms; on a machine that is busy, in some more


class Dumps:
    """The file system. Everything runs on the trio thread but opening, which the loop answers."""

    def __init__(self) -> None:
        self._numbers = itertools.count(TOP + 1)
        self._watched: dict[int, Watched] = {}  # by the file's number
        self._fuse = self._top = -1
        self._nursery: trio.Nursery | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer the kernel, until cancelled; at once nothing, where such a mount can't be had."""
        try:
            self._mount()
        except OSError as error:
            log.info("Core dumps of programs lack what devices have: %s.", error.strerror)
            task_status.started()
            return
        try:
            await self._serve(task_status)
        finally:
            for fd in (self._fuse, self._top):
                os.close(fd)
            self._fuse = self._top = -1

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Requests are answered for as long as something of ours may wait for that."""
        async with trio.open_nursery() as loop:
            answering = await loop.start(self._answer_all)
            try:
                async with trio.open_nursery() as self._nursery:
                    task_status.started()
                    await trio.sleep_forever()
            finally:
                answering.cancel()

    async def _answer_all(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope(shield=True) as scope:
            task_status.started(scope)
            while True:
                await trio.lowlevel.wait_readable(self._fuse)
                try:
                    self._answer_one(os.read(self._fuse, REQUEST_BYTES))
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        log.warning("Core dumps lack what devices have: the files for that ended.")
                        return
                    # EAGAIN, EINTR, ENOENT: it was withdrawn.

    def _mount(self) -> None:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        mode = f"{stat.S_IFDIR:o}"
        options = {"fd": fuse, "rootmode": mode, "user_id": os.geteuid(), "group_id": os.getegid()}
        try:
            self._top = linux.detached_mount(
                "fuse", {name: str(value) for name, value in options.items()}
            )
        except OSError:
            os.close(fuse)
            raise
        self._fuse = fuse

    async def open(self, watched: Watched) -> int | None:
        """A descriptor of a new file: who reads its first pages waits for all to come home, each
        time. None: there are no such files."""
        if self._fuse < 0:
            return None
        number = next(self._numbers)
        self._watched[number] = watched

        def opened() -> int:
            return os.open(str(number), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._top)

        try:
            return await trio.to_thread.run_sync(opened)
        except OSError as error:
            self._watched.pop(number, None)
            log.warning("A core dump will lack what devices have: %s.", error.strerror)
            return None

    # ---- requests

    def _answer_one(self, request: bytes) -> None:
        _, code, unique, number, *_ = REQUEST.unpack_from(request)
        body = request[REQUEST.size :]
        if code == Opcode.READ:
            page = READ_IN.unpack_from(body)[1] // PAGE_SIZE
            assert self._nursery is not None
            if page == PRIVATE:
                self._reply(unique, bytes(PAGE_SIZE))
            else:
                self._nursery.start_soon(self._read, unique, number, page)
        elif code == Opcode.RELEASE:
            self._watched.pop(number, None)
            self._reply(unique)
        elif code not in UNSENT:
            try:
                self._reply(unique, self._answer(code, number, body))
            except HmmfsError as error:
                self._reply(unique, error=error.errno or errno.EIO)

    def _answer(self, code: int, number: int, body: bytes) -> bytes:
        match code:
            case Opcode.INIT:
                return INIT_OUT.pack(MAJOR, MINOR, 0, 0, 0, 0, PAGE_SIZE, 1, 0, 0, 0)
            case Opcode.LOOKUP:
                name = body.rstrip(b"\0")
                found = int(name) if name.isdigit() else 0
                if found not in self._watched:
                    raise HmmfsError(errno.ENOENT, "There is no such file.")
                return ENTRY_OUT.pack(found, 0, 0, 0, 0, 0) + _attributes(found)
            case Opcode.GETATTR:
                return ATTR_OUT.pack(0, 0, 0) + _attributes(number)
            case Opcode.OPEN:
                return OPEN_OUT.pack(number, NO_FLUSH, 0)
            case Opcode.FLUSH:
                return b""
        raise HmmfsError(errno.ENOSYS, "This file system only opens files, and reads them.")

    async def _read(self, unique: int, number: int, page: int) -> None:
        watched, again, waits = self._watched.get(number), True, True

        def reply() -> None:
            nonlocal waits
            if waits:
                self._reply(unique, bytes(PAGE_SIZE))
            waits = False

        async def reply_when_stalled(watched: Watched) -> None:
            await _stalled(watched)
            log.info("Somebody who reads a program's memory is answered before all of it is home.")
            reply()
            await self._forget(number, page)  # a dump may begin before the rest is home

        try:
            if watched is not None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reply_when_stalled, watched)
                    again = await watched.come_home()
                    nursery.cancel_scope.cancel()
        except Exception:
            log.exception("A program could not be brought home.")
        finally:
            reply()
        if again:
            await self._forget(number, page)

    async def _forget(self, number: int, page: int) -> None:
        """It was not a dump: have the next reader ask again. An error in place of this would have
        mlockall(2) read for ever. In a thread: it waits for who reads the page at the moment."""
        message = INVALIDATE.pack(INVALIDATE.size, 2, 0, number, page * PAGE_SIZE, PAGE_SIZE)
        await trio.sleep(READ_S)
        await trio.to_thread.run_sync(self._write, message)

    def _reply(self, unique: int, body: bytes = b"", error: int = 0) -> None:
        self._write(REPLY.pack(REPLY.size + len(body), -error, unique) + body)

    def _write(self, message: bytes) -> None:
        try:
            os.write(self._fuse, message)
        except OSError as error:  # who asked has ended, or nobody has it mapped
            if error.errno not in (errno.ENOENT, errno.EBADF):
                log.warning("The kernel refuses what it was told of a dump: %s.", error.strerror)


async def _stalled(watched: Watched) -> None:
    """Returns when no fewer pages are away than a while ago."""
    left = watched.left()
    while True:
        await trio.sleep(STALL_S)
        before, left = left, watched.left()
        if before is not None and left is not None and left >= before:
            return


def _attributes(number: int) -> bytes:
    kind = stat.S_IFDIR | 0o500 if number == TOP else stat.S_IFREG | 0o400
    size = 0 if number == TOP else (PRIVATE + 1) * PAGE_SIZE
    owner = (os.geteuid(), os.getegid())
    return ATTR.pack(number, size, 0, 0, 0, 0, 0, 0, 0, kind, 1, *owner, 0, PAGE_SIZE, 0)
