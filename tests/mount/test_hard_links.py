"""Names of regions: O_TMPFILE, hard links, renaming, and what has no name any more."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KINDS, PATIENCE_S, Mount, fails, mounted, run, wait_until

PAGE, M = 4096, 1 << 20
AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x400, 0x1000
# In directories of mode 555 the kernel refuses others than root before it asks.
OTHERS = errno.EACCES if os.geteuid() else 0
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module", params=KINDS)
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    base = tmp_path_factory.mktemp(request.param)
    options = {"vram": "8M", "devices": 2, "host": "16M", **KINDS[request.param]}
    with mounted(base, PATIENCE_S * 5, **options) as one:
        yield one


def used(mount: Mount) -> int:
    """Pages of all nodes."""
    devices = sum(mount.values(f"devices/dev{n}/vram/../stats")["used"] for n in (0, 1))
    return mount.values("stats")["host_used"] + devices


@pytest.fixture
def mount(kind: Mount) -> Iterator[Mount]:
    """One mount of each kind for all tests; what each made is gone afterwards, to the last page."""
    yield kind
    gc.collect()  # what a failed test had mapped
    for path in kind.regions.iterdir():
        path.unlink()
    assert wait_until(lambda: used(kind) == 0), used(kind)


@pytest.fixture
def unnamed(mount: Mount) -> Iterator[int]:
    fd = os.open(mount.regions, os.O_TMPFILE | os.O_RDWR, 0o640)
    yield fd
    with contextlib.suppress(OSError):
        os.close(fd)


def linkat(fd: int, target: Path, source: bytes = b"", flags: int = AT_EMPTY_PATH) -> None:
    if libc.linkat(fd, source, AT_FDCWD, os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), "linkat")


# ---- O_TMPFILE -------------------------------------------------------------------------------


def test_a_file_without_a_name(mount: Mount, unnamed: int) -> None:
    found = os.fstat(unnamed)
    assert (found.st_nlink, found.st_size, found.st_mode) == (0, 0, 0o100640)
    os.ftruncate(unnamed, 2 * M)
    with mmap.mmap(unnamed, 2 * M) as mapped:
        mapped[M] = 7
        assert os.pread(unnamed, 1, M) == b"\7"
    assert os.listdir(mount.regions) == []
    assert os.listdir(mount.path / "state") == []
    os.close(unnamed)
    assert wait_until(lambda: used(mount) == 0)


@pytest.mark.parametrize("by", ["descriptor", "/proc/self/fd"])
def test_it_gets_a_name(mount: Mount, unnamed: int, by: str) -> None:
    os.write(unnamed, b"x" * (M + 5))
    target = mount.regions / "a"
    if by == "descriptor":
        linkat(unnamed, target)
    else:
        linkat(AT_FDCWD, target, b"/proc/self/fd/%d" % unnamed, AT_SYMLINK_FOLLOW)
    assert os.fstat(unnamed).st_nlink == target.stat().st_nlink == 1
    assert os.fstat(unnamed).st_ino == target.stat().st_ino
    os.close(unnamed)
    assert target.read_bytes() == b"x" * (M + 5)
    assert mount.submit(0, "read a:0+3") == "787878"
    assert mount.residency("a")["size"] == M + 5
    assert os.listdir(mount.path / "state") == ["a"]


def test_its_name_is_taken(mount: Mount, unnamed: int) -> None:
    (mount.regions / "a").write_bytes(b"old")
    fails(errno.EEXIST, lambda: linkat(unnamed, mount.regions / "a"))
    fails(OTHERS or errno.EPERM, lambda: linkat(unnamed, mount.path / "state/b"))
    fails(errno.EINVAL, lambda: linkat(unnamed, mount.regions / "@1"))
    fails(errno.ENAMETOOLONG, lambda: linkat(unnamed, mount.regions / ("x" * 256)))
    fails(errno.EXDEV, lambda: linkat(unnamed, Path(tempfile.gettempdir(), "hmmfs-test-x")))
    linkat(unnamed, mount.regions / "b")
    assert (mount.regions / "a").read_bytes() == b"old"


def test_it_is_never_to_have_one(mount: Mount) -> None:
    fd = os.open(mount.regions, os.O_TMPFILE | os.O_RDWR | os.O_EXCL)
    try:
        os.write(fd, b"x")
        fails(errno.ENOENT, lambda: linkat(fd, mount.regions / "a"))
    finally:
        os.close(fd)


def test_elsewhere_there_is_no_such_thing(mount: Mount) -> None:
    for name, number in ((".", errno.EOPNOTSUPP), ("devices/dev0", OTHERS or errno.EOPNOTSUPP)):
        fails(number, lambda name=name: os.open(mount.path / name, os.O_TMPFILE | os.O_RDWR))
    os.close(os.open(mount.regions, os.O_TMPFILE | os.O_RDWR))


def test_temporary_files_of_python(mount: Mount) -> None:
    with tempfile.TemporaryFile(dir=mount.regions) as file:
        assert isinstance(file.name, int), "it has no name"
        file.write(b"x" * 9999)
        file.seek(0)
        assert file.read() == b"x" * 9999
        assert os.listdir(mount.regions) == []
    with tempfile.NamedTemporaryFile(dir=mount.regions) as file:
        assert os.listdir(mount.regions) == [os.path.basename(file.name)]


# ---- hard links ------------------------------------------------------------------------------


def entries(mount: Mount) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(mount.regions)}


def test_two_names(mount: Mount) -> None:
    a, b, c = (mount.regions / name for name in "abc")
    a.write_bytes(b"x" * 3 * PAGE)
    before = a.stat()
    subprocess.run(["ln", a, b], check=True)
    assert (a.stat().st_nlink, b.stat().st_nlink) == (2, 2)
    assert a.stat().st_ino == b.stat().st_ino == before.st_ino
    assert a.stat().st_ctime_ns > before.st_ctime_ns
    assert a.stat().st_mtime_ns == before.st_mtime_ns
    assert entries(mount) == {"a": before.st_ino, "b": before.st_ino}
    mount.submit(0, "fill b:0+3 1")
    assert a.read_bytes()[:4] == b"\1\1\1x"
    assert mount.residency("a") == mount.residency("b")
    assert os.listdir(mount.path / "state") == ["a"], "one region, by its oldest name"
    assert "a" in run("smi", str(mount.path)).stdout
    a.unlink()
    assert (b.stat().st_nlink, os.listdir(mount.path / "state")) == (1, ["b"])
    fails(errno.ENOENT, a.stat)
    b.rename(c)
    assert mount.submit(0, "read c:0+4") == "01010178"
    with open(c, "rb") as file:
        c.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read(4) == b"\1\1\1x"


def test_links_of_nothing(mount: Mount) -> None:
    """What can't have another name, and where there are none."""
    a = mount.regions / "a"
    a.touch()
    fails(errno.EEXIST, lambda: os.link(a, a))
    fails(errno.EPERM, lambda: os.link(a, mount.path / "a"))
    fails(errno.EPERM, lambda: os.link(mount.path / "stats", mount.regions / "b"))
    fails(errno.EPERM, lambda: os.link(mount.regions, mount.regions / "b"))
    fails(errno.EINVAL, lambda: os.link(a, mount.regions / "@7"))
    fails(errno.EPERM, lambda: os.symlink("a", mount.regions / "b"))
    assert a.stat().st_nlink == 1


RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4


def renameat2(one: Path, two: Path, flags: int) -> None:
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(two), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_renaming_linked_regions(mount: Mount) -> None:
    a, b, c, d = (mount.regions / name for name in "abcd")
    a.write_bytes(b"A")
    c.write_bytes(b"C")
    os.link(a, b)
    a.rename(b)
    assert sorted(entries(mount)) == ["a", "b", "c"], "both names of one file: nothing happens"
    fails(errno.EEXIST, lambda: renameat2(a, c, RENAME_NOREPLACE))
    fails(errno.EINVAL, lambda: renameat2(a, c, RENAME_WHITEOUT))
    renameat2(a, c, RENAME_EXCHANGE)
    assert [one.read_bytes() for one in (a, b, c)] == [b"C", b"A", b"A"]
    assert [one.stat().st_nlink for one in (a, b, c)] == [1, 2, 2]
    a.rename(b)
    assert [one.read_bytes() for one in (b, c)] == [b"C", b"A"]
    assert c.stat().st_nlink == 1
    renameat2(c, d, RENAME_NOREPLACE)
    assert sorted(os.listdir(mount.path / "state")) == sorted(entries(mount)) == ["b", "d"]
    for path in (b, d):
        assert mount.residency(path.name)["size"] == 1


def test_reading_a_directory_that_changes(mount: Mount) -> None:
    """Names that stay are seen once each, whatever comes and goes meanwhile."""
    first = mount.regions / "0"
    first.touch()
    for n in range(1, 300):
        os.link(first, mount.regions / str(n))
    seen = []
    with os.scandir(mount.regions) as found:
        for n, entry in enumerate(found):
            seen.append(entry.name)
            if n % 3 == 0 and entry.name != "299":
                os.unlink(mount.regions / entry.name)
                os.link(mount.regions / "299", mount.regions / f"new{n}")
    assert [name for name in seen if name.isdigit()] == [str(n) for n in range(300)]
    assert (mount.regions / "299").stat().st_nlink == 300


def test_copying_by_links(mount: Mount) -> None:
    a = mount.regions / "a"
    a.write_bytes(b"x" * PAGE)
    subprocess.run(["cp", "-l", a, mount.regions / "b"], check=True)
    subprocess.run(["cp", "-lf", a, mount.regions / "b"], check=True)
    subprocess.run(["ln", "-f", a, mount.regions / "c"], check=True)
    assert a.stat().st_nlink == 3
    found = subprocess.run(
        ["find", mount.regions, "-samefile", a], check=True, capture_output=True, text=True
    )
    assert len(found.stdout.split()) == 3


def test_unlinked_while_it_is_used(mount: Mount) -> None:
    path = mount.regions / "a"
    path.write_bytes(b"x" * 2 * PAGE)
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    path.unlink()
    path.write_bytes(b"another")
    mapped[0] = 1
    assert (mapped[0], mapped[PAGE]) == (1, ord("x"))
    assert path.read_bytes() == b"another"
    mapped.close()
    assert wait_until(lambda: used(mount) == 1)


def test_an_audit_beside_files_without_a_name(mount: Mount, unnamed: int) -> None:
    """No file of state/ tells what they have. Two names of one file count once."""
    os.pwrite(unnamed, b"x" * M, 0)
    path = mount.region("a", M)
    path.write_bytes(b"x" * M)
    os.link(path, mount.regions / "b")
    with open(mount.region("c", M), "r+b") as file:
        file.write(b"x" * M)
        file.flush()
        (mount.regions / "c").unlink()
        assert "ok" in run("audit", str(mount.path)).stdout
        (mount.regions / "a").unlink()
        assert "ok" in run("audit", str(mount.path)).stdout
