"""The watchdog frees a mount whose daemon was killed, and leaves every other alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hmmfs.daemon import watchdog
from hmmfs.daemon.watchdog import Watchdog
from hmmfs.mounting import mounts as mounting
from hmmfs.mounting.config import Config

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

# The sleeper inherits /dev/fuse and the watchdog's pipe, as a daemon's thread that is stuck in the
# kernel keeps them: only the parent-death signal tells, and only an abort helps.
HOLDER = """
import os, sys, time
from hmmfs.mounting.config import Config
from hmmfs.mounting import mounts as mounting
from hmmfs.daemon.watchdog import Watchdog
dog = Watchdog.start()
mounted = mounting.mount(sys.argv[1], Config())
dog.guard(mounted.path, mounted.connection_id)
sleeper = 0
if sys.argv[2] == "stuck":
    sleeper = os.fork()
    if sleeper == 0:
        time.sleep(60)
        os._exit(0)
print(dog.pid, sleeper, flush=True)
sys.stdin.readline()
dog.dismiss()
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Holder:
    """A process that holds an hmmfs mount and never answers on it."""

    def __init__(self, point: Path, manner: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(point), manner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.dog, self.sleeper = map(int, self.process.stdout.readline().split())

    def close(self) -> None:
        if self.sleeper:
            os.kill(self.sleeper, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if mounting.is_mounted(str(path)):
        mounting.unmount(str(path), lazy=True)


@pytest.mark.parametrize("manner", ["plain", "stuck"])
def test_killed_daemon(point: Path, manner: str) -> None:
    holder = Holder(point, manner)
    try:
        program = "import os, sys; print(flush=True); os.stat(sys.argv[1])"
        client = subprocess.Popen(
            [sys.executable, "-c", program, point],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert client.stdout is not None
        client.stdout.readline()  # from here on it sleeps only in its request
        state = Path(f"/proc/{client.pid}/stat")
        until(lambda: state.read_text().rsplit(")", 1)[1].split()[0] in "SD")
        holder.process.kill()
        until(lambda: not mounting.is_mounted(str(point)))
        _, message = client.communicate(timeout=10)
        assert client.returncode == 1, message
        until(lambda: gone(holder.dog))
        os.stat(point)
    finally:
        holder.close()


def test_orderly_goodbye(point: Path) -> None:
    holder = Holder(point, "plain")
    try:
        assert holder.process.stdin is not None
        holder.process.stdin.write("\n")
        holder.process.stdin.flush()
        holder.process.wait(timeout=10)
        until(lambda: gone(holder.dog))
        assert mounting.is_mounted(str(point))
    finally:
        holder.close()


def test_holds_nothing_of_ours(tmp_path: Path) -> None:
    with open(tmp_path / "held", "w"):
        dog = Watchdog.start()
        try:
            fds = Path(f"/proc/{dog.pid}/fd")
            until(lambda: Path(f"/proc/{dog.pid}/comm").read_text() == "hmmfs-watchdog\n")
            targets = [os.readlink(fd) for fd in fds.iterdir()]
            assert all(target.startswith(("pipe:", "/dev/null")) for target in targets), targets
            assert os.getsid(dog.pid) == dog.pid
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(dog.pid, number)
            assert not gone(dog.pid)
        finally:
            dog.dismiss()
    dog.dismiss()
    assert gone(dog.pid)


def test_another_mount_on_the_path_is_left_alone(point: Path) -> None:
    """The daemon's own mount is gone and somebody mounted anew: not the dead daemon's to end."""
    holder = Holder(point, "plain")
    try:
        mounting.unmount(str(point), lazy=True)
        other = mounting.mount(str(point), Config())
        holder.process.kill()
        until(lambda: gone(holder.dog))
        assert mounting.is_mounted(str(point))
        os.close(other.fd)
    finally:
        holder.close()


@pytest.mark.parametrize("control", ["/sys/fs/fuse/connections", "/nowhere"])
def test_abort(point: Path, monkeypatch: pytest.MonkeyPatch, control: str) -> None:
    """Where fusectl is not mounted it is reached through a mount that nobody else sees."""
    monkeypatch.setattr(watchdog, "_CONTROL", control)
    mounted = mounting.mount(str(point), Config())
    try:
        assert watchdog.abort(mounted.connection_id)
        with pytest.raises(OSError, match=r"connected|aborted"):
            os.stat(point)
        assert not watchdog.abort(999_999)
    finally:
        os.close(mounted.fd)
