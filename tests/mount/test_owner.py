"""A mount that a program made ends with that program, and with nothing else of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Mount, connection, ended, fails, wait_until

import hmmfs

# Each line ends a child within the parent's `with`; `m` is the machine.
FORKS = """
import gc, multiprocessing, os, sys
import hmmfs

def leave(m, how):
    if how == "exit":
        sys.exit(0)
    elif how == "_exit":
        os._exit(0)
    elif how == "raise":
        raise RuntimeError("of a child")
    elif how == "close":
        m.close()
    elif how == "grandchild" and os.fork():
        os.wait()
    sys.exit(0)

with hmmfs.mount(vram="4M") as m:
    region = m.region("a", 10)
    region.cpu[0] = 7
    me = os.getpid()
    for how in ("exit", "_exit", "raise", "close", "grandchild"):
        if os.fork() == 0:
            sys.stderr = open(os.devnull, "w")
            leave(m, how)
        os.wait()
        assert (m.path / "version").exists(), f"a child's {how} ended the mount"
    child = multiprocessing.get_context("fork").Process(target=m.__exit__, args=(None, None, None))
    child.start()
    child.join()
    assert (m.path / "version").exists(), "multiprocessing's child ended the mount"
    assert region.cpu[0] == 7
    path = m.path
assert os.getpid() == me
assert not path.exists(), "the parent's end leaves the mount"
"""


def script(text: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", text]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_child_ends_and_the_mount_stays() -> None:
    done = script(FORKS)
    assert done.returncode == 0, done.stderr


OWNER = """
import os, signal, sys, time
import hmmfs

m = hmmfs.mount(vram="4M")
region = m.region("a", 1 << 20)
region.cpu[:] = 1
print(m.path, m.stats()["pid"], flush=True)
END
"""
# A child that was forked holds all that the owner had open or mapped.
CHILD = """
child = os.fork()
if child == 0:
    os.closerange(0, 3)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(3)", CHILD])
def test_the_owner_ends_and_the_mount_goes(end: str) -> None:
    path, pid, *children = script(OWNER.replace("END", end)).stdout.split()
    try:
        gone = wait_until(lambda: connection(Path(path)) is None and not os.path.exists(path))
        assert gone, f"{path} outlives its owner"
        assert wait_until(lambda: ended(int(pid)))
        assert all(not ended(int(child)) for child in children)
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


def test_an_exec_keeps_the_mount() -> None:
    """The same process, if another program."""
    then = 'os.execvp("sh", ["sh", "-c", f"cat {m.path}/version; exec sleep 60"])'
    command = [sys.executable, "-c", OWNER.replace("END", then)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        path = Path(child.stdout.readline().split()[0])
        try:
            assert child.stdout.readline() == f"{hmmfs.__version__}\n"
            assert connection(path) is not None
        finally:
            child.kill()
    assert wait_until(lambda: not path.exists())


def test_who_only_connects_owns_nothing(mount: Mount) -> None:
    text = f"import hmmfs, os; m = hmmfs.connect({str(mount.path)!r}); END; os._exit(1)"
    for end in ("m.close()", "m.__exit__(None, None, None)", "os.kill(os.getpid(), 9)"):
        script(text.replace("END", end))
        assert mount.audit() == "ok"


def test_the_daemon_ends_and_its_directory_goes() -> None:
    machine = hmmfs.mount(vram="4M")
    os.kill(machine.stats()["pid"], signal.SIGKILL)
    assert wait_until(lambda: connection(machine.path) is None)
    assert wait_until(lambda: not machine.path.exists())


def test_a_directory_that_was_given_stays(tmp_path: Path) -> None:
    done = script(
        OWNER.replace("mount(", f"mount({str(tmp_path)!r}, ").replace("END", "os._exit(0)")
    )
    assert done.stdout.split()[0] == str(tmp_path)
    assert wait_until(lambda: connection(tmp_path) is None)
    assert tmp_path.exists()


def test_a_busy_mount_says_so() -> None:
    machine = hmmfs.mount(vram="4M")
    with open(machine.region("a", 10).path):
        fails(errno.EBUSY, machine.close)
        assert machine.audit() == "ok"
    machine.close()
    machine.close()  # nothing more to do
    assert not machine.path.exists()


# ---- options

SOURCE = "a,allow_other"


@pytest.fixture
def spot(tmp_path: Path) -> Path:
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@pytest.mark.parametrize("name", [SOURCE, "b\\,ro\\", "d e=ü\n"])
def test_a_value_is_one_value(spot: Path, name: str) -> None:
    with hmmfs.mount(spot, vram="4M", fsname=name):
        line = Path("/proc/self/mountinfo").read_text().split(str(spot))[1].split("\n")[0]
        source, options = line.split(" - ")[1].split(" ")[1:3]
        unescaped = source.encode().decode("unicode_escape").encode("latin1").decode()
        assert unescaped == name
        assert "allow_other" not in options
        (spot / "regions/a").touch()  # it is not read-only


def test_values_of_all_kinds(spot: Path, tmp_path: Path) -> None:
    log = tmp_path / "a,b.log"
    with hmmfs.mount(
        spot, vram=4 << 20, devices=np.int64(2), keep_clean=False, log=log, prefetch=None, ro=None,
        noatime=True, express=np.bool_(False), debug=True,
    ) as machine:  # fmt: skip
        assert len(machine.devices) == 2
        assert (spot / "devices/dev0/vram/total").read_text() == f"{4 << 20}\n"
        assert "is mounted" in log.read_text()
        assert machine.dev0.policy()["prefetch"] == "grow"
    with hmmfs.mount(spot, vram="4M", rw=True, defaults=True):
        (spot / "regions/a").touch()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"vram": 1.5},
            r'The option "vram" is wrong: 1.5 can\'t be passed. Give a string, a whole',
        ),
        ({"type": ["private"]}, r'The option "type" is wrong: \[\'private\'\] can\'t be passed.'),
        ({"fsname": b"a"}, r'The option "fsname" is wrong: b\'a\' can\'t be passed.'),
        ({"fsname": "a\0b"}, "can't be passed"),
        ({"fsname": "\ud800"}, "can't be passed"),
        ({"fsname=a,allow_other": 1}, 'There is no option "fsname=a,allow_other"'),
        ({"vramm": "4M"}, r'There is no option "vramm" \(did you mean "vram"\?\)'),
        ({"rw": False}, 'The option "rw=off" is wrong: rw stands alone.'),
        ({"ro": "maybe"}, 'The option "ro=maybe" is wrong: ro takes on or off.'),
        ({"fsname": ""}, 'The option "fsname=" is wrong: fsname takes a name'),
    ],
)
def test_values_that_are_refused(options: dict[str, object], sentence: str) -> None:
    before = set(os.listdir("/tmp"))
    with pytest.raises(hmmfs.HmmfsError, match=sentence) as caught:
        hmmfs.mount(**options)
    assert caught.value.errno == errno.EINVAL
    assert not {name for name in set(os.listdir("/tmp")) - before if name.startswith("hmmfs-")}


def test_what_fails_says_why(spot: Path, mount: Mount) -> None:
    for path, number in ((spot / "none", errno.ENOENT), (mount.path, errno.EBUSY)):
        with pytest.raises(hmmfs.HmmfsError) as caught:
            hmmfs.mount(path)
        assert caught.value.errno == number
        assert str(path) in str(caught.value)


def test_a_warning_reaches_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    """And nothing else that the daemon says."""
    with hmmfs.mount(vram="4M", host="16M"):
        assert capfd.readouterr().err == ""
    with hmmfs.mount(vram="4M", host="15T"):
        err = capfd.readouterr().err
    assert err.startswith("hmmfs: Warning: host= and all vram= together are ")
    assert err.count("\n") == 1


def test_no_place_is_not_the_working_directory() -> None:
    with pytest.raises(hmmfs.HmmfsError, match="has an empty name") as caught:
        hmmfs.mount("", vram="4M")
    assert caught.value.errno == errno.EINVAL
    done = script("from hmmfs.cli.main import main; raise SystemExit(main(['mount', '']))")
    assert (done.returncode, "has an empty name" in done.stderr) == (2, True)


def test_a_log_that_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(hmmfs.HmmfsError, match=r"^The log file .*/nowhere/log can't be opened: No"):
        hmmfs.mount(vram="4M", log=tmp_path / "nowhere/log")
