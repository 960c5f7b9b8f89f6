"""Every control file: that the README tells of it and of no other, what it says, what it takes, and
that it may be read while all is in motion."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import HMMFS, Mount, MountFactory, fails, wait_until

import hmmfs

M = 1 << 20
README = Path(hmmfs.__file__).parent / "filesystem/README.md"
# Waiting for more is what it is for; operations and calls are tested where they are carried out.
APART = (
    "trace_pipe",
    "devices/devN/submit",
    "devices/devN/calls/ID",
    "devices/devN/reset",
    "devices/devN/dmirror",
)


def documented() -> dict[str, bool]:
    """The files of the README's table, and whether they take anything."""
    table = README.read_text().partition("## The control files")[2].partition("An event is")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*)\| ", table, flags=re.M)
    return {name: bool(takes.strip()) for name, takes in rows}


def called(path: Path) -> str:
    """As the README calls it."""
    name = re.sub(r"^state/@\d+/devices", "state/@PID/devices", str(path))
    name = re.sub(r"^state/(?!@PID)[^/]+", "state/NAME", name)
    name = re.sub(r"/links/\w+$", "/links/NODE", name)
    return re.sub(r"^devices/dev\d+", "devices/devN", name)


def files(mount: Mount) -> Iterator[Path]:
    for top, _, names in os.walk(mount.path):
        for name in names:
            path = (Path(top) / name).relative_to(mount.path)
            if path.parts[0] != "regions":
                yield path


@pytest.fixture
def busy(mount_factory: MountFactory) -> Iterator[Mount]:
    """Of each kind of thing that files tell of, there is some."""
    mount = mount_factory(vram="4M", devices=2, host="64M", peer="nvlink3")
    machine = hmmfs.connect(mount.path)
    a, b = machine.region("a", 6 * M), machine.region("two words", 2 * M)
    a.cpu[:] = 1
    machine.dev0.launch(touch, hmmfs.updates(a)).wait()
    machine.dev1.launch(touch, hmmfs.updates(a), hmmfs.reads(b)).wait()
    a.cpu[::4096] += 1
    b.advise("accessed_by=dev0", "preferred_location=host")
    machine.dev0.launch(touch, hmmfs.updates(b)).wait()
    mount.submit(0, "migrate a:0+1M to dev1")
    command = [*HMMFS, "run", str(mount.path), "--", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as program:
        assert wait_until(lambda: (mount.path / f"state/@{program.pid}").exists())
        yield mount


def touch(x: np.ndarray, *more: np.ndarray) -> None:
    x[::4096] += 1
    for y in more:
        y[::4096].sum()


def test_the_readme_tells_of_each(busy: Mount) -> None:
    there = {called(path): path for path in files(busy)}
    told = documented()
    assert set(there) == set(told) - {"devices/devN/calls/ID"}
    for name, path in there.items():
        mode = stat.S_IMODE((busy.path / path).stat().st_mode)
        assert bool(mode & stat.S_IWUSR) == told[name], name
        assert bool(mode & stat.S_IRUSR) == (name != "devices/devN/reset"), name


def test_what_they_say_is_text(busy: Mount) -> None:
    for path in files(busy):
        if called(path) in APART:
            continue
        text = (busy.path / path).read_bytes()
        assert not text or text.endswith(b"\n"), path
        text.decode()
        with open(busy.path / path, "rb", buffering=0) as file:
            pieces = [file.read(10), *iter(lambda: file.read(100), b"")]
        assert not any(pieces) or pieces[-1].endswith(b"\n"), path


def test_what_a_file_says_it_takes(busy: Mount) -> None:
    for path in files(busy):
        name = called(path)
        if not documented()[name] or name in APART or name == "trace":
            continue
        said = (busy.path / path).read_text()
        if said:
            (busy.path / path).write_text(said)
            assert (busy.path / path).read_text() == said, path


def test_what_a_file_does_not_take(busy: Mount) -> None:
    for path in files(busy):
        name = called(path)
        if name in APART or name == "trace":
            continue
        if documented()[name]:
            fails(errno.EINVAL, lambda path=path: (busy.path / path).write_text("nonsense!"))
        else:
            fails(errno.EACCES, lambda path=path: (busy.path / path).write_text("1"))


def test_a_map_of_each_size(mount_factory: MountFactory) -> None:
    """The map counts what residency does (which the fixture checks, too), however long the file."""
    mount = mount_factory(vram="8M", devices=2, host="64M")
    for size in (1, 4096, 5000, M, 16 * M, 16 * M + 1, 300 * M, 1 << 30, 1 << 40):
        path = mount.region(f"r{size}", size)
        with open(path, "r+b") as file:
            for at in {0, size // 2, size - 1}:
                file.seek(at)
                file.write(b"x")
        name = path.name
        mount.submit(1, f"migrate {name}:{size - 1}+1 to dev1")
        head, *rows = (mount.path / "state" / name / "map").read_text().splitlines()
        width = int(head.split()[4])
        characters = -(-size // 4096 // width)
        assert characters <= 4096
        assert width == 1 or -(-size // 4096 // (width // 2)) > 4096 - 512
        assert width & (width - 1) == 0
        found = mount.residency(name)
        assert sum(int(n) for n in re.findall(r"host=(\d+)", " ".join(rows))) == found["pages_host"]
        for row in rows:
            at, drawn, *_ = row.split()
            assert int(at, 16) % (64 * width * 4096) == 0
            assert set(drawn) <= set(".h1+")
            assert len(drawn) <= 64
        last = rows[-1].split()[1]
        assert last[-1] in "1+", "its last page went to dev1"
        path.unlink()


def test_blocks_and_numa_maps(busy: Mount) -> None:
    head, *rows = (busy.path / "state/a/blocks").read_text().splitlines()
    assert head == ("# block host dev0 dev1 dirty cached kept cpu_faults device_faults evictions")
    numbers = [list(map(int, row.split())) for row in rows]
    assert [row[0] for row in numbers] == [0, 1, 2]
    assert sum(row[7] for row in numbers) == busy.values("state/a/faults")["cpu"] > 0
    assert sum(row[9] for row in numbers) > 0, "some of it was evicted"
    (line,) = (busy.path / "state/two words/numa_maps").read_text().splitlines()
    words = line.split(" ")
    assert words[:3] == ["000000000000", "prefer:0", "file=/regions/two\\040words"]
    assert words[-1] == "kernelpagesize_kB=4"


def test_attributes_are_the_files(busy: Mount) -> None:
    region = busy.regions / "two words"
    assert os.listxattr(region) == [], "tools copy what is listed"
    for short in ("advice", "faults", "numa", "residency"):
        name = f"user.hmmfs.{short}"
        assert os.getxattr(region, name) == (busy.path / f"state/two words/{short}").read_bytes()
    os.setxattr(region, "user.hmmfs.advice", b"all unset_all\nall pinned")
    assert (busy.path / "state/two words/advice").read_text() == "all pinned\n"
    fails(errno.EACCES, lambda: os.setxattr(region, "user.hmmfs.residency", b"pages_host 1"))
    fails(errno.EINVAL, lambda: os.setxattr(region, "user.hmmfs.advice", b"all nonsense"))
    fails(errno.ENODATA, lambda: os.getxattr(region, "user.hmmfs.prefetched"))
    fails(errno.EOPNOTSUPP, lambda: os.setxattr(region, "user.hmmfs.other", b"1"))
    fails(errno.EOPNOTSUPP, lambda: os.getxattr(region, "user.hmmfs.map"))
    fails(errno.EACCES, lambda: os.removexattr(region, "user.hmmfs.faults"))
    os.removexattr(region, "user.hmmfs.advice")
    fails(errno.ENODATA, lambda: os.getxattr(region, "user.hmmfs.advice"))


@pytest.mark.parametrize("kind", ["private", "coherent", "dax"])
def test_readers_in_a_storm(mount_factory: MountFactory, kind: str) -> None:
    """A reader of any file gets whole text while pages move; and afterwards all sums agree."""
    devices = 1 if kind == "dax" else 2
    mount = mount_factory(vram="6M", devices=devices, host="48M", type=kind, thrashing="uvm")
    machine = hmmfs.connect(mount.path)
    a = machine.region("a", 4 * M)
    stop = threading.Event()
    errors: list[BaseException] = []

    def until_stopped(work: Callable[[int], None]) -> Callable[[], None]:
        def loop() -> None:
            step = 0
            try:
                while not stop.is_set():
                    work(step)
                    step += 1
            except BaseException as error:
                errors.append(error)
                stop.set()

        return loop

    def read_all(step: int) -> None:
        for path in files(mount):
            if documented().get(name := called(path)) is None or name in APART:
                continue
            try:
                text = (mount.path / path).read_text()
            except FileNotFoundError:
                continue  # a region that has just gone
            assert not text or text.endswith("\n"), path

    def pipe(step: int) -> None:
        fd = os.open(mount.path / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while text := os.read(fd, 8192):
                assert all(
                    line.startswith(b"#") or line.count(b" ") == 10 for line in text.splitlines()
                )
        except BlockingIOError:
            pass
        finally:
            os.close(fd)

    def program(step: int) -> None:
        a.cpu[step * 4096 % (4 * M) :: 65536] += 1

    def come_and_go(step: int) -> None:
        path = mount.region(f"r{step % 5}", M)
        path.write_bytes(bytes(8192))
        path.unlink()

    work = [until_stopped(one) for one in (read_all, read_all, pipe, program, come_and_go)]
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for step in range(12):
        device = machine.device(f"dev{step % devices}")
        device.launch(touch, hmmfs.updates(a)).wait()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert mount.disagreements() == []


def test_numbers_agree_again_when_an_unlinked_region_is_closed(mount: Mount) -> None:
    path = mount.region("a", 8192)
    path.write_bytes(bytes(8192))
    fd = os.open(path, os.O_RDWR)
    path.unlink()
    timer = threading.Timer(0.2, os.close, [fd])
    timer.start()
    assert mount.disagreements() == []
    timer.join()


def test_numa_maps_end_with_the_file(mount: Mount) -> None:
    path = mount.region("a", 4 * M)
    (mount.path / "state/a/advice").write_text(f"{2 * M}+{M} preferred_location=dev0")
    path.write_bytes(b"x" * 4096)
    os.truncate(path, 2 * M + 1)
    numa_maps = mount.path / "state/a/numa_maps"
    starts = [line.split()[:2] for line in numa_maps.read_text().splitlines()]
    assert starts == [["000000000000", "default"], [f"{2 * M:012x}", "prefer:1"]]
    os.truncate(path, 2 * M)
    assert len(numa_maps.read_text().splitlines()) == 1
