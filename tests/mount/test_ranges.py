"""fallocate(2), lseek(2) and mmap(2) on regions, beside a file of a tmpfs."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE_S, Mount, MountFactory, fails, mounted, wait_until

PAGE, M = 4096, 1 << 20
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
PUNCH = PUNCH_HOLE | KEEP_SIZE
KINDS = {
    "private": {"type": "private"},
    "on a device": {"type": "private"},
    "coherent": {"type": "coherent"},
    "recall": {"type": "coherent", "passthrough": "off"},
    "dax": {"type": "dax"},
}
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.mremap.restype = ctypes.c_void_p


@pytest.fixture(scope="module", params=KINDS)
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Mount]]:
    base = tmp_path_factory.mktemp(request.param.replace(" ", ""))
    options = {"vram": "8M", "devices": 2, "host": "16M", **KINDS[request.param]}
    with mounted(base, PATIENCE_S * 5, **options) as mount:
        yield request.param, mount


@pytest.fixture
def mount(kind: tuple[str, Mount]) -> Iterator[Mount]:
    yield kind[1]
    gc.collect()  # what a failed test had mapped
    for path in kind[1].regions.iterdir():
        path.unlink()


@pytest.fixture
def settle(kind: tuple[str, Mount]) -> Callable[[str], object]:
    """Takes a region's pages to where they are to be before a step."""
    if kind[0] != "on a device":
        return lambda name: None
    return lambda name: kind[1].submit(0, f"migrate {name} to dev0")


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="hmmfs-test-") as path:
        yield Path(path)


def result(call: Callable[..., object], *arguments: object) -> object:
    """What a call returns, or the name of its errno."""
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def fallocate(fd: int, mode: int, offset: int, length: int) -> str:
    if not libc.fallocate(fd, mode, offset, length):
        return "done"
    return errno.errorcode[ctypes.get_errno()]


BIG = 2**63 - 1
CALLS = {
    "within": (0, 5 * PAGE, 2 * PAGE),
    "unaligned": (0, 5 * PAGE + 3, 2 * PAGE),
    "growing": (0, 9 * PAGE, 3 * PAGE + 5),
    "past the end, size kept": (KEEP_SIZE, 20 * PAGE, PAGE),
    "nothing": (0, 0, 0),
    "before the file": (0, -1, PAGE),
    "of negative length": (0, PAGE, -1),
    "past every file": (0, BIG - 10, 100),
    "of more than there is": (0, 0, 1 << 40),
    "punch": (PUNCH, PAGE, 2 * PAGE),
    "punch within a page": (PUNCH, PAGE + 7, 100),
    "punch parts of pages": (PUNCH, PAGE + 7, 2 * PAGE),
    "punch over the end": (PUNCH, 8 * PAGE + 1, 99 * PAGE),
    "punch past the end": (PUNCH, 50 * PAGE, PAGE),
    "punch nothing": (PUNCH, 0, 0),
    "punch all": (PUNCH, 0, 1 << 43),
    "punch before the file": (PUNCH, -PAGE, PAGE),
    "punch with the size": (PUNCH_HOLE, 0, PAGE),
    "collapse": (COLLAPSE, 0, PAGE),
    "insert": (INSERT, 0, PAGE),
    "unshare": (UNSHARE, 0, PAGE),
    "of no known mode": (1 << 20, 0, PAGE),
    "punch and zero": (PUNCH | ZERO, 0, PAGE),
}


def holes(path: Path) -> list[object]:
    """Where the first data and the first hole are. A region that is open for writing has data
    wherever a program may have stored to its mapping."""
    with open(path, "rb") as file:
        return [result(os.lseek, file.fileno(), 0, what) for what in (3, 4)]


def outcome(path: Path, call: tuple[int, int, int], settle: Callable[[], object]) -> object:
    """What the call returns on a file of 9 pages and a bit; then its size and bytes."""
    with open(path, "w+b", buffering=0) as file:
        file.write(bytes(range(256)) * (9 * PAGE // 256))
        os.ftruncate(file.fileno(), 9 * PAGE + 100)
        settle()
        done = fallocate(file.fileno(), *call)
        found = done, path.stat().st_size, path.read_bytes()
    with open(path, "rb") as file:
        assert fallocate(file.fileno(), *call) != "done", "it is not open for writing"
    return found


def test_fallocate(mount: Mount, tmpfs: Path, settle: Callable[[str], object]) -> None:
    """The result, the size, the bytes and the holes are those of a tmpfs."""
    path = mount.regions / "a"
    for name, call in CALLS.items():
        wanted = outcome(tmpfs / "a", call, lambda: None)
        assert outcome(path, call, lambda: settle("a")) == wanted, name
        if call[0]:  # what was allocated is data here, and a hole on a tmpfs until it is written
            assert wait_until(lambda: holes(path) == holes(tmpfs / "a")), name


@pytest.mark.parametrize("keep", [0, KEEP_SIZE])
def test_zero_range(mount: Mount, settle: Callable[[str], object], keep: int) -> None:
    """A tmpfs has no such call; ext4 and xfs have."""
    path, data = mount.regions / "a", bytearray(os.urandom(9 * PAGE))
    path.write_bytes(data)
    settle("a")
    with open(path, "r+b", buffering=0) as file:
        assert fallocate(file.fileno(), ZERO | keep, PAGE + 5, 2 * PAGE) == "done"
        data[PAGE + 5 : 3 * PAGE + 5] = bytes(2 * PAGE)
        assert path.read_bytes() == data
        settle("a")
        assert fallocate(file.fileno(), ZERO | keep, 8 * PAGE, 3 * PAGE) == "done"
        data[8 * PAGE :] = bytes(PAGE if keep else 3 * PAGE)
        assert path.read_bytes() == data
        if fallocate(file.fileno(), ZERO | keep, 0, 1 << 42) == "done":
            assert keep, "memory that is passed through reserves nothing past its end"
            data[:] = bytes(len(data))
        assert path.read_bytes() == data, "when memory is full nothing changes"


def test_zero_range_of_what_devices_have_on_a_full_host(mount_factory: MountFactory) -> None:
    """The host has no pages for what devices had: holes are left. Who had the range in the page
    cache sees zeros, as devices do."""
    mount = mount_factory(host="8M", vram="8M")
    region, other = mount.region("a", 6 << 20), mount.region("b", 6 << 20)
    region.write_bytes(b"A" * (6 << 20))
    mount.submit(0, "migrate a:0+4M to dev0")
    other.write_bytes(b"B" * (6 << 20))
    with open(region, "rb") as file:
        assert os.pread(file.fileno(), 2 << 20, 4 << 20) == b"A" * (2 << 20)
    with open(region, "r+b") as file:
        assert fallocate(file.fileno(), ZERO, 0, 6 << 20) == "done"
    assert region.read_bytes() == bytes(6 << 20)
    assert other.read_bytes() == b"B" * (6 << 20)
    assert mount.submit(0, "checksum a:4M+2M") == f"{zlib.crc32(bytes(2 << 20)):08x}"
    assert mount.audit() == "ok"


def test_fallocate_reserves(mount: Mount) -> None:
    path = mount.regions / "a"
    with open(path, "wb") as file:
        assert fallocate(file.fileno(), 0, 0, 3 * M) == "done"
    found = path.stat()
    assert (found.st_size, found.st_blocks) == (3 * M, 3 * M // 512)
    with open(path, "r+b") as file:
        assert fallocate(file.fileno(), 0, 0, 64 * M) == "ENOSPC"
    assert (path.stat().st_size, path.stat().st_blocks) == (3 * M, 3 * M // 512)


END = 9 * PAGE + 100
OFFSETS = [-1, -(2**62), -BIG, 0, 1, 3 * PAGE - 1, 3 * PAGE, 4 * PAGE + 1, 5 * PAGE, 9 * PAGE]
OFFSETS += [END - 1, END, END + 1, 1 << 43, 1 << 44, 1 << 62, BIG]


def test_lseek(mount: Mount, tmpfs: Path, settle: Callable[[str], object]) -> None:
    """In data, in a hole, at the end, past it, and where no file ever is."""
    found = []
    for path in (tmpfs / "a", mount.regions / "a"):
        with open(path, "w+b", buffering=0) as file:
            file.write(bytes(3 * PAGE))
            os.pwrite(file.fileno(), b"x", 5 * PAGE)
            os.ftruncate(file.fileno(), 9 * PAGE + 100)
            if path.parent == mount.regions:
                settle("a")
            fd = file.fileno()
            found.append(
                {
                    (what, offset): result(os.lseek, fd, offset, what)
                    for what in (0, 1, 2, 3, 4, 5)
                    for offset in OFFSETS
                    if what != 1 or not os.lseek(fd, 0, 0)
                }
            )
    wrong = {
        key: (found[1][key], value) for key, value in found[0].items() if found[1][key] != value
    }
    assert wrong == {}


def test_control_files_end_nothing(mount: Mount) -> None:
    """lseek and fallocate on a control file are refused, and go on to work on regions."""
    with open(mount.path / "trace_size", "r+b", buffering=0) as file:
        fails(errno.EINVAL, lambda: os.lseek(file.fileno(), 0, os.SEEK_DATA))
        assert fallocate(file.fileno(), 0, 0, PAGE) == "ENOTSUP"
    with open(mount.regions / "a", "w+b") as file:
        os.ftruncate(file.fileno(), 9 * PAGE)
        os.pwrite(file.fileno(), b"x", 5 * PAGE)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 5 * PAGE
        assert fallocate(file.fileno(), PUNCH, 5 * PAGE, PAGE) == "done"
    assert wait_until(lambda: holes(mount.regions / "a") == ["ENXIO", 0])


def test_what_was_cut_reads_as_zeros(
    mount: Mount, tmpfs: Path, settle: Callable[[str], object]
) -> None:
    """Also the rest of the last page, stored to through a mapping before and after."""
    found = []
    for path in (tmpfs / "a", mount.regions / "a"):
        path.write_bytes(b"x" * 5 * PAGE)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 5 * PAGE) as mapped:
            mapped[3 * PAGE] = mapped[2 * PAGE + 200] = 1
            os.ftruncate(file.fileno(), 2 * PAGE + 100)
            if path.parent == mount.regions:
                settle("a")
            os.ftruncate(file.fileno(), 4 * PAGE + 1)
            found.append(path.read_bytes())
            assert mapped[2 * PAGE + 99 : 2 * PAGE + 101] == b"x\0"
    assert found[1] == found[0] == b"x" * (2 * PAGE + 100) + bytes(2 * PAGE - 99)


def test_madvise(mount: Mount, settle: Callable[[str], object]) -> None:
    """DONTNEED drops no store; REMOVE is a punch."""
    path = mount.regions / "a"
    path.write_bytes(b"x" * 5 * PAGE)
    settle("a")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1
        mapped.madvise(mmap.MADV_DONTNEED)
        assert mapped[0] == 1
        for advice in (mmap.MADV_WILLNEED, mmap.MADV_SEQUENTIAL, mmap.MADV_RANDOM):
            mapped.madvise(advice)
        mapped.madvise(mmap.MADV_REMOVE, PAGE, 2 * PAGE)
        assert mapped[0] == 1
    assert path.read_bytes() == b"\1" + b"x" * (PAGE - 1) + bytes(2 * PAGE) + b"x" * 2 * PAGE
    assert wait_until(lambda: holes(path) == [0, PAGE])


def test_private_mappings(mount: Mount, settle: Callable[[str], object]) -> None:
    """MAP_PRIVATE keeps its stores to itself, and sees those to the file that came before."""
    path = mount.regions / "a"
    path.write_bytes(b"x" * 2 * PAGE)
    settle("a")
    with open(path, "r+b") as file:
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
            mapped[0] = 1
            os.pwrite(file.fileno(), b"y", PAGE)
            settle("a")
            assert (mapped[0], mapped[PAGE]) == (1, ord("y"))
        assert os.pread(file.fileno(), 1, 0) == b"x"
    with open(path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3) as mapped:
            mapped[0] = 2
        with pytest.raises(PermissionError):
            mmap.mmap(file.fileno(), 0)
    assert path.read_bytes()[:1] == b"x"


def test_mremap(mount: Mount, settle: Callable[[str], object]) -> None:
    path = mount.regions / "a"
    path.write_bytes(bytes(8 * PAGE))
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 2 * PAGE)
        mapped[0] = 1
        mapped.resize(8 * PAGE)
        settle("a")
        mapped[7 * PAGE] = 2
        assert mapped[0] == 1
        mapped.close()
    data = path.read_bytes()
    assert (len(data), data[0], data[7 * PAGE]) == (8 * PAGE, 1, 2)


def test_code_runs_from_a_region(mount: Mount, settle: Callable[[str], object]) -> None:
    path = mount.regions / "true"
    path.write_bytes(Path("/bin/true").read_bytes())
    path.chmod(0o755)
    settle("true")
    subprocess.run([path], check=True)


TOOLS = {
    "cp --sparse=always": "cp --sparse=always {} {}",
    "cp --sparse=auto": "cp --sparse=auto {} {}",
    "dd conv=sparse": "dd if={} of={} bs=4096 conv=sparse,notrunc status=none",
    "tar -S": "tar -S -C $(dirname {0}) -cf - a | tar -xO > {1}",
}


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_sparse_tools(mount: Mount, settle: Callable[[str], object], tool: str) -> None:
    source, target = mount.regions / "a", mount.regions / "b"
    with open(source, "wb") as file:
        os.ftruncate(file.fileno(), 3 * M + 7)
        os.pwrite(file.fileno(), b"x" * PAGE, M)
        os.pwrite(file.fileno(), b"y" * 9, 2 * M - 5)
    settle("a")
    with open(target, "wb") as file:
        os.ftruncate(file.fileno(), 3 * M + 7)
    subprocess.run(tool.format(source, target), shell=True, check=True)
    assert target.read_bytes() == source.read_bytes()


def test_append(mount: Mount, settle: Callable[[str], object]) -> None:
    """On Linux pwrite with O_APPEND appends, wherever it is told to write."""
    path = mount.regions / "a"
    path.write_bytes(b"0")
    settle("a")
    with open(path, "ab", buffering=0) as one, open(path, "ab", buffering=0) as two:
        assert os.pwrite(one.fileno(), b"1", 0) == 1
        two.write(b"2")
        assert os.pwrite(one.fileno(), b"3", 100) == 1
    assert path.read_bytes() == b"0123"


def test_direct_io_off_its_alignment(mount: Mount, tmpfs: Path) -> None:
    """A tmpfs takes any offset and length with O_DIRECT; so do regions."""
    data, found = os.urandom(9 * PAGE), []
    for path in (tmpfs / "a", mount.regions / "a"):
        path.write_bytes(data)
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            found.append(
                [
                    result(os.pread, fd, 100, 5),
                    result(os.pwrite, fd, b"abc", PAGE - 1),
                    result(os.pread, fd, 3 * PAGE + 1, PAGE - 2),
                    result(os.pread, fd, 100, 9 * PAGE - 10),
                ]
            )
        finally:
            os.close(fd)
    assert found[1] == found[0]
    assert (mount.regions / "a").read_bytes() == (tmpfs / "a").read_bytes()
