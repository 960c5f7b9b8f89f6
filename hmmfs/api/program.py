"""A program under ``hmmfs run`` in the Python API: its own memory, by its own addresses.

The words are those of GMEM: an address space that devices are attached to, and `hmadvise` to have
memory prefetched, pinned or freed.
"""

from __future__ import annotations

import enum
import errno
import math
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hmmfs.api.checks import checked_shape, refused, table
from hmmfs.api.handle import Handle
from hmmfs.common.units import LARGEST
from hmmfs.errors import HmmfsError, UsageError

if TYPE_CHECKING:
    from hmmfs.api.device import Device
    from hmmfs.api.machine import Machine


class Hmadvise(enum.IntEnum):
    """What `Process.hmadvise` takes, with GMEM's numbers (OLK-6.6)."""

    DONTNEED = 4  # forget: the next touch of either side finds zeros
    PREFETCH = 0x1000
    PINNED = 0x1001
    UNPINNED = 0x1002


class Process:
    """The memory of one program. HmmfsError with ESRCH: it does not run under ``hmmfs run``."""

    def __init__(self, machine: Machine, pid: int) -> None:
        self.machine, self.pid = machine, pid
        self.name = f"@{pid}"
        self._files: Path = machine.path / "state" / self.name
        if not self._files.exists():
            raise HmmfsError(
                errno.ESRCH,
                f"Process {pid} has not given its memory to {machine.path}. Start it with "
                "hmmfs run.",
            )
        # Of a program that is given the number later it is another.
        self._ino = os.stat(self._files).st_ino

    def __reduce__(self) -> tuple[Any, ...]:
        return _process_again, (self.machine, self.pid, self._ino)

    def view(self, address: int, shape: tuple[int, ...] | int, dtype: Any = "uint8") -> View:
        """An array of that memory, to be given to kernels (`reads`, `writes`, `updates`) and moved.
        `shape` elements of `dtype`; nothing is touched by this."""
        return View(self, address, shape, np.dtype(dtype))

    def residency(self) -> dict[str, int]:
        """Pages that devices have, by device; the program's own are not counted."""
        return table(self._files / "residency")

    @property
    def devices(self) -> list[str]:
        """The devices that are attached: in the beginning all."""
        return (self._files / "devices").read_text().split()

    def attach(self, *devices: Device | str) -> None:
        self._set(*(f"attach {_name(device)}" for device in devices))

    def detach(self, *devices: Device | str) -> None:
        """Their pages come home, and they can't use this memory any more."""
        self._set(*(f"detach {_name(device)}" for device in devices))

    def home(self, *, once: bool = False) -> None:
        """Every page comes home, where debuggers find it, and all devices are detached; with
        `once` they stay attached, and may take pages again. Works while the program is stopped."""
        self._set("home once" if once else "home")

    def hmadvise(
        self, behavior: Hmadvise | int, address: int, length: int, node: Device | str = "host"
    ) -> None:
        """As GMEM's hmadvise: PREFETCH moves pages to a node, PINNED keeps what devices have from
        being evicted, DONTNEED drops it. HmmfsError with EINVAL: there is no such behaviour."""
        if behavior == Hmadvise.PREFETCH:
            self.view(address, length).migrate(node)
        elif behavior in (Hmadvise.PINNED, Hmadvise.UNPINNED):
            word = "pinned" if behavior == Hmadvise.PINNED else "unset_pinned"
            self._write("advice", f"{address % LARGEST}+{length} {word}")
        elif behavior == Hmadvise.DONTNEED:
            self._write("devices", f"forget {address:#x}+{length}")
        else:
            known = ", ".join(f"{one.name} {one:#x}" for one in Hmadvise)
            raise UsageError(f"{behavior!r} is not a behaviour: there are {known}.")

    def _set(self, *lines: str) -> None:
        for line in lines:
            self._write("devices", line)

    def _write(self, name: str, line: str) -> None:
        try:
            (self._files / name).write_text(f"{line}\n")
        except FileNotFoundError:
            raise HmmfsError(errno.ESRCH, f"Process {self.pid} has ended.") from None
        except OSError as error:
            raise refused(error, self.machine.path) from None


class View:
    """Memory of a program as an array: as `Region`, for kernels and for `migrate`."""

    def __init__(
        self, process: Process, address: int, shape: tuple[int, ...] | int, dtype: np.dtype[Any]
    ) -> None:
        self.process, self.machine, self.name = process, process.machine, process.name
        self.address, self.dtype = address, dtype
        self.shape = checked_shape(shape, dtype)
        if not 0 <= address <= (1 << 56) - self.nbytes:
            raise UsageError(
                f"{address:#x} is not an address of {self.nbytes} bytes. See its maps."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self.process, self.address, self.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def offset(self) -> int:
        """Of its first byte, in what the program's memory is to the devices."""
        return self.address % LARGEST

    @property
    def place(self) -> str:
        """As operations name it."""
        return f"{self.process.pid}@{self.address:#x}+{self.nbytes}"

    def migrate(self, node: Device | str) -> None:
        """Move its pages to a device or to "host", and wait."""
        self.prefetch(node).wait()

    def prefetch(self, node: Device | str) -> Handle:
        """The same without waiting."""
        name = _name(node)
        device = self.machine._mover(name)
        line = f"migrate {self.place} to {name}" if self.nbytes else ""
        return Handle(device.files, line, uuid.uuid4().hex)


def _process_again(machine: Machine, pid: int, ino: int) -> Process:
    process = Process(machine, pid)
    if process._ino != ino:
        raise HmmfsError(errno.ESRCH, f"Process {pid} has ended, and another has its number.")
    return process


def _name(device: Device | str) -> str:
    return device if isinstance(device, str) else device.name
