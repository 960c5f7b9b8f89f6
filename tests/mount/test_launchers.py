"""What people put into programs or before them, under hmmfs run: it starts and works, and its
memory is the devices' or it says in one sentence why not."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HMMFS, Mount, let_others_reach, mounted, moves_programs, wait_until
from test_programs import descendants

SOURCE = Path(__file__).parent / "programs" / "hold.c"
COMPILE = "-std=gnu11 -D_GNU_SOURCE -g -O1 -pthread"
BYTES = 1 << 20
SOME_S = 30

pytestmark = moves_programs


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(tmp_path_factory.mktemp("launchers"), 300, vram="32M") as mount:
        yield mount


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Others can read it, too."""
    path = tmp_path_factory.mktemp("held")
    let_others_reach(path)
    return path


@pytest.fixture(scope="module")
def hold(base: Path) -> Path:
    return built(base, "gcc", "")


@functools.cache
def built(base: Path, compiler: str, flags: str) -> Path:
    path = base / re.sub(r"\W+", "-", f"{compiler}{flags}")
    subprocess.run(
        [compiler, *shlex.split(f"{COMPILE} {flags}"), "-o", path, SOURCE], check=True, timeout=60
    )
    path.chmod(0o755)
    return path


class Run:
    """A command under hmmfs run that ends in our program, which does as it is told."""

    def __init__(self, mount: Mount, base: Path, *command: str | Path, **more: str) -> None:
        self.mount = mount
        self.out, self.err = base / "out", base / "err"
        with open(self.out, "w") as out, open(self.err, "w") as err:
            self.process = subprocess.Popen(
                [*HMMFS, "run", str(mount.path), "--", *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
                env={**os.environ, **more},
            )

    def find(self, wanted: str) -> re.Match[str]:
        """In what it has written; waits for it."""

        def there() -> bool:
            ends = self.process.poll() is not None
            return bool(re.search(wanted, self.out.read_text(), re.M)) or ends

        wait_until(there, SOME_S)
        found = re.search(wanted, self.out.read_text(), re.M)
        assert found, f"{self.process.poll()}: {self.out.read_text()}{self.err.read_text()}"
        return found

    def pid(self) -> int:
        """As we have it, whatever it has itself."""
        return [self.process.pid, *descendants(self.process.pid)][-1]

    def migrate(self) -> int:
        """All its memory goes to the device; how many pages did. 0: it is not attached."""
        _, place = self.find(r"^(\d+)@(0x[0-9a-f]+\+\d+)$").groups()
        pid = self.pid()
        if not (self.mount.path / f"state/@{pid}").exists():
            return 0
        self.mount.submit(0, f"migrate {pid}@{place} to dev0")
        return self.mount.residency(f"@{pid}")["pages_dev0"]

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def finish(self) -> str:
        """Its memory is right, and it ends well; what was written to standard error."""
        self.tell("check 1")
        self.find("^right$")
        self.tell("quit")
        assert self.process.wait(SOME_S) == 0, self.err.read_text()
        return self.err.read_text()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*descendants(self.process.pid)[::-1], self.process.pid]:
            if self.process.poll() is None:
                os.kill(pid, 9)
        self.process.communicate()


# ---- sanitizers

SANITIZERS = [
    ("gcc", "-fsanitize=address"),
    ("gcc", "-fsanitize=address -static-libasan"),
    ("gcc", "-fsanitize=undefined"),
    ("gcc", "-fsanitize=thread"),
    ("gcc", "-fsanitize=leak"),
    ("clang", "-fsanitize=address"),
    ("clang", "-fsanitize=memory"),
    ("clang", "-fsanitize=thread"),
]


@pytest.mark.parametrize(("compiler", "flags"), SANITIZERS)
def test_sanitizers(machine: Mount, base: Path, compiler: str, flags: str) -> None:
    program = built(base, compiler, flags)
    alone = subprocess.run([program], input="quit\n", capture_output=True, text=True)
    if alone.returncode:
        pytest.skip(f"{compiler} {flags} does not run here by itself: {alone.stderr[:200]}")
    with Run(machine, base, program) as run:
        assert run.migrate() == BYTES // 4096
        assert run.finish() == ""


ASAN = "-fsanitize=address"


@pytest.mark.parametrize(
    "options", ["detect_leaks=1", "verify_asan_link_order=0:abort_on_error=0"], ids=["own", "both"]
)
def test_own_options_of_address_sanitizer(machine: Mount, base: Path, options: str) -> None:
    with Run(machine, base, built(base, "gcc", ASAN), ASAN_OPTIONS=options) as run:
        assert run.migrate() == BYTES // 4096
        assert run.finish() == ""


def test_a_child_that_has_its_own_options(machine: Mount, base: Path) -> None:
    command = ["env", "ASAN_OPTIONS=detect_leaks=1", built(base, "gcc", ASAN)]
    with Run(machine, base, *command) as run:
        assert run.migrate() == BYTES // 4096
        assert run.finish() == ""


def test_libasan_in_ld_preload(machine: Mount, base: Path) -> None:
    found = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    library = found.stdout.strip()
    with Run(machine, base, built(base, "gcc", ASAN), LD_PRELOAD=library) as run:
        assert run.migrate() == BYTES // 4096
        assert run.finish() == ""


def test_a_sanitizer_still_finds_what_is_wrong(machine: Mount, base: Path) -> None:
    wrong = base / "wrong.c"
    wrong.write_text("int main(int n, char **v) { char a[4]; a[n + 3] = 1; return a[n] + !v; }")
    program = base / "wrong"
    subprocess.run(["gcc", "-w", "-O0", ASAN, "-o", program, wrong], check=True)
    done = subprocess.run(
        [*HMMFS, "run", str(machine.path), "--", program], capture_output=True, text=True
    )
    assert "stack-buffer-overflow" in done.stderr
    assert done.returncode == 1


# ---- launchers, and the devices that a program has under them

BEFORE = [
    "strace -o /dev/null",
    "strace -f -o /dev/null",
    "nice",
    "timeout 60",
    "env A=1",
    "setsid -w",
    "setpriv --no-new-privs",
    "unshare -m",
    "unshare -p -f",
    "bash -c '\"$0\"'",
]


@pytest.mark.parametrize("launcher", BEFORE)
def test_launchers(machine: Mount, base: Path, hold: Path, launcher: str) -> None:
    with Run(machine, base, *shlex.split(launcher), hold) as run:
        assert run.migrate() == BYTES // 4096
        assert run.finish() == ""


def test_under_gdb(machine: Mount, base: Path, hold: Path) -> None:
    command = ["gdb", "-batch", "-nx", "-ex", "run"]
    with Run(machine, base, *command, hold) as run:
        assert run.migrate() == BYTES // 4096
        run.finish()
        assert "exited normally" in run.out.read_text()


@pytest.mark.skipif(not shutil.which("perf"), reason="there is no perf")
def test_perf(machine: Mount, base: Path, hold: Path) -> None:
    command = ["perf", "record", "-q", "-g", "-o", base / "perf.data"]
    alone = subprocess.run([*command, "true"], capture_output=True, text=True)
    if alone.returncode:
        pytest.skip(f"perf does not work here by itself: {alone.stderr[:200]}")
    with Run(machine, base, *command, hold) as run:
        assert run.migrate() == BYTES // 4096
        assert run.finish() == ""


def test_multiprocessing(machine: Mount, base: Path) -> None:
    script = base / "pools.py"
    script.write_text(
        "import multiprocessing as mp\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'spawn', 'forkserver'):\n"
        "        with mp.get_context(method).Pool(2) as pool:\n"
        "            print(sum(pool.map(abs, range(-3, 1))))\n"
    )
    command = [*HMMFS, "run", str(machine.path), "--", sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("6\n" * 3, "", 0)


# ---- launchers under which it has none, and says so

WITHOUT = {
    "valgrind -q": "Valgrind, which runs it, has no userfaultfd",
    "valgrind -q --tool=none": "Valgrind, which runs it, has no userfaultfd",
    "unshare -n": "The daemon of its mount can't be reached",
}


def runs_on(machine: Mount, base: Path, hold: Path, launcher: str, sentence: str) -> None:
    with Run(machine, base, *shlex.split(launcher), hold) as run:
        assert run.migrate() == 0
        said = run.finish()
    assert re.fullmatch(
        rf"hmmfs run: {sentence} \([^()\n]+\): the program runs on without devices\.\n", said
    ), said


@pytest.mark.parametrize(("launcher", "sentence"), WITHOUT.items())
def test_without_devices(
    machine: Mount, base: Path, hold: Path, launcher: str, sentence: str
) -> None:
    runs_on(machine, base, hold, launcher, sentence)


@pytest.mark.usefixtures("for_others")
@pytest.mark.parametrize(
    "launcher", ["setpriv --reuid=65534 --clear-groups", "runuser -u nobody --"]
)
def test_as_another_user(machine: Mount, base: Path, hold: Path, launcher: str) -> None:
    runs_on(machine, base, hold, launcher, "The daemon of its mount refused it")


ACCESS_ONLY = (
    "hmmfs run: Devices can read and write its memory but not migrate it "
    "(Operation not permitted): that takes root or CAP_SYS_PTRACE, and Linux 6.8 or later.\n"
)


@pytest.mark.parametrize("launcher", ["unshare -U", "unshare -r"])
def test_in_a_user_namespace(machine: Mount, base: Path, hold: Path, launcher: str) -> None:
    """One sentence of unshare itself, and one of the program that it becomes."""
    with Run(machine, base, *shlex.split(launcher), hold) as run:
        assert run.migrate() == 0
        assert (machine.path / f"state/@{run.pid()}").exists()
        assert run.finish() == 2 * ACCESS_ONLY


@pytest.mark.parametrize("word", ["unshare", "join"])
def test_a_program_that_changes_its_user_namespace(
    machine: Mount, base: Path, hold: Path, word: str
) -> None:
    """The kernel allows it to programs with one thread only. Its pages come home."""
    with Run(machine, base, hold) as run:
        assert run.migrate() == BYTES // 4096
        pid = run.pid()
        run.tell(word)
        assert run.find(r"^(\d+)$")[1] == "0"
        assert machine.residency(f"@{pid}")["pages_dev0"] == 0
        assert run.migrate() == 0
        place = run.find(r"@(0x[0-9a-f]+)\+")[1]
        assert machine.submit(0, f"read {pid}@{place}+1")
        said = run.finish()
        assert said.replace(ACCESS_ONLY, "") == ""
        assert said


def test_threads_of_its_own_still_count(machine: Mount, base: Path) -> None:
    """A refusal that is not for our threads is the program's."""
    source = base / "threads.c"
    source.write_text(
        "#include <errno.h>\n#include <pthread.h>\n#include <sched.h>\n#include <stdio.h>\n"
        "#include <unistd.h>\n"
        "static void *wait(void *a) { pause(); return a; }\n"
        "int main(void) { pthread_t t; pthread_create(&t, 0, wait, 0);\n"
        '  printf("%d\\n", unshare(CLONE_NEWUSER) ? errno : 0); return 0; }\n'
    )
    program = base / "threads"
    subprocess.run(["gcc", "-D_GNU_SOURCE", "-pthread", "-o", program, source], check=True)
    command = [*HMMFS, "run", str(machine.path), "--", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("22\n", "", 0)
