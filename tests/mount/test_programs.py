"""Programs whose own memory goes to devices and comes home, whatever they do to it meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import mmap
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from conftest import (
    HMMFS,
    Mount,
    MountFactory,
    ended,
    fails,
    let_others_reach,
    moves_programs,
    wait_until,
)

from hmmfs.cli.preload import LIBRARY, preloading

SOURCES = Path(__file__).with_name("programs")
COMPILE = ("gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-pthread")
PAGE = mmap.PAGESIZE
BLOCK = 2 << 20
SOME_S = 12  # for what takes a moment

pytestmark = moves_programs


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the compiled programs, which others can read, too."""
    base = tmp_path_factory.mktemp("programs")
    for name in ("calls", "crowd", "families", "hold", "leader", "mappings", "structures"):
        subprocess.run(
            [*COMPILE, "-o", base / name, SOURCES / f"{name}.c"],
            check=True,
        )
    return base


@pytest.fixture
def machine(mount_factory: MountFactory) -> Mount:
    return mount_factory(vram="32M", devices=2, host="64M")


# ---- programs


class Program:
    """One under hmmfs run. Whatever a test does, it is ended and waited for."""

    def __init__(self, mount: Mount, *command: str | Path, **options: object) -> None:
        self.command = command
        self.process = subprocess.Popen(
            [*HMMFS, "run", str(mount.path), "--", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        self.pid = self.process.pid

    def line(self, seconds: float = SOME_S) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"nothing was said: {where(self.pid)}"
        return self.process.stdout.readline().rstrip("\n")

    def where(self) -> tuple[int, int, int]:
        """The line in which a program says where its memory is."""
        line = self.line()
        found = re.fullmatch(r"(\d+)@0x([0-9a-f]+)\+(\d+)", line)
        assert found, line + self.end()
        return int(found[1]), int(found[2], 16), int(found[3])

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.line()

    def finish(self, seconds: float = 20) -> tuple[str, str]:
        """What it writes until its end."""
        try:
            return self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs: {where(self.pid)}") from None

    def end(self) -> str:
        self.process.kill()
        return self.process.communicate()[1]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for pid in [*descendants(self.pid), self.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.communicate()


def tasks(pid: int) -> list[Path]:
    try:
        return sorted(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def where(pid: int) -> str:
    """In what a program's threads are, for a failure's sake."""
    said = []
    for task in tasks(pid):
        with contextlib.suppress(OSError):
            said.append(f"{(task / 'comm').read_text().strip()}: {(task / 'stack').read_text()}")
    return "\n".join(said)


def descendants(pid: int) -> list[int]:
    found = []
    for task in tasks(pid):
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found + [one for child in found for one in descendants(child)]


# ---- devices that never rest

Target = tuple[int, int, int]  # pid, address, length


def anonymous(pid: int) -> Iterator[Target]:
    """What of a program and of its children devices can have."""
    for one in [pid, *descendants(pid)]:
        try:
            maps = Path(f"/proc/{one}/maps").read_text().splitlines()
        except OSError:
            continue
        for line in maps:
            field = line.split()
            if field[1][3] != "p" or field[4] != "0" or field[1][0] != "r":
                continue
            if len(field) > 5 and field[5] not in ("[heap]", "[stack]"):
                continue
            low, high = (int(end, 16) for end in field[0].split("-"))
            yield one, low, high - low


class Driver(threading.Thread):
    """Has a device migrate what `targets` gives, in pieces of all sizes, over and over."""

    def __init__(
        self, mount: Mount, device: int, targets: Callable[[], Iterable[Target]], piece: int
    ) -> None:
        super().__init__()
        self.device, self.targets, self.piece = device, targets, piece
        self.over = threading.Event()
        self.done = 0
        self.refused: Counter[str] = Counter()
        self.fd = os.open(mount.path / f"devices/dev{device}/submit", os.O_RDWR)

    def run(self) -> None:
        chance = random.Random(self.device)
        while not self.over.is_set():
            for pid, at, left in self.targets():
                while left > 0 and not self.over.is_set():
                    length = min(left, chance.choice((1, 3, 16, 64, self.piece)) * PAGE)
                    self.submit(f"migrate {pid}@{at:#x}+{length} to dev{self.device}")
                    at += length
                    left -= length
            time.sleep(0)

    def submit(self, line: str) -> None:
        try:
            os.write(self.fd, line.encode() + b"\n")
            self.done += 1
        except OSError as error:
            self.refused[errno.errorcode[error.errno or 0]] += 1


@contextlib.contextmanager
def driven(
    mount: Mount, targets: Callable[[], Iterable[Target]], piece: int = 256
) -> Iterator[list[Driver]]:
    drivers = [Driver(mount, device, targets, piece) for device in (0, 1)]
    try:
        for driver in drivers:
            driver.start()
        yield drivers
    finally:
        for driver in drivers:
            driver.over.set()
        for driver in drivers:
            driver.join(SOME_S)
            assert not driver.is_alive(), "a device waits for ever"
            os.close(driver.fd)


def settled(mount: Mount) -> None:
    """Nothing is left of any program."""
    assert wait_until(lambda: not os.listdir(mount.path / "state")), os.listdir(
        mount.path / "state"
    )
    for device in (0, 1):
        used = mount.path / f"devices/dev{device}/vram/used"
        assert wait_until(lambda used=used: used.read_text() == "0\n"), used.read_text()
    assert mount.audit() == "ok"
    assert mount.disagreements() == []


def moved(mount: Mount) -> tuple[int, int]:
    stats = mount.values("stats")
    return stats["host_pages_out"], stats["host_pages_in"]


def stressed(mount: Mount, commands: list[list[str | Path]], **options: object) -> None:
    """Run programs that check themselves while both devices pull at the memory of all."""
    before = moved(mount)
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Program(mount, *one, **options)) for one in commands]
        places = [program.where() for program in programs]

        def targets() -> Iterator[Target]:
            for program, (_, at, length) in zip(programs, places, strict=True):
                family = [program.pid, *descendants(program.pid)]
                yield from ((pid, at, length) for pid in family)
                if {"stack", "brk"} & set(map(str, program.command)):
                    yield from anonymous(program.pid)

        with driven(mount, targets):
            said = [(one.command, *one.finish(), one.process.returncode) for one in programs]
        assert said == [(one.command, "ok\n", "", 0) for one in programs]
    after = moved(mount)
    assert after[0] > before[0] + 50 * len(commands)
    assert after[1] > before[1] + 50 * len(commands)
    settled(mount)


# ---- what they do to their memory

MS = "1600"


@pytest.mark.parametrize("modes", ["again", "chain mprotect", "dontneed free", "mremap"])
def test_mappings_change_while_devices_take_them(
    machine: Mount, binaries: Path, modes: str
) -> None:
    stressed(machine, [[binaries / "mappings", mode, MS] for mode in modes.split()])


@pytest.mark.parametrize("modes", ["fork", "raw", "restless spawn"])
def test_families_have_their_data_as_of_the_fork(
    machine: Mount, binaries: Path, modes: str
) -> None:
    stressed(machine, [[binaries / "families", mode, MS] for mode in modes.split()])


@pytest.mark.parametrize("modes", ["files futexes others", "direct pipes", "signals stack brk"])
def test_the_kernel_uses_memory_that_devices_have(
    machine: Mount, binaries: Path, tmp_path: Path, modes: str
) -> None:
    environment = {**os.environ, "SCRATCH_FILE": str(tmp_path / "scratch")}
    commands = [[binaries / "calls", mode, MS] for mode in modes.split()]
    stressed(machine, commands, env=environment)


# ---- one program and its devices

HELD = 1 << 20


def hold(mount: Mount, binaries: Path, **options: object) -> tuple[Program, str]:
    """A program with memory, and how a device calls that."""
    program = Program(mount, binaries / "hold", str(HELD), **options)
    pid, at, length = program.where()
    return program, f"{pid}@{at:#x}+{length}"


def vram_used(mount: Mount, device: int) -> int:
    return int((mount.path / f"devices/dev{device}/vram/used").read_text())


def test_a_program_and_a_device_work_on_the_same_bytes(machine: Mount, binaries: Path) -> None:
    before = moved(machine)
    program, memory = hold(machine, binaries)
    with program:
        start = int(memory.split("@")[1].split("+")[0], 16)
        assert os.listdir(machine.path / "state")
        machine.submit(0, f"migrate {memory} to dev0")
        assert vram_used(machine, 0) == HELD
        machine.submit(0, f"write {program.pid}@{start + PAGE + 1:#x} 2a2b")
        machine.submit(1, f"fill {program.pid}@{start + 8 * PAGE:#x}+{PAGE} 77")
        assert machine.submit(0, f"read {program.pid}@{start + PAGE + 1:#x}+2") == "2a2b"
        assert program.ask(f"byte {PAGE + 1}") == "42"
        assert program.ask(f"byte {8 * PAGE + 99}") == "77"
        assert program.ask("stamp 9") == "stamped"
        assert program.ask("check 9") == "right"
        sums = {machine.submit(device, f"checksum {memory}") for device in (0, 1)}
        assert len(sums) == 1
        machine.submit(
            0, f"copy {program.pid}@{start:#x}+65536 to {program.pid}@{start + 65536:#x}"
        )
        half = f"{program.pid}@{start:#x}+65536", f"{program.pid}@{start + 65536:#x}+65536"
        machine.submit(1, f"compare {half[0]} with {half[1]}")
        assert program.ask("byte 65536") == program.ask("byte 0")
        after = moved(machine)
        assert after[0] - before[0] >= HELD // PAGE
        assert after[1] - before[1] >= HELD // PAGE
        assert "migrat" in (machine.path / "trace").read_text()
        program.tell("quit")
        out, err = program.finish()
        assert (out, err, program.process.returncode) == ("", "", 0)
    settled(machine)


def test_a_program_may_go_on_without_its_main_thread(machine: Mount, binaries: Path) -> None:
    with Program(machine, binaries / "leader") as program:
        pid, at, length = program.where()
        machine.submit(0, f"migrate {pid}@{at:#x}+{length} to dev0")
        assert vram_used(machine, 0) == length
        machine.submit(1, f"checksum {pid}@{at:#x}+{length // 2}")
        assert program.ask("go") == "ok"
    settled(machine)


def test_a_wrong_address_takes_nothing_from_a_program(machine: Mount, binaries: Path) -> None:
    """16 TiB away it would be the same to the devices."""
    program, memory = hold(machine, binaries)
    with program:
        at = int(memory.split("@")[1].split("+")[0], 16)
        for wrong in (at - (1 << 44), at % (1 << 44)):
            line = f"read {program.pid}@{wrong:#x}+8"
            fails(errno.EFAULT, functools.partial(machine.submit, 0, line))
        assert len(machine.submit(0, f"read {program.pid}@{at:#x}+8")) == 16


def test_only_its_user_sees_where_a_program_has_memory(machine: Mount, binaries: Path) -> None:
    program, _ = hold(machine, binaries)
    with program:
        status = (machine.path / f"state/@{program.pid}").stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o500, os.geteuid())


@pytest.mark.parametrize("how", ["pin", "lock"])
def test_pages_that_can_not_go_stay_and_the_others_go(
    machine: Mount, binaries: Path, how: str
) -> None:
    program, memory = hold(machine, binaries)
    with program:
        if program.ask(f"{how} 64 4") != "done":
            pytest.skip(f"this kernel does not {how} here")
        for _ in range(20):  # as often as there are slots for requests, and more
            machine.submit(0, f"migrate {memory} to dev0")
            assert vram_used(machine, 0) == HELD - 4 * PAGE
            machine.submit(0, f"migrate {memory} to host")
        machine.submit(0, f"migrate {memory} to dev0")
        assert program.ask("check 1") == "right"
    settled(machine)


# ---- programs that know nothing of it

NUMPY = """
import numpy
rng = numpy.random.default_rng(1)
total = 0.0
for _ in range(25):
    a = rng.random((300, 500))
    b = rng.random((500, 200))
    total += float((a @ b).sum()) + float(numpy.sort(a, axis=None)[::97].sum())
print(repr(total))
"""
SQL = """
create table t(a integer primary key, b text, c real);
with recursive n(i) as (select 1 union all select i+1 from n where i<40000)
  insert into t select i, printf('%x-%d', i*7919, i%97), i*0.5 from n;
create index tb on t(b);
select count(*), sum(c), max(b) from t;
delete from t where a % 3 = 0;
select b, count(*) from t group by substr(b,1,2) order by 2 desc, 1 limit 20;
"""
SHELL = "y=; for i in $(seq 25); do x=$(echo $i | sort | tr 0-9 a-j); y=$y$x; done; echo $y"


@pytest.mark.parametrize("name", ["structures", "numpy", "sqlite3", "sort", "crowd", "shell"])
def test_programs_that_know_nothing_say_the_same(
    machine: Mount, binaries: Path, tmp_path: Path, name: str
) -> None:
    if name == "sqlite3" and not shutil.which("sqlite3"):
        pytest.skip("sqlite3 is not installed: scripts/setup --test installs it")
    lines = tmp_path / "lines"
    chance = random.Random(3)
    lines.write_text("".join(f"{chance.random()}\n" for _ in range(120_000)))
    (tmp_path / "sql").write_text(SQL)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "LC_ALL": "C"}
    command = {
        "structures": [binaries / "structures", "6"],
        "numpy": [sys.executable, "-c", NUMPY],
        "sqlite3": ["sqlite3", "-init", tmp_path / "sql", ":memory:", "select 1"],
        "sort": ["sort", "-S", "40M", lines],
        "crowd": [binaries / "crowd", "1500"],
        "shell": ["bash", "-c", SHELL],
    }[name]
    alone = subprocess.run(
        command, capture_output=True, text=True, timeout=20, check=True, env=environment
    )
    before = moved(machine)
    for _ in range(5):
        with Program(machine, *command, env=environment) as program:
            with driven(machine, lambda program=program: anonymous(program.pid)):
                out, err = program.finish(25)
            assert out == alone.stdout
            assert (err, program.process.returncode) == (alone.stderr, 0)
        after = moved(machine)
        if after[0] > before[0]:
            break  # else it ended before a device came to it
    assert after[0] > before[0]
    assert after[1] > before[1]
    settled(machine)


# ---- bad moments


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_programs_that_are_killed_leave_nothing(machine: Mount, binaries: Path) -> None:
    before = descriptors(machine.pid)
    for mode in ("again", "mprotect", "mremap", "dontneed"):
        with Program(machine, binaries / "mappings", mode, "9000") as program:
            target = program.where()
            with driven(machine, lambda target=target: [target]):
                time.sleep(0.25)
                program.process.kill()
                time.sleep(0.05)
        settled(machine)
    with Program(machine, binaries / "families", "fork", "9000") as program:
        target = program.where()
        with driven(machine, lambda: [target]):
            time.sleep(0.25)
            for pid in [program.pid, *descendants(program.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    settled(machine)
    assert wait_until(lambda: descriptors(machine.pid) == before)


def test_a_stopped_program_makes_no_device_wait_for_long(machine: Mount, binaries: Path) -> None:
    program, memory = hold(machine, binaries)
    with program:
        machine.submit(0, f"migrate {memory} to dev0")
        assert program.ask("byte 5") == "0"
        assert program.ask("check 1") == "right"
        os.kill(program.pid, signal.SIGSTOP)
        began = time.monotonic()
        fails(errno.EBUSY, lambda: machine.submit(0, f"migrate {memory} to dev0"))
        fails(errno.EBUSY, lambda: machine.submit(1, f"read {memory.split('+')[0]}+8"))
        assert time.monotonic() - began < 5
        os.kill(program.pid, signal.SIGCONT)
        machine.submit(0, f"migrate {memory} to dev0")
        assert vram_used(machine, 0) == HELD
        assert program.ask("check 1") == "right"
    settled(machine)


def test_a_program_may_be_stopped_at_any_moment(machine: Mount, binaries: Path) -> None:
    with Program(machine, binaries / "mappings", "again", "3000") as program:
        target = program.where()
        with driven(machine, lambda: [target]):
            for _ in range(40):
                os.kill(program.pid, signal.SIGSTOP)
                time.sleep(0.01)
                os.kill(program.pid, signal.SIGCONT)
                time.sleep(0.03)
            out, err = program.finish()
        assert (out, err) == ("ok\n", "")
    settled(machine)


@pytest.mark.parametrize("how", ["umount", "SIGTERM"])
def test_all_pages_come_home_before_the_mount_ends(
    mount_factory: MountFactory, binaries: Path, how: str
) -> None:
    machine = mount_factory(vram="32M", devices=2, host="64M")
    program, memory = hold(machine, binaries)
    with program:
        machine.submit(0, f"migrate {memory} to dev0")
        machine.submit(1, f"migrate {memory.split('+')[0]}+{HELD // 2} to dev1")
        daemon = machine.pid
        if how == "umount":
            subprocess.run([*HMMFS, "umount", str(machine.path)], check=True, timeout=20)
        else:
            os.kill(daemon, signal.SIGTERM)
        assert wait_until(lambda: ended(daemon))
        assert program.ask("check 1") == "right"
        assert program.ask("fork 1") == "child 0"
        assert program.ask("stamp 4") == "stamped"
        program.tell("quit")
        assert program.finish() == ("", "")


def test_a_killed_daemon_is_told_by_sigbus_and_never_by_zeros(
    mount_factory: MountFactory, binaries: Path
) -> None:
    machine = mount_factory(vram="32M", devices=2, host="64M")
    program, memory = hold(machine, binaries)
    with program:
        machine.submit(0, f"migrate {memory.split('+')[0]}+{HELD // 2} to dev0")
        daemon = machine.pid
        os.kill(daemon, signal.SIGKILL)
        assert wait_until(lambda: ended(daemon))
        pages = HELD // PAGE
        assert program.ask("probe 1") == f"right {pages // 2} bus {pages // 2} wrong 0"
        program.tell("quit")
        out, err = program.finish()
        assert (out, program.process.returncode) == ("", 0)
        assert err.count("\n") == 1
        assert "SIGBUS" in err
    subprocess.run([*HMMFS, "umount", str(machine.path)], check=False, timeout=20)


def test_a_daemon_that_is_killed_at_work_loses_no_byte_in_silence(
    mount_factory: MountFactory, binaries: Path
) -> None:
    machine = mount_factory(vram="32M", devices=2, host="64M")
    program, memory = hold(machine, binaries)
    with program:
        fd = os.open(machine.path / "devices/dev0/submit", os.O_RDWR)

        def work() -> None:
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, f"migrate {memory} to dev0\n".encode())
                    os.write(fd, f"migrate {memory} to host\n".encode())

        worker = threading.Thread(target=work)
        worker.start()
        time.sleep(0.2)
        daemon = machine.pid
        os.kill(daemon, signal.SIGKILL)
        worker.join(SOME_S)
        assert not worker.is_alive()
        with contextlib.suppress(OSError):
            os.close(fd)
        said = program.ask("probe 1")
        assert re.fullmatch(r"right \d+ bus \d+ wrong 0", said)
    subprocess.run([*HMMFS, "umount", str(machine.path)], check=False, timeout=20)


# ---- what is refused


REFUSED = [
    ("migrate {pid}@0x10000000000+4096 to dev0", errno.EFAULT),
    ("migrate {pid}@{at}+4096 to dev9", errno.ENODEV),
    ("migrate {pid}@{at} to dev0", errno.EINVAL),
    ("migrate {pid}@{at}+0 to dev0", errno.EINVAL),
    ("migrate {pid}@{at}+-4096 to dev0", errno.ERANGE),
    ("migrate {pid}@-4096+4096 to dev0", errno.ERANGE),
    ("migrate {pid}@0xfffffffffffff000+8192 to dev0", errno.EFAULT),
    ("migrate {pid}@0xffffffff81000000+4096 to dev0", errno.EFAULT),
    ("migrate {pid}@0x{f17}+4096 to dev0", errno.EINVAL),
    ("migrate 1@0x1000+4096 to dev0", errno.ESRCH),
    ("migrate 0@0x1000+4096 to dev0", errno.ESRCH),
    ("migrate 999999999@0x1000+4096 to dev0", errno.ESRCH),
    ("migrate {me}@0x1000+4096 to dev0", errno.ESRCH),
    ("read {me}@0x1000+8", errno.ESRCH),
    ("read {pid}@0+8", errno.EFAULT),
    ("read {pid}@0xffffffff81000000+8", errno.EFAULT),
    ("read {pid}@{end}+8192", errno.EFAULT),
    ("read {pid}@0xfffffffffffffff8+16", errno.EFAULT),
    ("read {pid}@{at}+70000", errno.E2BIG),
    ("write {pid}@0 00", errno.EFAULT),
    ("write {pid}@{at} 0", errno.EINVAL),
    ("fill {pid}@0+4096 1", errno.EFAULT),
    ("fill {pid}@{at}+4096 256", errno.EINVAL),
    ("checksum {pid}@0x10000+4096", errno.EFAULT),
    ("copy {pid}@0+4096 to {pid}@{at}", errno.EFAULT),
    ("copy {pid}@{at}+4096 to {pid}@0", errno.EFAULT),
    ("compare {pid}@{at}+4096 with {pid}@0+4096", errno.EFAULT),
    ("read {pid}@{at}+8 8", errno.EINVAL),
    ("read {pid}@@{at}+8", errno.EINVAL),
]


def test_what_is_no_memory_of_a_program_is_refused_with_a_sentence(
    machine: Mount, binaries: Path
) -> None:
    program, memory = hold(machine, binaries)
    with program:
        at = memory.split("@")[1].split("+")[0]
        end = f"{int(at, 16) + HELD + 64 * BLOCK:#x}"
        names = {"pid": program.pid, "at": at, "end": end, "me": os.getpid(), "f17": "f" * 17}
        wrong = []
        for form, expected in REFUSED:
            operation = form.format(**names)
            try:
                machine.submit(0, operation)
                number = 0
            except OSError as error:
                number = error.errno or 0
                said = (machine.path / "devices/dev0/last_error").read_text()
                assert said.rstrip().endswith((".", "`")), said
            if number != expected:
                wrong.append((operation, errno.errorcode.get(number, "ok")))
        assert not wrong
        assert program.ask("check 1") == "right"
    settled(machine)


# ---- the socket

MAGIC, VERSION, MIGRATES = 0x68656C6C6F6D6D68, 2, 1
HELLO = struct.Struct("<QIIQQQQ")
CONTROL_BYTES = 16384
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def connect(mount: Mount) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(SOME_S)
    peer.connect("\0" + (mount.path / "socket").read_text().strip())
    return peer


def greet(mount: Mount, hello: bytes, fds: list[int]) -> int:
    """What the daemon answers: 0, or an errno; ECONNRESET if nothing."""
    with connect(mount) as peer:
        socket.send_fds(peer, [hello], fds) if fds else peer.send(hello)
        answer = peer.recv(64)
        return -struct.unpack("<iI", answer)[0] if len(answer) == 8 else errno.ECONNRESET


def memory_file(size: int = CONTROL_BYTES, seals: int = SEALS) -> int:
    fd = os.memfd_create("control", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_hostile_clients_are_refused_and_leave_nothing(machine: Mount, binaries: Path) -> None:
    before = descriptors(machine.pid)

    def hello(version: int = VERSION, flags: int = 0, own: int = 0, size: int = 0) -> bytes:
        return HELLO.pack(MAGIC, version, flags, 0, own, size, own)

    with contextlib.ExitStack() as stack:

        def kept(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        pipe = [kept(fd) for fd in os.pipe()]
        good = kept(memory_file())
        small = kept(memory_file(64))
        unsealed = kept(memory_file(seals=fcntl.F_SEAL_GROW))
        own = {"own": 1 << 32, "size": 64 * BLOCK}
        assert greet(machine, b"x", [good]) == errno.EPROTO
        assert greet(machine, b"x" * 4096, [good]) == errno.EPROTO
        assert greet(machine, bytes(HELLO.size), [good]) == errno.EPROTO
        assert greet(machine, hello(version=7), [good]) == errno.EPROTO
        assert greet(machine, hello(), []) == errno.EPROTO
        assert greet(machine, hello(flags=MIGRATES, **own), [good]) == errno.EPROTO
        assert greet(machine, hello(flags=MIGRATES, **own), [good, pipe[0]]) == errno.EPROTO
        assert greet(machine, hello(), [good, good, good, good]) == errno.EPROTO
        assert greet(machine, hello(), [good] * 60) == errno.EPROTO
        assert greet(machine, hello(own=(1 << 64) - 1, size=4096), [good]) == errno.EPROTO
        for bad in (small, unsealed, pipe[0], kept(os.open("/dev/null", os.O_RDWR))):
            assert greet(machine, hello(), [bad]) == errno.EPROTO
        silent = [stack.enter_context(connect(machine)) for _ in range(100)]
        for point in range(3):
            with connect(machine) as peer:
                if point:
                    socket.send_fds(peer, [hello()], [good])
                if point == 2:
                    peer.recv(64)
        program, memory = hold(machine, binaries)  # all that is no hindrance
        with program:
            machine.submit(0, f"migrate {memory} to dev0")
            assert program.ask("check 1") == "right"
        for peer in silent:
            peer.close()
    settled(machine)
    assert wait_until(lambda: descriptors(machine.pid) == before)
    assert "Traceback" not in machine.log.read_text()


def test_a_program_that_scribbles_over_its_requests_harms_only_itself(
    machine: Mount, binaries: Path
) -> None:
    before = descriptors(machine.pid)
    program, memory = hold(machine, binaries)
    other, others = hold(machine, binaries)
    with program, other:
        maps = Path(f"/proc/{program.pid}/maps").read_text()
        found = re.search(r"([0-9a-f]+)-([0-9a-f]+) rw-s .*memfd:hmmfs-run", maps)
        assert found
        start, end = (int(edge, 16) for edge in found.groups())
        over = threading.Event()

        def scribble() -> None:
            chance = random.Random(5)
            with open(f"/proc/{program.pid}/mem", "r+b", buffering=0) as file:
                while not over.is_set():
                    with contextlib.suppress(OSError):
                        file.seek(start + chance.randrange((end - start) // 4) * 4)
                        file.write(chance.choice((0, 1, 2, 3, 1 << 31)).to_bytes(4, "little"))

        scribbler = threading.Thread(target=scribble)
        scribbler.start()
        try:
            end_at = time.monotonic() + 1.5
            fd = os.open(machine.path / "devices/dev0/submit", os.O_RDWR)
            device = threading.Thread(target=hammer, args=(fd, memory, end_at))
            device.start()
            while time.monotonic() < end_at:
                machine.submit(1, f"migrate {others} to dev1")
                assert other.ask("check 1") == "right"
            program.process.kill()
            device.join(SOME_S)
            assert not device.is_alive()
            os.close(fd)
        finally:
            over.set()
            scribbler.join()
        assert other.ask("check 1") == "right"
    settled(machine)
    assert wait_until(lambda: descriptors(machine.pid) == before)


def hammer(fd: int, memory: str, until: float) -> None:
    while time.monotonic() < until:
        for place in ("dev0", "host"):
            with contextlib.suppress(OSError):
                os.write(fd, f"migrate {memory} to {place}\n".encode())


def test_a_program_without_its_mount_runs_on_with_one_sentence(binaries: Path) -> None:
    environment = {**os.environ, **preloading(LIBRARY, {}), "HMMFS_SOCKET": "hmmfs-nobody"}
    done = subprocess.run(
        [binaries / "structures", "1"], capture_output=True, text=True, env=environment, timeout=20
    )
    alone = subprocess.run([binaries / "structures", "1"], capture_output=True, text=True)
    assert done.stdout == alone.stdout
    assert done.stderr.count("\n") == 1
    assert "runs on without devices" in done.stderr


def test_an_unprivileged_program_gives_access_only(
    mount_factory: MountFactory, binaries: Path
) -> None:
    machine = mount_factory(vram="32M", devices=2, host="64M", allow_other="on")
    let_others_reach(binaries)
    library = shutil.copy(LIBRARY, binaries)
    name = (machine.path / "socket").read_text().strip()
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    settings = (f"LD_PRELOAD={library}", f"HMMFS_SOCKET={name}")
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            [*nobody, "env", *settings, binaries / "hold"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(process.communicate)
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        memory = process.stdout.readline().strip()
        assert "not migrate it" in process.stderr.readline()
        start = memory.split("+")[0]
        machine.submit(0, f"write {start} 0102030405060708")
        assert machine.submit(1, f"read {start}+8") == "0102030405060708"
        machine.submit(0, f"fill {start}+8192 9")
        assert machine.submit(0, f"checksum {start}+8192") == f"{zlib.crc32(bytes([9]) * 8192):08x}"
        machine.submit(0, f"migrate {memory} to dev0")
        assert vram_used(machine, 0) == 0
    settled(machine)
