"""Bad input: the errno that fits, one sentence, and nothing changed."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
from pathlib import Path

import pytest
from conftest import Mount, fails, run

import hmmfs
from hmmfs.cli import main as cli
from hmmfs.filesystem.tree import MAX_UNOPENED
from hmmfs.wire.calls import MAX_SUBMISSION

OPERATIONS = {
    "nonsense": ("boo", errno.EINVAL),
    "empty": ("", errno.EINVAL),
    "no region": ("checksum", errno.EINVAL),
    "unknown region": ("checksum nobody", errno.ENOENT),
    "unknown device": ("migrate a to dev9", errno.ENODEV),
    "unknown place": ("migrate a to moon", errno.ENODEV),
    "past the end": ("read a:1M+1", errno.ERANGE),
    "over the end": ("fill a:1048575+2 0", errno.ERANGE),
    "negative": ("read a:-1+1", (errno.EINVAL, errno.ERANGE)),
    "no length": ("read a:0+0", errno.EINVAL),
    "odd hex": ("write a:0 abc", errno.EINVAL),
    "no hex": ("write a:0 xyzz", errno.EINVAL),
    "byte 256": ("fill a 256", errno.EINVAL),
    "byte -1": ("fill a -1", errno.EINVAL),
    "too much to read": ("read a:0+65537", errno.E2BIG),
    "junk": ("\x01\x02\x7f", errno.EINVAL),
    "copy past the end": ("copy a:0+4K to a:1M", errno.ERANGE),
    "second line": ("fill a:0+4K 1\nboo", errno.EINVAL),
}


@pytest.fixture
def region(mount: Mount) -> Path:
    path = mount.region("a", 1 << 20)
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(mount: Mount, region: Path, name: str) -> None:
    line, wanted = OPERATIONS[name]
    before = region.read_bytes()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        mount.submit(0, line)
    assert caught.value.errno in (wanted if isinstance(wanted, tuple) else (wanted,))
    sentence = (mount.path / "devices/dev0/last_error").read_text()
    assert sentence.endswith(".\n")
    assert sentence.count("\n") == 1
    assert (mount.path / "last_error").read_text() == sentence
    assert region.read_bytes() == before


def test_the_sentence_is_read_from_the_file_that_failed(mount: Mount, region: Path) -> None:
    fd = os.open(mount.path / "devices/dev0/submit", os.O_RDWR)
    try:
        with pytest.raises(FileNotFoundError):
            os.write(fd, b"read a:0+2\nchecksum nobody\n")
        first, second = os.read(fd, 1000).decode().splitlines()
    finally:
        os.close(fd)
    assert first == region.read_bytes()[:2].hex()
    assert second.startswith("error: checksum in line 2: There is no region")


def test_an_endless_line(mount: Mount, region: Path) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        mount.submit(0, "fill a " + "1" * (1 << 20))
    assert caught.value.errno in (errno.E2BIG, errno.EINVAL)
    mount.submit(0, "fill a 1")


def submitted(mount: Mount, data: bytes) -> str:
    """What one write of these bytes answers."""
    fd = os.open(mount.path / "devices/dev0/submit", os.O_RDWR)
    try:
        assert os.write(fd, data) == len(data)
        return os.read(fd, 1 << 18).decode()
    finally:
        os.close(fd)


@pytest.mark.parametrize("page", [0, 1], ids=["aligned", "not aligned"])
def test_what_the_kernel_sends_in_parts_does_not_run(mount: Mount, region: Path, page: int) -> None:
    """Up to the limit a write arrives whole, beyond it nothing of it runs."""
    before, ran = region.read_bytes(), mount.values("devices/dev0/stats")["operations"]
    fd = os.open(mount.path / "devices/dev0/submit", os.O_RDWR)
    line = b"fill a:0+4K 1" + b" " * (4096 - 14) + b"\n"
    memory = mmap.mmap(-1, (2 << 20) + 4096)
    memory[page : page + 512 * 4096] = line * 512
    view = memoryview(memory)
    try:
        for length in (MAX_SUBMISSION + 1, MAX_SUBMISSION + 4096, (1 << 20) + 1, 2 << 20):
            fails(errno.E2BIG, lambda length=length: os.write(fd, view[page : page + length]))
        assert mount.values("devices/dev0/stats")["operations"] == ran
        assert region.read_bytes() == before
        assert os.write(fd, view[page : page + MAX_SUBMISSION]) == MAX_SUBMISSION
        assert mount.values("devices/dev0/stats")["operations"] == ran + MAX_SUBMISSION // 4096
    finally:
        os.close(fd)
        view.release()
        memory.close()


def test_what_programs_write_in_parts_does_not_run(mount: Mount, region: Path) -> None:
    """cat takes 128 KiB at a time. What it cut is refused, and it says so."""
    before = region.read_bytes()
    text = "fill a 1\n" * 20_000
    command = ["sh", "-c", f"cat > {mount.path}/devices/dev0/submit"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "too long" in done.stderr
    assert "may be cut off" in (mount.path / "last_error").read_text()
    assert region.read_bytes() == before
    for data in (
        b"fill a 1\nfill a:0+4K 1",
        b"fill a" + b" " * 4096 + b"1",
        b"fill a 1\n" * 500 + b"f",
    ):
        fails(errno.E2BIG, lambda data=data: submitted(mount, data))
    assert region.read_bytes() == before
    assert (
        submitted(mount, b"read a:0+1") == submitted(mount, b"read a:0+1\n") == f"{before[0]:02x}\n"
    )


def test_the_command_line_and_the_api_have_one_limit(
    mount: Mount, region: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "fill a 1" + " " * (MAX_SUBMISSION - 8)
    device = hmmfs.connect(mount.path).dev0
    with pytest.raises(OSError, match="at most 1044480 bytes") as caught:
        device.submit(line)
    assert caught.value.errno == errno.E2BIG
    assert cli.main(["submit", str(mount.path), "dev0", line]) == 1
    assert "at most 1044480 bytes" in capsys.readouterr().err
    assert set(region.read_bytes()) != {1}
    assert cli.main(["submit", str(mount.path), "dev0", line[:-1]]) == 0
    assert device.submit(line[:-1]) == ""
    assert set(region.read_bytes()) == {1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("vrm=1M", 'There is no option "vrm" (did you mean "vram"?)'),
        ("vram=1K", "vram takes a size from 2M"),
        ("vram=5000000", "in multiples of 4K"),
        ("devices=99", "devices takes a whole number from 0 to 15"),
        ("host=0", "host takes a size"),
        ("express=maybe", "express takes on or off"),
        ("prefetch=all", "There is no prefetch policy"),
    ],
)
def test_options(tmp_path: Path, options: str, says: str) -> None:
    done = run("mount", str(tmp_path), "-o", options, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_directories(tmp_path: Path, mount: Mount) -> None:
    (tmp_path / "file").write_text("")
    for path, says in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "file", "is not a directory"),
        (mount.path, "is an hmmfs mount already"),
    ):
        done = run("mount", str(path), check=False)
        assert done.returncode == 1
        assert says in done.stderr
    done = run("status", str(tmp_path), check=False)
    assert done.returncode != 0
    assert "is not an hmmfs mount" in done.stderr


@pytest.mark.parametrize("name", ["stats", "version", "devices/dev0/vram/used", "audit"])
def test_what_only_tells_refuses_writes(mount: Mount, name: str) -> None:
    with pytest.raises(PermissionError):
        os.open(mount.path / name, os.O_WRONLY)


def test_names(mount: Mount) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        (mount.regions / ("x" * 256)).touch()
    assert caught.value.errno == errno.ENAMETOOLONG
    for make in (lambda p: p.mkdir(), lambda p: p.symlink_to("/"), lambda p: os.mkfifo(p)):
        with pytest.raises(PermissionError):
            make(mount.regions / "x")
    with pytest.raises(OSError) as big:  # noqa: PT011
        mount.region("big", 1 << 50)
    assert big.value.errno == errno.EFBIG


def test_files_for_calls_that_nobody_opens(mount: Mount) -> None:
    """Names that are just looked up are forgotten in time, and opened all the same."""
    calls = mount.path / "devices/dev0/calls"
    names = [f"{number:032x}" for number in range(3 * MAX_UNOPENED)]
    fd = os.open(calls / names[0], os.O_RDWR)
    try:
        opened, first = os.fstat(fd).st_ino, (calls / names[1]).stat().st_ino
        assert (calls / names[1]).stat().st_ino == first
        for name in names[2:]:
            (calls / name).stat()
        assert (calls / names[0]).stat().st_ino == opened
        assert (calls / names[1]).stat().st_ino > first, "made anew"
    finally:
        os.close(fd)
    assert (calls / names[0]).stat().st_ino > opened
    for name in names[:3]:
        fd = os.open(calls / name, os.O_RDWR)
        os.close(fd)


def test_a_file_for_calls_that_was_forgotten_before_it_is_opened(mount: Mount) -> None:
    """The kernel then looks its name up once more."""
    calls = mount.path / "devices/dev0/calls"
    path = os.open(calls / ("f" * 32), os.O_PATH)
    try:
        os.close(os.open(f"/proc/self/fd/{path}", os.O_RDWR))
        for number in range(MAX_UNOPENED + 1):
            (calls / f"{number:032x}").stat()
        fails(errno.ESTALE, lambda: os.open(f"/proc/self/fd/{path}", os.O_RDWR))
    finally:
        os.close(path)
    os.close(os.open(calls / ("f" * 32), os.O_RDWR))
