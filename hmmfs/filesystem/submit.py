"""One open `submit` file: a write is a transaction, a read gives the answers of the last one.

What was cut off a longer write never runs: programs and the kernel write what is long in parts.

The answers of a write that failed end with the line ``error: SENTENCE``; before it, where a kernel
raised, comes ``traceback BASE64``.
"""

from __future__ import annotations

import base64
import errno
import os

import trio

from hmmfs.device.executor import Executor, parse_all
from hmmfs.errors import HmmfsError
from hmmfs.wire.calls import MAX_SUBMISSION

MAX_READ = 64 * 1024  # bytes of one reply; the relay's socket is small for ordinary users
# The smallest buffer of programs that cut what they write at its end.
PART_BYTES = 4096


class Submission:
    """What one open file has under way and what it was answered."""

    def __init__(self, executor: Executor, name: str = "") -> None:
        self._executor = executor
        self._name = name  # in calls/
        self._running: trio.CancelScope | None = None
        self._interrupted = False  # before the write that waits has begun
        self._answers = b""
        self._end = 0  # file position after the last write
        self._origin = 0  # file position that the answers begin at
        self._next = 0  # file position after the last read

    async def write(self, offset: int, data: bytes) -> int:
        """Run the operations in `data`, one a line. Raises HmmfsError for the first that failed."""
        if self._running is not None:
            raise HmmfsError(
                errno.EBUSY,
                "An operation of this open file is under way. Wait for it, or open submit again.",
            )
        answers: list[str] = []
        self._running = scope = trio.CancelScope()
        if self._interrupted:
            self._interrupted = False
            scope.cancel()
        try:
            with scope:
                _refuse_part(data)
                operations = parse_all(os.fsdecode(data))
                await self._executor.run(operations, answers.append, self._name)
            if scope.cancelled_caught:
                raise HmmfsError(
                    errno.EINTR, "The operation was interrupted by a signal. Try again."
                )
        except HmmfsError as error:
            if trace := getattr(error.__cause__, "trace", ""):
                lines = trace.encode(errors="backslashreplace")
                answers.append(f"traceback {base64.b64encode(lines).decode()}")
            # One line, whatever a kernel's exception says.
            answers.append(f"error: {' '.join(error.sentence.split())}")
            raise
        finally:
            self._running = None
            self._answers = "".join(f"{text}\n" for text in answers).encode(
                errors="backslashreplace"
            )
            self._end = self._next = offset + len(data)
            self._origin = self._end
        return len(data)

    def read(self, offset: int, size: int) -> bytes:
        """The answers from their start at position 0 or where the write ended, whichever a reader
        begins at; then on from there."""
        if offset != self._next and offset in (0, self._end):
            self._origin = offset
        elif offset == 0:
            self._origin = 0
        start = max(0, offset - self._origin)
        data = self._answers[start : start + min(size, MAX_READ)]
        self._next = offset + len(data)
        return data

    def interrupt(self, *, waits: bool = False) -> None:
        """The program that waits got a signal, or its open file is going away. `waits`: if no write
        has begun here, one is on its way."""
        if self._running is not None:
            self._running.cancel()
        else:
            self._interrupted = waits


def _refuse_part(data: bytes) -> None:
    """Operations are written whole. E2BIG: this looks like a part of a longer write, or is one."""
    if len(data) > MAX_SUBMISSION:
        raise HmmfsError(
            errno.E2BIG, f"A write has at most {MAX_SUBMISSION} bytes here. Write fewer operations."
        )
    if data.endswith(b"\n") or (len(data) < PART_BYTES and b"\n" not in data):
        return
    raise HmmfsError(
        errno.E2BIG,
        f"The last of these {len(data)} bytes is not the end of a line, so that it may be cut off. "
        "Write whole lines, as `xargs -d '\\n' hmmfs submit DIR DEV < FILE` does.",
    )
