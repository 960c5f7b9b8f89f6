"""Reserves pages of a node. Frees capacity first: evicts from a device, gives host pages back.

What is atomic: everything between two awaits, for no other task runs then. In particular a
victim is looked at and its job submitted in one go, so what was seen holds but for the native
threads, and against those the job itself checks. A policy of somebody's is awaited before that.
Reservations are native and atomic for all.

Who may wait for whom (each waits only for those further right):

    turn of a device  ->  staging  ->  a native job, the thread that destroys regions
    turn of the host  ->  staging  ->  the same

A native job, and that thread, wait for no task: a job ends with -ENOSPC or -EBUSY instead. So
nothing here can wait in a circle, provided that a task holds at most one turn, that the staging
reserve is settled without a turn, and that a victim is never a block with parked requests: those
may hold locks in the kernel that the victim's recall would wait for. One case of that is not
visible here (a WRITE parked at one block has locked a page of the next), so a victim's job is given
JOB_PATIENCE seconds; then it is left to itself and another victim is taken.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import trio
from numpy.typing import NDArray

from hmmfs.errors import HmmfsError
from hmmfs.memory import (
    BLOCK_PAGES,
    HOST,
    BlockKey,
    Core,
    Job,
    JobFlag,
    JobKind,
    RegionTable,
    Trace,
    Trigger,
    Victim,
    page_set,
)
from hmmfs.policy import Pages, Policies
from hmmfs.service.doomed import Doomed, Patience
from hmmfs.service.jobs import Jobs

log = logging.getLogger(__name__)

STEPS = 256  # evictions for one reservation; a block's worth needs a few
JOB_PATIENCE = 5.0  # seconds for one victim
PATIENCE = 2.0  # seconds in all for victims that are in use at the moment
PAUSE = 0.05  # seconds between two looks when no job ends


class Outcome(enum.Enum):
    """Of asking one victim."""

    MOVED = enum.auto()
    LATER = enum.auto()  # it was in use, or changed meanwhile
    NEVER = enum.auto()  # there is no place for its pages


@dataclass
class Spared:
    """Blocks that are not asked: for good, or until all others have been."""

    never: set[BlockKey]
    later: set[BlockKey] = field(default_factory=set)

    def note(self, key: BlockKey, outcome: Outcome) -> None:
        if outcome is Outcome.LATER:
            self.later.add(key)
        elif outcome is Outcome.NEVER:
            self.never.add(key)

    def able(self, found: NDArray[np.void], what: str) -> NDArray[np.void]:
        """The candidates that may be asked to give some of `what`."""
        able: NDArray[np.void] = found[(found["held"] == 0) & (found[what] > 0)]
        allowed = [(key := _key(row)) not in self.never and key not in self.later for row in able]
        able = able[np.array(allowed, dtype=np.bool_)]
        return able


@dataclass
class Reservation:
    """Pages reserved on a node. `take` hands the reservation over to a job; who leaves
    `Reservations.reserve` without having taken it gives it back."""

    core: Core
    node: int
    pages: int
    staging: bool = False  # the staging lock is ours
    held: int = 0

    @property
    def flags(self) -> JobFlag:
        return JobFlag.STAGING if self.staging and self.node == HOST else JobFlag.NONE

    def reserve(self, *, staging: bool = False) -> bool:
        if not self.held and self.core.reserve(self.node, self.pages, staging=staging):
            self.held = self.pages
        return self.held == self.pages

    def take(self) -> int:
        held, self.held = self.held, 0
        return held

    def drop(self) -> None:
        self.core.release(self.node, self.take())


class Reservations:
    """Reserves pages of nodes, for the fault service and for device operations alike."""

    def __init__(
        self,
        core: Core,
        jobs: Jobs,
        regions: RegionTable,
        policies: Policies,
        trace: Trace,
        doomed: Doomed,
    ) -> None:
        self._core = core
        self._doomed = doomed
        self._trace = trace
        self._jobs = jobs
        self._regions = regions
        self._policies = policies
        # First come, first served on each node, so that a large need is not starved.
        self._turn = [trio.Lock() for _ in range(core.nodes)]
        # One swap at a time: the reserve is one block.
        self._staging = trio.Lock()

    def patience(self) -> Patience:
        """For one who finds no capacity where none can be freed."""
        return Patience(self._doomed)

    @contextlib.asynccontextmanager
    async def reserve(
        self,
        node: int,
        pages: int,
        block: BlockKey,
        frees: int = 0,
        *,
        trigger: Trigger = Trigger.OPERATION,
    ) -> AsyncIterator[Reservation]:
        """Reserve pages on a node for a job on `block`, evicting others if need be; ENOSPC if it
        can't be done. `frees` is how many pages the job will free elsewhere: on the host if it
        moves pages to a device, on a device if it moves them home. That much may be swapped
        through the staging reserve when both sides are full."""
        reservation = Reservation(self._core, node, pages)
        try:
            async with self._turn[node]:
                with self._waiting(reservation, block, trigger):
                    await self._free_until_reserved(
                        reservation, Spared(self._policies.spares(node, block)), frees
                    )
            yield reservation
        finally:
            reservation.drop()
            if reservation.staging:
                try:
                    with trio.CancelScope(shield=True):
                        await self._settle(block)
                finally:
                    self._staging.release()

    @contextlib.contextmanager
    def _waiting(
        self, reservation: Reservation, block: BlockKey, trigger: Trigger
    ) -> Iterator[None]:
        """A device stands still while it is full."""
        if reservation.node == HOST or reservation.reserve():
            yield
            return
        began = self._trace.queue(block, reservation.node, trigger)
        try:
            yield
        finally:
            self._trace.queue(block, reservation.node, trigger, began)

    async def ahead(self, node: int) -> None:
        """Little of a device is free: evict until its high watermark, off anybody's way. Who
        reserves meanwhile waits for its turn, and finds free capacity."""
        spared = Spared(set())
        try:
            async with self._turn[node]:
                reservation = Reservation(self._core, node, 0)
                for _ in range(STEPS + self._core.capacity[node]):
                    missing = self._policies.lacking(node)
                    if missing <= 0 or not await self._free_device(reservation, spared, missing, 0):
                        break
        finally:
            self._policies.rearm(node)

    async def _free_until_reserved(
        self, reservation: Reservation, spared: Spared, frees: int
    ) -> None:
        deadline = trio.current_time() + PATIENCE
        patience = self.patience()
        attempt = self._free_host if reservation.node == HOST else self._free_device
        steps = STEPS + 4 * reservation.pages  # a policy may evict page by page
        if reservation.pages > self._core.capacity[reservation.node]:
            steps = 0
        while steps:
            if reservation.reserve():
                return
            missing = max(1, reservation.pages - self._core.free(reservation.node))
            if await attempt(reservation, spared, missing, frees):
                steps -= 1
                continue
            late = trio.current_time() > deadline
            if not late and self._more_may_come(reservation.node, spared):
                await self._pause()
            elif not await patience.more():
                break
            spared.later.clear()
        raise self._full(reservation.node, reservation.pages)

    async def _pause(self) -> None:
        """Returns when a job has ended or a region gone, since capacity may be free then, and after
        PAUSE at the latest."""
        async with trio.open_nursery() as nursery:

            async def until(wait: Callable[[], Awaitable[None]]) -> None:
                await wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until, partial(self._jobs.any_ended, PAUSE))
            nursery.start_soon(until, self._doomed.moved_on)

    def _full(self, node: int, pages: int) -> HmmfsError:
        where = "Host memory" if node == HOST else f"The VRAM of dev{node - 1}"
        stays = self._unlisted(node, self._core.candidates(node))
        why = f" ({stays * 4} KiB are pinned or in use)" if stays > 0 else ""
        return HmmfsError(
            errno.ENOSPC,
            f"{where} is full{why}: {pages * 4} KiB more do not fit, and nothing can be evicted. "
            f"{'Say unset_pinned, remove' if stays > 0 else 'Remove'} regions, or mount with "
            "larger host= or vram=.",
        )

    def _alive(self, node: int) -> NDArray[np.void]:
        """The candidates without those of regions that are being destroyed."""
        found = self._core.candidates(node)
        there = [ino for ino in np.unique(found["ino"]) if self._regions.by_ino(int(ino))]
        alive: NDArray[np.void] = found[np.isin(found["ino"], there)]
        return alive

    def _unlisted(self, node: int, found: NDArray[np.void]) -> int:
        """Pages in use that no candidate has: pinned, or reserved for a job under way."""
        charged = int(found["pages"].sum() + found["reserved"].sum() + found["kept"].sum())
        return self._core.used(node) - charged

    def _more_may_come(self, node: int, spared: Spared) -> bool:
        """Whether somebody has capacity and will be done with it: a block that is in use at the
        moment, or a reservation of a job under way."""
        if spared.later or not self._jobs.idle:
            return True
        found = self._core.candidates(node)
        if any(row["held"] and _key(row) not in spared.never for row in found):
            return True
        return self._unlisted(node, found) > 0

    # ---- devices

    async def _free_device(
        self, reservation: Reservation, spared: Spared, missing: int, frees: int
    ) -> bool:
        """Ask one victim. False: there is none to ask."""
        victim = await self._victim(reservation.node, spared, missing)
        if victim is None:
            return False
        outcome = Outcome.LATER
        if victim.pages.any():
            missing = min(missing, int(victim.pages.sum()))
            outcome = await self._evict(
                _out_of(victim, reservation.node), reservation, spared, missing, frees
            )
        spared.note(victim.key, outcome)
        return True

    async def _victim(self, node: int, spared: Spared, need: int) -> Victim | None:
        """Who leaves a device next. No pages: they have gone already, or can't go now."""
        if self._policies.evicts_natively(node):
            return self._core.victim(node, need, spared.never | spared.later)
        able = spared.able(self._alive(node), "pages")
        if not len(able):
            return None
        row = await self._policies.victim(node, able)
        key = _key(row)
        resident = self._resident(key, node)
        need = min(need, int(row["pages"]))
        if resident.any():
            resident = await self._policies.leaving(node, key, resident, need)
        if self._in_use(key):  # since the policy was shown it
            resident = np.zeros(BLOCK_PAGES, dtype=np.bool_)
        return Victim(key, resident)

    def _in_use(self, key: BlockKey) -> bool:
        region = self._regions.by_ino(key.ino)
        record = region.blocks(key.block, 1)[0] if region else None
        return record is None or bool(record["busy"] or record["parked"])

    def _resident(self, key: BlockKey, node: int) -> Pages:
        """The pages that a device has of a block."""
        region = self._regions.by_ino(key.ino)
        if region is None:
            return np.zeros(BLOCK_PAGES, dtype=np.bool_)
        record = region.blocks(key.block, 1)[0]
        owned: Pages = page_set(record["present"]) & (record["owner"] == node)
        return owned | page_set(region.labelled_or_duplicate(key.block, node))

    async def _evict(
        self, job: Job, reservation: Reservation, spared: Spared, missing: int, frees: int
    ) -> Outcome:
        """Move a block's pages out of a device."""
        outcome = await self._moved(job)
        if outcome is not Outcome.NEVER:
            return outcome
        # The host is almost full: from here on, move no more than is needed.
        job = _limited(job, missing)
        if await self._give_back(missing, spared):
            outcome = await self._moved(job)
            if outcome is not Outcome.NEVER:
                return outcome
        if await self._to_another(job, reservation.node, missing):
            return Outcome.MOVED
        return await self._stage_out(job, reservation, missing, frees)

    async def _moved(self, job: Job) -> Outcome:
        result = await self._jobs.run_within(job, JOB_PATIENCE)
        if result is not None and result.result == -errno.ENOSPC:
            return Outcome.NEVER
        moved = result is not None and result.result == 0 and result.moved > 0
        return Outcome.MOVED if moved else Outcome.LATER

    async def _to_another(self, job: Job, node: int, pages: int) -> bool:
        for other in range(1, self._core.nodes):
            n = min(pages, self._core.free(other))
            if (
                other == node
                or other in self._core.excluded
                or n <= 0
                or not self._core.reserve(other, n)
            ):
                continue
            if await self._moved(_limited(job, n, node=other, reserved=n)) is Outcome.MOVED:
                return True
        return False

    async def _stage_out(
        self, job: Job, reservation: Reservation, pages: int, frees: int
    ) -> Outcome:
        """Swap: let pages out beyond the host's capacity, because the job to come will free as many
        host pages as that."""
        if not reservation.staging and frees > 0:
            await self._staging.acquire()
            reservation.staging = True
        n = min(pages, frees + self._core.free(HOST))
        if n <= 0 or not self._core.reserve(HOST, n, staging=True):
            return Outcome.NEVER
        return await self._moved(_limited(job, n, reserved=n, flags=job.flags | JobFlag.STAGING))

    # ---- the host

    async def _free_host(
        self, reservation: Reservation, spared: Spared, missing: int, frees: int
    ) -> bool:
        """Take one step. False: there is none to take."""
        return (
            await self._give_back(missing, spared)
            or await self._push_out(missing, spared)
            or await self._stage_in(reservation, frees)
        )

    async def _stage_in(self, reservation: Reservation, frees: int) -> bool:
        """Swap: reserve beyond the host's capacity; `_settle` pushes as much out once the job has
        freed it on a device."""
        if frees + self._core.free(HOST) < reservation.pages:
            return False
        if not reservation.staging:
            await self._staging.acquire()
            reservation.staging = True
        return reservation.reserve(staging=True)

    async def _give_back(self, missing: int, spared: Spared) -> bool:
        """Free host pages that hold no bytes of their own: copies kept of device-owned pages, then
        pages held back for holes that the CPU may have filled. Whether any came free."""
        if self._core.drop_kept(missing):
            return True
        able = spared.able(self._alive(HOST), "reserved")
        if not len(able):
            return False
        victim = able[int(np.argmin(able["last_cpu"]))]
        key = _key(victim)
        region = self._regions.by_ino(key.ino)
        if region is None:
            spared.never.add(key)
            return False
        record = region.blocks(key.block, 1)[0]
        holes = (record["cached"] | record["recalling"]) & ~record["present"]
        pages = np.flatnonzero(page_set(holes))
        if not len(pages):
            return True  # given back meanwhile
        first, count = int(pages[0]), int(pages[-1] - pages[0]) + 1
        job = Job(JobKind.RECALL, *key, first=first, count=count)
        result = await self._jobs.run_within(job, JOB_PATIENCE)
        if result is None or result.result:
            spared.later.add(key)
        return True

    async def _push_out(self, missing: int, spared: Spared) -> bool:
        """Push the host pages least recently used by the CPU to a device with free capacity."""
        nodes = (one for one in range(1, self._core.nodes) if one not in self._core.excluded)
        node = max(nodes, key=self._core.free, default=HOST)
        if node == HOST:
            return False
        able = spared.able(self._alive(HOST), "pages")
        if not len(able):
            return False
        victim = able[int(np.argmin(able["last_cpu"]))]
        key = _key(victim)
        n = min(missing, int(victim["pages"]), self._core.free(node))
        region = self._regions.by_ino(key.ino)
        if region is None or n <= 0 or not self._core.reserve(node, n):
            return False
        record = region.blocks(key.block, 1)[0]
        there = page_set(record["present"] & ~record["device"])
        window = there & ~page_set(region.labelled_or_duplicate(key.block, HOST))
        window[np.flatnonzero(window)[n:]] = False
        if not window.any():
            self._core.release(node, n)
            spared.later.add(key)
            return True
        flags = JobFlag.EVICT | JobFlag.CHOSEN
        job = Job(JobKind.MIGRATE, *key, node=node, flags=flags, window=window, reserved=n)
        outcome = await self._moved(job)
        spared.note(key, outcome)
        if outcome is Outcome.MOVED:
            self._core.drop_kept(n)
        return True

    async def _settle(self, block: BlockKey) -> None:
        """Bring the host back within its capacity after a swap for `block`, which goes last. Takes
        no turn: see above."""
        spared = Spared({block})
        deadline = trio.current_time() + PATIENCE
        for _ in range(STEPS):
            over = -self._core.free(HOST)
            if over <= 0:
                return
            if await self._give_back(over, spared) or await self._push_out(over, spared):
                continue
            if trio.current_time() > deadline:
                break
            if block not in spared.never:
                await self._jobs.any_ended(PAUSE)
            spared = Spared(set())
        log.warning(
            "%d pages of the staging reserve stay in use: host and devices are full.",
            max(0, -self._core.free(HOST)),
        )


def _key(row: np.void) -> BlockKey:
    return BlockKey(int(row["ino"]), int(row["block"]))


def _out_of(victim: Victim, node: int) -> Job:
    """What moves a victim's pages on a device to the host."""
    flags = JobFlag.EVICT | JobFlag.CHOSEN
    return Job(
        JobKind.MIGRATE, *victim.key, node=HOST, flags=flags, source=node, window=victim.pages
    )


def _limited(
    job: Job,
    limit: int,
    node: int | None = None,
    reserved: int = 0,
    flags: JobFlag | None = None,
) -> Job:
    return replace(
        job,
        node=job.node if node is None else node,
        flags=job.flags if flags is None else flags,
        limit=limit,
        reserved=reserved,
    )
