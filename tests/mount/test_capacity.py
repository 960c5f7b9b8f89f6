"""What memories hold is all that programs get, however they write: ENOSPC or SIGBUS beyond it,
every byte before it, and books that say so, on every kind of memory."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import (
    PATIENCE_S,
    Mount,
    MountFactory,
    fails,
    mounted,
    passes_through,
    run,
    wait_until,
)

PAGE, M = 4096, 1 << 20
UNIT = 64 << 10  # bytes of one write
HOST, VRAM, DEVICES = 4 * M, 2 * M, 2
BLOCK = 2 * M
PATTERN = b"".join(bytes([page % 251]) * PAGE for page in range(12 * M // PAGE))
KINDS: dict[str, dict[str, object]] = {
    "private": {"type": "private"},
    "coherent": {"type": "coherent"},
    "recall": {"type": "coherent", "passthrough": "off"},
    "visible": {"type": "coherent", "visible": "1M"},
    "mixed": {"type": "private+coherent"},
    "dax": {"type": "dax"},
}
BY_SIZE = ("coherent", "dax")  # their regions reserve by their size

pytestmark = passes_through


@dataclass
class Machine:
    """A mount of one kind with a region that was there before, and what its memories hold."""

    mount: Mount
    kind: str
    witness: Path
    source: Path  # a file elsewhere that holds PATTERN
    program: Path

    @property
    def capacity(self) -> int:
        """Bytes that one region can have beside the witness, which is a megabyte."""
        return VRAM if self.kind == "dax" else HOST + DEVICES * VRAM - M

    def pool_bytes(self) -> int:
        """What the memory behind regions really takes."""
        total = 0
        for entry in Path(f"/proc/{self.mount.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                name = os.readlink(entry)
                if name.startswith(("/memfd:hmmfs-pool", "/memfd:hmmfs-shared")):
                    total += os.stat(entry).st_blocks * 512
        return total

    def check(self) -> None:
        """Nothing takes more than there is, at any moment."""
        found = os.statvfs(self.mount.path)
        assert 0 <= found.f_bavail <= found.f_bfree <= found.f_blocks
        for device in range(DEVICES):
            used = int((self.mount.path / f"devices/dev{device}/vram/used").read_text())
            assert 0 <= used <= VRAM
        assert self.mount.values("stats")["host_used"] * PAGE <= HOST + BLOCK
        assert self.pool_bytes() <= HOST + DEVICES * VRAM + BLOCK

    def check_rest(self) -> None:
        """The same when nothing runs, and the witness is what it was."""
        self.check()
        # A job that evicted for a write may end after it.
        assert wait_until(lambda: self.mount.audit() == "ok"), self.mount.audit()
        assert self.witness.read_bytes() == PATTERN[:M]
        assert self.mount.values("stats")["host_peak"] * PAGE <= HOST + BLOCK


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writers") / "writers"
    source = Path(__file__).with_name("programs") / "writers.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", path, source], check=True)
    return path


@pytest.fixture(scope="module", params=KINDS)
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, program: Path
) -> Iterator[Machine]:
    base = tmp_path_factory.mktemp(request.param)
    (base / "source").write_bytes(PATTERN)
    sizes = {"host": HOST, "vram": VRAM, "devices": DEVICES}
    full = ("pages of the staging reserve stay in use",)
    with mounted(base, 4 * PATIENCE_S, warns=full, **sizes, **KINDS[request.param]) as mount:
        witness = mount.regions / "witness"
        witness.write_bytes(PATTERN[:M])
        yield Machine(mount, request.param, witness, base / "source", program)


@pytest.fixture
def region(machine: Machine) -> Iterator[Path]:
    """A region's path, and all memory for it."""
    before = used(machine)
    path = machine.mount.regions / "a"
    yield path
    machine.check_rest()
    for left in machine.mount.regions.iterdir():
        if left != machine.witness:
            left.unlink()
    assert wait_until(lambda: used(machine) <= before)
    machine.check_rest()


def used(machine: Machine) -> int:
    found = os.statvfs(machine.mount.path)
    return found.f_blocks - found.f_bfree


# ---- ways to write: each writes PATTERN until memory is full, and returns how much it wrote

Way = Callable[[Machine, Path], int]


def repeated(step: Callable[[int], int]) -> int:
    """Call step(offset) until it fails with ENOSPC; the bytes that it says it wrote."""
    done = 0
    while done < len(PATTERN):
        try:
            done += step(done)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error  # noqa: PT017
            return done
    raise AssertionError("All of it fitted.")


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CREAT, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def by_write(machine: Machine, path: Path) -> int:
    with opened(path, os.O_RDWR) as fd:
        return repeated(lambda at: os.pwrite(fd, PATTERN[at : at + UNIT], at))


def by_large_writes(machine: Machine, path: Path) -> int:
    with opened(path, os.O_WRONLY) as fd:
        return repeated(lambda at: os.write(fd, PATTERN[at:]))


def by_append(machine: Machine, path: Path) -> int:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        return repeated(lambda at: os.write(fd, PATTERN[at : at + UNIT]))


def by_pwritev2(machine: Machine, path: Path) -> int:
    with opened(path, os.O_RDWR) as fd:

        def step(at: int) -> int:
            parts = [PATTERN[at : at + PAGE], PATTERN[at + PAGE : at + UNIT]]
            return os.pwritev(fd, parts, at)

        return repeated(step)


def by_rwf_append(machine: Machine, path: Path) -> int:
    with opened(path, os.O_RDWR) as fd:
        return repeated(lambda at: os.pwritev(fd, [PATTERN[at : at + UNIT]], 0, os.RWF_APPEND))


def by_direct(machine: Machine, path: Path) -> int:
    with mmap.mmap(-1, UNIT) as buffer, opened(path, os.O_RDWR | os.O_DIRECT) as fd:

        def step(at: int) -> int:
            buffer[:] = PATTERN[at : at + UNIT]
            return os.pwritev(fd, [buffer], at)

        return repeated(step)


def by_sendfile(machine: Machine, path: Path) -> int:
    with opened(path, os.O_RDWR) as fd, open(machine.source, "rb") as source:
        return repeated(lambda at: os.sendfile(fd, source.fileno(), at, UNIT))


def by_splice(machine: Machine, path: Path) -> int:
    ends = os.pipe()
    try:
        with opened(path, os.O_RDWR) as fd:

            def step(at: int) -> int:
                os.write(ends[1], PATTERN[at : at + PAGE])
                return os.splice(ends[0], fd, PAGE, offset_dst=at)

            return repeated(step)
    finally:
        for end in ends:
            os.close(end)


def by_copy_within(machine: Machine, path: Path) -> int:
    """From region to region. The first has the pattern's first megabyte."""
    with opened(path, os.O_RDWR) as fd, open(machine.witness, "rb") as source:
        done = repeated(lambda at: os.copy_file_range(source.fileno(), fd, UNIT, at % M, at))
        for at in range(0, done, M):
            assert os.pread(fd, M, at) == PATTERN[: min(M, done - at)]
        # As the others leave it.
        for at in range(0, done, M):
            os.pwrite(fd, PATTERN[at : min(at + M, done)], at)
        return done


def by_io_uring(machine: Machine, path: Path) -> int:
    return by_program(machine, "uring", path)


def by_stores(machine: Machine, path: Path) -> int:
    with opened(path, os.O_RDWR) as fd:
        longest(fd, len(PATTERN))
    return by_program(machine, "stores", path)


def by_fallocate(machine: Machine, path: Path) -> int:
    """It takes the host's memory, and gives pages of zeros."""
    with opened(path, os.O_RDWR) as fd:
        done = repeated(lambda at: os.posix_fallocate(fd, at, UNIT) or UNIT)
        machine.check_rest()
        for at in range(0, done, UNIT):
            os.pwrite(fd, PATTERN[at : at + UNIT], at)
        return repeated(lambda at: os.pwrite(fd, PATTERN[at : at + UNIT], at))


def by_program(machine: Machine, how: str, path: Path) -> int:
    command = [machine.program, how, path, str(len(PATTERN))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    count, number = map(int, done.stdout.split())
    if how == "uring" and not count and number in (errno.ENOSYS, errno.EPERM):
        pytest.skip("io_uring can't be used here")
    assert number == errno.ENOSPC, os.strerror(number)
    return count


def longest(fd: int, size: int) -> int:
    """Make a file that long, or as long as it can be; how long it is."""
    low, high = 0, size // PAGE
    while low < high:
        some = (low + high + 1) // 2
        try:
            os.truncate(fd, some * PAGE)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
            high = some - 1
        else:
            low = some
    os.truncate(fd, low * PAGE)
    return low * PAGE


WAYS: list[Way] = [
    by_write,
    by_large_writes,
    by_append,
    by_pwritev2,
    by_rwf_append,
    by_direct,
    by_sendfile,
    by_splice,
    by_copy_within,
    by_io_uring,
    by_stores,
    by_fallocate,
]


# Where pages are of two kinds, it is the places that differ and not the ways.
CASES = [
    pytest.param(kind, way, id=f"{kind}-{way.__name__}")
    for kind in KINDS
    for way in (WAYS if kind not in ("visible", "mixed") else [by_write, by_stores, by_fallocate])
]


@pytest.mark.parametrize(("machine", "way"), CASES, indirect=["machine"])
def test_no_way_to_write_takes_more_than_there_is(machine: Machine, region: Path, way: Way) -> None:
    count = way(machine, region)
    machine.check_rest()
    assert machine.capacity - UNIT <= count <= machine.capacity
    with open(region, "rb") as file:
        assert file.read(count) == PATTERN[:count]
    # With all of it full the last swap may have to leave some in the staging reserve.
    assert machine.mount.residency("a")["pages_host"] * PAGE <= HOST + BLOCK


# ---- what is not written in order


def test_a_write_far_past_the_end(machine: Machine, region: Path) -> None:
    """Private memory is taken by the page, what is passed through by a region's size."""
    before = used(machine)
    with opened(region, os.O_RDWR) as fd:
        if machine.kind in BY_SIZE:
            fails(errno.ENOSPC, lambda: os.pwrite(fd, b"x", 1 << 40))
            fails(errno.ENOSPC, lambda: os.truncate(fd, 1 << 40))
            fails(errno.ENOSPC, lambda: os.posix_fallocate(fd, 1 << 40, PAGE))
            assert (os.fstat(fd).st_size, used(machine)) == (0, before)
            os.pwrite(fd, b"x", M)
            assert used(machine) == before + M // PAGE + 1
        else:
            os.pwrite(fd, b"x", 1 << 40)
            assert used(machine) == before + 1
        assert os.pread(fd, 2, os.fstat(fd).st_size - 2) == b"\0x"


def test_longer_and_shorter(machine: Machine, region: Path) -> None:
    """What a truncate takes, the next gives back, and a region that fits always fits again."""
    before = used(machine)
    with opened(region, os.O_RDWR) as fd:
        for turn in range(20):
            size = longest(fd, machine.capacity) if not turn else machine.capacity
            os.truncate(fd, size)
            assert size == machine.capacity
            if machine.kind in BY_SIZE:
                fails(errno.ENOSPC, lambda: os.truncate(fd, machine.capacity + 1))
                assert used(machine) == before + machine.capacity // PAGE
            os.pwrite(fd, PATTERN[:UNIT], turn * UNIT)
            os.truncate(fd, turn * UNIT + PAGE)
            machine.check()
        assert os.pread(fd, UNIT, turn * UNIT) == PATTERN[:PAGE]


def test_unlinked_while_open(machine: Machine, region: Path) -> None:
    """Its memory is its own until it is closed."""
    with opened(region, os.O_RDWR) as fd:
        count = by_write(machine, region)
        before = used(machine)
        region.unlink()
        with opened(region, os.O_RDWR) as other:
            if machine.kind != "dax":  # there is another device
                fails(errno.ENOSPC, lambda: os.pwrite(other, PATTERN[: 2 * UNIT], UNIT))
            assert os.pread(fd, count, 0) == PATTERN[:count]
            assert used(machine) >= count // PAGE, "its pages are all there"
    assert wait_until(lambda: used(machine) <= before - count // PAGE), "some pages stay"
    assert by_write(machine, region) >= machine.capacity - UNIT


def test_many_regions_grow_at_once(machine: Machine, region: Path) -> None:
    names = [region.with_name(f"r{n}") for n in range(3)]
    done = [0] * len(names)

    def grow(n: int) -> None:
        with opened(names[n], os.O_WRONLY | os.O_APPEND) as fd:
            done[n] = repeated(lambda at: os.write(fd, PATTERN[at : at + UNIT // 2]))

    run_together([lambda n=n: grow(n) for n in range(len(names))], machine.check)
    for name, count in zip(names, done, strict=True):
        assert name.read_bytes()[:count] == PATTERN[:count]
    if machine.kind == "dax":  # all may have come to be on the same device
        assert VRAM - UNIT <= sum(done) <= DEVICES * VRAM - M
    else:
        assert machine.capacity - UNIT <= sum(done) <= machine.capacity


def run_together(calls: list[Callable[[], None]], check: Callable[[], None]) -> None:
    """The calls in threads, and the check again and again meanwhile."""
    failed: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            check()
    finally:
        for thread in threads:
            thread.join()
    assert not failed, failed


STEPS = 60


def test_a_storm(machine: Machine, region: Path) -> None:
    """Two threads write, append, truncate, fallocate, punch, map, migrate and unlink three regions,
    from a fixed seed."""

    def storm(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(STEPS):
            path = region.with_name(f"s{rng.randrange(3)}")
            at, size = rng.randrange(0, 6 * M, PAGE), rng.randrange(1, UNIT)
            with contextlib.suppress(OSError), opened(path, os.O_RDWR) as fd:
                what = rng.randrange(8)
                if what < 2:
                    os.pwrite(fd, PATTERN[:size], at)
                elif what == 2:
                    os.pwritev(fd, [PATTERN[:size]], 0, os.RWF_APPEND)
                elif what == 3:
                    os.truncate(fd, at)
                elif what == 4:
                    os.posix_fallocate(fd, at, size)
                elif what == 5:
                    punch(fd, at, size)
                elif what == 6:
                    place = f"dev{rng.randrange(DEVICES)}" if rng.random() < 0.7 else "host"
                    machine.mount.submit(0, f"migrate {path.name}:0+2M to {place}")
                elif rng.random() < 0.2:
                    path.unlink()

    run_together([lambda: storm(31), lambda: storm(32)], machine.check)


PUNCH_HOLE, KEEP_SIZE = 2, 1
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(fd: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


# ---- what is passed through


@pytest.mark.parametrize("kind", BY_SIZE)
def test_files_that_are_open_for_writing(mount_factory: MountFactory, kind: str) -> None:
    """Their reads and writes come to the daemon, and see what is stored through mappings."""
    mount = mount_factory(type=kind, host="4M", vram="4M")
    path, out = mount.regions / "a", mount.regions / "b"
    path.write_bytes(PATTERN[:M])
    with (
        opened(path, os.O_RDWR) as fd,
        opened(path, os.O_RDONLY) as plain,
        opened(out, os.O_WRONLY) as other,
        mmap.mmap(fd, M) as mapped,
    ):
        for turn in range(64):
            mapped[turn] = 255 - turn
            for one in (fd, plain):
                assert os.pread(one, 1, turn) == bytes([255 - turn])
            os.pwrite(fd, b"w", M // 2 + turn)
            assert mapped[M // 2 + turn] == ord("w")
            # By splice: what lies in the page cache of the kernel would be stale at the next turn.
            fails(errno.EINVAL, lambda: os.sendfile(other, fd, 0, PAGE))
            os.lseek(other, 0, os.SEEK_SET)
            assert os.sendfile(other, plain, 0, PAGE) == PAGE
            assert os.copy_file_range(fd, other, PAGE, 0, PAGE) == PAGE
            for at in (0, PAGE):
                assert out.read_bytes()[at : at + PAGE] == mapped[:PAGE]
        assert os.pread(fd, PAGE, M - 5) == PATTERN[M - 5 : M]
        assert os.pread(fd, PAGE, 2 * M) == b""
        os.fchmod(fd, 0o6755)
        assert os.pwrite(fd, b"end", M) == 3
        assert os.fstat(fd).st_size == M + 3
    assert mount.values("stats")["cpu_faults"] == 0


def test_a_long_region_spans_nodes(mount_factory: MountFactory) -> None:
    """The host's until that is full, then the next node's."""
    mount = mount_factory(type="coherent", host="4M", vram="2M", devices=2)
    mount.region("a", 7 * M)
    pages = mount.residency("a")
    assert [pages[f"pages_{node}"] for node in ("host", "dev0", "dev1")] == [1024, 512, 256]
    os.truncate(mount.regions / "a", 5 * M)
    pages = mount.residency("a")
    assert [pages[f"pages_{node}"] for node in ("host", "dev0", "dev1")] == [1024, 256, 0]


# ---- what the audit says


def pools(mount: Mount) -> list[str]:
    base = Path(f"/proc/{mount.pid}/fd")
    names = {str(entry): os.readlink(entry) for entry in base.iterdir()}
    return [path for path, name in names.items() if name.startswith(("/memfd:hmmfs-pool", SHARED))]


SHARED = "/memfd:hmmfs-shared"


@pytest.mark.parametrize("kind", KINDS)
def test_memory_beyond_the_books_is_told(mount_factory: MountFactory, kind: str) -> None:
    mount = mount_factory(host="4M", vram="2M", devices=2, **KINDS[kind])
    with open(mount.regions / "a", "wb") as file:
        file.write(PATTERN[: 3 * PAGE])
    assert mount.audit() == "ok"
    (pool,) = pools(mount)
    with opened(Path(pool), os.O_RDWR) as fd:
        size = os.fstat(fd).st_size
        os.pwrite(fd, b"x", 8 * PAGE)
        assert "4 pages" in mount.audit()
        if kind in BY_SIZE:
            os.truncate(fd, 8 * PAGE)
            assert "bytes long" in mount.audit()
            os.truncate(fd, size)
        else:
            punch(fd, 8 * PAGE, PAGE)


@pytest.mark.parametrize("vram", ["8M", "8T"])
def test_memory_that_the_computer_has_not_is_told(tmp_path: Path, vram: str) -> None:
    done = run("mount", str(tmp_path), "-o", f"host=8M,vram={vram},log=/dev/null")
    run("umount", str(tmp_path))
    assert ("Warning: " in done.stderr, len(done.stderr.splitlines())) == (
        (True, 1) if vram == "8T" else (False, 0)
    )


# ---- labels, whose pages the host's memory holds


@pytest.fixture
def full_of_labels(mount_factory: MountFactory) -> Mount:
    """A region with 6 MiB that are labelled as dev1's, and 2 MiB that fill the host."""
    mount = mount_factory(type="private+coherent", devices=2, host="2M", vram="8M")
    with opened(mount.regions / "a", os.O_RDWR) as fd:
        for at in range(0, 8 * M, 2 * M):
            os.pwrite(fd, PATTERN[at : at + 2 * M], at)
            if at < 6 * M:
                mount.submit(1, f"migrate a:{at}+2M to dev1")
    pages = mount.residency("a")
    assert [pages[f"pages_{node}"] for node in ("host", "dev0", "dev1")] == [512, 0, 1536]
    return mount


def check_host(mount: Mount) -> None:
    """2 MiB, and the staging reserve."""
    stats = mount.values("stats")
    assert stats["host_used"] <= stats["host_peak"] <= 1024
    assert mount.audit() == "ok"


def test_labelled_pages_leave_no_copies_on_a_full_host(full_of_labels: Mount) -> None:
    mount = full_of_labels
    mount.submit(0, "migrate a:0+6M to dev0")
    assert mount.residency("a")["pages_dev0"] == 1536
    check_host(mount)
    assert (mount.regions / "a").read_bytes() == PATTERN[: 8 * M]


def test_labelled_pages_are_punched_with_the_host_full(full_of_labels: Mount) -> None:
    mount = full_of_labels
    with opened(mount.regions / "a", os.O_RDWR) as fd:
        punch(fd, 5, 6 * M - 5)
    check_host(mount)
    expected = PATTERN[:5] + bytes(6 * M - 5) + PATTERN[6 * M : 8 * M]
    assert (mount.regions / "a").read_bytes() == expected
