"""One open `dmirror` file: its ioctls, and whose memory they are about."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

import trio

from hmmfs.device.dmirror import Device, Mirror
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import Ioctl


def program_of(thread: int) -> int:
    """The process that a thread is of, which the kernel names in a request by its thread."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            found = re.search(rb"^Tgid:\s*(\d+)$", file.read(), flags=re.M)
    except OSError:
        found = None
    if found is None:
        raise HmmfsError(
            errno.ESRCH, f"There is no thread {thread} here: open a dmirror in the daemon's /proc."
        )
    return int(found[1])


class OpenMirror:
    """`say` gets the sentence of each error."""

    def __init__(self, device: Device, mirror: Mirror, say: Callable[[str], None]) -> None:
        self._device = device
        self._mirror = mirror
        self._say = say

    @classmethod
    async def open(cls, device: Device, thread: int, say: Callable[[str], None]) -> OpenMirror:
        try:
            pid = await trio.to_thread.run_sync(program_of, thread)
            return cls(device, await device.open(pid), say)
        except HmmfsError as error:
            say(f"dmirror: {error.sentence}")
            raise

    async def ioctl(self, request: Ioctl) -> bytes:
        """What the caller's struct becomes."""
        try:
            caller = self._mirror.pid
            if request.thread != caller:
                caller = await trio.to_thread.run_sync(program_of, request.thread)
            return await self._mirror.ioctl(request.command, request.data, caller)
        except HmmfsError as error:
            self._say(f"dmirror: {error.sentence}")
            raise

    def no_bytes(self) -> HmmfsError:
        """What a read or a write gets."""
        error = UsageError("dmirror: There is nothing to read or write here: use ioctl(2).")
        self._say(error.sentence)
        return error

    async def close(self) -> None:
        await self._device.close(self._mirror)
