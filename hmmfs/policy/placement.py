"""What to bring home when the CPU touches a page that a device owns.

Every page brought by itself costs a whole fault; every page brought for nothing costs a copy, and
one more when the device wants it back. So it pays to begin small and to grow with each fault.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

BLOCK_PAGES = 512


class PlacementPolicy(ABC):
    """Chooses the pages of one block that a CPU fault brings home."""

    name: ClassVar[str]

    @abstractmethod
    def window(self, first: int, count: int, faults: int) -> tuple[int, int]:
        """The pages (first, count) to bring for a touch of [first, first+count), which is the
        block's `faults`-th CPU fault (from 1) since pages last moved to a device. Pages that are
        home already are left out later; the pages touched have to be inside."""

    def table(self) -> tuple[int, int, int, int] | None:
        """How many pages the 1st, 2nd, 3rd and each later fault brings, aligned, where the policy
        is no more than that: the native express path then follows the table itself. None where
        each fault has to be asked about, which turns the express path off."""
        return None


class Table(PlacementPolicy):
    """Windows that follow from the number of faults alone. Powers of two, at most a block."""

    sizes: ClassVar[tuple[int, int, int, int]]

    def table(self) -> tuple[int, int, int, int]:
        return self.sizes

    def window(self, first: int, count: int, faults: int) -> tuple[int, int]:
        size = self.sizes[min(max(faults, 1), 4) - 1]
        begin = first // size * size
        end = min(-(-(first + count) // size) * size, BLOCK_PAGES)
        return begin, end - begin


class Exact(Table):
    """Only the pages touched."""

    name = "none"
    sizes = (1, 1, 1, 1)


class Grow(Table):
    """A few pages first, the whole block when the CPU keeps coming. 16 pages are what the gate
    copies without handing the work to a mover."""

    name = "grow"
    sizes = (16, 64, BLOCK_PAGES, BLOCK_PAGES)


class Block(Table):
    """The whole block at once."""

    name = "block"
    sizes = (BLOCK_PAGES,) * 4


BUILT_IN: tuple[type[PlacementPolicy], ...] = (Exact, Grow, Block)
