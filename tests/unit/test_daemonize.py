"""Going to the background, with real forks."""

import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hmmfs.errors import HmmfsError, UsageError
from hmmfs.mounting.daemonize import in_background, sd_notify

Ready = Callable[[], None]


def test_returns_when_ready(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    note = tmp_path / "note"
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def work(ready: Ready) -> int:
        os.write(1, b"before\n")
        ready()
        ready()
        os.write(1, b"after\n")
        gate.read_text()  # still at work when the parent has returned
        note.write_text(f"{os.getsid(0)} {os.getpid()} {os.path.realpath('/proc/self/fd/2')}")
        return 0

    assert in_background(work) == 0
    assert not note.exists()
    gate.write_text("go")
    deadline = time.monotonic() + 10
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    session, pid, stderr = note.read_text().split()
    os.waitpid(int(pid), 0)
    assert session == pid
    assert int(pid) != os.getpid()
    assert stderr == "/dev/null"
    assert capfd.readouterr().out == "before\n"


def test_error_reaches_the_parent() -> None:
    def fail(_: Ready) -> int:
        raise HmmfsError(errno.EBUSY, "The mount is taken.")

    with pytest.raises(HmmfsError, match=r"^The mount is taken\.$") as caught:
        in_background(fail)
    assert caught.value.errno == errno.EBUSY


def test_usage_error_stays_one() -> None:
    def fail(_: Ready) -> int:
        raise UsageError("Say it otherwise.")

    with pytest.raises(UsageError, match="Say it otherwise"):
        in_background(fail)


def test_unforeseen_error_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(_: Ready) -> int:
        raise ZeroDivisionError("oops")

    with pytest.raises(HmmfsError, match=r"The daemon failed before .* ZeroDivisionError"):
        in_background(fail)
    assert "Traceback" in capfd.readouterr().err


def test_death_without_a_word() -> None:
    def die(_: Ready) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with pytest.raises(HmmfsError, match="was killed by SIGKILL before the mount was ready"):
        in_background(die)
    with pytest.raises(HmmfsError, match="ended with status 3 before the mount was ready"):
        in_background(lambda _: 3)


@pytest.mark.parametrize("abstract", [False, True])
def test_sd_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"hmmfs-test-{os.getpid()}" if abstract else str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        sd_notify("READY=1")
        listener.settimeout(5)
        assert listener.recv(64) == b"READY=1"


def test_sd_notify_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    sd_notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    sd_notify("READY=1")
