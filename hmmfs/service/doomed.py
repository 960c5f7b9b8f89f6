"""Regions that nobody can reach any more, and what waits for their capacity.

On a tmpfs the capacity of a removed file is free when its last close(2) returns, so programs count
on it. Here the kernel tells of that close afterwards (RELEASE, then FORGET), and a thread destroys
the region, since punching gigabytes takes a while. So what finds no free capacity is tried again
each time that a region on its way out has gone.

What is atomic: everything between two awaits. A region is either in the table without a name, or
counted here, until its capacity is free, but for what a transaction under way has of it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

from hmmfs.errors import HmmfsError
from hmmfs.memory import Core, Event, EventKind, RegionTable
from hmmfs.service.events import Events, guarded

T = TypeVar("T")

# Seconds that a region without a name is waited for: its last close may be on its way. It is not
# known of a file that stays open, so this is what ENOSPC costs beside one.
CLOSE_S = 0.1
DESTROY_S = 2.0  # seconds that regions are waited for which are being destroyed


class Doomed:
    """Destroys regions, one after the other."""

    def __init__(self, core: Core, events: Events, regions: RegionTable) -> None:
        self._core = core
        self._regions = regions
        self._add, self._ahead = trio.open_memory_channel[int](10**9)
        self._left = 0
        self.steps = 0  # that regions have gone
        self._retries = 0
        self._moved_on = trio.Event()
        # Neither waits for the other's threads.
        self._destroying, self._retrying = trio.CapacityLimiter(1), trio.CapacityLimiter(1)
        events.subscribe_task(
            EventKind.NO_CAPACITY, "Retrying a request", self._retry, self._answer_now
        )
        events.outlasts(lambda: self._retries > 0)

    def add(self, ino: int) -> None:
        """The table has forgotten this region."""
        self._left += 1
        self._add.send_nowait(ino)
        self._move_on()

    async def destroy_all(self) -> None:
        """Destroys what is added, until cancelled."""
        async for ino in self._ahead:
            destroy = partial(self._core.destroy_region, ino)
            run = partial(trio.to_thread.run_sync, destroy, limiter=self._destroying)
            await guarded("Destroying a region", run)
            self._left -= 1
            self._move_on()

    async def with_capacity(self, work: Callable[[], T]) -> T:
        """What `work` returns. It is called again while it fails with ENOSPC and more capacity may
        come."""
        patience = Patience(self)
        while True:
            try:
                return work()
            except HmmfsError as error:
                if error.errno != errno.ENOSPC or not await patience.more():
                    raise

    def _move_on(self) -> None:
        self.steps += 1
        self._moved_on.set()
        self._moved_on = trio.Event()

    def limit_s(self) -> float:
        """How long what is on its way out may be waited for; 0: nothing is."""
        if self._left:
            return DESTROY_S
        return CLOSE_S if self._regions.has_nameless() else 0

    async def moved_on(self) -> None:
        """Returns when a region goes one step further."""
        await self._moved_on.wait()

    async def _retry(self, event: Event) -> None:
        self._retries += 1
        try:
            with trio.CancelScope(shield=True):  # a program waits for it
                # The gate looked before it sent the event, so at once it looks again.
                patience, last, waits = Patience(self), False, True
                while waits:
                    run = partial(self._core.retry, event.cookie, last=last)
                    waits = await trio.to_thread.run_sync(run, limiter=self._retrying)
                    last = waits and not await patience.more()
        finally:
            self._retries -= 1

    def _answer_now(self, event: Event) -> None:
        self._core.retry(event.cookie, last=True)


class Patience:
    """How long one waits for capacity: from its making on, so that who is overtaken by others again
    and again fails in the end."""

    def __init__(self, doomed: Doomed) -> None:
        self._doomed = doomed
        self._began = trio.current_time()
        self._seen = doomed.steps
        self._once_more = True

    async def more(self) -> bool:
        """Wait until there may be more capacity than at the last call. False: no more will come, or
        it takes too long."""
        now, deadline = trio.current_time(), self._began + self._doomed.limit_s()
        moved, self._seen = self._doomed.steps != self._seen, self._doomed.steps
        if moved and now < self._began + DESTROY_S:
            return True
        if now >= deadline:
            # The last region may have gone since it was found that there is none.
            once_more, self._once_more = self._once_more, False
            return once_more
        self._once_more = True
        with trio.move_on_at(deadline):
            await self._doomed.moved_on()
        self._seen = self._doomed.steps
        return True
