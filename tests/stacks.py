"""What a test that hangs says before it ends: what its child printed, and where every thread is."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

# With patience for a mount (100 s), less than the time limit of a test (120 s).
GDB_S = 8.0
FILE_S = 3.0
SILENCE = "it does not answer\n"


def stacks(pid: int) -> str:
    """Where each thread of a process and of its children is in the kernel; root sees more of that.
    And where those of the process itself are in its own code."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        all_of_it = (process, *process.children(recursive=True))
        return "\n".join([*map(_in_the_kernel, all_of_it), _in_its_code(pid)])
    return f"process {pid} has ended"


def _in_the_kernel(process: psutil.Process) -> str:
    words = []
    with contextlib.suppress(psutil.NoSuchProcess):
        words.append(f"---- {process.pid}: {' '.join(process.cmdline())}")
    for task in sorted(Path(f"/proc/{process.pid}/task").glob("*")):
        with contextlib.suppress(OSError):
            kernel = [line.split(maxsplit=1)[-1] for line in _lines(task / "stack")[:6]]
            name = (task / "comm").read_text().strip()
            where = " < ".join(kernel) or (task / "wchan").read_text()
            words.append(f"thread {task.name} {name} in the kernel: {where}")
    return "\n".join(words)


def _in_its_code(pid: int) -> str:
    if not shutil.which("gdb"):
        return ""
    command = ["gdb", "-q", "-batch", "-p", str(pid), "-ex", "thread apply all bt 12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GDB_S)
    except subprocess.TimeoutExpired:
        return "gdb does not answer"
    lines = done.stdout.splitlines()
    return "\n".join(line for line in lines if line.startswith(("#", "Thread")))


def mount_that_hangs(path: Path, pid: int, log: Path) -> str:
    """What a mount that does not answer is about: its daemon's threads, what its books say as far
    as they can be read, and the end of its log."""
    words = [stacks(pid)]
    files = [path / "stats", *path.glob("state/*/blocks")] if _answers(path) else []
    words += [f"---- {file}\n{_within(['cat', str(file)])}" for file in files]
    words.append(f"---- {log}\n{log.read_text(errors='replace')[-3000:]}")
    return "\n".join(words)


def _answers(path: Path) -> bool:
    return _within(["ls", str(path / "state")]) != SILENCE


def _within(command: list[str]) -> str:
    """What it prints. One that waits for the mount can't be killed before that is aborted."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        return child.communicate(timeout=FILE_S)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        assert child.stdout
        child.stdout.close()
        threading.Thread(target=child.wait, daemon=True).start()
        return SILENCE


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except PermissionError:
        return []


def run(
    command: Sequence[object], seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Its status and what it prints. If it takes longer it is killed: AssertionError, with what it
    has printed and the stacks."""
    words = [str(word) for word in command]
    child = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        out, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        where = stacks(child.pid)
        for one in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        child.kill()
        out, errors = child.communicate()
        raise AssertionError(
            f"{' '.join(words)}: it takes more than {seconds} s\n{out}{errors}\n{where}"
        ) from None
    except BaseException:
        child.kill()
        child.wait()
        raise
    return subprocess.CompletedProcess(words, child.returncode, out, errors)
