"""/proc/self/mountinfo: what is mounted where, learnt without touching a mount.

Nothing here may stat a path that might be a mount of hmmfs: while its gate does not run, a stat
waits for ever.

`hmmfs run` starts with it, so it imports little: dataclasses would take 4 ms of 30.
"""

import errno
import os
import re
from typing import NamedTuple

from hmmfs.common.names import unescaped
from hmmfs.errors import HmmfsError

TYPE = "fuse.hmmfs"


class Entry(NamedTuple):
    """One mount. For FUSE the device's minor number is the connection's number in fusectl."""

    point: str
    type: str
    source: str
    major: int
    minor: int
    user: int = -1  # who mounted, as the kernel has it; -1: it is not of FUSE


def entries(pid: str = "self") -> list[Entry]:
    """Every mount that a process sees, this one or another, in the order in which they were
    stacked."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return [_parse(line) for line in file]


def find(path: str) -> Entry | None:
    """The mount whose top directory is ``path`` (see resolve), the uppermost if several are."""
    return next((entry for entry in reversed(entries()) if entry.point == path), None)


def find_hmmfs(path: str) -> Entry | None:
    """The hmmfs mount on ``path``, where the uppermost mount there is one."""
    entry = find(resolve(path))
    return entry if entry and entry.type == TYPE else None


def require_hmmfs(path: str) -> Entry:
    """The hmmfs mount on ``path``, or EINVAL."""
    entry = find_hmmfs(path)
    if entry is None:
        raise HmmfsError(
            errno.EINVAL, f"{path} is not an hmmfs mount. Give the directory it is mounted on."
        )
    return entry


def mounter_of(fd: int) -> int | None:
    """The user who mounted what an open file is on, by what the kernel alone says: nothing that the
    file system itself tells is believed. None: it is not an hmmfs mount that is seen here."""
    device = os.fstat(fd).st_dev
    for entry in entries():
        if (entry.major, entry.minor) == (os.major(device), os.minor(device)):
            return entry.user if entry.type == TYPE else None
    return None


def resolve(path: str) -> str:
    """The absolute path free of symlinks, never looking at the last component if mounted on."""
    points = {entry.point for entry in entries()}
    if not os.path.isabs(path):
        try:
            path = os.path.join(os.getcwd(), path)
        except FileNotFoundError:
            raise HmmfsError(
                errno.ENOENT, f"The working directory is gone. Give {path} as an absolute path."
            ) from None
    for _ in range(40):  # the kernel's own limit on symlinks in a path
        parent, name = os.path.split(path.rstrip("/"))
        if name in ("", ".", ".."):
            return os.path.realpath(path)
        parent = os.path.realpath(parent)
        path = os.path.join(parent, name)
        if path in points:
            return path
        try:
            path = os.path.join(parent, os.readlink(path))
        except OSError:
            return path
    return path


def _parse(line: bytes) -> Entry:
    before, after = line.rstrip(b"\n").split(b" - ", 1)
    _, _, device, _, point, *_ = before.split(b" ")
    kind, source, options, *_ = after.split(b" ")
    major, minor = device.split(b":")
    user = re.search(rb"(?:^|,)user_id=(\d+)", options) if kind == TYPE.encode() else None
    return Entry(
        _text(point),
        _text(kind),
        _text(source),
        int(major),
        int(minor),
        int(user[1]) if user else -1,
    )


def _text(field: bytes) -> str:
    return os.fsdecode(unescaped(field))
