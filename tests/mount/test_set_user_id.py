"""What takes a file's set-user-ID and set-group-ID bits away, as on a tmpfs."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import KINDS, PATIENCE_S, Mount, let_others_reach, mounted, takes_root
from test_names import NOBODY, as_nobody

SOURCE = Path("/bin/sh")
pytestmark = takes_root("only root becomes another user")


@pytest.fixture(scope="module", params=KINDS)
def mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    base = tmp_path_factory.mktemp(request.param)
    options = {"vram": "8M", "allow_other": "on", **KINDS[request.param]}
    let_others_reach(base)
    with mounted(base, PATIENCE_S * 5, **options) as one:
        yield one


def opened(path: Path, flags: int, use: Callable[[int], object]) -> None:
    fd = os.open(path, flags)
    try:
        use(fd)
    finally:
        os.close(fd)


def by_descriptor(use: Callable[[int], object], flags: int = os.O_RDWR) -> Callable[[Path], None]:
    return lambda path: opened(path, flags, use)


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": by_descriptor(lambda fd: os.write(fd, b"y")),
    "append": by_descriptor(lambda fd: os.write(fd, b"y"), os.O_WRONLY | os.O_APPEND),
    "pwritev": by_descriptor(lambda fd: os.pwritev(fd, [b"y", b"z"], 3)),
    "direct": by_descriptor(lambda fd: os.write(fd, b"y"), os.O_WRONLY | os.O_SYNC),
    "write of nothing": by_descriptor(lambda fd: os.write(fd, b"")),
    "read": by_descriptor(lambda fd: os.read(fd, 1)),
    "truncate": lambda path: os.truncate(path, 5),
    "ftruncate": by_descriptor(lambda fd: os.ftruncate(fd, 9000)),
    "same size": by_descriptor(lambda fd: os.ftruncate(fd, 8192)),
    "O_TRUNC": by_descriptor(lambda fd: None, os.O_WRONLY | os.O_TRUNC),
    "fallocate": by_descriptor(lambda fd: os.posix_fallocate(fd, 0, 20_000)),
    "copy_file_range": by_descriptor(lambda fd: os.copy_file_range(fd, fd, 100, 0, 4096)),
    "sendfile": by_descriptor(
        lambda fd: opened(SOURCE, os.O_RDONLY, lambda s: os.sendfile(fd, s, 0, 9))
    ),
    "chmod": lambda path: path.chmod(stat.S_IMODE(path.stat().st_mode)),
    "chown": lambda path: os.chown(path, NOBODY, NOBODY),
    "utime": lambda path: os.utime(path, (1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"1"),
}
MODES = [0o6755, 0o4755, 0o2755, 0o2745, 0o6666, 0o4000 | 0o600]


def made(path: Path, mode: int) -> Path:
    path.write_bytes(b"x" * 8192)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    return path


@pytest.mark.parametrize("who", ["owner", "root"])
@pytest.mark.parametrize("change", CHANGES)
def test_as_on_a_tmpfs(mount: Mount, change: str, who: str) -> None:
    call = CHANGES[change]
    left: dict[str, list[int]] = {}
    places = {"tmpfs": Path("/dev/shm"), "region": mount.regions}
    for name, place in places.items():
        path = place / f"hmmfs-test-{os.getpid()}"
        left[name] = []
        for mode in MODES:
            try:
                made(path, mode)
                number = as_nobody(lambda path=path: call(path)) if who == "owner" else 0
                if who == "root":
                    call(path)
                assert number in (0, errno.EOPNOTSUPP), (name, number)
                left[name].append(stat.S_IMODE(path.stat().st_mode))
            finally:
                path.unlink(missing_ok=True)
    assert [f"{mode:o}" for mode in left["region"]] == [f"{mode:o}" for mode in left["tmpfs"]]
