"""Tools that copy files with all attributes, into, out of and between regions: as on tmpfs."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Mount, MountFactory, fails, takes_root

K = 1 << 10
OURS = ("advice", "residency", "faults", "numa", "prefetched")
COMMENT = b"of \0 any bytes"
TIME = 1_000_000_000_123_456_789
BYTES = os.urandom(300 * K + 5)


def tool(*words: str) -> Callable[[Path, Path], None]:
    """A command that ends well and says nothing; SRC and DST in it are the two files."""

    def copy(source: Path, target: Path) -> None:
        names = {"SRC": str(source), "DST": str(target)}
        names |= {"INTO": str(target.parent), "FROM": str(source.parent), "NAME": source.name}
        command = [names.get(word, word) for word in words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    return copy


def tar(source: Path, target: Path) -> None:
    """Made and unpacked again under the source's name, which becomes the target's."""
    between, archive = target.parent / source.name, source.parent / "x.tar"
    other = source.parent / "set-aside"
    tool("tar", "--xattrs", "-C", "FROM", "-cf", str(archive), "NAME")(source, target)
    os.rename(source, other)
    tool("tar", "--xattrs", "-C", "INTO", "-xpf", str(archive))(source, target)
    os.rename(between, target)
    os.rename(other, source)
    archive.unlink()


def copytree(source: Path, target: Path) -> None:
    """Of a directory into one that is there."""
    if source.parent == target.parent:
        between = source.parents[2] / "between"
        shutil.copytree(source.parent, between)
        os.rename(between / source.name, between / target.name)
        shutil.copytree(between, target.parent, dirs_exist_ok=True)
        shutil.rmtree(between)
    else:
        shutil.copytree(source.parent, target.parent, dirs_exist_ok=True)
        os.rename(target.parent / source.name, target)


# What makes a copy; and whether times and attributes come along.
TOOLS: dict[str, tuple[Callable[[Path, Path], object], bool, bool]] = {
    "cp -a": (tool("cp", "-a", "SRC", "DST"), True, True),
    "cp -p": (tool("cp", "-p", "SRC", "DST"), True, False),
    "cp all": (tool("cp", "--preserve=mode,timestamps,xattr,links", "SRC", "DST"), True, True),
    "cp xattr": (tool("cp", "--preserve=xattr", "SRC", "DST"), False, True),
    "cp reflink": (tool("cp", "-a", "--reflink=auto", "SRC", "DST"), True, True),
    "cp sparse": (tool("cp", "-a", "--sparse=always", "SRC", "DST"), True, True),
    "install": (tool("install", "-p", "-m", "640", "SRC", "DST"), True, False),
    "rsync": (tool("rsync", "-aX", "SRC", "DST"), True, True),
    "rsync in place": (tool("rsync", "-aX", "--inplace", "SRC", "DST"), True, True),
    "tar": (tar, True, True),
    "mv": (tool("mv", "SRC", "DST"), True, True),
    "copy2": (shutil.copy2, True, True),
    "copytree": (copytree, True, True),
    "move": (shutil.move, True, True),
}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory of another file system; tmpfs, where that keeps user attributes."""
    path = tmp_path / "elsewhere"
    path.mkdir()
    return path


def keeps(directory: Path) -> bool:
    probe = directory / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.probe", b"1")
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


@pytest.mark.parametrize("way", ["in", "out", "between"])
def test_copied_with_all_attributes(mount: Mount, elsewhere: Path, way: str) -> None:
    source = (elsewhere if way == "in" else mount.regions) / "source"
    target = (elsewhere if way == "out" else mount.regions) / "target"
    kept = keeps(source.parent) and keeps(target.parent)
    for name, (copy, times, attributes_come) in TOOLS.items():
        if name.startswith("rsync") and not shutil.which("rsync"):
            continue
        make_source(mount, source)
        copy(source, target)
        assert target.read_bytes() == BYTES, name
        assert stat.S_IMODE(target.stat().st_mode) == 0o640, name
        assert not times or target.stat().st_mtime_ns == TIME, name
        if kept:
            come = {"user.comment": COMMENT} if attributes_come else {}
            assert attributes(target) == come, name
        moved = name in ("mv", "move")
        assert source.exists() is not moved, name
        if way != "out" and not (moved and way == "between"):
            assert (mount.path / "state/target/advice").read_text() == "", name
        for path in (*mount.regions.iterdir(), *elsewhere.iterdir()):
            path.unlink()


def make_source(mount: Mount, path: Path) -> None:
    """Of a region all of our attributes say something."""
    path.write_bytes(BYTES)
    path.chmod(0o640)
    if keeps(path.parent):
        os.setxattr(path, "user.comment", COMMENT)
    if path.parent == mount.regions:
        mount.submit(0, "migrate source:64K+64K to dev0")
        (mount.path / "state/source/advice").write_text("all preferred_location=dev0")
        assert all(os.getxattr(path, f"user.hmmfs.{short}") for short in OURS)
    os.utime(path, ns=(TIME, TIME))


def test_foreign_attributes(mount: Mount) -> None:
    """By the rules of setxattr(2), for regions and for their directory; they stay with the file."""
    region = mount.region("a", 100)
    for path in (region, mount.regions):
        assert os.listxattr(path) == []
        before = path.stat().st_ctime_ns
        os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
        assert path.stat().st_ctime_ns > before
        fails(errno.EEXIST, lambda path=path: os.setxattr(path, "user.a", b"2", os.XATTR_CREATE))
        fails(errno.ENODATA, lambda path=path: os.setxattr(path, "user.b", b"", os.XATTR_REPLACE))
        os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user." + "n" * 250, b"long name")
        fails(errno.ERANGE, lambda path=path: os.setxattr(path, "user." + "n" * 251, b""))
        assert attributes(path) == {
            "user.a": b"3",
            "user.empty": b"",
            "user." + "n" * 250: b"long name",
        }
        os.removexattr(path, "user.empty")
        fails(errno.ENODATA, lambda path=path: os.removexattr(path, "user.empty"))
        fails(errno.ENODATA, lambda path=path: os.getxattr(path, "user.empty"))
        os.removexattr(path, "user." + "n" * 250)
    os.rename(region, mount.regions / "b")
    assert attributes(mount.regions / "b") == {"user.a": b"3"}
    (mount.regions / "b").unlink()
    mount.region("b", 1)
    assert attributes(mount.regions / "b") == {}


def test_limits_of_foreign_attributes(mount: Mount) -> None:
    region = mount.region("a", 1)
    os.setxattr(region, "user.large", b"x" * 64 * K)
    fails(errno.E2BIG, lambda: os.setxattr(region, "user.larger", b"x" * (64 * K + 1)))
    fails(errno.ENOSPC, lambda: os.setxattr(region, "user.second", b"x" * 64 * K))
    sentence = (
        "Extended attributes take at most 128 KiB of a file, and their names 64 KiB. Remove some."
    )
    assert (mount.path / "last_error").read_text().endswith(f"{sentence}\n")
    assert os.listxattr(region) == ["user.large"]
    assert os.getxattr(region, "user.large") == b"x" * 64 * K
    os.removexattr(region, "user.large")
    for number in range(256):
        os.setxattr(region, f"user.{number:0250}", b"")
    fails(errno.ENOSPC, lambda: os.setxattr(region, "user.more", b""))
    assert len(os.listxattr(region)) == 256, "all the names that listxattr(2) can tell"


def test_attributes_go_with_their_region(mount: Mount) -> None:
    """All regions together may have 64 MiB, and one after the other as much as they like."""
    for number in range(600):
        path = mount.region(f"r{number}", 1)
        for name in ("user.a", "user.b"):
            os.setxattr(path, name, b"x" * 60 * K)
        path.unlink()


ROOTS = takes_root("to others the kernel says EPERM itself")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("trusted.a", marks=ROOTS),
        pytest.param("security.a", marks=ROOTS),
        "system.a",
        "system.posix_acl_access",
    ],
)
def test_other_namespaces_are_not_supported(mount: Mount, name: str) -> None:
    value = b"\2\0\0\0\1\0\6\0\xff\xff\xff\xff\4\0\4\0\xff\xff\xff\xff\x20\0\4\0\xff\xff\xff\xff"
    region = mount.region("a", 1)
    for path in (region, mount.regions):
        fails(errno.EOPNOTSUPP, lambda path=path: os.setxattr(path, name, value))
        fails(errno.EOPNOTSUPP, lambda path=path: os.getxattr(path, name))
        fails(errno.EOPNOTSUPP, lambda path=path: os.removexattr(path, name))
    fails(errno.EOPNOTSUPP, lambda: os.setxattr(region, "user.hmmfs.other", b"1"))
    fails(errno.EOPNOTSUPP, lambda: os.setxattr(mount.regions, "user.hmmfs.advice", b"1"))


def test_control_files_have_no_attributes(mount: Mount, elsewhere: Path) -> None:
    path = mount.path / "devices/dev0/policy/prefetch"
    assert os.listxattr(path) == []
    fails(errno.EOPNOTSUPP, lambda: os.setxattr(path, "user.a", b"1"))
    fails(errno.EOPNOTSUPP, lambda: os.getxattr(path, "user.a"))
    tool("cp", "-a", "SRC", "DST")(path, elsewhere / "prefetch")
    assert (elsewhere / "prefetch").read_text() == path.read_text()


def test_the_kernel_asks_once_for_what_is_not_there(mount: Mount) -> None:
    """Writes and listings cost no question that pyfuse3 would have to answer."""
    path = mount.region("a", 1)
    with open(path, "r+b", buffering=0) as file:
        file.write(b"1")
        before = mount.values("stats")["relayed"]
        once = mount.values("stats")["relayed"] - before  # what reading the counter takes
        before = mount.values("stats")["relayed"]
        for _ in range(100):
            file.write(b"1")
            for name in ("security.capability", "system.posix_acl_access", "security.selinux"):
                fails(errno.EOPNOTSUPP, lambda name=name: os.getxattr(file.fileno(), name))
        assert mount.values("stats")["relayed"] - before == once


def test_a_tree_into_regions(mount: Mount, elsewhere: Path) -> None:
    """Its files come, the directory's mode and times too; the rest is refused, each by its name."""
    for name in ("one", "two"):
        (elsewhere / name).write_text(name)
    elsewhere.chmod(0o750)
    os.utime(elsewhere, ns=(TIME, TIME + 1))
    for words in (("cp", "-a", f"{elsewhere}/."), ("rsync", "-aX", f"{elsewhere}/")):
        tool(*words, "DST")(elsewhere, mount.regions)
        assert sorted(os.listdir(mount.regions)) == ["one", "two"]
        found = mount.regions.stat()
        assert stat.S_IMODE(found.st_mode) == 0o750
        assert (found.st_atime_ns, found.st_mtime_ns) == (TIME, TIME + 1)
        for path in mount.regions.iterdir():
            path.unlink()
        assert mount.regions.stat().st_mtime_ns > TIME + 1
        os.chmod(mount.regions, 0o755)
    (elsewhere / "directory").mkdir()
    (elsewhere / "link").symlink_to("one")
    os.mkfifo(elsewhere / "fifo")
    done = subprocess.run(
        ["cp", "-a", f"{elsewhere}/.", mount.regions],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    assert done.returncode == 1
    complaints = sorted(done.stderr.splitlines())
    assert len(complaints) == 3, complaints
    for line, name in zip(complaints, ("directory", "fifo", "link"), strict=True):
        assert f"{mount.regions}/./{name}" in line
        assert line.endswith("Operation not permitted")
    assert sorted(os.listdir(mount.regions)) == ["one", "two"]


@takes_root("only root becomes another user")
def test_users_of_a_shared_mount(mount_factory: MountFactory) -> None:
    """Attributes are read and set by those who may read and write the file."""
    mount = mount_factory(vram="4M", allow_other="on")
    path = mount.region("a", 1)
    path.chmod(0o644)
    os.setxattr(path, "user.a", b"1")
    program = (
        "import os,sys; p='a'; os.chdir(sys.argv[1]); os.setuid(65534)\n"
        "print(os.getxattr(p,'user.a'), os.listxattr(p))\n"
        "try: os.setxattr(p,'user.a',b'2')\n"
        "except PermissionError: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path.parent], capture_output=True, text=True, check=True
    )
    assert done.stdout == "b'1' ['user.a']\nrefused\n"
