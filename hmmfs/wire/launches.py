"""What a launch is: a function, its arguments, and which regions it uses how.

A launch travels as a `call` operation: one JSON object, base64. Its payload is a pickle that only
the worker opens, since what it holds is the user's code.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import pickle
import sys
import sysconfig
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from hmmfs.errors import UsageError

USES = ("reads", "writes", "updates")


@dataclass(frozen=True, slots=True)
class Array:
    """An argument that is an array over a region: the `index`-th of the launch's regions, `shape`
    elements of `dtype` from byte `offset` on. use: reads, writes or updates."""

    index: int
    use: str
    dtype: Any  # of numpy
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Use:
    """A region as a launch uses it; `end` is the byte that its arrays reach to. pid: it is memory
    of that program, from `address` on; 0: it is a region."""

    region: bytes
    use: str
    end: int
    pid: int = 0
    address: int = 0


@dataclass(frozen=True, slots=True)
class Launch:
    uses: tuple[Use, ...]
    payload: bytes
    limit: float | None  # seconds
    verb = "launch"


def payload_of(target: Any, arguments: list[Any], path: list[str]) -> bytes:
    """What the worker opens: first `path`, where it is to look for modules, then the rest. A
    function goes by value unless its module is installed: importing a program's own modules anew
    would run them in another process, if they can be found there at all."""
    import cloudpickle  # the daemon never makes one

    module = sys.modules.get(getattr(target, "__module__", None) or "")
    with _by_value:  # cloudpickle's list of modules is one for all threads
        own = module is not None and not _is_installed(module)
        if own:
            cloudpickle.register_pickle_by_value(module)
        try:
            call = cloudpickle.dumps({"target": target, "arguments": arguments})
        finally:
            if own:
                cloudpickle.unregister_pickle_by_value(module)
    return pickle.dumps({"path": path, "call": call})


_by_value = threading.Lock()


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] == "hmmfs":
        return True
    return any(
        os.path.realpath(file).startswith(os.path.realpath(sysconfig.get_path(place)) + os.sep)
        for place in ("stdlib", "platstdlib", "purelib", "platlib")
    )


def encoded(launch: Launch) -> str:
    """The operation as a line."""
    header = {
        "uses": [
            [os.fsdecode(use.region), use.use, use.end, use.pid, use.address] for use in launch.uses
        ],
        "limit": launch.limit,
        "payload": base64.b64encode(launch.payload).decode(),
    }
    return "call " + base64.b64encode(json.dumps(header).encode()).decode()


def decoded(word: str) -> Launch:
    try:
        header = json.loads(base64.b64decode(word, validate=True))
        uses = tuple(
            Use(os.fsencode(name), use, *map(int, numbers))
            for name, use, *numbers in header["uses"]
        )
        limit = header["limit"]
        limit = None if limit is None else float(limit)
        launch = Launch(uses, base64.b64decode(header["payload"]), limit)
    except (
        binascii.Error,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UsageError(f"That is not a call: {error}; use hmmfs launch, or the API.") from None
    if any(use.use not in USES or min(use.end, use.pid, use.address) < 0 for use in uses):
        raise UsageError(f"A region of a call is used in another way than {', '.join(USES)}.")
    if launch.limit is not None and not (launch.limit > 0 and math.isfinite(launch.limit)):
        raise UsageError("The limit of a call is a number of seconds above 0.")
    return launch
