"""A region as an array, and as an argument of a launch."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shlex
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from hmmfs.api.attributes import query
from hmmfs.api.checks import refused, table
from hmmfs.api.handle import Handle
from hmmfs.api.program import View
from hmmfs.errors import HmmfsError, UsageError

if TYPE_CHECKING:
    from hmmfs.api.device import Device
    from hmmfs.api.machine import Machine


@dataclass(frozen=True, slots=True)
class Argument:
    """A region, or memory of a program, as an argument of a launch; made by `reads`, `writes` or
    `updates`."""

    region: Region | View
    use: str

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"hmmfs.{self.use}(region) is an argument of launch by itself. Give it to launch as "
            "one, not inside another, nor to another process."
        )


def reads(region: Region | View) -> Argument:
    """The kernel only loads from it: its array is read-only."""
    return Argument(region, "reads")


def writes(region: Region | View) -> Argument:
    """The kernel stores to all of it, and needs nothing of what is there: pages need not be copied
    to the device. Where it does not store after all, or ends early, old bytes or zeros are left."""
    return Argument(region, "writes")


def updates(region: Region | View) -> Argument:
    """The kernel loads from it and stores to it."""
    return Argument(region, "updates")


class Region:
    """A region as an array of `shape` and `dtype`, from its first byte on. Copied, pickled or sent
    to another process it is still the same bytes: the array in `cpu` is what would be a copy."""

    # ino: of its file, by which it is told from another of the name
    def __init__(
        self, machine: Machine, name: str, ino: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.machine, self.name, self.shape, self.dtype = machine, name, shape, dtype
        self._ino = ino
        self._cpu: np.memmap[Any, Any] | None = None

    @property
    def path(self) -> Path:
        return self.machine.path / "regions" / self.name

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def cpu(self) -> np.memmap[Any, Any]:
        """The region as this process sees it: a numpy.memmap of the file, made once. As any array
        of numpy it is pickled as a copy: send the region instead. HmmfsError with ESTALE: the
        region was replaced by another of its name."""
        if self._cpu is None and not self.nbytes:
            self._cpu = np.empty(self.shape, self.dtype).view(np.memmap)  # nothing can be mapped
        if self._cpu is None:
            with open(str(self.path), "r+b") as file:
                self._check(os.fstat(file.fileno()).st_ino)
                self._cpu = np.memmap(file, dtype=self.dtype, mode="r+", shape=self.shape)
        return self._cpu

    def _check(self, ino: int) -> None:
        """The region of our name now has that inode number."""
        if ino != self._ino:
            raise HmmfsError(
                errno.ESTALE,
                f"Region {self.name!r} was replaced by another of that name: get it anew with "
                f"machine.region({self.name!r}).",
            )

    def _check_name(self) -> None:
        """What goes by its name is meant for it. Of a name that is gone the daemon tells."""
        with contextlib.suppress(FileNotFoundError):
            self._check(os.stat(self.path).st_ino)

    def __reduce__(self) -> tuple[Any, ...]:
        return _region_again, (self.machine, self.name, self._ino, self.shape, self.dtype)

    def residency(self) -> dict[str, int]:
        """Pages of 4 KiB by node (`pages_host`, `pages_dev0`, …) and by condition."""
        return table(self._state / "residency")

    def faults(self) -> dict[str, int]:
        """Faults on it by who had them, and pages of it that were evicted and that thrash."""
        return table(self._state / "faults")

    def advise(self, *words: str, part: slice | None = None) -> None:
        """Say how it is used: read_mostly, preferred_location=dev0, accessed_by=dev0,dev1,
        granularity=64K, pinned, no_migrate, each also with unset_ before it, or unset_all. Of
        `part` of its first axis, widened to whole pages; without it of the whole region, however
        long it gets. HmmfsError with EINVAL: that is not advice; ENODEV: there is no such node."""
        place = "all"
        if part is not None:
            start, end = self._bytes(part)
            if start >= end:
                return
            place = f"{start}+{end - start}"
        if not all(isinstance(word, str) for word in words):
            raise UsageError(f"{words!r} is not advice. Give words, as accessed_by=dev0.")
        try:
            (self._state / "advice").write_bytes(os.fsencode(f"{place} {' '.join(words)}\n"))
        except FileNotFoundError:
            raise HmmfsError(errno.ENOENT, f"There is no region named {self.name!r}.") from None
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENODEV, errno.ERANGE, errno.ENOSPC):
                raise
            raise refused(error, self.machine.path) from None

    def attributes(self, part: slice = slice(None)) -> dict[str, Any]:
        """What was said of all of it, or of all of `part` of its first axis, as
        cudaMemRangeGetAttribute tells: see `hmmfs.api.attributes.query`."""
        start, end = self._bytes(part)
        if start >= end:
            raise UsageError("Nothing is said of no bytes. Ask for a part that has some.")
        advice, prefetched = ((self._state / name).read_text() for name in ("advice", "prefetched"))
        return query(advice, prefetched, start, end)

    @property
    def _state(self) -> Path:
        self._check_name()
        return self.machine.path / "state" / self.name

    def _bytes(self, part: slice) -> tuple[int, int]:
        """The bytes [start, end) of a part of the first axis."""
        if not isinstance(part, slice):
            raise UsageError(f"{part!r} is not a part. Give a slice of the first axis.")
        try:
            first, stop, step = part.indices(self.shape[0] if self.shape else 1)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{part!r} is not a part: {error}.") from None
        if step != 1:
            raise UsageError(f"A part with step {step} is not one range. Leave out the step.")
        row = self.nbytes // max(1, self.shape[0] if self.shape else 1)
        return first * row, stop * row

    def migrate(self, place: Device | str, part: slice = slice(None)) -> None:
        """Move its pages, or those of `part` of its first axis, to a device or to "host", and wait.
        ENOSPC: it is full."""
        self.prefetch(place, part).wait()

    def prefetch(self, place: Device | str, part: slice = slice(None)) -> Handle:
        """The same without waiting: the handle tells how far it is, and can cancel it. What has
        moved by then stays there."""
        name = place if isinstance(place, str) else place.name
        device = self.machine._mover(name)
        self._check_name()
        start, end = self._bytes(part)
        if "\n" in self.name:
            raise UsageError(
                "An operation is one line, so a name with a line break can't be in one."
            )
        line = f"migrate {shlex.quote(self.name)}:{start}+{end - start} to {name}"
        return Handle(device.files, line if end > start else "", uuid.uuid4().hex)

    def unlink(self) -> None:
        """Remove it. HmmfsError with ESTALE: what has its name now is another."""
        self._check_name()
        self.path.unlink()


def _region_again(
    machine: Machine, name: str, ino: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Region:
    region = Region(machine, name, ino, shape, dtype)
    try:
        region._check(os.stat(region.path).st_ino)
    except FileNotFoundError:
        raise HmmfsError(
            errno.ENOENT, f"Region {name!r} was removed or renamed since it was pickled."
        ) from None
    return region
