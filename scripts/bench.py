"""What scripts/bench runs: hmmfs against tmpfs, plain pyfuse3 and libfuse's low-level API in C.

Every round measures every system once, so that a machine whose speed drifts does it to all alike;
a row gives the median of the rounds with the least and the most. No time is asserted here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import policies
from rich.console import Console
from rich.table import Table

import hmmfs as hmmfs_api
from hmmfs import kernels

PEERS = Path(__file__).resolve().parent / "peers"
MIB = 1 << 20
PAGES = 8192  # of the measured file: 32 MiB
Values = dict[str, list[float]]


def build(directory: Path) -> None:
    fuse = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True
    ).stdout.split()
    flags = ["gcc", "-O2", "-D_GNU_SOURCE", "-pthread"]
    for name, libraries in (("client", []), ("uffd", []), ("home", []), ("lowlevel", fuse)):
        command = [*flags, "-o", str(directory / name), str(PEERS / f"{name}.c"), *libraries]
        subprocess.run(command, check=True)


@dataclass
class System:
    """One mounted file system: its measured file, and the processes that serve it."""

    name: str
    file: Path
    pid: int = 0
    top: Path = field(default_factory=Path)

    def pin(self, cpus: set[int]) -> None:
        """All threads of the server; later ones inherit."""
        if self.pid:
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), cpus)

    def submit(self, operation: str) -> None:
        fd = os.open(self.top / "devices/dev0/submit", os.O_RDWR)
        try:
            os.write(fd, operation.encode() + b"\n")
        finally:
            os.close(fd)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() > end:
            raise SystemExit(f"bench: {path} did not appear")
        time.sleep(0.02)


@contextlib.contextmanager
def served(name: str, command: list[str], top: Path) -> Iterator[System]:
    top.mkdir()
    with subprocess.Popen([*command, str(top), *(["m"] if name == "C multi" else ["s"])]) as child:
        try:
            wait_for(top / "a")
            yield System(name, top / "a", child.pid, top)
        finally:
            subprocess.run(["fusermount3", "-u", "-z", str(top)], check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            if child.poll() is None:
                child.kill()


@contextlib.contextmanager
def hmmfs(name: str, top: Path, options: str) -> Iterator[System]:
    top.mkdir()
    command = [sys.executable, "-m", "hmmfs"]
    options = f"vram=64M,host=1G,log=/dev/null,allow_other,{options}"
    subprocess.run([*command, "mount", str(top), "-o", options], check=True)
    try:
        pid = int((top / "stats").read_text().split()[1])
        (top / "regions/a").touch()
        yield System(name, top / "regions/a", pid, top)
    finally:
        subprocess.run([*command, "umount", str(top)], check=True)


class Bench:
    def __init__(self, work: Path, rounds: int, only: str) -> None:
        self.client, self.rounds = work / "client", rounds
        self.only = re.compile(only)
        self.cpus = os.sched_getaffinity(0)
        self.rows: list[tuple[str, str, str, Values]] = []

    def run(self, *words: object) -> float:
        command = [str(self.client), *map(str, words)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def measure(
        self, row: str, unit: str, systems: list[System], one: Callable[[System], float]
    ) -> None:
        if not self.only.search(row):
            return
        for place, cpus in (("free", self.cpus), ("one CPU", {min(self.cpus)})):
            values: Values = {system.name: [] for system in systems}
            for number in range(self.rounds + 1):
                for system in systems:
                    system.pin(cpus)
                    os.sched_setaffinity(0, cpus)
                    try:
                        value = one(system)
                    finally:
                        os.sched_setaffinity(0, self.cpus)
                    if number:  # the first round warms up
                        values[system.name].append(value)
            self.rows.append((row, unit, place, values))

    def show(self) -> None:
        table = Table(title=f"medians of {self.rounds} [least..most]")
        for heading in ("what", "placement", "system", "measured", "hmmfs / this"):
            table.add_column(heading)
        for row, unit, place, values in self.rows:
            ours = statistics.median(next(iter(values.values())))
            for name, all_ in values.items():
                middle = statistics.median(all_)
                shown = f"{middle:,.0f} {unit} [{min(all_):,.0f}..{max(all_):,.0f}]"
                table.add_row(row, place, name, shown, f"{ours / middle:.2f}")
            table.add_section()
        console = Console(width=120)
        console.print(table)
        cpus = len(os.sched_getaffinity(0))
        console.print(
            f"Linux {platform.release()}, {cpus} CPUs, Python {platform.python_version()}"
        )
        if self.only.search("4 KiB fault of a device"):
            console.print(
                "Beside a device's fault, not measured here: UMap (LLNL), Linux 6.18 on 2 CPUs, "
                "60 us free and 11.0 us on one CPU where the data fits, 69 and 12.0 us evicting."
            )


def from_vram(bench: Bench, system: System) -> float:
    system.submit("migrate a to dev0")
    return bench.run("fault", system.file, PAGES, 1, 0)


def both_ways(system: System) -> float:
    """MB/s of 2 MiB migrations to the device and back, without the making of kept copies."""
    begin = time.perf_counter()
    system.submit("migrate a to dev0")
    system.submit("migrate a to host")
    return 2 * PAGES * 4096 / 1e6 / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name has a match of this")
    parser.add_argument("--policies", action="store_true", help="count, instead, what policies do")
    arguments, rest = parser.parse_known_args()
    if arguments.policies:
        policies.main(rest)
        return
    if rest:
        parser.error(f"there is no {rest[0]}")
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hmmfs-bench-")))
        build(work)
        bench = Bench(work, arguments.rounds, arguments.only)
        enter = stack.enter_context
        ours = enter(hmmfs("hmmfs", work / "h", "prefetch=none,keep_clean=off"))
        asked = enter(
            hmmfs("hmmfs express=off", work / "x", "prefetch=none,keep_clean=off,express=off")
        )
        polling = enter(hmmfs("hmmfs poll_us=50", work / "p", "poll_us=50,prefetch=none"))
        single = enter(served("C single", [str(work / "lowlevel")], work / "s"))
        multi = enter(served("C multi", [str(work / "lowlevel")], work / "m"))
        plain = enter(
            served("plain pyfuse3", [sys.executable, str(PEERS / "plain_pyfuse3.py")], work / "y")
        )
        shm = Path("/dev/shm") / work.name
        stack.callback(shm.unlink)
        shm.touch()
        tmpfs = System("tmpfs", shm)
        everyone = [ours, asked, polling, single, multi, plain, tmpfs]
        for system in everyone:
            bench.run("write", system.file, PAGES)

        def cold(threads: int) -> Callable[[System], float]:
            return lambda system: bench.run("fault", system.file, PAGES, threads, 1)

        bench.measure(
            "4 KiB fault, host-owned", "ns", [ours, polling, single, multi, plain, tmpfs], cold(1)
        )
        coherent = enter(hmmfs("hmmfs type=coherent", work / "c", "type=coherent"))
        bench.run("write", coherent.file, PAGES)
        bench.measure("page fault, coherent memory", "ns", [coherent, tmpfs], cold(1))
        bench.measure("the same, 4 threads", "ns", [ours, single, multi, plain], cold(4))
        for what, row in (("resident", "resident pages"),):
            bench.measure(
                row, "ns/page", [ours, tmpfs], lambda s, w=what: bench.run(w, s.file, PAGES)
            )
        for what, row in (
            ("seqmmap", "sequential mmap, cold"),
            ("read", "1 MiB read(2), cold"),
            ("write", "1 MiB write(2)"),
        ):
            bench.measure(
                row,
                "MB/s",
                [ours, single, multi, plain],
                lambda s, w=what: bench.run(w, s.file, PAGES),
            )
        # From here on the host's pages are no longer in the order in which they were written.
        bench.measure(
            "4 KiB fault from VRAM", "ns", [ours, asked], lambda system: from_vram(bench, system)
        )
        bench.measure("… against a host-owned fault", "ns", [ours], cold(1))
        bench.measure(
            "1 MiB read(2), cold, after that",
            "MB/s",
            [ours, single],
            lambda s: bench.run("read", s.file, PAGES),
        )
        keeping = enter(hmmfs("hmmfs", work / "k", "prefetch=none"))
        on_devices(bench, work, keeping, dataclasses.replace(ours, name="hmmfs keep_clean=off"))
        copies(bench, enter(hmmfs("hmmfs", work / "r", "prefetch=none")))
        bare = System("bare loop", work)
        bench.measure(
            "migration, 2 MiB blocks",
            "MB/s",
            [ours, bare],
            lambda s: bench.run("bare", PAGES // 512) if s is bare else both_ways(s),
        )
        of_programs(bench, work, ours)
        for row, machines in (("evicting 2 MiB", VRAM_SIZES), ("evicting 4 KiB", VRAM_BLOCKS)):
            if bench.only.search(row):
                evictions(bench, row, machines)
        bench.show()
        memory(ours)


# ---- devices with a worker of their own

OWN = PEERS / "own_policy.py"

VRAM = 64 * MIB


def timed_touches(cpus: set[int], data: np.ndarray[Any, Any], order: np.ndarray[Any, Any]) -> float:
    """ns a touch, of the pages in that order."""
    os.sched_setaffinity(0, cpus)
    places = [int(page) * 4096 for page in order]
    begin = time.perf_counter()
    for place in places:
        data[place]
    return (time.perf_counter() - begin) / len(places) * 1e9


def touch_in_threads(
    cpus: set[int], data: np.ndarray[Any, Any], order: np.ndarray[Any, Any]
) -> None:
    """np.take lets go of the GIL, so the threads fault independently."""
    os.sched_setaffinity(0, cpus)
    parts = np.array_split(order.astype("i8") * 4096, 4)

    def touch(part: np.ndarray[Any, Any]) -> None:
        for few in np.array_split(part, 16):
            np.take(data, few)

    threads = [threading.Thread(target=touch, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def timed_axpy(cpus: set[int], *arrays: np.ndarray[Any, Any]) -> float:
    """ms of an axpy, once the processor's caches have settled; on ordinary arrays of n elements if
    just n is given. 32 MiB of scattered pages take some 7 passes for that, arrays that np.ones has
    just written take one: the pages are in DRAM at first."""
    os.sched_setaffinity(0, cpus)
    if len(arrays) == 1:
        arrays = (np.ones(int(arrays[0][0]), "f4"), np.ones(int(arrays[0][0]), "f4"))
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        kernels.axpy(2.0, *arrays)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[8:]) * 1e3


def on_devices(bench: Bench, work: Path, keeping: System, freeing: System) -> None:
    """keeping, freeing: mounts with prefetch=none. The raw handler keeps the page that it copies
    from, as hmmfs does unless keep_clean=off."""
    with hmmfs_api.mount(vram=VRAM, host="1G", log="/dev/null") as machine:
        ours, place = System("hmmfs", work), lambda: os.sched_getaffinity(0)
        pinned = System("", work, machine.stats()["pid"])
        n = VRAM // 4 // 4
        order = np.random.default_rng(1).permutation(PAGES)

        def fault(system: System) -> float:
            if system not in (keeping, freeing):
                command = [str(work / "uffd"), str(PAGES)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                return float(done.stdout)
            one_page = hmmfs_api.connect(system.top)
            region = one_page.region("a", PAGES * 4096)
            region.migrate("host")
            arguments = (place(), hmmfs_api.reads(region), order)
            return float(one_page.dev0.launch(timed_touches, *arguments).wait())

        def batches(system: System) -> float:
            """Faults of 4 threads that one read of the userfaultfd took."""
            one_page = hmmfs_api.connect(system.top)
            region = one_page.region("a", PAGES * 4096)
            region.migrate("host")
            before = one_page.dev0.stats()
            one_page.dev0.launch(touch_in_threads, place(), hmmfs_api.reads(region), order).wait()
            after = one_page.dev0.stats()
            taken = after["fault_batches"] - before["fault_batches"]
            return 100 * (after["faults"] - before["faults"]) / taken

        def resident(system: System) -> float:
            if system is not ours:
                return float(machine.dev0.launch(timed_axpy, place(), np.array([n])).wait())
            x, y = (machine.region(name, n, "float32") for name in ("x", "y"))
            arguments = (hmmfs_api.reads(x), hmmfs_api.updates(y))
            return float(machine.dev0.launch(timed_axpy, place(), *arguments).wait())

        def streaming(system: System) -> float:
            if system is not ours:
                return bench.run("stream", 4 * VRAM // 2 // (2 * MIB))
            pinned.pin(place())
            x, y = (machine.region(name, 2 * VRAM // 4, "float32") for name in ("bx", "by"))
            for region in (x, y):
                region.migrate("host")
            begin = time.perf_counter()
            machine.dev0.launch(kernels.axpy, 2.0, hmmfs_api.reads(x), hmmfs_api.updates(y)).wait()
            return 4 * VRAM / 1e6 / (time.perf_counter() - begin)

        for name in ("bx", "by"):
            with open(machine.path / "regions" / name, "wb") as file:
                for _ in range(2 * VRAM // MIB):
                    file.write(bytes(MIB))
        raw, plain, bare = (System(name, work) for name in ("raw uffd", "numpy", "bare loop"))
        bench.run("write", keeping.file, PAGES)
        bench.measure("4 KiB fault of a device", "ns", [keeping, freeing, raw], fault)
        # Policies that bring a page at a time, so that only the choosing differs.
        setting = keeping.top / "devices/dev0/policy/prefetch"

        def chosen(system: System) -> float:
            setting.write_text(system.name)
            try:
                return fault(keeping)
            finally:
                setting.write_text("none")

        def recorded(system: System) -> float:
            size = keeping.top / "trace_size"
            size.write_text("65536" if system.name == "traced" else "0")
            try:
                return fault(keeping)
            finally:
                size.write_text("65536")

        books = [System(text, work, keeping.pid) for text in ("traced", "trace_size 0")]
        bench.measure("the same, by trace", "ns", books, recorded)
        texts = ("density threshold=100", "none", "sequential count=1", f"{OWN}:Own")
        bench.measure(
            "the same, by policy", "ns", [System(text, work, keeping.pid) for text in texts], chosen
        )
        bench.measure("its faults a batch, 4 threads", "/ 100", [keeping], batches)
        bench.measure("axpy inside VRAM", "us", [ours, plain], lambda s: 1e3 * resident(s))
        bench.measure("axpy over 4 x VRAM", "MB/s", [ours, bare], streaming)


def copies(bench: Bench, system: System) -> None:
    """Copies of read-mostly pages beside moves of others. What the CPU has cached is recalled
    before it is moved, and before it is copied, too."""
    machine = hmmfs_api.connect(system.top)
    order = np.random.default_rng(1).permutation(PAGES)
    regions = {name: machine.region(name, PAGES * 4096) for name in ("copied", "moved")}
    for region in regions.values():
        bench.run("write", region.path, PAGES)

    def fault(one: System) -> float:
        how, _, is_cached = one.name.partition(", ")
        region = regions[how]
        region.advise("unset_read_mostly")  # ends the copies of the round before
        region.migrate("dev0")
        region.migrate("host")  # and so the CPU has none of it cached
        if how == "copied":
            region.advise("read_mostly")
        if is_cached:
            bench.run("read", region.path, PAGES)
        arguments = (os.sched_getaffinity(0), hmmfs_api.reads(region), order)
        return float(machine.dev0.launch(timed_touches, *arguments).wait())

    names = ("copied, cached", "copied", "moved, cached", "moved")
    systems = [System(name, system.file, system.pid) for name in names]
    bench.measure("4 KiB fault of a device, read-mostly", "ns", systems, fault)


# ---- programs' own memory


# By name: MiB of VRAM, options, and the pages that are used of each block.
VRAM_SIZES = {
    "VRAM 64 MiB": (64, "prefetch=block"),
    "1 GiB": (1024, "prefetch=block"),
    "4 GiB": (4096, "prefetch=block"),
}
VRAM_BLOCKS = {
    "of 512 blocks": (2, "prefetch=none"),
    "16 384": (64, "prefetch=none"),
    "131 072": (512, "prefetch=none"),
    "512, in Python": (2, f"prefetch=none,eviction={OWN}:Oldest"),
}
EVICTIONS = 64


def touch_first_pages(data: np.ndarray[Any, Any], first: int, count: int) -> None:
    """Of blocks from `first` on; behind the last comes the first again."""
    for block in range(first, first + count):
        data[block * 2 * MIB % len(data)] = 1


def evictions(bench: Bench, row: str, machines: dict[str, tuple[int, str]]) -> None:
    """A device's faults: each brings a block, or a page of it, and has the oldest leave.
    What there is to choose from differs."""
    with contextlib.ExitStack() as stack:
        systems, scans = [], {}
        for name, (vram, options) in machines.items():
            words = dict(word.split("=", 1) for word in options.split(","))
            sizes = {"vram": f"{vram}M", "host": f"{vram + 2048}M"}
            machine = stack.enter_context(hmmfs_api.mount(**sizes, log="/dev/null", **words))
            blocks = vram // 2 if words["prefetch"] == "block" else vram * 256
            region = machine.region("a", (blocks + 4 * EVICTIONS) * 2 * MIB)
            argument = hmmfs_api.updates(region)
            machine.dev0.launch(touch_first_pages, argument, 0, blocks).wait()
            assert machine.dev0.stats()["evicted_blocks"] == 0
            systems.append(System(name, Path(), machine.stats()["pid"]))
            # Round and round, one block after the other: none is there when its turn comes. Once
            # without a clock, or what was never used before would be measured with the rest.
            around = blocks + 4 * EVICTIONS
            machine.dev0.launch(touch_first_pages, argument, blocks, around).wait()
            scans[name] = (machine, argument, blocks, around)

        def evict(system: System) -> float:
            machine, argument, first, blocks = scans[system.name]
            begin = time.perf_counter()
            machine.dev0.launch(touch_first_pages, argument, first, EVICTIONS).wait()
            took = (time.perf_counter() - begin) / EVICTIONS
            scans[system.name] = (machine, argument, (first + EVICTIONS) % blocks, blocks)
            return took * 1e6

        bench.measure(row, "us", systems, evict)


class Program:
    """A program that fills memory of its own, and touches all of it whenever it is asked to."""

    def __init__(self, work: Path, system: System, cpus: set[int]) -> None:
        command = [sys.executable, "-m", "hmmfs", "run", str(system.top), "--"]
        self._child = subprocess.Popen(
            [*command, str(work / "home"), str(PAGES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        self.place = self._line()

    def _line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()

    def touch(self) -> float:
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        self._child.communicate()


def of_programs(bench: Bench, work: Path, ours: System) -> None:
    """ours: a mount with prefetch=none."""
    raw, bare = System("raw uffd", work), System("by itself", work)

    def touched(system: System, *, moved: bool) -> float:
        if system is raw:
            command = [str(work / "uffd"), str(PAGES), "own"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            return float(done.stdout)
        program = Program(work, ours, os.sched_getaffinity(0))
        try:
            if moved:
                ours.submit(f"migrate {program.place} to dev0")
            return program.touch()
        finally:
            program.end()

    def new_pages(system: System) -> float:
        command = [str(work / "home"), str(PAGES), "new"]
        if system is ours:
            command = [sys.executable, "-m", "hmmfs", "run", str(ours.top), "--", *command]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout)

    def start(system: System) -> float:
        command = ["true"]
        if system is ours:
            command = [sys.executable, "-m", "hmmfs", "run", str(ours.top), "--", *command]
        begin = time.perf_counter()
        subprocess.run(command, check=True)
        return (time.perf_counter() - begin) * 1e6

    bench.measure(
        "4 KiB fault home of a program", "ns", [ours, raw], lambda s: touched(s, moved=True)
    )
    bench.measure("first touch of a program's page", "ns", [ours, bare], new_pages)
    bench.measure("start of a program", "us", [ours, bare], start)


def memory(system: System) -> None:
    def resident() -> int:
        lines = Path(f"/proc/{system.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    stats = dict(line.split() for line in (system.top / "stats").read_text().splitlines())
    per_page = int(stats["directory_bytes"]) / int(stats["pages_touched"])
    before = resident()
    with open(system.file.with_name("big"), "wb") as file:
        file.truncate(1 << 40)
    print(f"directory: {per_page:.2f} bytes a touched page (target: at most 4)")
    print(
        f"opening a 1 TiB region: {resident() - before} KiB of resident memory (target: < 10 MiB)"
    )


main()
