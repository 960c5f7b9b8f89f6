"""Whether the computer has the memory that a mount is to have: what is told, and by whose limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmmfs.common.units import G, K, M
from hmmfs.mounting.computer import complaint

MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "41 31 0:38 {top} /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)


def computer(root: Path, *, available: int, cgroup: str, top: str = "/") -> Path:
    (root / "proc/self").mkdir(parents=True)
    text = f"MemTotal: 99999999 kB\nMemAvailable:   {available // K} kB\nBuffers: 1 kB\n"
    (root / "proc/meminfo").write_text(text)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(MOUNTS.format(top=top))
    return root


def v2(root: Path, path: str, limit: int | str, used: int = 0, cache: int = 0) -> None:
    directory = root / "sys/fs/cgroup/unified" / path
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{used}\n")
    stat = f"anon {used - cache}\ninactive_file {cache // 2}\nactive_file {cache - cache // 2}\n"
    (directory / "memory.stat").write_text(stat)


def v1(root: Path, path: str, limit: int, used: int = 0) -> None:
    directory = root / "sys/fs/cgroup/memory" / path
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (directory / "memory.usage_in_bytes").write_text(f"{used}\n")
    (directory / "memory.stat").write_text("cache 5\ntotal_inactive_file 0\ntotal_active_file 0\n")


def test_what_is_available(tmp_path: Path) -> None:
    root = computer(tmp_path, available=3 * G, cgroup="0::/\n")
    assert complaint(3 * G, root) is None
    said = complaint(3 * G + M, root)
    assert said is not None
    assert "together are 3073M, and this computer has 3.0 GiB:" in said
    assert said.count(".") == 2, "one sentence"


def test_the_tightest_of_the_cgroups_above(tmp_path: Path) -> None:
    root = computer(tmp_path, available=64 * G, cgroup="0::/a/b/c\n")
    v2(root, "a/b/c", "max")
    v2(root, "a/b", 4 * G, used=3 * G, cache=2 * G)
    v2(root, "a", 8 * G, used=G)
    assert complaint(3 * G, root) is None, "what files have in the cache is dropped for it"
    said = complaint(3 * G + M, root)
    assert said is not None
    assert "the limit of the cgroup /a/b leaves 3.0 GiB" in said
    v2(root, "a", 8 * G, used=7 * G + 512 * M)
    said = complaint(G, root)
    assert said is not None
    assert "the limit of the cgroup /a leaves 512.0 MiB" in said


def test_version_one(tmp_path: Path) -> None:
    cgroup = "4:cpu:/x\n3:memory:/job/one\n0::/\n"
    root = computer(tmp_path, available=64 * G, cgroup=cgroup)
    v1(root, "job/one", 0x7FFFFFFFFFFFF000)
    assert complaint(64 * G, root) is None
    v1(root, "job", 2 * G, used=G)
    said = complaint(G + M, root)
    assert said is not None
    assert "the cgroup /job leaves 1.0 GiB" in said


@pytest.mark.parametrize("path", ["/docker/1", "/../../elsewhere", "/"])
def test_in_a_container(tmp_path: Path, path: str) -> None:
    """The hierarchy is mounted from the container's own cgroup on, or the path leads out of it."""
    root = computer(tmp_path, available=64 * G, cgroup=f"0::{path}\n", top="/docker/1")
    v2(root, "", G)
    assert "the cgroup / leaves 1.0 GiB" in str(complaint(2 * G, root))


def test_a_computer_that_tells_nothing(tmp_path: Path) -> None:
    assert complaint(1 << 60, tmp_path) is None
    root = computer(tmp_path, available=G, cgroup="nonsense\n")
    assert complaint(M, root) is None


def test_here() -> None:
    assert complaint(4 * K) is None
    assert "Warning: " in str(complaint(1 << 60))
