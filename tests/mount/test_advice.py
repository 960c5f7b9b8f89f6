"""Advice on ranges: each word against what devices and programs then see, on real mounts."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MountFactory, fails, run

import hmmfs

PAGE, M, BLOCK = 4096, 1 << 20, 2 << 20


@pytest.fixture
def machine(mount_factory: MountFactory) -> Iterator[hmmfs.Machine]:
    yield hmmfs.connect(mount_factory(vram="8M", devices=2, host="32M").path)
    gc.collect()  # frames of exceptions that a test caught hold its maps


def where(region: hmmfs.Region) -> list[int]:
    """Pages by node."""
    found = region.residency()
    return [found[f"pages_{node}"] for node in ("host", "dev0", "dev1")]


def add_in_every_page(a: np.ndarray[Any, Any], by: int = 1) -> int:
    seen = int(a[::PAGE].sum())
    a[::PAGE] += by
    return seen


def look(a: np.ndarray[Any, Any]) -> int:
    return int(a[::PAGE].sum())


def filled(machine: hmmfs.Machine, name: str = "a", size: int = 4 * M) -> hmmfs.Region:
    region = machine.region(name, size)
    region.cpu[:] = 1
    region.cpu.flush()
    return region


def test_accessed_by_is_mapped_remotely(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    region.advise("accessed_by=dev0")
    for n in (1, 2, 3):
        assert (
            machine.dev0.launch(add_in_every_page, hmmfs.updates(region)).wait()
            == (2 * n - 1) * 1024
        )
        assert int(region.cpu[::PAGE].sum()) == 2 * n * 1024, "the program sees it at once"
        region.cpu[::PAGE] += 1
        assert where(region) == [1024, 0, 0]
    stats = machine.dev0.stats()
    assert (stats["pages_in"], stats["faults"]) == (0, 3 * 64), "64 KiB are mapped at a time"
    assert stats["mapped_pages"] == 3 * 1024
    assert machine.stats()["recalls"] == 0
    # The other device was not named: to it the pages move, and on it they can't be reached.
    assert machine.dev1.launch(look, hmmfs.reads(region)).wait() == 7 * 1024
    assert where(region) == [0, 0, 1024]
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 7 * 1024
    assert where(region) == [0, 1024, 0]


def test_a_program_and_a_kernel_share_a_page(machine: hmmfs.Machine, tmp_path: Path) -> None:
    """Atomics on one word by both at once, without a single migration."""
    library = str(tmp_path / "kernel.so")
    source = str(Path(__file__).with_name("adder_kernel.c"))
    subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source], check=True)
    region, times = machine.region("a", 64 * 512, "uint64"), 2_000_000
    region.advise("no_migrate")

    def call(a: np.ndarray[Any, Any], library: str, who: int) -> None:
        add = ctypes.CDLL(library).add
        words = ctypes.c_void_p(a.ctypes.data)
        add(words, *map(ctypes.c_uint64, (64 * 512, times, who)))

    running = [
        device.launch(call, hmmfs.updates(region), library, n)
        for n, device in enumerate(machine.devices)
    ]
    thread = threading.Thread(target=call, args=(region.cpu, library, 2))
    thread.start()
    for handle in running:
        handle.wait()
    thread.join()
    assert int(np.asarray(region.cpu).sum()) == 3 * times
    assert where(region)[1:] == [0, 0]
    assert machine.stats()["recalls"] == 0


def test_what_thrashes_for_want_of_advice_is_used_remotely_in_the_end(
    machine: hmmfs.Machine,
) -> None:
    """A program that holds a page of a busy block can't starve a kernel."""
    region = filled(machine, size=BLOCK)
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            region.cpu[0] = 1

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            machine.dev0.launch(add_in_every_page, hmmfs.updates(region), 0).wait(60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_preferred_location_host(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    region.migrate(machine.dev1)
    region.advise("preferred_location=host")
    assert where(region) == [0, 0, 1024], "saying so moves nothing"
    assert machine.dev0.launch(add_in_every_page, hmmfs.updates(region)).wait() == 1024
    assert where(region) == [1024, 0, 0]
    assert machine.dev0.stats()["pages_in"] == 0
    region.migrate(machine.dev0)
    assert where(region) == [0, 1024, 0], "it does not keep anybody from asking"
    hole = machine.region("hole", M)
    hole.advise("preferred_location=host")
    assert machine.dev0.launch(add_in_every_page, hmmfs.updates(hole)).wait() == 0
    hole.cpu.flush()
    assert where(hole)[1:] == [0, 0]
    assert int(hole.cpu[::PAGE].sum()) == 256


def test_preferred_location_device(machine: hmmfs.Machine) -> None:
    """It comes there at a touch, whatever else was said, and leaves at others'."""
    machine.dev0.policy(placement="never")
    region = filled(machine)
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
    assert where(region) == [1024, 0, 0]
    region.advise("preferred_location=dev0", "accessed_by=dev0")
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
    assert where(region) == [0, 1024, 0]
    assert machine.dev1.launch(look, hmmfs.reads(region)).wait() == 1024
    assert where(region) == [0, 0, 1024]


@pytest.mark.parametrize("size", [4096, 16384, 65536, 1 << 20, 2 << 20])
def test_granularity(machine: hmmfs.Machine, size: int) -> None:
    """That much comes with a fault, neither more nor less, to either side."""
    region = filled(machine)
    region.advise(f"granularity={size}")

    def touch(a: np.ndarray[Any, Any]) -> int:
        return int(a[3 * PAGE]) + int(a[BLOCK + M + 5 * PAGE])

    assert machine.dev0.launch(touch, hmmfs.reads(region)).wait() == 2
    assert where(region)[1] == 2 * size // PAGE
    assert region.cpu[3 * PAGE] == 1
    assert where(region)[1] == size // PAGE


def test_pinned_pages_never_move(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    half = slice(0, 2 * M)
    region.advise("pinned", part=half)

    def refused(what: Any) -> None:
        with pytest.raises(OSError, match=r"pinned|stay where") as caught:
            what()
        assert caught.value.errno == errno.EBUSY

    refused(lambda: region.migrate(machine.dev0))
    refused(lambda: machine.dev0.submit("fill a:0+2M 7"))
    refused(lambda: machine.dev0.submit("checksum a:0+4096"))
    refused(machine.dev0.launch(look, hmmfs.reads(region)).wait)
    assert where(region)[0] >= 512
    assert region.cpu[0] == 1
    region.migrate(machine.dev0, slice(2 * M, 4 * M))
    assert where(region) == [512, 512, 0]
    region.advise("accessed_by=dev0", part=half)
    assert machine.dev0.launch(add_in_every_page, hmmfs.updates(region)).wait() == 1024
    assert machine.dev0.submit("read a:0+1") == "02"
    machine.dev0.submit("fill a:0+2 9")
    assert region.cpu[1] == 9
    assert where(region) == [512, 512, 0]
    refused(lambda: region.migrate(machine.dev0))
    region.advise("unset_pinned")
    region.migrate(machine.dev0)
    assert where(region) == [0, 1024, 0]


def test_pages_pinned_to_a_device(machine: hmmfs.Machine) -> None:
    """They are not victims; programs can't have them, for private memory is out of their reach."""
    region = filled(machine)
    region.migrate(machine.dev0)
    region.advise("pinned")
    for name in ("b", "c"):
        other = filled(machine, name)
        assert machine.dev0.launch(look, hmmfs.reads(other)).wait() == 1024
        assert where(region) == [0, 1024, 0], "eviction took something else"
    fd = os.open(region.path, os.O_RDWR)
    try:
        fails(errno.EBUSY, lambda: os.pread(fd, 1, 0))
        fails(errno.EBUSY, lambda: os.pread(fd, 3 * PAGE, 0))
        fails(errno.EBUSY, lambda: os.pwrite(fd, b"x", 0))
        fails(errno.EBUSY, lambda: os.pwrite(fd, b"x" * BLOCK, BLOCK - PAGE))
        with pytest.raises(OSError, match="pinned"):
            machine.dev1.launch(look, hmmfs.reads(region)).wait()
        os.ftruncate(fd, 0)
        assert where(region) == [0, 0, 0], "cutting the file is not moving"
    finally:
        os.close(fd)


def test_pages_pinned_to_a_private_device_beside_a_coherent_one(
    mount_factory: MountFactory,
) -> None:
    """That one uses pages where they are, which is out of its reach."""
    mount = mount_factory(vram="8M", devices=2, host="16M", type="private+coherent")
    machine = hmmfs.connect(mount.path)
    region = filled(machine)
    region.migrate(machine.dev0)
    region.advise("pinned")
    for words in (
        "fill a 1",
        "fill a:8192+1 1",
        "read a:4096+1",
        "checksum a",
        "migrate a to dev1",
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            machine.dev1.submit(words)
        assert caught.value.errno == errno.EBUSY, words
    with pytest.raises(OSError, match="pinned") as caught:
        machine.dev1.launch(look, hmmfs.reads(region)).wait(60)
    assert caught.value.errno == errno.EBUSY
    assert where(region) == [0, 1024, 0]
    region.advise("unset_pinned")
    machine.dev1.submit("fill a:0+5 7")
    assert machine.dev1.launch(look, hmmfs.reads(region)).wait(60) == 1023 + 7
    assert machine.dev0.submit("read a:0+6") == "070707070701"


def test_a_device_full_of_pinned_pages(machine: hmmfs.Machine) -> None:
    region = filled(machine, size=8 * M)
    region.migrate(machine.dev0)
    region.advise("pinned")
    other = filled(machine, "b")
    with pytest.raises(OSError, match=r"VRAM of dev0 is full \(8192 KiB are pinned") as caught:
        other.migrate(machine.dev0)
    assert caught.value.errno == errno.ENOSPC
    assert where(region) == [0, 2048, 0]


def test_no_migrate(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    region.migrate(machine.dev1)
    region.advise("no_migrate")
    assert machine.dev0.launch(add_in_every_page, hmmfs.updates(region)).wait() == 1024
    assert where(region) == [1024, 0, 0], "it came home"
    fails(errno.EBUSY, lambda: region.migrate(machine.dev0))
    machine.dev0.submit("copy a:0+2M to a:2M")
    assert machine.dev1.submit("compare a:0+2M with a:2M+2M") == "equal"
    machine.dev0.submit("fill a:100+10000 5")
    assert bytes(region.cpu[99:101]) == b"\1\5"
    region.cpu[200] = 6
    assert machine.dev1.submit("read a:199+3") == "050605"
    assert where(region) == [1024, 0, 0]


def test_pages_that_come_to_a_window_partly_mapped_remotely(machine: hmmfs.Machine) -> None:
    """Write-protection stops at what is not a part of the window any more; stores beyond it count.
    The block is one that nobody had touched when its window was made, and protected as a whole."""
    region = machine.region("a", 2 * BLOCK)
    region.advise("accessed_by=dev0", part=slice(0, PAGE))
    region.advise("accessed_by=dev0", part=slice(BLOCK + 64 * PAGE, BLOCK + 80 * PAGE))
    region.cpu[0] = 1

    def by_turns(a: np.ndarray[Any, Any]) -> int:
        def turn(mine: int, yours: int) -> None:
            a[0] = mine
            while a[0] != yours:
                pass

        block = a[2 << 20 :: 4096]
        turn(2, 3)
        block[70] += 1  # remotely
        turn(4, 5)
        block += 1
        return int(block.sum())

    handle = machine.dev0.launch(by_turns, hmmfs.updates(region), limit=60)

    def await_turn(value: int) -> None:
        while region.cpu[0] != value:
            assert not handle.done, handle.wait()

    await_turn(2)
    region.cpu[BLOCK:] = 1
    region.cpu[0] = 3
    await_turn(4)
    machine.dev1.submit("migrate a:2M+2M to dev0")
    assert where(region)[1] >= 496
    region.cpu[0] = 5
    assert handle.wait() == 511 * 2 + 3
    assert int(region.cpu[BLOCK::PAGE].sum()) == 511 * 2 + 3


def test_one_load_of_a_page_remotely_and_a_page_of_the_device(machine: hmmfs.Machine) -> None:
    """What a kernel has mapped remotely does not come along with its faults: it would go on to
    use it on the host, and if an instruction needs both pages, for ever."""
    machine.dev0.policy(prefetch="block")
    (machine.path / "policy/prefetch").write_text("block")
    region, flag = filled(machine, size=BLOCK), filled(machine, "flag", PAGE)
    flag.advise("accessed_by=dev0")
    region.advise("accessed_by=dev0", part=slice(0, 16 * PAGE))

    def load(a: np.ndarray[Any, Any], flag: np.ndarray[Any, Any]) -> int:
        seen = int(a[15 * 4096])
        flag[0] = 2
        while flag[0] != 3:
            pass
        return seen + int(a[16 * 4096 - 4 :][:8].view("int64")[0])

    handle = machine.dev0.launch(load, hmmfs.reads(region), hmmfs.updates(flag), limit=20)
    while flag.cpu[0] != 2:
        assert not handle.done, handle.wait()
    region.advise("unset_all")
    flag.cpu[0] = 3
    assert handle.wait() == 1 + 0x0101010101010101
    assert where(region) == [16, 496, 0]


def test_what_no_program_has_written_back_is_on_the_host(machine: hmmfs.Machine) -> None:
    """The page cache alone knows of stores to a hole; the page is not nowhere."""
    region = machine.region("a", 4 * M)
    region.advise("accessed_by=dev0")
    region.cpu[::PAGE] = 1
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
    assert machine.dev0.stats()["mapped_pages"] == 1024
    assert where(region)[1] == 0


def test_eviction_leaves_the_pinned_pages_of_a_block(machine: hmmfs.Machine) -> None:
    region = filled(machine, size=8 * M)
    region.migrate(machine.dev0)
    for block in range(4):
        region.advise("pinned", part=slice(block * BLOCK, block * BLOCK + 100 * PAGE))
    other = filled(machine, "b", size=6 * M)
    other.migrate(machine.dev0)
    assert where(region)[1] == 4 * 100
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 2048
    assert where(other)[1] < 1536
    region.advise("unset_pinned")


def test_a_region_removed_while_it_is_mapped_remotely(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    region.advise("accessed_by=dev0")

    def slowly(a: np.ndarray[Any, Any], path: str) -> int:
        first = int(a[0])
        os.unlink(path)
        return first + look(a)

    assert machine.dev0.launch(slowly, hmmfs.reads(region), str(region.path)).wait(30) == 1 + 1024
    del region
    gc.collect()


@pytest.mark.parametrize("advice", ["no_migrate", "pinned accessed_by=dev0"])
def test_a_file_that_is_gone_can_not_be_mapped(machine: hmmfs.Machine, advice: str) -> None:
    """And its pages may not come: the kernel is ended, not left to fault for ever."""
    region = filled(machine)
    region.advise(*advice.split())

    def renames(a: np.ndarray[Any, Any], path: str) -> int:
        os.rename(path, path + "2")
        return look(a)

    with pytest.raises(OSError, match="can't be mapped") as caught:
        machine.dev0.launch(renames, hmmfs.reads(region), str(region.path), limit=20).wait()
    assert caught.value.errno == errno.EBUSY


def test_a_child_of_a_kernel_does_not_keep_the_mount_busy(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    region.advise("accessed_by=dev0")

    def forks(a: np.ndarray[Any, Any]) -> int:
        import time

        seen, child = look(a), os.fork()
        if not child:
            time.sleep(20)
            os._exit(0)
        return child if seen == 1024 else 0

    child = machine.dev0.launch(forks, hmmfs.reads(region)).wait()
    try:
        del region
        gc.collect()
        run("umount", str(machine.path))
    finally:
        os.kill(child, 9)


def test_more_ranges_than_are_kept(machine: hmmfs.Machine) -> None:
    """What does not fit changes nothing, and where pages were asked for is no reason to fail."""
    region = machine.region("a", 64 * M)
    advice = machine.path / "state/a/advice"
    region.advise("granularity=64K", part=slice(0, M))

    def text(start: int) -> bytes:
        lines = range(start, start + 1200)
        return "".join(f"{2 * n * PAGE}+{PAGE} pinned\n" for n in lines).encode()

    for n in range(3):
        os.setxattr(region.path, "user.hmmfs.advice", text(500 + n * 1200))
    before = advice.read_text()
    fails(errno.ENOSPC, lambda: os.setxattr(region.path, "user.hmmfs.advice", text(5000)))
    assert advice.read_text() == before
    region.advise("unset_all")
    assert advice.read_text() == ""
    for n in range(0, 5000, 500):
        lines = (f"migrate a:{2 * page * PAGE}+{PAGE} to host" for page in range(n, n + 500))
        machine.dev0.submit("\n".join(lines))
    assert (machine.path / "state/a/prefetched").read_text()
    region.advise("unset_all")
    assert (machine.path / "state/a/prefetched").read_text() == ""


def test_mistakes_from_python(machine: hmmfs.Machine) -> None:
    region = filled(machine, size=PAGE)
    for part in (5, (0, 1), slice("a", "b")):
        with pytest.raises(hmmfs.HmmfsError, match="is not a part"):
            region.advise("pinned", part=part)  # type: ignore[arg-type]
    with pytest.raises(hmmfs.HmmfsError, match="is not advice"):
        region.advise(5)  # type: ignore[arg-type]
    with pytest.raises(hmmfs.HmmfsError, match="is not advice"):
        region.advise("\udcff")
    region.unlink()
    with pytest.raises(hmmfs.HmmfsError, match="There is no region named 'a'"):
        region.advise("pinned")


def test_a_kernel_past_the_end_remotely(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    region.advise("accessed_by=dev0")

    def slowly(a: np.ndarray[Any, Any], path: str) -> int:
        first = int(a[3 * M])
        os.truncate(path, M)
        return first + int(a[3 * M])

    with pytest.raises(OSError, match="past the end of a region") as caught:
        machine.dev0.launch(slowly, hmmfs.reads(region), str(region.path)).wait(30)
    assert caught.value.errno == errno.EREMOTEIO


def test_the_mount_is_not_kept_busy(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    region.advise("accessed_by=dev0")
    assert machine.dev0.launch(look, hmmfs.reads(region)).wait() == 1024
    del region
    gc.collect()
    run("umount", str(machine.path))


def test_an_array_that_is_only_read_is_mapped_read_only(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    region.advise("accessed_by=dev0")

    def store(a: np.ndarray[Any, Any]) -> None:
        look(a)
        ctypes.memset(a.ctypes.data, 7, 1)

    with pytest.raises(OSError, match="SIGSEGV"):
        machine.dev0.launch(store, hmmfs.reads(region)).wait(30)
    assert region.cpu[0] == 1


# ---- how it is said


def test_the_ways_to_say_it(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    advice = machine.path / "state/a/advice"
    assert advice.read_text() == ""
    advice.write_text("0+8192 pinned\n8192+4096 pinned read_mostly\n")
    assert advice.read_text() == "0+8192 pinned\n8192+4096 read_mostly pinned\n"
    assert os.getxattr(region.path, "user.hmmfs.advice") == advice.read_text().encode()
    os.setxattr(region.path, "user.hmmfs.advice", b"8K+1 unset_read_mostly")
    assert advice.read_text() == "0+12288 pinned\n", "what says the same is one range"
    run("advise", str(machine.path), "a:4K+4K", "unset_all", "accessed_by=dev1,dev0")
    text = advice.read_text()
    assert text == "0+4096 pinned\n4096+4096 accessed_by=dev0,dev1\n8192+4096 pinned\n"
    region.advise("unset_all")
    assert advice.read_text() == ""
    advice.write_text(text)
    assert advice.read_text() == text, "it takes what it says"
    os.removexattr(region.path, "user.hmmfs.advice")
    assert advice.read_text() == ""
    fails(errno.ENODATA, lambda: os.getxattr(region.path, "user.hmmfs.advice"))


def test_attributes_are_those_of_the_whole_range(machine: hmmfs.Machine) -> None:
    region = filled(machine)
    nothing = {
        "read_mostly": False,
        "pinned": False,
        "no_migrate": False,
        "preferred_location": None,
        "accessed_by": [],
        "granularity": None,
        "last_prefetch_location": None,
    }
    assert region.attributes() == nothing
    region.advise("read_mostly", "accessed_by=dev0,dev1", part=slice(0, 2 * M))
    region.advise(
        "read_mostly", "accessed_by=dev1,host", "preferred_location=dev1", part=slice(2 * M, 4 * M)
    )
    assert region.attributes() == {**nothing, "read_mostly": True, "accessed_by": ["dev1"]}
    region.migrate(machine.dev0, slice(0, M))
    last = region.attributes(slice(0, M))
    assert last["last_prefetch_location"] == "dev0"
    assert region.attributes()["last_prefetch_location"] is None
    second = region.attributes(slice(2 * M, 4 * M))
    assert second["preferred_location"] == "dev1"
    assert second["accessed_by"] == ["dev1", "host"]
    done = run("advise", str(machine.path), "a:2M+2M")
    assert "preferred_location dev1\n" in done.stdout
    assert "accessed_by dev1,host\n" in done.stdout
    assert "granularity none\n" in done.stdout


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        ("", errno.EINVAL, "There is no advice in that"),
        ("all", errno.EINVAL, "Nothing is said"),
        ("all fast", errno.EINVAL, "is not advice: the words are"),
        ("some pinned", errno.EINVAL, "is not a range"),
        ("0+0 pinned", errno.EINVAL, "no bytes"),
        ("-1+4096 pinned", errno.EINVAL, "is not a range"),
        ("0x1000+4096 pinned", errno.EINVAL, "not a size"),
        ("0+17T pinned", errno.ERANGE, "16T"),
        ("all pinned=1", errno.EINVAL, "stands alone"),
        ("all unset_pinned=1", errno.EINVAL, "stands alone"),
        ("all preferred_location", errno.EINVAL, "takes a value"),
        ("all preferred_location=dev7", errno.ENODEV, "no node 'dev7'"),
        ("all accessed_by=dev0,gpu", errno.ENODEV, "no node 'gpu'"),
        ("all accessed_by=", errno.ENODEV, "no node ''"),
        ("all granularity=5K", errno.EINVAL, "power of two"),
        ("all granularity=4M", errno.EINVAL, "power of two"),
        ("all granularity=big", errno.EINVAL, "not a size"),
        ("all unset_granularity=4K", errno.EINVAL, "stands alone"),
    ],
)
def test_bad_advice_changes_nothing(
    machine: hmmfs.Machine, text: str, number: int, words: str
) -> None:
    region = filled(machine, size=PAGE)
    region.advise("granularity=64K")
    lines = f"all pinned\n{text}\n" if text else "\n"
    fails(number, lambda: (machine.path / "state/a/advice").write_text(lines))
    assert words in (machine.path / "last_error").read_text()
    fails(number, lambda: os.setxattr(region.path, "user.hmmfs.advice", lines.encode()))
    assert (machine.path / "state/a/advice").read_text() == "all granularity=64K\n"


def test_no_advice(machine: hmmfs.Machine) -> None:
    region = filled(machine, size=PAGE)
    fails(errno.ENODATA, lambda: os.removexattr(region.path, "user.hmmfs.advice"))
    done = run("advise", str(machine.path), "nothing", "pinned", check=False)
    assert (done.returncode, "no region" in done.stderr) == (2, True)
    done = run("advise", str(machine.path), "a:0+1G", "pinned", check=False)
    assert (done.returncode, "is not a part" in done.stderr) == (2, True)
    done = run("advise", str(machine.path), "a", "fast", check=False)
    assert "is not advice: the words are" in done.stderr
