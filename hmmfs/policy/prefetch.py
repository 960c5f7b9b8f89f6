"""What comes with the pages of a block that somebody touched.

A fault costs some 10 to 50 us whatever it brings, a page 0.3 us more; a page brought for nothing
costs its copy, and capacity. So every policy here is a guess at what will be touched next.

The native core carries the built-in ones out by itself (native/rules/prefetch.c); what stands here
is the same in numpy, to be read, to be subclassed, and for a test to compare. A policy of yours is
asked for each fault, which makes the fault some 100 us longer.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hmmfs.errors import UsageError
from hmmfs.memory import BLOCK_PAGES, BlockKey, PrefetchKind
from hmmfs.policy.named import Named

Pages = NDArray[np.bool_]
BIG_PAGES = 16  # UVM's big page, 64 KiB


@dataclass(frozen=True, slots=True)
class Fault:
    """What a policy is told of a fault on one block. Arrays have 512 booleans, one a page."""

    key: BlockKey
    touched: Pages
    resident: Pages  # on the node that the pages will come to
    present: Pages  # have bytes, wherever
    inside: Pages  # lie before the end of the region
    faults: int  # this is the block's fault number so many, from 0, since the other side took pages


class PrefetchPolicy(Named):
    """Chooses what comes with the pages touched, to one node. Parameters are whole numbers, the
    keyword arguments of the class; UsageError says what is wrong with one."""

    @abstractmethod
    def pages(self, fault: Fault) -> Pages:
        """The pages to bring. Those touched are brought in any case; those that are there already,
        or past the end of the region, are left out later."""

    def native(self) -> tuple[PrefetchKind, tuple[int, ...]] | None:
        """What the native core does in its place; None: ask `pages` each time."""
        return None


class Table(PrefetchPolicy):
    """The aligned group of pages around each one touched, of a size that follows from the number of
    faults alone. Powers of two, at most a block."""

    sizes: ClassVar[tuple[int, int, int, int]]

    def native(self) -> tuple[PrefetchKind, tuple[int, ...]]:
        return PrefetchKind.TABLE, self.sizes

    def pages(self, fault: Fault) -> Pages:
        return groups(fault.touched, self.sizes[min(fault.faults, 3)])


class Exact(Table):
    """Only the pages touched."""

    name = "none"
    sizes = (1, 1, 1, 1)


class Grow(Table):
    """A few pages first, the whole block when the faults keep coming. 16 pages are what the gate
    copies without handing the work to a mover."""

    name = "grow"
    sizes = (16, 64, BLOCK_PAGES, BLOCK_PAGES)


class Block(Table):
    """The whole block at once."""

    name = "block"
    sizes = (BLOCK_PAGES,) * 4


class Next(PrefetchPolicy):
    """The pages after those touched, as a processor's next-line prefetcher does."""

    name = "next"

    def __init__(self, count: int = 15) -> None:
        self.count = within("count", count, 1, BLOCK_PAGES)

    def native(self) -> tuple[PrefetchKind, tuple[int, ...]]:
        return PrefetchKind.NEXT, (self.count,)

    def pages(self, fault: Fault) -> Pages:
        wanted = fault.touched.copy()
        for page in np.flatnonzero(fault.touched):
            wanted[page : page + 1 + self.count] = True
        return wanted


class Sequential(PrefetchPolicy):
    """Pages ahead in the direction of a stride that a block's faults showed twice."""

    name = "sequential"

    def __init__(self, count: int = 15) -> None:
        self.count = within("count", count, 1, BLOCK_PAGES)
        self._seen: dict[BlockKey, tuple[int, int]] = {}  # the last page, the step before it

    def native(self) -> tuple[PrefetchKind, tuple[int, ...]]:
        return PrefetchKind.SEQUENTIAL, (self.count,)

    def pages(self, fault: Fault) -> Pages:
        wanted = fault.touched.copy()
        page = int(np.flatnonzero(fault.touched)[0])
        before, step_before = self._seen.get(fault.key, (page, 0))
        step, last = page - before, page
        if step and step == step_before:
            ahead = range(page + step, page + step * (self.count + 1), step)
            for last in (p for p in ahead if 0 <= p < BLOCK_PAGES):
                wanted[last] = True
        self._seen[fault.key] = (last, step)
        return wanted


class Density(PrefetchPolicy):
    """The density prefetcher of NVIDIA's UVM driver: of the aligned ranges of 4 KiB, 8 KiB … 2 MiB
    around a touched page, the largest where more than `threshold` percent is there already or
    touched, touched pages counting as the 64 KiB around them. At 100 nothing comes along.

    Source: uvm_perf_prefetch.c of open-gpu-kernel-modules, whose threshold is 51."""

    name = "density"

    def __init__(self, threshold: int = 51) -> None:
        self.threshold = within("threshold", threshold, 1, 100)

    def native(self) -> tuple[PrefetchKind, tuple[int, ...]]:
        return PrefetchKind.DENSITY, (self.threshold,)

    def pages(self, fault: Fault) -> Pages:
        tree = (groups(fault.touched, BIG_PAGES) | fault.resident) & fault.inside
        wanted, end = fault.touched.copy(), int(fault.inside.sum())
        for page in np.flatnonzero(fault.touched & fault.inside).tolist():
            size = BLOCK_PAGES
            while size:
                first = page // size * size
                last = min(first + size, end)
                if tree[first:last].sum() * 100 > (last - first) * self.threshold:
                    wanted[first:last] = True
                    break
                size //= 2
        return wanted


def groups(pages: Pages, size: int) -> Pages:
    """The aligned groups of `size` pages that have one of `pages`."""
    return np.repeat(pages.reshape(-1, size).any(axis=1), size)


def within(name: str, value: int, low: int, high: int) -> int:
    """A parameter's value, or what is wrong with it."""
    if not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{name}={str(value)[:80]} is wrong. Give a number from {low} to {high}.")
    return value


BUILT_IN: tuple[type[PrefetchPolicy], ...] = (Exact, Grow, Block, Next, Sequential, Density)
