"""The names of regions, and when a region may go.

A region lives while it has a name, a user (an open file, a device operation) or the kernel knows
its inode (which covers mappings). The last of these to end dooms it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Callable, Iterator

from hmmfs.errors import HmmfsError
from hmmfs.memory.core import FIRST_REGION_INO, NAME_MAX, Core
from hmmfs.memory.region import Region


class RegionTable:
    """Names and regions. No method awaits, so each of them is atomic for the trio thread."""

    def __init__(self, core: Core, doom: Callable[[int], None] | None = None) -> None:
        self._core = core
        self._doom = doom or core.destroy_region
        self._names: dict[bytes, Region] = {}
        self._by_ino: dict[int, Region] = {}
        self._on_named: Callable[[Region], None] = lambda region: None
        # Never reused: a stale inode number must not reach another region.
        self._inos = itertools.count(FIRST_REGION_INO)

    def on_doom(self, doom: Callable[[int], None]) -> None:
        """What to call with the inode number of a region that nobody can reach any more."""
        self._doom = doom

    def on_named(self, named: Callable[[Region], None]) -> None:
        """What to call with a region that has a name, or another one."""
        self._on_named = named

    def __len__(self) -> int:
        return len(self._names)

    @property
    def regions(self) -> int:
        """How many there are, named or not."""
        return len(self._by_ino)

    def has_nameless(self) -> bool:
        """Whether a region without a name is in use still, or the kernel has not told that it is
        not."""
        return any(not region.nlink for region in self._by_ino.values())

    def get(self, name: bytes) -> Region | None:
        return self._names.get(name)

    def file(self, name: bytes) -> Region | None:
        """The same for what is in regions/, where programs are not."""
        region = self._names.get(name)
        return None if region is None or region.pid else region

    def by_ino(self, ino: int) -> Region | None:
        return self._by_ino.get(ino)

    def listed(self, after: int = 0) -> Iterator[tuple[bytes, Region]]:
        """Named regions with a larger inode number than `after`, in that order: dictionaries keep
        the order of insertion, and inode numbers only grow. A region with several names is listed
        once, with its oldest."""
        for ino, region in list(self._by_ino.items()):
            if ino > after and region.nlink:
                yield region.name, region

    def links(self, after: int = 0) -> Iterator[tuple[int, bytes, Region]]:
        """(position, name, region) of all names of files past a position: by inode number, then by
        age. No name that comes or goes changes the position of another."""
        for ino, region in list(self._by_ino.items()):
            if ino < after >> LINK_BITS or region.pid:
                continue
            for name, number in list(region.links.items()):
                position = ino << LINK_BITS | number
                if position > after:
                    yield position, name, region

    def add_program(self, pid: int, uid: int, gid: int) -> Region:
        """A region for a program's own memory, named @PID. It has no file, and goes when it is
        unlinked and nobody uses it."""
        region = self._core.create_region(next(self._inos), 0, uid, gid)
        region.pid = pid
        region.name = program_name(pid)
        self._names[region.name] = self._by_ino[region.ino] = region
        self._on_named(region)
        return region

    def create(self, name: bytes, mode: int, uid: int, gid: int) -> Region:
        self._check_name(name)
        if name in self._names:
            raise HmmfsError(errno.EEXIST, f"A region named {show(name)} is there already.")
        self._check_names()
        region = self.create_unnamed(mode, uid, gid)
        self._link(region, name)
        return region

    def create_unnamed(self, mode: int, uid: int, gid: int) -> Region:
        """A file that goes when the last user is gone, unless `link` has named it."""
        region = self._core.create_region(next(self._inos), mode, uid, gid)
        region.nlink = 0
        self._by_ino[region.ino] = region
        return region

    def link(self, region: Region, name: bytes) -> None:
        """Another name for a file, or its first."""
        self._check_name(name)
        if name in self._names:
            raise HmmfsError(errno.EEXIST, f"A region named {show(name)} is there already.")
        self._link(region, name)
        region.modified()

    def _link(self, region: Region, name: bytes) -> None:
        number = next(reversed(region.links.values()), 0) + 1
        if number >> LINK_BITS:
            raise HmmfsError(errno.EMLINK, "A region gets no more than 65535 names.")
        self._check_names()
        self._names[name] = region
        region.links[name] = number
        self._renamed(region)

    def _renamed(self, region: Region) -> None:
        """Its names are others now. It goes by its oldest."""
        region.nlink = len(region.links)
        name = next(iter(region.links), region.name)
        if name != region.name:
            region.name = name
            self._on_named(region)

    def unlink(self, name: bytes) -> None:
        region = self._named(name)
        del self._names[name], region.links[name]
        self._renamed(region)
        region.modified()
        self._settle(region)

    def remove_program(self, region: Region) -> None:
        """The program is gone. Its name may be its successor's by now."""
        if not region.nlink:
            return
        if self._names.get(region.name) is region:
            del self._names[region.name]
        region.nlink = 0
        region.modified()
        self._settle(region)

    def rename(self, old: bytes, new: bytes, *, replace: bool = True) -> None:
        region = self._named(old)
        self._check_name(new)
        other = self._names.get(new)
        if other is not None and not replace:
            raise HmmfsError(errno.EEXIST, f"A region named {show(new)} is there already.")
        if other is region:
            return
        if other is not None:
            self.unlink(new)
        self._names[new] = self._names.pop(old)
        self._replace(region, {old: new})
        region.modified()

    def _replace(self, region: Region, names: dict[bytes, bytes]) -> None:
        region.links = {names.get(name, name): n for name, n in region.links.items()}
        self._renamed(region)

    def exchange(self, one: bytes, two: bytes) -> None:
        a, b = self._named(one), self._named(two)
        self._names[one], self._names[two] = b, a
        for region in {a, b}:
            self._replace(region, {one: two, two: one})
            region.modified()

    # ---- references

    def looked_up(self, region: Region) -> None:
        region.lookups += 1

    def forget(self, region: Region, lookups: int) -> None:
        region.lookups -= lookups
        self._settle(region)

    def acquire(self, region: Region) -> None:
        region.users += 1

    def release(self, region: Region) -> None:
        region.users -= 1
        self._settle(region)

    @contextlib.contextmanager
    def using(self, *regions: Region) -> Iterator[None]:
        for region in regions:
            self.acquire(region)
        try:
            yield
        finally:
            for region in regions:
                self.release(region)

    def _settle(self, region: Region) -> None:
        if region.nlink == 0 and region.users <= 0 and region.lookups <= 0:
            del self._by_ino[region.ino]
            self._doom(region.ino)

    # ---- names

    def _check_names(self) -> None:
        if len(self._names) >= MAX_NAMES:
            raise HmmfsError(errno.ENOSPC, f"A mount has at most {MAX_NAMES} names. Remove some.")

    def _named(self, name: bytes) -> Region:
        region = self.file(name)
        if region is None:
            raise HmmfsError(errno.ENOENT, f"There is no region named {show(name)}.")
        return region

    @staticmethod
    def _check_name(name: bytes) -> None:
        if len(name) > NAME_MAX:
            raise HmmfsError(
                errno.ENAMETOOLONG,
                f"A region's name has at most {NAME_MAX} bytes; this one has {len(name)}.",
            )
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise HmmfsError(errno.EINVAL, f"{show(name)} cannot be the name of a file.")
        if PROGRAM.fullmatch(name):
            raise HmmfsError(
                errno.EINVAL, f"{show(name)} is the name of a program's memory: choose another."
            )


MAX_NAMES = 1 << 16  # so that links do not fill the daemon's memory
LINK_BITS = 16  # of a position in regions/, below the inode number
PROGRAM = re.compile(rb"@[0-9]+")


def program_name(pid: int) -> bytes:
    return b"@%d" % pid


def show(name: bytes) -> str:
    """A name for a sentence: quoted, printable."""
    return repr(os.fsdecode(name).encode("utf-8", "backslashreplace").decode())
