"""Mutants: does a test fail if the code is wrong in one place?

    scripts/mutants [--seed N] [--count N] [--only PREFIX] [--jobs N] [--state FILE]

`count` changes are drawn by `seed` from all that can be made in native/ and hmmfs/, a file being as
likely as it is long. Each is planted in a clone of what is committed, and the tests of its layer
run there, the quick ones first, until one fails. `state` has a line of JSON for each that is done;
it may be ended at any time, and goes on there. At the end: how many were found, how many of them
first by a test of `scripts/test --quick`, and by file who survived.

A mutant is "found" if a test fails or takes too long, "stillborn" if it can't be compiled or
imported, which says nothing of the tests, else it has "survived". What finds one is run once more
without it: a test that fails then, too, is left out from then on. Needs root, as mounts do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

import psutil
from mutants_of import Site, changes_code, mutant, sites

from hmmfs.common import linux, mountinfo
from hmmfs.daemon.watchdog import abort

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 300  # of one step; the slowest takes a third of it
COMPILERS = Path("/usr/lib/ccache")  # where ccache is installed: all but a mutant is compiled once
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--no-browser", "-n", "0")
NO_TESTS = 5  # pytest's status where none is left
# Of the layers by the beginning of a file's name, the longest that fits: what is run, in order.
# Not its test of mistakes: their text fits no mutant of the same line, which says nothing.
PROTOCOL = "tests/native/test_interleavings.py::test_scene"
ALONE = " ".join(
    f"tests/native/test_stress.py::test_{what}"
    for what in (
        *("refusals", "reservations", "the_audit_finds_each_kind_of_damage", "order_of_writes"),
        *("mappings", "nothing_is_lost_without_memory", "opens_while_copies_end"),
        "thrashing_at_its_bounds",
    )
)
CONFORMANCE = " ".join(
    f"tests/native/test_conformance.py::test_{what}" for what in ("scenes", "storm", "worker")
)
FILES = "tests/mount/test_files.py tests/mount/test_ranges.py tests/mount/test_kinds.py"
MOVING = "tests/mount/test_fsx.py tests/mount/test_recall.py tests/mount/test_launch.py"
PROGRAMS = "tests/mount/test_programs.py tests/mount/test_hmm.py tests/mount/test_dmirror.py"
PROGRAMS_END = "tests/mount/test_program_endings.py tests/mount/test_home.py"
SEEN = "tests/mount/test_every_number.py tests/mount/test_control_files.py tests/mount/test_smi.py"
SEEN += " tests/mount/test_metrics.py"
LAUNCHES = "tests/mount/test_launch.py tests/mount/test_advice.py tests/mount/test_errors_agree.py"
PLACES = "tests/mount/test_placement.py tests/mount/test_capacity.py"
ENDINGS = "tests/mount/test_endings.py tests/mount/test_ordinary_user.py"
RULES = "tests/unit/test_policy_rules.py tests/mount/test_policies.py tests/mount/test_advice.py"
TWINS = "tests/unit/test_eviction_twins.py"
EVICTING = "tests/native/test_stress.py::test_device_faults_that_evict"
# But for what takes long and is about no code of ours.
UNIT = "tests/unit --ignore=tests/unit/test_packaging.py"
# What stands in two layers: the state, and the jobs that make it.
COPIES = [PROTOCOL, ALONE, "tests/mount/test_read_mostly.py", FILES, CONFORMANCE]
LABELS = [ALONE, FILES, PLACES, SEEN]
SHARED = [ALONE, FILES, PLACES, "tests/mount/test_numa.py tests/mount/test_times.py"]
LAYERS = {
    "native/": [PROTOCOL, ALONE, FILES, MOVING, CONFORMANCE, RULES, SEEN],
    "native/preload/": ["tests/native/test_preload.py", PROGRAMS],
    "native/preload/tools": ["tests/mount/test_launchers.py"],
    "native/preload/dump": ["tests/mount/test_dumps.py"],
    "native/program/": [PROTOCOL, ALONE, PROGRAMS, PROGRAMS_END],
    "native/books/trace": ["tests/mount/test_tracing.py", ALONE, SEEN],
    "native/books/": [PROTOCOL, ALONE, SEEN],
    "native/rules/": [RULES, ALONE],
    "native/rules/placement": [RULES, PLACES, LAUNCHES, ALONE],
    "native/rules/candidates": [PROTOCOL, RULES, PLACES, ALONE],
    "native/rules/evict": [TWINS, PLACES, RULES, ALONE],
    "native/rules/future": [TWINS, RULES],
    "native/base/ranking": [TWINS, RULES],
    "native/transaction/evict_for": [PROTOCOL, RULES, PLACES, EVICTING, MOVING],
    "native/rules/prefetch": ["tests/unit/test_policy_rules.py", RULES, ALONE],
    "native/base/fuse": [PROTOCOL, ALONE, FILES, CONFORMANCE],
    "native/gate/gate": [
        "tests/native/test_gate_parser.py",
        ALONE,
        FILES,
        "tests/mount/test_names.py",
        ENDINGS,
    ],
    "native/base/times": [ALONE, "tests/mount/test_times.py"],
    "native/gate/set_times": [ALONE, "tests/mount/test_times.py"],
    "native/directory/copies": COPIES,
    "native/transaction/duplicate": COPIES,
    "native/directory/labels": LABELS,
    "native/transaction/relabel": LABELS,
    "native/directory/shared": SHARED,
    "native/transaction/shared": SHARED,
    "native/gate/shared": [ALONE, FILES, PLACES, "tests/mount/test_times.py"],
    "hmmfs/": [UNIT, FILES, MOVING, SEEN],
    "hmmfs/cli": [UNIT, "tests/mount/test_errors_agree.py", FILES, SEEN],
    "hmmfs/api": [UNIT, LAUNCHES, MOVING, "tests/mount/test_process_api.py"],
    "hmmfs/wire": [UNIT, LAUNCHES, MOVING],
    "hmmfs/daemon": [UNIT, FILES, ENDINGS, SEEN, "tests/mount/test_kinds.py"],
    "hmmfs/mounting": [UNIT, FILES, ENDINGS, "tests/mount/test_kinds.py"],
    "hmmfs/program": [UNIT, PROGRAMS, PROGRAMS_END],
    "hmmfs/filesystem/open_dmirror": [UNIT, PROGRAMS],
    "hmmfs/filesystem/xattrs": [UNIT, "tests/mount/test_copying.py tests/mount/test_advice.py"],
    "hmmfs/memory": [UNIT, FILES, "tests/mount/test_times.py", MOVING, SEEN],
    "hmmfs/policy": [UNIT, RULES],
    "hmmfs/inspect": [UNIT, SEEN, "tests/mount/test_record.py tests/mount/test_report.py"],
    "hmmfs/filesystem": [UNIT, FILES, "tests/mount/test_names.py", SEEN],
    "hmmfs/device": [UNIT, MOVING, PROGRAMS],
    "hmmfs/service": [UNIT, MOVING, RULES],
}


def words(name: str) -> set[str]:
    """Of a file's name: bare of what tells one from several."""
    return {word.rstrip("s") for word in Path(name).stem.split("_") if len(word) > 2}


def module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def own(file: str) -> list[str]:
    """The tests that have a word of the file's name in theirs, or import it."""
    imported = re.compile(rf"\b{re.escape(module(file))}\b")
    return [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").glob("*/test_*.py"))
        if words(file) & (words(path.name) - {"test"}) or imported.search(path.read_text())
    ]


def layer(file: str) -> list[list[str]]:
    """What finds a mutant of the file, in steps: the tests that are about it, then those about all
    that is beside it."""
    longest = max((prefix for prefix in LAYERS if file.startswith(prefix)), key=len)
    steps = [own(file), *(step.split() for step in LAYERS[longest])]
    return [step for step in steps if step]


def draw(seed: int, count: int, only: str) -> list[Site]:
    """The same for the same code."""
    names = subprocess.run(
        ["git", "ls-files", "native/*.c", "hmmfs/*.py", "hmmfs/**/*.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    names = sorted({name for name in names if name.startswith(only) and "build.py" not in name})
    sizes = [(ROOT / name).read_text().count("\n") for name in names]
    chance, known = random.Random(seed), {}
    drawn: dict[Site, None] = {}
    for name in chance.choices(names, sizes, k=20 * count):
        if len(drawn) == count:
            break
        if name not in known:
            known[name] = sites(ROOT, name)
        if known[name] and changes_code(ROOT, site := chance.choice(known[name])):
            drawn[site] = None
    return list(drawn)


class Clone:
    """A copy of what is committed, built, in which mutants are planted one after another."""

    def __init__(self, top: Path, number: int, ended: threading.Event) -> None:
        self.path = top / f"clone{number}"
        self.ended = ended
        self.sound: set[str] = set()  # tests that pass without a mutant
        self.unsound: set[str] = set()
        subprocess.run(["git", "clone", "-q", "--shared", ROOT, self.path], check=True)
        self.temporary = top / f"t{number}"  # short, as sockets are made below it: 107 bytes
        self.temporary.mkdir()
        self.environment = os.environ | {
            "PYTHONPATH": str(self.path),
            "TMPDIR": str(self.temporary),
        }
        if COMPILERS.is_dir():
            self.environment |= {
                "PATH": f"{COMPILERS}:{os.environ['PATH']}",
                "CCACHE_BASEDIR": str(top),
                "CCACHE_DIR": str(top / "ccache"),
                "CCACHE_NOHASHDIR": "1",
            }
            self.environment.pop("CCACHE_DISABLE", None)
        assert self.builds(), "it does not build"

    def run(self, words: list[str]) -> int | None:
        """Exit status; None: it took too long, or we are to end. Nothing of it is left."""
        child = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=(self.path / "output").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        limit = time.monotonic() + LIMIT_S
        while time.monotonic() < limit and not self.ended.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(0.5)
        os.killpg(child.pid, signal.SIGINT)  # what ends so takes its mounts down
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        return None

    def judge(self, site: Site) -> dict[str, object]:
        """Plants it, runs what is to find it, and takes it out again."""
        target = self.path / site.file
        before = target.read_text()
        line, text = mutant(self.path, site)
        result = {"site": list(site), "line": line, "code": text.split("\n")[line - 1].strip()}
        while True:
            target.write_text(text)
            try:
                fate, by = self._try(site)
            finally:
                self.clear()
                target.write_text(before)
                self.stale |= site.file.endswith(".c")
            if fate != "found" or self.ended.is_set() or self._is_sound(by):
                return result | {"fate": fate} | ({"by": " ".join(by)} if by else {})

    def _is_sound(self, by: list[str]) -> bool:
        """Whether a test, or a step of them, passes without a mutant. If not, it is left out from
        now on."""
        test = " ".join(by)
        if test not in self.sound | self.unsound:
            if self.stale:
                self.builds()
            if self.run(["-m", "pytest", *OPTIONS, *by]) == 0:
                self.sound.add(test)
            else:
                self.unsound.add(test)
                print(f"{test} fails without a mutant: it is left out", flush=True)
            self.clear()
        return test in self.sound

    def clear(self) -> None:
        """A mutant may leave mounts that nobody takes down, and processes."""
        for entry in mountinfo.entries():
            if entry.point.startswith(f"{self.temporary}/"):
                abort(entry.minor)
                linux.umount(entry.point, linux.MNT_DETACH)
        for process in psutil.process_iter(["cmdline"]):
            if str(self.path) in " ".join(process.info["cmdline"] or []):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def builds(self) -> bool:
        self.stale = False
        return self.run(["setup.py", "-q", "build_ext", "--inplace"]) == 0

    def _try(self, site: Site) -> tuple[str, list[str]]:
        """Its fate, and by which test it was found, or by which step that did not end."""
        if site.file.endswith(".c"):
            if not self.builds():
                return "stillborn", []
        elif (self.stale and not self.builds()) or self.run(["-c", f"import {module(site.file)}"]):
            return "stillborn", []
        left_out = [f"--deselect={test}" for test in self.unsound]
        for step in layer(site.file):
            if " ".join(step) in self.unsound:
                continue
            status = self.run(["-m", "pytest", *OPTIONS, *left_out, *step])
            if status in (0, NO_TESTS):
                continue
            said = (self.path / "output").read_text(errors="replace")
            by = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", said, re.MULTILINE)
            return "found", [by[1]] if by else step
        return "survived", []


def quick_tests() -> set[str]:
    """Those that `scripts/test --quick` runs."""
    command = [sys.executable, "-m", "pytest", "-q", "--quick", "--collect-only", "-n", "0"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {line for line in said.splitlines() if "::" in line}


def report(results: list[dict[str, object]], quick: set[str]) -> None:
    fates = Counter(str(result["fate"]) for result in results)
    counted = fates["found"] + fates["survived"]
    share = f"{100 * fates['found'] / counted:.0f} %" if counted else "none"
    print(f"{fates['found']} of {counted} found ({share}), {fates['stillborn']} stillborn")
    first = sum(result.get("by") in quick for result in results)
    if fates["found"]:
        print(f"at least {100 * first / fates['found']:.0f} % of what was found, by --quick")
    by_file = defaultdict(list)
    for result in results:
        if result["fate"] == "survived":
            by_file[str(result["site"][0])].append(result)  # type: ignore[index]
    for file, survivors in sorted(by_file.items()):
        for one in sorted(survivors, key=lambda each: int(str(each["line"]))):
            operator = str(one["site"][1]).removeprefix("core/")  # type: ignore[index]
            print(f"{file}:{one['line']}: {operator}: {one['code']}")


def _next(left: SimpleQueue[Site]) -> Site | None:
    """Without waiting: another clone may have taken the last."""
    try:
        return left.get_nowait()
    except Empty:
        return None


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", default="", help="files whose names begin so, as native/gate")
    parser.add_argument("--jobs", type=int, default=1, help="clones at a time")
    parser.add_argument("--state", type=Path, default=ROOT / "build/mutants.jsonl")
    options = parser.parse_args()
    options.state.parent.mkdir(exist_ok=True)
    lines = options.state.read_text().splitlines() if options.state.exists() else []
    done = {tuple(result["site"]): result for result in map(json.loads, lines)}
    drawn = draw(options.seed, options.count, options.only)
    left: SimpleQueue[Site] = SimpleQueue()
    for site in drawn:
        if tuple(site) not in done:
            left.put(site)
    lock = threading.Lock()  # guards the state file and `done`
    top, ended = Path(tempfile.mkdtemp(prefix="hmmfs-mutants-")), threading.Event()

    def work(number: int) -> None:
        clone = Clone(top, number, ended)
        while not ended.is_set() and (site := _next(left)) is not None:
            result = clone.judge(site)
            if ended.is_set():
                return
            with lock, options.state.open("a") as file:
                file.write(json.dumps(result) + "\n")
                done[tuple(site)] = result
                place = f"{site.file}:{result['line']}"
                print(f"{result['fate']}: {place}: {result['code']}", flush=True)

    try:
        if not left.empty():
            with ThreadPoolExecutor(options.jobs) as pool:
                running = [pool.submit(work, number) for number in range(options.jobs)]
                try:
                    for one in running:
                        one.result()
                except BaseException:
                    ended.set()
                    raise
    except KeyboardInterrupt:
        print("ended: the same command goes on here")
    finally:
        shutil.rmtree(top, ignore_errors=True)
    report([done[tuple(site)] for site in drawn if tuple(site) in done], quick_tests())


if __name__ == "__main__":
    main()
