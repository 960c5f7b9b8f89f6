"""The Python API: mount or connect to a machine, map regions, launch kernels on its devices.

Everything goes through files of the mount, so a machine can be used from any process that sees it.

    with hmmfs.mount(vram="64M", devices=2) as machine:
        a = machine.region("a", shape=(64, 1 << 20), dtype="float32")
        a.cpu[:] = 1
        machine.dev0.launch(scale, hmmfs.updates(a), 2.0).wait()
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import operator
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from hmmfs.api.checks import checked_name, checked_shape, table
from hmmfs.api.device import Device
from hmmfs.api.program import Process
from hmmfs.api.region import Region
from hmmfs.common import mountinfo
from hmmfs.common.names import no_device
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.mounting.daemonize import reported

if TYPE_CHECKING:
    from hmmfs.inspect.mount.trace import Event


class Machine:
    """A mount: its devices (`dev0`, …), and its regions by name."""

    # owner: the process that the mount ends with, if that is one of ours
    def __init__(self, path: Path, *, owner: int | None = None, temporary: bool = False) -> None:
        self.path = path
        self._owner, self._temporary = owner, temporary
        self._identity = _identity(path)
        names = sorted(os.listdir(path / "devices"), key=lambda name: int(name[3:]))
        self.devices = [Device(self, name) for name in names]

    def __reduce__(self) -> tuple[Any, ...]:
        return _machine_again, (os.fspath(self.path), self._identity)

    def device(self, name: str) -> Device:
        for device in self.devices:
            if device.name == name:
                return device
        raise HmmfsError(errno.ENODEV, no_device(name, (device.name for device in self.devices)))

    def _mover(self, name: str) -> Device:
        """The device that is to move pages to a node. HmmfsError with ENODEV, as of submit: the
        machine has no such node."""
        if not self.devices:
            raise HmmfsError(errno.ENODEV, "There is no device to move pages: all are the host's.")
        if name == "host":
            return self.devices[0]
        for device in self.devices:
            if device.name == name:
                return device
        if not re.fullmatch(r"dev\d{1,4}", name, re.ASCII):
            raise HmmfsError(
                errno.ENODEV, f"{name!r} is not a place for pages. Use host, or a device as dev0."
            )
        raise HmmfsError(
            errno.ENODEV,
            f"migrate: There is no {name}: this mount has {len(self.devices)} device(s), counted "
            "from dev0.",
        )

    def __getattr__(self, name: str) -> Device:
        if name.startswith("dev") and name[3:].isdigit():
            return self.device(name)
        raise AttributeError(name)

    def region(
        self, name: str, shape: tuple[int, ...] | int | None = None, dtype: Any = "uint8"
    ) -> Region:
        """The region of that name, made and grown as needed to hold `shape` elements of `dtype`.
        Without a shape: all that is there. New elements are zeros. UsageError, with nothing made or
        changed: that is not a name for a region, or no shape or dtype for its bytes."""
        path, kind = self.path / "regions" / checked_name(name), np.dtype(dtype)
        if kind.hasobject or not kind.itemsize:
            raise UsageError(
                f"A region can't hold {kind}: Python objects are of one process alone, and elements"
                " of no size can't be told apart."
            )
        if shape is None:
            shape = (os.stat(path).st_size // kind.itemsize,)
        sizes = checked_shape(shape, kind)
        nbytes = math.prod(sizes) * kind.itemsize
        # Opened for writing only if need be: that would end the copies of read-mostly pages.
        if not path.exists() or path.stat().st_size < nbytes:
            with open(path, "ab") as file:
                if file.seek(0, os.SEEK_END) < nbytes:
                    file.truncate(nbytes)
        return Region(self, name, os.stat(path).st_ino, sizes, kind)

    def process(self, pid: int) -> Process:
        """The memory of a program under ``hmmfs run``. HmmfsError with ESRCH: it is none."""
        return Process(self, pid)

    def stats(self) -> dict[str, int]:
        return table(self.path / "stats")

    def thrashing(self) -> list[dict[str, Any]]:
        """What thrashes or did, most pages first: region, device, cause (capacity or sharing),
        pages, and seconds_ago."""
        from hmmfs.inspect.mount.snapshot import thrashing

        return thrashing(os.fsdecode((self.path / "thrashing").read_bytes()))

    def trace(self) -> list[Event]:
        """What happened, oldest first, as far as it is kept."""
        from hmmfs.inspect.mount.trace import Event, parse

        found = parse((self.path / "trace").read_bytes())
        return [event for event in found if isinstance(event, Event)]

    def audit(self) -> str:
        """The word ok, or what is wrong in the directory; exact while nothing runs."""
        return (self.path / "audit").read_text().strip()

    def close(self) -> None:
        """End the mount, if it was made by `mount` in this process: in a forked child nothing
        happens. HmmfsError with EBUSY: it is in use."""
        if self._is_ours():
            self._end(lazy=False)

    def _is_ours(self) -> bool:
        return self._owner == os.getpid()

    def _end(self, *, lazy: bool) -> None:
        from hmmfs.mounting import mounts as mounting

        mounting.unmount(str(self.path), lazy)
        self._owner = None
        if self._temporary:
            with contextlib.suppress(OSError):  # the daemon may have been faster
                self.path.rmdir()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except HmmfsError as busy:
            if busy.errno != errno.EBUSY:
                raise
            # Most likely maps of regions that the caller still holds: detached, it ends with them.
            self._end(lazy=True)


def connect(path: str | os.PathLike[str]) -> Machine:
    """The machine that is mounted at path. HmmfsError: there is none."""
    return Machine(Path(mountinfo.require_hmmfs(os.fspath(path)).point))


def mount(path: str | os.PathLike[str] | None = None, **options: object) -> Machine:
    """Mount a machine with the options of `hmmfs mount`, on a temporary directory unless a path is
    given. An option is a string, a path, a whole number, True or False; None leaves it as it is.
    Leaving the context, or close(), ends the mount; so does the end of this process, however it
    ends. HmmfsError: it can't be mounted, UsageError: not with these options."""
    pairs = _texts(options)
    if path is not None and not os.fspath(path):
        raise UsageError("The directory to mount on has an empty name.")
    where = Path(tempfile.mkdtemp(prefix="hmmfs-") if path is None else path).absolute()
    try:
        _start({"path": str(where), "options": pairs, "temporary": path is None})
    except BaseException:
        if path is None:
            with contextlib.suppress(OSError):
                where.rmdir()
        raise
    return Machine(where, owner=os.getpid(), temporary=path is None)


def _texts(options: dict[str, Any]) -> list[tuple[str, str]]:
    """Options as names and texts. UsageError: no text can say that."""
    given = [(name, value) for name, value in options.items() if value is not None]
    return [(name, _text(name, value)) for name, value in given]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    try:
        if not isinstance(value, str | os.PathLike):
            return str(operator.index(value))
        text = os.fsdecode(value)
        if "\0" not in os.fsdecode(os.fsencode(text)):
            return text
    except (TypeError, UnicodeEncodeError):
        pass
    raise UsageError(
        f'The option "{name}" is wrong: {value!r} can\'t be passed. Give a string, a whole number, '
        "True or False."
    )


def _start(request: dict[str, Any]) -> None:
    """Have a daemon of ours mount; see `hmmfs.cli.owned`."""
    owner = os.pidfd_open(os.getpid())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hmmfs.cli.owned", str(owner)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            pass_fds=[owner],
        )
    finally:
        os.close(owner)
    if done.returncode:
        try:
            error = reported(json.loads(done.stdout))
        except ValueError:
            said = done.stderr.strip() or f"It ended with status {done.returncode}."
            error = HmmfsError(errno.EIO, said)
        raise error
    if warning := json.loads(done.stdout):
        print(f"hmmfs: {warning}", file=sys.stderr)


# ---- the same in another process


def _identity(path: Path) -> tuple[int, int]:
    """Of a mount: a later one on the path has another."""
    found = os.stat(path / "version")
    return found.st_dev, found.st_mtime_ns


def _machine_again(path: str, identity: tuple[int, int]) -> Machine:
    with contextlib.suppress(OSError):
        if mountinfo.find_hmmfs(path) is not None and _identity(Path(path)) == identity:
            return Machine(Path(path))
    raise HmmfsError(
        errno.ESTALE,
        f"The mount on {path} that this was pickled from has ended, or is not seen here. Keep it "
        "mounted until then.",
    )
