"""Kernels in a device's own process, with true page faults, through the API and the shell."""

from __future__ import annotations

import base64
import contextlib
import errno
import gc
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HMMFS, Mount, MountFactory, ended, run, wait_until

import hmmfs
from hmmfs import kernels

M = 1 << 20
VRAM = 4 * M


@pytest.fixture
def machine(mount_factory: MountFactory) -> Iterator[hmmfs.Machine]:
    yield hmmfs.connect(mount_factory(vram="4M", devices=2, host="96M").path)
    gc.collect()  # frames of exceptions that a test caught hold its maps


def scale(a: np.ndarray[Any, Any], factor: float) -> float:
    a *= factor
    return float(a.flat[1])


@pytest.mark.parametrize("share", [0.5, 1, 2, 4])
def test_a_kernel_sees_the_region_and_changes_it(machine: hmmfs.Machine, share: float) -> None:
    n = int(VRAM * share) // 4
    region = machine.region("a", n, "float32")
    region.cpu[:] = np.arange(n)
    assert machine.dev0.launch(scale, hmmfs.updates(region), 2.0).wait() == 2.0
    assert np.array_equal(region.cpu, np.arange(n, dtype="float32") * 2)
    stats = machine.dev0.stats()
    assert stats["faults"] > 0
    assert stats["peak"] * 4096 <= VRAM
    assert (stats["evicted_pages"] > 0) == (share > 1)


def arrays(machine: hmmfs.Machine, share: float) -> tuple[hmmfs.Region, hmmfs.Region]:
    n = int(VRAM * share) // 8 // 2
    x, y = machine.region("x", n, "float64"), machine.region("y", n, "float64")
    rng = np.random.default_rng(7)
    x.cpu[:], y.cpu[:] = rng.random(n), rng.random(n)
    return x, y


@pytest.mark.parametrize("share", [0.5, 1, 2, 4])
def test_built_in_kernels_equal_numpy(machine: hmmfs.Machine, share: float) -> None:
    x, y = arrays(machine, share)
    a, b = np.array(x.cpu), np.array(y.cpu)
    reads, updates = hmmfs.reads(x), hmmfs.updates(y)
    run_on = [machine.dev0, machine.dev1] * 4
    run_on[0].launch(kernels.axpy, 1.5, reads, updates).wait()
    kernels.axpy(1.5, a, b)
    assert np.array_equal(y.cpu, b)
    run_on[1].launch(kernels.stencil, reads, updates).wait()
    kernels.stencil(a, b)
    assert np.array_equal(y.cpu, b)
    total = run_on[2].launch(kernels.reduce, hmmfs.reads(y)).wait()
    assert math.isclose(total, kernels.reduce(b), rel_tol=1e-12)
    run_on[3].launch(kernels.copy, reads, hmmfs.writes(y)).wait()
    assert np.array_equal(y.cpu, a)
    run_on[4].launch(kernels.fill, hmmfs.writes(y), 0.5).wait()
    assert (np.asarray(y.cpu) == 0.5).all()
    index = np.random.default_rng(8).integers(0, a.size, 1000)
    out = machine.region("out", 1000, "float64")
    run_on[5].launch(kernels.gather, reads, index, hmmfs.writes(out)).wait()
    assert np.array_equal(out.cpu, a[index])


def test_matrices(machine: hmmfs.Machine) -> None:
    a, b, c = (machine.region(name, (300, 300), "float64") for name in "abc")
    rng = np.random.default_rng(9)
    a.cpu[:], b.cpu[:] = rng.random((300, 300)), rng.random((300, 300))
    machine.dev0.launch(kernels.matmul, hmmfs.reads(a), hmmfs.reads(b), hmmfs.writes(c)).wait()
    assert np.allclose(c.cpu, np.asarray(a.cpu) @ np.asarray(b.cpu))


def test_touched_pages_are_what_moves(mount_factory: MountFactory) -> None:
    """Exactly the pages touched, exactly those stored to dirty."""
    machine = hmmfs.connect(mount_factory(vram="8M", prefetch="none").path)
    region = machine.region("a", 4 * M)
    region.cpu[:] = 1
    accesses = [(page * 4096 + 7, page % 2 == 1) for page in (0, 1, 2, 3, 600, 601)]
    assert machine.dev0.launch(kernels.touch, hmmfs.updates(region), accesses).wait() == 3
    found = region.residency()
    assert (found["pages_dev0"], found["dirty_device"], found["kept"]) == (6, 3, 3)
    assert [int(region.cpu[offset]) for offset, _ in accesses] == [1, 2, 1, 2, 1, 2]
    assert region.residency()["pages_dev0"] == 0
    assert machine.dev0.stats()["copies_saved"] == 3


def test_what_is_only_written_is_not_copied(mount_factory: MountFactory) -> None:
    machine = hmmfs.connect(mount_factory(vram="4M", host="96M").path)
    region = machine.region("a", 3 * M + 100)
    region.cpu[:] = 1
    machine.dev0.launch(kernels.fill, hmmfs.writes(region), 2).wait()
    assert (np.asarray(region.cpu) == 2).all()
    assert machine.dev0.stats()["copies_made"] == region.nbytes // 4096 + 1, "only home again"
    host = machine.stats()
    assert host["host_copies_made"] == 1, "the last page, which has bytes that are not the array's"
    assert host["host_copies_saved"] == region.nbytes // 4096


def test_what_is_written_twice_keeps_the_first_write(machine: hmmfs.Machine) -> None:
    """A page that the kernel wrote, and that was evicted, comes back with what it wrote."""
    region = machine.region("a", 4 * VRAM)
    region.cpu[:] = 7

    def halves(a: np.ndarray[Any, Any]) -> None:
        for half in (0, 1):
            for at in range(half * 2048, a.size, 4096):
                a[at : at + 2048] = half + 1

    for device in machine.devices:
        device.launch(halves, hmmfs.writes(region)).wait()
        wanted = np.tile(np.repeat([1, 2], 2048), region.nbytes // 4096)
        assert np.array_equal(region.cpu, wanted)
        region.cpu[::4096] = 1
    # And what is on the device already, dirty, before its kernel begins.
    small = machine.region("b", VRAM // 2)
    for round_ in (3, 4):
        machine.dev0.launch(kernels.fill, hmmfs.updates(small), round_).wait()

        def corner(a: np.ndarray[Any, Any], big: np.ndarray[Any, Any]) -> None:
            a[100] = 5
            big[:] = 6  # evicts it
            a[200] = 5

        machine.dev0.launch(corner, hmmfs.writes(small), hmmfs.writes(region)).wait()
        assert small.cpu[[100, 200]].tolist() == [5, 5]
        assert small.cpu[101] == round_, "it was there: nothing was to be copied"


def test_the_same_region_read_and_written(machine: hmmfs.Machine) -> None:
    region = machine.region("a", VRAM // 8, "float64")
    region.cpu[:] = 3
    machine.dev0.launch(kernels.axpy, 2.0, hmmfs.reads(region), hmmfs.writes(region)).wait()
    assert (np.asarray(region.cpu) == 9).all()


def test_prefetch_tells_how_far_it_is(machine: hmmfs.Machine) -> None:
    region = machine.region("a", (32, M), "uint8")
    region.cpu[:] = 1
    handle = region.prefetch("host")
    handle.wait()
    assert handle.progress() == 1
    region.prefetch(machine.dev0, slice(2, 4)).wait()
    assert region.residency()["pages_dev0"] == 2 * M // 4096
    region.migrate("host", slice(2, 3))
    assert region.residency()["pages_dev0"] == M // 4096
    region.migrate("host", slice(3, 3))
    with pytest.raises(OSError, match="step"):
        region.prefetch(machine.dev0, slice(0, 4, 2))
    with pytest.raises(OSError, match="dev7"):
        region.prefetch("dev7")
    queue = machine.path / "devices/dev0/queue"
    first = machine.dev0.launch(loops, hmmfs.updates(region))
    assert wait_until(lambda: "launch running 0 0" in queue.read_text())
    moving = region.prefetch(machine.dev0)
    assert wait_until(lambda: "migrate waiting 0 0" in queue.read_text())
    assert moving.progress() == 0
    moving.cancel()
    with pytest.raises(OSError, match="migrate was cancelled") as caught:
        moving.wait(10)
    assert caught.value.errno == errno.ECANCELED
    assert moving.progress() == 0
    first.cancel()
    assert first.exception() is not None
    assert queue.read_text() == ""


def test_a_migration_is_cancelled_half_way(mount_factory: MountFactory) -> None:
    machine = hmmfs.connect(mount_factory(vram="256M", host="400M").path)
    region = machine.region("a", (256, M), "uint8")
    region.cpu[:] = 1
    seen, left = [], 0
    for _ in range(20):
        handle = region.prefetch(machine.dev0)
        while not handle.done:
            share = handle.progress()
            seen.append(share)
            if share > 0.2:
                handle.cancel()
        left = region.residency()["pages_host"]
        region.migrate("host")
        if left and any(0 < share < 1 for share in seen):
            break
    assert 0 < left < region.nbytes // 4096
    assert (np.asarray(region.cpu)[::5] == 1).all()


def test_two_devices_and_the_cpu_take_turns(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 6 * M // 8, "int64")

    def add(a: np.ndarray[Any, Any]) -> None:
        a += 1

    for round_ in range(6):
        region.cpu[::512] += 1
        machine.devices[round_ % 2].launch(add, hmmfs.updates(region)).wait()
    wanted = np.full(region.shape, 6)
    wanted[::512] += 6
    assert np.array_equal(region.cpu, wanted)


def test_faults_of_several_threads(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 8 * M // 8, "int64")

    def fill_parts(a: np.ndarray[Any, Any]) -> None:
        def part(k: int) -> None:
            for at in range(k * 512, a.size, 4 * 512):
                a[at : at + 512] = at

        threads = [threading.Thread(target=part, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    machine.dev0.launch(fill_parts, hmmfs.writes(region)).wait()
    wanted = np.repeat(np.arange(0, region.shape[0], 512), 512)
    assert np.array_equal(region.cpu, wanted)


# ---- what goes wrong costs its own launch only


def raises(a: np.ndarray[Any, Any]) -> None:
    a[0] = 9
    raise ZeroDivisionError("of a kernel")


def loops(a: np.ndarray[Any, Any]) -> None:
    a[0] = 9
    while True:
        a[1] = 1


def segfaults(a: np.ndarray[Any, Any]) -> None:
    import ctypes

    a[0] = 9
    ctypes.string_at(0)


def exits(a: np.ndarray[Any, Any]) -> None:
    a[0] = 9
    os._exit(3)


def kills_itself(a: np.ndarray[Any, Any]) -> None:
    a[0] = 9
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("kernel", "number", "says"),
    [
        (raises, errno.EREMOTEIO, "ZeroDivisionError: of a kernel"),
        (loops, errno.ETIME, "more than 0.5 s"),
        (segfaults, errno.EREMOTEIO, "SIGSEGV"),
        (exits, errno.EREMOTEIO, "exit status 3"),
        (kills_itself, errno.EREMOTEIO, "SIGKILL"),
    ],
)
def test_a_bad_kernel(machine: hmmfs.Machine, kernel: Any, number: int, says: str) -> None:
    region = machine.region("a", 5 * M)
    region.cpu[:] = 1
    launch = machine.dev0.launch(kernel, hmmfs.updates(region), limit=0.5)
    with pytest.raises(hmmfs.HmmfsError, match=says) as caught:  # type: ignore[attr-defined]
        launch.wait(30)
    assert caught.value.errno == number
    assert isinstance(caught.value, hmmfs.KernelError) == (kernel is raises)
    if kernel is raises:
        assert "in raises" in str(caught.value)
    assert region.cpu[0] == 9, "what it had written stays"
    assert (np.asarray(region.cpu)[2:] == 1).all()
    machine.dev0.launch(kernels.fill, hmmfs.writes(region), 4).wait()
    assert (np.asarray(region.cpu) == 4).all()
    assert machine.audit() == "ok"


def test_cancelling(machine: hmmfs.Machine) -> None:
    region = machine.region("a", M)
    running = machine.dev0.launch(loops, hmmfs.updates(region))
    waiting = machine.dev0.launch(loops, hmmfs.updates(region))
    assert wait_until(lambda: machine.dev0.stats()["faults"] > 0, 60)
    with pytest.raises(TimeoutError):
        running.wait(0.7)
    for handle in (waiting, running):
        handle.cancel()
        error = handle.exception()
        assert isinstance(error, OSError)
        assert error.errno == errno.ECANCELED
        handle.cancel()
    assert machine.dev0.launch(kernels.reduce, hmmfs.reads(region)).wait(30) > 9


def opens(a: np.ndarray[Any, Any], path: str) -> int:
    os.open(path, os.O_RDONLY)
    return os.getpid()


def maps(a: np.ndarray[Any, Any], path: str) -> int:
    import builtins

    builtins.kept = np.memmap(path, np.uint8, "r")  # type: ignore[attr-defined]
    return os.getpid()


def goes_there(a: np.ndarray[Any, Any], path: str) -> int:
    os.chdir(os.path.dirname(path))
    return os.getpid()


def only_a_cycle(a: np.ndarray[Any, Any], path: str) -> int:
    found: list[Any] = [open(path, "rb")]  # noqa: SIM115
    found.append(found)
    return os.getpid()


def raises_with_it_open(a: np.ndarray[Any, Any], path: str) -> None:
    os.open(path, os.O_RDONLY)
    raise KeyError("it")


@pytest.mark.parametrize("kernel", [opens, maps, goes_there, only_a_cycle, raises_with_it_open])
def test_nothing_of_the_mount_stays_open_in_a_process(machine: hmmfs.Machine, kernel: Any) -> None:
    """It would keep the mount busy, and the capacity of what is removed."""
    region = machine.region("a", M)
    machine.region("other", M)
    path = str(machine.path / "regions/other")
    before = machine.dev0.launch(opens, hmmfs.reads(region), "/dev/null").wait()
    launched = machine.dev0.launch(kernel, hmmfs.reads(region), path)
    if kernel is raises_with_it_open:
        with pytest.raises(hmmfs.KernelError, match="it"):
            launched.wait(30)
    else:
        assert launched.wait(30) == before
    after = machine.dev0.launch(opens, hmmfs.reads(region), "/dev/null").wait()
    assert (after == before) is (kernel is only_a_cycle)
    del region
    gc.collect()
    run("umount", str(machine.path))


def test_a_mount_on_the_working_directory(tmp_path: Path) -> None:
    """A worker begins below the mount, where it has nothing open."""
    place = tmp_path / "here"
    place.mkdir()
    subprocess.run([*HMMFS, "mount", ".", "-o", "vram=4M"], cwd=place, check=True, timeout=60)
    machine = hmmfs.connect(place)
    try:
        region = machine.region("a", M)
        launches = [
            machine.dev0.launch(opens, hmmfs.reads(region), "/dev/null").wait(60) for _ in range(2)
        ]
        assert launches[0] == launches[1]
    finally:
        del region
        gc.collect()
        run("umount", str(place))


def test_reset(machine: hmmfs.Machine) -> None:
    region = machine.region("a", M)
    reset = machine.path / "devices/dev0/reset"
    reset.write_text("1\n")
    handle = machine.dev0.launch(loops, hmmfs.updates(region))
    assert wait_until(lambda: machine.dev0.stats()["faults"] > 0)
    reset.write_text("1\n")
    with pytest.raises(OSError, match="reset") as caught:
        handle.wait(30)
    assert caught.value.errno == errno.ECANCELED
    assert region.cpu[0] == 9
    machine.dev0.launch(kernels.fill, hmmfs.writes(region), 1).wait()
    reset.write_text("1\n")
    assert (np.asarray(region.cpu) == 1).all()


def test_read_only_arrays(machine: hmmfs.Machine) -> None:
    region = machine.region("a", M)
    with pytest.raises(hmmfs.KernelError, match="read-only"):
        machine.dev0.launch(kernels.fill, hmmfs.reads(region), 1).wait()


def test_wrong_calls(machine: hmmfs.Machine) -> None:
    region = machine.region("a", M)
    with pytest.raises(OSError, match=r"hmmfs\.reads\(region\)"):
        machine.dev0.launch(kernels.fill, region, 1)
    os.truncate(region.path, 100)
    with pytest.raises(OSError, match="grow it") as caught:
        machine.dev0.launch(kernels.fill, hmmfs.writes(region), 1).wait()
    assert caught.value.errno == errno.ERANGE
    for word in ("xx", "e30=", "bnVsbA=="):
        with pytest.raises(OSError, match="not a call"):
            machine.dev0.submit(f"call {word}")
    with pytest.raises(OSError, match="no call nobody") as caught:
        machine.dev0.submit("cancel nobody")
    assert caught.value.errno == errno.ENOENT


def test_arrays_of_all_kinds(machine: hmmfs.Machine) -> None:
    def names(a: np.ndarray[Any, Any]) -> tuple[Any, ...]:
        return a.shape, a.dtype.str if a.dtype.names is None else a.dtype.names

    for n, (shape, dtype, seen) in enumerate(
        [
            (0, "float32", ((0,), "<f4")),
            ((3, 0, 2), "int8", ((3, 0, 2), "|i1")),
            ((2, 3), ">u2", ((2, 3), ">u2")),
            (8, [("x", "f4"), ("tag", "S3")], ((8,), ("x", "tag"))),
            (4, "complex128", ((4,), "<c16")),
            ((), "float64", ((), "<f8")),
        ]
    ):
        region = machine.region(f"r{n}", shape, dtype)
        assert machine.dev0.launch(names, hmmfs.updates(region)).wait() == seen
        assert names(region.cpu) == seen
    with pytest.raises(OSError, match="Python objects are of one process"):
        machine.region("objects", 3, "O")


@pytest.mark.parametrize("name", ["a b:1", "tab\tend", "a\x0bb", "line\u2028break", "-"])
def test_names_that_need_care(machine: hmmfs.Machine, name: str) -> None:
    region = machine.region(name, 4096)
    machine.dev0.launch(kernels.fill, hmmfs.writes(region), 3).wait()
    region.migrate(machine.dev1)
    assert region.residency()["pages_dev1"] == 1
    assert (np.asarray(region.cpu) == 3).all()
    broken = machine.region("line\nbreak", 4096)
    machine.dev0.launch(kernels.fill, hmmfs.writes(broken), 3).wait()
    with pytest.raises(OSError, match="a line break can't be in one"):
        broken.migrate(machine.dev1)


@pytest.mark.parametrize("name", ["/etc/hostname", "../stats", "..", ".", "", "a/b", "a\0b"])
def test_names_do_not_leave_the_mount(machine: hmmfs.Machine, name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for bad in (name, str(outside)):
        with pytest.raises(OSError, match="not a name for a region"):
            machine.region(bad, 4096)
        with pytest.raises(OSError, match="not a name for a region"):
            machine.region(bad)
    for use in ("reads", "updates"):
        word = f"{use}:{outside}:uint8:100"
        done = run("launch", str(machine.path), "dev0", "hmmfs.kernels:reduce", word, check=False)
        assert done.returncode == 2
        assert "not a name for a region" in done.stderr
    assert outside.read_text() == "precious"
    with pytest.raises(OSError, match="not a name for a call"):
        machine.dev0.submit("read a:0+1", "../submit")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2.5,), "u1"), ("12", "u1"), ((4, -3), "u1"), (-5, "u1"), (1 << 62, "u8"), (3, "V0")],
)
def test_wrong_shapes_make_nothing(machine: hmmfs.Machine, shape: Any, dtype: str) -> None:
    with pytest.raises(OSError, match=r"is not a shape|can't hold"):
        machine.region("a", shape, dtype)
    assert not (machine.path / "regions/a").exists()
    assert machine.region("b", np.int64(7)).shape == (7,)


def test_a_reader_does_not_make_a_region_longer(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 100)
    word = "reads:a:float32:512x512"
    done = run("launch", str(machine.path), "dev0", "hmmfs.kernels:reduce", word, check=False)
    assert done.returncode == 2
    assert "shorter than" in done.stderr
    assert region.path.stat().st_size == 100


def forks(a: np.ndarray[Any, Any]) -> int:
    return os.fork() and 1


def forks_and_dies(a: np.ndarray[Any, Any]) -> None:
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    os._exit(3)


def test_kernels_that_fork(machine: hmmfs.Machine) -> None:
    """A child's end is nobody's answer, and its life hides nobody's end."""
    region = machine.region("a", 4096)
    for n in range(5):
        assert machine.dev0.launch(forks, hmmfs.updates(region)).wait(30) == 1
        assert machine.dev0.launch(kernels.fill, hmmfs.writes(region), n).wait(30) is None
        assert machine.dev0.launch(kernels.reduce, hmmfs.reads(region)).wait(30) == n * 4096
    with pytest.raises(OSError, match="exit status 3"):
        machine.dev0.launch(forks_and_dies, hmmfs.updates(region)).wait(10)
    assert machine.dev0.launch(kernels.reduce, hmmfs.reads(region)).wait(30) == 4 * 4096


def says(a: np.ndarray[Any, Any], text: str, times: int) -> None:
    raise ValueError(text * times)


def test_what_an_exception_says_is_one_line(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 4096)
    for text, said in (
        ("a\nb\nerror: fake\ntraceback xxxx", "ValueError: a b error: fake traceback xxxx"),
        ("\udcff", "ValueError: \\\\udcff"),
        ("\ud800", "ValueError: \\\\ud800"),
        ("x" * 1000, "xxx[.]{3}"),
    ):
        times = 5000 if text[0] == "x" else 1
        with pytest.raises(hmmfs.KernelError, match=said) as caught:
            machine.dev0.launch(says, hmmfs.reads(region), text, times).wait(30)
        assert "in says" in caught.value.trace
        assert len(caught.value.sentence) < 1100


def test_arguments_that_are_too_large(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 4096)
    with pytest.raises(OSError, match="Put large arguments into a region") as caught:
        machine.dev0.launch(says, hmmfs.reads(region), "x" * 1_000_000, 1).wait(30)
    assert caught.value.errno == errno.E2BIG
    with pytest.raises(hmmfs.KernelError):
        machine.dev0.launch(says, hmmfs.reads(region), "x" * 500_000, 1).wait(30)


def test_calls_that_are_no_calls(machine: hmmfs.Machine) -> None:
    for text in ("[" * 100_000, '{"uses": [["a", "reads", 1e400]], "limit": null, "payload": ""}'):
        with pytest.raises(OSError, match="not a call") as caught:
            machine.dev0.submit(f"call {base64.b64encode(text.encode()).decode()}")
        assert caught.value.errno == errno.EINVAL


def test_cut_short_below_a_kernel(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 4 * M)
    region.cpu[:] = 1

    def slow(a: np.ndarray[Any, Any]) -> int:
        a[0] = 2
        time.sleep(1)
        return int(a[3 << 20])

    handle = machine.dev0.launch(slow, hmmfs.updates(region))
    assert wait_until(lambda: machine.dev0.stats()["faults"] > 0)
    os.truncate(region.path, M)
    with pytest.raises(OSError, match="past its end") as caught:
        handle.wait(30)
    assert caught.value.errno == errno.ERANGE
    assert np.fromfile(region.path, np.uint8, 2).tolist() == [2, 1]


@pytest.mark.parametrize("size", [0, M])
@pytest.mark.parametrize("how", [hmmfs.reads, hmmfs.updates, hmmfs.writes])
def test_cut_short_before_a_kernel_starts(
    machine: hmmfs.Machine, how: Callable[[Any], Any], size: int
) -> None:
    """While its launch waits for a process: it is refused as if it had been cut before."""
    region = machine.region("a", 4 * M)
    region.cpu[:] = 1
    queue = machine.path / "devices/dev0/queue"
    (machine.path / "devices/dev0/reset").write_text("1\n")
    handle = machine.dev0.launch(np.sum, how(region))
    assert wait_until(lambda: "running" in queue.read_text())
    os.truncate(region.path, size)
    with pytest.raises(OSError, match=f"has {size} bytes, {4 * M} are used: grow it") as caught:
        handle.wait(30)
    assert caught.value.errno == errno.ERANGE
    os.truncate(region.path, 4 * M)
    assert machine.dev0.launch(np.sum, hmmfs.reads(region)).wait() == size


def test_removed_below_a_kernel(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 4 * M)

    def slow(a: np.ndarray[Any, Any]) -> int:
        a[:] = 3
        time.sleep(0.7)
        return int(a.sum())

    handle = machine.dev0.launch(slow, hmmfs.updates(region))
    assert wait_until(lambda: machine.dev0.stats()["faults"] > 0)
    region.unlink()
    assert handle.wait(30) == 3 * 4 * M
    assert wait_until(lambda: machine.stats()["regions"] == 0)
    assert wait_until(lambda: machine.dev0.stats()["used"] == 0)


def test_the_worker_ends_with_the_mount(mount: Mount) -> None:
    machine = hmmfs.connect(mount.path)
    region = machine.region("a", M)

    def pid(a: np.ndarray[Any, Any]) -> int:
        return os.getpid()

    worker = machine.dev0.launch(pid, hmmfs.reads(region)).wait()
    assert machine.dev0.launch(pid, hmmfs.reads(region)).wait() == worker
    assert not ended(worker)
    run("umount", str(mount.path))
    assert wait_until(lambda: ended(worker))


def test_storm_of_killed_workers(machine: hmmfs.Machine) -> None:
    """Counts are made in whole launches, and some of their workers are killed: what a launch that
    ended well had added is there, and nothing is torn."""
    region = machine.region("a", 6 * M // 8, "int64")

    def add(a: np.ndarray[Any, Any]) -> int:
        a += 1
        return os.getpid()

    def add_and_die(a: np.ndarray[Any, Any]) -> None:
        a[: a.size // 2] += 0
        os.kill(os.getpid(), signal.SIGKILL)

    done = 0
    for round_ in range(12):
        device = machine.devices[round_ % 2]
        if round_ % 3 == 2:
            with pytest.raises(OSError, match="SIGKILL"):
                device.launch(add_and_die, hmmfs.updates(region)).wait()
            continue
        device.launch(add, hmmfs.updates(region)).wait()
        done += 1
    assert (np.asarray(region.cpu) == done).all()


def paint(a: np.ndarray[Any, Any], value: int, pid_file: str) -> None:
    Path(f"{pid_file}.new").write_text(str(os.getpid()))
    os.rename(f"{pid_file}.new", pid_file)
    for at in range(0, a.size, 1024):
        a[at : at + 1024] = value


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.long)])
def test_workers_killed_at_any_moment(machine: hmmfs.Machine, tmp_path: Path, seconds: int) -> None:
    """Each round paints a region of twice VRAM in one value, on either device, with some workers
    killed from outside: then each page has the old value or the new one."""
    region = machine.region("a", 8 * M // 8, "int64")
    rng = np.random.default_rng(3)
    end, killed, value = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        value += 1
        device, pid_file = machine.devices[value % 2], tmp_path / f"pid{value}"
        arguments = (hmmfs.updates(region), value, str(pid_file))
        handle = device.launch(paint, *arguments)
        if rng.random() < 0.6:
            assert wait_until(pid_file.exists)
            time.sleep(rng.random() * 0.02)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        error = handle.exception()
        seen = set(np.unique(region.cpu).tolist())
        if error is None:
            assert seen == {value}
            continue
        assert "SIGKILL" in str(error)
        assert seen <= {value - 1, value}
        killed += 1
        device.launch(paint, *arguments).wait()
        assert (np.asarray(region.cpu) == value).all()
    assert killed > 0
    assert value > killed


# ---- the shell, and mounting from Python

KERNEL = """
def double(a, by=2):
    a *= by
    return int(a.sum())
"""


def test_from_the_shell(mount: Mount, tmp_path: Path) -> None:
    np.arange(1000, dtype="int32").tofile(mount.regions / "a")
    (tmp_path / "mine.py").write_text(KERNEL)
    for kernel, wanted in ((f"{tmp_path}/mine.py:double", 999000), ("mine:double", 1998000)):
        command = [*HMMFS, "launch", str(mount.path), "dev0", kernel, "updates:a:int32"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout == f"{wanted}\n", done.stderr
    done = run("launch", str(mount.path), "dev1", "hmmfs.kernels:axpy", "1", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("hmmfs: launch: TypeError: axpy() missing 2")
    for words, says in (
        (("nonsense",), "names no kernel"),
        (("none.py:f",), "There is no file"),
        (("a:b", "reads:nobody"), "no region named"),
        (("a:b", "reads:a:float99"), "not a dtype"),
    ):
        done = run("launch", str(mount.path), "dev0", *words, check=False)
        assert done.returncode == 2
        assert says in done.stderr
    assert np.fromfile(mount.regions / "a", "int32").tolist() == list(range(0, 4000, 4))


def complains() -> None:
    os.write(2, b"of a kernel\n")


def closes_stderr() -> None:
    os.close(2)


def test_what_kernels_complain_of_is_in_the_log(
    mount_factory: MountFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every warning of Python is an error, for a worker is started like any other."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    mount = mount_factory(vram="4M")
    dev0 = hmmfs.connect(mount.path).dev0
    for kernel in (complains, closes_stderr, complains):
        dev0.launch(kernel).wait(60)
    assert mount.log.read_text().count("of a kernel\n") == 2


def test_a_log_that_is_a_pipe(mount_factory: MountFactory, tmp_path: Path) -> None:
    """One that nobody reads is refused. Of one that is read, kernels get nothing: they could fill
    it, and the daemon would wait."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "mnt").mkdir()
    done = run("mount", str(tmp_path / "mnt"), "-o", f"log={pipe}", check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"hmmfs: The log file {pipe} can't be opened: No such device or address.\n",
    )
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        run("mount", str(tmp_path / "mnt"), "-o", f"vram=4M,log={pipe}")
        hmmfs.connect(tmp_path / "mnt").dev0.launch(complains).wait(60)
        said = os.read(reader, 1 << 16)
        assert b"is mounted" in said
        assert b"of a kernel" not in said
        run("umount", str(tmp_path / "mnt"))
    finally:
        os.close(reader)


def test_mounting_from_python() -> None:
    with hmmfs.mount(vram="4M", devices=2, host="32M") as machine:
        a = machine.region("a", (64, 1 << 14), "float32")
        a.cpu[:] = 1
        machine.dev0.launch(scale, hmmfs.updates(a), 2.0).wait()
        assert a.cpu[3, 5] == 2
        a.prefetch(machine.dev1).wait()
        assert a.residency()["pages_dev1"] == a.nbytes // 4096
        a.migrate("host")
        assert a.residency()["pages_dev1"] == 0
        path = machine.path
        del a
    assert not path.exists()
    with pytest.raises(OSError, match="vrm"):
        hmmfs.mount(vrm="4M")


def test_awaiting(machine: hmmfs.Machine) -> None:
    import trio

    region = machine.region("a", M)

    async def main() -> float:
        await machine.dev0.launch(kernels.fill, hmmfs.writes(region), 2)
        result: float = await machine.dev0.launch(kernels.reduce, hmmfs.reads(region))
        return result

    assert trio.run(main) == 2 * M
