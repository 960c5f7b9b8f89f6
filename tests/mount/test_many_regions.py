"""Mounts with many regions: how much is asked, which is what makes listings slow. No times."""

from __future__ import annotations

import ctypes
import os
import subprocess

from conftest import Mount, wait_until

from hmmfs.inspect.mount.snapshot import read_snapshot
from hmmfs.inspect.mount.status import read_status

MANY = 100
libc = ctypes.CDLL(None, use_errno=True)


def make(mount: Mount) -> None:
    for number in range(MANY):
        (mount.regions / f"r {number}").write_bytes(b"x" * (number + 1))


def relayed(mount: Mount) -> int:
    return mount.values("stats")["relayed"]


def test_a_long_listing_asks_little_of_python(mount: Mount) -> None:
    make(mount)
    subprocess.run(["ls", "-l", mount.regions], stdout=subprocess.DEVNULL, check=True)
    before = relayed(mount)
    done = subprocess.run(["ls", "-ln", mount.regions], capture_output=True, text=True, check=True)
    assert relayed(mount) - before < MANY / 2
    sizes = sorted(int(line.split()[4]) for line in done.stdout.splitlines()[1:])
    assert sizes == list(range(1, MANY + 1))


def test_no_attributes_are_listed_without_python(mount: Mount) -> None:
    """The newest ls asks it of every file."""
    make(mount)
    paths = sorted(mount.regions.iterdir())
    before = relayed(mount)
    for path in paths:
        assert os.listxattr(path) == []
        assert libc.listxattr(os.fsencode(path), None, 0) == 0
    assert relayed(mount) - before < MANY / 2
    os.setxattr(paths[7], "user.a", b"1")
    os.setxattr(paths[7], "user.b", b"2")
    os.removexattr(paths[7], "user.a")
    for path in (paths[7], paths[8]):
        os.rename(path, mount.regions / "renamed")
        expected = ["user.b"] if path == paths[7] else []
        assert os.listxattr(mount.regions / "renamed") == expected
        assert libc.listxattr(os.fsencode(mount.regions / "renamed"), None, 0) == 7 * len(expected)
    os.setxattr(mount.regions, "user.c", b"3")
    assert os.listxattr(mount.regions) == ["user.c"]


def test_a_snapshot_reads_one_file_of_all_regions(mount: Mount) -> None:
    make(mount)
    mount.submit(0, "migrate 'r 7' to dev0")
    before = relayed(mount)
    found = read_snapshot(str(mount.path))
    one = relayed(mount) - before
    before = relayed(mount)
    assert len(read_status(str(mount.path))["regions"]) == MANY
    assert relayed(mount) - before < one < 5 * MANY
    assert [region["name"] for region in found["regions"]] == sorted(os.listdir(mount.regions))
    for region in found["regions"]:
        assert region["residency"] == mount.values(f"state/{region['name']}/residency")
        assert region["faults"] == mount.values(f"state/{region['name']}/faults")
    for path in mount.regions.iterdir():
        path.unlink()
    assert wait_until(lambda: mount.values("stats")["regions"] == 0)
    assert (mount.path / "usage").read_text() == "# region\n"
    assert read_snapshot(str(mount.path))["regions"] == []


def test_attributes_of_directories_are_of_the_moment(mount: Mount) -> None:
    """Though the kernel keeps them: it knows of what changes them."""
    times = [mount.regions.stat().st_mtime_ns]
    for change in (
        lambda: (mount.regions / "a").touch(),
        lambda: os.rename(mount.regions / "a", mount.regions / "b"),
        lambda: (mount.regions / "b").unlink(),
    ):
        change()
        times.append(mount.regions.stat().st_mtime_ns)
    assert times == sorted(set(times))
    mount.regions.chmod(0o700)
    assert mount.regions.stat().st_mode & 0o777 == 0o700
    links = (mount.path / "state").stat().st_nlink
    (mount.regions / "c").touch()
    assert (mount.path / "state").stat().st_nlink == links + 1
