"""Placement and thrashing policies, with counted faults, on real mounts."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MountFactory, fails

import hmmfs
from hmmfs.device.links import link

PAGE, M = 4096, 1 << 20


@pytest.fixture
def machine(mount_factory: MountFactory) -> Iterator[hmmfs.Machine]:
    yield hmmfs.connect(mount_factory(vram="8M", devices=2, host="32M").path)
    gc.collect()


def pages_on(region: hmmfs.Region, node: str) -> int:
    return region.residency()[f"pages_{node}"]


def look(a: np.ndarray[Any, Any]) -> int:
    return int(a[::PAGE].sum())


def store(a: np.ndarray[Any, Any]) -> None:
    a[::PAGE] += 1


def filled(machine: hmmfs.Machine, size: int = 2 * M) -> hmmfs.Region:
    region = machine.region("a", size)
    region.cpu[:] = 1
    region.cpu.flush()
    return region


def test_never(machine: hmmfs.Machine) -> None:
    machine.dev0.policy(placement="never")
    region, hole = filled(machine), machine.region("hole", 2 * M)
    for _ in range(3):
        machine.dev0.launch(store, hmmfs.updates(region)).wait()
        machine.dev0.launch(store, hmmfs.updates(hole)).wait()
    assert (pages_on(region, "dev0"), pages_on(hole, "dev0")) == (0, 0)
    assert (look(region.cpu), look(hole.cpu)) == (4 * 512, 3 * 512)
    stats = machine.dev0.stats()
    assert (stats["faults"], stats["mapped_pages"], stats["used"]) == (6 * 32, 6 * 512, 0)
    # A fault for each 64 KiB, and the way of its bytes over the link.
    assert stats["fault_ns"] == 6 * 32 * 45_000
    assert stats["copy_in_ns"] == 6 * 32 * link("pcie3").run_ns[16]
    assert machine.dev0.submit("read a:0+1") == "04"
    assert pages_on(region, "dev0") == 0
    machine.dev0.policy(placement="first-touch")
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 4 * 512
    assert pages_on(region, "dev0") == 512


def windows(a: np.ndarray[Any, Any]) -> tuple[int, list[str]]:
    """The worker's process, and what it maps of pools and of the mount."""
    a[0] += 1
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split(maxsplit=5)[5] for line in lines if line.count("/")]
    return os.getpid(), [path for path in mapped if "hmmfs-pool" in path or "/regions/" in path]


def test_windows_go_where_parts_were_mapped_from_the_mount(machine: hmmfs.Machine) -> None:
    """All of them, since a mover that waits for the worker in any of them may hold up the rest."""
    a, b = filled(machine), machine.region("b", 2 * M)
    machine.dev0.policy(placement="first-touch")
    for region in (a, b):
        machine.dev0.launch(store, hmmfs.updates(region)).wait()
    pid, paths = machine.dev0.launch(windows, hmmfs.updates(b)).wait()
    assert len(paths) == 2
    machine.dev0.policy(placement="never")
    a.cpu[:] = 1
    again, paths = machine.dev0.launch(windows, hmmfs.updates(a)).wait()
    assert again == pid
    assert [path for path in paths if path.endswith("/regions/a")]
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "hmmfs-pool" not in maps
    assert "/regions/a" not in maps
    for region in (a, b):
        machine.dev0.launch(store, hmmfs.updates(region)).wait()
        assert look(region.cpu) > 0
    assert machine.audit() == "ok"


def test_preferred(machine: hmmfs.Machine) -> None:
    machine.dev0.policy(placement="preferred")
    region, hole = filled(machine, 4 * M), machine.region("hole", 2 * M)
    region.advise("preferred_location=dev0", part=slice(0, 2 * M))
    machine.dev0.launch(store, hmmfs.updates(region)).wait()
    machine.dev0.launch(store, hmmfs.updates(hole)).wait()
    assert (pages_on(region, "dev0"), pages_on(region, "host")) == (512, 512)
    assert pages_on(hole, "dev0") == 512, "what is nowhere comes to its first user"


def test_access_counter(machine: hmmfs.Machine) -> None:
    """The third touch brings 64 KiB; what is touched once stays."""
    machine.dev0.policy(placement="access-counter threshold=3", prefetch="none")
    region = filled(machine)

    def touch(a: np.ndarray[Any, Any], group: int) -> int:
        return int(a[group * 16 * PAGE : (group + 1) * 16 * PAGE : PAGE].sum())

    for times, pages in enumerate([0, 0, 16, 16], 1):
        assert machine.dev0.launch(touch, hmmfs.reads(region), 5).wait() == 16
        assert pages_on(region, "dev0") == pages, times
    assert machine.dev0.launch(touch, hmmfs.reads(region), 6).wait() == 16
    assert pages_on(region, "dev0") == 16
    machine.dev1.policy(placement="access-counter threshold=1", prefetch="block")
    assert machine.dev1.launch(touch, hmmfs.reads(region), 6).wait() == 16
    assert pages_on(region, "dev1") == 16, "what has not been touched often is not prefetched"


MINE = """
import numpy as np
from hmmfs.policy import PlacementPolicy

class Even(PlacementPolicy):
    name = "even"
    def brings(self, fault):
        {body}
"""


@pytest.mark.warns("failed and is replaced by first-touch")
def test_a_policy_of_ones_own(machine: hmmfs.Machine, tmp_path: Path) -> None:
    """Even groups of 16 pages come to the device; then it breaks, and all do."""
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(body="return np.arange(512) // 16 % 2 == 0"))
    machine.dev0.policy(placement=f"{file}:Even", prefetch="none")
    region = filled(machine)
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 512
    assert pages_on(region, "dev0") == 256
    file.write_text(MINE.format(body="return [1]"))
    machine.dev0.policy(placement=f"{file}:Even")
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 512
    assert pages_on(region, "dev0") == 512
    assert machine.dev0.policy()["placement"] == "first-touch"
    assert "replaced by first-touch" in (machine.dev0.files / "last_error").read_text()
    with pytest.raises(OSError, match="no placement policy") as caught:
        machine.dev0.policy(placement="tree")
    assert caught.value.errno == errno.EINVAL


ROGUE = """
import sys
import numpy as np
from hmmfs.policy import (EvictionPolicy, PlacementPolicy, PrefetchPolicy, ThrashingPolicy)

class Says(Exception):
    def __str__(self):
        raise RuntimeError("never")

HOW = {"exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "says": Says(),
       "lines": ValueError("one\\ntwo \\ud800")}

class Prefetch(PrefetchPolicy):
    name = "rogue"
    def __init__(self, how): self.how = how
    def pages(self, fault):
        if self.how in HOW: raise HOW[self.how]
        fault.touched[:] = False
        return np.zeros(512, dtype=bool)

class Placement(PlacementPolicy):
    name = "rogue"
    def __init__(self, how): self.how = how
    def brings(self, fault): raise HOW[self.how]

class Eviction(EvictionPolicy):
    name = "rogue"
    def __init__(self, how): self.how = how
    def order(self, candidates):
        if self.how in HOW: raise HOW[self.how]
        candidates["block"] = 1 << 40
        return [0]

class Thrashing(ThrashingPolicy):
    name = "rogue"
    def native(self): return None

class Exits(PrefetchPolicy):
    name = "exits"
    def __init__(self): sys.exit(1)
"""


@pytest.mark.warns("failed and is replaced by")
@pytest.mark.parametrize("how", ["exit", "interrupt", "says", "lines", "mutate"])
def test_policies_that_would_end_the_daemon(
    machine: hmmfs.Machine, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "rogue.py"
    file.write_text(ROGUE)
    region, other = filled(machine, 8 * M), machine.region("b", 4 * M)
    kinds = ["Prefetch", "Eviction"] if how == "mutate" else ["Prefetch", "Eviction", "Placement"]
    for kind in kinds:
        machine.dev0.policy(**{kind.lower(): f"{file}:{kind} how={how}"})
        assert machine.dev0.launch(look, hmmfs.reads(region), limit=30).wait() == 2048
        machine.dev0.submit("fill b 7")
        region.migrate("host")
    if how != "mutate":
        said = (machine.dev0.files / "last_error").read_text()
        assert said.count("\n") == 1
        assert "replaced by first-touch" in said
    (machine.path / "policy/prefetch").write_text(f"{file}:Prefetch how={how}")
    region.migrate(machine.dev1)
    assert look(region.cpu) == 2048
    assert machine.audit() == "ok"
    del other


def test_policies_that_can_not_be_had(machine: hmmfs.Machine, tmp_path: Path) -> None:
    file = tmp_path / "rogue.py"
    file.write_text(ROGUE)
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(1)\n")
    thrashing = machine.path / "policy/thrashing"
    for policy, text in (
        (thrashing, f"{file}:Thrashing"),
        (thrashing, "uvm pin=--1"),
        (thrashing, "uvm pin=x"),
        (machine.dev0.files / "policy/prefetch", f"{file}:Exits"),
        (machine.dev0.files / "policy/prefetch", f"{tmp_path}/ends.py:Any"),
        (machine.dev0.files / "policy/prefetch", "density threshold=--5"),
        (machine.dev0.files / "policy/watermark", "\u0661\u0660 \u0662\u0660"),
    ):
        before = policy.read_text()
        fails(errno.EINVAL, lambda policy=policy, text=text: policy.write_text(text))  # type: ignore[misc]
        assert policy.read_text() == before, text


# ---- thrashing


def ping_pong(machine: hmmfs.Machine, times: int, page: int = 0) -> list[int]:
    """The CPU and dev0 store to one page by turns; where it is after each turn of the device."""

    def add(a: np.ndarray[Any, Any], page: int) -> None:
        a[page * PAGE] += 1

    region, seen = machine.region("a", 2 * M), []
    for _ in range(times):
        region.cpu[page * PAGE] += 1
        machine.dev0.launch(add, hmmfs.updates(region), page).wait()
        seen.append(pages_on(region, "dev0"))
    return seen


def test_thrashing_pages_are_throttled_and_then_pinned(mount_factory: MountFactory) -> None:
    """As the UVM driver decides it: the third move in quick succession makes the page thrash, the
    two sides are throttled in turn, and after 10 throttles it stays on the host."""
    found = []
    for _ in range(2):
        path = mount_factory(vram="8M", host="32M", prefetch="none", thrashing="uvm").path
        machine = hmmfs.connect(path)
        seen = ping_pong(machine, 20)
        device, whole = machine.dev0.stats(), machine.stats()
        first = seen.index(0)
        assert seen == [1] * first + [0] * (20 - first), "once pinned it stays"
        assert device["thrashing_pages"] + whole["host_thrashing_pages"] == 1
        assert device["thrash_pins"] + whole["host_thrash_pins"] == 1
        assert device["throttles"] + whole["host_throttles"] == 10
        assert device["throttle_ns"] > 0
        assert whole["cpu_faults"] == first, "and is shared from then on"
        assert machine.region("a").cpu[0] == 40
        del whole["uptime_ns"]
        found.append((seen, device, {k: v for k, v in whole.items() if k.endswith("_ns")}))
    assert found[0] == found[1]


def test_two_pages_that_thrash_apart(mount_factory: MountFactory) -> None:
    """Moves of other pages are none of a page's. (Far apart, or readahead would touch both.)"""
    options = {"vram": "8M", "host": "32M", "prefetch": "none", "thrashing": "uvm"}
    machine = hmmfs.connect(mount_factory(**options).path)

    def thrashing() -> int:
        return machine.dev0.stats()["thrashing_pages"] + machine.stats()["host_thrashing_pages"]

    assert ping_pong(machine, 2, 3) == [1, 1]
    assert ping_pong(machine, 2, 300) == [2, 2]
    assert thrashing() == 0
    assert ping_pong(machine, 2, 3) == [2, 2]
    assert thrashing() == 1


def test_slow_alternation_is_no_thrashing(mount_factory: MountFactory) -> None:
    """With faults that take longer than a lapse."""
    machine = hmmfs.connect(
        mount_factory(vram="8M", host="32M", prefetch="none", thrashing="uvm", fault_us="600").path
    )
    assert ping_pong(machine, 12) == [1] * 12
    stats = machine.dev0.stats()
    assert (stats["thrashing_pages"], stats["throttles"], stats["thrash_pins"]) == (0, 0, 0)


def test_what_advice_makes_of_thrashing(mount_factory: MountFactory) -> None:
    options = {"vram": "8M", "host": "32M", "prefetch": "none", "thrashing": "uvm"}
    machine = hmmfs.connect(mount_factory(**options).path)
    machine.region("a", 2 * M).advise("preferred_location=dev0")
    assert ping_pong(machine, 30) == [1] * 30, "what prefers a device goes on thrashing"
    assert machine.dev0.stats()["throttles"] > 10


def test_a_pin_ends(mount_factory: MountFactory) -> None:
    """One lapse after the pin anything that takes time has passed."""
    options = {"vram": "8M", "host": "32M", "prefetch": "none"}
    machine = hmmfs.connect(mount_factory(**options).path)
    (machine.path / "policy/thrashing").write_text("uvm pin=1 pin_threshold=2")
    seen = ping_pong(machine, 8)
    assert 0 in seen
    other = machine.region("b", 2 * M)
    machine.dev0.launch(store, hmmfs.updates(other)).wait()  # 512 faults of 45 us
    assert ping_pong(machine, 1) == [1]


def test_the_file(machine: hmmfs.Machine) -> None:
    file = machine.path / "policy/thrashing"
    assert file.read_text() == "off\n"
    file.write_text("uvm lapse=1000")
    text = file.read_text()
    assert text.startswith("uvm threshold=3 pin_threshold=10 lapse=1000 nap=1 ")
    file.write_text(text)
    fails(errno.EINVAL, lambda: file.write_text("uvm threshold=8"))
    fails(errno.EINVAL, lambda: file.write_text("lru"))
    assert file.read_text() == text
