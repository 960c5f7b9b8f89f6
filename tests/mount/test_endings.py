"""Programs, operations and daemons that end at a bad moment: nothing hangs, nothing is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import (
    HMMFS,
    Mount,
    MountFactory,
    connection,
    ended,
    run,
    unwedged,
    wait_until,
)

import hmmfs
from hmmfs.common import mountinfo
from hmmfs.mounting.mounts import unmount

CONTROL = "/sys/fs/fuse/connections"
TOUCH = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
print("going", flush=True)
while True:
    for offset in range(0, len(memory), 4096):
        memory[offset] = (memory[offset] + 1) & 255
"""


def toucher(path: Path) -> subprocess.Popen[str]:
    """A program that loads and stores on every page for ever."""
    child = subprocess.Popen(
        [sys.executable, "-c", TOUCH, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "going\n"
    return child


def hammer(mount: Mount) -> subprocess.Popen[bytes]:
    """Devices that take every page, for ever."""
    loop = f"""
import os
fd = [os.open({str(mount.path)!r} + f"/devices/dev{{n}}/submit", os.O_RDWR) for n in (0, 1)]
while True:
    for each in fd:
        os.write(each, b"checksum a\\n")
"""
    return subprocess.Popen([sys.executable, "-c", loop], stderr=subprocess.DEVNULL)


def end(child: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait(20)
    if child.stdout:
        child.stdout.close()


def test_a_program_killed_inside_a_fault(mount: Mount) -> None:
    path = mount.region("a", 6 << 20)
    devices = hammer(mount)
    try:
        for _ in range(8):
            child = toucher(path)
            time.sleep(0.1)
            end(child)
    finally:
        end(devices)
    mount.submit(0, "checksum a")
    path.read_bytes()


def test_an_operation_is_cancelled_by_a_signal(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="4M", host="600M")
    path = mount.region("a", 512 << 20)
    with open(path, "r+b") as file:
        for _ in range(512):
            file.write(bytes(range(256)) * 4096)
    operations = ["checksum a"] * 40
    command = [*HMMFS, "submit", str(mount.path), "dev0", *operations]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.7)
    assert child.poll() is None, "too fast to be interrupted"
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0
    assert time.monotonic() - begin < 5
    assert mount.submit(0, "read a:0+4") == "00010203"


@pytest.mark.warns("Programs still use")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_daemon_ends_under_load(mount_factory: MountFactory, number: int) -> None:
    if number == signal.SIGKILL and os.geteuid() and not os.path.ismount(CONTROL):
        pytest.skip("only root can abort a connection where fusectl is not mounted")
    mount = mount_factory(vram="8M", devices=2, host="64M")
    path = mount.region("a", 12 << 20)
    pid = mount.pid
    children = [toucher(path), toucher(path), hammer(mount)]
    time.sleep(0.5)
    os.kill(pid, number)
    assert wait_until(lambda: ended(pid), 30)
    assert wait_until(lambda: connection(mount.path) is None, 30), "the mount is still there"
    # Without their memory the programs get SIGBUS, without their files an error.
    for child in children:
        try:
            child.wait(20)
        finally:
            end(child)
        assert child.returncode != 0


@pytest.mark.warns("Programs still use")
def test_the_mount_goes_at_once_and_a_program_may_end_in_peace(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="8M")
    path, pid = mount.region("a", 4096), mount.pid
    with path.open("rb+") as file:
        os.kill(pid, signal.SIGTERM)
        # Long before the daemon loses its patience.
        assert wait_until(lambda: mountinfo.find(str(mount.path)) is None, 1.5), "it is still there"
        file.write(b"abc")
        file.seek(0)
        assert file.read(3) == b"abc"
    assert wait_until(lambda: ended(pid), 10)
    assert "Programs still use" not in mount.log.read_text()


def test_unmounting_from_outside_ends_the_daemon(mount_factory: MountFactory) -> None:
    for command in (["umount"], ["fusermount3", "-u"]):
        mount = mount_factory(vram="8M")
        pid = mount.pid
        mount.region("a", 1 << 20).write_bytes(b"x" * 9999)
        mount.submit(0, "fill a 3")
        subprocess.run([*command, mount.path], check=True)
        assert wait_until(lambda pid=pid: ended(pid))  # type: ignore[misc]
        assert connection(mount.path) is None


def test_a_daemon_whose_loop_fails_takes_its_mount_along(tmp_path: Path) -> None:
    """Its gate has threads that would wait for the kernel, and programs would wait for them."""
    code = """
import sys
import hmmfs.daemon.daemon as daemon
from hmmfs.cli.main import main

async def broken(**tasks):
    raise RuntimeError("of a test")

daemon.pyfuse3.main = broken
sys.exit(main(sys.argv[1:]))
"""
    words = ["mount", str(tmp_path), "-f", "-o", "vram=4M,log=/dev/null"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "of a test" in done.stderr
    assert mountinfo.find_hmmfs(str(tmp_path)) is None


def test_mount8_calls_us(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("hmmfs")
    options = "rw,vram=8M,dev,suid,noatime"
    subprocess.run(
        ["mount", "-t", "fuse", f"{command}#src0", str(tmp_path), "-o", options], check=True
    )
    try:
        shown = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        assert [fields[0] for fields in shown if fields[1] == str(tmp_path)] == ["src0"]
        assert (tmp_path / "devices/dev0/vram/total").read_text() == f"{8 << 20}\n"
    finally:
        run("umount", str(tmp_path))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_mounting_with_closed_standard_files(tmp_path: Path, closed: str) -> None:
    (tmp_path / "mnt").mkdir()
    command = f"exec {' '.join(HMMFS)} mount {tmp_path}/mnt -o vram=4M,log={tmp_path}/log {closed}"
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    try:
        (tmp_path / "mnt/regions/a").write_text("hello")
        assert (tmp_path / "mnt/audit").read_text() == "ok\n"
    finally:
        run("umount", str(tmp_path / "mnt"))


def test_no_files_left_for_a_region(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    command = (
        f"ulimit -n 64; exec {' '.join(HMMFS)} mount {tmp_path}/mnt -o vram=4M,log={tmp_path}/log"
    )
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    mount = Mount(tmp_path / "mnt", tmp_path / "log")
    try:
        made = error = 0
        while not error and made < 64:
            try:
                (mount.regions / f"r{made}").touch()
                made += 1
            except OSError as caught:
                error = caught.errno or -1
        assert error == errno.EMFILE
        assert "ulimit -n" in (mount.path / "last_error").read_text()
        assert len(os.listdir(mount.regions)) in (made, made + 1)
        for name in ("r0", "r1"):  # bytes take another one
            (mount.regions / name).unlink()
        assert wait_until(lambda: mount.values("stats")["regions"] < made - 1)
        (mount.regions / "again").write_text("hello")
        assert mount.audit() == "ok"
    finally:
        run("umount", str(mount.path))


def test_one_that_waits_for_its_turn_can_be_interrupted(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="4M", host="100M")
    mount.region("a", 80 << 20)
    command = [*HMMFS, "submit", str(mount.path), "dev0"]
    first = subprocess.Popen([*command, "\n".join(["fill a 1", "fill a 2"] * 200)])
    try:
        assert wait_until(lambda: mount.values("devices/dev0/stats")["operations"] > 0)
        with subprocess.Popen([*command, "checksum a"], stderr=subprocess.DEVNULL) as second:
            time.sleep(0.5)
            assert second.poll() is None
            second.send_signal(signal.SIGINT)
            assert second.wait(5) != 0
        assert first.poll() is None, "too fast to have been waited for"
    finally:
        first.send_signal(signal.SIGINT)
        first.wait(20)


@pytest.mark.parametrize("which", ["service", "daemon"])
def test_what_is_said_of_a_mount_that_hangs(
    mount: Mount, capfd: pytest.CaptureFixture[str], which: str
) -> None:
    """A device's kernel that does not end; and a daemon that answers nothing. Then the mount is
    aborted, so that a test ends."""
    device = hmmfs.Machine(mount.path).device("dev0")
    path = mount.region("waits", 8192)
    path.write_bytes(bytes(4096))
    pid = mount.pid

    def hang() -> None:
        if which == "daemon":
            os.kill(pid, signal.SIGSTOP)
            path.read_bytes()
        else:
            device.launch(time.sleep, 60).wait()

    try:
        with unwedged(mount, 0.5), pytest.raises((OSError, hmmfs.HmmfsError)):
            hang()
    finally:
        os.kill(pid, signal.SIGCONT)
        unmount(str(mount.path), lazy=True)
    said = capfd.readouterr().err
    assert f"---- {pid}: " in said
    assert "in the kernel: " in said
    assert "Thread 1 " in said
    assert str(mount.log) in said
    assert ("state/waits/blocks\n# block host" in said) == (which == "service")
