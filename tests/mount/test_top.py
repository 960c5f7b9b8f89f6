"""hmmfs top on a real terminal: what is on its screen, what keys do, and how it leaves."""

from __future__ import annotations

import os
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pexpect
import pyte
import pytest
from conftest import Mount, MountFactory, run, wait_until

import hmmfs

M = 1 << 20


class Terminal:
    """A terminal of so many rows and columns with hmmfs top on it; `text` is what it shows."""

    def __init__(self, *words: str, rows: int = 24, columns: int = 80) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "hmmfs", "top", *words],
            dimensions=(rows, columns),
            env={**os.environ, "TERM": "xterm-256color"},
            timeout=10,
        )
        self.modes = termios.tcgetattr(self.child.child_fd)
        self.ended = False

    def read(self, seconds: float = 0.05) -> None:
        try:
            self._stream.feed(self.child.read_nonblocking(1 << 16, seconds))
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            self.ended = True

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def shows(self, what: str | Callable[[str], bool], seconds: float = 10) -> bool:
        """Whether it does, now or soon."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if what in self.text if isinstance(what, str) else what(self.text):
                return True
            self.read()
        return False

    def press(self, keys: str) -> None:
        self.child.send(keys)

    def resize(self, rows: int, columns: int) -> None:
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def status(self) -> int | None:
        """How it ended, once it has: negative for a signal."""
        assert wait_until(lambda: self.ended or bool(self.read()) or self.ended)
        self.child.close()
        return -self.child.signalstatus if self.child.signalstatus else self.child.exitstatus


@contextmanager
def top(mount: Mount, **size: int) -> Iterator[Terminal]:
    terminal = Terminal(str(mount.path), "-d", "0.1", **size)
    try:
        yield terminal
    finally:
        terminal.child.close(force=True)


def touch(x: np.ndarray) -> None:
    x[::4096] += 1


@pytest.fixture
def busy(mount_factory: MountFactory) -> Mount:
    mount = mount_factory(vram="4M", devices=2, host="64M")
    machine = hmmfs.connect(mount.path)
    for name, size in (("small", 1), ("grid", 6)):
        region = machine.region(name, size * M)
        for _ in range(2):
            machine.dev0.launch(touch, hmmfs.updates(region)).wait()
    return mount


def test_what_it_shows_and_how_it_leaves(busy: Mount) -> None:
    with top(busy) as terminal:
        assert terminal.shows("dev1")
        assert "100% of 4 MiB" in terminal.text
        assert terminal.shows("small")
        assert "!capacity dev0" in terminal.text
        assert terminal.shows("000000000000")
        inside = termios.tcgetattr(terminal.child.child_fd)
        assert not inside[3] & (termios.ICANON | termios.ECHO), "keys come as they are pressed"
        terminal.press("q")
        assert terminal.shows(lambda _: terminal.ended)
        assert terminal.status() == 0


def test_its_modes_are_put_back(busy: Mount) -> None:
    """By a key, and by a signal."""
    for leave in ("key", "signal"):
        with top(busy) as terminal:
            fd = os.dup(terminal.child.child_fd)
            assert terminal.shows("grid")
            if leave == "key":
                terminal.press("q")
            else:
                os.kill(terminal.child.pid, signal.SIGTERM)
            assert terminal.shows(lambda _, terminal=terminal: terminal.ended)
            assert termios.tcgetattr(fd) == terminal.modes
            os.close(fd)
            assert terminal.status() == (0 if leave == "key" else -signal.SIGTERM)


def order(text: str) -> list[str]:
    """The regions of the table, from the top."""
    return [
        name for line in text.splitlines() for name in ("grid", "small") if f"  {name} " in line
    ]


def test_keys(busy: Mount) -> None:
    with top(busy) as terminal:
        assert terminal.shows(lambda text: order(text) == ["grid", "small"])
        terminal.press("r")
        assert terminal.shows(lambda text: order(text) == ["small", "grid"])
        terminal.press("rs")
        assert terminal.shows(lambda text: "by name" not in text)
        terminal.press("sss")
        assert terminal.shows("by name")
        assert terminal.shows("grid, ")
        terminal.press("j")
        assert terminal.shows("small, "), "its map, now"
        terminal.press("\x1b[A")
        assert terminal.shows("grid, ")
        terminal.press("+")
        assert terminal.shows("every 0.2 s")
        terminal.press("-")
        assert terminal.shows("every 0.1 s")
        terminal.press("h")
        assert terminal.shows("pause")
        terminal.press("h")
        assert terminal.shows("100% of 4 MiB")
        terminal.press("q")
        assert terminal.shows(lambda _: terminal.ended)


def test_a_pause(busy: Mount) -> None:
    """What happens meanwhile is not seen until it goes on."""
    machine = hmmfs.connect(busy.path)
    with top(busy) as terminal:
        assert terminal.shows("grid")
        terminal.press("p")
        assert terminal.shows("PAUSED")
        before = terminal.text
        machine.region("later", M)
        machine.dev1.launch(touch, hmmfs.updates(machine.region("later"))).wait()
        assert not terminal.shows(lambda text: text != before, 0.5)
        terminal.press(" ")
        assert terminal.shows("later")


def test_sizes(busy: Mount) -> None:
    with top(busy, rows=5, columns=20) as terminal:
        assert terminal.shows(lambda text: bool(text.strip()))
        terminal.resize(40, 120)
        assert terminal.shows("000000000000")
        assert max(map(len, terminal.text.splitlines())) > 60
        terminal.press("q")
        assert terminal.shows(lambda _: terminal.ended)


def test_names_are_not_obeyed(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="4M", host="16M")
    for name in (b"[red]x", b"\x1b[2Jgone", b"\xff\xfe", b"line\nbreak"):
        with open(os.fsencode(mount.regions) + b"/" + name, "wb") as file:
            file.truncate(4096)
    with top(mount) as terminal:
        assert terminal.shows("[red]x")
        assert terminal.shows("\\033[2Jgone")
        assert terminal.shows("\\377\\376")
        assert terminal.shows("line\\012break")


@pytest.mark.parametrize("devices", [0, 15])
def test_devices_of_any_number(mount_factory: MountFactory, devices: int) -> None:
    mount = mount_factory(vram="4M", host="16M", devices=devices)
    with top(mount) as terminal:
        assert terminal.shows("h: help")
        assert ("dev0" in terminal.text) == bool(devices)


def test_a_mount_that_goes_away(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="4M", host="16M")
    with top(mount) as terminal:
        assert terminal.shows("dev0")
        run("umount", "-z", str(mount.path))
        assert terminal.shows(lambda text: "is gone." in text.replace("\n", "")), (
            "on how many lines"
        )
        assert "Traceback" not in terminal.text
        assert terminal.status() == 1


def test_no_terminal(busy: Mount) -> None:
    done = run("top", str(busy.path), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("hmmfs: hmmfs top needs a terminal")
