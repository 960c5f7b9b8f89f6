"""The whole terminal for a while: keys as they are pressed, a second screen, and everything put
back whichever way that ends."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

_SEQUENCES = {b"A": "up", b"B": "down"}
_SEQUENCE = re.compile(rb"\x1b[\[O][0-9;]*([A-Za-z~])")
_BEGUN = re.compile(rb"\x1b([\[O][0-9;]*)?\Z")
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
HEARD = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT, *ENDING)


class Ended(Exception):
    """A signal asks for the end; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def is_terminal() -> bool:
    """Whether keys and pictures have a terminal that can move its cursor."""
    dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    return sys.stdin.isatty() and sys.stdout.isatty() and not dumb


def keys(typed: bytes) -> tuple[list[str], bytes]:
    """Characters, "up" and "down"; and what may be the beginning of an arrow key."""
    found = []
    while typed and not _BEGUN.match(typed):
        sequence = _SEQUENCE.match(typed)
        if sequence:
            found.append(_SEQUENCES.get(sequence[1], ""))
            typed = typed[sequence.end() :]
        else:
            found.append(chr(typed[0]))
            typed = typed[1:]
    return [key for key in found if key], typed


class Screen:
    """The terminal while `opened`. Signals are heard in `wait`, so that nothing is half drawn."""

    def __init__(self, signals: int) -> None:
        self._signals = signals
        self._input = sys.stdin.fileno()
        self._saved = termios.tcgetattr(self._input)
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._typed = b""

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows, at this moment."""
        return os.get_terminal_size(sys.stdout.fileno())

    def draw(self, lines: list[Text]) -> None:
        # Set by hand, because rich would believe COLUMNS and LINES, which don't change.
        self._console.size = os.get_terminal_size(sys.stdout.fileno())
        self._live.update(Group(*lines), refresh=True)

    def wait(self, seconds: float | None) -> list[str]:
        """Keys; none after so many seconds, or when the terminal's size changed.

        EOFError: the terminal is gone. Ended: a signal asks for it.
        """
        ready = select.select([self._input, self._signals], [], [], seconds)[0]
        if self._signals in ready:
            for number in os.read(self._signals, 64):
                self._hear(number)
        if self._input not in ready:
            return []
        try:
            typed = os.read(self._input, 256)
        except OSError:
            typed = b""
        if not typed:
            raise EOFError
        pressed, self._typed = keys(self._typed + typed)
        return pressed

    def begin(self) -> None:
        tty.setcbreak(self._input)
        self._live.start()

    def end(self) -> None:
        # Where the terminal is gone, there is nothing to put back.
        with contextlib.suppress(OSError, termios.error):
            self._live.stop()
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._saved)

    def _hear(self, number: int) -> None:
        if number in ENDING:
            raise Ended(number)
        if number == signal.SIGTSTP:
            self.end()
            _obey(number)
            self.begin()
        elif number == signal.SIGCONT:  # after a SIGSTOP, which nobody is told of
            tty.setcbreak(self._input)
            self._console.set_alt_screen(True)
            self._console.show_cursor(False)


@contextlib.contextmanager
def opened() -> Iterator[Screen]:
    """The second screen, without echo. What ENDING or SIGTSTP would do is done once the terminal
    is as it was."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    screen = Screen(reader)
    before = {number: signal.signal(number, lambda *_: None) for number in HEARD}
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    ended = None
    try:
        screen.begin()
        yield screen
    except Ended as error:
        ended = error.number
    finally:
        screen.end()
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
    if ended is not None:
        _obey(ended)


def _obey(number: int) -> None:
    """Have a signal do what it does to a process that does not care."""
    handler = signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.signal(number, handler)
