"""Where the daemon's words go: a file, or standard error."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys

from hmmfs.errors import HmmfsError

FORMAT = "%(asctime)s hmmfs %(levelname)s: %(message)s"


class LogHandler(logging.Handler):
    """Writes lines to a descriptor. Those that can't be written, because a disk is full, are
    counted: standard error hears of the first, and the log how many they were once it can be
    written again. In the background that is all: standard error is the log, too."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__()
        self._fd, self._name = fd, name
        self._lost = 0
        self._torn = ""  # what ends the part of a line that was written
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record) + "\n")
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                reason = os.strerror(error.errno or errno.EIO)
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(f"hmmfs: {self._name} can't be written: {reason}.\n")
        except Exception:
            self.handleError(record)

    def _write(self, line: str) -> None:
        if self._lost:
            line = f"hmmfs: lines that could not be written here: {self._lost}\n{line}"
        data = (self._torn + line).encode(errors="backslashreplace")
        written = os.write(self._fd, data)
        if written < len(data):
            self._torn = "\n"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._lost, self._torn = 0, ""


def start_log(path: str | None, *, debug: bool) -> int:
    """Only hmmfs's own words: pyfuse3 would describe every request. Returns where they go."""
    fd, name = sys.stderr.fileno(), "standard error"
    if path:
        name = f"The log file {path}"
        try:
            # A pipe that nobody reads is refused, not waited for.
            how = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(path, how, 0o666)
            os.set_blocking(fd, True)
        except OSError as error:
            number = error.errno or errno.EIO
            raise HmmfsError(number, f"{name} can't be opened: {os.strerror(number)}.") from None
    logging.basicConfig(level=logging.WARNING, handlers=[LogHandler(fd, name)])
    logging.getLogger("hmmfs").setLevel(logging.DEBUG if debug else logging.INFO)
    return fd
