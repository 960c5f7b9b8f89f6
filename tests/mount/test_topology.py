"""Links between single nodes, on real mounts: which way a copy goes, and what it is charged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Mount, MountFactory, run

from hmmfs.device.links import link

M = 1 << 20
# Any two nodes differ in their link, so that a copy charged to the wrong one shows.
HOST = {0: "pcie4", 1: "pcie3", 2: "cxl2"}
INLINE = "host-dev0:pcie4+dev2-host:cxl2+dev0-dev1:nvlink3+dev1-dev2:600ns:64G"
TOML = """
[links]
host-dev0 = "pcie4"
dev2-host = "cxl2"
dev0-dev1 = "nvlink3"
dev1-dev2 = {latency = "600ns", bandwidth = "64G"}
"""
MATRIX = """\
- host dev0 dev1 dev2
host X pcie4 pcie3 cxl2
dev0 pcie4 X nvlink3 host
dev1 pcie3 nvlink3 X 600ns:64G
dev2 cxl2 host 600ns:64G X
"""
DISTANCES = """\
node   0   1   2   3
  0:  10  19  28  14
  1:  19  10  19  22
  2:  28  19  10  17
  3:  14  22  17  10
"""


@pytest.fixture(params=["file", "inline"])
def mount(request: pytest.FixtureRequest, mount_factory: MountFactory, tmp_path: Path) -> Mount:
    file = tmp_path / "links.toml"
    file.write_text(TOML)
    said = INLINE if request.param == "inline" else os.path.relpath(file)
    return mount_factory(vram="8M", devices=3, host="64M", topology=said, keep_clean="off")


def clock(mount: Mount) -> dict[str, int]:
    """What copies were charged, by node and direction."""
    stats = mount.values("stats")
    found = {"host in": stats["host_copy_in_ns"], "host out": stats["host_copy_out_ns"]}
    for device in range(3):
        stats = mount.values(f"devices/dev{device}/stats")
        found[f"dev{device} in"] = stats["copy_in_ns"]
        found[f"dev{device} out"] = stats["copy_out_ns"]
    return found


def charged(mount: Mount, operation: str) -> dict[str, int]:
    """What one operation added to the clock, where it added anything."""
    before = clock(mount)
    mount.submit(0, operation)
    after = clock(mount)
    return {key: after[key] - before[key] for key in after if after[key] != before[key]}


def test_which_way_copies_go(mount: Mount) -> None:
    assert (mount.path / "topology").read_text() == MATRIX
    assert (mount.path / "distances").read_text() == DISTANCES
    data = os.urandom(2 * M)
    path = mount.region("a", 2 * M)
    path.write_bytes(data)
    direct = {(0, 1): link("nvlink3").run_ns, (1, 2): link("600ns:64G").run_ns}
    at = None
    # Every pair of devices, both ways, in a block of 512 pages.
    for to in (0, 1, 0, 2, 1, 2, 0):
        found = charged(mount, f"migrate a to dev{to}")
        entry = link(HOST[to]).run_ns[512]
        if at is None:
            assert found == {"host out": entry, f"dev{to} in": entry}
        elif (min(at, to), max(at, to)) in direct:
            ns = direct[min(at, to), max(at, to)][512]
            assert found == {f"dev{at} out": ns, f"dev{to} in": ns}, "the host lies not between"
        else:
            leave = link(HOST[at]).run_ns[512]
            assert found == {
                f"dev{at} out": leave,
                "host in": leave,
                "host out": entry,
                f"dev{to} in": entry,
            }
        at = to
    assert charged(mount, "migrate a:64K+64K to dev1") == {
        "dev0 out": direct[0, 1][16],
        "dev1 in": direct[0, 1][16],
    }
    # Two runs of dev0's, of 16 and of 480 pages, and what dev1 has between them.
    home = link("pcie4").run_ns[16] + link("pcie4").run_ns[480]
    assert charged(mount, "migrate a to host") == {
        "dev0 out": home,
        "dev1 out": link("pcie3").run_ns[16],
        "host in": home + link("pcie3").run_ns[16],
    }
    assert path.read_bytes() == data


def test_a_wrong_topology_is_refused(tmp_path: Path) -> None:
    for said, sentence in (
        ("dev0-dev3:pcie4", "'dev3' is not a node: this mount has host and dev0 to dev1."),
        ("nonsense", "Name a FILE.toml, or links of pairs as in host-dev0:pcie4+dev0-dev1:nvlink3"),
        (str(tmp_path / "none.toml"), "none.toml cannot be read: No such file or directory."),
        ("", "topology takes FILE.toml, or the links of pairs as in"),
    ):
        done = run("mount", str(tmp_path), "-o", f"devices=2,topology={said}", check=False)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
