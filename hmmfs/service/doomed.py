"""Regions that nobody can reach any more, and what waits for their capacity.

On a tmpfs the capacity of a removed file is free when its last close(2) returns, so programs count
on it. Here the kernel tells of that close afterwards (RELEASE, then FORGET), and a thread destroys
the region, since punching gigabytes takes a while. So what finds no free capacity is tried
once more when the regions that are on their way out have gone.

What is atomic: everything between two awaits. A region is either in the table without a name, or
counted here, until its capacity is free.
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
DESTROY_S = 2.0  # seconds that a region is waited for once it is being destroyed


class Doomed:
    """Destroys regions, one after the other."""

    def __init__(self, core: Core, events: Events, regions: RegionTable) -> None:
        self._core = core
        self._regions = regions
        self._add, self._ahead = trio.open_memory_channel[int](10**9)
        self._left = 0
        self._retries = 0
        self._moved_on = trio.Event()
        # Neither waits for the other's threads.
        self._destroying, self._retrying = trio.CapacityLimiter(1), trio.CapacityLimiter(1)
        events.subscribe_task(
            EventKind.NO_CAPACITY, "Retrying a request", self._retry, self._retry_now
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
        """What `work` returns. If it fails with ENOSPC while regions are on their way out, it is
        called once more when they have gone."""
        try:
            return work()
        except HmmfsError as error:
            if error.errno != errno.ENOSPC or not self._expects_capacity():
                raise
        await self._gone()
        return work()

    def _expects_capacity(self) -> bool:
        return self._left > 0 or self._regions.has_nameless()

    def _move_on(self) -> None:
        self._moved_on.set()
        self._moved_on = trio.Event()

    async def _gone(self) -> None:
        """Returns when no region is on its way out any more, or when that takes too long."""
        with trio.move_on_after(CLOSE_S):
            while self._regions.has_nameless():
                await self._moved_on.wait()
        with trio.move_on_after(DESTROY_S):
            while self._left:
                await self._moved_on.wait()

    async def _retry(self, event: Event) -> None:
        self._retries += 1
        try:
            with trio.CancelScope(shield=True):  # a program waits for it
                await self._gone()
                await trio.to_thread.run_sync(self._core.retry, limiter=self._retrying)
        finally:
            self._retries -= 1

    def _retry_now(self, event: Event) -> None:
        self._core.retry()
