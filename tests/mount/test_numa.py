"""NUMA policies of regions, in numactl's terms, and nodes left out by default, on real mounts."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterator

import pytest
from conftest import MountFactory, fails, passes_through

import hmmfs

PAGE, M = 4096, 1 << 20
pytestmark = passes_through


@pytest.fixture
def make(mount_factory: MountFactory) -> Iterator[Callable[..., hmmfs.Machine]]:
    def machine(**options: str) -> hmmfs.Machine:
        base = {"vram": "8M", "devices": "3", "host": "8M", "type": "coherent"}
        return hmmfs.connect(mount_factory(**base | options).path)

    yield machine
    gc.collect()


@pytest.fixture
def machine(make: Callable[..., hmmfs.Machine]) -> hmmfs.Machine:
    return make()


def made(machine: hmmfs.Machine, name: str, numa: str, size: int) -> list[int]:
    """Pages by node of a region that grew to a size under a policy."""
    path = machine.path / "regions" / name
    path.touch()
    (machine.path / "state" / name / "numa").write_text(numa)
    os.truncate(path, size)
    found = machine.region(name).residency()
    return [value for key, value in found.items() if key.startswith("pages_")]


def test_the_policies(machine: hmmfs.Machine) -> None:
    assert made(machine, "a", "default", M) == [256, 0, 0, 0]
    assert made(machine, "b", "bind=dev1", M) == [0, 0, 256, 0]
    assert made(machine, "c", "preferred=dev2", M) == [0, 0, 0, 256]
    assert made(machine, "d", "interleave=host,dev0,dev2", 2 * M + PAGE) == [171, 171, 0, 171]
    assert machine.audit() == "ok"
    files = machine.path / "state"
    assert (files / "d/numa").read_text() == "interleave=host,dev0,dev2\n"
    (files / "d/numa").write_text("interleave=dev0,dev1")
    os.truncate(machine.path / "regions/d", 3 * M)
    found = machine.region("d").residency()
    assert sum(found[f"pages_{node}"] for node in ("host", "dev0", "dev1", "dev2")) == 768
    assert found["pages_dev1"] in (127, 128), "what it had stays where it was"
    os.truncate(machine.path / "regions/d", 0)
    assert machine.region("d").residency()["pages_host"] == 0
    assert machine.stats()["host_used"] == 256
    assert machine.audit() == "ok"


def test_when_nodes_are_full(machine: hmmfs.Machine) -> None:
    """Bound pages go nowhere else; preferred ones do; an interleaved file is whole or not there."""
    assert made(machine, "a", "bind=dev1", 6 * M) == [0, 0, 1536, 0]
    fails(errno.ENOSPC, lambda: made(machine, "b", "bind=dev1", 3 * M))
    assert made(machine, "c", "preferred=dev1", 3 * M) == [768, 0, 0, 0]
    fails(errno.ENOSPC, lambda: made(machine, "d", "interleave=dev0,dev1", 6 * M))
    assert machine.dev0.stats()["used"] == 0
    assert made(machine, "e", "bind=dev1,dev2", 3 * M) == [0, 0, 0, 768]
    assert machine.audit() == "ok"


def test_excluded_nodes(machine: hmmfs.Machine) -> None:
    """Like the node of a device that is not system memory: it is used when it is asked for."""
    for device in machine.devices[:2]:
        (device.files / "excluded").write_text("on")
    assert (machine.dev0.files / "excluded").read_text() == "on\n"
    assert made(machine, "a", "default", 8 * M) == [2048, 0, 0, 0]
    assert made(machine, "b", "default", M) == [0, 0, 0, 256], "the next that is not excluded"
    assert made(machine, "c", "bind=dev0", M) == [0, 256, 0, 0]
    machine.region("b").migrate(machine.dev1)
    assert machine.region("b").residency()["pages_dev1"] == 256
    fails(errno.EINVAL, lambda: (machine.dev0.files / "excluded").write_text("yes"))


def test_the_host_is_not_pushed_out_to_excluded_devices(
    make: Callable[..., hmmfs.Machine],
) -> None:
    machine = make(type="private", devices="2", vram="8M", host="4M")
    (machine.dev0.files / "excluded").write_text("on")
    with open(machine.path / "regions/a", "wb") as file:
        file.write(b"\1" * 6 * M)
    found = machine.region("a").residency()
    assert (found["pages_dev0"], found["pages_dev1"] >= 512) == (0, True)


def test_bad_policies_change_nothing(machine: hmmfs.Machine) -> None:
    assert made(machine, "a", "bind=dev1", PAGE) == [0, 0, 1, 0]
    file = machine.path / "state/a/numa"
    for text, number, words in (
        ("", errno.EINVAL, "is not a NUMA policy"),
        ("bind", errno.EINVAL, "Write default, or a policy and nodes"),
        ("bind=", errno.ENODEV, "no node"),
        ("default=dev0", errno.EINVAL, "Write default"),
        ("bind=dev7", errno.ENODEV, "no node 'dev7'"),
        ("preferred=dev0,dev1", errno.EINVAL, "one node"),
        ("weighted=dev0", errno.EINVAL, "is not a NUMA policy"),
    ):
        fails(number, lambda text=text: file.write_text(text + "\n"))  # type: ignore[misc]
        assert words in (machine.path / "last_error").read_text(), text
        assert file.read_text() == "bind=dev1\n"


def test_private_memory_has_none(make: Callable[..., hmmfs.Machine]) -> None:
    machine = make(type="private")
    fails(errno.EOPNOTSUPP, lambda: made(machine, "a", "bind=dev0", PAGE))
    assert "preferred_location" in (machine.path / "last_error").read_text()
