"""What the API hands out, copied and sent to other processes: the same bytes there, or an error."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HMMFS, MountFactory, connection, takes_root, wait_until

import hmmfs
from hmmfs import kernels
from hmmfs.common import mountinfo
from hmmfs.errors import UsageError

M = 1 << 20
ELSEWHERE = [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]


@pytest.fixture
def machine(mount_factory: MountFactory) -> hmmfs.Machine:
    return hmmfs.connect(mount_factory(vram="4M", devices=2, host="64M").path)


def fails(number: int, again: Any, *words: str) -> str:
    with pytest.raises(hmmfs.HmmfsError) as caught:
        again()
    assert caught.value.errno == number, caught.value
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    return sentence


def test_a_region_is_the_same_bytes(machine: hmmfs.Machine) -> None:
    region = machine.region("a", (3, 5), "int32")
    region.cpu[:] = 1
    for number, elsewhere in enumerate(ELSEWHERE, 2):
        other = elsewhere(region)
        assert (other.shape, other.dtype, other.nbytes) == ((3, 5), np.dtype("int32"), 60)
        other.cpu[1, 1] = number
        assert region.cpu[1, 1] == number
        machine.dev0.launch(kernels.fill, hmmfs.writes(other), 7).wait()
        assert (region.cpu == 7).all()
    assert len(pickle.dumps(region)) < 1000, "its bytes travel with it"


def test_machines_and_devices_are_the_same(machine: hmmfs.Machine) -> None:
    for elsewhere in ELSEWHERE:
        other, device = elsewhere((machine, machine.dev1))
        assert device.name == "dev1"
        assert device.machine.path == other.path == machine.path
        machine.region("a", 4).cpu[0] = 3
        assert other.region("a").cpu[0] == 3
        other.close()  # it owns nothing
    assert connection(machine.path) is not None


def test_another_region_of_the_name_is_not_it(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 4096)
    parcel = pickle.dumps(region)
    region.unlink()
    fails(errno.ENOENT, lambda: pickle.loads(parcel), "'a' was removed or renamed")
    other = machine.region("a", 4096)
    replaced = ["'a' was replaced by another", "get it anew"]
    fails(errno.ESTALE, lambda: pickle.loads(parcel), *replaced)
    fails(errno.ESTALE, lambda: region.cpu, *replaced)
    fails(errno.ESTALE, lambda: region.migrate("dev0"), *replaced)
    fails(errno.ESTALE, lambda: region.advise("pinned"), *replaced)
    for ask in (region.residency, region.faults, region.attributes, region.unlink):
        fails(errno.ESTALE, ask, *replaced)
    launch = machine.dev0.launch
    fails(errno.ESTALE, lambda: launch(kernels.fill, hmmfs.writes(region), 1), *replaced)
    assert not other.cpu.any()


def test_another_mount_on_the_path_is_not_it(tmp_path: Path) -> None:
    with hmmfs.mount(tmp_path, vram="4M") as machine:
        parcels = [pickle.dumps(it) for it in (machine, machine.dev0, machine.region("a", 10))]
    for parcel in parcels:
        fails(errno.ESTALE, lambda parcel=parcel: pickle.loads(parcel), f"{tmp_path}", "has ended")
    with hmmfs.mount(tmp_path, vram="4M") as machine:
        machine.region("a", 10)
        for parcel in parcels:
            fails(errno.ESTALE, lambda parcel=parcel: pickle.loads(parcel), "has ended")


def test_memory_of_a_program(machine: hmmfs.Machine) -> None:
    command = [*HMMFS, "run", str(machine.path), "--", "sleep", "60"]
    with subprocess.Popen(command) as child:
        assert wait_until(lambda: (machine.path / f"state/@{child.pid}").exists())
        view = machine.process(child.pid).view(1 << 20, (2, 3), "int64")
        for elsewhere in ELSEWHERE:
            other = elsewhere(view)
            assert (other.place, other.shape, other.dtype) == (view.place, view.shape, view.dtype)
            assert other.process.residency() == view.process.residency()
        parcel = pickle.dumps(view)
        child.kill()
    assert wait_until(lambda: not (machine.path / f"state/@{child.pid}").exists())
    fails(errno.ESRCH, lambda: pickle.loads(parcel), str(child.pid))


def test_errors_arrive_as_they_were_raised() -> None:
    """A pool waits for ever for an error that can't be made anew."""
    for error in (
        hmmfs.HmmfsError(errno.EBUSY, "It is in use."),
        UsageError("Say it otherwise."),
        hmmfs.KernelError("It raised.", "line 1\nline 2"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.errno, str(again)) == (type(error), error.errno, str(error))


# ---- processes

CHILD = """
import multiprocessing, sys
import hmmfs
from hmmfs import kernels

def work(machine, region, device, number, where):
    region.cpu[number] = number
    device.launch(kernels.scale, hmmfs.updates(region), 2).wait()
    try:
        machine.region("a", -1)
    except hmmfs.HmmfsError as error:
        where.put(str(error))

def refused(region, where):
    where.put(len(region))

if __name__ == "__main__":
    machine = hmmfs.connect(sys.argv[1])
    region = machine.region("a", 4)
    region.cpu[:] = 1
    for number, method in enumerate(("fork", "spawn", "forkserver"), 1):
        context = multiprocessing.get_context(method)
        where = context.Queue()
        arguments = (machine, region, machine.dev0, number, where)
        child = context.Process(target=work, args=arguments)
        child.start()
        assert "is not a shape" in where.get()
        child.join()
        assert child.exitcode == 0, method
    print(*map(int, region.cpu))
"""


def test_through_multiprocessing(machine: hmmfs.Machine, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, "child.py", str(machine.path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == "8 8 8 6\n", done.stderr


# ---- kernels

A_GLOBAL: Any = None


def test_within_kernels(machine: hmmfs.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By closure, by a global, in a list, as a default: the worker maps the mount's file."""
    region, out = machine.region("a", 2 * 4096), machine.region("out", 8)
    region.cpu[:] = 1
    monkeypatch.setitem(globals(), "A_GLOBAL", region)
    closed = region

    def kernel(x: Any, listed: list[Any], default: Any = region) -> int:
        for number, one in enumerate((closed, A_GLOBAL, listed[0], default)):
            x[number] = one.cpu[0]
            one.cpu[0] += 1
        return int(one.cpu[0])

    assert machine.dev0.launch(kernel, hmmfs.writes(out), [region]).wait() == 5
    assert out.cpu[:4].tolist() == [1, 2, 3, 4]
    assert region.cpu[0] == 5

    def both(x: Any) -> int:
        """As an argument and by the closure: one memory, no matter who touches it."""
        x[1] = 9
        closed.cpu[4096] = closed.cpu[1] + 1
        return int(x[4096])

    assert machine.dev0.launch(both, hmmfs.updates(region)).wait() == 10
    assert (region.cpu[1], region.cpu[4096]) == (9, 10)

    def through(device: Any) -> str:
        return str(device.submit("read a:1+1"))

    assert machine.dev0.launch(through, machine.dev1).wait() == "09"


def test_what_a_kernel_can_not_have(machine: hmmfs.Machine) -> None:
    region = machine.region("a", 10)

    def nothing(*_: Any) -> None:
        pass

    sentence = fails(errno.EINVAL, lambda: machine.dev0.launch(nothing, region))
    assert "Give it hmmfs.reads(region), hmmfs.writes(region) or hmmfs.updates(region)" in sentence
    with pytest.raises(
        TypeError, match=r"hmmfs.reads\(region\) is an argument of launch by itself"
    ):
        machine.dev0.launch(nothing, [hmmfs.reads(region)])
    handle = machine.dev0.launch(nothing)
    with pytest.raises(TypeError, match=r"A handle is of the process that made it\. Wait there"):
        machine.dev0.launch(nothing, handle)
    handle.wait()


# ---- handles


def test_a_handle_stays_at_home(machine: hmmfs.Machine) -> None:
    handle = machine.dev0.launch(kernels.reduce, hmmfs.reads(machine.region("a", 10)))
    assert copy.copy(handle) is handle
    assert copy.deepcopy([handle])[0] is handle
    with pytest.raises(TypeError, match="send on what wait"):
        pickle.dumps(handle)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = b""
        for ask in (handle.wait, handle.exception, handle.cancel, lambda: handle.done):
            try:
                ask()
            except TypeError:
                said += b"refused "
        os.write(writer, said)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"refused " * 4
    os.waitpid(child, 0)
    assert handle.wait() == 0


def test_awaiting_in_asyncio(machine: hmmfs.Machine) -> None:
    region = machine.region("a", M)

    def slow() -> None:
        time.sleep(60)

    def fault() -> None:
        raise ValueError("of a kernel")

    async def main() -> None:
        first, second = machine.dev0.launch, machine.dev1.launch
        await first(kernels.fill, hmmfs.writes(region), 2)
        reads = hmmfs.reads(region)
        sums = await asyncio.gather(first(kernels.reduce, reads), second(kernels.reduce, reads))
        assert sums == [2 * M, 2 * M]
        with pytest.raises(hmmfs.KernelError, match="of a kernel"):
            await first(fault)
        await region.prefetch("dev1")
        endless = first(slow)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(endless, 0.05)
        assert not endless.done
        endless.cancel()
        with pytest.raises(hmmfs.HmmfsError, match="cancelled"):
            await endless
        with pytest.raises(hmmfs.HmmfsError, match="cancelled"):
            await endless  # ended before
        left.append(first(slow))
        tasks.append(asyncio.ensure_future(forget(left[0])))
        await asyncio.sleep(0)

    left: list[hmmfs.Handle] = []
    tasks: list[Any] = []

    async def forget(handle: hmmfs.Handle) -> None:
        await handle

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 30, "the end of the loop waits for a kernel"
    left[0].cancel()
    assert left[0].exception() is not None


def test_awaiting_in_nothing(machine: hmmfs.Machine) -> None:
    handle = machine.dev0.launch(kernels.reduce, hmmfs.reads(machine.region("a", 10)))

    async def main() -> None:
        await handle

    with pytest.raises(TypeError, match=r"awaited in trio or in asyncio: elsewhere call its wait"):
        main().send(None)
    handle.wait()


# ---- whose code runs

EVIL = """
import errno, sys
import hmmfs
from hmmfs import kernels

class Evil:
    def __reduce__(self):
        return open, (sys.argv[2], "w")

def evil(word):
    return [1, 2.5, "x", b"y", None, True, (3,)] if word == "plain" else [Evil()]

machine = hmmfs.connect(sys.argv[1])
assert machine.dev0.launch(evil, "plain").wait() == [1, 2.5, "x", b"y", None, True, (3,)]
try:
    machine.dev0.launch(evil, "evil").wait()
except hmmfs.HmmfsError as error:
    assert error.errno == errno.EPERM, error
    print(error)
"""


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hmmfs-public-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@takes_root("takes root, to be two users")
def test_another_users_mount_runs_no_code_of_ours(tmp_path: Path) -> None:
    """A mount of nobody's that lets others in, seen by root."""
    with public_directory() as public:
        (public / "mnt").mkdir()
        os.chown(public / "mnt", 65534, 65534)
        (public / "fuse.conf").write_text("user_allow_other\n")
        (public / "evil.py").write_text(EVIL)
        # Python may be where only root gets to.
        rights = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
        nobody = f"setpriv --reuid=65534 --regid=65534 --clear-groups {rights}"
        hmmfs_ = " ".join(HMMFS)
        script = f"""
            mknod -m 666 {public}/fuse c 10 229
            mount --bind {public}/fuse /dev/fuse
            mount --bind {public}/fuse.conf /etc/fuse.conf
            {nobody} {hmmfs_} mount {public}/mnt -o vram=4M,allow_other
            {sys.executable} {public}/evil.py {public}/mnt {tmp_path}/marker
            {nobody} {hmmfs_} umount {public}/mnt
        """
        command = ["unshare", "-m", "sh", "-ec", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "and " in done.stdout
    assert "is a mount of another user" in done.stdout
    assert not (tmp_path / "marker").exists(), "their code ran as root"


def test_what_is_believed(machine: hmmfs.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of root, of the same user: anything. Of others, and of a mount that is not to be seen: plain
    values."""

    def array() -> Any:
        return np.arange(3)

    for user, believed in ((0, True), (os.geteuid(), True), (4242, False), (None, False)):
        monkeypatch.setattr(mountinfo, "mounter_of", lambda fd, user=user: user)
        handle = machine.dev0.launch(array)
        if believed:
            assert handle.wait().tolist() == [0, 1, 2]
        else:
            fails(errno.EPERM, handle.wait, "another user", "return plain numbers")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setattr(mountinfo, "mounter_of", lambda fd: 4242)
    assert machine.dev0.launch(array).wait().tolist() == [0, 1, 2]


def test_a_kernel_can_not_speak_for_its_worker(machine: hmmfs.Machine, tmp_path: Path) -> None:
    """What a worker says to the daemon is opened as plain, too."""
    marker = tmp_path / "marker"

    def forge() -> None:
        import pickle
        import socket
        import struct
        import sys

        class Evil:
            def __reduce__(self) -> Any:
                return open, (str(marker), "w")

        said = pickle.dumps(Evil())
        channel = socket.socket(fileno=os.dup(int(sys.argv[1])))
        channel.sendall(struct.pack("<Q", len(said)) + said)

    handle = machine.dev0.launch(forge)
    fails(errno.EREMOTEIO, handle.wait, "wrote to its worker's socket")
    assert not marker.exists(), "a kernel's code ran in the daemon"
    assert machine.dev0.launch(kernels.reduce, hmmfs.reads(machine.region("a", 4))).wait() == 0
