"""Sizes, holes and space of regions, wherever their pages are."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from conftest import HMMFS, Mount, MountFactory, fails, wait_until

K, M, T = 1 << 10, 1 << 20, 1 << 40
PAGE = 4096
MAX = 16 * T
KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
PLACES = ["host", "mapped", "dev0"]
libc = ctypes.CDLL(None, use_errno=True)


def fallocate(path: Path, mode: int, offset: int, length: int) -> int:
    """Its errno, or 0."""
    with open(path, "r+b") as file:
        arguments = (mode, ctypes.c_int64(offset), ctypes.c_int64(length))
        return ctypes.get_errno() if libc.fallocate(file.fileno(), *arguments) else 0


def filled(mount: Mount, size: int, where: str) -> tuple[Path, bytearray]:
    """A region of random bytes and a copy of them. mapped: with stores that nobody has seen yet."""
    path = mount.regions / "a"
    data = bytearray(os.urandom(size))
    path.write_bytes(data)
    if where == "mapped":
        file = os.open(path, os.O_RDWR)
        mapping = mmap.mmap(file, 0)
        os.close(file)
        for at in range(0, size, 1000):
            mapping[at] = data[at] = at % 251
        mapping.close()
    elif where == "dev0":
        mount.submit(0, "migrate a to dev0")
        mount.submit(0, "fill a:5+1 9")
        data[5] = 9
    return path, data


# ---- sizes


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("cut", [0, 1, 100, PAGE, PAGE + 1, 3 * PAGE - 1, 2 * M, 2 * M + 77])
def test_what_was_cut_off_reads_as_zeros(mount: Mount, where: str, cut: int) -> None:
    path, data = filled(mount, 2 * M + 3 * PAGE, where)
    os.truncate(path, cut)
    assert path.stat().st_size == cut
    assert path.stat().st_blocks == -(-cut // PAGE) * 8
    assert path.read_bytes() == data[:cut]
    os.truncate(path, 2 * M + 3 * PAGE)
    data[cut:] = bytes(len(data) - cut)
    assert path.read_bytes() == data
    os.truncate(path, 2 * M + 3 * PAGE)
    assert mount.submit(0, "checksum a") == f"{zlib.crc32(data):08x}"
    assert path.read_bytes() == data


def test_a_sparse_tebibyte(mount: Mount) -> None:
    path = mount.region("big", T)
    assert (path.stat().st_size, path.stat().st_blocks) == (T, 0)
    with open(path, "r+b") as file:
        for at in (0, 123 * 2 * M + 5, T - 1):
            os.pwrite(file.fileno(), b"x", at)
        assert path.stat().st_blocks == 3 * 8
        found, at = [], 0
        for _ in range(3):
            at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            found.append((at, end - at))
            at = end
        # The page that a write touches, and what the page cache may hold around it.
        assert [at for at, _ in found] == [0, 123 * 2 * M, T - PAGE]
        assert sum(length for _, length in found) <= 64 * PAGE
        assert os.pread(file.fileno(), 3, T - 2) == b"\0x"
    assert mount.submit(0, f"read big:{T - 2}+2") == "0078"
    os.truncate(path, 100 * T // 10)
    assert path.stat().st_blocks == 3 * 8
    os.truncate(path, 5)
    assert path.stat().st_blocks == 8


def test_the_largest_region(mount: Mount) -> None:
    path = mount.region("a", MAX)
    fails(errno.EFBIG, lambda: os.truncate(path, MAX + 1))
    with open(path, "r+b") as file:
        assert os.pwrite(file.fileno(), b"xy", MAX - 2) == 2
        assert os.pwrite(file.fileno(), b"zzz", MAX - 1) == 1
        fails(errno.EFBIG, lambda: os.pwrite(file.fileno(), b"z", MAX))
        assert os.pread(file.fileno(), 10, MAX - 2) == b"xz"
    assert path.stat().st_size == MAX
    assert fallocate(path, 0, MAX - PAGE, PAGE + 1) == errno.EFBIG


def test_reading_and_writing_at_the_end(mount: Mount) -> None:
    path = mount.regions / "a"
    path.write_bytes(b"0123456789")
    with open(path, "r+b") as file:
        assert os.pread(file.fileno(), 100, 10) == b""
        assert os.pread(file.fileno(), 100, 1 << 40) == b""
        assert os.pread(file.fileno(), 100, 7) == b"789"
        assert os.pwrite(file.fileno(), b"ab", PAGE - 1) == 2
    assert path.read_bytes() == b"0123456789" + bytes(PAGE - 11) + b"ab"
    path.write_bytes(b"new")
    assert path.read_bytes() == b"new"


APPENDER = "import os,sys; fd=os.open(sys.argv[1],os.O_WRONLY|os.O_APPEND)\n" + (
    "for i in range(300): os.write(fd, sys.argv[2].encode()*77)"
)


def test_appenders_never_overwrite_each_other(mount: Mount) -> None:
    path = mount.regions / "a"
    path.touch()
    children = [
        subprocess.Popen([sys.executable, "-c", APPENDER, path, letter]) for letter in "abc"
    ]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    data = path.read_bytes()
    pieces = {data[at : at + 77] for at in range(0, len(data), 77)}
    assert pieces == {letter.encode() * 77 for letter in "abc"}
    assert all(data.count(letter) == 300 * 77 for letter in b"abc")


def test_past_the_end_of_a_mapping(mount: Mount) -> None:
    path = mount.region("a", 2 * PAGE)
    program = (
        "import mmap,os,sys; fd=os.open(sys.argv[1],os.O_RDWR)\n"
        "m=mmap.mmap(fd,0); os.ftruncate(fd,100); m[99]=1; m[4095]=1; m[4096]=1"
    )
    child = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert child.returncode == -signal.SIGBUS
    os.truncate(path, 2 * PAGE)
    assert path.read_bytes() == bytes(99) + b"\1" + bytes(2 * PAGE - 100)


def test_private_mappings_keep_their_stores(mount: Mount) -> None:
    path, data = filled(mount, M, "dev0")
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    mapping[100:104] = b"mine"
    mount.submit(0, "fill a:104+1 7")
    assert mapping[100:104] == b"mine"
    mapping.close()
    data[104] = 7
    assert path.read_bytes() == data


# ---- holes


def holes(mount: Mount, where: str) -> Path:
    """Data in pages 2, 3 and 700; the end is in page 1000."""
    path = mount.region("a", 1000 * PAGE + 5)
    with open(path, "r+b") as file:
        for page in (2, 3, 700):
            os.pwrite(file.fileno(), b"d" * PAGE, page * PAGE)
    mount.submit(0, "migrate a to dev0")
    if where == "host":
        mount.submit(0, "migrate a to host")
    return path


SEEKS = {
    (0, os.SEEK_DATA): 2 * PAGE,
    (0, os.SEEK_HOLE): 0,
    (2 * PAGE, os.SEEK_DATA): 2 * PAGE,
    (2 * PAGE + 7, os.SEEK_DATA): 2 * PAGE + 7,
    (2 * PAGE, os.SEEK_HOLE): 4 * PAGE,
    (3 * PAGE + 1, os.SEEK_HOLE): 4 * PAGE,
    (4 * PAGE, os.SEEK_DATA): 700 * PAGE,
    (700 * PAGE, os.SEEK_HOLE): 701 * PAGE,
    (701 * PAGE, os.SEEK_DATA): -errno.ENXIO,
    (1000 * PAGE + 4, os.SEEK_HOLE): 1000 * PAGE + 4,
    (1000 * PAGE + 5, os.SEEK_HOLE): -errno.ENXIO,
    (1000 * PAGE + 5, os.SEEK_DATA): -errno.ENXIO,
}


@pytest.mark.parametrize("where", ["host", "dev0"])
def test_seeking_data_and_holes(mount: Mount, where: str) -> None:
    with open(holes(mount, where), "rb") as file:
        for (offset, whence), wanted in SEEKS.items():
            try:
                found = os.lseek(file.fileno(), offset, whence)
            except OSError as error:
                found = -(error.errno or 0)
            assert found == wanted, (offset, whence)


FALLOCATES = {
    "grows": (0, 5 * PAGE, 3 * PAGE, 0),
    "keeps the size": (KEEP_SIZE, 5 * PAGE, 3 * PAGE, 0),
    "inside": (0, 100, 2 * PAGE, 0),
    "punches a page": (PUNCH | KEEP_SIZE, PAGE, PAGE, 0),
    "punches parts": (PUNCH | KEEP_SIZE, PAGE - 10, PAGE + 20, 0),
    "punches within a page": (PUNCH | KEEP_SIZE, 50, 100, 0),
    "punches past the end": (PUNCH | KEEP_SIZE, 4 * PAGE, 99 * PAGE, 0),
    "zeroes": (ZERO, PAGE - 10, PAGE + 20, 0),
    "zeroes and grows": (ZERO, 4 * PAGE, 5 * PAGE, 0),
    "zeroes, keeps the size": (ZERO | KEEP_SIZE, 4 * PAGE, 5 * PAGE, 0),
    "punch must keep the size": (PUNCH, 0, PAGE, errno.EOPNOTSUPP),
    "collapse": (COLLAPSE, 0, PAGE, errno.EOPNOTSUPP),
    "insert": (INSERT, 0, PAGE, errno.EOPNOTSUPP),
    "unshare": (UNSHARE, 0, PAGE, errno.EOPNOTSUPP),
    "nothing": (0, 0, 0, errno.EINVAL),
    "negative": (0, -PAGE, PAGE, errno.EINVAL),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("what", FALLOCATES)
def test_fallocate(mount: Mount, where: str, what: str) -> None:
    mode, offset, length, error = FALLOCATES[what]
    size = 5 * PAGE
    path, data = filled(mount, size, where)
    assert fallocate(path, mode, offset, length) == error
    if not error:
        if not mode & KEEP_SIZE and offset + length > size:
            size = offset + length
            data.extend(bytes(size - len(data)))
        if mode & (PUNCH | ZERO):
            end = min(offset + length, len(data))
            data[offset:end] = bytes(max(0, end - offset))
    assert path.stat().st_size == size
    assert path.read_bytes() == data
    if what == "punches a page":
        assert path.stat().st_blocks == 4 * 8
    if what == "keeps the size":
        os.truncate(path, 8 * PAGE)
        assert path.read_bytes() == data + bytes(3 * PAGE)


# ---- space


def test_statvfs(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="8M", devices=2, host="64M")
    found = os.statvfs(mount.path)
    assert (found.f_bsize, found.f_frsize, found.f_namemax) == (PAGE, PAGE, 255)
    assert found.f_blocks == 80 * M // PAGE
    assert found.f_bfree == found.f_bavail == found.f_blocks
    path = mount.region("a", 6 * M)
    path.write_bytes(b"x" * 6 * M)
    assert os.statvfs(mount.path).f_bfree == found.f_bfree - 6 * M // PAGE
    mount.submit(0, "migrate a to dev0")
    # The copies kept on the host are there for the asking.
    assert os.statvfs(mount.path).f_bfree == found.f_bfree - 6 * M // PAGE
    shown = subprocess.run(
        ["df", "--output=used,avail", "-B1", mount.path], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split()[-2:] == [str(6 * M), str(74 * M)]
    path.unlink()
    assert wait_until(lambda: os.statvfs(mount.path).f_bfree == found.f_bfree)


def test_writing_when_all_is_full(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="2M", devices=1, host="8M")
    path = mount.regions / "a"
    data, written = os.urandom(32 * M), 0
    with open(path, "wb", buffering=0) as file:
        error = 0
        while not error:
            try:
                written += file.write(data[written : written + 64 * K])
            except OSError as full:
                error = full.errno or -1
        assert error == errno.ENOSPC
    assert path.stat().st_size == written
    assert 9 * M < written <= 10 * M + 64 * K
    assert path.read_bytes() == data[:written]
    assert fallocate(path, 0, 32 * M, 4 * M) == errno.ENOSPC
    assert path.stat().st_size == written
    os.truncate(path, 5 * M)
    assert fallocate(path, 0, 5 * M, 1 * M) == 0
    assert path.read_bytes() == data[: 5 * M] + bytes(M)


@pytest.mark.parametrize("where", PLACES)
def test_copying_tools(mount: Mount, tmp_path: Path, where: str) -> None:
    path, data = filled(mount, 3 * M + 5, where)
    other = mount.regions / "b"
    subprocess.run(["cp", "--sparse=always", path, other], check=True)
    subprocess.run(["cmp", path, other], check=True)
    with open(path, "rb") as source, open(tmp_path / "copy", "w+b") as target:
        assert os.sendfile(target.fileno(), source.fileno(), 0, 4 * M) == len(data)
    assert (tmp_path / "copy").read_bytes() == data
    with open(path, "rb") as source, open(other, "r+b") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 100, 5, 0) == 100
    assert other.read_bytes() == data[5:105] + data[100:]


@pytest.mark.parametrize("express", ["on", "off"])
@pytest.mark.parametrize("pages", [1, 4, 100])
def test_direct_io(mount_factory: MountFactory, pages: int, express: str) -> None:
    """In the middle of two blocks, wherever their pages are; nothing of it stays cached."""
    mount = mount_factory(vram="8M", host="64M", express=express)
    path, data = filled(mount, 4 * M, "dev0")
    start, length = 2 * M - pages // 2 * PAGE, pages * PAGE
    buffer = mmap.mmap(-1, length)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        for _ in range(3):
            assert os.preadv(fd, [buffer], start) == length
            assert buffer[:] == data[start : start + length]
            mount.submit(0, f"migrate a:{2 * M}+{2 * M} to dev0")
        assert mount.residency("a")["cpu_cached"] == 0
        buffer[:] = os.urandom(length)
        mount.submit(0, "migrate a to dev0")
        assert os.pwritev(fd, [buffer], start) == length
        data[start : start + length] = buffer[:]
    finally:
        os.close(fd)
    assert mount.submit(0, "checksum a") == f"{zlib.crc32(data):08x}"
    assert path.read_bytes() == data


def test_direct_io_under_load(mount: Mount) -> None:
    """Against a device that takes the pages all the time."""
    path, data = filled(mount, 4 * M, "host")
    operations = ["migrate a to dev0", "migrate a to dev1"] * 40
    child = subprocess.Popen([*HMMFS, "submit", mount.path, "dev0", *operations])
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    buffer, rounds = mmap.mmap(-1, M), 0
    try:
        while child.poll() is None:
            start = rounds * 13 % 769 * PAGE
            assert os.preadv(fd, [buffer], start) == M
            assert buffer[:] == data[start : start + M]
            rounds += 1
    finally:
        os.close(fd)
        child.wait()
    assert child.returncode == 0
    assert rounds > 5
