"""A small process that frees the mount when the daemon dies without saying goodbye.

A daemon killed during a recall leaves a thread in the kernel that pins /dev/fuse: the connection
stays up, nothing answers, and only an abort wakes the programs that wait. That thread also keeps
the daemon's descriptors open, so the end of the pipe may never show; the parent-death signal,
sent when the thread that forked the watchdog ends, does. Start it on the main thread.
"""

import contextlib
import json
import os
import select
import signal
import threading
from typing import NoReturn

from hmmfs.common import linux, mountinfo
from hmmfs.errors import HmmfsError
from hmmfs.mounting import mounts as mounting

_CONTROL = "/sys/fs/fuse/connections"
_DEATH = signal.SIGUSR1
PATIENCE_S = 5.0  # with a watchdog that does not answer


class Watchdog:
    """The daemon's side: start it before there are threads, then guard, then dismiss."""

    def __init__(self, pid: int, pipe: int, answers: int) -> None:
        self.pid = pid
        self._pipe = pipe
        self._answers = answers

    @classmethod
    def start(cls) -> "Watchdog":
        """Fork the watchdog, which knows of no mount yet. Call on the main thread."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the watchdog takes the end of the thread that starts it for ours")
        reader, writer = os.pipe2(os.O_CLOEXEC)
        answers, answer = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run(reader, answer, parent)
        os.close(reader)
        os.close(answer)
        return cls(pid, writer, answers)

    def guard(self, path: str, connection_id: int, *, temporary: bool = False) -> None:
        """From now on, abort this connection and unmount ``path`` if this process dies, and remove
        it if it is temporary."""
        self._say({"path": path, "connection": connection_id, "temporary": temporary})
        # Once it has found the connection, a later one with the same number is not taken for it.
        if self._answers >= 0:
            select.select([self._answers], [], [], PATIENCE_S)
            self._hear_no_more()

    def dismiss(self) -> None:
        """Say goodbye: the mount is gone or somebody else's concern. Calling it twice is fine."""
        if self._pipe < 0:
            return
        self._say({"bye": True})
        os.close(self._pipe)
        self._hear_no_more()
        self._pipe = -1
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _hear_no_more(self) -> None:
        if self._answers >= 0:
            os.close(self._answers)
        self._answers = -1

    def _say(self, words: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, json.dumps(words).encode() + b"\n")


def abort(connection_id: int) -> bool:
    """Abort a FUSE connection: everything that waits for it gets an error. False if not allowed."""
    control = _open_control(connection_id)
    if control is None:
        return False
    try:
        _abort(control)
    except OSError:
        return False
    finally:
        os.close(control)
    return True


def _open_control(connection_id: int) -> int | None:
    """The connection's directory, in fusectl as mounted or else in a mount of our own.

    Once open it stands for this connection and is empty when that has gone, even if another mount
    is given the number by then.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        return os.open(f"{_CONTROL}/{connection_id}", flags)
    with contextlib.suppress(OSError):
        top = linux.detached_mount("fusectl")
        try:
            return os.open(str(connection_id), flags, dir_fd=top)
        finally:
            os.close(top)
    return None


def _abort(control: int) -> None:
    fd = os.open("abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def _run(pipe: int, answer: int, parent: int) -> NoReturn:
    """The watchdog process."""
    try:
        wake = _settle(pipe, answer)
        if os.getppid() != parent:
            os._exit(0)  # it died before there was anything to guard
        _watch(pipe, answer, wake)
    finally:
        os._exit(0)


def _settle(*pipes: int) -> int:
    """Leave the daemon's session and descriptors; what it returns is readable at its death."""
    os.setsid()
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in pipes:
            with contextlib.suppress(OSError):  # listdir's own is closed by now
                os.close(fd)
    for pipe in pipes:
        os.set_blocking(pipe, False)
    wake, alarm = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(alarm)
    signal.signal(_DEATH, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    linux.name_process("hmmfs-watchdog")
    linux.signal_on_parent_death(_DEATH)
    return wake


def _watch(pipe: int, answer: int, wake: int) -> None:
    told: dict[str, object] = {}
    control: int | None = None
    buffer = b""
    dead = False
    while not dead:
        readable, _, _ = select.select([pipe, wake], [], [])
        dead = wake in readable
        while True:
            try:
                chunk = os.read(pipe, 65536)
            except BlockingIOError:
                break
            if not chunk:
                dead = True
                break
            buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "bye" in told:
                return
            if control is not None:
                os.close(control)
            control = _open_control(int(str(told["connection"])))
            with contextlib.suppress(OSError):  # it listens to the first answer only
                os.write(answer, b"1")
    if told:
        _free(str(told["path"]), int(str(told["connection"])), control)
        if told["temporary"]:
            with contextlib.suppress(OSError):
                os.rmdir(str(told["path"]))


def _free(path: str, connection_id: int, control: int | None) -> None:
    """Abort, then unmount: while requests are unanswered an unmount could wait for them."""
    entry = mountinfo.find(path)
    ours = entry is not None and entry.type == mountinfo.TYPE and entry.minor == connection_id
    if control is not None:
        try:
            _abort(control)
        except FileNotFoundError:
            return  # the mount had gone, and what is on the path now is somebody else's
        except OSError:
            pass
    elif ours:
        with contextlib.suppress(OSError):
            linux.umount(path, linux.MNT_FORCE)
    if ours:
        with contextlib.suppress(OSError, HmmfsError):
            mounting.unmount(path, lazy=True)
