"""The switchboard: what the native core tells of, and who hears of it; and the one guard, by which
what goes wrong in one handler ends that one alone.

What is atomic: `_pump` takes a batch of events and gives each of them to its handler without
awaiting. A handler that awaits runs in a task of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from hmmfs.memory import Core, Event, EventKind

log = logging.getLogger(__name__)

Failed = Callable[[Event], None]


class Events:
    """Events of one core, until cancelled; then still those that jobs under way wait for."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._handlers: dict[int, Callable[[Event], None]] = {}
        self._waiting: list[Callable[[], bool]] = []  # whether somebody needs events yet
        self._nursery: trio.Nursery | None = None

    def subscribe(self, kind: EventKind, handler: Callable[[Event], None]) -> None:
        """Call `handler` for each event of a kind. It awaits nothing."""
        assert kind not in self._handlers, "an event has one handler"
        self._handlers[kind] = handler

    def subscribe_task(
        self,
        kind: EventKind,
        what: str,
        handler: Callable[[Event], Awaitable[None]],
        failed: Failed | None = None,
    ) -> None:
        """The same in a task for each event. failed: tells who waits that nothing was done."""

        def begin(event: Event) -> None:
            told = None if failed is None else partial(failed, event)
            self.start(partial(guarded, what, partial(handler, event), told))

        self.subscribe(kind, begin)

    def outlasts(self, waiting: Callable[[], bool]) -> None:
        """Go on after cancellation while `waiting` says that somebody needs events."""
        self._waiting.append(waiting)

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin a task that ends with the service."""
        assert self._nursery is not None, "tasks begin while events are taken"
        self._nursery.start_soon(work)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        # The pump outlives cancellation: tasks here and in the device executors wait for their jobs
        # under a shield, and only the pump can end that.
        pumping = trio.CancelScope(shield=True)
        async with trio.open_nursery() as self._nursery:

            async def pump() -> None:
                with pumping:
                    await self._pump()

            self._nursery.start_soon(pump)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    while any(waiting() for waiting in self._waiting):
                        await trio.sleep(0.01)
                pumping.cancel()

    async def _pump(self) -> None:
        fd = self._core.event_fd()
        while True:
            await trio.lowlevel.wait_readable(fd)
            for event in self._core.events():
                apart("Taking an event in", partial(self._give, event))

    def _give(self, event: Event) -> None:
        handler = self._handlers.get(event.kind)
        if handler is None:
            raise ValueError(f"There is no event {event.kind}.")
        handler(event)


async def guarded(
    what: str, work: Callable[[], Awaitable[None]], failed: Callable[[], None] | None = None
) -> None:
    """Run `work`. An exception is logged with its traceback, and `failed` answers who waits for
    what was to be done."""
    try:
        await work()
    except Exception:
        log.exception("%s failed.", what)
        if failed is not None:
            apart(what, failed)


def apart(what: str, work: Callable[[], None]) -> None:
    """The same of what awaits nothing."""
    try:
        work()
    except Exception:
        log.exception("%s failed.", what)
