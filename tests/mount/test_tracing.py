"""The trace: what it says of a known run, its readers, its filter; and that a slow reader loses
whole events, counted."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Mount, MountFactory, ended, fails, run, wait_until

import hmmfs

M = 1 << 20


def lines(mount: Mount) -> list[list[str]]:
    text = (mount.path / "trace").read_text()
    assert text.startswith("# time device event region pages from to trigger bytes micro")
    return [line.split(" ") for line in text.splitlines() if not line.startswith("#")]


def touch(x: np.ndarray) -> None:
    """A store in every page."""
    x[::4096] += 1


@pytest.fixture
def small(mount_factory: MountFactory) -> Mount:
    return mount_factory(vram="4M", host="64M", prefetch="none")


def test_a_known_run(small: Mount) -> None:
    """A program writes a page, the device takes it, the program takes it back."""
    machine = hmmfs.connect(small.path)
    a = machine.region("a", 4096)
    a.cpu[0] = 7
    machine.dev0.launch(touch, hmmfs.updates(a)).wait()
    assert a.cpu[0] == 8
    found = lines(small)
    assert {len(words) for words in found} == {11}
    assert [words[1:9] for words in found] == [
        ["dev0", "page_fault_start", "a", "0+1", "-", "-", "read", "0"],
        ["dev0", "unmap", "a", "0+1", "host", "-", "device_fault", "0"],
        ["dev0", "migrate_start", "a", "0+1", "host", "dev0", "device_fault", "0"],
        ["dev0", "migrate_end", "a", "0+1", "host", "dev0", "device_fault", "4096"],
        ["dev0", "page_fault_end", "a", "0+1", "-", "-", "read", "0"],
        ["dev0", "page_fault_start", "a", "0+1", "-", "-", "write", "0"],
        ["dev0", "page_fault_end", "a", "0+1", "-", "-", "write", "0"],
        ["cpu", "page_fault_start", "a", "0+1", "-", "-", "read", "0"],
        ["cpu", "migrate_start", "a", "0+1", "dev0", "host", "cpu_fault", "0"],
        ["cpu", "migrate_end", "a", "0+1", "dev0", "host", "cpu_fault", "4096"],
        ["cpu", "page_fault_end", "a", "0+1", "-", "-", "read", "0"],
    ]
    times = [float(words[0]) for words in found]
    assert times == sorted(times)
    assert times[0] <= time.monotonic()
    simulated = [float(words[10]) for words in found if words[2] == "migrate_end"]
    assert simulated == [1.759, 1.759]  # 4 KiB over PCIe 3
    assert all(float(words[9]) > 0 for words in found if words[2].endswith("_end"))


def test_an_eviction_is_told(small: Mount) -> None:
    """6 MiB through 4: the third block waits until the first is out."""
    machine = hmmfs.connect(small.path)
    machine.dev0.policy(prefetch="block")
    a = machine.region("a", 6 * M)
    machine.dev0.launch(touch, hmmfs.updates(a)).wait()
    found = [words[1:8] for words in lines(small) if words[2] != "unmap"]
    at = found.index(["dev0", "queue_eviction", "a", "1024+512", "dev0", "-", "device_fault"])
    assert found[at + 1 : at + 4] == [
        ["dev0", "migrate_start", "a", "0+512", "dev0", "host", "eviction"],
        ["dev0", "migrate_end", "a", "0+512", "dev0", "host", "eviction"],
        ["dev0", "queue_restore", "a", "1024+512", "dev0", "-", "device_fault"],
    ]


def test_what_somebody_asked_for(small: Mount) -> None:
    small.region("a", 2 * M)
    small.submit(0, "fill a 1")
    small.submit(0, "migrate a to host")
    small.submit(0, "migrate a to dev0")
    ends = [words[1:9] for words in lines(small) if words[2] == "migrate_end"]
    assert ends == [
        ["cpu", "migrate_end", "a", "0+512", "dev0", "host", "prefetch", str(2 * M)],
        ["dev0", "migrate_end", "a", "0+512", "host", "dev0", "prefetch", str(2 * M)],
    ]


def put(x: np.ndarray) -> None:
    x[::4096] = 1


def faults(mount: Mount, count: int, region: str = "f") -> None:
    """So many page faults of dev0, of two events each."""
    machine = hmmfs.connect(mount.path)
    where = machine.region(region, count * 4096)
    machine.dev0.launch(put, hmmfs.writes(where)).wait()


# ---- trace_pipe


def pipe(mount: Mount, flags: int = os.O_NONBLOCK) -> int:
    return os.open(mount.path / "trace_pipe", os.O_RDONLY | flags)


def drained(fd: int, size: int = 1 << 16) -> str:
    found = b""
    while True:
        try:
            found += os.read(fd, size)
        except BlockingIOError:
            return found.decode()


@pytest.fixture
def reader(small: Mount) -> Iterator[int]:
    fd = pipe(small)
    yield fd
    os.close(fd)


def test_a_pipe_goes_on(small: Mount, reader: int) -> None:
    fails(errno.EAGAIN, lambda: os.read(reader, 100))
    faults(small, 10)
    first = drained(reader)
    assert first == (small.path / "trace").read_text().partition("\n")[2]
    fails(errno.EAGAIN, lambda: os.read(reader, 100))
    faults(small, 3, "g")
    second = drained(reader)
    assert second.count("page_fault_start") == 3
    assert {line.split(" ")[3] for line in second.splitlines()} == {"g"}
    fails(errno.ESPIPE, lambda: os.lseek(reader, 0, os.SEEK_SET))


def test_each_reader_gets_everything(small: Mount, reader: int) -> None:
    other = pipe(small)
    faults(small, 5)
    text = drained(reader)
    assert drained(other) == text
    os.close(other)
    late = pipe(small)  # has nothing of what others were told
    fails(errno.EAGAIN, lambda: os.read(late, 100))
    os.close(late)


def test_lines_survive_small_reads(small: Mount, reader: int) -> None:
    faults(small, 20)
    assert drained(reader, 7) == (small.path / "trace").read_text().partition("\n")[2]


def test_a_blocking_reader_is_woken(small: Mount) -> None:
    found: list[bytes] = []
    fd = pipe(small, 0)
    thread = threading.Thread(target=lambda: found.append(os.read(fd, 1 << 16)))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    faults(small, 1)
    thread.join(10)
    os.close(fd)
    assert found[0].endswith(b"\n")
    assert b"page_fault_start f 0+1" in found[0]


def test_two_threads_of_one_open_file(small: Mount) -> None:
    """Each line goes to one of them."""
    found: list[bytes] = []
    fd = pipe(small, 0)

    def until_the_last() -> None:
        while b"last" not in b"".join(found):
            found.append(os.read(fd, 4096))

    threads = [threading.Thread(target=until_the_last) for _ in range(2)]
    for thread in threads:
        thread.start()
    faults(small, 20)
    while any(thread.is_alive() for thread in threads):
        faults(small, 1, "last")
        threads[0].join(0.1)
        small.submit(0, "migrate last to host")
    os.close(fd)
    told = sorted(line for line in b"".join(found).splitlines() if b" f " in line)
    there = (small.path / "trace").read_bytes().splitlines()
    assert told == sorted(line for line in there if b" f " in line)


@pytest.mark.parametrize("kind", ["poll", "epoll", "select"])
def test_it_can_be_polled(small: Mount, reader: int, kind: str) -> None:
    def ready(seconds: float) -> bool:
        if kind == "select":
            return bool(select.select([reader], [], [], seconds)[0])
        if kind == "epoll":
            with select.epoll() as epoll:
                epoll.register(reader, select.EPOLLIN)
                return bool(epoll.poll(seconds))
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    assert not ready(0.05)
    later = threading.Timer(0.1, faults, (small, 1))
    later.start()
    assert ready(20)
    later.join()
    drained(reader)
    assert not ready(0.05)


def test_other_files_are_always_ready(small: Mount) -> None:
    with open(small.path / "stats") as file, open(small.region("a", 4096), "r+b") as region:
        assert select.select([file, region], [region], [], 0)[:2] == ([file, region], [region])


def test_a_signal_ends_a_wait(small: Mount) -> None:
    reading = subprocess.Popen(["cat", small.path / "trace_pipe"], stdout=subprocess.PIPE)
    assert wait_until(lambda: waits_in_fuse(reading.pid))
    reading.send_signal(signal.SIGINT)
    assert reading.wait(10) == -signal.SIGINT
    assert reading.stdout is not None
    reading.stdout.close()


def test_any_of_many_that_wait_can_be_killed(mount_factory: MountFactory) -> None:
    """More than a table of a fixed size would hold, each in a read of its own."""
    small = mount_factory(vram="2M", devices=1, host="8M")
    script = """if True:
        import os, sys, threading, time
        fds = [os.open(sys.argv[1], os.O_RDONLY) for _ in range(300)]
        threading.stack_size(1 << 16)
        for fd in fds:
            threading.Thread(target=os.read, args=(fd, 4096), daemon=True).start()
        print("all", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", script, small.path / "trace_pipe"], stdout=subprocess.PIPE
    ) as many:
        assert many.stdout is not None
        many.stdout.readline()
        assert wait_until(lambda: threads_in_fuse(many.pid) == 300)
        last = subprocess.Popen(["cat", small.path / "trace_pipe"], stdout=subprocess.DEVNULL)
        assert wait_until(lambda: waits_in_fuse(last.pid))
        last.kill()
        assert last.wait(10) == -signal.SIGKILL
        many.kill()
        assert many.wait(10) == -signal.SIGKILL
    assert hmmfs.connect(small.path).stats()["interrupts"] >= 301


@pytest.mark.warns("Programs still use")
def test_the_end_of_the_mount_ends_a_wait(small: Mount) -> None:
    reading = subprocess.Popen(["cat", small.path / "trace_pipe"], stderr=subprocess.PIPE)
    assert wait_until(lambda: waits_in_fuse(reading.pid))
    assert run("umount", str(small.path), check=False).returncode == 1, "it is in use"
    os.kill(pid := small.pid, signal.SIGTERM)
    assert reading.wait(20) == 1
    assert reading.stderr is not None
    reading.stderr.close()
    assert wait_until(lambda: ended(pid))


def waits_in_fuse(pid: int) -> bool:
    """Whether it is in a read that the mount has not answered."""
    number, *_ = Path(f"/proc/{pid}/syscall").read_text().split()
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return number in ("0", "63") and state in "SD"  # of x86-64, and of others


def threads_in_fuse(pid: int) -> int:
    return sum(waits_in_fuse(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir())


def test_a_slow_reader_loses_whole_events(small: Mount, reader: int) -> None:
    (small.path / "trace_size").write_text("16")
    before = small.values("stats")["trace_recorded"]
    faults(small, 50)
    recorded = small.values("stats")["trace_recorded"] - before
    text = drained(reader)
    first, *rest = text.splitlines()
    assert first.startswith("# lost ")
    assert int(first.split()[2]) + len(rest) == recorded
    assert len(rest) == 16
    assert {len(line.split(" ")) for line in rest} == {11}
    assert len(lines(small)) == 16


# ---- what is kept


def test_a_size(small: Mount) -> None:
    size = small.path / "trace_size"
    assert size.read_text() == "65536\n"
    for text, kept in (("100", "128"), ("1", "1"), ("1M", "1048576"), ("4K", "4096")):
        size.write_text(text)
        assert size.read_text() == f"{kept}\n"
    faults(small, 3)
    assert lines(small)
    size.write_text("0")
    before = small.values("stats")["trace_recorded"]
    faults(small, 3, "g")
    assert lines(small) == []
    assert small.values("stats")["trace_recorded"] == before
    for bad in ("-1", "2M", "many", "", "1.5"):
        fails(errno.EINVAL, lambda bad=bad: size.write_text(bad or " "))
    assert size.read_text() == "0\n"


def test_it_can_be_forgotten(small: Mount) -> None:
    faults(small, 3)
    (small.path / "trace").write_text("")  # which only truncates
    assert lines(small)
    (small.path / "trace").write_text("anything")
    assert lines(small) == []


def test_a_filter(small: Mount) -> None:
    filter = small.path / "trace_filter"
    assert filter.read_text() == "all\n"
    filter.write_text("events=migrate_end,page_fault_start regions=b,c\\040d")
    assert filter.read_text() == "events=page_fault_start,migrate_end regions=b,c\\040d\n"
    for name in ("a", "b", "c d"):
        faults(small, 3, name)
    assert {(words[2], words[3]) for words in lines(small)} == {
        ("page_fault_start", "b"),
        ("page_fault_start", "c\\040d"),
    }
    os.rename(small.regions / "a", small.regions / "b")  # which replaces b
    (small.path / "trace").write_text("clear")
    small.submit(0, "migrate b to host")
    assert [words[2:4] for words in lines(small)] == [["migrate_end", "b"]]
    for bad in (
        *("events=nothing", "events=", "events", "regions=", "sometimes", "events=migrate_end x=1"),
        *("regions=a/b", r"regions=\000", "regions=a regions=b", "all events=unmap", "\n"),
    ):
        fails(errno.EINVAL, lambda bad=bad: filter.write_text(bad))
    assert "is not an event" in _error(small, "events=nothing")
    assert filter.read_text() == "events=page_fault_start,migrate_end regions=b,c\\040d\n"
    filter.write_text(r"regions=\777")  # no byte has that number, so it is just what it says
    assert filter.read_text() == "regions=\\134777\n"
    filter.write_text("all")
    assert filter.read_text() == "all\n"


def _error(mount: Mount, text: str) -> str:
    fails(errno.EINVAL, lambda: (mount.path / "trace_filter").write_text(text))
    return (mount.path / "last_error").read_text()


def test_names_in_a_trace(small: Mount) -> None:
    names = [b"two words", b"back\\slash", b"-", b"new\nline", b"\xff\xfe", "größe".encode()]
    words = ["two\\040words", "back\\134slash", "\\055", "new\\012line", "\\377\\376", "größe"]
    for name in names:
        with open(os.fsencode(small.regions) + b"/" + name, "wb") as file:
            file.truncate(4096)
        fd = os.open(small.path / "devices/dev0/submit", os.O_RDWR)
        quoted = b"'" + name + b"'"
        if b"\n" not in name:
            os.write(fd, b"fill " + quoted + b" 1\nmigrate " + quoted + b" to host\n")
        os.close(fd)
    told = {line[3] for line in lines(small)}
    assert told == {word for word in words if "012" not in word}
    for name in names:
        os.unlink(os.fsencode(small.regions) + b"/" + name)
    assert wait_until(lambda: small.values("stats")["regions"] == 0)
    assert {line[3] for line in lines(small)} == told, "what is gone keeps its name"


def test_a_long_trace_is_read_in_pieces(small: Mount) -> None:
    """Whatever part of it is asked for, in whatever order."""
    machine = hmmfs.connect(small.path)
    where = machine.region("f", 4 * M)
    for _ in range(4):
        machine.dev0.launch(put, hmmfs.writes(where)).wait()
        where.migrate("host")
    with open(small.path / "trace", "rb", buffering=0) as file:
        whole = b"".join(iter(lambda: file.read(1 << 20), b""))
        assert len(whole) > 600_000, "more than two pieces"
        assert whole == (small.path / "trace").read_bytes()
        for at in (len(whole) - 10, 0, 300_000, 100_000, 555_555):
            file.seek(at)
            assert file.read(10) == whole[at : at + 10]
        file.seek(len(whole))
        assert file.read(10) == b""


# ---- thrashing


def scan(x: np.ndarray) -> float:
    return float(x[::4096].sum())


def test_what_thrashes_and_why(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="4M", host="64M")
    machine = hmmfs.connect(mount.path)
    fits, large, shared = (
        machine.region(name, size * M) for name, size in (("fits", 2), ("large", 6), ("shared", 2))
    )
    machine.dev0.launch(touch, hmmfs.writes(fits)).wait()
    assert (mount.path / "thrashing").read_text() == ""
    for _ in range(3):
        machine.dev0.launch(scan, hmmfs.reads(large)).wait()
    found = Counter(line.split()[0:3].__str__() for line in _thrashing(mount))
    assert list(found) == ["['large', 'dev0', 'capacity']"]
    assert mount.values("state/large/faults")["dev0_thrashed"] > 512
    for _ in range(2):
        machine.dev0.launch(touch, hmmfs.updates(shared)).wait()
        shared.cpu[::4096] += 1
    assert not any("sharing" in line for line in _thrashing(mount)), "twice is no habit"
    for _ in range(4):
        machine.dev0.launch(touch, hmmfs.updates(shared)).wait()
        shared.cpu[::4096] += 1
    told = {(each["region"], each["device"], each["cause"]) for each in machine.thrashing()}
    assert told == {("large", "dev0", "capacity"), ("shared", "dev0", "sharing")}
    assert shared.faults()["dev0_shared"] == machine.dev0.stats()["shared_pages"]
    assert machine.dev0.faults()["total"] == machine.dev0.stats()["faults"]
    ends = [event for event in machine.trace() if event.event == "migrate_end"]
    into = sum(event.bytes for event in ends if event.target == "dev0")
    assert into == machine.stats()["bytes_host_dev0"]
    words = next(line.split() for line in _thrashing(mount) if "sharing" in line)
    assert words[:3] == ["shared", "dev0", "sharing"]
    pages = int(words[3].removeprefix("pages="))
    assert pages == mount.values("devices/dev0/stats")["shared_pages"] > 0
    told = [line[3:9] for line in lines(mount) if line[2] == "thrashing"]
    assert {(line[0], line[4]) for line in told} >= {("large", "capacity"), ("shared", "sharing")}


def test_far_more_than_fits(small: Mount) -> None:
    """A device that misses always, since what it uses is many times what it has, thrashes, too;
    twice the memory would not help it."""
    machine = hmmfs.connect(small.path)
    machine.dev0.policy(prefetch="block")
    huge = machine.region("huge", 16 * M)
    huge.cpu[::4096] = 1
    for _ in range(3):
        machine.dev0.launch(scan, hmmfs.reads(huge)).wait()
    (found,) = machine.thrashing()
    assert (found["region"], found["cause"], found["stay_with_twice"]) == ("huge", "capacity", 0)
    assert found["pages"] >= 2 * 4096
    assert found["pages"] == machine.dev0.stats()["refaulted_pages"]


def _thrashing(mount: Mount) -> list[str]:
    return (mount.path / "thrashing").read_text().splitlines()
