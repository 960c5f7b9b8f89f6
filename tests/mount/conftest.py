"""Real mounts for tests: made by the command line, checked and taken down again."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from forked import Commands

from hmmfs.common import mountinfo
from hmmfs.daemon.watchdog import abort
from hmmfs.errors import HmmfsError
from hmmfs.inspect.mount.accounts import disagreements
from hmmfs.mounting.mounts import unmount
from tests.stacks import mount_that_hangs

HMMFS = (sys.executable, "-m", "hmmfs")
# Seconds after which a mount's connection is aborted, so that whatever waits for it gets an error
# and the test ends by failing: before pytest-timeout's limit, which can't wake a process in D.
PATIENCE_S = 100.0


def takes_root(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(os.geteuid() != 0, reason=reason)


# Options of the kinds of memory that keep a file's bytes in ways of their own.
KINDS = {
    "private": {"type": "private"},
    "coherent": {"type": "coherent"},
    "recall": {"type": "coherent", "passthrough": "off"},
    "dax": {"type": "dax"},
}

moves_programs = takes_root("pages of programs move for root only")
passes_through = takes_root("the kernel passes memory through for root only")


def run(
    *args: str, check: bool = True, timeout: float = 60, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, its output as text; a failure shows what it said. cwd: where another build of
    the package is, to be run in its place."""
    done = subprocess.run([*HMMFS, *args], capture_output=True, text=True, timeout=timeout, cwd=cwd)
    if check and done.returncode:
        raise AssertionError(f"hmmfs {' '.join(args)}: {done.returncode}: {done.stderr}")
    return done


@dataclass
class Mount:
    """A running mount. `path` is its top directory, `log` what the daemon wrote."""

    path: Path
    log: Path

    @property
    def regions(self) -> Path:
        return self.path / "regions"

    @property
    def pid(self) -> int:
        return self.values("stats")["pid"]

    def values(self, name: str) -> dict[str, int]:
        """The `key value` lines of a control file."""
        lines = (self.path / name).read_text().splitlines()
        return {key: int(value) for key, value in (line.split(" ", 1) for line in lines)}

    def residency(self, region: str) -> dict[str, int]:
        return self.values(f"state/{region}/residency")

    def submit(self, device: int, operation: str) -> str:
        """One operation; its answer without the newline. OSError carries its errno."""
        fd = os.open(self.path / f"devices/dev{device}/submit", os.O_RDWR)
        try:
            os.write(fd, operation.encode() + b"\n")
            return os.read(fd, 1 << 18).decode().rstrip("\n")
        finally:
            os.close(fd)

    def region(self, name: str, size: int) -> Path:
        path = self.regions / name
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def audit(self) -> str:
        """The word ok, or the first broken invariant; exact while nothing else runs."""
        return (self.path / "audit").read_text().strip()

    def disagreements(self) -> list[str]:
        """Of its numbers, once each region has a name: what was unlinked just now is in no file of
        state/, and its pages count until the kernel says that nobody has it open."""
        wait_until(lambda: self.values("stats")["regions"] == len(os.listdir(self.path / "state")))
        return disagreements(self.path)


def let_others_reach(path: Path) -> None:
    """What pytest makes for temporary files only its user can look into, however deep it is."""
    for directory in (path, *path.parents):
        found = directory.stat()
        if found.st_uid != os.geteuid() or found.st_mode & stat.S_ISVTX or directory == Path.home():
            break  # it is not pytest's
        directory.chmod(found.st_mode | 0o55)


def fails(number: int, call: Callable[[], object]) -> None:
    """The call raises OSError with that errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        call()
    assert caught.value.errno == number, caught.value


def connection(path: Path) -> int | None:
    entry = mountinfo.find_hmmfs(str(path))
    return entry.minor if entry else None


def ended(pid: int) -> bool:
    """Whether a daemon is gone: one that nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def unwedged(mount: Mount, patience_s: float) -> Iterator[None]:
    """If the body takes too long, say where all hangs, and abort the mount's connection."""
    number, pid = connection(mount.path), mount.pid

    def free() -> None:
        faulthandler.dump_traceback(sys.__stderr__)
        try:
            print(mount_that_hangs(mount.path, pid, mount.log), file=sys.__stderr__, flush=True)
        finally:
            if number is not None:
                abort(number)

    timer = threading.Timer(patience_s, free)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def below(entry: mountinfo.Entry, tops: tuple[Path, ...]) -> bool:
    return entry.point.startswith(tuple(map(str, tops)))


def belongings(tops: tuple[Path, ...]) -> dict[str, set[str]]:
    """What this process and its children hold that outlives a forgetful test; mounts below `tops`
    are theirs."""
    me = psutil.Process()
    # Another run of the tests may be under way.
    ours = [entry for entry in mountinfo.entries() if below(entry, tops)]
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
    with open("/proc/self/maps") as maps:
        memfds = {line.split(maxsplit=5)[5].strip() for line in maps if "memfd:" in line}
    return {
        "processes": {f"{child.pid} {child.name()}" for child in me.children(recursive=True)},
        "descriptors": {f"{fd} {what}" for fd, what in fds.items() if "/proc/" not in what},
        "memfds": memfds,
        "mounts": {entry.point for entry in ours if entry.type == mountinfo.TYPE},
        "connections": set(os.listdir("/sys/fs/fuse/connections")) - others(tops),
    }


def others(tops: tuple[Path, ...]) -> set[str]:
    """The FUSE connections of mounts that are not below `tops`, in any process's namespace."""
    numbers, namespaces = set(), set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        # Processes end meanwhile, and other users' are hidden.
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in namespaces:
                entries = mountinfo.entries(pid)
                namespaces.add(namespace)
                numbers |= {
                    str(entry.minor)
                    for entry in entries
                    if entry.type.startswith("fuse") and not below(entry, tops)
                }
    return numbers


@pytest.fixture(scope="session")
def for_others() -> None:
    """Skips where other users can't read this checkout, as one in root's home."""
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    done = subprocess.run([*command, "-c", "import hmmfs"], capture_output=True, cwd="/")
    if done.returncode:
        pytest.skip("other users can't read this checkout")


COMMANDS: list[Commands] = []  # while there are tests, one


@pytest.fixture(scope="session", autouse=True)
def commands() -> Iterator[None]:
    with Commands() as made:
        COMMANDS.append(made)
        yield
        COMMANDS.clear()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory, temporary_files: Path) -> Iterator[None]:
    """No test leaves a process, a descriptor, a memfd, a mount or a connection behind."""
    tops = (tmp_path_factory.getbasetemp(), temporary_files)
    before = belongings(tops)
    yield

    def left() -> dict[str, set[str]]:
        now = belongings(tops)
        return {kind: now[kind] - before[kind] for kind in now if now[kind] - before[kind]}

    if not wait_until(lambda: not left(), 0.2):
        gc.collect()  # frames of exceptions that a test caught hold maps and files
        assert wait_until(lambda: not left(), 5), left()


MountFactory = Callable[..., Mount]


@contextlib.contextmanager
def mounted(
    base: Path,
    patience_s: float,
    *,
    build: Path | None = None,
    warns: tuple[str, ...] = (),
    **options: object,
) -> Iterator[Mount]:
    """A mount in a directory of its own within `base`, audited and unmounted at the end. build:
    where another build of the package is. warns: words of what its log may warn of."""
    if os.geteuid() and "dax" in str(options.get("type")):
        pytest.skip("DAX memory takes root: the kernel passes it through")
    number = len(list(base.glob("mnt*")))
    mount = Mount(base / f"mnt{number}", base / f"log{number}")
    mount.path.mkdir()
    words = [f"{name}={value}" for name, value in options.items()]
    command = ("mount", str(mount.path), "-o", ",".join([*words, f"log={mount.log}"]))
    # What the loader is told takes a program that starts.
    if build or "LD_PRELOAD" in os.environ:
        run(*command, cwd=build)
    else:
        status, said = COMMANDS[0].run(*command)
        assert status == 0, f"hmmfs {' '.join(command)}: {status}: {said}"
    with contextlib.ExitStack() as stack:
        stack.callback(_take_down, mount, psutil.Process(mount.pid), warns)
        stack.enter_context(unwedged(mount, patience_s))
        yield mount


@pytest.fixture
def mount_factory(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MountFactory]:
    """mount_factory(option=value, …) -> Mount; every one is audited and unmounted at the end.

    A test that ends its mount itself leaves nothing to do. A log with a traceback fails the test,
    and so does a warning, but for those with words of the test's mark `warns`.
    """
    warns = tuple(word for mark in request.node.iter_markers("warns") for word in mark.args)
    patience_s = PATIENCE_S * (100 if request.node.get_closest_marker("long") else 1)
    with contextlib.ExitStack() as stack:

        def make(**options: object) -> Mount:
            return stack.enter_context(mounted(tmp_path, patience_s, warns=warns, **options))

        yield make


def _take_down(mount: Mount, daemon: psutil.Process, warns: tuple[str, ...]) -> None:
    pid, workers = daemon.pid, []
    with contextlib.suppress(psutil.NoSuchProcess):
        workers = daemon.children(recursive=True)
    try:
        if connection(mount.path) is not None:
            assert mount.audit() == "ok"
            # The service may still push out what it let a program's fault take of the reserve.
            wait_until(lambda: mount.disagreements() == [], 5)
            assert mount.disagreements() == []
            try:
                unmount(str(mount.path))  # as `hmmfs umount`, without another process
            except HmmfsError:
                gc.collect()  # frames of exceptions that a test caught hold maps and files
                unmount(str(mount.path))
    finally:
        number = connection(mount.path)
        if number is not None:
            abort(number)
            with contextlib.suppress(HmmfsError):
                unmount(str(mount.path), lazy=True)
    assert wait_until(lambda: ended(pid), 30), f"the daemon {pid} outlived its mount"
    left = psutil.wait_procs(workers, timeout=5)[1]
    assert not left, f"workers outlived the daemon: {left}"
    log = mount.log.read_text()
    assert "Traceback" not in log, log
    for line in re.findall(r" hmmfs (?:WARNING|ERROR|CRITICAL): .*", log):
        assert any(words in line for words in warns), f"a warning that nobody expects:{line}"


@pytest.fixture
def mount(mount_factory: MountFactory) -> Mount:
    """A mount with two small devices, so that whatever does not fit shows."""
    return mount_factory(vram="8M", devices=2, host="64M")
