"""Names, owners and times of regions, as on any file system."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    HMMFS,
    Mount,
    MountFactory,
    fails,
    let_others_reach,
    takes_root,
    wait_until,
)

M = 1 << 20
NOREPLACE, EXCHANGE = 1, 2
NOBODY = 65534
libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def used(mount: Mount) -> int:
    """Pages accounted for on all nodes."""
    nodes = [mount.values("stats")["host_used"]]
    for path in (mount.path / "devices").iterdir():
        nodes.append(int((path / "vram/used").read_text()))
    return sum(nodes)


def test_making(mount: Mount, tmp_path: Path) -> None:
    a, b, c, d = (mount.regions / name for name in "abcd")
    a.touch()
    os.truncate(a, 5000)
    (tmp_path / "source").write_bytes(b"hello" * 1000)
    shutil.copy(tmp_path / "source", b)
    os.close(os.open(c, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640))
    os.mknod(d, stat.S_IFREG | 0o600)
    assert sorted(os.listdir(mount.regions)) == ["a", "b", "c", "d"]
    assert a.stat().st_size == b.stat().st_size == 5000
    assert b.read_bytes() == b"hello" * 1000
    assert stat.S_IMODE(c.stat().st_mode) == 0o640
    fails(errno.EEXIST, lambda: os.open(c, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    assert {path.stat().st_nlink for path in (a, b, c, d)} == {1}
    assert len({path.stat().st_ino for path in (a, b, c, d)}) == 4


NAMES = [
    b"spaces and  more",
    b"-rf",
    b"new\nline",
    "größe 页".encode(),
    b"\xff\xfe no utf-8",
    b"x" * 255,
    b".hidden",
    b"a:0+4K",
]


@pytest.mark.parametrize("name", NAMES)
def test_names(mount: Mount, name: bytes) -> None:
    path = os.fsencode(mount.regions) + b"/" + name
    with open(path, "wb") as file:
        file.write(b"abc")
    assert os.listdir(os.fsencode(mount.regions)) == [name]
    assert os.listdir(os.fsencode(mount.path / "state")) == [name]
    with open(os.fsencode(mount.path) + b"/state/" + name + b"/residency") as file:
        assert "pages_host 1\n" in file.read()
    shown = subprocess.run([*HMMFS, "status", mount.path], capture_output=True, check=True)
    assert b"Regions" in shown.stdout
    os.unlink(path)
    assert os.listdir(mount.path / "state") == []


def test_rename(mount: Mount) -> None:
    a, b = mount.regions / "a", mount.regions / "b"
    a.write_bytes(b"a" * 9000)
    b.write_bytes(b"b" * 5000)
    ino = a.stat().st_ino
    fails(errno.EEXIST, lambda: renameat2(a, b, NOREPLACE))
    fails(errno.ENOENT, lambda: renameat2(a, mount.regions / "none", EXCHANGE))
    renameat2(a, b, EXCHANGE)
    assert (a.read_bytes(), b.read_bytes()) == (b"b" * 5000, b"a" * 9000)
    with open(a, "rb") as old:
        os.rename(b, a)
        assert os.listdir(mount.regions) == ["a"]
        assert a.stat().st_ino == ino
        assert a.read_bytes() == b"a" * 9000
        assert old.read() == b"b" * 5000
        assert os.fstat(old.fileno()).st_nlink == 0
    assert wait_until(lambda: mount.values("stats")["regions"] == 1)
    assert mount.values("stats")["host_used"] == 3
    os.rename(a, a)
    renameat2(a, b, NOREPLACE)
    assert os.listdir(mount.regions) == os.listdir(mount.path / "state") == ["b"]
    assert mount.submit(0, "read b:0+2") == "6161"
    fails(errno.EPERM, lambda: os.rename(b, mount.path / "b"))
    fails(errno.EPERM, lambda: os.rename(mount.path / "stats", mount.regions / "stats"))
    fails(errno.ENOENT, lambda: os.rename(a, b))


@pytest.mark.parametrize("where", ["host", "dev0", "both"])
def test_removed_while_in_use(mount: Mount, where: str) -> None:
    """The data live until the last close and the last mapping, then all memory is released."""
    path = mount.region("a", 3 * M)
    path.write_bytes(bytes(range(256)) * (3 * M // 256))
    if where != "host":
        mount.submit(0, "migrate a to dev0" if where == "dev0" else "migrate a:1M+1M to dev0")
    with open(path, "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
        path.unlink()
        assert not path.exists()
        fails(errno.ENOENT, lambda: mount.submit(0, "checksum a"))
        path.write_bytes(b"another")
        assert os.pread(file.fileno(), 4, 2 * M - 2) == b"\xfe\xff\x00\x01"
    mapping[M : M + 4] = b"new!"
    mapping.flush()
    assert mapping[M - 2 : M + 6] == b"\xfe\xffnew!\x04\x05"
    assert mount.values("stats")["regions"] == 2
    mapping.close()
    assert wait_until(lambda: mount.values("stats")["regions"] == 1)
    assert path.read_bytes() == b"another"
    path.unlink()
    assert wait_until(lambda: used(mount) == 0)


def test_listing_while_names_change(mount: Mount) -> None:
    names = {f"r{number:03}" for number in range(300)}
    for name in names:
        (mount.regions / name).touch()
    assert sorted(os.listdir(mount.regions)) == sorted(names)
    seen: list[str] = []
    with os.scandir(mount.regions) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 10 == 0:
                (mount.regions / f"new{number}").touch()
                with contextlib.suppress(FileNotFoundError):
                    (mount.regions / f"r{number:03}").unlink()
    left = names & set(os.listdir(mount.regions))
    assert len(seen) == len(set(seen)), "a name came twice"
    assert left <= set(seen), "a name that was there all the time is missing"
    # The kernel may take its time to forget what was unlinked.
    listed = len(os.listdir(mount.regions))
    assert wait_until(lambda: mount.values("stats")["regions"] == listed)


# ---- owners


def as_nobody(call: Callable[[], object]) -> int:
    """Run it in a child without privileges; its errno, or 0."""
    pid = os.fork()
    if not pid:
        status = 255
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            call()
            status = 0
        except OSError as error:
            status = error.errno or 255
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def opens(path: Path, flags: int) -> int:
    return as_nobody(lambda: os.close(os.open(path, flags)))


becomes_another = takes_root("only root becomes another user")


@becomes_another
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o622, 0o000, 0o060])
def test_mode_bits(mount_factory: MountFactory, tmp_path: Path, mode: int) -> None:
    let_others_reach(tmp_path)
    mount = mount_factory(vram="8M", allow_other="on")
    path = mount.region("a", M)
    path.chmod(mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    may_read = 0 if mode & 4 else errno.EACCES
    may_write = 0 if mode & 2 else errno.EACCES
    assert opens(path, os.O_RDONLY) == may_read
    assert opens(path, os.O_WRONLY) == may_write
    assert opens(path, os.O_RDWR) == (may_read or may_write)
    assert as_nobody(lambda: os.truncate(path, 5)) == may_write
    assert as_nobody(lambda: os.chmod(path, 0o777)) == errno.EPERM
    assert as_nobody(lambda: os.chown(path, NOBODY, NOBODY)) == errno.EPERM
    assert as_nobody(lambda: os.utime(path, (1, 1))) == errno.EPERM
    assert as_nobody(lambda: os.unlink(path)) == errno.EPERM  # regions/ is sticky
    os.chown(path, NOBODY, NOBODY)
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)
    assert opens(path, os.O_RDONLY) == (0 if mode & 0o400 else errno.EACCES)
    assert as_nobody(lambda: os.chmod(path, 0o640)) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@becomes_another
def test_strangers_and_control_files(mount_factory: MountFactory, tmp_path: Path) -> None:
    let_others_reach(tmp_path)
    mount = mount_factory(vram="8M", allow_other="on")
    mount.region("a", M).chmod(0o600)
    submit = mount.path / "devices/dev0/submit"
    assert opens(submit, os.O_RDWR) == errno.EACCES
    assert opens(mount.path / "stats", os.O_RDONLY) == 0
    assert as_nobody(lambda: os.rename(mount.regions / "a", mount.regions / "c")) == errno.EPERM
    # Everybody may make regions of their own, as in /tmp.
    assert as_nobody(lambda: (mount.regions / "b").touch()) == 0
    assert (mount.regions / "b").stat().st_uid == NOBODY
    assert sorted(os.listdir(mount.regions)) == ["a", "b"]
    assert as_nobody(lambda: os.rename(mount.regions / "b", mount.regions / "a")) == errno.EPERM
    assert as_nobody(lambda: os.unlink(mount.regions / "b")) == 0


@becomes_another
def test_without_allow_other(mount: Mount, tmp_path: Path) -> None:
    let_others_reach(tmp_path)
    assert opens(mount.path / "stats", os.O_RDONLY) == errno.EACCES
    assert as_nobody(lambda: os.listdir(mount.regions)) == errno.EACCES


# ---- times


def times(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns


MOVES = {
    "write": (
        lambda path: subprocess.run(
            [
                "dd",
                "of=" + str(path),
                "conv=notrunc",
                "if=/dev/zero",
                "bs=1",
                "count=1",
                "status=none",
            ],
            check=True,
        ),
        True,
        True,
    ),
    "truncate": (lambda path: os.truncate(path, 100), True, True),
    "punch": (
        lambda path: subprocess.run(["fallocate", "-p", "-o", "0", "-l", "4096", path], check=True),
        True,
        True,
    ),
    "chmod": (lambda path: path.chmod(0o600), False, True),
    "read": (lambda path: path.read_bytes(), False, False),
    "stat": (lambda path: path.stat(), False, False),
}


@pytest.mark.parametrize("what", MOVES)
def test_times_move(mount: Mount, what: str) -> None:
    call, modifies, changes = MOVES[what]
    path = mount.region("a", 8192)
    before = times(path)
    time.sleep(0.02)  # the clock of mtime and ctime is a coarse one
    call(path)
    after = times(path)
    assert (after[1] > before[1], after[2] > before[2]) == (modifies, changes)


def test_times_of_what_nobody_announces(mount: Mount) -> None:
    path = mount.region("a", 8192)
    before = times(path)
    time.sleep(0.02)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0] = 1
        mapping.flush()
    stored = times(path)
    assert stored[1] > before[1]
    time.sleep(0.02)
    mount.submit(0, "migrate a to dev0")
    assert times(path)[1] == stored[1], "moving a page is not a change of its bytes"
    mount.submit(0, "fill a 1")
    assert times(path)[1] > stored[1]


def test_times_are_set(mount: Mount) -> None:
    path = mount.region("a", 4096)
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    assert times(path)[:2] == (1_000_000_001, 2_000_000_002)
    subprocess.run(["touch", "-m", "-d", "2001-01-01T00:00:00Z", path], check=True)
    assert times(path)[:2] == (1_000_000_001, 978307200 * 10**9)
    subprocess.run(["touch", "-a", path], check=True)
    assert times(path)[1] == 978307200 * 10**9
    assert abs(times(path)[0] / 1e9 - time.time()) < 5
    before = mount.regions.stat().st_mtime_ns
    path.unlink()
    assert mount.regions.stat().st_mtime_ns > before
