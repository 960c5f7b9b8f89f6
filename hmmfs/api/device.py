"""A device of a machine: operations and kernels are given to it, and it tells of itself."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hmmfs.api.checks import refused, table
from hmmfs.api.handle import Handle
from hmmfs.api.program import View
from hmmfs.api.region import Argument, Region
from hmmfs.errors import UsageError
from hmmfs.wire.calls import transact
from hmmfs.wire.launches import Array, Launch, Use, encoded, payload_of

if TYPE_CHECKING:
    from hmmfs.api.machine import Machine


class Device:
    """A device of a machine."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name
        self.files = machine.path / "devices" / name

    def __reduce__(self) -> tuple[Any, ...]:
        return _device_again, (self.machine, self.name)

    def submit(self, line: str, name: str | None = None) -> str:
        """Run operations, one a line, and return their answers. Raises HmmfsError with the errno
        of the first that fails, KernelError where that is a kernel's exception. name: 32
        hexadecimal digits of yours, by which it can be found in `queue`, and cancelled."""
        return transact(self.files, line, name)[0].rstrip("\n")

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
                    "Say how the kernel uses a region. Give it hmmfs.reads(region), "
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
        return Handle(self.files, line, uuid.uuid4().hex, kernel=True)

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
                raise UsageError(f"{name}={text!r} names no policy. Leave it out, or name one.")
            try:
                files[name].write_text(text)
            except OSError as error:
                raise refused(error, self.files) from None
        return {name: file.read_text().strip() for name, file in sorted(files.items())}


def _device_again(machine: Machine, name: str) -> Device:
    return machine.device(name)
