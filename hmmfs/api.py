"""The Python API: mount or connect to a machine, map regions, launch kernels on its devices.

Everything goes through files of the mount, so a machine can be used from any process that sees it.

    with hmmfs.mount(vram="64M", devices=2) as machine:
        a = machine.region("a", shape=(64, 1 << 20), dtype="float32")
        a.cpu[:] = 1
        machine.dev0.launch(scale, hmmfs.updates(a), 2.0).wait()
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import math
import operator
import os
import re
import shlex
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from hmmfs import mountinfo
from hmmfs.attributes import query
from hmmfs.daemonize import reported
from hmmfs.device.launches import Array, Launch, Use, encoded, payload_of
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.handle import Handle
from hmmfs.process import Process, View
from hmmfs.submission import submission
from hmmfs.units import LARGEST

if TYPE_CHECKING:
    from hmmfs.inspect.trace import Event

ANSWER_BYTES = 1 << 16  # one read of an answer


class KernelError(HmmfsError):
    """A kernel raised (EREMOTEIO). `trace` is its traceback in the worker."""

    def __init__(self, sentence: str, trace: str) -> None:
        super().__init__(errno.EREMOTEIO, sentence)
        self.trace = trace

    def __str__(self) -> str:
        return f"{self.sentence}\n\nIn the device's worker:\n{self.trace}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelError, (self.sentence, self.trace)


@dataclass(frozen=True, slots=True)
class Argument:
    """A region, or memory of a program, as an argument of a launch; made by `reads`, `writes` or
    `updates`."""

    region: Region | View
    use: str

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"hmmfs.{self.use}(region) is an argument of launch by itself: give it to launch as "
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
        long it gets. HmmfsError with EINVAL: that is no advice; ENODEV: there is no such node."""
        place = "all"
        if part is not None:
            start, end = self._bytes(part)
            if start >= end:
                return
            place = f"{start}+{end - start}"
        if not all(isinstance(word, str) for word in words):
            raise UsageError(f"{words!r} is no advice: give words, as accessed_by=dev0.")
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
        cudaMemRangeGetAttribute tells: see `hmmfs.attributes.query`."""
        start, end = self._bytes(part)
        if start >= end:
            raise UsageError("Nothing is said of no bytes: ask for a part that has some.")
        advice, prefetched = ((self._state / name).read_text() for name in ("advice", "prefetched"))
        return query(advice, prefetched, start, end)

    @property
    def _state(self) -> Path:
        self._check_name()
        return self.machine.path / "state" / self.name

    def _bytes(self, part: slice) -> tuple[int, int]:
        """The bytes [start, end) of a part of the first axis."""
        if not isinstance(part, slice):
            raise UsageError(f"{part!r} is no part: give a slice of the first axis.")
        try:
            first, stop, step = part.indices(self.shape[0] if self.shape else 1)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{part!r} is no part: {error}.") from None
        if step != 1:
            raise UsageError(f"A part with step {step} is not one range: leave out the step.")
        row = self.nbytes // max(1, self.shape[0] if self.shape else 1)
        return first * row, stop * row

    def migrate(self, place: Device | str, part: slice = slice(None)) -> None:
        """Move its pages, or those of `part` of its first axis, to a device or to "host", and wait.
        ENOSPC: no room there."""
        self.prefetch(place, part).wait()

    def prefetch(self, place: Device | str, part: slice = slice(None)) -> Handle:
        """The same without waiting: the handle tells how far it is, and can cancel it. What has
        moved by then stays there."""
        name = place.name if isinstance(place, Device) else place
        device = self.machine._mover(name)
        self._check_name()
        start, end = self._bytes(part)
        if "\n" in self.name:
            raise UsageError(
                "An operation is one line, so a name with a line break can't be in one."
            )
        line = f"migrate {shlex.quote(self.name)}:{start}+{end - start} to {name}"
        return Handle(device, line if end > start else "", uuid.uuid4().hex)

    def unlink(self) -> None:
        """Remove it. HmmfsError with ESTALE: what has its name now is another."""
        self._check_name()
        self.path.unlink()


class Device:
    """A device of a machine."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name
        self.files = machine.path / "devices" / name

    def __reduce__(self) -> tuple[Any, ...]:
        return Machine.device, (self.machine, self.name)

    def submit(self, line: str, name: str | None = None) -> str:
        """Run operations, one a line, and return their answers. Raises HmmfsError with the errno
        of the first that fails, KernelError where that is a kernel's exception. name: 32
        hexadecimal digits of yours, by which it can be found in `queue`, and cancelled."""
        return self._transact(line, name)[0]

    def _transact(self, line: str, name: str | None) -> tuple[str, bool]:
        """The answer, and whether the mount is ours or root's, so that it may be believed."""
        if name is not None and not re.fullmatch("[0-9a-f]{32}", name):
            raise UsageError(f"{name!r} is no name for a call: give 32 hexadecimal digits.")
        data = submission(line)
        path = self.files / "calls" / (name or uuid.uuid4().hex)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            try:
                os.write(fd, data)
            except OSError as error:
                raise _failure(error, _answer(fd)) from None
            return _answer(fd).rstrip("\n"), mountinfo.mounter_of(fd) in (0, os.geteuid())
        finally:
            os.close(fd)

    def launch(
        self, kernel: Callable[..., Any] | str, *arguments: Any, limit: float | None = None
    ) -> Handle:
        """Run a kernel in the device's own process: a function, ``"module:function"`` or
        ``"file.py:function"``. Regions among the arguments (`reads`, `writes`, `updates`) arrive as
        numpy arrays, all else by pickle; so does what it returns. Launches on one device run in
        order. limit: seconds after which it is ended."""
        uses: list[Use] = []
        words: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Region | View):
                raise UsageError(
                    "Say how the kernel uses a region: give it hmmfs.reads(region), "
                    "hmmfs.writes(region) or hmmfs.updates(region)."
                )
            if isinstance(argument, Argument):
                region = argument.region
                if region.machine.path != self.machine.path:
                    raise UsageError(f"Region {region.name} is of another machine.")
                if isinstance(region, Region):
                    region._check_name()
                offset, pid, address = 0, 0, 0
                if isinstance(region, View):
                    offset, pid, address = region.offset, region.process.pid, region.address
                words.append(
                    Array(len(uses), argument.use, region.dtype, region.shape, offset=offset)
                )
                end = offset + region.nbytes
                uses.append(Use(os.fsencode(region.name), argument.use, end, pid, address))
            else:
                words.append(argument)
        payload = payload_of(kernel, words, [os.getcwd(), *filter(None, sys.path)])
        line = encoded(Launch(tuple(uses), payload, limit))
        return Handle(self, line, uuid.uuid4().hex, kernel=True)

    def stats(self) -> dict[str, int]:
        return table(self.files / "stats")

    def faults(self) -> dict[str, int]:
        """Its faults by access, and by what became of them."""
        return table(self.files / "faults")

    @property
    def kind(self) -> str:
        """private, coherent or dax; `coherent recall` where that is done without the kernel
        passing regions through, so that a first touch of either side costs a fault."""
        return (self.files / "type").read_text().strip()

    def policy(self, **texts: str) -> dict[str, str]:
        """The policies in force: `prefetch`, `eviction`, `watermark`. Those given are set before,
        as in ``policy(prefetch="density threshold=75")``. HmmfsError with EINVAL: there is none of
        that name, or not with that parameter."""
        files = {file.name: file for file in (self.files / "policy").iterdir()}
        for name, text in texts.items():
            if name not in files:
                raise UsageError(
                    f"There is no policy {name}: there are {', '.join(sorted(files))}."
                )
            if not text.strip():
                raise UsageError(f"{name}={text!r} names no policy: leave it out, or name one.")
            try:
                files[name].write_text(text)
            except OSError as error:
                raise refused(error, self.files) from None
        return {name: file.read_text().strip() for name, file in sorted(files.items())}


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
        known = ", ".join(device.name for device in self.devices) or "none"
        raise HmmfsError(errno.ENODEV, f"There is no device {name}; the devices are {known}.")

    def _mover(self, name: str) -> Device:
        """The device that is to move pages to a node. HmmfsError with ENODEV, as of submit: there
        is no such node."""
        if not self.devices:
            raise HmmfsError(errno.ENODEV, "There is no device to move pages: all are the host's.")
        if name == "host":
            return self.devices[0]
        for device in self.devices:
            if device.name == name:
                return device
        if not re.fullmatch(r"dev\d{1,4}", name, re.ASCII):
            raise HmmfsError(
                errno.ENODEV, f"{name!r} is not a place for pages: use host, or a device as dev0."
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
        changed: that is no name for a region, or no shape or dtype for its bytes."""
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
        from hmmfs.inspect.snapshot import thrashing

        return thrashing(os.fsdecode((self.path / "thrashing").read_bytes()))

    def trace(self) -> list[Event]:
        """What happened, oldest first, as far as it is kept."""
        from hmmfs.inspect.trace import Event, parse

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
        from hmmfs.filesystem import mounting

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


def checked_name(name: str) -> str:
    """A region's name, which must not lead out of regions/: with a slash in it, it would be some
    other file. UsageError: it is none."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UsageError(f"{name!r} is no name for a region: give a file name, without slashes.")
    return name


def checked_shape(shape: Any, kind: np.dtype[Any]) -> tuple[int, ...]:
    try:
        sizes = tuple(map(operator.index, shape if isinstance(shape, tuple | list) else (shape,)))
    except TypeError:
        raise UsageError(f"{shape!r} is no shape: give whole numbers.") from None
    if any(size < 0 for size in sizes) or math.prod(sizes) * kind.itemsize > LARGEST:
        raise UsageError(f"{shape!r} is no shape for {kind}: sizes are from 0 to 16T bytes in all.")
    return sizes


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
    """Have a daemon of ours mount; see `hmmfs.owned`."""
    owner = os.pidfd_open(os.getpid())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hmmfs.owned", str(owner)],
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
        f"The mount on {path} that this was pickled from has ended, or is not seen here: keep it "
        "mounted until then.",
    )


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


# ---- files of the mount


def _answer(fd: int) -> str:
    answer = b""
    while piece := os.pread(fd, ANSWER_BYTES, len(answer)):
        answer += piece
    return os.fsdecode(answer)


def _failure(error: OSError, answer: str) -> HmmfsError:
    sentence, trace = os.strerror(error.errno or 0), ""
    for line in answer.split("\n"):
        kind, _, rest = line.partition(" ")
        if kind == "error:":
            sentence = rest
        elif kind == "traceback":
            trace = base64.b64decode(rest).decode(errors="replace")
    if trace:
        return KernelError(sentence, trace)
    return HmmfsError(error.errno or errno.EIO, sentence)


def refused(error: OSError, where: Path) -> HmmfsError:
    """What the `last_error` there says of a write that failed. Who may not open the file for it has
    not been heard: then the kernel says so, and `last_error` is about something else."""
    if error.errno == errno.EACCES and error.filename is not None:
        return HmmfsError(error.errno, f"{error.filename} can't be opened: permission denied.")
    said = (where / "last_error").read_text().strip()
    return HmmfsError(error.errno or errno.EIO, said)


def table(path: Path) -> dict[str, int]:
    """A file of keys and numbers."""
    lines = path.read_text().splitlines()
    return {key: int(value) for key, value in (line.split(" ", 1) for line in lines)}
