"""One open `dmirror` file: its ioctls, and whose memory they are about."""

from __future__ import annotations

import errno
import logging
import re
import signal
from collections import deque
from collections.abc import Callable

import trio

from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import Core, Ioctl
from hmmfs.program.dmirror import Device, OpenFile

log = logging.getLogger(__name__)

SIGNALS = re.compile(rb"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$", flags=re.M)
WATCH_S = 0.1  # between looks whether a program that got a signal is to end
REMEMBERED = 64  # interrupts of ioctls that nobody has heard of yet


def program_of(thread: int) -> int:
    """The process that a thread is of, which the kernel names in a request by its thread."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            found = re.search(rb"^Tgid:\s*(\d+)$", file.read(), flags=re.M)
    except OSError:
        found = None
    if found is None:
        raise HmmfsError(
            errno.ESRCH, f"There is no thread {thread} here. Open a dmirror in the daemon's /proc."
        )
    return int(found[1])


class OpenDmirror:
    """`say` gets the sentence of each error."""

    def __init__(self, device: Device, file: OpenFile, say: Callable[[str], None]) -> None:
        self._device = device
        self._file = file
        self._say = say

    @classmethod
    async def open(cls, device: Device, thread: int, say: Callable[[str], None]) -> OpenDmirror:
        try:
            pid = await trio.to_thread.run_sync(program_of, thread)
            return cls(device, await device.open(pid), say)
        except HmmfsError as error:
            say(f"dmirror: {error.sentence}")
            raise

    async def ioctl(self, request: Ioctl) -> bytes:
        """What the caller's struct becomes."""
        try:
            caller = self._file.pid
            if request.thread != caller:
                caller = await trio.to_thread.run_sync(program_of, request.thread)
            return await self._file.ioctl(request.command, request.data, caller)
        except HmmfsError as error:
            self._say(f"dmirror: {error.sentence}")
            raise

    def no_bytes(self) -> HmmfsError:
        """What a read or a write gets."""
        error = UsageError("dmirror: There is nothing to read or write here. Use ioctl(2).")
        self._say(error.sentence)
        return error

    async def close(self) -> None:
        await self._device.close(self._file)


def is_killed(thread: int) -> bool:
    """Whether a thread that waits is to end, and will once it waits no longer."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            pending = SIGNALS.findall(file.read())
    except OSError:
        return True
    return any(int(word, 16) >> (signal.SIGKILL - 1) & 1 for word in pending)


class Ioctls:
    """Those under way. As in the kernel only a deadly signal cuts one short: the memory that it
    waits for may be the business of the very program that is to end."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._running: dict[int, tuple[Ioctl, trio.Nursery]] = {}
        self._early: deque[int] = deque(maxlen=REMEMBERED)

    async def run(self, request: Ioctl, opened: OpenDmirror | None) -> None:
        """Carry out an ioctl and answer it; `opened`: the open file, if it is a dmirror."""
        number, answer = errno.EINTR, b""
        async with trio.open_nursery() as nursery:
            self._running[request.unique] = request, nursery
            if request.unique in self._early:
                self.interrupt(request.unique)
            try:
                number, answer = await self._carry_out(request, opened)
            finally:
                del self._running[request.unique]
            nursery.cancel_scope.cancel()
        self._core.reply_ioctl(request.unique, number, answer[: request.capacity])

    @staticmethod
    async def _carry_out(request: Ioctl, opened: OpenDmirror | None) -> tuple[int, bytes]:
        if opened is None:
            return errno.ENOTTY, b""
        try:
            return 0, await opened.ioctl(request)
        except HmmfsError as error:
            return error.errno or errno.EIO, b""
        except Exception:
            log.exception("An ioctl failed.")
            return errno.EIO, b""

    def interrupt(self, unique: int) -> None:
        """The kernel says that a program that waits got a signal. It says so of the first only."""
        found = self._running.get(unique)
        if found is None:
            self._early.append(unique)
        else:
            found[1].start_soon(self._watch, *found)

    @staticmethod
    async def _watch(request: Ioctl, nursery: trio.Nursery) -> None:
        while not is_killed(request.thread):
            await trio.sleep(WATCH_S)
        nursery.cancel_scope.cancel()
