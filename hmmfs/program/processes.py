"""Programs whose own memory devices work on: how they come, what devices do with it, how they go.

The library in a program under `hmmfs run` connects to the mount's socket and sends its userfaultfd;
native/program/process.c does the rest. Of any other program a device can reach the memory, but
nothing of it moves.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import (
    BLOCK_BYTES,
    BLOCK_PAGES,
    PAGE_SIZE,
    Core,
    Job,
    JobFlag,
    JobKind,
    Region,
    RegionTable,
    programs,
)
from hmmfs.memory.programs import Attachment, Look
from hmmfs.program import greeting, user_memory
from hmmfs.program import protocol as processes_protocol
from hmmfs.program.dumping import Dumping
from hmmfs.program.greeting import ended, open_pidfd
from hmmfs.service.blocks import Blocks, Span, spans

log = logging.getLogger(__name__)

T = TypeVar("T")

HELLO_S = 5.0  # for a program to say hello
BACKLOG = 128
REFUSALS_S = 1.0  # no more than one is logged in this time
THREADS = 64  # accesses under way; a program's memory may be another file system's, and slow
FORGET_TRIES = 100
HOME_TRIES = 100  # what was on its way to a device when this began is there at the second
_NUMBER = r"(?:0[xX][0-9A-Fa-f]{1,16}|\d{1,19})"
COMMAND = re.compile(
    r"(?P<verb>attach|detach)\s+(?P<device>dev\d{1,4})"
    rf"|(?P<place>forget)\s+(?P<address>{_NUMBER})\+(?P<length>{_NUMBER})"
    r"|(?P<home>home)(?:\s+(?P<once>once))?",
    re.ASCII,
)


class Process:
    """One program's address space. Addresses and lengths are whole pages, but for copies and for
    read and write. Every method raises HmmfsError: ESRCH once the program is gone."""

    def __init__(
        self,
        core: Core,
        region: Region,
        pid: int,
        blocks: Blocks,
        threads: trio.CapacityLimiter,
        background: Callable[[Callable[[], Awaitable[None]]], None],
        *,
        migrates: bool,
    ) -> None:
        """`background` starts a task that nobody waits for."""
        self._core = core
        self._background = background
        self._blocks = blocks
        self._threads = threads
        self.region = region
        self.pid = pid
        self.migrates = migrates
        self.gone = False
        self.detached: set[int] = set()  # nodes of devices that may not use it
        self._memory = user_memory.of(pid)

    async def look(self, address: int, pages: int) -> Look:
        """Faults nothing in, and changes nothing."""
        return await self._apart(lambda: programs.look(self._core, self.region, address, pages))

    async def read(self, node: int, address: int, length: int) -> bytearray:
        """As the device sees it, without anything coming to it. EFAULT: something there can't be
        read."""
        data = bytearray(length)
        await self._access(JobKind.READ, node, address, data)
        return data

    async def write(self, node: int, address: int, data: bytes) -> None:
        """EPERM: a mapping may not be stored to. EFAULT: nothing is mapped."""
        await self._access(JobKind.WRITE, node, address, bytearray(data))

    async def migrate(self, node: int, address: int, pages: int) -> None:
        """To a device, where holes become zeros, or to the host. Pages that can't move stay."""
        if not self.migrates:
            return
        for span in self._spans(address, pages * PAGE_SIZE):
            first = span.offset // PAGE_SIZE
            count = span.length // PAGE_SIZE
            job = Job(
                JobKind.MIGRATE,
                self.region.ino,
                span.block,
                node=node,
                flags=JobFlag.ASKED,
                first=first,
                count=count,
            )
            await self._blocks.run(job)

    async def set_exclusive(self, node: int, address: int, pages: int) -> None:
        """Mark pages of the device as its alone; the mark goes when the page goes."""
        for span in self._spans(address, pages * PAGE_SIZE):
            wanted = np.zeros(BLOCK_PAGES, np.bool_)
            wanted[span.offset // PAGE_SIZE :][: span.length // PAGE_SIZE] = True
            programs.set_exclusive(self._core, self.region, node, span.block, wanted)

    async def set_huge(self, node: int, address: int) -> None:
        block = self.offset(address, BLOCK_BYTES) // BLOCK_BYTES
        programs.set_huge(self._core, self.region, node, block)

    async def exclusive(self, node: int, address: int, pages: int) -> NDArray[np.bool_]:
        parts = [
            programs.exclusive(self._core, self.region, node, span.block)[
                span.offset // PAGE_SIZE :
            ][: span.length // PAGE_SIZE]
            for span in self._spans(address, pages * PAGE_SIZE)
        ]
        return np.concatenate(parts)

    async def copy_to_user(self, pid: int, address: int, data: bytes | bytearray) -> None:
        """Into the memory of a program, which need not be this one. EFAULT."""
        await self._apart(lambda: self._memory.store(pid, address, memoryview(data)))

    async def copy_from_user(self, pid: int, address: int, length: int) -> bytes:
        buffer = bytearray(length)
        await self._apart(lambda: self._memory.load(pid, address, memoryview(buffer)))
        return bytes(buffer)

    async def evict_all(self, node: int) -> None:
        """Bring every page home that the device has of this program."""
        blocks = [] if self.gone else list(self.region.touched(0, programs.OFFSETS // BLOCK_BYTES))
        for block in blocks:
            if self.gone:  # and with it the records
                return
            record = self.region.blocks(block, 1)[0]
            if record["pages"][node]:
                mine = (record["owner"] == node).copy()
                job = Job(
                    JobKind.MIGRATE,
                    self.region.ino,
                    block,
                    flags=JobFlag.CHOSEN,
                    window=mine,
                )
                await self._blocks.run(job)

    async def home(self) -> None:
        """Bring every page home that any device has. EBUSY: devices keep taking some."""
        for _ in range(HOME_TRIES):
            for node in range(1, self._core.nodes):
                await self.evict_all(node)
            if not self._is_away():
                return
            await trio.sleep(0.001)
        raise HmmfsError(
            errno.EBUSY,
            f"Devices keep taking pages of process {self.pid}: detach them, or try again.",
        )

    def _is_away(self) -> bool:
        """Whether a device has some of it, or may get some at the moment."""
        return any(record["busy"] or record["pages"][1:].any() for record in self._records())

    def away(self) -> int:
        """How many pages devices have of it."""
        return sum(int(record["pages"][1:].sum()) for record in self._records())

    def _records(self) -> Iterator[np.void]:
        if self.gone:
            return
        for block in self.region.touched(0, programs.OFFSETS // BLOCK_BYTES):
            yield self.region.blocks(block, 1)[0]

    # ---- which devices may use it

    def check_attached(self, node: int) -> None:
        if node in self.detached:
            raise HmmfsError(
                errno.EPERM,
                f"dev{node - 1} is not attached to process {self.pid}. Write `attach dev{node - 1}`"
                f" to state/@{self.pid}/devices.",
            )

    async def detach(self, node: int) -> None:
        """What the device has of it comes home, and it gets no more."""
        self._close(node)
        await self.evict_all(node)

    async def take_back(self) -> None:
        """All of it comes home, and stays there until a device is attached again."""
        for node in range(1, self._core.nodes):
            self._close(node)
        await self.home()

    def _close(self, node: int) -> None:
        self.detached.add(node)
        programs.close(self._core, self.region, node, closed=True)

    def attached(self) -> str:
        """What state/@PID/devices says."""
        nodes = (node for node in range(1, self._core.nodes) if node not in self.detached)
        return "".join(f"dev{node - 1}\n" for node in nodes)

    async def command(self, text: str) -> None:
        """What may be written there: `attach devN`, `detach devN`, `forget ADDRESS+LENGTH`, `home`,
        `home once`, or all devices that are to be attached, as it says them."""
        if re.fullmatch(r"dev\d{1,4}(\s+dev\d{1,4})*", text, re.ASCII):
            wanted = {self._node(word) for word in text.split()}
            for node in range(1, self._core.nodes):
                await self._set_attached(node, on=node in wanted)
            return
        found = COMMAND.fullmatch(text)
        if found is None:
            raise UsageError(
                f"{text[:80]!r} is wrong. Write attach devN, detach devN, forget ADDRESS+LENGTH, "
                "home, home once, or the devices that are to be attached."
            )
        if found["home"]:
            await (self.home() if found["once"] else self.take_back())
        elif found["place"]:
            await self.forget(int(found["address"], 0), int(found["length"], 0))
        else:
            await self._set_attached(self._node(found["device"]), on=found["verb"] == "attach")

    def _node(self, device: str) -> int:
        node = int(device.removeprefix("dev")) + 1
        if node >= self._core.nodes:
            raise HmmfsError(
                errno.ENODEV, f"There is no {device}: there are {self._core.nodes - 1}."
            )
        return node

    async def _set_attached(self, node: int, *, on: bool) -> None:
        if on:
            self.detached.discard(node)
            programs.close(self._core, self.region, node, closed=False)
        elif node not in self.detached:
            await self.detach(node)

    async def forget(self, address: int, length: int) -> None:
        """What devices have of whole pages is dropped; the program finds zeros there."""
        self.offset(address, length)
        for _ in range(FORGET_TRIES):
            if programs.forget(self._core, self.region, address, length):
                return
            await trio.sleep(0.001)
        raise HmmfsError(errno.EBUSY, "Some of these pages keep moving. Try again.")

    # ---- pieces

    def offset(self, address: int, length: int) -> int:
        """Where it is in the region."""
        if self.gone:
            raise ended(self.pid)
        return programs.offset(self._core, self.region, address, length)

    def _spans(self, address: int, length: int) -> Iterator[Span]:
        start = self.offset(address, length)
        return spans(start, start + length)

    async def _access(self, kind: JobKind, node: int, address: int, data: bytearray) -> None:
        start = self.offset(address, len(data))
        for span in spans(start, start + len(data)):
            low = span.start - start
            job = Job(
                kind,
                self.region.ino,
                span.block,
                node=node,
                flags=JobFlag.REMOTE,
                offset=span.offset,
                length=span.length,
                buffer=memoryview(data)[low : low + span.length],
            )
            await self._without_us(job)

    async def _without_us(self, job: Job) -> None:
        """Run a job that may have to wait for the program. Who waits for it may be cancelled: then
        it goes on by itself, until the program moves or ends."""
        done = trio.Event()
        failure: list[HmmfsError] = []

        async def run() -> None:
            try:
                await self._blocks.run(job)
            except HmmfsError as error:
                failure.append(error)
            except Exception:
                log.exception("An access to a program's memory failed.")
                failure.append(HmmfsError(errno.EIO, "The daemon failed. See its log."))
            finally:
                done.set()

        self._background(run)
        await done.wait()
        if failure:
            raise failure[0]

    async def _apart(self, call: Callable[[], T]) -> T:
        """In a thread, which may stay for as long as the memory makes it wait."""
        if self.gone:
            raise ended(self.pid)
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)


class Processes:
    """The programs of one mount."""

    def __init__(
        self,
        core: Core,
        table: RegionTable,
        blocks: Blocks,
        *,
        shared: bool,
        watch: Callable[[Dumping], Awaitable[int | None]] | None = None,
    ) -> None:
        """`watch` gives a descriptor of a file: when the program that has it mapped dumps its core
        the kernel reads that, and waits for what was given to `watch`. Or None, as without it."""
        self._watch = watch
        self._core = core
        self._table = table
        self._blocks = blocks
        self._shared = shared  # whether others may use the mount, too
        self._threads = trio.CapacityLimiter(THREADS)
        self._attached: dict[int, Process] = {}  # by pid
        self._by_ino: dict[int, Process] = {}  # those that may tell that they are gone
        self._nursery: trio.Nursery | None = None  # while it serves
        self._quiet_until = 0.0  # by trio's clock
        self._greeting: dict[int, trio.Lock] = {}  # by pid, while somebody is taken in
        self.socket_name = f"hmmfs-{uuid.uuid4().hex}"

    def _process(self, region: Region, pid: int, *, migrates: bool) -> Process:
        def background(run: Callable[[], Awaitable[None]]) -> None:
            assert self._nursery is not None
            self._nursery.start_soon(run)

        return Process(
            self._core, region, pid, self._blocks, self._threads, background, migrates=migrates
        )

    def get(self, pid: int) -> Process | None:
        return self._attached.get(pid)

    def of(self, region: Region) -> Process:
        found = self._by_ino.get(region.ino)
        if found is None:
            raise ended(region.pid)
        return found

    def all(self) -> list[Process]:
        return list(self._attached.values())

    def named(self, pid: int) -> Process:
        """ESRCH: it is not attached."""
        found = self.get(pid)
        if found is None:
            raise HmmfsError(
                errno.ESRCH,
                f"Process {pid} has not given its memory to this mount. Start it with hmmfs run.",
            )
        return found

    async def open(self, pid: int) -> Process:
        """The program, whether it was attached or not; to be given to `close`."""
        found = self.get(pid)
        if found is not None:
            self._table.acquire(found.region)
            return found
        region = self._table.add_program(pid, 0, 0)
        process = self._process(region, pid, migrates=False)
        self._table.acquire(region)
        self._table.remove_program(region)
        try:
            self._give(region, pid, Attachment(), open_pidfd(pid))
        except BaseException:
            self._table.release(region)
            raise
        self._by_ino[region.ino] = process
        return process

    async def close(self, process: processes_protocol.Process) -> None:
        """What `open` gave."""
        assert isinstance(process, Process)
        if self._attached.get(process.pid) is not process:
            await self._detach(process, home=False)
        self._table.release(process.region)

    # ---- coming and going

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take in programs that connect, until cancelled."""
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener:
            await listener.bind(f"\0{self.socket_name}")
            listener.listen(BACKLOG)
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                while True:
                    try:
                        peer, _ = await listener.accept()
                    except OSError as error:
                        log.warning("A program could not be attached: %s.", error.strerror)
                        await trio.sleep(0.1)  # out of descriptors
                        continue
                    self._nursery.start_soon(self._welcome, peer)

    async def _welcome(self, peer: trio.socket.SocketType) -> None:
        answer, files = 0, list[int]()
        try:
            with trio.move_on_after(HELLO_S) as scope:
                await self._take_in(peer, files)
            if scope.cancelled_caught:
                answer = -errno.ETIMEDOUT
        except HmmfsError as error:
            answer = -(error.errno or errno.EIO)
            self._log_refusal(error.sentence)
        except OSError as error:
            answer = -(error.errno or errno.EIO)
        except Exception:
            log.exception("A program could not be attached.")
            answer = -errno.EIO
        try:
            with trio.move_on_after(HELLO_S):
                await greeting.welcome(peer, answer, files)
        except OSError:
            pass  # it will be told by its socket's end
        finally:
            peer.close()  # of an attached one the core has another descriptor
            with trio.CancelScope(shield=True):
                for fd in files:  # of our own file system, which may be asked: not on this thread
                    await trio.to_thread.run_sync(os.close, fd)

    def _log_refusal(self, sentence: str) -> None:
        """Anybody may connect, as often as they like."""
        now = trio.current_time()
        if now > self._quiet_until:
            self._quiet_until = now + REFUSALS_S
            log.info("A program was not attached: %s", sentence)

    async def _take_in(self, peer: trio.socket.SocketType, files: list[int]) -> None:
        """Adds to `files` what to send with the welcome. Raises HmmfsError: it is not to be
        attached."""
        pid, uid = self._who(peer)
        pidfd = greeting.pidfd_of(peer, pid)
        try:
            await self._hear(peer, pid, uid, pidfd, files)
        finally:
            os.close(pidfd)

    async def _hear(
        self, peer: trio.socket.SocketType, pid: int, uid: int, pidfd: int, files: list[int]
    ) -> None:
        data, fds = await greeting.hear(peer)
        try:
            if greeting.leaves(data, fds):
                async with self._turn(pid):
                    if (old := self.get(pid)) is not None:
                        await self._detach(old, home=True)
                return
            sent = greeting.checked(data, fds)
            dumping = Dumping()
            if self._watch is not None and sent.uffd >= 0:
                file = await self._watch(dumping)
                files += [] if file is None else [file]
            async with self._turn(pid):
                old = self.get(pid)
                if old is not None:  # it has become another program
                    await self._detach(old, home=False)
                if greeting.has_ended(peer, pidfd):  # or it has by now
                    raise ended(pid)
                own = os.dup(peer.fileno())
                fds.append(own)
                # From here on the core may ask for pages over the same socket, once anybody can
                # name the program: nothing is waited for until the welcome was sent.
                process = self._attach(pid, uid, sent._replace(socket=own), pidfd)
                dumping.process = process
                fds.clear()
                if greeting.has_ended(peer, pidfd):  # and its number may be another's
                    await self._detach(process, home=False)
                    raise ended(pid)
        finally:
            for fd in fds:
                os.close(fd)

    @contextlib.asynccontextmanager
    async def _turn(self, pid: int) -> AsyncIterator[None]:
        """Of those that greet by one number one is taken in after the other."""
        lock = self._greeting.setdefault(pid, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._greeting.get(pid) is lock:
                del self._greeting[pid]

    def _who(self, peer: trio.socket.SocketType) -> tuple[int, int]:
        pid, uid = greeting.credentials(peer)
        if not pid or not (uid == os.geteuid() or (self._shared and os.geteuid() == 0)):
            raise HmmfsError(
                errno.EPERM, f"Process {pid} of user {uid} is not of the user who mounted."
            )
        return pid, uid

    def _attach(self, pid: int, uid: int, sent: Attachment, pidfd: int) -> Process:
        region = self._table.add_program(pid, uid, 0)
        try:
            self._give(region, pid, sent, os.dup(pidfd))
        except BaseException:
            self._table.remove_program(region)
            raise
        process = self._process(region, pid, migrates=sent.uffd >= 0)
        self._attached[pid] = self._by_ino[region.ino] = process
        log.info("Process %d is attached%s.", pid, "" if process.migrates else ", for access only")
        return process

    def _give(self, region: Region, pid: int, sent: Attachment, pidfd: int) -> None:
        """The region is the program's memory from now on, and the pidfd the core's."""
        try:
            foreign = not user_memory.is_ours(pid)
            programs.attach(self._core, region, pid, pidfd, sent, foreign=foreign)
        except BaseException:
            os.close(pidfd)
            raise

    async def on_gone(self, ino: int) -> None:
        """The core says that the program has ended, or has become another."""
        process = self._by_ino.get(ino)
        if process is not None:
            await self._detach(process, home=False)

    async def end(self) -> None:
        """The mount goes: give all programs their pages back."""
        for process in list(self._by_ino.values()):
            await self._detach(process, home=True)

    async def _detach(self, process: Process, *, home: bool) -> None:
        region = process.region
        if self._by_ino.pop(region.ino, None) is None:
            return
        if self._attached.get(process.pid) is process:
            del self._attached[process.pid]
        self._table.acquire(region)
        self._table.remove_program(region)
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(
                    lambda: programs.detach(self._core, region, home=home), limiter=self._threads
                )
        finally:
            process.gone = True
            self._table.release(region)
