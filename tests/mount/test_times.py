"""mtime and ctime of regions, step by step beside a file of a tmpfs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import KINDS, PATIENCE_S, Mount, mounted

import hmmfs

PAGE, M = 4096, 1 << 20
COARSE = 5  # CLOCK_REALTIME_COARSE, by which the kernel keeps times
KEEP_SIZE, PUNCH_HOLE = 1, 2
YEAR_2001 = 1_000_000_000 * 10**9 + 123_456_789
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


@pytest.fixture(scope="module", params=KINDS)
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    base = tmp_path_factory.mktemp(request.param)
    with mounted(
        base, PATIENCE_S * 5, vram="8M", devices=2, host="32M", **KINDS[request.param]
    ) as one:
        yield one


@pytest.fixture
def mount(kind: Mount) -> Iterator[Mount]:
    """One mount of each kind for all tests, empty in the beginning."""
    yield kind
    gc.collect()  # what a failed test had mapped
    for path in kind.regions.iterdir():
        path.unlink()


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="hmmfs-test-") as path:
        yield Path(path)


def tick() -> None:
    """Wait until the kernel's clock, which moves in ticks, shows a later time than any before."""
    began = time.time_ns()
    while time.clock_gettime_ns(COARSE) <= began:
        time.sleep(0.0005)


def times(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ctime_ns


def moved(path: Path, step: Callable[[], object]) -> str:
    """Which times a step moves: m, c."""
    before = times(path)
    tick()
    with contextlib.suppress(OSError):
        step()
    after = times(path)
    assert max(after) <= time.time_ns() or after[0] != before[0]
    return "".join(name for name, a, b in zip("mc", before, after, strict=True) if a != b)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


def steps(path: Path, fd: int) -> dict[str, Callable[[], object]]:
    """What programs do to a file and to its name."""
    beside = path.with_name("beside")
    read_only = path.with_name("empty")
    read_only.touch()

    def reopened(flags: int) -> Callable[[], object]:
        return lambda: os.close(os.open(path, os.O_RDWR | flags))

    def in_place() -> None:
        os.rename(path, beside)
        os.rename(beside, path)

    def replaced() -> None:
        beside.touch()
        subprocess.run(["mv", beside, path.with_name("other")], check=True)

    return {
        "write": lambda: os.pwrite(fd, b"x" * 3 * PAGE, 0),
        "write nothing": lambda: os.pwrite(fd, b"", 0),
        "read": lambda: os.pread(fd, 100, 0),
        "append": lambda: subprocess.run(f"echo >> {path}", shell=True, check=True),
        "fsync": lambda: os.fsync(fd),
        "fdatasync": lambda: os.fdatasync(fd),
        "truncate to the same size": lambda: os.truncate(path, path.stat().st_size),
        "ftruncate to the same size": lambda: os.ftruncate(fd, path.stat().st_size),
        "grow": lambda: os.truncate(path, 100 * PAGE),
        "shrink": lambda: os.ftruncate(fd, 5 * PAGE - 7),
        "truncate to less than nothing": lambda: os.truncate(path, -1),
        "O_TRUNC": reopened(os.O_TRUNC),
        "O_TRUNC of nothing": reopened(os.O_TRUNC),
        "open": reopened(0),
        "fallocate": lambda: fallocate(fd, 0, 0, 16 * PAGE),
        "fallocate again": lambda: fallocate(fd, 0, 100, 5 * PAGE),
        "fallocate, size kept": lambda: fallocate(fd, KEEP_SIZE, 0, 16 * PAGE),
        "punch": lambda: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 3 * PAGE),
        "punch a part": lambda: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 10, 70),
        "punch past the end": lambda: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, M, PAGE),
        "fallocate of nothing": lambda: fallocate(fd, 0, 0, 0),
        "fallocate of more than there is": lambda: fallocate(fd, 0, 0, 1 << 50),
        "copy_file_range": lambda: os.copy_file_range(fd, fd, 10, 0, 9 * PAGE),
        "set": lambda: os.utime(path, ns=(YEAR_2001, YEAR_2001)),
        "read after that": lambda: os.pread(fd, 100, 0),
        "fsync after that": lambda: os.fsync(fd),
        "chmod": lambda: path.chmod(0o640),
        "chown": lambda: os.chown(path, 1000, 1000),
        "chown to the same": lambda: os.chown(path, 1000, 1000),
        "rename": in_place,
        "rename to itself": lambda: os.rename(path, path),
        "another is renamed": replaced,
        "set to now": lambda: os.utime(path),
        "set by descriptor": lambda: os.utime(fd, ns=(1, 2)),
        "unlink": lambda: path.with_name("empty").unlink(),
        "write again": lambda: os.pwrite(fd, b"x", 7),
    }


def test_as_on_tmpfs(mount: Mount, tmpfs: Path) -> None:
    found: list[dict[str, str]] = []
    sizes: list[list[int]] = []
    for path in (tmpfs / "a", mount.regions / "a"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        found.append({})
        sizes.append([])
        for name, step in steps(path, fd).items():
            found[-1][name] = moved(path, step)
            sizes[-1].append(path.stat().st_size)
        os.close(fd)
    assert found[1] == found[0]
    assert sizes[1] == sizes[0]
    assert found[0]["set"] == "mc", "the steps are steps"


SET = {
    "2001": YEAR_2001,
    "before 1970": -1_234_567_890_123_456_789,
    "just before 1970": -1,
    "1970": 0,
    "after 2038": 5_000_000_000 * 10**9 + 1,
    "2262": 2**63 - 1,
}


def test_a_time_that_was_set_stays(mount: Mount) -> None:
    for when, ns in SET.items():
        path = mount.regions / "a"
        path.write_bytes(bytes(3 * PAGE))
        os.utime(path, ns=(ns, ns))
        assert (path.stat().st_mtime_ns, path.stat().st_atime_ns) == (ns, ns), when
        path.read_bytes()
        mount.submit(0, "checksum a")
        assert (path.stat().st_mtime_ns, path.stat().st_atime_ns) == (ns, ns), when


def test_a_time_past_what_is_kept(mount: Mount) -> None:
    """Times are kept to the nanosecond, from 1677 to 2262: others become the nearest of these."""
    path = mount.regions / "a"
    path.touch()
    subprocess.run(["touch", "-d", "@99999999999", path], check=True)
    assert path.stat().st_mtime_ns == 2**63 - 1
    subprocess.run(["touch", "-d", "@-99999999999", path], check=True)
    assert path.stat().st_mtime_ns == -9_223_372_036 * 10**9


UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def test_one_of_both(mount: Mount) -> None:
    path = mount.regions / "a"
    path.write_bytes(b"x")
    os.utime(path, ns=(1, 2))

    def utimensat(atime: int, mtime: int) -> tuple[int, int]:
        specs = (ctypes.c_long * 4)(77, atime, 88, mtime)
        assert libc.utimensat(-100, os.fsencode(path), specs, 0) == 0
        return path.stat().st_atime_ns, path.stat().st_mtime_ns

    assert utimensat(UTIME_OMIT, 5) == (1, 88 * 10**9 + 5)
    assert utimensat(6, UTIME_OMIT) == (77 * 10**9 + 6, 88 * 10**9 + 5)
    before = path.stat().st_ctime_ns
    tick()
    assert utimensat(UTIME_OMIT, UTIME_OMIT) == (77 * 10**9 + 6, 88 * 10**9 + 5)
    assert path.stat().st_ctime_ns == before
    atime, mtime = utimensat(8, UTIME_NOW)
    assert atime == 77 * 10**9 + 8
    assert before < mtime <= time.time_ns()


def test_what_comes_later_is_newer(mount: Mount) -> None:
    """make relies on that. Writes and touch take their times from different clocks."""
    a, b = mount.regions / "a", mount.regions / "b"
    steps: tuple[Callable[[Path], object], ...] = (
        lambda path: path.write_bytes(b"x"),
        lambda path: path.touch(),
        lambda path: os.truncate(path, 5),
        lambda path: os.utime(path),
    )
    last = 0
    for number in range(200):
        path = (a, b)[number % 2]
        steps[number % len(steps)](path)
        found = path.stat()
        assert last <= found.st_mtime_ns <= found.st_ctime_ns, number
        last = found.st_mtime_ns


TOOLS = {
    "touch -d": "touch -d 2001-09-09T01:46:40.123456789Z b",
    "touch -r": "touch -r a b",
    "cp -p": "cp -p a b",
    "rsync -t": "rsync -t a b",
    "tar": "tar -C . -cf a.tar a && mkdir out && tar -C out -xf a.tar && cp -p out/a b",
    "install -p": "install -p a b",
}


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_tools_that_set_times(mount: Mount, tmp_path: Path, tool: str) -> None:
    source, target = tmp_path / "a", mount.regions / "b"
    source.write_bytes(os.urandom(3 * M))
    os.utime(source, ns=(YEAR_2001, YEAR_2001))
    target.write_bytes(b"old")
    (tmp_path / "b").symlink_to(target)
    subprocess.run(tool.replace(" b", f" {target}"), shell=True, cwd=tmp_path, check=True)
    wanted = YEAR_2001 if tool[:3] != "tar" else YEAR_2001 // 10**9 * 10**9
    assert target.stat().st_mtime_ns == wanted
    mount.submit(0, "checksum b")
    assert target.stat().st_mtime_ns == wanted


def stored(path: Path, at: int) -> mmap.mmap:
    """A mapping with a store in it that nobody has announced."""
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    mapped[at] ^= 1
    return mapped


def test_a_mapped_store_moves_them(mount: Mount) -> None:
    """At msync or munmap at the latest, and once for each round of stores."""
    path = mount.regions / "a"
    path.write_bytes(bytes(8 * PAGE))
    with stored(path, 0) as mapped:
        mapped.flush()
        for end in (mapped.flush, mapped.close):
            before = times(path)
            tick()
            mapped[5 * PAGE] ^= 1
            end()
            kind = (mount.path / "devices/dev0/type").read_text().strip()
            if kind in ("private", "coherent recall"):  # on a tmpfs only the first store of a page
                assert min(times(path)) > max(before)


AFTERWARDS: dict[str, Callable[[Mount, mmap.mmap], object]] = {
    "nothing": lambda mount, mapped: None,
    "msync": lambda mount, mapped: mapped.flush(),
    "munmap": lambda mount, mapped: mapped.close(),
    "a device's load": lambda mount, mapped: mount.submit(0, "checksum a"),
    "a device's fill elsewhere": lambda mount, mapped: mount.submit(0, "fill b:0+1 1"),
    "a kernel's load": lambda mount, mapped: _launch(mount, _load, "reads"),
    "migration and back": lambda mount, mapped: (_migrate(mount, "dev0"), _migrate(mount, "host")),
    "a load": lambda mount, mapped: mapped[0],
    "sync": lambda mount, mapped: os.sync(),
}


@pytest.mark.parametrize("what", AFTERWARDS)
def test_set_after_a_mapped_store(mount: Mount, what: str) -> None:
    """What is written back later was stored before."""
    path = mount.regions / "a"
    path.write_bytes(bytes(8 * PAGE))
    (mount.regions / "b").write_bytes(bytes(8 * PAGE))
    with stored(path, 3 * PAGE) as mapped:
        assert moved(path, lambda: os.utime(path, ns=(YEAR_2001, YEAR_2001))) == "mc"
        assert moved(path, lambda: AFTERWARDS[what](mount, mapped)) == ""
    assert path.stat().st_mtime_ns == YEAR_2001
    assert path.read_bytes() == bytes(3 * PAGE) + b"\1" + bytes(5 * PAGE - 1)


def test_set_after_mapped_stores_to_several_blocks(mount: Mount) -> None:
    path = mount.regions / "a"
    path.write_bytes(bytes(5 * M))
    with stored(path, 3 * PAGE) as mapped:
        mapped[2 * M] = mapped[4 * M + 5] = 7
        os.utime(path, ns=(YEAR_2001, YEAR_2001))
        assert moved(path, mapped.flush) == ""
    assert path.stat().st_mtime_ns == YEAR_2001


def test_set_between_mapped_stores(mount: Mount) -> None:
    """A store after the time was set counts, on the very page of the one before it. Memory that
    the kernel passes through is as a tmpfs: it sees the first store of a page alone."""
    path = mount.regions / "a"
    path.write_bytes(bytes(8 * PAGE))
    with stored(path, 3 * PAGE) as mapped:
        os.utime(path, ns=(YEAR_2001, YEAR_2001))
        kind = (mount.path / "devices/dev0/type").read_text().strip()
        seen = kind not in ("coherent", "dax")
        mapped[3 * PAGE + 1] = 7
        mapped.flush()
        assert (path.stat().st_mtime_ns > YEAR_2001) == seen
    assert path.read_bytes()[3 * PAGE : 3 * PAGE + 2] == b"\1\7"


def test_set_in_a_storm(mount: Mount) -> None:
    """Of stores and of devices that take the pages: nothing waits for ever, no store is lost."""
    path, rounds = mount.regions / "a", 40
    path.write_bytes(bytes(4 * M))
    ended = threading.Event()
    counts = []

    def store(lane: int) -> None:
        n = 0
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            while not ended.is_set():
                n += 1
                for page in range(0, 4 * M, 64 * PAGE):
                    mapped[page + lane : page + lane + 4] = n.to_bytes(4, "little")
        counts.append((lane, n))

    threads = [threading.Thread(target=store, args=(lane,)) for lane in (0, 4)]
    for thread in threads:
        thread.start()
    for n in range(rounds):
        os.utime(path, ns=(YEAR_2001, YEAR_2001))
        mount.submit(n % 2, ("checksum a", "fill a:8+4 7", "read a:0+16")[n % 3])
    ended.set()
    for thread in threads:
        thread.join()
    data = path.read_bytes()
    for lane, n in counts:
        for page in range(0, 4 * M, 64 * PAGE):
            assert int.from_bytes(data[page + lane : page + lane + 4], "little") == n


# ---- devices ---------------------------------------------------------------------------------


def _load(a: np.ndarray[Any, Any]) -> int:
    return int(a.sum())


def _store(a: np.ndarray[Any, Any]) -> None:
    a[0] += 1


def _launch(mount: Mount, kernel: Callable[..., object], use: str) -> None:
    machine = hmmfs.connect(mount.path)
    machine.dev0.launch(kernel, getattr(hmmfs, use)(machine.region("a"))).wait()


def _migrate(mount: Mount, node: str) -> None:
    with contextlib.suppress(OSError):  # DAX memory never moves
        mount.submit(0, f"migrate a to {node}")


DEVICES: dict[str, tuple[str, Callable[[Mount], object]]] = {
    "checksum": ("", lambda mount: mount.submit(0, "checksum a")),
    "read": ("", lambda mount: mount.submit(0, "read a:0+16")),
    "load": ("", lambda mount: _launch(mount, _load, "reads")),
    "load again": ("", lambda mount: _launch(mount, _load, "reads")),
    "migrate": ("", lambda mount: _migrate(mount, "dev1")),
    "migrate home": ("", lambda mount: _migrate(mount, "host")),
    "evict": ("", lambda mount: (_migrate(mount, "dev0"), mount.submit(0, "checksum big"))),
    "program's load": ("", lambda mount: (mount.regions / "a").read_bytes()),
    "copy from it": ("", lambda mount: mount.submit(0, "copy a:0+5000 to big")),
    "advice": ("", lambda mount: (mount.path / "state/a/advice").write_text("all read_mostly")),
    "advice unset": ("", lambda mount: (mount.path / "state/a/advice").write_text("all unset_all")),
    "fill": ("mc", lambda mount: mount.submit(0, "fill a:0+100 90")),
    "write": ("mc", lambda mount: mount.submit(1, "write a:7 0102")),
    "copy to it": ("mc", lambda mount: mount.submit(0, "copy big:0+5000 to a")),
    "store": ("mc", lambda mount: _launch(mount, _store, "updates")),
    "store again": ("mc", lambda mount: _launch(mount, _store, "updates")),
}


def test_devices(mount: Mount) -> None:
    """Loads, migrations and evictions move nothing, whatever was set before; stores move both."""
    path = mount.regions / "a"
    path.write_bytes(bytes(2 * M))
    (mount.regions / "big").write_bytes(bytes(6 * M))
    found = {}
    for name, (_, step) in DEVICES.items():
        os.utime(path, ns=(YEAR_2001, YEAR_2001))
        found[name] = moved(path, lambda step=step: step(mount))  # type: ignore[misc]
    assert found == {name: wanted for name, (wanted, _) in DEVICES.items()}


def test_errors_of_the_calls_themselves(mount: Mount) -> None:
    """`moved` takes errors for steps without effect, so these are looked at here."""
    path = mount.regions / "a"
    path.touch()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        os.truncate(path, 1 << 62)
    assert caught.value.errno == errno.EFBIG
