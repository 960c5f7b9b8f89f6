"""Operations on their way to a device, and its answers: the one client of a device's `calls/`."""

from __future__ import annotations

import base64
import errno
import os
import re
import uuid
from typing import Any

from hmmfs.common import mountinfo
from hmmfs.common.names import no_device
from hmmfs.errors import HmmfsError, UsageError

# Bytes of one write. The kernel sends a longer write in parts: at 1 MiB, and a page before that if
# the program's buffer does not begin with a page.
MAX_SUBMISSION = (1 << 20) - 4096
ANSWER_BYTES = 1 << 16  # one read of an answer


class KernelError(HmmfsError):
    """A kernel raised (EREMOTEIO). `trace` is its traceback in the worker."""

    def __init__(self, sentence: str, trace: str) -> None:
        super().__init__(errno.EREMOTEIO, sentence)
        self.trace = trace

    def __str__(self) -> str:
        return f"{self.sentence}\n\nIn the device's worker:\n{self.trace}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelError, (self.sentence, self.trace)


def submission(operations: str) -> bytes:
    """The bytes of operations, one a line. E2BIG: they would not arrive as one write."""
    data = operations.encode(errors="surrogateescape") + b"\n"
    if len(data) > MAX_SUBMISSION:
        raise HmmfsError(
            errno.E2BIG,
            f"What is sent to a device has at most {MAX_SUBMISSION} bytes, and this {len(data)}. "
            "Put large arguments into a region.",
        )
    return data


def transact(device: str | os.PathLike[str], operations: str, name: str | None) -> tuple[str, bool]:
    """The answers of a device, by its directory, to operations, one a line; and whether the mount
    is ours or root's, so that they may be believed. name: 32 hexadecimal digits, by which the call
    can be found in `queue`, and cancelled. HmmfsError with the errno of the first operation that
    fails, KernelError where that is a kernel's exception; ENOENT: there is no such device."""
    if name is not None and not re.fullmatch("[0-9a-f]{32}", name):
        raise UsageError(f"{name!r} is not a name for a call. Give 32 hexadecimal digits.")
    data = submission(operations)
    try:
        fd = os.open(_file(device, name), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        above, missing = os.path.split(os.path.abspath(device))
        known = sorted(os.listdir(above))
        raise HmmfsError(errno.ENOENT, no_device(missing, known)) from None
    try:
        try:
            os.write(fd, data)
        except OSError as error:
            raise _failure(error, operations, _answer(fd)) from None
        return _answer(fd), mountinfo.mounter_of(fd) in (0, os.geteuid())
    finally:
        os.close(fd)


def _file(device: str | os.PathLike[str], name: str | None) -> str:
    """One for ourselves: in a shared one the kernel would have us wait for others, unkillable."""
    return os.path.join(device, "calls", name or uuid.uuid4().hex)


def _answer(fd: int) -> str:
    answer = b""
    while piece := os.pread(fd, ANSWER_BYTES, len(answer)):
        answer += piece
    return os.fsdecode(answer)


def _failure(error: OSError, operations: str, answer: str) -> HmmfsError:
    """What the answer says of a write that failed; without an answer it was refused unread."""
    sentence, trace = f'"{operations[:80]}" failed: {error.strerror}.', ""
    for line in answer.split("\n"):
        kind, _, rest = line.partition(" ")
        if kind == "error:":
            sentence = rest
        elif kind == "traceback":
            trace = base64.b64decode(rest).decode(errors="replace")
    if trace:
        return KernelError(sentence, trace)
    return HmmfsError(error.errno or errno.EIO, sentence)
