"""The one guard of tasks that nobody waits for: what goes wrong in one ends that one alone."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


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
