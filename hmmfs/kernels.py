"""Kernels that come with hmmfs: small numpy functions, to try things with and to test by.

Arrays are views of region memory; a kernel stores into those that it is given for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
CHUNK = 1 << 18  # elements at a time, so that a temporary array stays small


def fill(out: Floats, value: float) -> None:
    """out[i] = value"""
    out[...] = value


def scale(x: Floats, by: float) -> None:
    """x[i] *= by"""
    x *= by


def copy(source: Floats, out: Floats) -> None:
    """out[i] = source[i]; equal shapes."""
    np.copyto(out, source)


def axpy(a: float, x: Floats, y: Floats) -> None:
    """y[i] += a * x[i]; equal shapes, contiguous."""
    x, y = x.reshape(-1), y.reshape(-1)
    for at in range(0, x.size, CHUNK):
        y[at : at + CHUNK] += a * x[at : at + CHUNK]


def reduce(x: Floats) -> float:
    """The sum of all elements, in double precision."""
    return float(np.sum(x, dtype=np.float64))


def stencil(x: Floats, out: Floats) -> None:
    """out[i] = (x[i-1] + x[i] + x[i+1]) / 3 in one dimension; the two ends are copied."""
    out[0], out[-1] = x[0], x[-1]
    for at in range(1, x.size - 1, CHUNK):
        end = min(at + CHUNK, x.size - 1)
        out[at:end] = (x[at - 1 : end - 1] + x[at:end] + x[at + 1 : end + 1]) / 3


def gather(source: Floats, index: NDArray[np.integer[Any]], out: Floats) -> None:
    """out[i] = source[index[i]]"""
    np.take(source, index, out=out)


def matmul(a: Floats, b: Floats, out: Floats) -> None:
    """out = a @ b"""
    np.matmul(a, b, out=out)


def touch(data: NDArray[np.uint8], accesses: Iterable[tuple[int, bool]]) -> int:
    """Follow a list of accesses (byte offset, whether it is a store, which adds 1); the sum of the
    bytes that the loads saw."""
    total = 0
    for offset, store in accesses:
        if store:
            data[offset] += 1
        else:
            total += int(data[offset])
    return total
