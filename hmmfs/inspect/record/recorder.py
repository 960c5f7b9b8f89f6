"""``hmmfs record``: one command's run on a mount, written down as it goes.

Two processes besides the command. The *reader* alone touches the mount and writes the file; this
one starts it, then the command, and waits for both. So a daemon that is stuck holds up neither the
command nor, for longer than a limit, the recorder; and a recorder that is killed leaves all that
was read, since the reader notices, writes what it has, and ends.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO, Any, NamedTuple, NoReturn

from hmmfs.common.names import printable
from hmmfs.errors import HmmfsError
from hmmfs.inspect.record.progress import bar
from hmmfs.inspect.record.reader import Reader

PATIENCE_S = 5.0  # without a word from the reader, when it should be working
NOT_EXECUTABLE = 126
NOT_FOUND = 127
KILLED = 128
GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV)
TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # the terminal sends them to the command as well
FORWARDED = (signal.SIGTERM, signal.SIGHUP)

Watch = Callable[[int], None]  # is told how many events have been written


class Outcome(NamedTuple):
    """``status`` as a shell says it. ``trouble``: why the recording is not whole, or nothing.
    ``trace``: what the mount's trace kept meanwhile, "all" or less."""

    status: int
    events: int
    lost: int
    trouble: str
    trace: str = "all"


def record(point: str, path: str, command: list[str], interval_s: float) -> Outcome:
    """Run ``command`` and write to ``path`` what it does to the mount on ``point``.

    OSError, HmmfsError: ``path`` cannot be written or the mount not be read; the command was not
    started then. The command gets the mount as HMMFS_MOUNT.
    """
    if missing := _missing(command[0]):  # before a file of that name is written over
        return missing
    reader = _Process(point, path, command, interval_s)
    try:
        trace = str(reader.hear().get("trace", "all"))
    except BaseException:
        reader.leave()
        raise
    with _signals() as running:
        # Told before the command begins: events from now on are the command's.
        reader.tell(f"start {time.monotonic()!r} {time.time()!r}")
        status, trouble = _run(command, point, running)
        reader.tell(f"end {time.monotonic()!r} {status}")
        told: dict[str, Any] = {}
        try:
            # Not before: while the command runs, the terminal is its.
            with bar("Completing the recording") as show:
                told = reader.hear(lambda events: show(events, 0))
        except (OSError, HmmfsError) as error:
            trouble = trouble or str(error)
        finally:
            reader.leave()
    if trace == "all":
        trace = str(told.get("trace", "all"))
    return Outcome(status, int(told.get("events", 0)), int(told.get("lost", 0)), trouble, trace)


def _missing(program: str) -> Outcome | None:
    if os.path.exists(program) if "/" in program else shutil.which(program):
        return None
    return Outcome(NOT_FOUND, 0, 0, f"There is no program {printable(program)}.")


class _Running:
    """The command while it runs, and the signals for it that came before it did."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def wait(self, child: subprocess.Popen[bytes]) -> int:
        self._child = child
        for number in self._early:
            child.send_signal(number)
        return child.wait()

    def signal(self, number: int) -> None:
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)  # which does nothing once it was waited for


def _run(command: list[str], point: str, running: _Running) -> tuple[int, str]:
    """The command's status, and what was wrong if it could not be started."""
    try:
        child = subprocess.Popen(command, env={**os.environ, "HMMFS_MOUNT": point})
    except FileNotFoundError:
        return NOT_FOUND, f"There is no program {printable(command[0])}."
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return NOT_EXECUTABLE, f"{printable(command[0])} cannot be run: {why}."
    status = running.wait(child)
    return (status if status >= 0 else KILLED - status), ""


@contextlib.contextmanager
def _signals() -> Iterator[_Running]:
    """While the command runs, signals end it and not the recording.

    Handlers, since a program started from here would inherit that a signal is ignored.
    """
    running = _Running()

    def forward(number: int, _: FrameType | None) -> None:
        running.signal(number)

    def leave(number: int, _: FrameType | None) -> None:
        pass

    wanted = dict.fromkeys(TERMINAL, leave) | dict.fromkeys(FORWARDED, forward)
    before = {
        number: signal.signal(number, handler)
        for number, handler in wanted.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield running
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Process:
    """The reader, seen from the recorder."""

    def __init__(self, point: str, path: str, command: list[str], interval_s: float) -> None:
        # O_CLOEXEC is right: the fork below does not exec, and the command's exec closes all three.
        self._point = point
        sink = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        control, self._control = os.pipe2(os.O_CLOEXEC)
        said, saying = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _read(point, path, sink, command, interval_s, control, saying)
        for fd in (sink, control, saying):
            os.close(fd)
        self._said = open(said, "rb", buffering=0)  # noqa: SIM115
        self._rest = b""
        self._stuck = False

    def tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended: hear says why
            os.write(self._control, line.encode() + b"\n")

    def hear(self, watch: Watch = lambda _: None) -> dict[str, Any]:
        """The reader's next word; "written" is only about how far it is.

        HmmfsError: it failed, or said nothing for PATIENCE_S.
        """
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if not newline:
                self._rest += self._more()
                continue
            self._rest = rest
            word: dict[str, Any] = json.loads(line)
            if "error" in word:
                raise HmmfsError(int(word.get("errno", errno.EIO)), str(word["error"]))
            if "written" not in word:
                return word
            watch(int(word["written"]))

    def _more(self) -> bytes:
        if not select.select([self._said], [], [], PATIENCE_S)[0]:
            self._stuck = True
            raise HmmfsError(
                errno.ETIMEDOUT,
                f"{printable(self._point)} has not answered for {PATIENCE_S:g} s, so the recording "
                "is not whole.",
            )
        data = self._said.read(1 << 16)
        if not data:
            raise HmmfsError(errno.EPIPE, "The reader of the trace was killed.")
        return bytes(data)

    def leave(self) -> None:
        """Let it end by itself; one that a daemon holds is not waited for."""
        os.close(self._control)
        ended = os.pidfd_open(self._pid)
        if select.select([ended], [], [], 0 if self._stuck else PATIENCE_S)[0]:
            os.waitpid(self._pid, 0)
        os.close(ended)
        self._said.close()


def _read(
    point: str,
    path: str,
    sink: int,
    command: list[str],
    interval_s: float,
    control: int,
    saying: int,
) -> NoReturn:
    """The reader's process, from the fork to its end."""
    try:
        for number in (*TERMINAL, *FORWARDED, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        # A reader that is stuck must not hold others' files and pipes open.
        keep = sorted((sink, control, saying))
        for start, end in zip([-1, *keep], [*keep, 1 << 20], strict=True):
            os.closerange(start + 1, end)
        with open(saying, "wb", buffering=0) as voice:

            def say(**word: object) -> None:
                with contextlib.suppress(BrokenPipeError):
                    voice.write(json.dumps(word).encode() + b"\n")

            try:
                with _sink(sink, path) as file:
                    said = Reader(point, file, command, interval_s, control, say).run()
                say(**said)
            except (OSError, ValueError) as error:
                say(errno=getattr(error, "errno", errno.EIO), error=_sentence(error, point, path))
    finally:
        os._exit(0)


def _sentence(error: OSError | ValueError, point: str, path: str) -> str:
    if isinstance(error, HmmfsError) or not isinstance(error, OSError):
        return str(error)
    if error.errno in GONE:
        return (
            f"The mount on {printable(point)} is gone: {printable(path)} has what was until then."
        )
    if error.filename is None:
        return f"{printable(path)}: {error.strerror}."
    if error.errno == errno.ENOENT and os.path.basename(error.filename) == "trace_pipe":
        return f"{printable(point)} has no trace_pipe: its daemon is of an older version."
    return f"{printable(str(error.filename))}: {error.strerror}."


@contextlib.contextmanager
def _sink(fd: int, path: str) -> Iterator[IO[bytes]]:
    with open(fd, "wb", buffering=1 << 18) as file:
        if path.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=5, fileobj=file) as packed:
                yield packed  # type: ignore[misc]
        else:
            yield file
