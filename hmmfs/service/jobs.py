"""Native jobs as something a task can await."""

from __future__ import annotations

import itertools

import trio

from hmmfs.memory import Core, Event, EventKind, Job, JobResult
from hmmfs.service.events import Events


class _Slot:
    """A job under way. Holding it holds the job's buffer, which native threads write to."""

    __slots__ = ("buffer", "done", "result")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.result: JobResult | None = None
        self.buffer: object = None


class Jobs:
    """Submits jobs and hands their results to the tasks that wait.

    A submitted job can't be recalled. Native jobs are finite: one that can't go on for want of
    capacity or against a busy CPU ends with an error, and a block that is busy is busy with a job.
    """

    def __init__(self, core: Core, events: Events) -> None:
        self._core = core
        events.subscribe(EventKind.JOB, self._complete)
        events.outlasts(lambda: not self.idle)
        self._cookies = itertools.count(1)
        self._slots: dict[int, _Slot] = {}
        self._ended = trio.Event()

    async def run(self, job: Job) -> JobResult:
        """Run a job to its end, even when cancelled: who interrupts an operation may rely on
        nothing of it being under way any more."""
        slot = self._submit(job)
        with trio.CancelScope(shield=True):
            await slot.done.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        assert slot.result is not None
        return slot.result

    async def run_within(self, job: Job, seconds: float) -> JobResult | None:
        """Run a job, but leave it to itself (None) when it takes longer or on cancellation."""
        slot = self._submit(job)
        with trio.move_on_after(seconds):
            await slot.done.wait()
        return slot.result

    def _submit(self, job: Job) -> _Slot:
        cookie = next(self._cookies)
        slot = self._slots[cookie] = _Slot()
        try:
            slot.buffer = self._core.submit(job, cookie)
        except BaseException:
            del self._slots[cookie]
            self._core.release(job.node, job.reserved)
            raise
        return slot

    def _complete(self, event: Event) -> None:
        slot = self._slots.pop(event.cookie)
        slot.result = event.result
        slot.done.set()
        self._ended.set()
        self._ended = trio.Event()

    @property
    def idle(self) -> bool:
        return not self._slots

    async def any_ended(self, seconds: float) -> None:
        """Wait until some job ends, or that long: capacity may be free then."""
        with trio.move_on_after(seconds):
            await self._ended.wait()
