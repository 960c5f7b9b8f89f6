"""How a refusal of a mount's file is told, its tables, and what can be the name and the shape of a
region."""

from __future__ import annotations

import errno
import math
import operator
from pathlib import Path
from typing import Any

import numpy as np

from hmmfs.common.units import LARGEST
from hmmfs.errors import HmmfsError, UsageError


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


def checked_name(name: str) -> str:
    """A region's name, which must not lead out of regions/: with a slash in it, it would be some
    other file. UsageError: it is none."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UsageError(f"{name!r} is not a name for a region. Give a file name, without slashes.")
    return name


def checked_shape(shape: Any, kind: np.dtype[Any]) -> tuple[int, ...]:
    try:
        sizes = tuple(map(operator.index, shape if isinstance(shape, tuple | list) else (shape,)))
    except TypeError:
        raise UsageError(f"{shape!r} is not a shape. Give whole numbers.") from None
    if any(size < 0 for size in sizes) or math.prod(sizes) * kind.itemsize > LARGEST:
        raise UsageError(
            f"{shape!r} is not a shape for {kind}: sizes are from 0 to 16T bytes in all."
        )
    return sizes
