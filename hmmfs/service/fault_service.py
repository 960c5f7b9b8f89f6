"""The fault service: hears of faults, decides, has native jobs carry it out.

What is atomic: everything between two awaits. A fault is filed without awaiting, so it is either
in `_faults` or being served, never lost between. Each
block has at most one task that serves it; faults on it that come meanwhile are merged in `_faults`
and served by that task afterwards. Tasks of different blocks never wait for each other, except for
capacity (see reservations.py).

Every finished job on a block answers its parked requests anew. Those that still can't be answered
are parked and reported again, so a served fault is never looked at twice here, and an event may
well be about a request that has been answered since.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import trio

from hmmfs.errors import HmmfsError
from hmmfs.memory import (
    BLOCK_BYTES,
    BLOCK_PAGES,
    HOST,
    PAGE_SIZE,
    BlockKey,
    Core,
    Event,
    EventKind,
    FaultReason,
    Job,
    JobFlag,
    JobKind,
    JobResult,
    RegionTable,
    Trigger,
    accounts,
    page_set,
)
from hmmfs.policy import Fault, Pages, Policies
from hmmfs.service.events import Events, apart
from hmmfs.service.jobs import Jobs
from hmmfs.service.reservations import Reservations

log = logging.getLogger(__name__)

DEVICE_FAULT_ATTEMPTS = 200
# Times that programs keep a page from being moved before the device uses it remotely instead.
PATIENT_ATTEMPTS = 8
FAIL_ATTEMPTS = 100
FAIL_PAUSE_S = 0.1
ATTEMPTS = 4  # at the policy's window, and again at just the pages accessed


def no_pages() -> Pages:
    return np.zeros(BLOCK_PAGES, dtype=np.bool_)


def bitmap(words: bytes) -> Pages:
    return page_set(np.frombuffer(words or bytes(64), dtype=np.uint64))


@dataclass
class _Fault:
    """What waits at one block: pages accessed that are a device's, and holes that need memory."""

    owner: list[tuple[int, int]] = field(default_factory=list)  # (first, count)
    holes: list[tuple[int, int]] = field(default_factory=list)
    window: Pages = field(default_factory=no_pages)  # what the native core would bring home

    def add(self, event: Event) -> None:
        asked = self.holes if event.reason == FaultReason.HOST_FULL else self.owner
        if (event.first, event.pages) not in asked:
            asked.append((event.first, event.pages))
        self.window = self.window | bitmap(event.window)

    def touched(self) -> Pages:
        touched = no_pages()
        for first, count in self.owner:
            touched[first : first + count] = True
        return touched


def _refusal(number: int) -> HmmfsError:
    """Why a worker can't have a page that it accessed."""
    if number == errno.ERANGE:
        return HmmfsError(number, "The kernel touched a region past its end.")
    if number == errno.ENOENT:
        return HmmfsError(number, "The kernel touched a region that is gone.")
    if number == errno.EPERM:
        return HmmfsError(
            errno.EBUSY,
            "The kernel touched a page that is pinned elsewhere: unset that, or advise "
            "accessed_by= for the device.",
        )
    if number == errno.EACCES:
        return HmmfsError(
            errno.EPERM, "The kernel touched memory of a program that was detached from its device."
        )
    if number == errno.ENOLINK:
        return HmmfsError(
            errno.EBUSY,
            "The kernel touched a page that is to be used on the host, but the region's file can't "
            "be mapped: it was removed or renamed, or may not be opened.",
        )
    if number == errno.EBADMSG:
        return HmmfsError(
            errno.EREMOTEIO,
            "The kernel wrote to its worker's socket what the daemon can't serve; the next "
            "launch gets a new worker.",
        )
    if number == errno.EBUSY:
        return HmmfsError(number, "Programs keep touching the pages faster than they can be moved.")
    name = errno.errorcode.get(number, str(number))
    return HmmfsError(number, f"A page that the kernel touched can't be had: {name}.")


class FaultService:
    """Serves the faults that events tell of. `on_lost` is told of a device's fault that can't be
    served: the node, the number of its worker, and why."""

    def __init__(
        self,
        core: Core,
        events: Events,
        jobs: Jobs,
        reservations: Reservations,
        regions: RegionTable,
        policies: Policies,
        *,
        on_lost: Callable[[int, int, HmmfsError], None],
    ) -> None:
        self._core = core
        self._events = events
        self._jobs = jobs
        self._reservations = reservations
        self._regions = regions
        self._policies = policies
        self._on_lost = on_lost
        self._faults: dict[BlockKey, _Fault] = {}
        self._serving: set[BlockKey] = set()
        events.subscribe(EventKind.FAULT, self._file)
        events.subscribe_task(
            EventKind.DEVICE_FAULT,
            "Serving a device's fault",
            self._serve_device_fault,
            self._failed,
        )
        events.outlasts(lambda: bool(self._serving))

    def _file(self, event: Event) -> None:
        key = BlockKey(event.ino, event.block)
        self._faults.setdefault(key, _Fault()).add(event)
        if key not in self._serving:
            self._serving.add(key)
            self._events.start(partial(self._serve, key))

    def _failed(self, event: Event) -> None:
        error = HmmfsError(errno.EIO, "The daemon failed to serve a fault. See its log.")
        self._lose(event, error)

    async def _serve(self, key: BlockKey) -> None:
        """Serve a block's faults, in order, until none waits."""
        try:
            while (fault := self._faults.pop(key, None)) is not None:
                try:
                    await self._serve_one(key, fault)
                except HmmfsError as error:
                    await self._fail(key, error.errno or errno.EIO)
                except Exception:
                    log.exception("A fault on %s could not be served.", key)
                    await self._fail(key, errno.EIO)
        finally:
            self._serving.discard(key)

    async def _serve_one(self, key: BlockKey, fault: _Fault) -> None:
        region = self._regions.by_ino(key.ino)
        if region is None or not region.blocks(key.block, 1)[0]["parked"]:
            # Most likely answered meanwhile. The count was read without the block's lock, which the
            # replay takes: a request that was just being parked is reported again.
            await self._replay(key, 0)
            return
        if fault.owner:
            await self._bring_home(key, fault)
        if fault.holes:
            await self._make_holes_fillable(key, fault)

    # ---- a page that a device owns

    async def _bring_home(self, key: BlockKey, fault: _Fault) -> None:
        touched = fault.touched()
        window = fault.window | touched
        if self._policies.asks(HOST):
            record = self._record(key)
            window = await self._policies.bring(HOST, self._seen(key, HOST, touched, record))
        sentence = "the CPU and a device keep taking it from each other."
        error = errno.EBUSY
        for pages in (window, touched):
            for _ in range(ATTEMPTS):
                try:
                    result = await self._migrate_home(key, pages)
                except HmmfsError as full:
                    # Once more with less: others may have moved pages meanwhile.
                    error, sentence = full.errno or errno.ENOSPC, full.sentence
                    break
                if result.result == 0:
                    return
                error = -result.result
        log.warning("A program's access to a device's page fails: %s", sentence)
        await self._fail(key, error)

    async def _migrate_home(self, key: BlockKey, pages: Pages) -> JobResult:
        owned = page_set(self._record(key)["device"]) & pages
        if not owned.any():
            # All are home; what is parked is to be looked at again.
            return await self._replay(key, 0)
        flags = JobFlag.CHOSEN | JobFlag.FAULT
        job = Job(JobKind.MIGRATE, *key, node=HOST, flags=flags, window=owned)
        result = await self._jobs.run(job)
        if result.result != -errno.ENOSPC:
            return result
        async with self._reservations.reserve(
            HOST, result.need, key, frees=result.need
        ) as reservation:
            job = replace(job, reserved=reservation.take(), flags=job.flags | reservation.flags)
            return await self._jobs.run(job)

    # ---- a hole that finds host memory full

    async def _make_holes_fillable(self, key: BlockKey, fault: _Fault) -> None:
        record = self._record(key)
        holes = ~page_set(record["present"] | record["cached"] | record["recalling"])
        needs = [int(holes[first : first + count].sum()) for first, count in fault.holes]
        # Reserve for all of them; else for the smallest request, so that each round lets one go on.
        sentence = ""
        for need in dict.fromkeys((min(sum(needs), self._core.capacity[HOST]), min(needs))):
            try:
                async with self._reservations.reserve(HOST, need, key) as reservation:
                    # The job gives the reservation back just before it replays.
                    await self._replay(key, reservation.take())
                    return
            except HmmfsError as full:
                sentence = full.sentence
        log.info("A program's write fails: %s", sentence)
        await self._fail(key, errno.ENOSPC)

    # ---- a worker's faults that the native side could not serve

    async def _serve_device_fault(self, event: Event) -> None:
        """The worker's threads wait until this succeeds; if it can't, its kernel is ended."""
        key = BlockKey(event.ino, event.block)
        job = Job(
            JobKind.DEVICE_FAULT,
            *key,
            node=event.node,
            device_fault=event.device_fault,
            worker=event.worker,
        )
        result, pause = event.result, 0.001
        try:
            if result.result == -errno.EAGAIN:
                job = await self._chosen(job)
                result = await self._jobs.run(job)
            for attempt in range(DEVICE_FAULT_ATTEMPTS):
                if event.worker != self._core.device_worker(event.node):
                    raise HmmfsError(errno.ESRCH, "The worker that accessed it has ended.")
                if attempt == PATIENT_ATTEMPTS and not job.flags & JobFlag.HERE:
                    job = self._remotely(job)
                if result.result == -errno.ENOTCONN:
                    # It can't be mapped remotely, so it has to be brought.
                    job = replace(job, flags=job.flags | JobFlag.HERE)
                    result = await self._jobs.run(job)
                if result.result == -errno.ENOSPC:
                    frees = self._on_host(key)
                    async with self._reservations.reserve(
                        event.node, result.need, key, frees, trigger=Trigger.DEVICE_FAULT
                    ) as reservation:
                        # Policies counted these accesses when the device was full.
                        job = replace(job, flags=job.flags | JobFlag.AGAIN)
                        flags = job.flags | reservation.flags
                        ready = replace(job, reserved=reservation.take(), flags=flags)
                        result = await self._jobs.run(ready)
                elif result.result == -errno.EBUSY:
                    await trio.sleep(pause)
                    pause = min(2 * pause, 0.05)
                    result = await self._jobs.run(job)
                if result.result not in (-errno.ENOSPC, -errno.EBUSY):
                    break
            if result.result:
                raise _refusal(-result.result)
        except HmmfsError as error:
            self._lose(event, error)

    def _lose(self, event: Event, error: HmmfsError) -> None:
        """A worker's faults end without having been served, and so does the worker that had them,
        if it still runs."""
        assert event.device_fault is not None
        key = BlockKey(event.ino, event.block)
        apart(
            "Entering a fault",
            partial(accounts.faults_failed, self._core, event.node, key, event.device_fault),
        )
        self._on_lost(event.node, event.worker, error)

    def _remotely(self, job: Job) -> Job:
        """Without moving anything. What is nowhere, or can't be mapped, is brought all the same."""
        assert job.device_fault is not None
        touched = bitmap(job.device_fault.pages) | bitmap(job.device_fault.stores)
        return replace(job, flags=job.flags | JobFlag.CHOSEN, window=touched, left=touched)

    async def _chosen(self, job: Job) -> Job:
        """With the pages that the device's policy brings."""
        key = BlockKey(job.ino, job.block)
        assert job.device_fault is not None
        touched = bitmap(job.device_fault.pages) | bitmap(job.device_fault.stores)
        record = self._record(key)
        fault = self._seen(key, job.node, touched, record)
        there = page_set(record["present"] | record["cached"] | record["recalling"])
        # Without what is there: if some of it has to make way, it is not to be brought again.
        window = await self._policies.bring(job.node, fault) & ~fault.resident
        if not fault.touched[fault.inside & ~fault.present].any():
            window &= fault.present  # as device_fault.c: no holes come with pages that have bytes
        left = await self._policies.left(job.node, fault)
        if left is not None:
            left = left & there  # what is nowhere comes to its first user
        return replace(job, flags=job.flags | JobFlag.CHOSEN, window=window, left=left)

    def _seen(self, key: BlockKey, node: int, touched: Pages, record: np.void) -> Fault:
        present = page_set(record["present"])
        region = self._regions.by_ino(key.ino)
        pages = -(-max(0, (region.size if region else 0) - key.block * BLOCK_BYTES) // PAGE_SIZE)
        arrays = {
            "touched": touched.copy(),
            "resident": present & (record["owner"] == node),
            "present": present.copy(),
            "inside": np.arange(BLOCK_PAGES) < pages,
        }
        for array in arrays.values():
            array.flags.writeable = False  # a policy is somebody's code
        return Fault(
            key,
            **arrays,
            # The gate has counted the CPU's fault already.
            faults=int(record["device_faults"] if node else max(1, record["cpu_faults"]) - 1),
        )

    def _on_host(self, key: BlockKey) -> int:
        record = self._record(key)
        return int(page_set(record["present"] & ~record["device"]).sum())

    # ---- answers

    def _record(self, key: BlockKey) -> np.void:
        """The block's record as it is now: not to be used after an await."""
        region = self._regions.by_ino(key.ino)
        if region is None:
            raise HmmfsError(errno.ENOENT, "The region was removed meanwhile.")
        record: np.void = region.blocks(key.block, 1)[0]
        return record

    async def _replay(self, key: BlockKey, reserved: int) -> JobResult:
        """Have what is parked looked at again: a migration of no pages, since every finished job
        does that. It recalls nothing, so it can't wait for the kernel."""
        return await self._jobs.run(Job(JobKind.MIGRATE, *key, node=HOST, reserved=reserved))

    async def _fail(self, key: BlockKey, error: int) -> None:
        """Answer what is parked with an error. Stores from the page cache are never refused: the
        native side applies them regardless. Who waits would wait for ever if this could not be
        done, so it is tried again where memory is short."""
        for _ in range(FAIL_ATTEMPTS):
            try:
                await self._jobs.run(Job(JobKind.FAIL, *key, error=error))
                return
            except HmmfsError as short:
                log.warning("What waits for %s is not answered yet: %s", key, short.sentence)
                await trio.sleep(FAIL_PAUSE_S)
