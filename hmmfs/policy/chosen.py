"""The policies in force on one machine, by node; they may change while programs run.

A policy may be somebody's code. One that raises, answers nonsense or does not answer in time is
reported and replaced by the default; whatever it would have decided is decided by the default then,
so no page depends on it. Of a node's policies one is asked at a time: they need no locks.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import (
    BLOCK_PAGES,
    HOST,
    BlockKey,
    Core,
    EvictionKind,
    PlacementKind,
    PrefetchKind,
)
from hmmfs.policy.asking import LOADING, Asking, PolicyFailedError
from hmmfs.policy.eviction import BUILT_IN as EVICTIONS
from hmmfs.policy.eviction import BuiltIn, EvictionPolicy, LeastRecentlyUsed, NativeEviction
from hmmfs.policy.named import Named
from hmmfs.policy.placement import BUILT_IN as PLACEMENTS
from hmmfs.policy.placement import FirstTouch, PlacementPolicy
from hmmfs.policy.prefetch import BUILT_IN, Fault, Grow, Pages, PrefetchPolicy
from hmmfs.policy.registry import (
    described,
    named_eviction,
    named_placement,
    named_prefetch,
    named_thrashing,
)
from hmmfs.policy.thrashing import ThrashingPolicy

log = logging.getLogger(__name__)

T = TypeVar("T")
Q = TypeVar("Q", bound=Named)
P = TypeVar("P", EvictionPolicy, PlacementPolicy, PrefetchPolicy, ThrashingPolicy)


class Policies:
    """`on_failure` is told the node and one sentence when a policy was replaced."""

    def __init__(
        self,
        core: Core,
        *,
        prefetch: str = "grow",
        eviction: str = "lru",
        placement: str = "first-touch",
        thrashing: str = "off",
        limit_s: float = 1.0,
    ) -> None:
        self._core = core
        self._asking = Asking(limit_s)
        # Devices share nothing: a policy may keep count of what it has seen.
        nodes = range(core.nodes)
        self._eviction: list[EvictionPolicy] = [named_eviction(eviction) for _ in nodes]
        self._prefetch: list[PrefetchPolicy] = [named_prefetch(prefetch) for _ in nodes]
        self._placement: list[PlacementPolicy] = [named_placement(placement) for _ in nodes]
        self._turns = [trio.Lock() for _ in nodes]
        self._thrashing = named_thrashing(thrashing)
        try:
            core.set_thrashing(*dataclasses.astuple(self._thrashing.native()))
        except BaseException as error:
            raise UsageError(f"{thrashing} can't be used: {described(error)}.") from None
        self._asks = [False] * core.nodes
        self._watermarks = [(0, 0)] * core.nodes  # free pages, low and high; 0: none
        self.on_failure: Callable[[int, str], None] = lambda node, sentence: None
        for node in nodes:
            self._set(node)
            self._set_eviction(node)

    def names(self, node: int) -> dict[str, str]:
        """Of a node's policies by what they decide, as they are to be written."""
        return {
            "prefetch": shown(self._prefetch[node]),
            "eviction": shown(self._eviction[node]),
            "placement": shown(self._placement[node]),
            "thrashing": shown(self._thrashing),
        }

    async def set_prefetch(self, node: int, text: str) -> None:
        """UsageError: that is not a policy, and the old one stays. So with the others."""
        self._prefetch[node] = await self._load(named_prefetch, text)
        self._set(node)

    async def set_eviction(self, node: int, text: str) -> None:
        self._eviction[node] = await self._load(named_eviction, text)
        self._set(node)
        self._set_eviction(node)

    async def set_placement(self, node: int, text: str) -> None:
        self._placement[node] = await self._load(named_placement, text)
        self._set(node)

    async def set_thrashing(self, text: str) -> None:
        """Of the whole machine: it takes two to thrash."""
        policy = await self._load(named_thrashing, text)
        try:
            values = await self._asking.ask(lambda: dataclasses.astuple(policy.native()))
            self._core.set_thrashing(*values)
        except (PolicyFailedError, HmmfsError, TypeError, OverflowError) as error:
            raise UsageError(f"{shown(policy)} can't be used: {_why(error)}.") from None
        self._thrashing = policy

    async def _load(self, named: Callable[[str], P], text: str) -> P:
        """The policy that a text names, which may be in somebody's file."""
        try:
            return await self._asking.ask(partial(named, text), times=LOADING)
        except PolicyFailedError as failed:
            if isinstance(failed.error, UsageError):
                raise failed.error from None
            raise UsageError(f"{text} can't be loaded: {_why(failed)}.") from None

    def watermark(self, node: int) -> str:
        low, high = self._watermarks[node]
        percent = 100 / self._core.capacity[node]
        return f"{round(low * percent)} {round(high * percent)}" if low else "off"

    def set_watermark(self, node: int, text: str) -> None:
        """`LOW HIGH`, percent of the node's memory: when less than LOW is free, evict until HIGH
        is. `off`: evict when a node is full, as UVM does."""
        words = text.split()
        if text == "off":
            words = ["0", "0"]
        if len(words) != 2 or not all(re.fullmatch(r"\d{1,9}", word, re.ASCII) for word in words):
            raise UsageError("A watermark is off, or LOW HIGH in percent, as in 10 25.")
        low, high = (int(word) for word in words)
        if (low, high) != (0, 0) and not 0 < low <= high <= 90:
            raise UsageError(
                f"{low} {high} is not a watermark: LOW is above 0, HIGH from LOW to 90."
            )
        pages = self._core.capacity[node]
        self._watermarks[node] = (-(-pages * low // 100), -(-pages * high // 100))
        self.rearm(node)

    def rearm(self, node: int) -> None:
        """Have the next fall below the low watermark told."""
        self._core.watermark(node, self._watermarks[node][0])

    def lacking(self, node: int) -> int:
        """Pages that are missing to the high watermark."""
        return self._watermarks[node][1] - self._core.free(node)

    def _set(self, node: int) -> None:
        """Tell the native core what it can do by itself."""
        policy = self._prefetch[node]
        native = policy.native() if type(policy) in BUILT_IN else None
        placement = self._placement[node]
        by_core = placement.native() if type(placement) in PLACEMENTS else None
        if node != HOST:
            self._core.set_placement(node, *(by_core or (PlacementKind.FIRST_TOUCH, 0)))
        if native is None or (node != HOST and (by_core is None or self._observes(node))):
            native = PrefetchKind.ASK, ()
        self._asks[node] = native[0] == PrefetchKind.ASK
        self._core.set_prefetch(node, *native)

    def _set_eviction(self, node: int) -> None:
        """The same of eviction, where a policy begins anew."""
        policy = self._eviction[node]
        if node == HOST:
            return
        native = NativeEviction(EvictionKind.ASK)
        if isinstance(policy, BuiltIn) and type(policy) in EVICTIONS:
            native = policy.native()
        self._core.set_eviction(node, native.kind, seed=native.seed, trace=native.trace)

    def _observes(self, node: int) -> bool:
        """Whether an eviction policy in Python is to be told of faults."""
        policy = self._eviction[node]
        return policy.observes and type(policy) not in EVICTIONS

    def evicts_natively(self, node: int) -> bool:
        """Whether the native core chooses what leaves a device."""
        return type(self._eviction[node]) in EVICTIONS

    def asks(self, node: int) -> bool:
        """Whether each fault is to be asked about."""
        return self._asks[node]

    # ---- asking them

    async def _ask(self, policy: Named, built_in: Collection[type], call: Callable[[], T]) -> T:
        """Only somebody's code is worth a thread."""
        return call() if type(policy) in built_in else await self._asking.ask(call)

    async def bring(self, node: int, fault: Fault) -> Pages:
        """The pages to bring to a node for a fault, those touched among them."""
        async with self._turns[node]:
            policy = self._prefetch[node]
            try:
                pages = await self._ask(policy, BUILT_IN, lambda: _booleans(policy.pages(fault)))
            except PolicyFailedError as failed:
                self._replace(node, self._prefetch, policy, Grow(), failed)
                pages = Grow().pages(fault)
            pages = pages & fault.inside | fault.touched
            if node != HOST and self._observes(node):
                await self._tell(node, fault, pages.copy())
            return pages

    async def left(self, node: int, fault: Fault) -> Pages | None:
        """The pages that a policy of somebody's leaves where they are; None: the native core
        decides that."""
        async with self._turns[node]:
            policy = self._placement[node]
            if type(policy) in PLACEMENTS:
                return None
            try:
                return await self._asking.ask(lambda: ~_booleans(policy.brings(fault)))
            except PolicyFailedError as failed:
                self._replace(node, self._placement, policy, FirstTouch(), failed)
                return None

    async def _tell(self, node: int, fault: Fault, pages: Pages) -> None:
        policy = self._eviction[node]
        try:
            await self._asking.ask(lambda: policy.touched(fault.key, fault.touched, pages))
        except PolicyFailedError as failed:
            self._replace_eviction(node, policy, failed)

    def spares(self, node: int, block: BlockKey) -> set[BlockKey]:
        """The blocks that are not victims when others are evicted for `block`."""
        return set() if node != HOST and self._eviction[node].by_page else {block}

    async def victim(self, node: int, candidates: NDArray[np.void]) -> np.void:
        """One of the candidates. There is at least one."""
        # In an order that does not depend on when others were removed, so that ties don't either.
        candidates = candidates[np.lexsort((candidates["block"], candidates["ino"]))]
        async with self._turns[node]:
            policy = self._eviction[node]
            shown_to_it = candidates.copy()
            try:
                first = await self._ask(policy, EVICTIONS, lambda: _first(policy, shown_to_it))
            except PolicyFailedError as failed:
                self._replace_eviction(node, policy, failed)
                first = _first(LeastRecentlyUsed(), candidates)
        chosen: np.void = candidates[first]
        return chosen

    async def leaving(self, node: int, key: BlockKey, resident: Pages, need: int) -> Pages:
        """Which of a victim's resident pages go."""
        async with self._turns[node]:
            policy = self._eviction[node]
            shown_to_it = resident.copy()

            def some() -> Pages:
                pages = _booleans(policy.pages(key, shown_to_it, need)) & resident
                if not pages.any():
                    raise ValueError("none of the pages that are there")
                return pages

            try:
                return await self._ask(policy, EVICTIONS, some)
            except PolicyFailedError as failed:
                self._replace_eviction(node, policy, failed)
                return resident

    def _replace_eviction(self, node: int, policy: EvictionPolicy, why: PolicyFailedError) -> None:
        if self._replace(node, self._eviction, policy, LeastRecentlyUsed(), why):
            self._set_eviction(node)

    def _replace(
        self, node: int, chosen: list[Q], failed: Q, default: Q, why: PolicyFailedError
    ) -> bool:
        """The default takes the place of a policy that failed, and people are told. False: another
        was chosen meanwhile, and stays."""
        stands = chosen[node] is failed
        if stands:
            chosen[node] = default
            self._set(node)
        sentence = (
            f"The policy {shown(failed)} failed and is replaced by {default.name}: "
            f"{_why(why)} ({why.place})."
        )
        log.warning("%s", sentence)
        self.on_failure(node, sentence)
        return stands


def _why(error: Exception) -> str:
    return described(error.error if isinstance(error, PolicyFailedError) else error)


def _booleans(answer: Any) -> Pages:
    """A policy's answer, or ValueError."""
    pages = np.asarray(answer)
    if pages.shape != (BLOCK_PAGES,) or pages.dtype != np.bool_:
        raise ValueError(f"{pages.dtype} {pages.shape} instead of 512 booleans")
    return pages.copy()  # which a thread that goes on can't change


def _first(policy: EvictionPolicy, candidates: NDArray[np.void]) -> int:
    """Of a policy's answer, or ValueError."""
    order = np.asarray(policy.order(candidates))
    if not order.size or not 0 <= int(order[0]) < len(candidates):
        raise ValueError(f"{order[:1]} instead of an index below {len(candidates)}")
    return int(order[0])


def shown(policy: Named) -> str:
    text = policy.__dict__.get("_text")
    return str(policy) if text is None else str(text)
