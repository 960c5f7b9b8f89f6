"""Real mounts that nobody serves: what /proc says of them, and their end."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmmfs.common import mountinfo
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.mounting import mounts as mounting
from hmmfs.mounting.config import Config

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    """An empty directory with a blank and a backslash in its name, free of mounts afterwards."""
    path = tmp_path / "a b\\c"
    path.mkdir()
    yield path
    if mounting.is_mounted(str(path)):
        mounting.unmount(str(path), lazy=True)


@needs_root
def test_mount_and_unmount(point: Path) -> None:
    mounted = mounting.mount(str(point), Config(fsname="a,b c", noexec=True))
    try:
        assert mounted.path == str(point)
        assert not os.get_inheritable(mounted.fd)
        entry = mountinfo.find_hmmfs(str(point))
        assert entry is not None
        assert (entry.source, entry.major, entry.minor) == ("a,b c", 0, mounted.connection_id)
        mounts = Path("/proc/mounts").read_text().splitlines()
        line = next(line for line in mounts if line.startswith(r"a,b\040c "))
        assert {"rw", "nosuid", "nodev", "noexec", "default_permissions"} <= set(
            line.split()[3].split(",")
        )
        with pytest.raises(HmmfsError, match="is an hmmfs mount already: end it with") as caught:
            mounting.mount(str(point), Config())
        assert caught.value.errno == errno.EBUSY
        link = point.parent / "link"
        link.symlink_to(point)
        assert mounting.is_mounted(f"{link}/")
        assert mounting.set_readahead(mounted.connection_id, 1 << 20) is None
        bdi = Path(f"/sys/class/bdi/0:{mounted.connection_id}/read_ahead_kb")
        assert bdi.read_text() == "1024\n"
        mounting.unmount(str(point))
    finally:
        os.close(mounted.fd)
    assert not mounting.is_mounted(str(point))
    with pytest.raises(HmmfsError, match="is not an hmmfs mount"):
        mounting.unmount(str(point))


@needs_root
def test_unmount_when_its_daemon_is_gone(point: Path) -> None:
    os.close(mounting.mount(str(point), Config()).fd)
    assert mounting.is_mounted(str(point))
    mounting.unmount(str(point))
    assert not mounting.is_mounted(str(point))


def test_bad_mount_points(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HmmfsError, match=r"file is not a directory. Mount on a directory\.") as got:
        mounting.mount(str(tmp_path / "file"), Config())
    assert got.value.errno == errno.ENOTDIR
    with pytest.raises(HmmfsError, match=r"none does not exist: make the directory") as got:
        mounting.mount(str(tmp_path / "none"), Config())
    assert got.value.errno == errno.ENOENT


def test_as_a_user_without_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    conf = tmp_path / "fuse.conf"
    conf.write_text("# user_allow_other\n")
    monkeypatch.setattr(mounting, "FUSE_CONF", str(conf))
    with pytest.raises(
        UsageError, match=r"allow_other is not permitted here\. Put user_allow_other"
    ):
        mounting.mount(str(tmp_path), Config(allow_other=True))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(HmmfsError, match="There is no fusermount3"):
        mounting.mount(str(tmp_path), Config())


def test_fusermount3_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "fusermount3"
    helper.write_text(
        "#!/bin/sh\necho 'fusermount3: mount failed: Operation not permitted' >&2\nexit 1\n"
    )
    helper.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda _: str(helper))
    with pytest.raises(
        HmmfsError, match=r"fusermount3 says mount failed: Operation not permitted\.$"
    ):
        mounting.mount(str(tmp_path), Config())


@needs_root
def test_mount_by_fusermount3(point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("fusermount3") is None:
        pytest.skip("needs fusermount3")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    mounted = mounting.mount(str(point), Config(fsname="a,b"))
    try:
        assert not os.get_inheritable(mounted.fd)
        assert os.readlink(f"/proc/self/fd/{mounted.fd}") == "/dev/fuse"
        entry = mountinfo.find_hmmfs(str(point))
        assert entry is not None
        assert entry.source == "a,b"
    finally:
        os.close(mounted.fd)
    mounting.unmount(str(point))
    assert not mounting.is_mounted(str(point))


def test_no_readahead_without_a_mount() -> None:
    sentence = mounting.set_readahead(999_999, 1 << 20)
    assert sentence is not None
    assert "cannot be set" in sentence
