"""One request, three ways to make it: the file, the API and the command say the same of it."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Mount, MountFactory, run

import hmmfs
from hmmfs import kernels

M = 1 << 20


@dataclass
class Said:
    """An errno, 0 for none or of a command, which has only a status; and a sentence."""

    number: int
    sentence: str


def by_file(path: Path, text: str) -> Said:
    """What a write gets, and what the answers then say, or else the mount's last_error."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        said = os.pread(fd, 1 << 16, 0).decode().rstrip("\n").split("\n")[-1]
        if not said.startswith("error: "):
            top = next(one for one in path.parents if (one / "version").exists())
            said = (top / "last_error").read_text().strip()
        return Said(error.errno or -1, said.removeprefix("error: "))
    finally:
        os.close(fd)
    return Said(0, "")


def by_api(call: Callable[[], object]) -> Said:
    try:
        call()
    except hmmfs.HmmfsError as error:
        return Said(error.errno or -1, error.sentence)
    return Said(0, "")


def by_command(*words: str) -> Said:
    done = run(*words, check=False)
    return Said(0, done.stderr.removeprefix("hmmfs: ").rstrip("\n"))


@pytest.fixture(autouse=True)
def _maps_end_first(mount_factory: MountFactory) -> Iterator[None]:
    yield
    gc.collect()  # frames of exceptions hold them


@pytest.fixture
def mount(mount_factory: MountFactory) -> Mount:
    return mount_factory(vram="4M", devices=2, host="16M")


@pytest.fixture
def machine(mount: Mount) -> hmmfs.Machine:
    """Regions: `a` of 1 MiB; `here` pinned, stored to by the CPU alone so far; `there` pinned on
    dev0; `part` with one page that may not move."""
    machine = hmmfs.connect(mount.path)
    for name, size in (("a", M), ("here", M), ("there", M // 2), ("part", M)):
        machine.region(name, size).cpu[:] = 1
    machine.region("there").migrate("dev0")
    for name in ("here", "there"):
        machine.region(name).advise("pinned")
    machine.region("part").advise("no_migrate", part=slice(4096, 8192))
    return machine


OPERATIONS = {
    "no operation": ("nonsense a", errno.EINVAL),
    "no form": ("fill a", errno.EINVAL),
    "no region": ("checksum none", errno.ENOENT),
    "a quote": ("checksum 'a", errno.EINVAL),
    "past the end": ("read a:1048576+1", errno.ERANGE),
    "negative": ("read a:-1+1", errno.ERANGE),
    "too much": ("read a:0+65537", errno.E2BIG),
    "no length": ("fill a:0+0 1", errno.EINVAL),
    "no byte": ("fill a 256", errno.EINVAL),
    "no hex": ("write a:0 0", errno.EINVAL),
    "two lengths": ("compare a:0+1 with a:0+2", errno.EINVAL),
    "no such device": ("migrate a to dev7", errno.ENODEV),
    "no place": ("migrate a to moon", errno.ENODEV),
    "no place, no region": ("migrate none to dev0", errno.ENOENT),
    "pinned here": ("migrate here to dev0", errno.EBUSY),
    "pinned there": ("migrate there to host", errno.EBUSY),
    "pinned there, elsewhere": ("migrate there to dev1", errno.EBUSY),
    "a page that stays": ("migrate part to dev1", errno.EBUSY),
    "no process": ("read 0@0+1", errno.ESRCH),
    "no program": ("read 999999999@0x1000+1", errno.ESRCH),
    "no call": ("call !", errno.EINVAL),
    "no name": ("cancel 00", errno.ENOENT),
}


def migration(machine: hmmfs.Machine, line: str) -> Callable[[], object]:
    """What `migrate REGION to PLACE` is in the API."""
    _, name, _, place = line.split()
    if name == "none":
        machine.region("none", 10).unlink()
        gone = hmmfs.Region(machine, "none", 0, (10,), machine.region("a").dtype)  # type: ignore[attr-defined]
        return lambda: gone.migrate(place)
    return lambda: machine.region(name).migrate(place)


def test_operations(mount: Mount, machine: hmmfs.Machine) -> None:
    wrong = []
    for name, (line, number) in OPERATIONS.items():
        said = {
            "submit": by_file(mount.path / "devices/dev0/submit", f"{line}\n"),
            "Device.submit": by_api(lambda line=line: machine.dev0.submit(line)),
            "hmmfs submit": by_command("submit", str(mount.path), "dev0", line),
        }
        if line.startswith("migrate "):
            said["Region.migrate"] = by_api(migration(machine, line))
        numbers = {one.number for way, one in said.items() if way != "hmmfs submit"}
        sentences = {one.sentence for one in said.values()}
        if numbers != {number} or len(sentences) != 1 or "" in sentences:
            wrong.append((name, said))
    assert not wrong
    assert machine.audit() == "ok"


@pytest.mark.parametrize(
    ("kind", "first"),
    [("private", "Region.migrate"), ("private", "submit"), ("coherent", "Region.migrate")],
)
def test_who_asks_first_is_told(mount_factory: MountFactory, first: str, kind: str) -> None:
    """Pages that the CPU alone has stored to so far stay, and so do those beside them."""
    mount = mount_factory(vram="4M", type=kind)
    machine = hmmfs.connect(mount.path)
    region = machine.region("a", M)
    region.cpu[:] = 1
    region.advise("no_migrate", part=slice(0, 4096))
    if first == "submit":
        said = by_file(mount.path / "devices/dev0/submit", "migrate a to dev0\n")
    else:
        said = by_api(lambda: region.migrate("dev0"))
    assert (said.number, "stay where they are" in said.sentence) == (errno.EBUSY, True)
    assert region.residency()["pages_dev0"] == 0
    region.advise("unset_all")
    region.migrate("dev0")
    assert region.residency()["pages_dev0"] == M // 4096
    assert (region.cpu == 1).all()


ADVICE = {
    "no word": ("nonsense", errno.EINVAL),
    "no node": ("accessed_by=dev9", errno.ENODEV),
    "no value": ("preferred_location", errno.EINVAL),
    "no size": ("granularity=3", errno.EINVAL),
}


def test_advice(mount: Mount, machine: hmmfs.Machine) -> None:
    for word, number in ADVICE.values():
        file = by_file(mount.path / "state/a/advice", f"all {word}\n")
        api = by_api(lambda word=word: machine.region("a").advise(word))
        command = by_command("advise", str(mount.path), "a", word)
        assert file.number == api.number == number, word
        assert file.sentence == api.sentence == command.sentence != "", word


def test_devices_and_launches(mount: Mount, machine: hmmfs.Machine) -> None:
    api = by_api(lambda: machine.device("dev9"))
    for words in (("submit", str(mount.path), "dev9", "fill a 1"),
                  ("launch", str(mount.path), "dev9", "hmmfs.kernels:fill")):  # fmt: skip
        assert (
            by_command(*words).sentence
            == api.sentence
            == ("There is no device dev9; the devices are dev0, dev1.")
        )
    api = by_api(lambda: machine.dev0.launch(kernels.fill).wait())
    command = by_command("launch", str(mount.path), "dev0", "hmmfs.kernels:fill")
    assert api.number == errno.EREMOTEIO
    assert command.sentence.startswith(api.sentence)
    a = hmmfs.reads(machine.region("a"))
    api = by_api(lambda: machine.dev0.launch(kernels.fill, a, limit=-1).wait())
    words = ("launch", str(mount.path), "dev0", "hmmfs.kernels:fill", "reads:a", "--limit", "-1")
    assert by_command(*words).sentence == api.sentence
    assert api.number == errno.EINVAL


def test_policies(mount: Mount, machine: hmmfs.Machine) -> None:
    for name, value in (("prefetch", "moon"), ("eviction", "lru x=1"), ("watermark", "90 10")):
        file = by_file(mount.path / f"devices/dev0/policy/{name}", value)
        api = by_api(lambda name=name, value=value: machine.dev0.policy(**{name: value}))
        assert (file.number, file.sentence) == (api.number, api.sentence)
        assert api.number == errno.EINVAL
