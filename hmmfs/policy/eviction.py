"""Which pages leave a full VRAM first.

What a policy can know is what a driver can: faults, arrivals and submitted operations. A load or
store of a page that is there leaves no trace, as on hardware without access counters.

The classes here are asked only if they are subclassed. The native core has the same rules
(native/rules/evict.c), and a test holds them against each other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict, defaultdict
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmmfs.errors import UsageError
from hmmfs.memory import BLOCK_PAGES, MAX_BLOCKS, BlockKey, EvictionKind
from hmmfs.policy.named import Named
from hmmfs.policy.prefetch import BIG_PAGES, Pages, within

FOREVER = 1 << 62  # the place in a trace of what is never used again


class NativeEviction(NamedTuple):
    """What Core.set_eviction takes."""

    kind: EvictionKind
    seed: int = 0
    trace: NDArray[np.uint64] | None = None


def mixed(number: int) -> int:
    """A number that tells nothing of the one that it is made from: the finalizer of SplitMix64
    (Steele, Lea and Flood, 2014)."""
    number = (number + 0x9E3779B97F4A7C15) % (1 << 64)
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    number = (number ^ number >> 27) * 0x94D049BB133111EB % (1 << 64)
    return number ^ number >> 31


class EvictionPolicy(Named):
    """Orders the blocks that have pages on a node."""

    # Whether `touched` is to be told of each fault before it is served. In a policy in Python that
    # makes faults longer by some 100 us, as each takes the way through the service.
    observes: ClassVar[bool] = False
    # Whether pages of the very block that a job brings may leave: not with policies that would
    # take the whole block.
    by_page: ClassVar[bool] = False

    @abstractmethod
    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        """Indices into `candidates`, the first to go first. Never empty. Its fields: ino, block;
        last_device (fault or operation of a device), last_migrated, arrived (the first page came)
        and last_cpu, numbers that grow with each such event; uses, the faults and operations since
        it arrived; pages, how many are there."""

    def pages(self, key: BlockKey, resident: Pages, need: int) -> Pages:
        """Which of a chosen block's resident pages leave, when `need` more are to be free. At least
        one; with fewer than needed it is asked again."""
        return resident

    def touched(self, key: BlockKey, pages: Pages, coming: Pages) -> None:
        """A fault on `pages` is about to be served by bringing those of `coming`."""


class BuiltIn(EvictionPolicy):
    """A rule that the native core has as well."""

    kind: ClassVar[EvictionKind]

    def native(self) -> NativeEviction:
        return NativeEviction(self.kind)


class LeastRecentlyUsed(BuiltIn):
    """The block that no device has used for longest. Coming to the device counts as a use, or
    a block fetched ahead would go before it was needed."""

    name = "lru"
    kind = EvictionKind.LRU

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        used = np.maximum(candidates["last_device"], candidates["last_migrated"])
        return np.argsort(used, kind="stable")


class LeastRecentlyMigrated(BuiltIn):
    """The block that pages have come to least recently, whatever was done with it since: what UVM
    calls LRU."""

    name = "lrm"
    kind = EvictionKind.LRM

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        return np.argsort(candidates["last_migrated"], kind="stable")


class FirstInFirstOut(BuiltIn):
    """The block whose first page came first."""

    name = "fifo"
    kind = EvictionKind.FIFO

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        return np.argsort(candidates["arrived"], kind="stable")


class MostRecentlyUsed(BuiltIn):
    """The block used last: what is best for a scan that begins again and again."""

    name = "mru"
    kind = EvictionKind.MRU

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        used = np.maximum(candidates["last_device"], candidates["last_migrated"])
        return np.argsort(used, kind="stable")[::-1]


class LeastFrequentlyUsed(BuiltIn):
    """The block with the fewest uses since it came; among equals, that least recently used."""

    name = "lfu"
    kind = EvictionKind.LFU

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        return np.lexsort((candidates["last_device"], candidates["uses"]))


class Clock(BuiltIn):
    """Second chance: blocks in the order in which they came, but one that was used since the hand
    last passed is passed over once."""

    name = "clock"
    kind = EvictionKind.CLOCK

    def __init__(self) -> None:
        self._passed: dict[BlockKey, tuple[int, int]] = {}  # arrival and uses when last passed

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        ring = np.argsort(candidates["arrived"], kind="stable")
        chances: list[np.intp] = []
        gone: list[np.intp] = []
        for index in ring:
            row = candidates[index]
            key = BlockKey(int(row["ino"]), int(row["block"]))
            now = int(row["arrived"]), int(row["uses"])
            arrived, uses = self._passed.get(key, (0, 0))
            used = now[1] > (uses if arrived == now[0] else 1)
            (chances if used else gone).append(index)
            if used:
                self._passed[key] = now
            if not used:
                break
        rest = [index for index in ring if index not in gone and index not in chances]
        return np.array([*gone, *rest, *chances], dtype=np.intp)


class Random(BuiltIn):
    """Any block; the same ones again with the same seed and the same accesses."""

    name = "random"
    kind = EvictionKind.RANDOM

    def __init__(self, seed: int = 0) -> None:
        self.seed = within("seed", seed, 0, 1 << 62)
        self._drawn = 0

    def native(self) -> NativeEviction:
        return NativeEviction(self.kind, seed=self.seed)

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        # By number, since candidates come in no particular order.
        order = np.lexsort((candidates["block"], candidates["ino"]))
        chosen = mixed(self.seed ^ mixed(self._drawn)) % len(order)
        self._drawn += 1
        return np.roll(order, -chosen)


class Tree(BuiltIn):
    """Of the block least recently used the lowest 64 KiB, and with them every aligned range around
    them that would be less than half full without: the counterpart of the density prefetcher.

    Source: the tree-based neighborhood eviction of Ganguly et al., ISCA 2019."""

    name = "tree"
    kind = EvictionKind.TREE

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        return LeastRecentlyUsed().order(candidates)

    def pages(self, key: BlockKey, resident: Pages, need: int) -> Pages:
        first = int(np.flatnonzero(resident)[0]) // BIG_PAGES * BIG_PAGES
        leaves = np.zeros(BLOCK_PAGES, dtype=np.bool_)
        leaves[first : first + BIG_PAGES] = True
        size = BIG_PAGES
        while size < BLOCK_PAGES:
            size *= 2
            low = first // size * size
            left = resident[low : low + size] & ~leaves[low : low + size]
            if left.sum() * 2 < size:
                leaves[low : low + size] = True
        return resident & leaves


class LeastRecentlyUsedPage(BuiltIn):
    """The single page that was touched or fetched longest ago."""

    name = "lru-page"
    kind = EvictionKind.LRU_PAGE
    observes = by_page = True

    def __init__(self) -> None:
        self._order: OrderedDict[tuple[BlockKey, int], None] = OrderedDict()
        self._candidates: set[BlockKey] = set()  # when last asked

    def touched(self, key: BlockKey, pages: Pages, coming: Pages) -> None:
        for page in np.flatnonzero(coming).tolist():
            self._order[key, page] = None
            self._order.move_to_end((key, page))

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        keys = [BlockKey(int(row["ino"]), int(row["block"])) for row in candidates]
        self._candidates = set(keys)
        rank: dict[BlockKey, int] = {}
        for place, (key, _) in enumerate(self._order):
            if key in self._candidates:
                rank.setdefault(key, place)
            if len(rank) == len(candidates):
                break
        return np.argsort([rank.get(key, FOREVER) for key in keys], kind="stable")

    def pages(self, key: BlockKey, resident: Pages, need: int) -> Pages:
        chosen = np.zeros(BLOCK_PAGES, dtype=np.bool_)
        passed = False  # a page of another block
        for other, page in list(self._order):
            if chosen.sum() == need or (passed and chosen.any()):
                break
            if other == key:
                del self._order[other, page]
                chosen[page] = resident[page]
            else:
                passed |= other in self._candidates
        return chosen if chosen.any() else resident  # came without a fault, by a migration


class Optimal(BuiltIn):
    """Belady's: the page whose next use is farthest away, given what will be touched. The trace is
    a file with a line `BLOCK PAGE` for each access, of one region, in order."""

    name = "optimal"
    kind = EvictionKind.OPTIMAL
    observes = by_page = True

    def __init__(self, trace: str = "") -> None:
        self.trace = trace
        self._uses: dict[tuple[int, int], list[int]] = defaultdict(list)  # reversed: the next last
        self._there: dict[int, set[int]] = defaultdict(set)  # pages on the device, by block
        self._now = -1
        self._accesses: list[int] = []
        try:
            with open(trace) as file:
                for place, line in enumerate(file):
                    block, page = (int(word) for word in line.split())
                    within("PAGE", page, 0, BLOCK_PAGES - 1)
                    within("BLOCK", block, 0, MAX_BLOCKS - 1)
                    self._uses[block, page].append(place)
                    self._accesses.append(block * BLOCK_PAGES + page)
        except (OSError, ValueError, UsageError) as error:
            raise UsageError(
                f"The trace of optimal can't be read: {error}; give trace=FILE with a line "
                "BLOCK PAGE for each access."
            ) from None
        for places in self._uses.values():
            places.reverse()

    def native(self) -> NativeEviction:
        return NativeEviction(self.kind, trace=np.array(self._accesses, dtype=np.uint64))

    def touched(self, key: BlockKey, pages: Pages, coming: Pages) -> None:
        # The page was not there since its last use, so this is its next one in the trace.
        following = [self._next(key.block, page) for page in np.flatnonzero(pages).tolist()]
        self._now = max([self._now, *(place for place in following if place != FOREVER)])
        self._there[key.block] |= set(np.flatnonzero(coming).tolist())

    def _next(self, block: int, page: int) -> int:
        places = self._uses.get((block, page), [])
        while places and places[-1] <= self._now:
            places.pop()
        return places[-1] if places else FOREVER

    def _farthest(self, block: int, resident: Pages | None = None) -> tuple[int, int]:
        there = [
            (self._next(block, page), page)
            for page in self._there[block]
            if resident is None or resident[page]
        ]
        return max(there, default=(-1, -1))

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        return np.argsort([-self._farthest(int(c["block"]))[0] for c in candidates], kind="stable")

    def pages(self, key: BlockKey, resident: Pages, need: int) -> Pages:
        chosen = np.zeros(BLOCK_PAGES, dtype=np.bool_)
        page = self._farthest(key.block, resident)[1]
        if page < 0:
            return resident  # came without a fault, by a migration
        self._there[key.block].discard(page)
        chosen[page] = True
        return chosen


BUILT_IN: tuple[type[BuiltIn], ...] = (
    LeastRecentlyUsed,
    LeastRecentlyMigrated,
    FirstInFirstOut,
    MostRecentlyUsed,
    LeastFrequentlyUsed,
    Clock,
    Random,
    Tree,
    LeastRecentlyUsedPage,
    Optimal,
)
