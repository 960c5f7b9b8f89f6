"""Going to the background, with the parent waiting until the mount answers or has failed."""

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from hmmfs.errors import HmmfsError, UsageError

Ready = Callable[[], None]
READY = b"ready"


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that a mount ends with. pidfd: of it; a child that inherits a copy changes
    nothing. temporary: the mount's directory goes with the mount."""

    pidfd: int
    temporary: bool


def sd_notify(state: str) -> None:
    """Tell systemd, if it asked: READY=1, STOPPING=1. A leading ``@`` is an abstract socket."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.sendto(state.encode(), address)


def open_standard_files() -> None:
    """Whichever of the three are closed become /dev/null, so that nothing else gets their numbers:
    what the daemon opened there would be closed again when it goes to the background."""
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(null)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def in_background(work: Callable[[Ready], int]) -> int:
    """Run ``work(ready)`` in a daemon; return an exit status once it called ready or failed.

    Before ready the daemon still has our stderr; then its standard files become /dev/null. Fork
    before there are threads.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        pid = os.fork()
    except BlockingIOError:
        raise HmmfsError(
            errno.EAGAIN,
            "There may be no more processes here. Mount with a higher limit (ulimit -u, or "
            "pids.max of the cgroup).",
        ) from None
    if pid == 0:
        os.close(reader)
        _daemon(work, writer)
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            answer = pipe.read()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        raise
    if answer == READY:
        return 0
    if answer:
        raise reported(json.loads(answer))
    raise HmmfsError(errno.EIO, f"The daemon {_ending(pid)} before the mount was ready.")


def _ending(pid: int) -> str:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _daemon(work: Callable[[Ready], int], writer: int) -> NoReturn:
    waiting = True

    def ready() -> None:
        nonlocal waiting
        if not waiting:
            return
        waiting = False
        sys.stdout.flush()
        sys.stderr.flush()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
        sd_notify("READY=1")
        with contextlib.suppress(BrokenPipeError):  # nobody waits any more; we serve all the same
            os.write(writer, READY)
        os.close(writer)

    status = 1
    try:
        os.setsid()
        status = work(ready)
    except BaseException as error:
        if waiting:
            os.write(writer, json.dumps(report(error)).encode())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def report(error: BaseException) -> dict[str, Any]:
    """An error as JSON has it; `reported` makes it one again."""
    if isinstance(error, HmmfsError):
        return {
            "usage": isinstance(error, UsageError),
            "errno": error.errno,
            "sentence": str(error),
        }
    traceback.print_exception(error)
    sentence = f"The daemon failed before the mount was ready: {error!r}."
    return {"usage": False, "errno": errno.EIO, "sentence": sentence}


def reported(words: dict[str, Any]) -> HmmfsError:
    sentence = words["sentence"]
    return UsageError(sentence) if words["usage"] else HmmfsError(words["errno"], sentence)
