"""Extended attributes. Those that programs set are kept as on tmpfs; ours are files of state/.

Ours, `user.hmmfs.*`, are read and set by name and never listed: cp, mv, rsync and tar copy all that
is listed, and what is true of one region is not true of its copy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Sequence

import pyfuse3

from hmmfs.errors import HmmfsError
from hmmfs.filesystem.tree import Node, Setting, Text, Tree
from hmmfs.memory import Region

USER = b"user."
OURS = b"user.hmmfs."
# The files of state/ that are attributes, too; setting one is writing the file.
STATE_FILES = (b"advice", b"residency", b"faults", b"numa", b"prefetched")
CLEARED = {b"advice": b"all unset_all", b"numa": b"default"}  # what removing one writes
ENOATTR = pyfuse3.ENOATTR
MAX_VALUE = 65536  # Linux's own limit
# Bytes of names and values. listxattr(2) has no way to tell more than 64 KiB of names.
MAX_NAMES = 65536
MAX_FILE = 128 << 10
MAX_MOUNT = 64 << 20

Store = Callable[[Setting, bytes, int], Awaitable[int]]


class Kept:
    """What programs set, by inode number."""

    def __init__(self) -> None:
        self._of: dict[int, dict[bytes, bytes]] = {}
        self._bytes = 0

    def get(self, ino: int, name: bytes) -> bytes:
        try:
            return self._of[ino][name]
        except KeyError:
            raise _none(name) from None

    def names(self, ino: int) -> list[bytes]:
        return list(self._of.get(ino, ()))

    def set(self, ino: int, name: bytes, value: bytes) -> None:
        """ENOSPC: the file, or the mount, has as many as it can have. Nothing is changed then."""
        here = self._of.get(ino, {}) | {name: value}
        names, size = sum(len(each) + 1 for each in here), _size(here)
        if names > MAX_NAMES or size > MAX_FILE:
            raise HmmfsError(
                errno.ENOSPC,
                f"Extended attributes take at most {MAX_FILE >> 10} KiB of a file, and their names "
                f"{MAX_NAMES >> 10} KiB. Remove some.",
            )
        total = self._bytes - _size(self._of.get(ino, {})) + size
        if total > MAX_MOUNT:
            raise HmmfsError(
                errno.ENOSPC,
                f"Extended attributes take at most {MAX_MOUNT >> 20} MiB of a mount. Remove some.",
            )
        self._of[ino], self._bytes = here, total

    def remove(self, ino: int, name: bytes) -> None:
        value = self.get(ino, name)
        del self._of[ino][name]
        self._bytes -= len(name) + len(value)

    def drop(self, ino: int) -> None:
        """The file is gone for good."""
        self._bytes -= _size(self._of.pop(ino, {}))


class Xattrs:
    """What pyfuse3 asks for. `store` writes a value to a file of state/."""

    def __init__(self, tree: Tree, store: Store) -> None:
        self._tree = tree
        self._kept = Kept()
        self._store = store

    def drop(self, ino: int) -> None:
        self._kept.drop(ino)

    def get(self, what: Node | Region, name: bytes) -> bytes:
        self._check(what, name)
        if not name.startswith(OURS):
            return self._kept.get(what.ino, name)
        value = _value(self._state_file(what, name))
        if not value:
            raise _none(name)
        return value

    def names(self, what: Node | Region) -> Sequence[bytes]:
        return self._kept.names(what.ino)

    async def set(self, what: Node | Region, name: bytes, value: bytes) -> None:
        self._check(what, name)
        if not name.startswith(OURS):
            self._kept.set(what.ino, name, value)
            self._count(what)
            return
        node = self._state_file(what, name)
        if not isinstance(node, Setting):
            raise HmmfsError(errno.EACCES, f"{_show(name)} only tells: it can't be set.")
        await self._store(node, value, MAX_VALUE)

    async def remove(self, what: Node | Region, name: bytes) -> None:
        self._check(what, name)
        if not name.startswith(OURS):
            self._kept.remove(what.ino, name)
            self._count(what)
            return
        node = self._state_file(what, name)
        clear = CLEARED.get(name.removeprefix(OURS))
        if clear is None:
            raise HmmfsError(errno.EACCES, f"{_show(name)} only tells: it can't be removed.")
        if not _value(node):
            raise _none(name)
        assert isinstance(node, Setting)
        await self._store(node, clear, MAX_VALUE)

    def _count(self, what: Node | Region) -> None:
        if isinstance(what, Region):
            what.attributes = len(self._kept.names(what.ino))

    def _check(self, what: Node | Region, name: bytes) -> None:
        """ENOTSUP has tools that copy attributes go on without this one."""
        if not name.startswith(USER):
            raise HmmfsError(
                errno.EOPNOTSUPP,
                f"{_show(name)} can't be kept: regions have extended attributes in user. alone.",
            )
        if name == USER:
            raise HmmfsError(errno.EINVAL, "An extended attribute has a name behind user.")
        if not isinstance(what, Region) and what is not self._tree.regions:
            raise HmmfsError(errno.EOPNOTSUPP, "Control files have no extended attributes.")

    def _state_file(self, what: Node | Region, name: bytes) -> Text:
        """The file of state/ that one of our attributes is the same as."""
        short = name.removeprefix(OURS)
        state = self._tree.state_of(what) if isinstance(what, Region) else None
        node = state.get(short) if state and short in STATE_FILES else None
        if not isinstance(node, Text):
            known = ", ".join(each.decode() for each in STATE_FILES)
            raise HmmfsError(
                errno.EOPNOTSUPP,
                f"There is no {_show(name)}: in user.hmmfs. a region has {known}.",
            )
        return node


def _value(node: Text) -> bytes:
    text = node.produce()
    return text if isinstance(text, bytes) else text.encode(errors="surrogateescape")


def _size(attributes: dict[bytes, bytes]) -> int:
    return sum(len(name) + len(value) for name, value in attributes.items())


def _show(name: bytes) -> str:
    return os.fsdecode(name)


def _none(name: bytes) -> HmmfsError:
    return HmmfsError(ENOATTR, f"There is no extended attribute {_show(name)}.")
