"""Policies of users are asked in threads, and not for longer than a limit: their code must not stop
the daemon. A thread that does not answer can't be ended. It goes on, and what it says then is
dropped; so no work of the daemon's may wait for one of these threads.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import outcome
import trio

LOADING = 10  # times the limit, for a file that imports much

T = TypeVar("T")


class PolicyFailedError(Exception):
    """A policy raised `error` at `place`, or it did not answer in time and stood there."""

    def __init__(self, error: BaseException, place: str) -> None:
        self.error, self.place = error, place


class Asking:
    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._threads = trio.CapacityLimiter(math.inf)

    async def ask(self, call: Callable[[], T], *, times: int = 1) -> T:
        """What the call returns. PolicyFailedError: it raised something, or took longer than so
        many times the limit."""
        thread = 0

        def run() -> outcome.Outcome[T]:
            nonlocal thread
            thread = threading.get_ident()
            return outcome.capture(call)

        limit_s = self._limit_s * times
        with trio.move_on_after(limit_s):
            answer = await trio.to_thread.run_sync(
                run, abandon_on_cancel=True, limiter=self._threads
            )
            if isinstance(answer, outcome.Error):
                raise PolicyFailedError(answer.error, _raised_at(answer.error))
            return answer.unwrap()
        late = TimeoutError(f"no answer within {limit_s:g} s")
        raise PolicyFailedError(late, _is_at(thread))


def _raised_at(error: BaseException) -> str:
    at = error.__traceback__
    while at and at.tb_next:
        at = at.tb_next
    return f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at else "nowhere"


def _is_at(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "nowhere"
