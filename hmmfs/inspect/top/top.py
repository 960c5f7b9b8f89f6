"""`hmmfs top`: reads the mount now and then, and does what keys say."""

from __future__ import annotations

import contextlib
import errno
import time

from hmmfs.common import mountinfo
from hmmfs.common.names import printable
from hmmfs.errors import HmmfsError
from hmmfs.inspect.heat.heat import Detail, read_region
from hmmfs.inspect.mount.snapshot import Snapshot, read_snapshot
from hmmfs.inspect.top import terminal
from hmmfs.inspect.top.view import View, compose

INTERVALS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def watch(path: str, seconds: float) -> int:
    """Until the key q; exit status 0. HmmfsError: there is no terminal, or the mount is gone."""
    if not terminal.is_terminal():
        raise HmmfsError(
            errno.ENOTTY,
            "hmmfs top needs a terminal for keys and pictures: elsewhere use hmmfs smi -l 1.",
        )
    view = View(_snapshot(path), interval=seconds)
    # An end of file: where nobody is there any more.
    with terminal.opened() as screen, contextlib.suppress(EOFError):
        _watch(path, view, screen)
    return 0


def _watch(path: str, view: View, screen: terminal.Screen) -> None:
    view.detail = _detail(path, view)
    due = time.monotonic() + view.interval
    while True:
        if not view.paused and time.monotonic() >= due:
            view.take(_snapshot(path))
            view.detail = _detail(path, view)
            due = time.monotonic() + view.interval
        screen.draw(compose(view, *screen.size))
        patience = None if view.paused else max(0.0, due - time.monotonic())
        for key in screen.wait(patience):
            if key in ("q", "Q"):
                return
            _press(key, view)
            if key in ("+", "-"):
                due = time.monotonic() + view.interval
        if not view.paused and view.chosen != (view.detail or {}).get("name"):
            view.detail = _detail(path, view)


def _press(key: str, view: View) -> None:
    match key:
        case "p" | " ":
            view.paused = not view.paused
        case "s":
            view.next_sort()
        case "r":
            view.reverse = not view.reverse
        case "up" | "k":
            view.move(-1)
        case "down" | "j":
            view.move(+1)
        case "+":
            longer = [each for each in INTERVALS if each > view.interval]
            view.interval = longer[0] if longer else view.interval
        case "-":
            shorter = [each for each in INTERVALS if each < view.interval]
            view.interval = shorter[-1] if shorter else view.interval
        case "h" | "?":
            view.helping = not view.helping


def _snapshot(path: str) -> Snapshot:
    try:
        return read_snapshot(path)
    except HmmfsError:
        if mountinfo.find_hmmfs(path) is None:
            raise HmmfsError(errno.ENODEV, f"The mount on {printable(path)} is gone.") from None
        raise


def _detail(path: str, view: View) -> Detail | None:
    """None: there is no region, or the chosen one went away, or all did (see _snapshot)."""
    if view.chosen is None:
        return None
    try:
        return read_region(path, view.chosen)
    except HmmfsError as error:
        if error.errno == errno.ENOENT or mountinfo.find_hmmfs(path) is None:
            return None
        raise
