"""Mounts started with unusual limits, signals and surroundings: each works, or is refused in one
sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HMMFS, Mount, ended, run, takes_root, wait_until

import hmmfs

M = 1 << 20
root_only = takes_root("only root lifts hard limits")


def start(tmp_path: Path, before: str) -> subprocess.CompletedProcess[str]:
    """hmmfs mount in a shell that ran `before`."""
    mount = Mount(tmp_path / "mnt", tmp_path / "log")
    mount.path.mkdir(exist_ok=True)
    words = [*HMMFS, "mount", str(mount.path), "-o", f"vram=4M,log={mount.log}"]
    command = f"{before}\nexec {' '.join(words)}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def started(tmp_path: Path, before: str) -> Iterator[Mount]:
    done = start(tmp_path, before)
    mount = Mount(tmp_path / "mnt", tmp_path / "log")
    assert (done.returncode, done.stderr) == (0, "")
    pid = mount.pid
    try:
        yield mount
    finally:
        run("umount", str(mount.path))
        assert wait_until(lambda: ended(pid))


def beside_privilege(said: str) -> str:
    """What `hmmfs run` said, without that pages of an ordinary user's program do not move."""
    lines = said.splitlines(keepends=True)
    if os.geteuid():
        assert "takes root or CAP_SYS_PTRACE" in lines.pop(0)
    return "".join(lines)


def works(mount: Mount) -> None:
    """Programs, operations, kernels, and programs under hmmfs run."""
    machine = hmmfs.connect(mount.path)
    region = machine.region("a", 3 * M)
    region.cpu[:] = 2
    assert machine.dev0.submit("read a:0+2") == "0202"
    machine.dev0.launch("hmmfs.kernels:scale", hmmfs.updates(region), 3).wait(60)
    assert set(region.cpu.tobytes()) == {6}
    done = run("run", str(mount.path), "--", "sh", "-c", "echo of the shell")
    assert (done.stdout, beside_privilege(done.stderr)) == ("of the shell\n", "")
    assert mount.audit() == "ok"


WORK = {
    "file size, soft": "ulimit -Sf 1000",
    "open files, soft": "ulimit -Sn 20",
    "address space, soft": "ulimit -Sv 4000000",
    "data, soft": "ulimit -Sd 2000000",
    "locked memory": "ulimit -l 0",
    "stack": "ulimit -s 256",
    "core": "ulimit -c unlimited",
    "ignored signals": "trap '' INT HUP PIPE CHLD XFSZ USR1",
    "umask": "umask 777",
    "nice": "renice -n 19 -p $$ > /dev/null",
    "environment": "unset HOME LANG USER TERM PYTHONPATH; export LC_ALL=C PATH=",
    "working directory": "cd $(mktemp -d); rmdir $PWD",
    "closed files": "exec <&- >&-",
}


@pytest.mark.parametrize("what", WORK)
def test_it_works(tmp_path: Path, what: str) -> None:
    with started(tmp_path, WORK[what]) as mount:
        works(mount)


def may_lift() -> bool:
    """CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.split("CapEff:")[1].split()[0], 16) >> 24 & 1)


@pytest.mark.parametrize("before", ["ulimit -f 0", "ulimit -f 1000000"])
def test_a_hard_limit_of_file_sizes(tmp_path: Path, before: str) -> None:
    """It is lifted by who may do that. For others no region could be made."""
    if may_lift():
        with started(tmp_path, before) as mount:
            works(mount)
        return
    done = start(tmp_path, before)
    assert done.returncode == 1
    assert "Mount with `ulimit -f unlimited`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_kernels_have_the_inherited_limit_of_file_sizes(tmp_path: Path) -> None:
    with started(tmp_path, "ulimit -Sf 1000") as mount:
        limit = hmmfs.connect(mount.path).dev0.launch(file_size).wait(60)
        assert limit == 1000 * 1024


def file_size() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_FSIZE)[0]


def test_a_program_keeps_its_own_limits(tmp_path: Path) -> None:
    limits = "ulimit -f 100000 -n 40 -c 3 -s 4000"
    shown = "ulimit -f; ulimit -n; ulimit -c; ulimit -s"
    with started(tmp_path, "ulimit -Sf 1000") as mount:
        command = f"{limits}; exec {' '.join(HMMFS)} run {mount.path} -- bash -c '{shown}'"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == ["100000", "40", "3", "4000"]
        assert beside_privilege(done.stderr) == ""


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("ulimit -n 40", "ulimit -n"),
        ("ulimit -n 12", "ulimit -n"),
        ("ulimit -v 8000000", "ulimit -v"),
        ("ulimit -d 200000", "ulimit -d"),
        ("ulimit -t 1000", "ulimit -t"),
        ("cd $(mktemp -d); rmdir $PWD; set -- relative", "The working directory is gone"),
    ],
)
def test_it_is_refused(tmp_path: Path, before: str, says: str) -> None:
    if "relative" in before:
        words = f"{before}; exec {' '.join(HMMFS)} mount relative"
        done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60)
    else:
        done = start(tmp_path, before)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("hmmfs: ")


@root_only
@pytest.mark.usefixtures("for_others")
@pytest.mark.parametrize(
    ("limit", "says"),
    [("ulimit -f 1000", "ulimit -f unlimited"), ("ulimit -u 6", "ulimit -u")],
)
def test_an_ordinary_user_is_refused(tmp_path: Path, limit: str, says: str) -> None:
    """Without a privilege hard limits stay, and that of processes is in force."""
    program = "from hmmfs.daemon.limits import settle; settle(1)"
    user = 65000 + os.getpid() % 400  # who has no other processes
    words = f"{limit}; exec setpriv --reuid {user} --clear-groups {HMMFS[0]} -c '{program}'"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]


@root_only
def test_a_small_cgroup(tmp_path: Path) -> None:
    base = Path("/sys/fs/cgroup/pids") if Path("/sys/fs/cgroup/pids").is_dir() else None
    if base is None and "pids" in Path("/sys/fs/cgroup/cgroup.subtree_control").read_text():
        base = Path("/sys/fs/cgroup")
    if base is None:
        pytest.skip("no cgroup can be made that limits processes")
    group = base / f"hmmfs-test-{os.getpid()}"
    group.mkdir()
    try:
        for most in (1, 10):
            (group / "pids.max").write_text(f"{most}\n")
            done = start(tmp_path, f"echo $$ > {group}/cgroup.procs")
            assert done.returncode == 1
            assert "pids.max" in done.stderr
            assert done.stderr.count("\n") == 1
        (group / "pids.max").write_text("60\n")
        with started(tmp_path, f"echo $$ > {group}/cgroup.procs") as mount:
            works(mount)
    finally:
        assert wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_nohup(tmp_path: Path) -> None:
    """A hang-up that was ignored at the start stays ignored; other signals unmount."""
    with started(tmp_path, "trap '' HUP INT") as mount:
        pid = mount.pid
        os.kill(pid, signal.SIGHUP)
        works(mount)
        status = Path(f"/proc/{pid}/status").read_text()
        ignored = int(status.split("SigIgn:")[1].split()[0], 16)
        assert ignored >> (signal.SIGHUP - 1) & 1
