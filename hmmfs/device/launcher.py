"""A device's worker process, as the daemon sees it: started when first needed, ended when a kernel
goes wrong, and started anew for the next.

One launch at a time; the executor sees to the order. A launch that is cancelled, takes too long or
touches what is not there ends the whole process: nothing less stops Python code. Pages stay where
they are, with what was last written.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import trio

from hmmfs.common import plain
from hmmfs.device.worker import HEADER
from hmmfs.errors import HmmfsError
from hmmfs.memory import BLOCK_BYTES, Core, Kind, Region
from hmmfs.memory.regions import show
from hmmfs.wire.launches import Launch, Use

log = logging.getLogger(__name__)

START_S = 30.0  # for python and numpy to come up on a loaded machine
END_S = 1.0  # for a process whose socket is closed to end by itself
ANSWER_BYTES = 1 << 30  # of what a kernel returned
ADDRESSES = 1 << 63  # a worker's are below


class Worker:
    """The worker of the device on `node`. regions: the directory of the mount where it finds the
    files that it maps remotely."""

    def __init__(self, core: Core, node: int, regions: str) -> None:
        self._core = core
        self._node = node
        self._regions = os.fsencode(regions)
        self._mount = os.path.dirname(regions)
        self._process: subprocess.Popen[bytes] | None = None
        # Bytes of a file that a kernel may write: what the daemon has is lifted for regions.
        self.file_size = resource.RLIM_INFINITY
        self._channel: trio.socket.SocketType | None = None
        self._windows: dict[int, int] = {}  # bytes mapped, by inode number
        self._running = False  # a launch
        self._failure: HmmfsError | None = None  # why we ended it
        self._number = 0  # of the process, which its faults carry

    @property
    def pid(self) -> int:
        """0: there is none."""
        return self._process.pid if self._process else 0

    async def launch(self, regions: Sequence[Region], launch: Launch) -> bytes:
        """Run a kernel to its end; the pickle of what it returned. The regions are in use."""
        self._running = True
        try:
            failed, self._failure = self._failure is not None, None
            ended = self._process is not None and self._process.poll() is not None
            if self._process is not None and (failed or ended or self._talks()):
                await self.end()  # killed since the last launch, which is not a fault of this one
            if self._process is None:
                await self._start()
            for region, use in zip(regions, launch.uses, strict=True):
                await self._map(region, use)
            check_sizes(regions, launch)  # others may have cut them until here
            inos = [region.ino for region in regions]
            message = ("launch", inos, launch.payload, self._files(regions, launch))
            answer = None
            with self._discarding(regions, launch), self._storing(regions, launch):
                with trio.move_on_after(launch.limit or float("inf")):
                    answer = await self._ask(message)
                if answer is None:
                    raise HmmfsError(
                        errno.ETIME, f"The kernel ran for more than {launch.limit:g} s, its limit."
                    )
                outcome, mapped, holds = self._ended(answer)
            if holds:
                log.info("A kernel left files of the mount open: its process is ended.")
                self._forget_windows()
                await self.end()
            elif mapped:
                await self._unmap_all()
            return self._outcome(outcome)
        except (_Raised, TooShort):
            raise  # the worker is as good as before
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.end()
            raise
        finally:
            self._running = False

    def _files(self, regions: Sequence[Region], launch: Launch) -> list[tuple[int, bytes, bool]]:
        """(inode number, path, whether it is stored to) of each region that may be mapped."""
        if self._core.kind is not Kind.PRIVATE:
            return []
        stored = {
            region.ino
            for region, use in zip(regions, launch.uses, strict=True)
            if use.use != "reads"
        }
        named = {region.ino: region.name for region in regions if region.nlink and not region.pid}
        return [
            (ino, os.path.join(self._regions, name), ino in stored) for ino, name in named.items()
        ]

    def fail(self, error: HmmfsError, number: int | None = None) -> None:
        """The kernel did what can't be served: end it, and say why. number: of the process that
        did; of one that has ended, the next is not to suffer."""
        if number not in (None, self._number):
            return
        if self._process is not None and self._failure is None:
            self._failure = error
            self._process.kill()

    async def reset(self) -> None:
        """End what runs, so that the next launch gets a new process."""
        if self._running:
            self.fail(HmmfsError(errno.ECANCELED, "The device was reset."))
        else:
            await self.end()

    def forget(self, ino: int) -> None:
        """The region is gone for good; its window goes before the next launch."""
        if ino in self._windows:
            self._windows[ino] = 0

    async def end(self) -> None:
        """Kill the process, if there is one, and take its windows down. Can't be cancelled."""
        process, self._process = self._process, None
        channel, self._channel = self._channel, None
        self._windows.clear()
        if process is None:
            return
        process.kill()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(process.wait)
            await trio.to_thread.run_sync(self._core.device_detach, self._node)
        if channel is not None:
            channel.close()

    # ---- the process

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        remote, mapper = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        )
        with theirs, mapper:
            fds = [theirs.fileno(), mapper.fileno()]
            # Not by -m, which warns of a module that its package has imported.
            program = "from hmmfs.device.worker import main; main()"
            command = [sys.executable, "-c", program, *map(str, fds), self._mount]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds)
        with contextlib.suppress(OSError):  # it has ended
            limits = (self.file_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, limits)
        ours.setblocking(False)
        self._channel = trio.socket.from_stdlib_socket(ours)
        with remote:
            await self._attach(remote)

    async def _attach(self, remote: socket.socket) -> None:
        assert self._channel is not None
        with trio.move_on_after(START_S):
            _, ancillary, _, _ = await self._channel.recvmsg(HEADER.size, socket.CMSG_LEN(4))
            if not ancillary:
                raise await self._death("could not be started (see the daemon's log)")
            uffd = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
            try:
                self._core.device_attach(self._node, uffd, remote.fileno())
            except BaseException:
                os.close(uffd)
                raise
            remote.detach()
            self._number = self._core.device_worker(self._node)
            return
        raise HmmfsError(errno.ETIME, f"The worker did not answer within {START_S:g} s.")

    async def _map(self, region: Region, use: Use) -> None:
        size = -(-max(region.size, use.end) // BLOCK_BYTES) * BLOCK_BYTES
        for ino in [ino for ino, mapped in self._windows.items() if not mapped]:
            await self._unmap(ino)
        if self._windows.get(region.ino, 0) >= size:
            return
        if region.ino in self._windows:
            await self._unmap(region.ino)
        pool = self._core.pool_descriptor(region.ino, self._node)
        faults = region.pid != 0 or self._core.kind is Kind.PRIVATE
        try:
            address = await self._ask(("map", region.ino, size, faults), pool)
        finally:
            os.close(pool)
        if type(address) is not int or not 0 < address < ADDRESSES:
            raise _spoilt()
        if faults:
            self._core.device_map(self._node, region.ino, address, size)
        self._windows[region.ino] = size

    @contextlib.contextmanager
    def _discarding(self, regions: Sequence[Region], launch: Launch) -> Iterator[None]:
        """Meanwhile what the kernel only writes is not copied to it, where anything is copied."""
        if self._core.kind is not Kind.PRIVATE:
            yield
            return
        needed = {use.region for use in launch.uses if use.use != "writes"}
        written: dict[int, int] = {}
        for region, use in zip(regions, launch.uses, strict=True):
            if use.region not in needed and not region.pid:
                written[region.ino] = max(use.end, written.get(region.ino, 0))
        for ino, end in written.items():
            self._core.device_discard(self._node, ino, end)
        try:
            yield
        finally:
            for ino in written.keys() & self._windows.keys():
                self._core.device_discard(self._node, ino, 0)

    @contextlib.contextmanager
    def _storing(self, regions: Sequence[Region], launch: Launch) -> Iterator[None]:
        """Nobody sees a kernel's stores to memory that it shares with programs. What it may have
        stored to counts as modified when it ends."""
        try:
            yield
        finally:
            if self._core.kind is not Kind.PRIVATE:
                for region, use in zip(regions, launch.uses, strict=True):
                    if use.use != "reads" and not region.pid:
                        region.modified(stored=True)

    async def _unmap(self, ino: int) -> None:
        del self._windows[ino]
        self._core.device_unmap(self._node, ino)
        await self._ask(("unmap", ino))

    def _forget_windows(self) -> list[int]:
        """Some window has parts that are mapped from the mount. To unmap such a part the kernel
        waits for what is being written back to the file, with the worker's mmap_lock held. Such a
        WRITE may wait for a frozen block, and the mover that froze it for mmap_lock, to protect
        pages in any window. So the core has none meanwhile."""
        inos = list(self._windows)
        self._windows.clear()
        for ino in inos:
            self._core.device_unmap(self._node, ino)
        return inos

    async def _unmap_all(self) -> None:
        for ino in self._forget_windows():
            await self._ask(("unmap", ino))

    def _talks(self) -> bool:
        """Whether the worker has said what nobody has asked, or closed its socket."""
        assert self._channel is not None
        ready = select.poll()  # select(2) takes no descriptor above 1023
        ready.register(self._channel, select.POLLIN)
        return bool(ready.poll(0))

    async def _ask(self, message: object, fd: int | None = None) -> Any:
        assert self._channel is not None
        data = pickle.dumps(message)
        data = HEADER.pack(len(data)) + data
        ancillary = []
        if fd is not None:
            rights = fd.to_bytes(4, sys.byteorder)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        try:
            sent = await self._channel.sendmsg([data], ancillary)
            while sent < len(data):
                sent += await self._channel.send(data[sent:])
            size = HEADER.unpack(await self._exactly(HEADER.size))[0]
            if size > ANSWER_BYTES:
                raise _spoilt()
            return plain.loads(await self._exactly(size))
        except plain.NotPlain:
            raise _spoilt() from None
        except (BrokenPipeError, ConnectionResetError):
            raise await self._death("ended") from None

    async def _exactly(self, size: int) -> bytes:
        assert self._channel is not None
        data = bytearray()
        while len(data) < size:
            piece = await self._channel.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise await self._death("ended in the kernel")
            data += piece
        return bytes(data)

    async def _death(self, how: str) -> HmmfsError:
        """What to say of a worker whose socket is closed."""
        if self._failure is not None:
            return self._failure
        assert self._process is not None
        code = await trio.to_thread.run_sync(_ended, self._process)
        if code is None:
            how = "closed its socket to the daemon"
        elif code == -signal.SIGBUS:
            how = (
                "was ended by SIGBUS, as happens past the end of a region or where the host is full"
            )
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        elif code:
            how = f"{how}, with exit status {code}"
        return HmmfsError(errno.EREMOTEIO, f"The worker {how}; the next launch gets a new one.")

    @staticmethod
    def _ended(answer: Any) -> tuple[tuple[Any, ...], bool, bool]:
        """What became of a launch, whether it mapped anything remotely, and whether it left files
        of the mount open. The kernel ran in the process that says so, and may have written there
        what it likes."""
        match answer:
            case [
                ["done", bytes()] | ["raised", str(), str()] as outcome,
                bool() as mapped,
                bool() as holds,
            ]:
                return tuple(outcome), mapped, holds
        raise _spoilt()

    @staticmethod
    def _outcome(answer: tuple[Any, ...]) -> bytes:
        if answer[0] == "done":
            return bytes(answer[1])
        raise _Raised(answer[1], answer[2])


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status of a process whose socket is closed. None: it went on, and was killed."""
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _spoilt() -> HmmfsError:
    return HmmfsError(
        errno.EREMOTEIO,
        "The kernel wrote to its worker's socket what the daemon can't serve; the next launch gets "
        "a new worker.",
    )


class TooShort(HmmfsError):
    """A region ends before what a launch uses of it."""


def check_sizes(regions: Sequence[Region], launch: Launch) -> None:
    """TooShort (ERANGE): a region ends before its use does."""
    for region, use in zip(regions, launch.uses, strict=True):
        if not use.pid and use.end > region.size:
            raise TooShort(
                errno.ERANGE,
                f"Region {show(use.region)} has {region.size} bytes, {use.end} are used: grow it.",
            )


class _Raised(HmmfsError):
    """The kernel raised: its line, and the traceback for the log."""

    def __init__(self, line: str, trace: str) -> None:
        super().__init__(errno.EREMOTEIO, line)
        self.trace = trace
